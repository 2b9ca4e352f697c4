"""Task arithmetic on two tasks, from a clone, in a minute or two: fine-tune, add the task vectors, look.

    python demo.py
    python demo.py --tasks digits,land --steps 100

Runs finetune.py, eval_single_task.py and eval_task_addition.py on two tasks of the mini suite, prints each command, and
draws one picture: what every α of θ0 + α (τ1 + τ2) scores on both tasks. Everything goes to demo/, and a second call
skips what is there.
"""

from collections.abc import Sequence
from pathlib import Path

from src.args import Formatter, Parser
from src.runtime.program import exit_on_user_error

STEPS = 120  # of fine-tuning; the suite's own models take 250


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=Formatter)
    parser.add_argument("--tasks", default="signs,digits", help="two of the mini suite's tasks")
    parser.add_argument("--steps", type=int, default=STEPS, help="of fine-tuning each")
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="of all that is made")
    options = parser.parse_args(argv)
    from src.experiments.demonstration import demonstrate  # here, so that --help does not wait for it

    demonstrate(options.tasks, options.steps, options.folder)


if __name__ == "__main__":
    main()
