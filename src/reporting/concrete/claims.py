"""Claims of the Concrete paper."""

from dataclasses import dataclass
from statistics import fmean as mean

import pandas as pd

from src.datasets import registry
from src.reporting import answers
from src.reporting.claim import Claim, Merged, Quantity
from src.reporting.concrete.tables import published_unseen, splits
from src.reporting.methods import Group, Row, absent_seeds, groups, variant_row
from src.reporting.runs import Runs
from src.reporting.statistics import BySeed, combined, mean_of

MAIN = ("concrete", "multi-task", "average", "accuracy")


@dataclass(frozen=True)
class OnUnseen(Quantity):
    """Accuracy on tasks that were not merged, mean over the splits of the tasks that have results, in percent."""

    row: Row

    @property
    def title(self) -> str:
        return self.row.title()

    def _splits(self, runs: Runs) -> dict[tuple[Group, tuple[str, ...]], pd.Series]:
        """(what was merged, what was not) -> accuracy."""
        by_split = {
            (group, tasks): runs.values(metric="unseen_accuracy", unseen=tasks, **group.columns, **self.row.columns)
            for group in groups(runs)
            if (group.mode, group.scope) == ("standard", "visual")
            for tasks in splits(runs, group)
        }
        return {split: values for split, values in by_split.items() if not values.empty}

    def values(self, runs: Runs) -> pd.Series:
        by_split = self._splits(runs)
        if not by_split:
            return pd.Series(dtype=float)
        return 100 * pd.concat(by_split.values(), axis=1, join="inner").mean(axis=1)

    def formulas(self, runs: Runs) -> BySeed:
        by_split = [
            answers.formulas(runs, metric="unseen_accuracy", unseen=tasks, **group.columns, **self.row.columns)
            for group, tasks in self._splits(runs)
        ]
        return answers.percent(combined(mean_of, *by_split)) if by_split else {}

    def commands(self, runs: Runs) -> list[str]:
        group, unseen = split = _usual_split(runs)
        if not self.values(runs).empty:
            return []
        absent = absent_seeds(runs, self._splits(runs).get(split, pd.Series(dtype=float)).index)
        overrides = (f"unseen=[{','.join(unseen)}]", *self.row.overrides)
        return [runs.merge_command(overrides, group.tasks, seeds=absent)] if absent else []

    def published(self, runs: Runs) -> float | None:
        """Of the same splits; of the suite's own where there are no results."""
        numbers = [
            published_unseen(runs, group, unseen, self.row, "average of unseen")
            for group, unseen in self._splits(runs) or [_usual_split(runs)]
        ]
        known = [number for number in numbers if number is not None]
        return mean(known) if len(known) == len(numbers) else None


def _usual_split(runs: Runs) -> tuple[Group, tuple[str, ...]]:
    unseen = registry.suite(runs.suite).unseen
    return Group(tuple(task for task in runs.main_tasks if task not in unseen)), unseen


CLAIMS = (
    Claim(
        "main table",
        "Concrete task arithmetic is better than task arithmetic.",
        (Merged(variant_row("concrete_task_arithmetic"), MAIN), Merged(variant_row("sum"), MAIN)),
    ),
    Claim(
        "main table",
        "Layer-wise AdaMerging is better than task-wise.",
        (
            Merged(variant_row("adamerging"), MAIN, name="layer-wise"),
            Merged(variant_row("adamerging", granularity="task"), MAIN, name="task-wise"),
        ),
    ),
    Claim(
        "main table",
        "Layer-wise Concrete AdaMerging is better than layer-wise AdaMerging.",
        (
            Merged(variant_row("concrete_layer_wise_adamerging"), MAIN, name="Concrete"),
            Merged(variant_row("adamerging"), MAIN, name="layer-wise"),
        ),
    ),
    Claim(
        "generalisation",
        "A shared mask helps on tasks that it was not learned on: there Concrete task arithmetic > task arithmetic.",
        (OnUnseen(variant_row("concrete_task_arithmetic")), OnUnseen(variant_row("sum"))),
    ),
)
