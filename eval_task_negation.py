"""Task negation: θ0 − α τ_t forgets task t while the control set is kept.

    python eval_task_negation.py --finetuning-mode=standard
    python eval_task_negation.py --finetuning-mode=linear --control-threshold=0.9

For each task, α is the point of linspace(0, 1, --n-eval-points) with the lowest validation accuracy of the task among
those that keep --control-threshold of the pre-trained validation accuracy on the control set; target and control are
then read on test. Where no α keeps the control, α = 0 is reported, and said. Writes negation_<mode>.json.
"""

from src.args import add_search, base_parser, first_benchmark, parse
from src.experiments.registry import NEGATION_POINTS
from src.runtime.distributed import spmd
from src.runtime.program import exit_on_user_error


@exit_on_user_error
@spmd
def main(argv=None) -> None:
    parser = base_parser(__doc__)
    first_benchmark(parser)
    add_search(parser, NEGATION_POINTS)
    parser.add_argument("--control-threshold", type=float, default=0.95, help="share of the control's accuracy to keep")
    run, options = parse(parser, argv)
    from src.experiments.negation import negate  # here, so that --help does not wait for torch

    negate(run, **options)


if __name__ == "__main__":
    main()
