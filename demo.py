"""Task arithmetic on two tasks, from a clone, in a minute or two: fine-tune, add the task vectors, look.

    python demo.py
    python demo.py --tasks digits,land --steps 100

Runs finetune.py, eval_single_task.py and eval_task_addition.py on two tasks of the mini suite, prints each command, and
draws one picture: what every α of θ0 + α (τ1 + τ2) scores on both tasks. Everything goes to demo/, and a second call
skips what is there.
"""

import importlib
import shlex
from collections.abc import Sequence
from pathlib import Path

from src.args import Formatter, Parser
from src.run import Run
from src.runtime.messages import UsageError
from src.runtime.paths import Places, from_root
from src.runtime.program import exit_on_user_error

FOLDER = Path("demo")
SEED = 1
STEPS = 120  # of fine-tuning; the suite's own models take 250


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=Formatter)
    parser.add_argument("--tasks", default="signs,digits", help="two of the mini suite's tasks")
    parser.add_argument("--steps", type=int, default=STEPS, help="of fine-tuning each")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of all that is made")
    options = parser.parse_args(argv)
    places = Places(save=options.folder / "checkpoints", results=options.folder / "results")
    run = Run.of(tasks=options.tasks, seed=SEED, device="cpu", places=places)
    if len(run.tasks) != 2:
        raise UsageError(f"--tasks: expected two tasks, as in --tasks=signs,digits; found {', '.join(run.tasks)}")
    steps = [("finetune", [f"--steps={options.steps}"])]
    steps += [("eval_single_task", [f"--finetuning-mode={mode}"]) for mode in ("none", "standard")]
    steps.append(("eval_task_addition", []))
    for script, flags in steps:
        flags = [*flags, *shlex.split(run.flags()), f"--tasks={','.join(run.tasks)}"]
        print(f"$ {shlex.join(['python', f'{script}.py', *flags])}", flush=True)
        importlib.import_module(script).main(flags)
    from src.reporting.first_look import draw  # here, so that --help does not wait for Matplotlib

    print(draw(run, from_root(options.folder)))


if __name__ == "__main__":
    main()
