"""The papers' claims as sentences, each with the numbers that test it, all from results.

A claim is an order of quantities, the largest first; claims.py of a paper has a row for each. Every neighbouring pair
is tested; see verdict.py.
"""

import operator
from abc import ABC, abstractmethod
from dataclasses import dataclass

import pandas as pd

from src.experiments.registry import Experiment
from src.reporting import answers
from src.reporting.methods import Group, Row, missing_command
from src.reporting.papers import PAPERS, Paper
from src.reporting.published import published
from src.reporting.result import chosen
from src.reporting.runs import Runs
from src.reporting.statistics import BySeed, Constant, combined, difference
from src.reporting.table import on_common_seeds
from src.reporting.verdict import EQUAL_WITHIN, Comparison, overall


class Quantity(ABC):
    """A measured number, by seed.

    digits: as printed. threshold: whether it is one, whose name is its value. of_images: whether it is made of which
    test images were right.
    """

    digits: int = 1
    threshold: bool = False
    of_images: bool = True

    @property
    def in_points(self) -> bool:
        """Whether it is in percent, so that differences are in points."""
        return True

    @property
    @abstractmethod
    def title(self) -> str:
        """As the ledger calls it."""

    @abstractmethod
    def values(self, runs: Runs) -> pd.Series:
        """Its value for each seed."""

    def formulas(self, runs: Runs) -> BySeed:
        """The same, made of which test images were right; nothing for what is no accuracy."""
        return {}

    def commands(self, runs: Runs) -> list[str]:
        """What makes the results that are missing."""
        return []

    def published(self, runs: Runs) -> float | None:
        """Its published value."""
        return None


class Plain(Quantity):
    """A number as it is: not in percent, and not made of which test images were right."""

    digits = 2
    of_images = False
    in_points = False


@dataclass(frozen=True)
class Threshold(Quantity):
    value: float
    name: str
    threshold: bool = True

    @property
    def title(self) -> str:
        return self.name

    def values(self, runs: Runs) -> pd.Series:
        return pd.Series(self.value, index=list(runs.seeds), dtype=float)

    def formulas(self, runs: Runs) -> BySeed:
        return dict.fromkeys(runs.seeds, Constant(self.value))


@dataclass(frozen=True)
class Key:
    """Where a published number stands; see published.csv."""

    paper: str
    table: str
    method: str | None
    setting: str
    metric: str

    def number(self, runs: Runs) -> float | None:
        return published(runs.model, self.paper, self.table, self.method, self.setting, self.metric)


@dataclass(frozen=True)
class Measured(Quantity):
    """(metric − less) / over of an experiment's results, as far as `less` and `over` are named, in percent.

    name: as the ledger calls it. main_tasks: the mean over the papers' first benchmark, for an experiment whose results
    hold no means. init: of the network without pre-training. theirs, less_theirs, over_theirs: the same, published.
    """

    name: str
    experiment: Experiment
    choice: str
    metric: str = "accuracy"
    less: str = ""
    over: str = ""
    main_tasks: bool = False
    init: bool = False
    theirs: Key | None = None
    less_theirs: Key | None = None
    over_theirs: Key | None = None

    @property
    def title(self) -> str:
        return self.name

    def values(self, runs: Runs) -> pd.Series:
        values = self._read(runs, self.metric)
        if self.less:
            values = values - self._read(runs, self.less)
        if self.over:
            values = values / self._read(runs, self.over)
        return (100 * values).dropna()

    def _read(self, runs: Runs, metric: str) -> pd.Series:
        model, what = self._model(runs), {**chosen(self.experiment, self.choice), "metric": metric}
        return model.mean_over(runs.main_tasks, **what) if self.main_tasks else model.values(**what)

    def formulas(self, runs: Runs) -> BySeed:
        formulas = self._formulas(runs, self.metric)
        if self.less:
            formulas = combined(operator.sub, formulas, self._formulas(runs, self.less))
        if self.over:
            formulas = combined(operator.truediv, formulas, self._formulas(runs, self.over))
        return answers.percent(formulas)

    def _formulas(self, runs: Runs, metric: str) -> BySeed:
        model, what = self._model(runs), {**chosen(self.experiment, self.choice), "metric": metric}
        return answers.mean_over(model, runs.main_tasks, **what) if self.main_tasks else answers.formulas(model, **what)

    def _model(self, runs: Runs) -> Runs:
        return runs.random_init if self.init else runs

    def commands(self, runs: Runs) -> list[str]:
        return self._model(runs).missing(self.experiment, [self.choice])

    def published(self, runs: Runs) -> float | None:
        if self.theirs is None or (value := self.theirs.number(runs)) is None:
            return None
        for key, combine in ((self.less_theirs, float.__sub__), (self.over_theirs, _percent_of)):
            if key:
                if (other := key.number(runs)) is None:
                    return None
                value = combine(value, other)
        return value


