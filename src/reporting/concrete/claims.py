"""Claims of the Concrete paper."""

from dataclasses import dataclass
from statistics import fmean as mean

import pandas as pd

from src.datasets import registry
from src.reporting.claim import Claim, Merged, Quantity
from src.reporting.concrete.tables import published_unseen, splits
from src.reporting.methods import Group, Row, groups, the
from src.reporting.runs import Runs

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

    def commands(self, runs: Runs) -> list[str]:
        if not self.values(runs).empty:
            return []
        group, unseen = _usual_split(runs)
        return [runs.merge_command((f"unseen=[{','.join(unseen)}]", *self.row.overrides), group.tasks)]

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
        (Merged(the("concrete_task_arithmetic"), MAIN), Merged(the("sum"), MAIN)),
    ),
    Claim(
        "main table",
        "Layer-wise AdaMerging is better than task-wise.",
        (
            Merged(the("adamerging"), MAIN, name="layer-wise"),
            Merged(the("adamerging", granularity="task"), MAIN, name="task-wise"),
        ),
    ),
    Claim(
        "main table",
        "Layer-wise Concrete AdaMerging is better than layer-wise AdaMerging.",
        (
            Merged(the("concrete_layer_wise_adamerging"), MAIN, name="Concrete"),
            Merged(the("adamerging"), MAIN, name="layer-wise"),
        ),
    ),
    Claim(
        "generalisation",
        "A shared mask helps on tasks that it was not learned on: there Concrete task arithmetic > task arithmetic.",
        (OnUnseen(the("concrete_task_arithmetic")), OnUnseen(the("sum"))),
    ),
)
