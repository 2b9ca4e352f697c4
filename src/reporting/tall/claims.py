"""Claims of the TALL paper."""

import operator
from dataclasses import dataclass

import pandas as pd

from src.reporting import answers
from src.reporting.claim import Claim, Key, Merged, Quantity, Threshold
from src.reporting.methods import Group, Row, absent_seeds, groups, missing_command, variant_row
from src.reporting.runs import Runs
from src.reporting.statistics import BySeed, Formula, combined, max_of, mean_of
from src.reporting.tall.tables import SWEPT, THRESHOLD, threshold_rows, threshold_sweep

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
        sweep = threshold_sweep(runs, Group(runs.main_tasks), variant_row(SWEPT))
        if not self.best_of_others:
            return 100 * sweep.get(PAPERS_K, pd.Series(dtype=float))
        others = [values for k, values in sweep.items() if k != PAPERS_K]
        if len(others) < 2:
            return pd.Series(dtype=float)
        return 100 * pd.concat(others, axis=1, join="inner").max(axis=1)

    def formulas(self, runs: Runs) -> BySeed:
        group = Group(runs.main_tasks)
        sweep = {
            k: answers.formulas(runs, metric="accuracy", **group.columns, **row.columns)
            for k, row in threshold_rows(runs, group, variant_row(SWEPT)).items()
        }
        if not self.best_of_others:
            return answers.percent(sweep.get(PAPERS_K, {}))
        others = [formulas for k, formulas in sweep.items() if k != PAPERS_K]
        return answers.percent(combined(max_of, *others)) if others else {}

    def commands(self, runs: Runs) -> list[str]:
        sweep = threshold_sweep(runs, Group(runs.main_tasks), variant_row(SWEPT))
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
        for group in self._groups(runs):
            values = runs.values(metric="normalised", **group.columns, **self.row.columns)
            sizes.setdefault(len(group.tasks), []).append(values)
        if len(sizes) < 2:
            return pd.Series(dtype=float)
        fewest, most = (100 * pd.concat(sizes[size], axis=1).mean(axis=1) for size in (min(sizes), max(sizes)))
        return (most - fewest).dropna()

    def formulas(self, runs: Runs) -> BySeed:
        """Without the seeds of which a set of tasks has no bits."""
        sizes: dict[int, dict[int, list[Formula]]] = {}
        incomplete: set[int] = set()
        for group in self._groups(runs):
            what = {"metric": "normalised", **group.columns, **self.row.columns}
            of_group = answers.formulas(runs, **what)
            incomplete |= set(runs.values(**what).index) - set(of_group)
            for seed, formula in of_group.items():
                sizes.setdefault(len(group.tasks), {}).setdefault(seed, []).append(formula)
        if len(sizes) < 2:
            return {}
        fewest, most = (
            {seed: mean_of(*of_seed) for seed, of_seed in sizes[n].items()} for n in (min(sizes), max(sizes))
        )
        changes = combined(operator.sub, most, fewest)
        return answers.percent({seed: formula for seed, formula in changes.items() if seed not in incomplete})

    def _groups(self, runs: Runs) -> list[Group]:
        """The sets of tasks that the method has results on."""
        return [
            group
            for group in groups(runs)
            if (group.mode, group.scope) == ("standard", "visual")
            and len(group.tasks) > 1
            and not runs.values(metric="normalised", **group.columns, **self.row.columns).empty
        ]

    def commands(self, runs: Runs) -> list[str]:
        """Of the fewest and the most tasks, as far as they have no results."""
        if not self.values(runs).empty:
            return []
        there = {group.tasks for group in self._groups(runs)}
        fewest = len(runs.main_tasks) if len(runs.tasks) > len(runs.main_tasks) else 2
        sets = [runs.tasks[:count] for count in (fewest, len(runs.tasks))]
        return [
            command for tasks in sets if tasks not in there for command in missing_command(runs, Group(tasks), self.row)
        ]

    def published(self, runs: Runs) -> float | None:
        name = self.row.published_name("tall")
        few, many = (Key(*MAIN_TABLE, name, f"{n} tasks", "normalised").number(runs) for n in (8, 20))
        return None if few is None or many is None else many - few


def _merged(method: str, **options: object) -> Merged:
    return Merged(variant_row(method, **options), ABSOLUTE)


CLAIMS = (
    Claim(
        "main table",
        "TALL masks with task arithmetic keep 99 % of single-task accuracy.",
        (Merged(variant_row("tall_mask"), NORMALISED, "normalised"), Threshold(99.0, "99 %")),
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
        (ChangeWithTasks(variant_row("tall_mask")), Threshold(-2.0, "−2 points")),
    ),
    Claim(
        "figure on tasks",
        "Task arithmetic falls as tasks grow.",
        (Threshold(0.0, "no change"), ChangeWithTasks(variant_row("sum"))),
    ),
)
