"""The results as one tidy table: a number a row, and beside it what it is of. Also results/<suite>/accuracies.csv."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean as mean
from typing import Any, NamedTuple

import pandas as pd

from src.datasets import registry
from src.records import Addition, Disentanglement, ErrorGrid, Kernel, Merging, Negation, SingleTask, Summary
from src.records import single_task_accuracies as accuracies_of
from src.reporting.result import VECTORS, Result
from src.runtime.files import replacing
from src.runtime.results import ResultError

MEAN = "mean"  # in the place of a task: over the tasks of the result
IDENTITY = (
    "suite", "model", "seed", "corruption", "severity", "experiment", "mode", "method", "options", "encoders", "scope",
    "tasks", "task_list", "unseen",
)  # fmt: skip
COLUMNS = (*IDENTITY, "task", "split", "metric", "setting", "value")


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


def frame(suite: str, results: Iterable[tuple[str, Result]]) -> pd.DataFrame:
    """COLUMNS of every number of the (model, result) pairs, in their order.

    Raises ResultError that names the file and the key which a result lacks, and for two results of the same thing.
    """
    rows: list[tuple[Any, ...]] = []
    files: dict[tuple[Any, ...], Path] = {}
    for model, result in results:
        if result.experiment == VECTORS:
            continue  # cosines between task vectors are no numbers of a task
        columns = {"suite": suite, "model": model} | result.columns(suite)
        identity = tuple(columns[name] for name in IDENTITY)
        if (other := files.setdefault(identity, result.file)) != result.file:
            raise ResultError(f"{result.file} and {other} are results of the same thing; remove one of them")
        try:
            rows += [(*identity, n.task, n.split, n.metric, n.setting, n.value) for n in numbers(suite, result)]
        except KeyError as error:
            raise ResultError(f"{result.file}: expected the key {error.args[0]!r}, found none") from None
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"value": float, "setting": float})


def write(table: pd.DataFrame, path: Path) -> None:
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def numbers(suite: str, result: Result) -> Iterator[Number]:
    """The numbers of a result."""
    readers: dict[str, Callable[[Any], Iterator[Number]]] = {
        "single_task": partial(_single_task, suite),
        "addition": partial(_scores, foreign=False),
        "merging": _merging,
        "negation": _negation,
        "disentanglement": _disentanglement,
        "ntk": _kernel,
    }
    return readers[result.experiment](result.record)


def _by_task(metric: str, values: Mapping[str, float], tasks: Iterable[str], split: str = "test") -> Iterator[Number]:
    for task in tasks:
        yield Number(metric, values[task], task, split)


def _single_task(suite: str, record: SingleTask) -> Iterator[Number]:
    row = registry.suite(suite)
    for split, accuracy in accuracies_of(record, (*registry.names(row), row.control)).items():
        yield from _by_task("accuracy", accuracy, accuracy, split)
    for split, losses in accuracies_of(record["losses"], (*registry.names(row), row.control)).items():
        yield from _by_task("loss", losses, losses, split)
    for split, control in record["control_per_task"].items():
        yield from _by_task("control_accuracy", control, control, split)


def _summary(summary: Summary, tasks: Sequence[str], foreign: bool, prefix: str = "") -> Iterator[Number]:
    """Accuracies by task and their means; none over the accuracies of other models than those that were merged."""
    yield from _by_task(f"{prefix}accuracy", summary["accuracy"], tasks)
    yield Number(f"{prefix}accuracy", summary["mean_accuracy"])
    if not foreign:
        yield from _by_task(f"{prefix}normalised", summary["normalised"], tasks)
        yield Number(f"{prefix}normalised", summary["mean_normalised"])


def _scores(record: Addition, foreign: bool) -> Iterator[Number]:
    """foreign: checkpoints were merged whose own single-task accuracies nobody knows."""
    tasks = record["tasks"]
    yield from _summary(record["test"], tasks, foreign)
    yield from _by_task("loss", record["test"]["loss"], tasks)
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
        yield from _by_task("mask_density", record["info"]["masks"]["density"], tasks)


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
    yield from _by_task("accuracy", {t: curves["accuracy"][t][i] for t, i in index.items()}, index, "val")
    yield Number("accuracy", mean(curves["accuracy"][t][i] for t, i in index.items()), split="val")
    if record["chosen_per_task"] or len(settings) < 2 or not all(isinstance(s, (int, float)) for s in settings):
        return
    yield from _curve("accuracy", settings, curves["mean_accuracy"])
    if not foreign:
        yield from _curve("normalised", settings, curves["mean_normalised"])


def _curve(metric: str, settings: Sequence[float], values: Sequence[float]) -> Iterator[Number]:
    for setting, value in zip(settings, values, strict=True):
        yield Number(metric, value, split="val", setting=setting)


def _merging(record: Merging) -> Iterator[Number]:
    foreign = bool(record["encoders"])
    yield from _scores(record, foreign)
    storage = record["storage"]
    yield Number("storage", storage["this"])
    yield Number("storage_merged", storage["merged"])
    yield Number("storage_finetuned", storage["finetuned"])
    if "cost" in record:
        yield Number("merging_seconds", record["cost"]["seconds"])
        yield Number("peak_memory", record["cost"]["peak_memory"])
    if "unseen" in record:
        unseen = record["unseen"]
        yield from _summary(unseen, unseen["tasks"], False, "unseen_")
        yield from _summary(unseen["zeroshot"], unseen["tasks"], False, "unseen_zeroshot_")


def _negation(record: Negation) -> Iterator[Number]:
    for task, scores in record["tasks"].items():
        yield Number("target_accuracy", scores["test"]["target"], task)
        yield Number("control_accuracy", scores["test"]["control"], task)
        yield Number("chosen", scores["alpha"], task)
        yield Number("control_kept", scores["control_kept"], task)
    yield Number("target_accuracy", record["mean_target"])
    yield Number("control_accuracy", record["mean_control"])
    yield Number("control_threshold", record["control_threshold"])
    for split, accuracy in record["pretrained_control"].items():
        yield Number("pretrained_control_accuracy", accuracy, split=split)


def _disentanglement(record: Disentanglement) -> Iterator[Number]:
    for pair in record["pairs"]:
        yield Number("error_in_box", pair["box_mean"], "-".join(pair["tasks"]))
        yield Number("error_outside_box", error_outside(pair), "-".join(pair["tasks"]))


def error_outside(pair: ErrorGrid) -> float:
    """The mean of ξ over the points of the grid outside the search box; nan where there are none."""
    first, second = pair["alphas"]
    box = pair["box"] + 1e-9
    outside = [
        pair["error"][i][j]
        for i, alpha1 in enumerate(first)
        for j, alpha2 in enumerate(second)
        if max(abs(alpha1), abs(alpha2)) > box
    ]
    return mean(outside) if outside else math.nan


def _kernel(record: Kernel) -> Iterator[Number]:
    for pair in record["pairs"]:
        name = f"{pair['task']}-{pair['control']}"
        for rank, ratio in zip(pair["ranks"], pair["nystrom"]["ratio_heldout"], strict=True):
            yield Number("energy_ratio", ratio, name, setting=rank)
