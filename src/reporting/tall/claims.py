"""Claims of the TALL paper."""

from dataclasses import dataclass

import pandas as pd

from src.reporting.claim import Claim, Key, Merged, Quantity, Threshold
from src.reporting.methods import Group, Row, absent_seeds, groups, the
from src.reporting.runs import Runs
from src.reporting.tall.tables import SWEPT, THRESHOLD, threshold_sweep

PAPERS_K = 2
MAIN_TABLE = ("tall", "main table")
ABSOLUTE = (*MAIN_TABLE, "8 tasks", "absolute")
NORMALISED = (*MAIN_TABLE, "8 tasks", "normalised")


@dataclass(frozen=True)
class AtThreshold(Quantity):
    """Consensus TA at k = 2, or at the best other k."""

    best_of_others: bool

    @property
    def title(self) -> str:
        return "the best other k" if self.best_of_others else f"k = {PAPERS_K}"

    def values(self, runs: Runs) -> pd.Series:
        sweep = threshold_sweep(runs, Group(runs.main_tasks), the(SWEPT))
        if not self.best_of_others:
            return 100 * sweep.get(PAPERS_K, pd.Series(dtype=float))
        others = [values for k, values in sweep.items() if k != PAPERS_K]
        if len(others) < 2:
            return pd.Series(dtype=float)
        return 100 * pd.concat(others, axis=1, join="inner").max(axis=1)

    def commands(self, runs: Runs) -> list[str]:
        sweep = threshold_sweep(runs, Group(runs.main_tasks), the(SWEPT))
        commands = []
        for k in range(1, len(runs.main_tasks) + 1):
            absent = absent_seeds(runs, sweep.get(k, pd.Series(dtype=float)).index)
            if (k != PAPERS_K) == self.best_of_others and absent:
                overrides = (f"method={SWEPT}", f"method.{THRESHOLD}={k}")
                commands.append(runs.merge_command(overrides, runs.main_tasks, seeds=absent))
        return commands


@dataclass(frozen=True)
class ChangeWithTasks(Quantity):
    """Normalised accuracy with the most tasks less that with the fewest, in points; means over the sets of a size."""

    row: Row

    @property
    def title(self) -> str:
        return f"change of {self.row.title()}"

    def values(self, runs: Runs) -> pd.Series:
        sizes: dict[int, list[pd.Series]] = {}
        for group in groups(runs):
            if (group.mode, group.scope) == ("standard", "visual") and len(group.tasks) > 1:
                values = runs.values(metric="normalised", **group.columns, **self.row.columns)
                if not values.empty:
                    sizes.setdefault(len(group.tasks), []).append(values)
        if len(sizes) < 2:
            return pd.Series(dtype=float)
        fewest, most = (100 * pd.concat(sizes[size], axis=1).mean(axis=1) for size in (min(sizes), max(sizes)))
        return (most - fewest).dropna()

    def commands(self, runs: Runs) -> list[str]:
        if not self.values(runs).empty:
            return []
        fewest = len(runs.main_tasks) if len(runs.tasks) > len(runs.main_tasks) else 2
        return [runs.merge_command(self.row.overrides, runs.tasks[:count]) for count in (fewest, len(runs.tasks))]

    def published(self, runs: Runs) -> float | None:
        name = self.row.published_name("tall")
        few, many = (Key(*MAIN_TABLE, name, f"{n} tasks", "normalised").number(runs) for n in (8, 20))
        return None if few is None or many is None else many - few


def _merged(method: str, **options: object) -> Merged:
    return Merged(the(method, **options), ABSOLUTE)


CLAIMS = (
    Claim(
        "main table",
        "TALL masks with task arithmetic keep 99 % of single-task accuracy.",
        (Merged(the("tall_mask"), NORMALISED, "normalised"), Threshold(99.0, "99 %")),
    ),
    Claim(
        "main table",
        "TALL masks with TIES are at least as good (within half a point).",
        (_merged("tall_mask", use_ties=True), _merged("tall_mask")),
        margin=0.5,
    ),
    Claim(
        "main table",
        "Consensus task arithmetic is better than task arithmetic.",
        (_merged("consensus"), _merged("sum")),
    ),
    Claim(
        "main table",
        "TIES > task arithmetic > weight averaging > zero-shot.",
        tuple(_merged(method) for method in ("ties", "sum", "average", "zeroshot")),
    ),
    Claim(
        "main table",
        "TALL masks are better than magnitude masks.",
        (_merged("tall_mask"), _merged("mag_masking")),
    ),
    Claim(
        "figure on k",
        "k = 2 is the best threshold of consensus task arithmetic.",
        (AtThreshold(best_of_others=False), AtThreshold(best_of_others=True)),
    ),
    Claim(
        "figure on tasks",
        "TALL masks stay flat as tasks grow: normalised accuracy falls by less than two points.",
        (ChangeWithTasks(the("tall_mask")), Threshold(-2.0, "−2 points")),
    ),
    Claim(
        "figure on tasks",
        "Task arithmetic falls as tasks grow.",
        (Threshold(0.0, "no change"), ChangeWithTasks(the("sum"))),
    ),
)
