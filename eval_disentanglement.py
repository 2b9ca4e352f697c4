"""Disentanglement error ξ(α1, α2) of pairs of tasks on a grid of coefficients.

    python eval_disentanglement.py --finetuning-mode=standard
    python eval_disentanglement.py --finetuning-mode=linear --pairs land-house_numbers textures-scenes
    python eval_disentanglement.py --finetuning-mode=posthoc --range -3 3 --n-points 20

For linear and post-hoc models the whole grid costs two jvps per batch. Writes disentanglement_<mode>.json with the
grid, each task's term, and the mean of ξ inside the search space [-1, 1]². No script for this was ever published.
"""

from functools import partial

from src import experiments
from src.args import add_pairs, base_parser, parse
from src.datasets import loading as data
from src.runtime import results
from src.runtime.distributed import spmd
from src.runtime.parallel import map_tasks
from src.runtime.paths import Paths
from src.runtime.program import exit_on_user_error


@exit_on_user_error
@spmd
def main(argv=None) -> None:
    parser = base_parser(__doc__)
    add_pairs(parser)
    parser.add_argument("--range", type=float, nargs=2, default=(-3.0, 3.0), metavar=("LOW", "HIGH"))
    parser.add_argument("--n-points", type=int, help="coefficients per axis; default 20, on mini 13")
    parser.add_argument("--num-samples", type=int, help="test images per task; default all, on mini 256")
    args = parse(parser, argv)
    mode = args.finetuning_mode
    target = Paths.of(args).result(f"disentanglement_{mode}")
    if results.kept(target, args):
        return
    data.examples(args, args.pairs[0][0], "test")
    jobs = [(pair, own) for pair in args.pairs for own in (0, 1)]
    terms = map_tasks(partial(experiments.disentanglement_term, args=args), jobs, args.jobs, f"ξ {mode}")
    pairs = [experiments.disentanglement_record(args, both) for both in zip(terms[::2], terms[1::2])]
    results.write(target, {"finetuning_mode": mode, "pairs": pairs}, args)
    for pair in pairs:
        print(f"disentanglement {mode}: {'-'.join(pair['tasks'])} mean ξ in the box {pair['box_mean']:.3f} -> {target}")


if __name__ == "__main__":
    main()