def _percent_of(part: float, whole: float) -> float:
    return 100 * part / whole


@dataclass(frozen=True)
class Merged(Quantity):
    """Accuracy of a merging method on the papers' first benchmark, in percent.

    name: by default the method's. theirs: the paper, its table, and the setting and the metric in it.
    """

    row: Row
    theirs: tuple[str, str, str, str]
    metric: str = "accuracy"
    name: str = ""

    @property
    def title(self) -> str:
        return self.name or self.row.title()

    def group(self, runs: Runs) -> Group:
        return Group(runs.main_tasks)

    def values(self, runs: Runs) -> pd.Series:
        return 100 * runs.values(metric=self.metric, **self.group(runs).columns, **self.row.columns)

    def formulas(self, runs: Runs) -> BySeed:
        what = self.group(runs).columns | self.row.columns
        return answers.percent(answers.formulas(runs, metric=self.metric, **what))

    def commands(self, runs: Runs) -> list[str]:
        return missing_command(runs, self.group(runs), self.row)

    def published(self, runs: Runs) -> float | None:
        paper, table, setting, metric = self.theirs
        return Key(paper, table, self.row.published_name(paper, table), setting, metric).number(runs)


@dataclass(frozen=True)
class Claim:
    """quantities: by the claim, in descending order.

    margin: how far each may stay below the next all the same; negative, how far it has to stand above.
    """

    where: str
    sentence: str
    quantities: tuple[Quantity, ...]
    margin: float = 0.0

    @property
    def pairs(self) -> list[tuple[Quantity, Quantity]]:
        """Neighbours: what is tested."""
        return list(zip(self.quantities, self.quantities[1:]))


@dataclass(frozen=True)
class Finding:
    """values: of the claim's quantities, all over the same seeds.

    comparisons: of neighbours; none where it was not run. missing: the commands for what is not there.
    """

    claim: Claim
    values: tuple[pd.Series, ...]
    comparisons: tuple[Comparison, ...]
    missing: tuple[str, ...]

    @property
    def verdict(self) -> str:
        return overall([comparison.verdict for comparison in self.comparisons])


def examine(claim: Claim, runs: Runs) -> Finding:
    """The differences that test a claim, on the seeds that have all of its numbers."""
    values = on_common_seeds([quantity.values(runs) for quantity in claim.quantities])
    missing = [command for quantity in claim.quantities for command in quantity.commands(runs)]
    comparisons: tuple[Comparison, ...] = ()
    if not any(of_quantity.empty for of_quantity in values):
        formulas = [quantity.formulas(runs) for quantity in claim.quantities]
        in_points = all(quantity.in_points for quantity in claim.quantities)
        comparisons = tuple(
            Comparison(
                difference(values[i], values[i + 1], (formulas[i], formulas[i + 1]), runs.shared_images),
                claim.margin,
                claim.margin or (EQUAL_WITHIN if in_points else None),
            )
            for i in range(len(claim.pairs))
        )
    return Finding(claim, tuple(values), comparisons, tuple(dict.fromkeys(missing)))


def examine_all(runs: Runs) -> dict[Paper, list[Finding]]:
    """Every claim of each paper that makes some."""
    findings = {paper: [examine(claim, runs) for claim in paper.offers("claims")] for paper in PAPERS}
    return {paper: of_paper for paper, of_paper in findings.items() if of_paper}


def published_difference(one: Quantity, other: Quantity, runs: Runs) -> float | None:
    """Of two published numbers, or of one and a threshold; None where either is not known."""
    first, second = (q.value if isinstance(q, Threshold) else q.published(runs) for q in (one, other))
    return None if first is None or second is None else first - second
