"""Every merging method beside every other on the papers' first benchmark: by kind of task vector, published, cost."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from src.experiments.numbers import MEAN
from src.experiments.registry import SINGLE_TASK
from src.merging.registry import METHODS
from src.modes import EVALUATED, MODES
from src.reporting.methods import FINETUNED, Group, Row, in_order, registered_rows, results_of, rows
from src.reporting.methods import shown as as_shown
from src.reporting.published import published, published_model
from src.reporting.result import Result
from src.reporting.runs import Runs
from src.reporting.table import Cell, Table, percent, printed

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
            same_seeds=True,
            notes=_one_each(runs, shown),
            in_readme=metric == "accuracy",
        )


def methods_per_task(runs: Runs) -> Iterator[Table]:
    """Each task under every method, one table for each kind of task vector."""
    for mode in EVALUATED:
        group = Group(runs.main_tasks, mode)
        if not (shown := in_order({*registered_rows()} & {*rows(results_of(runs, group))})):
            continue
        table_rows: list[list[str | Cell]] = [
            [row.title(), *(Cell(100 * _values(runs, group, row, "accuracy", task)) for task in (*group.tasks, MEAN))]
            for row in shown
        ]
        alone: dict[str, Any] = {"experiment": SINGLE_TASK.name, "mode": mode, "split": "test", "metric": "accuracy"}
        single = [percent(runs, task=task, **alone) for task in group.tasks]
        merged = {"metric": "finetuned_accuracy", "method": ..., "options": ..., **group.columns}
        table_rows.append([FINETUNED, *single, Cell(100 * runs.any_of(**merged))])
        yield Table(
            f"methods_per_task_{mode}",
            f"Test accuracy on each of {len(group.tasks)} tasks, {MODES[mode].title} task vectors, %.",
            ["method", *map(printed, group.tasks), "mean"],
            table_rows,
            runs.seeds,
            same_seeds=True,
            notes=_one_each(runs, shown),
        )


def methods_chosen(runs: Runs) -> Iterator[Table]:
    """The coefficient, and whatever else validation chose, of every seed."""
    shown, modes = rows_with_results(runs), runs.modes(EVALUATED)
    chosen = {
        (row, mode): _choices(results_of(runs, Group(runs.main_tasks, mode)), row, runs.extended_seeds)
        for row in shown
        for mode in modes
    }
    shown = [row for row in shown if any(chosen[row, mode].replace("–", "").strip(", ") for mode in modes)]
    if not shown:
        return
    yield Table(
        "methods_chosen",
        f"The setting that validation chose when {len(runs.main_tasks)} tasks were merged, for each of seeds "
        f"{', '.join(map(str, runs.extended_seeds))}.",
        ["method", *(MODES[mode].title for mode in modes)],
        [[row.title(), *(chosen[row, mode] for mode in modes)] for row in shown],
        runs.seeds,
        averaged=False,
        notes=(
            "The coefficient α, or λ of TALL masks, and options that were searched with it. to: the least and the "
            "largest of the tasks, where each has its own. *: an end of the searched range. –: no result. Methods "
            "with nothing to choose are left out.",
        ),
    )


def _choices(results: Iterable[Result], row: Row, seeds: Sequence[int]) -> str:
    """`0.3, 0.4*, 0.3`: of each seed; nothing where there was nothing to choose."""
    records = {result.seed: result.record for result in results if Row.of(result) == row}
    if not any(len(record["settings"]) > 1 for record in records.values()):
        return ""
    return ", ".join(_choice(records[seed]) if seed in records else "–" for seed in seeds)


def _choice(record: Mapping[str, Any]) -> str:
    choices = list(record["chosen"].values())
    if not record["chosen_per_task"]:
        return _setting(choices[0]) + ("*" if record["at_edge"] else "")
    if all(isinstance(choice, (int, float)) for choice in choices):
        ends = dict.fromkeys(map(_setting, (min(choices), max(choices))))
        return " to ".join(ends)
    return " | ".join(dict.fromkeys(map(_setting, choices)))


def _setting(choice: Any) -> str:
    if isinstance(choice, Mapping):
        return " ".join(f"{'α' if name == 'setting' else name}={as_shown(value)}" for name, value in choice.items())
    return as_shown(choice)


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
        same_seeds=True,
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
        same_seeds=True,
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


def _values(runs: Runs, group: Group, row: Row, metric: str, task: str = MEAN) -> pd.Series:
    what: dict[str, Any] = {**group.columns, **row.columns}
    if metric != "worst":
        return runs.values(metric=metric, task=task, **what)
    return runs.select(metric="accuracy", task=list(group.tasks), **what).groupby("seed")["value"].min()


def _published(runs: Runs, row: Row, family: str) -> Cell:
    """The first of the family's papers that has the method."""
    for paper, (table, setting, metric) in FAMILIES[family][1].items():
        theirs = published(runs.model, paper, table, row.published_name(paper, table), setting, metric)
        if theirs is not None:
            return Cell(published=theirs)
    return Cell()


def keeps_several(result: Result) -> bool:
    """Whether a method keeps a model for each task."""
    return result.record["storage"]["this"] > result.record["storage"]["merged"]


def _one_each(runs: Runs, shown: list[Row]) -> tuple[str, ...]:
    """Which methods keep a model for each task."""
    results = [r for mode in EVALUATED for r in results_of(runs, Group(runs.main_tasks, mode))]
    several = {Row.of(result) for result in results if keeps_several(result)}
    titles = [row.title() for row in shown if row in several]
    return (f"A model for each task, and not one for all: {', '.join(titles)}.",) if titles else ()
