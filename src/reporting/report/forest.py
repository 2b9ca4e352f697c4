"""The ledger as rows of a forest plot: where its marks stand, in percent of the width of an axis."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from src.reporting.claim import Finding, examine_all, published_difference
from src.reporting.ledger import corrected_verdicts, reason, value_text
from src.reporting.papers import Paper
from src.reporting.runs import Runs
from src.reporting.table import span
from src.reporting.verdict import EQUAL_WITHIN, VERDICTS, Comparison

LINEAR = 1.0  # points around zero that are shown to scale; beyond, the axis is logarithmic
TICKS = (-20.0, -5.0, -1.0, 0.0, 1.0, 5.0, 20.0, 50.0)
MARGIN = 0.04  # of the width, on either side


@dataclass(frozen=True)
class Axis:
    """Symmetrically logarithmic, from low to high."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Percent of the width."""
        share = (_symlog(value) - _symlog(self.low)) / (_symlog(self.high) - _symlog(self.low))
        return round(100 * (MARGIN + (1 - 2 * MARGIN) * min(1.0, max(0.0, share))), 2)

    @property
    def ticks(self) -> list[tuple[str, float]]:
        shown = [tick for tick in TICKS if self.low <= tick <= self.high]
        return [(f"{tick:+g}".replace("-", "−") if tick else "0", self.at(tick)) for tick in shown]

    @property
    def equal(self) -> tuple[float, float]:
        """Where differences count as equal."""
        return self.at(-EQUAL_WITHIN), self.at(EQUAL_WITHIN)


def _symlog(value: float) -> float:
    return math.copysign(math.log1p(abs(value) / LINEAR), value)


@dataclass(frozen=True)
class Bar:
    """A difference of two numbers of a claim. text: of its neighbours; spoken: for those who do not see the marks.

    estimate, seeds, images, published, margin: places on the axis.
    """

    text: str
    spoken: str
    verdict: str
    estimate: float
    seeds: tuple[float, float] | None
    images: tuple[float, float] | None
    published: float | None
    margin: float | None


@dataclass(frozen=True)
class Claimed:
    """A claim with its bars. slug: of its paper. numbers: in the claimed order, as the ledger prints them."""

    slug: str
    sentence: str
    where: str
    verdict: str
    corrected: str
    reason: str
    numbers: tuple[str, ...]
    bars: tuple[Bar, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Forest:
    axis: Axis
    papers: Mapping[str, str]  # slug -> title
    claims: tuple[Claimed, ...]

    def counts(self, corrected: bool = False) -> dict[str, int]:
        """Verdict -> how many claims have it."""
        verdicts = [claim.corrected if corrected else claim.verdict for claim in self.claims]
        return {verdict: verdicts.count(verdict) for verdict in VERDICTS}


def forest(runs: Runs) -> Forest:
    findings = examine_all(runs)
    axis = _axis(findings, runs)
    after = corrected_verdicts(findings)
    rows = tuple(
        Claimed(
            paper.folder,
            finding.claim.sentence.removesuffix("."),
            finding.claim.where,
            finding.verdict,
            after[finding.claim],
            reason(finding).removeprefix(": "),
            tuple(value_text(q, ours, runs) for q, ours in zip(finding.claim.quantities, finding.values)),
            tuple(_bars(finding, axis, runs)),
            finding.missing,
        )
        for paper, of_paper in findings.items()
        for finding in of_paper
    )
    return Forest(axis, {paper.folder: paper.title for paper in findings}, rows)


def _axis(findings: Mapping[Paper, Sequence[Finding]], runs: Runs) -> Axis:
    values = [-1.0, 1.0]
    for of_paper in findings.values():
        for finding in of_paper:
            for comparison in finding.comparisons:
                ends = (comparison.difference.over_seeds, comparison.difference.over_images)
                values += [comparison.difference.estimate, *(end for pair in ends if pair for end in pair)]
    return Axis(max(-60.0, min(values)), min(80.0, max(values)))


def _bars(finding: Finding, axis: Axis, runs: Runs) -> Iterator[Bar]:
    digits = max(quantity.digits for quantity in finding.claim.quantities)
    for (one, other), comparison in zip(finding.claim.pairs, finding.comparisons):
        theirs = published_difference(one, other, runs)
        difference = comparison.difference
        spoken = [f"{one.title} minus {other.title}: {difference.estimate:+.{digits}f}"]
        if difference.over_seeds:
            spoken.append(f"{span(difference.over_seeds, digits)} over seeds")
        if difference.over_images:
            spoken.append(f"{span(difference.over_images, digits)} over test images and seeds")
        if theirs is not None:
            spoken.append(f"published {theirs:+.1f}")
        yield Bar(
            f"{one.title} − {other.title}",
            "; ".join(spoken),
            comparison.verdict,
            axis.at(difference.estimate),
            _ends(axis, difference.over_seeds),
            _ends(axis, difference.over_images),
            None if theirs is None else axis.at(theirs),
            _margin(axis, comparison),
        )


def _ends(axis: Axis, ends: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if ends is None else (axis.at(ends[0]), axis.at(ends[1]))


def _margin(axis: Axis, comparison: Comparison) -> float | None:
    return axis.at(-comparison.margin) if comparison.margin else None
