"""Where the eigenfunctions of the tangent kernel live: their local energy on a task and on a control task.

    python eval_ntk_localization.py
    python eval_ntk_localization.py --pairs land-vehicles --reduction sum --num-samples 64
    python eval_ntk_localization.py --model ViT-Mini__init__

The kernel of encoder and head is diagonalised on images of the task; Nyström's formula carries the leading
eigenfunctions to held-out images of the task and to the control's. Both this and the joint decomposition over task and
control are written, for several numbers of eigenfunctions, to ntk_<reduction>.json. The paper gives neither the
reduction over outputs nor the numbers of samples and eigenfunctions, and no script was ever published.
"""

from src.args import add_pairs, base_parser, parse, rank
from src.experiments.registry import NTK, NTK_RANKS, NTK_SAMPLES
from src.runtime.distributed import spmd
from src.runtime.program import exit_on_user_error


@exit_on_user_error
@spmd
def main(argv=None) -> None:
    parser = base_parser(__doc__, modes=None)
    add_pairs(parser)
    parser.add_argument("--reduction", choices=NTK.choices, default="trace", help="over the outputs of the head")
    parser.add_argument("--num-samples", type=int, default=NTK_SAMPLES, help="images of each of the three groups")
    parser.add_argument(
        "--chunk-size", type=int, help="images whose gradients are held at once; default: what the GPU's memory holds"
    )
    parser.add_argument(
        "--ranks", type=rank, nargs="+", default=NTK_RANKS, help="eigenfunctions, or shares of the trace"
    )
    run, options = parse(parser, argv)
    from src.experiments.ntk import localize_kernel  # here, so that --help does not wait for torch

    localize_kernel(run, **options)


if __name__ == "__main__":
    main()
