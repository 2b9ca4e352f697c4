"""The scores of a merge: validation chooses among its settings, and test is read once."""

import statistics
from collections.abc import Mapping, Sequence
from typing import cast

from src.evaluation import Curve, Denominators, mean, mean_normalised, score_all, select
from src.merging.base import Drawn, Merge, Setting
from src.merging.search import Searched
from src.records import Addition, Draws, Info, Scores, Unseen
from src.run import Run
from src.runtime.distributed import from_primary


def evaluate_merge(
    run: Run,
    merge: Merge,
    tasks: Sequence[str],
    mode: str,
    fixed: Mapping[str, Setting] | None = None,
    denominators: Denominators | None = None,
) -> Addition:
    """Choose the setting on validation, read test once, and tell everything: the record of a merging result.

    fixed: settings that nobody chooses, by a name of each; they are scored on test beside the chosen one.
    denominators: those of the tasks; None: of the run's own single-task results.
    Accuracies are in [0, 1]; normalised ones are divided by the fine-tuned model's of the same mode and split.
    """
    denominators = denominators or Denominators.of(run, mode, tasks)
    settings = list(merge.settings)
    validation = score_merge(run, merge, mode, "val", dict.fromkeys(tasks, settings))
    curves = {task: list(curve.accuracy) for task, curve in validation.items()}
    index = select(curves, denominators.finetuned["val"], merge.per_task)
    chosen = {task: settings[i] for task, i in index.items()}
    fixed = fixed or {}
    points = {task: [setting, *fixed.values()] for task, setting in chosen.items()}
    test = score_merge(run, merge, mode, "test", points)
    record: Addition = {
        "tasks": list(tasks),
        "finetuning_mode": mode,
        "settings": settings,
        "chosen_per_task": merge.per_task,
        "chosen": chosen,
        "at_edge": not merge.per_task and merge.at_edge(chosen[tasks[0]]),
        "val": {
            "accuracy": curves,
            "mean_accuracy": [mean(values) for values in zip(*curves.values())],
            "mean_normalised": mean_normalised(curves, denominators.finetuned["val"]),
        },
        "test": _scores(test, 0, denominators),
        "zeroshot": denominators.summary(denominators.zeroshot["test"]),
        "denominators": denominators.finetuned,
        "n": {split: {t: c.n for t, c in scores.items()} for split, scores in (("val", validation), ("test", test))},
        "info": cast(Info, {**merge.info, **from_primary(lambda: merge.finish(chosen))}),
    }
    if all(curve.draws for curve in test.values()):
        record["draws"] = spread({task: [draw[0] for draw in curve.draws] for task, curve in test.items()})
    if fixed:
        record["fixed"] = {
            name: {"setting": setting, **_scores(test, index, denominators)}
            for index, (name, setting) in enumerate(fixed.items(), 1)
        }
    return record


def evaluate_unseen(run: Run, merge: Merge, setting: Setting, tasks: Sequence[str], mode: str) -> Unseen:
    """Test accuracies of one merged model on tasks that were not merged, beside the pre-trained model's.

    setting: the chosen one of `merge`, which makes one model for all tasks. Denominators as in evaluate_merge.
    """
    denominators = Denominators.of(run, mode, tasks)
    test = score_merge(run, merge, mode, "test", dict.fromkeys(tasks, [setting]))
    return {
        **_scores(test, 0, denominators),
        "tasks": list(tasks),
        "zeroshot": denominators.summary(denominators.zeroshot["test"]),
        "denominators": denominators.finetuned["test"],
    }


def _scores(test: Mapping[str, Curve], index: int, denominators: Denominators) -> Scores:
    """Of each task's setting at an index."""
    return {
        **denominators.summary({task: curve.accuracy[index] for task, curve in test.items()}),
        "loss": {task: curve.loss[index] for task, curve in test.items()},
        "correct": {task: curve.correct[index] for task, curve in test.items()},
    }


def score_merge(
    run: Run, merge: Merge, mode: str, split: str, settings: Mapping[str, Sequence[Setting]]
) -> dict[str, Curve]:
    """Scores of each task's settings on a split, in order; one model for all tasks has the same settings for each."""
    if isinstance(merge, Searched):
        return _score_searched(run, merge, mode, split, settings)
    if isinstance(merge, Drawn):
        draws = [score_merge(run, merge.draw(number), mode, split, settings) for number in range(merge.draws)]
        return {task: _mean_curve([draw[task] for draw in draws]) for task in settings}
    tasks = list(settings)
    # Models of one task each are made for as many tasks as are scored at once; a model for all tasks is made once.
    at_once = max(1, run.jobs) if merge.per_task else len(tasks)
    curves: dict[str, Curve] = {}
    for first in range(0, len(tasks), at_once):
        part = tasks[first : first + at_once]
        shared = None if merge.per_task else merge.lines(part[0], settings[part[0]])
        lines = {task: shared or merge.lines(task, settings[task]) for task in part}
        jobs = {(task, i): (task, line) for task in part for i, line in enumerate(lines[task])}
        scores = score_all(run, mode, jobs, split, f"{split} accuracy")
        curves |= {task: joined([scores[task, i] for i in range(len(lines[task]))]) for task in part}
    return curves


def _score_searched(
    run: Run, merge: Searched, mode: str, split: str, settings: Mapping[str, Sequence[Setting]]
) -> dict[str, Curve]:
    """The merge of each combination of options by itself."""
    parts = {task: [merge.part(setting) for setting in of_task] for task, of_task in settings.items()}
    pieces: dict[str, dict[int, Curve]] = {task: {} for task in settings}
    for index, (_, inner) in enumerate(merge.merges):
        own = {task: [setting for i, setting in of_task if i == index] for task, of_task in parts.items()}
        own = {task: of_task for task, of_task in own.items() if of_task}
        for task, curve in score_merge(run, inner, mode, split, own).items() if own else ():
            pieces[task][index] = curve
    return {task: joined([by_index[i] for i in sorted(by_index)]) for task, by_index in pieces.items()}


def joined(curves: Sequence[Curve]) -> Curve:
    """One curve through the settings of all of them."""
    draws = tuple(sum(parts, start=()) for parts in zip(*(curve.draws for curve in curves)))
    accuracy = sum((curve.accuracy for curve in curves), start=())
    loss, correct = (sum((getattr(curve, name) for curve in curves), start=()) for name in ("loss", "correct"))
    return Curve(accuracy, loss, curves[0].n, correct, draws)


def _mean_curve(draws: Sequence[Curve]) -> Curve:
    accuracies = tuple(curve.accuracy for curve in draws)
    accuracy = tuple(mean(values) for values in zip(*accuracies))
    loss = tuple(mean(values) for values in zip(*(d.loss for d in draws)))
    return Curve(accuracy, loss, draws[0].n, draws[0].correct, accuracies)


def spread(accuracy: Mapping[str, Sequence[float]]) -> Draws:
    """Accuracies of random draws of a merge, by task, with the standard deviation (n − 1) of each and of their mean."""
    means = [mean(values) for values in zip(*accuracy.values())]
    return {
        "n": len(means),
        "accuracy": {task: list(values) for task, values in accuracy.items()},
        "mean_accuracy": means,
        "sd": statistics.stdev(means),
        "sd_per_task": {task: statistics.stdev(values) for task, values in accuracy.items()},
    }
