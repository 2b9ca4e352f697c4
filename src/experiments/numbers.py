"""The numbers of a record, as rows of the one tidy table (reporting/frame.py)."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean as mean
from typing import NamedTuple

from src.records import Addition, Summary

MEAN = "mean"  # in the place of a task: over the tasks of the result


class Number(NamedTuple):
    """A row beside what identifies its result.

    task: a data set, a pair of them joined by "-", or MEAN. setting: the coefficient of a point of a validation curve,
    or the rank of a kernel's number; nan where validation has chosen. Accuracies are in [0, 1], sizes in bits.
    """

    metric: str
    value: float | None
    task: str = MEAN
    split: str = "test"
    setting: float = math.nan


def by_task(metric: str, values: Mapping[str, float], tasks: Iterable[str], split: str = "test") -> Iterator[Number]:
    for task in tasks:
        yield Number(metric, values[task], task, split)


def summary_numbers(summary: Summary, tasks: Sequence[str], foreign: bool, prefix: str = "") -> Iterator[Number]:
    """Accuracies by task and their means; none over the accuracies of other models than those that were merged."""
    yield from by_task(f"{prefix}accuracy", summary["accuracy"], tasks)
    yield Number(f"{prefix}accuracy", summary["mean_accuracy"])
    if not foreign:
        yield from by_task(f"{prefix}normalised", summary["normalised"], tasks)
        yield Number(f"{prefix}normalised", summary["mean_normalised"])


def score_numbers(record: Addition, foreign: bool) -> Iterator[Number]:
    """foreign: checkpoints were merged whose own single-task accuracies nobody knows."""
    tasks = record["tasks"]
    yield from summary_numbers(record["test"], tasks, foreign)
    yield from by_task("loss", record["test"]["loss"], tasks)
    for name, scores in record.get("fixed", {}).items():
        yield Number(f"{name}_accuracy", scores["mean_accuracy"])
        if not foreign:
            yield Number(f"{name}_normalised", scores["mean_normalised"])
    yield Number("zeroshot_accuracy", record["zeroshot"]["mean_accuracy"])
    if not foreign:
        finetuned = record["denominators"]["test"]
        yield Number("zeroshot_normalised", record["zeroshot"]["mean_normalised"])
        yield Number("finetuned_accuracy", mean(finetuned[task] for task in tasks))
    yield from _chosen(record)
    yield from _validation(record, foreign)
    if "draws" in record:
        yield Number("accuracy_sd_over_draws", record["draws"]["sd"])
    if "masks" in record["info"]:
        yield from by_task("mask_density", record["info"]["masks"]["density"], tasks)


def _chosen(record: Addition) -> Iterator[Number]:
    """The setting of all tasks, or of each; of a search over options, each option's value where it is a number."""
    shared = not record["chosen_per_task"]
    for task in record["tasks"][:1] if shared else record["tasks"]:
        chosen = record["chosen"][task]
        parts = chosen if isinstance(chosen, Mapping) else {"setting": chosen}
        for option, value in parts.items():
            if isinstance(value, (int, float)):
                metric = "chosen" if option == "setting" else f"chosen_{option}"
                yield Number(metric, value, MEAN if shared else task)


def _validation(record: Addition, foreign: bool) -> Iterator[Number]:
    """Accuracies at the chosen setting, and means along the settings where all tasks share them."""
    curves, settings = record["val"], list(record["settings"])
    index = {task: settings.index(record["chosen"][task]) for task in record["tasks"]}
    yield from by_task("accuracy", {t: curves["accuracy"][t][i] for t, i in index.items()}, index, "val")
    yield Number("accuracy", mean(curves["accuracy"][t][i] for t, i in index.items()), split="val")
    if record["chosen_per_task"] or len(settings) < 2 or not all(isinstance(s, (int, float)) for s in settings):
        return
    yield from _curve("accuracy", settings, curves["mean_accuracy"])
    if not foreign:
        yield from _curve("normalised", settings, curves["mean_normalised"])


def _curve(metric: str, settings: Sequence[float], values: Sequence[float]) -> Iterator[Number]:
    for setting, value in zip(settings, values, strict=True):
        yield Number(metric, value, split="val", setting=setting)
