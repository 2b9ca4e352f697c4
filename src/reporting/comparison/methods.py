"""Every merging method beside every other on the papers' first benchmark: by kind of task vector, published, cost."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from src.merging.registry import METHODS
from src.modes import EVALUATED, MODES
from src.reporting.methods import Group, Row, in_order, registered_rows, results_of, rows
from src.reporting.published import published, published_model
from src.reporting.runs import Runs
from src.reporting.table import Cell, Table

METRICS = {
    "accuracy": "test accuracy, %",
    "normalised": "test accuracy over the fine-tuned model's of the same mode, %",
    "worst": "test accuracy of the worst task, %",
}
# Checkpoints that published numbers are of: their name, what is known of them, and the papers that merge them, with
# the table, setting and metric of an average over 8 tasks. Numbers of different checkpoints must not be compared.
FURTHER = ("merging", "8 tasks", "absolute")
FAMILIES = {
    "Ilharco": (
        "those of arXiv:2212.04089",
        {
            "concrete": ("multi-task", "average", "accuracy"),
            "CART": FURTHER,
            "WUDI-Merging": FURTHER,
            "Representation Surgery": FURTHER,
        },
    ),
    "TALL": (
        "those of arXiv:2405.07813, of which the first release was trained on test images of DTD",
        {
            "tall": ("main table", "8 tasks", "absolute"),
            "No Task Left Behind (Iso)": FURTHER,
            "Task Singular Vectors": FURTHER,
        },
    ),
    "FusionBench": ("those of arXiv:2406.03280", {"FeatCal": FURTHER}),
}


def methods(runs: Runs) -> Iterator[Table]:
    """By kind of task vector: absolute, normalised, and the worst task."""
    shown, modes = rows_with_results(runs), runs.modes(EVALUATED)
    if not shown:
        return
    for metric, words in METRICS.items():
        yield Table(
            f"methods_{metric}",
            f"Every merging method on {len(runs.main_tasks)} tasks, by kind of task vector: {words}.",
            ["method", *(MODES[mode].title for mode in modes)],
            [
                [
                    row.title(),
                    *(Cell(100 * _values(runs, Group(runs.main_tasks, mode), row, metric)) for mode in modes),
                ]
                for row in shown
            ],
            runs.seeds,
            notes=_one_each(runs, shown),
            in_readme=metric == "accuracy",
        )


def methods_published(runs: Runs) -> Iterator[Table]:
    """Tuned, untuned and at α = 1, beside what papers publish of each family of checkpoints."""
    group, model = Group(runs.main_tasks), published_model(runs.model)
    shown = [row for row in rows_with_results(runs) if not _values(runs, group, row, "accuracy").empty]
    if not shown or model is None:
        return
    fixed = ("untuned_accuracy", "one_accuracy")
    yield Table(
        "methods_published",
        f"Merging {len(group.tasks)} tasks with coefficients from validation, as published and 1, beside the published "
        f"{model}: absolute test accuracy, %.",
        ["method", "tuned", "untuned", "α = 1", *(f"published, {family}" for family in FAMILIES)],
        [
            [
                row.title(),
                *(Cell(100 * _values(runs, group, row, metric)) for metric in ("accuracy", *fixed)),
                *(_published(runs, row, family) for family in FAMILIES),
            ]
            for row in shown
        ],
        runs.seeds,
        notes=(
            "untuned: at the published default of the coefficient, where there is one. Published: checkpoints are "
            + "; ".join(f"{family}, {about}" for family, (about, _) in FAMILIES.items())
            + ". Their numbers must not be compared with each other.",
            *_one_each(runs, shown),
        ),
    )


def methods_cost(runs: Runs) -> Iterator[Table]:
    """What each method needs, and what it costs."""
    group = Group(runs.main_tasks)
    shown = [row for row in rows_with_results(runs) if not _values(runs, group, row, "merging_seconds").empty]
    if not shown:
        return
    yield Table(
        "methods_cost",
        f"What merging {len(group.tasks)} tasks needs and costs, without evaluation.",
        [
            "method",
            "needs",
            "α",
            "seconds",
            "peak memory, MB",
            "storage, merged models",
            "extra bits a weight and task",
        ],
        [_cost(runs, group, row) for row in shown],
        runs.seeds,
        notes=(
            "Seconds and memory are of one machine that did other work too: they tell orders of magnitude. Memory is "
            "the peak above what was there before. Extra: beyond one merged model.",
        ),
    )


def _cost(runs: Runs, group: Group, row: Row) -> list[str | Cell]:
    what: dict[str, Any] = {**group.columns, **row.columns}
    storage, merged = (runs.values(metric=metric, **what) for metric in ("storage", "storage_merged"))
    vectors = len(group.tasks) * merged / 32
    return [
        row.title(),
        METHODS[row.method].needs if row.method in METHODS else "",
        Cell(runs.values(metric="chosen", **what), digits=2),
        Cell(runs.values(metric="merging_seconds", **what), digits=2, spread=False),
        Cell(runs.values(metric="peak_memory", **what) / 1e6, digits=0, spread=False),
        Cell((storage / merged).dropna(), digits=2, spread=False),
        Cell(((storage - merged) / vectors).dropna(), digits=2, spread=False),
    ]


def rows_with_results(runs: Runs) -> list[Row]:
    """The registered methods that have results of any mode on the first benchmark, in order."""
    there = {row for mode in EVALUATED for row in rows(results_of(runs, Group(runs.main_tasks, mode)))}
    return [row for row in in_order(registered_rows()) if row in there]


def _values(runs: Runs, group: Group, row: Row, metric: str) -> pd.Series:
    what: dict[str, Any] = {**group.columns, **row.columns}
    if metric != "worst":
        return runs.values(metric=metric, **what)
    return runs.select(metric="accuracy", task=list(group.tasks), **what).groupby("seed")["value"].min()


def _published(runs: Runs, row: Row, family: str) -> Cell:
    """The first of the family's papers that has the method."""
    for paper, (table, setting, metric) in FAMILIES[family][1].items():
        theirs = published(runs.model, paper, table, row.published_name(paper, table), setting, metric)
        if theirs is not None:
            return Cell(published=theirs)
    return Cell()


def _one_each(runs: Runs, shown: list[Row]) -> tuple[str, ...]:
    """Which methods keep a model for each task."""
    results = [r for mode in EVALUATED for r in results_of(runs, Group(runs.main_tasks, mode))]
    several = {Row.of(r) for r in results if r.record["storage"]["this"] > r.record["storage"]["merged"]}
    titles = [row.title() for row in shown if row in several]
    return (f"A model for each task, and not one for all: {', '.join(titles)}.",) if titles else ()
