"""Disentanglement error ξ(α1, α2) of pairs of tasks on a grid of coefficients.

    python eval_disentanglement.py --finetuning-mode=standard
    python eval_disentanglement.py --finetuning-mode=linear --pairs land-house_numbers textures-scenes
    python eval_disentanglement.py --finetuning-mode=posthoc --range -3 3 --n-points 20

For linear and post-hoc models the whole grid costs two jvps per batch. Writes disentanglement_<mode>.json with the
grid, each task's term, and the mean of ξ inside the search space [-1, 1]². No script for this was ever published.
"""

from src.args import add_pairs, base_parser, parse
from src.runtime.distributed import spmd
from src.runtime.program import exit_on_user_error


@exit_on_user_error
@spmd
def main(argv=None) -> None:
    parser = base_parser(__doc__)
    add_pairs(parser)
    parser.add_argument("--range", type=float, nargs=2, default=(-3.0, 3.0), metavar=("LOW", "HIGH"))
    parser.add_argument("--n-points", type=int, help="coefficients per axis; default 20, on mini 13")
    parser.add_argument("--num-samples", type=int, help="test images per task; default all, on mini 256")
    run, options = parse(parser, argv)
    from src.experiments.disentanglement import measure_disentanglement  # here, so that --help does not wait for torch

    measure_disentanglement(run, **options)


if __name__ == "__main__":
    main()
