"""Merging results as rows of the page: what table, intervals, heat map and storage show of a method."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from src.merging.registry import METHODS, WEIGHTS
from src.modes import MODES
from src.reporting import answers
from src.reporting.comparison.methods import methods_published
from src.reporting.methods import Group, Row, groups, results_of, rows
from src.reporting.report.charts import KINDS
from src.reporting.runs import Runs
from src.reporting.statistics import Constant, difference
from src.reporting.table import Cell, of_fewer, printed, span

MEASURES = {"accuracy": "absolute", "normalised": "normalised"}
COEFFICIENTS = {"tuned": "tuned on validation", "untuned": "untuned: the published default", "one": "α = 1"}
FAMILY = "published, "  # the start of a heading of the table `methods_published`


def entries(runs: Runs) -> list[dict[str, Any]]:
    """A row for each method, its options, the mode and the first so many tasks that it was merged on."""
    theirs = _published(runs)
    whole = [group for group in groups(runs) if group.tasks == runs.suite_tasks[: len(group.tasks)]]
    return [
        _entry(runs, group, row, theirs.get(row.title(), {}) if _first_benchmark(runs, group) else {})
        for group in whole
        if group.scope == "visual"
        for row in rows(results_of(runs, group))
    ]


def _first_benchmark(runs: Runs, group: Group) -> bool:
    return group == Group(runs.main_tasks)


def _published(runs: Runs) -> dict[str, dict[str, float]]:
    """Title of a row -> family of checkpoints -> published accuracy in percent."""
    by_title: dict[str, dict[str, float]] = {}
    for table in methods_published(runs):
        for title, *cells in table.rows:
            named = zip(table.header[1:], cells)
            by_title[title] = {
                head.removeprefix(FAMILY): cell.published
                for head, cell in named
                if head.startswith(FAMILY) and isinstance(cell, Cell) and cell.published is not None
            }
    return by_title


def _entry(runs: Runs, group: Group, row: Row, theirs: Mapping[str, float]) -> dict[str, Any]:
    what: dict[str, Any] = {**group.columns, **row.columns}
    records = [result.record for result in results_of(runs, group) if Row.of(result) == row]
    method = METHODS.get(row.method)
    per_task = any(record["storage"]["this"] > record["storage"]["merged"] for record in records)
    adapts = any("adaptation" in record for record in records) or bool(method and method.needs != WEIGHTS)
    merged = runs.values(metric="storage_merged", **what)
    return {
        "method": row.title(),
        "paper": method.paper if method else "",
        "needs": method.needs if method else "",
        "kind": KINDS[adapts],
        "registered": row.exact,
        "model": "a model per task" if per_task else "one model",
        "mode": group.mode,
        "modeTitle": MODES[group.mode].short,
        "tasks": len(group.tasks),
        "values": {
            measure: {name: value for name, value in _coefficients(runs, what, measure) if value}
            for measure in MEASURES
        },
        "byTask": {measure: list(_by_task(runs, group, what, measure)) for measure in MEASURES},
        "chosen": _chosen(runs, what, records),
        "finetuned": _finetuned(runs, what, merged),
        "storage": _mean(runs.values(metric="storage", **what) / merged),
        "seconds": _mean(runs.values(metric="merging_seconds", **what)),
        "published": theirs,
        "command": runs.merge_command(row.overrides, group.tasks, group.mode),
    }


def _coefficients(runs: Runs, what: Mapping[str, Any], measure: str) -> Iterator[tuple[str, dict[str, Any] | None]]:
    for name in COEFFICIENTS:
        yield name, _number(runs, measure if name == "tuned" else f"{name}_{measure}", what)


def _number(runs: Runs, metric: str, what: Mapping[str, Any]) -> dict[str, Any] | None:
    """Mean, sd, the value of each seed, and both intervals, in percent; None where no seed has it."""
    values = 100 * runs.values(metric=metric, **what)
    if values.empty:
        return None
    formulas = answers.percent(answers.formulas(runs, metric=metric, **what))
    alone = difference(values, 0 * values, (formulas, dict.fromkeys(formulas, Constant(0.0))), runs.shared_images)
    over_seeds, over_images = alone.over_seeds, alone.over_images
    return {
        "mean": alone.estimate,
        "text": Cell(values).text(len(runs.seeds)),
        "sd": float(values.std()) if len(values) > 1 else None,
        "n": len(values),
        "fewer": of_fewer(len(values), len(runs.seeds)),
        "seeds": [[int(seed), float(value)] for seed, value in values.items()],
        "overSeeds": over_seeds,
        "overImages": over_images,
        "seedsText": span(over_seeds, 1).replace("+", ""),
        "imagesText": span(over_images, 1).replace("+", ""),
    }


def _by_task(runs: Runs, group: Group, what: Mapping[str, Any], measure: str) -> Iterator[dict[str, Any]]:
    numbers = runs.select(metric=measure, task=list(group.tasks), **what)
    by_task = (100 * numbers["value"]).groupby(numbers["task"])
    means, spread = by_task.mean(), by_task.std()
    for task in group.tasks:
        if task in means.index:
            yield {"task": printed(task), "value": float(means[task]), "sd": float(spread[task])}


def _chosen(runs: Runs, what: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """The coefficient that validation chose; per task where each has its own. Empty where there was no choice."""
    if all(len(record["settings"]) == 1 for record in records):
        return ""
    shared = runs.values(metric="chosen", **what)
    if not shared.empty:
        return Cell(shared, digits=2).text(len(shared))
    each = runs.select(metric="chosen", task=..., **what)["value"]
    if each.empty:
        return ""
    low, high = (f"{end:.2g}" for end in (each.min(), each.max()))
    return f"{low} on each task" if low == high else f"{low} to {high} by task"


def _mean(values: pd.Series) -> float | None:
    values = values.dropna()
    return float(values.mean()) if len(values) else None


def _finetuned(runs: Runs, what: Mapping[str, Any], merged: pd.Series) -> list[float] | None:
    """Storage, in merged models, and mean accuracy of the models that were merged."""
    storage = _mean(runs.values(metric="storage_finetuned", **what) / merged)
    accuracy = _mean(100 * runs.values(metric="finetuned_accuracy", **what))
    return None if storage is None or accuracy is None else [storage, accuracy]
