"""The recorded validation curves over α of every merge, for the slider of the page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from src.experiments.numbers import MEAN
from src.experiments.registry import ADDITION
from src.modes import EVALUATED
from src.reporting.methods import Group, Row, in_order, results_of
from src.reporting.runs import Runs
from src.reporting.table import printed

NORMALISED = "mean, normalised"
TITLE = "task arithmetic (eval_task_addition.py)"


def explorer(runs: Runs) -> dict[str, dict[str, Any]]:
    """Title of a method -> mode -> its curves in percent, means over seeds; task addition, with most points, first."""
    by_title: dict[str, dict[str, Any]] = {}
    for mode in EVALUATED:
        if (records := runs.of(ADDITION, mode)) and (curves := _curves(records)):
            by_title.setdefault(TITLE, {})[mode] = curves
    of_mode = {mode: results_of(runs, Group(runs.main_tasks, mode)) for mode in EVALUATED}
    for row in in_order(Row.of(result) for results in of_mode.values() for result in results):
        for mode, results in of_mode.items():
            records = {result.seed: result.record for result in results if Row.of(result) == row}
            if row.exact and (curves := _curves(records)):
                by_title.setdefault(row.title(), {})[mode] = curves
    return by_title


def _curves(records: Mapping[int, Any]) -> dict[str, Any] | None:
    """None where there is no curve over one shared coefficient, the same of all seeds."""
    settings: list[Sequence[Any]] = [record["settings"] for record in records.values()]
    shared = not any(record["chosen_per_task"] for record in records.values())
    numeric = all(isinstance(setting, (int, float)) for of_seed in settings for setting in of_seed)
    if not (settings and shared and numeric and len(settings[0]) > 2 and all(s == settings[0] for s in settings)):
        return None
    tasks = list(next(iter(records.values()))["tasks"])
    chosen = {seed: float(record["chosen"][tasks[0]]) for seed, record in records.items()}
    rows = {printed(task): _mean([r["val"]["accuracy"][task] for r in records.values()]) for task in tasks}
    rows[MEAN] = _mean([r["val"]["mean_accuracy"] for r in records.values()])
    rows[NORMALISED] = _mean([r["val"]["mean_normalised"] for r in records.values()])
    return {
        "alphas": list(settings[0]),
        "rows": rows,
        "chosen": chosen,
        "chosenMean": float(np.mean(list(chosen.values()))),
        "test": 100 * float(np.mean([r["test"]["mean_accuracy"] for r in records.values()])),
    }


def _mean(curves: Sequence[Sequence[float]]) -> list[float]:
    return (100 * np.mean(curves, 0)).round(2).tolist()
