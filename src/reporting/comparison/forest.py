"""The ledger's picture: the difference of every claim with its intervals, beside the published one."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory

from src.reporting import style
from src.reporting.claim import Finding, examine_all, published_difference
from src.reporting.runs import Runs
from src.reporting.verdict import EQUAL, EQUAL_WITHIN, FAILS, HOLDS, NOT_RUN, UNDECIDED, Comparison
from src.runtime.results import MissingResult

LOOKS = {  # by verdict: colour and marker, so that either tells it
    HOLDS: (style.GREEN, "o"),
    FAILS: (style.VERMILION, "X"),
    EQUAL: (style.BLUE, "s"),
    UNDECIDED: (style.ORANGE, "v"),
}
LINE_HEIGHT = 0.155  # inches of a line of text
COLUMNS = 88  # characters of a line
LINEAR = 1.0  # points around zero that are shown to scale; beyond, the axis is logarithmic


@dataclass(frozen=True)
class Line:
    """A difference, or a heading without one. text: beside it. published: the same difference of the papers."""

    text: str
    heading: bool = False
    indent: int = 0
    comparison: Comparison | None = None
    published: float | None = None

    @property
    def lines(self) -> list[str]:
        return textwrap.wrap(self.text, COLUMNS - 2 * self.indent)


def claims(runs: Runs) -> Figure:
    """A row for each difference, by paper; a claim of several differences has its sentence above them."""
    findings = examine_all(runs)
    if not any(finding.comparisons for of_paper in findings.values() for finding in of_paper):
        raise MissingResult(
            f"expected results of {runs.model} that claims can be tested on, found none; make them with: "
            f"{runs.reproduce_command()}"
        )
    rows = [
        line
        for paper, of_paper in findings.items()
        for line in (Line(paper.title, heading=True), *(row for finding in of_paper for row in _rows(finding, runs)))
    ]
    heights = [len(row.lines) + (0.9 if row.heading else 0.35) for row in rows]
    fig, axes = plt.subplots(figsize=(style.WIDTH + 1.3, LINE_HEIGHT * sum(heights) + 1.0), layout="none")
    height = fig.get_figheight()
    fig.subplots_adjust(left=0.56, right=0.985, bottom=0.78 / height, top=1 - 0.05 / height)
    bottom = 0.0
    for row, lines in zip(rows, heights):
        bottom -= lines
        _draw(axes, row, bottom + len(row.lines) / 2 + 0.175)
    axes.set_ylim(bottom, 0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xscale("symlog", linthresh=LINEAR, linscale=0.8)
    ticks = (-20, -5, -1, 0, 1, 5, 20, 50)
    axes.set_xticks(ticks, [f"{tick:+d}".replace("-", "−") if tick else "0" for tick in ticks])
    axes.axvline(0, color=style.BLACK, lw=0.8, zorder=1)
    axes.axvspan(-EQUAL_WITHIN, EQUAL_WITHIN, color=style.PALE, alpha=0.5, lw=0, zorder=0)
    axes.set_xlabel("difference in the claimed direction, points (ratios as they are)", fontsize=7.5)
    fig.legend(handles=_handles(), loc="lower center", ncols=5, fontsize=7)
    return fig


def _rows(finding: Finding, runs: Runs) -> Iterator[Line]:
    claim = finding.claim
    sentence = f"{claim.sentence.removesuffix('.')} ({claim.where})"
    theirs = [published_difference(one, other, runs) for one, other in claim.pairs]
    if not finding.comparisons:
        yield Line(f"{sentence}: {NOT_RUN}")
    elif len(finding.comparisons) == 1:
        yield Line(sentence, comparison=finding.comparisons[0], published=theirs[0])
    else:
        yield Line(sentence)
        for (one, other), comparison, published in zip(claim.pairs, finding.comparisons, theirs):
            yield Line(f"{one.title} − {other.title}", indent=1, comparison=comparison, published=published)


def _draw(axes: Axes, row: Line, y: float) -> None:
    beside = blended_transform_factory(axes.transAxes, axes.transData)
    left = -1.27 + 0.03 * row.indent  # of the width of the axes: the left edge of the figure
    weight = "bold" if row.heading else "normal"
    text = "\n".join(row.lines)
    axes.text(left, y, text, va="center", fontsize=7, weight=weight, transform=beside, linespacing=1.05)
    if row.comparison is None:
        return
    difference = row.comparison.difference
    color, marker = LOOKS[row.comparison.verdict]
    axes.axhline(y, color=style.PALE, lw=0.5, zorder=0)
    if ends := difference.over_images:
        axes.plot(ends, [y - 0.28] * 2, color=color, lw=3.2, alpha=0.35, solid_capstyle="butt", zorder=2)
    if ends := difference.over_seeds:
        axes.plot(ends, [y, y], color=color, lw=1.3, zorder=3)
    if row.comparison.margin:
        axes.plot(-row.comparison.margin, y, marker="|", ms=9, mew=1.2, color=style.GREY, ls="none", zorder=2)
    if row.published is not None:
        axes.plot(row.published, y, marker="D", ms=4.6, mfc="none", mec=style.BLACK, mew=0.8, ls="none", zorder=5)
    axes.plot(difference.estimate, y, marker=marker, ms=5.2, color=color, mec="white", mew=0.5, ls="none", zorder=4)


def _handles() -> list[Line2D]:
    verdicts = [
        Line2D([], [], color=color, marker=marker, ms=5.5, lw=1.3, label=verdict)
        for verdict, (color, marker) in LOOKS.items()
    ]
    return [
        *verdicts,
        Line2D([], [], color=style.GREY, lw=1.3, label="95 % over seeds"),
        Line2D([], [], color=style.GREY, lw=3.2, alpha=0.4, label="over test images and seeds"),
        Line2D([], [], color=style.BLACK, marker="D", mfc="none", ms=4.6, ls="none", label="published difference"),
        Line2D(
            [], [], color=style.GREY, marker="|", ms=9, mew=1.2, ls="none", label="the margin granted, or asked for"
        ),
        Line2D([], [], color=style.PALE, lw=7, label=f"±{EQUAL_WITHIN:g} points"),
    ]
