"""Whether conclusions hold with other experts (one trained longer, unsure ones, other lengths) and numbers of tasks."""

from collections.abc import Iterator
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from src.experiments.studies import BY_NAME, STUDIES, compared
from src.reporting import answers, style
from src.reporting.claim import Quantity
from src.reporting.methods import FINETUNED, Group, Row, absent_seeds, groups, variant_row
from src.reporting.plots import legend_below, method_looks
from src.reporting.runs import Runs
from src.reporting.statistics import BySeed
from src.reporting.table import Cell, Table

USUAL = "as usual"


def study_runs(runs: Runs, name: str) -> Runs:
    """The results of a study; with an empty name the usual ones."""
    return runs.studies[name] if name else runs


def studies(runs: Runs) -> Iterator[Table]:
    """Absolute accuracies: methods by study."""
    named = {USUAL: ""} | {study.title: study.name for study in STUDIES}
    there = {title: name for title, name in named.items() if study_runs(runs, name).read}
    if set(there) <= {USUAL}:
        return
    group = Group(runs.main_tasks)
    odd = any(study.one and study.title in there for study in STUDIES)
    shown = list(map(Row.registered, compared()))
    entries: list[list[str | Cell]] = [
        [row.title(), *(Cell(_accuracy(study_runs(runs, name), row)) for name in there.values())] for row in shown
    ]
    alone = {"metric": "finetuned_accuracy", "method": ..., "options": ..., **group.columns}
    entries.append([FINETUNED, *(Cell(100 * study_runs(runs, name).any_of(**alone)) for name in there.values())])
    yield Table(
        "studies",
        f"Other experts: test accuracy of models merged of {len(group.tasks)} tasks, %, by how the experts were "
        "fine-tuned.",
        ["method", *there],
        entries,
        runs.seeds,
        same_seeds=True,
        notes=("The expert that is trained longer is drawn by the seed.",) if odd else (),
    )


def _accuracy(runs: Runs, row: Row, metric: str = "accuracy") -> pd.Series:
    return 100 * runs.values(metric=metric, **Group(runs.main_tasks).columns, **row.columns)


def task_subsets(runs: Runs) -> Figure:
    """Normalised accuracy of the studies' methods by the number of tasks; means over sets and seeds."""
    sets = [group for group in groups(runs) if (group.mode, group.scope) == ("standard", "visual")]
    sets = [group for group in sets if len(group.tasks) <= len(runs.main_tasks)]
    shown = [row for row in map(Row.registered, compared()) if len(_by_size(runs, sets, row)) > 2]
    if not shown:
        raise runs.missing_merge("method=sum", "num_tasks=2")
    looks = method_looks(runs, shown)
    fig, axes = plt.subplots(figsize=(style.WIDTH, 3.4))
    for row in shown:
        by_size = _by_size(runs, sets, row)
        axes.plot(
            list(by_size), [np.mean(values) for values in by_size.values()], label=row.title(), ms=4.5, **looks[row]
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="tasks", ylabel="normalised test accuracy (%)")
    legend_below(fig, axes)
    return fig


def _by_size(runs: Runs, sets: list[Group], row: Row) -> dict[int, list[float]]:
    by_size: dict[int, list[float]] = {}
    for group in sets:
        values = 100 * runs.values(metric="normalised", **group.columns, **row.columns)
        if not values.empty:
            by_size.setdefault(len(group.tasks), []).extend(values)
    return dict(sorted(by_size.items()))


@dataclass(frozen=True)
class Studied(Quantity):
    """Accuracy of a method with the experts of a study, in percent; with an empty name with the usual ones."""

    method: str
    study: str = ""

    @property
    def row(self) -> Row:
        return variant_row(self.method)

    @property
    def title(self) -> str:
        return f"{self.row.title()}, {BY_NAME[self.study].title if self.study else USUAL}"

    def values(self, runs: Runs) -> pd.Series:
        return _accuracy(study_runs(runs, self.study), self.row)

    def formulas(self, runs: Runs) -> BySeed:
        what = {"metric": "accuracy", **Group(runs.main_tasks).columns, **self.row.columns}
        return answers.percent(answers.formulas(study_runs(runs, self.study), **what))

    def commands(self, runs: Runs) -> list[str]:
        absent = absent_seeds(runs, self.values(runs).index, extended=bool(self.study))
        stage = BY_NAME[self.study].stage if self.study else "merging"
        return [runs.reproduce_command(absent, stage)] if absent else []


@dataclass(frozen=True)
class OnSubsets(Quantity):
    """Normalised accuracy of a method on random subsets of so many tasks, in percent; their mean for each seed."""

    method: str
    tasks: int
    metric: str = "normalised"
    of_images: bool = False

    @property
    def row(self) -> Row:
        return variant_row(self.method)

    @property
    def title(self) -> str:
        at_one = " at α = 1" if self.metric.startswith("one_") else ""
        return f"{self.row.title()}{at_one}, {self.tasks} tasks"

    def values(self, runs: Runs) -> pd.Series:
        sets = [group for group in groups(runs) if (group.mode, group.scope) == ("standard", "visual")]
        of_sets = [
            100 * runs.values(metric=self.metric, **group.columns, **self.row.columns)
            for group in sets
            if len(group.tasks) == self.tasks
        ]
        of_sets = [values for values in of_sets if not values.empty]
        if not of_sets:
            return pd.Series(dtype=float)
        joined = pd.concat(of_sets)
        return joined.groupby(joined.index).mean()

    def commands(self, runs: Runs) -> list[str]:
        absent = absent_seeds(runs, self.values(runs).index)
        return [runs.reproduce_command(absent, "robust-tasks")] if absent else []
