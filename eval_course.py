"""The course of adaptations: what a reading at the best step on test adds, and whether entropy follows the loss.

    python eval_course.py
    python eval_course.py --methods concrete_layer_wise_adamerging --every=10

Writes course_<mode>.json: methods that learn from unlabelled images are run as main.py runs them, and every few steps
the merged model is scored on validation and test images, beside the entropy of its predictions there and their
cross-entropy with those of the tasks' own models. Needs the fine-tuned checkpoints.
"""

from src.args import base_parser, first_benchmark, parse
from src.experiments.registry import COURSE, COURSE_EVERY
from src.runtime.distributed import spmd
from src.runtime.program import exit_on_user_error


@exit_on_user_error
@spmd
def main(argv=None) -> None:
    parser = base_parser(__doc__, COURSE.choices)
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="names of results of main.py; default: three")
    parser.add_argument("--every", type=int, default=COURSE_EVERY, help="steps between two scorings")
    first_benchmark(parser)
    run, options = parse(parser, argv)
    from src.experiments.course import measure_course  # here, so that --help does not wait for torch

    measure_course(run, **options)


if __name__ == "__main__":
    main()
