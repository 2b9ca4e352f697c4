"""Which pairs of tasks merge well, and what foretells it: measures of weights and of features against accuracy.

    python eval_mergeability.py
    python eval_mergeability.py --finetuning-mode=linear

Writes mergeability_<mode>.json: every two tasks merged by a few methods, their mean normalised accuracy, and measures
of the pair: cosine, signs and norms of the task vectors, overlap of their singular subspaces, features, cross-task
accuracy, tangent interference. Needs the fine-tuned checkpoints and single-task accuracies.
"""

from src.args import base_parser, first_benchmark, parse
from src.experiments.registry import MERGEABILITY, MERGEABILITY_SAMPLES
from src.runtime.distributed import spmd
from src.runtime.program import exit_on_user_error


@exit_on_user_error
@spmd
def main(argv=None) -> None:
    parser = base_parser(__doc__, MERGEABILITY.choices)
    parser.add_argument(
        "--num-samples", type=int, default=MERGEABILITY_SAMPLES, help="images of a task to compare features on"
    )
    first_benchmark(parser)
    run, options = parse(parser, argv)
    from src.experiments.mergeability import measure_mergeability  # here, so that --help does not wait for torch

    measure_mergeability(run, **options)


if __name__ == "__main__":
    main()
