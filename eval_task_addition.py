"""Task addition: θ0 + α Σ τ_t, the coefficient chosen on validation, test read once.

    python eval_task_addition.py --finetuning-mode=standard
    python eval_task_addition.py --finetuning-mode=linear
    python eval_task_addition.py --finetuning-mode=posthoc

α is the point of linspace(0, 1, --n-eval-points) with the best mean normalised validation accuracy. Writes
addition_<mode>.json: absolute and normalised accuracies, per task, with denominators, the whole curve, and what doing
nothing (zero-shot) scores by the same denominators. Needs the single-task results of the mode and of `none`.
"""

from src.args import add_search, base_parser, first_benchmark, parse
from src.runtime.distributed import spmd
from src.runtime.program import exit_on_user_error


@exit_on_user_error
@spmd
def main(argv=None) -> None:
    parser = base_parser(__doc__)
    first_benchmark(parser)
    add_search(parser)
    run, options = parse(parser, argv)
    from src.experiments.addition import add  # here, so that --help does not wait for torch

    add(run, **options)


if __name__ == "__main__":
    main()
