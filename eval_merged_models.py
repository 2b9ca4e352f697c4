"""Merged models seen closely: where their accuracy goes, how their features differ, and how well they know.

    python eval_merged_models.py --finetuning-mode=standard
    python eval_merged_models.py --finetuning-mode=linear --methods sum tsv_m svc_base=sum

Writes merged_models_<mode>.json: of every method that main.py has results of, by task, the share of predictions that
differ from the fine-tuned model's, the bias of its features by block, calibration error and loss before and after one
temperature from validation; and what each task's own vector loses by the coefficient alone. Needs the fine-tuned
checkpoints and results of main.py on the same tasks.
"""

from src.args import base_parser, first_benchmark, parse
from src.experiments.registry import MERGED_SAMPLES
from src.modes import EVALUATED
from src.runtime.distributed import spmd
from src.runtime.program import exit_on_user_error


@exit_on_user_error
@spmd
def main(argv=None) -> None:
    parser = base_parser(__doc__, EVALUATED)
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="names of results of main.py; default: twenty-one")
    parser.add_argument(
        "--num-samples", type=int, default=MERGED_SAMPLES, help="images of a task to compare features on"
    )
    first_benchmark(parser)
    run, options = parse(parser, argv)
    from src.experiments.merged_models import see_merged_models  # here, so that --help does not wait for torch

    see_merged_models(run, **options)


if __name__ == "__main__":
    main()
