"""Layer-wise functional interference: what other tasks' vectors change on a task's images, part by part.

    python eval_layerwise.py --finetuning-mode=linear
    python eval_layerwise.py --finetuning-mode=standard

Writes layerwise_<mode>.json: by part of the network (stem, attention and MLP of every block, projection) and pair of
tasks, how much the features of one task's images move when the other's vector moves the part alone, over what the
task's own does. Exact for tangent vectors. Needs the fine-tuned checkpoints.
"""

from src.args import base_parser, first_benchmark, parse
from src.experiments.registry import LAYERWISE_SAMPLES
from src.modes import EVALUATED
from src.runtime.distributed import spmd
from src.runtime.program import exit_on_user_error


@exit_on_user_error
@spmd
def main(argv=None) -> None:
    parser = base_parser(__doc__, EVALUATED)
    parser.add_argument("--num-samples", type=int, default=LAYERWISE_SAMPLES, help="test images of each task")
    first_benchmark(parser)
    run, options = parse(parser, argv)
    from src.experiments.layerwise import measure_layerwise  # here, so that --help does not wait for torch

    measure_layerwise(run, **options)


if __name__ == "__main__":
    main()
