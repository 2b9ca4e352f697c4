"""Where the eigenfunctions of the tangent kernel live: their local energy on a task and on a control task.

    python eval_ntk_localization.py
    python eval_ntk_localization.py --pairs land-vehicles --reduction sum --num-samples 64
    python eval_ntk_localization.py --model ViT-Mini__init__

The kernel of encoder and head is diagonalised on images of the task; Nyström's formula carries the leading
eigenfunctions to held-out images of the task and to the control's. Both this and the joint decomposition over task and
control are written, for several numbers of eigenfunctions, to ntk_<reduction>.json. The paper gives neither the
reduction over outputs nor the numbers of samples and eigenfunctions, and no script was ever published.
"""

from functools import partial

from src import experiments
from src.analysis.ntk import REDUCTIONS
from src.args import add_pairs, base_parser, parse, program
from src.datasets import loading as data
from src.runtime import parallel, results
from src.runtime.parallel import shared
from src.runtime.paths import Paths


@program
@shared
def main(argv=None) -> None:
    parser = base_parser(__doc__, modes=None)
    add_pairs(parser, "ntk_pairs")
    parser.add_argument("--reduction", choices=REDUCTIONS, default="trace", help="over the outputs of the head")
    parser.add_argument(
        "--num-samples", type=int, default=64, help="images of the task, held out of it, of the control"
    )
    parser.add_argument(
        "--chunk-size", type=int, help="images whose gradients are held at once; default: 4 GiB of them"
    )
    parser.add_argument(
        "--ranks",
        type=_rank,
        nargs="+",
        default=(5, 10, 20, 0.9),
        help="numbers of eigenfunctions, or shares of the trace",
    )
    args = parse(parser, argv)
    target = Paths.of(args).result(f"ntk_{args.reduction}")
    if results.kept(target, args):
        return
    data.examples(args, args.pairs[0][0], "test")
    work = partial(experiments.ntk_localization, args=args)
    pairs = parallel.each(work, args.pairs, args.jobs, f"tangent kernel, {args.reduction}")
    results.write(target, {"reduction": args.reduction, "num_samples": args.num_samples, "pairs": pairs}, args)
    for pair in pairs:
        found = zip(pair["ranks"], pair["nystrom"]["ratio_heldout"])
        ratios = ", ".join(f"{k}: {'none' if r is None else f'{r:.2f}'}" for k, r in found)
        print(f"{pair['task']}, control {pair['control']}: energy held out / control, by eigenfunctions: {ratios}")


def _rank(text: str) -> int | float:
    return float(text) if "." in text else int(text)


if __name__ == "__main__":
    main()
