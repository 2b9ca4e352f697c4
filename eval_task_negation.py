"""Task negation: θ0 − α τ_t forgets task t while the control set is kept.

    python eval_task_negation.py --finetuning-mode=standard
    python eval_task_negation.py --finetuning-mode=linear --control-threshold=0.9

For each task, α is the point of linspace(0, 1, --n-eval-points) with the lowest validation accuracy of the task among
those that keep --control-threshold of the pre-trained validation accuracy on the control set; target and control are
then read on test. Where no α keeps the control, α = 0 is reported, and said. Writes negation_<mode>.json.
"""

import numpy as np

from src import store
from src.args import add_search, base_parser, parse
from src.datasets import loading as data
from src.datasets import registry
from src.evaluation import ORIGIN, Line, mean, score_all, select_negation
from src.runtime import results
from src.runtime.distributed import spmd
from src.runtime.paths import Paths
from src.runtime.program import exit_on_user_error


@exit_on_user_error
@spmd
def main(argv=None) -> None:
    parser = base_parser(__doc__)
    add_search(parser, points=21)  # on mini too: every point costs a pass over the control set for each task
    parser.add_argument("--control-threshold", type=float, default=0.95, help="share of the control's accuracy to keep")
    args = parse(parser, argv)
    mode, control = args.finetuning_mode, registry.suite(args.suite).control
    target = Paths.of(args).result(f"negation_{mode}")
    if results.kept(target, args):
        return
    data.examples(args, control, "test")
    tangent = mode in store.TANGENT
    vectors = {task: -store.task_vector(args, task, mode) for task in args.tasks}
    coefs = tuple(float(alpha) for alpha in np.linspace(0, 1, args.n_eval_points))

    searches = [
        (dataset, "val", [Line(tau.vector, coefs)]) for task, tau in vectors.items() for dataset in (task, control)
    ]
    found = score_all(args, [(control, "val", [ORIGIN]), *searches], tangent, f"negation {mode}, validation")
    floor = args.control_threshold * found[0][0][0].accuracy
    curves = [[s.accuracy for s in scores[0]] for scores in found[1:]]
    records = {}
    for task, target_curve, control_curve in zip(args.tasks, curves[::2], curves[1::2]):
        index = select_negation(coefs, target_curve, control_curve, floor)
        records[task] = {
            "alpha": 0.0 if index is None else coefs[index],
            "control_kept": index is not None,
            "val": {"target": target_curve, "control": control_curve},
        }
        if index is None:
            print(f"{task}: no coefficient keeps {args.control_threshold:.0%} of the control's accuracy; alpha = 0")
    tests = [
        (dataset, "test", [Line(vectors[task].vector, (records[task]["alpha"],))])
        for task in args.tasks
        for dataset in (task, control)
    ]
    scores = score_all(args, [(control, "test", [ORIGIN]), *tests], tangent, f"negation {mode}, test")
    accuracies = [s[0][0].accuracy for s in scores]
    for task, target_accuracy, control_accuracy in zip(args.tasks, accuracies[1::2], accuracies[2::2]):
        records[task]["test"] = {"target": target_accuracy, "control": control_accuracy}

    record = {
        "finetuning_mode": mode,
        "control": control,
        "control_threshold": args.control_threshold,
        "coefs": coefs,
        "pretrained_control": {"val": found[0][0][0].accuracy, "test": accuracies[0]},
        "tasks": records,
        "mean_target": mean(r["test"]["target"] for r in records.values()),
        "mean_control": mean(r["test"]["control"] for r in records.values()),
        "n": {"val": {control: found[0][0][0].n}, "test": {control: scores[0][0][0].n}},
    }
    results.write(target, record, args)
    print(
        f"negation {mode}: target {100 * record['mean_target']:.1f} %, control {100 * record['mean_control']:.1f} % "
        f"(pre-trained {100 * accuracies[0]:.1f} %) -> {target}"
    )


if __name__ == "__main__":
    main()
