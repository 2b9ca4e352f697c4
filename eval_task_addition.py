"""Task addition: θ0 + α Σ τ_t, the coefficient chosen on validation, test read once.

    python eval_task_addition.py --finetuning-mode=standard
    python eval_task_addition.py --finetuning-mode=linear
    python eval_task_addition.py --finetuning-mode=posthoc

α is the point of linspace(0, 1, --n-eval-points) with the best mean normalised validation accuracy. Writes
addition_<mode>.json: absolute and normalised accuracies, per task, with denominators, the whole curve, and what doing
nothing (zero-shot) scores by the same denominators. Needs the single-task results of the mode and of `none`.
"""

import numpy as np

from src import store
from src.args import add_search, base_parser, parse
from src.datasets import loading as data
from src.evaluation import along, evaluate_merge
from src.runtime import results
from src.runtime.distributed import spmd
from src.runtime.paths import Paths
from src.runtime.program import exit_on_user_error


@exit_on_user_error
@spmd
def main(argv=None) -> None:
    parser = base_parser(__doc__)
    add_search(parser)
    args = parse(parser, argv)
    mode = args.finetuning_mode
    target = Paths.of(args).result(f"addition_{mode}")
    if results.kept(target, args):
        return
    data.examples(args, args.tasks[0], "test")
    total = sum(store.task_vector(args, task, mode) for task in args.tasks)
    coefs = [float(alpha) for alpha in np.linspace(0, 1, args.n_eval_points)]
    record = evaluate_merge(args, along(total, coefs), args.tasks, mode)
    results.write(target, record, args)
    test = record["test"]
    print(
        f"addition {mode}: alpha {record['chosen'][args.tasks[0]]:.3f}, {100 * test['mean_accuracy']:.1f} % absolute, "
        f"{100 * test['mean_normalised']:.1f} % normalised "
        f"(zero-shot {100 * record['zeroshot']['mean_normalised']:.1f} %) -> {target}"
    )


if __name__ == "__main__":
    main()
