"""The papers' claims as sentences, each with the numbers that test it and a verdict, all from results.

A claim is an order of quantities, the largest first; claims.py of a paper has a row for each. Every neighbouring pair
is tested. With one seed the sign of the difference decides. With several, Student's 95 % interval of the difference
over seeds, paired, does: `holds` where it lies above zero, `does not hold` where it lies below, else `undecided`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean as mean

import pandas as pd

from src.experiments.registry import Experiment
from src.reporting.methods import Group, Row, missing_command
from src.reporting.papers import PAPERS
from src.reporting.published import beside, published
from src.reporting.runs import Runs, chosen, interval
from src.reporting.table import seeds_text

HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "does not hold", "undecided", "not run"


class Quantity(ABC):
    """A measured number, by seed. digits: as printed. threshold: whether it is one, whose name is its value."""

    digits: int = 1
    threshold: bool = False

    @property
    @abstractmethod
    def title(self) -> str:
        """As the ledger calls it."""

    @abstractmethod
    def values(self, runs: Runs) -> pd.Series:
        """Its value for each seed."""

    def commands(self, runs: Runs) -> list[str]:
        """What makes the results that are missing."""
        return []

    def published(self, runs: Runs) -> float | None:
        """Its published value."""
        return None


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

    def values(self, runs: Runs) -> pd.Series:
        return 100 * runs.values(metric=self.metric, **Group(runs.main_tasks).columns, **self.row.columns)

    def commands(self, runs: Runs) -> list[str]:
        return missing_command(runs, Group(runs.main_tasks), self.row)

    def published(self, runs: Runs) -> float | None:
        paper, table, setting, metric = self.theirs
        return Key(paper, table, self.row.published_name(paper, table), setting, metric).number(runs)


@dataclass(frozen=True)
class Claim:
    """quantities: by the claim, in descending order. margin: how far each may stay below the next all the same."""

    where: str
    sentence: str
    quantities: tuple[Quantity, ...]
    margin: float = 0.0


@dataclass(frozen=True)
class Finding:
    """differences: of neighbours, in the claimed direction."""

    claim: Claim
    values: tuple[pd.Series, ...]
    differences: tuple[pd.Series, ...]
    verdict: str
    missing: tuple[str, ...]


def examine(claim: Claim, runs: Runs) -> Finding:
    """The verdict on a claim, on the seeds that have all of its numbers."""
    values = [quantity.values(runs) for quantity in claim.quantities]
    differences = tuple((one - two).dropna() for one, two in zip(values, values[1:]))
    complete = not any(difference.empty for difference in differences)
    missing = [command for quantity in claim.quantities for command in quantity.commands(runs)]
    verdict = judge([difference + claim.margin for difference in differences]) if complete else NOT_RUN
    return Finding(claim, tuple(values), differences, verdict, tuple(dict.fromkeys(missing)))


def judge(differences: Sequence[pd.Series]) -> str:
    """The verdict on numbers that should all be positive."""
    verdicts = [_judge_one(difference) for difference in differences]
    for verdict in (FAILS, UNDECIDED):
        if verdict in verdicts:
            return verdict
    return HOLDS


def _judge_one(difference: pd.Series) -> str:
    if len(difference) == 1:
        return HOLDS if mean(difference) > 0 else FAILS
    low, high = interval(difference)
    if low > 0:
        return HOLDS
    return FAILS if high < 0 else UNDECIDED


def ledger(runs: Runs, heading: str = "##") -> str:
    """Every claim in a Markdown table for each paper."""
    findings = {paper: [examine(claim, runs) for claim in paper.offers("claims")] for paper in PAPERS}
    verdicts = [finding.verdict for of_paper in findings.values() for finding in of_paper]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in (HOLDS, FAILS, UNDECIDED, NOT_RUN))
    lines = [
        f"{runs.model}: {counts}. {seeds_text(runs.seeds)} Numbers in %, ratios as they are{beside(runs.model)}. "
        "Differences are of neighbours, in the claimed direction, with Student's 95 % interval over "
        "seeds, paired, where there are two or more: `holds` then means that it lies above zero (or above minus the "
        "margin that the sentence grants), `does not hold` that it lies below, `undecided` that it contains zero. With "
        "one seed the sign alone decides.",
    ]
    for paper, of_paper in findings.items():
        if of_paper:
            lines += ["", f"{heading} {paper.title}", "", *_section(of_paper, runs)]
    return "\n".join(lines) + "\n"


def _section(findings: Sequence[Finding], runs: Runs) -> list[str]:
    lines = ["| claim | verdict | numbers, in the claimed order | difference |", "| --- | --- | --- | --- |"]
    lines += [_row(finding, runs) for finding in findings]
    missing = dict.fromkeys(line for finding in findings if finding.verdict == NOT_RUN for line in finding.missing)
    return lines + (["", "What was not run is made by:", "", "```sh", *missing, "```"] if missing else [])


def _row(finding: Finding, runs: Runs) -> str:
    claim = finding.claim
    values = ", ".join(_value(quantity, ours, runs) for quantity, ours in zip(claim.quantities, finding.values))
    digits = max(quantity.digits for quantity in claim.quantities)
    differences = "; ".join(_difference(values, digits) for values in finding.differences if not values.empty)
    return f"| {claim.sentence} ({claim.where}) | **{finding.verdict}** | {values} | {differences} |"


def _value(quantity: Quantity, ours: pd.Series, runs: Runs) -> str:
    theirs = quantity.published(runs)
    value = "" if ours.empty or quantity.threshold else f" {mean(ours):.{quantity.digits}f}"
    return f"{quantity.title}{value}{'' if theirs is None else f' [{theirs:.1f}]'}"


def _difference(difference: pd.Series, digits: int) -> str:
    if len(difference) < 2:
        return f"{mean(difference):+.{digits}f}"
    low, high = interval(difference)
    return f"{mean(difference):+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
