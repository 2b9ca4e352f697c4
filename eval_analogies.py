"""Task analogies: A is to B as C is to D, so τ_C + τ_B − τ_A is tried on D, of which nothing was trained.

    python eval_analogies.py --finetuning-mode=standard      # digits : house numbers = letters : house letters
    python eval_analogies.py --analogy MNIST SVHN EMNIST MyLetters --model=ViT-B-32

Writes analogies_<mode>.json: accuracy on D's test images of θ0, of τ_C, of τ_B, of their sum and of the analogy, each
at the coefficient that D's validation images choose; and on the control set. Needs the checkpoints of A, B and C.
"""

from src.args import base_parser, parse
from src.experiments.registry import ANALOGY_POINTS
from src.modes import EVALUATED
from src.runtime.distributed import spmd
from src.runtime.program import exit_on_user_error


@exit_on_user_error
@spmd
def main(argv=None) -> None:
    parser = base_parser(__doc__, EVALUATED)
    parser.add_argument("--analogy", nargs=4, metavar=("A", "B", "C", "D"), help="data sets; default: the suite's own")
    parser.add_argument("--n-eval-points", type=int, default=ANALOGY_POINTS, help="coefficients from 0 to 1")
    run, options = parse(parser, argv)
    from src.experiments.analogies import measure_analogies  # here, so that --help does not wait for torch

    measure_analogies(run, **options)


if __name__ == "__main__":
    main()
