"""The numbers that papers published, from published.csv, and which of them may stand beside ours."""

import csv
from collections.abc import Sequence
from functools import cache

from src.datasets import registry
from src.model_names import PAPERS, ModelName
from src.runtime.paths import PUBLISHED

FIELDS = ("paper", "table", "model", "method", "setting", "metric")
UNSEEN_SPLIT_2 = {"RESISC45", "SVHN"}  # of the Concrete paper; its first split is what a suite leaves out


def published_model(model: str) -> str | None:
    """The model whose published numbers stand beside ours: its own, and beside the embedded suite's the smallest.

    None where the papers have no model of these weights.
    """
    name = ModelName.parse(model)
    if name.weights is not None:
        return None
    if name.mini:
        return PAPERS[0]
    return name.architecture if name.architecture in PAPERS else None


def published(model: str, paper: str, table: str, method: str | None, setting: str, metric: str) -> float | None:
    """A published number in its own unit (percent, gigabits), or None; see published.csv.

    model: ours. method: its name in the table, None where the paper does not have it.
    """
    their_model = published_model(model)
    if their_model is None or method is None:
        return None
    return _numbers().get((paper, table, their_model, method, setting, metric))


def unseen_table(suite: str, tasks: Sequence[str], unseen: Sequence[str]) -> str | None:
    """The table of the Concrete paper that has this split of the first eight tasks; None where none has it."""
    row = registry.suite(suite)
    if {*tasks, *unseen} != {*row.tasks[: registry.BENCHMARKS[0]]}:
        return None
    if set(unseen) == set(row.unseen):
        return "generalisation 1"
    return "generalisation 2" if set(unseen) == UNSEEN_SPLIT_2 else None


def beside(model: str) -> str:
    """What a caption says of the brackets."""
    their_model = published_model(model)
    return f"; in brackets the published {their_model}" if their_model else ""


def published_sources() -> dict[str, list[str]]:
    """Paper -> where each of its numbers was published."""
    sources: dict[str, list[str]] = {}
    with open(PUBLISHED, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            sources.setdefault(row["paper"], []).append(row["source"])
    return sources


@cache
def _numbers() -> dict[tuple[str, ...], float]:
    with open(PUBLISHED, newline="", encoding="utf-8") as file:
        return {tuple(row[field] for field in FIELDS): float(row["value"]) for row in csv.DictReader(file)}
