"""Loss and accuracy along lines in weight space: between fine-tuned models, and from the pre-trained one to each.

    python eval_connectivity.py --finetuning-mode=standard
    python eval_connectivity.py --finetuning-mode=linear

Writes connectivity_<mode>.json: test loss and accuracy at --n-eval-points points from each task's model to each other
task's, on both tasks, whose barriers tell whether a merged model can lie between them; and from θ0 to each model, on
its task and on the control set (WiSE-FT). Needs the fine-tuned checkpoints.
"""

from src.args import base_parser, first_benchmark, parse
from src.experiments.registry import CONNECTIVITY_POINTS
from src.modes import EVALUATED
from src.runtime.distributed import spmd
from src.runtime.program import exit_on_user_error


@exit_on_user_error
@spmd
def main(argv=None) -> None:
    parser = base_parser(__doc__, EVALUATED)
    parser.add_argument("--n-eval-points", type=int, default=CONNECTIVITY_POINTS, help="of each line, with its ends")
    first_benchmark(parser)
    run, options = parse(parser, argv)
    from src.experiments.connectivity import measure_connectivity  # here, so that --help does not wait for torch

    measure_connectivity(run, **options)


if __name__ == "__main__":
    main()
