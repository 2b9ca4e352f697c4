"""Accuracy of the pre-trained and of each fine-tuned encoder on its own task and on the control set.

    python eval_single_task.py --finetuning-mode=none        # pre-trained
    python eval_single_task.py --finetuning-mode=standard
    python eval_single_task.py --finetuning-mode=linear
    python eval_single_task.py --finetuning-mode=posthoc     # the standard ones, put into the linearized model
    python eval_single_task.py --finetuning-mode=none --encoder=merged.safetensors --name=merged

Writes zeroshot_accuracies.json, ft_accuracies.json, linear_ft_accuracies.json or posthoc_ft_accuracies.json: for each
task its test accuracy under its name and its validation accuracy under <name>Val, as published. For fine-tuned encoders
`control` is the mean over tasks of the accuracy that each keeps on the control set.
"""

from pathlib import Path

from src import checkpoints, store
from src.args import EVALUATION_MODES, base_parser, parse
from src.datasets import corruptions, registry
from src.datasets import loading as data
from src.evaluation import ORIGIN, Line, mean, score_all
from src.runtime import results
from src.runtime.distributed import spmd
from src.runtime.paths import Paths
from src.runtime.program import exit_on_user_error

SPLITS = {"test": "", "val": "Val"}  # split -> suffix of its published field


@exit_on_user_error
@spmd
def main(argv=None) -> None:
    parser = base_parser(__doc__, ("none", *EVALUATION_MODES))
    parser.add_argument("--encoder", type=Path, help="evaluate this checkpoint (of main.py's output=) on every task")
    parser.add_argument("--name", help="name of the result of --encoder")
    args = parse(parser, argv)
    if bool(args.encoder) != bool(args.name):
        parser.error("--encoder and --name go together: the second names the result")
    paths = Paths.of(args)
    target = paths.result(args.name) if args.encoder else paths.single_task(args.finetuning_mode)
    if results.kept(target, args):
        return
    store.save_pretrained(args)
    control = registry.suite(args.suite).control
    data.examples(args, control, "test")  # mini's are drawn once, before the workers look for them
    lines = _lines(args)
    tangent = args.finetuning_mode in store.TANGENT
    own = len(set(map(id, lines.values()))) > 1  # each task has an encoder of its own
    jobs = [
        job
        for split in SPLITS
        for job in (
            (control, split, list(lines.values()) if own else [next(iter(lines.values()))]),
            *((task, split, [line]) for task, line in lines.items()),
        )
    ]
    scores = score_all(args, jobs, tangent, f"single-task {args.finetuning_mode}")

    record = {"losses": {}, "n": {}, "control_per_task": {}} | corruptions.record(args)
    for (dataset, split, _), found in zip(jobs, scores):
        field = dataset + SPLITS[split]
        accuracies = [line[0].accuracy for line in found]
        record[field] = mean(accuracies)
        record["losses"][field] = mean(line[0].loss for line in found)
        record["n"][field] = found[0][0].n
        if dataset == control and own:
            record["control_per_task"][split] = dict(zip(lines, accuracies))
    results.write(target, record, args)
    average = mean(record[task] for task in args.tasks)
    print(
        f"{args.finetuning_mode}: {100 * average:.1f} % over {len(args.tasks)} tasks, {control} "
        f"{100 * record[control]:.1f} % -> {target}"
    )


def _lines(args) -> dict[str, Line]:
    """The encoder to evaluate on each task, as a displacement from θ0."""
    if args.encoder:
        start = store.pretrained(args)
        end = checkpoints.load(args.encoder, model=args.model, like=start)
        moved = Line({k: end[k] - start[k] for k in start if start[k].is_floating_point()})
        return dict.fromkeys(args.tasks, moved)
    if args.finetuning_mode == "none":
        return dict.fromkeys(args.tasks, ORIGIN)
    return {task: Line(store.task_vector(args, task, args.finetuning_mode).vector) for task in args.tasks}


if __name__ == "__main__":
    main()
