"""Pieces that figures of several papers are made of.

Where there are several seeds, curves and heat maps are means over them, with bands or bars of one standard deviation,
and clouds of points are pooled. A figure whose results are missing raises results.MissingResult.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import same_color
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from src.merging.registry import METHODS
from src.modes import MODES
from src.reporting import style
from src.reporting.methods import Row, adapts, in_order, registered_rows
from src.reporting.runs import Runs
from src.reporting.table import printed

HATCHES = ("", "////", "....", "xxxx")


@dataclass(frozen=True)
class Drawing:
    """A figure that make_figures.py knows. name: also of the file."""

    name: str
    function: Callable[[Runs], Figure]

    def __call__(self, runs: Runs) -> Figure:
        with style.styled():
            return self.function(runs)


def sd(values: pd.Series) -> float | None:
    """The length of an error bar; None where there is one seed."""
    return float(values.std()) if len(values) > 1 else None


def banded(axes: Axes, x: Sequence[float] | np.ndarray, curves: np.ndarray, color: str, **look: Any) -> np.ndarray:
    """The mean over seeds with a band of one standard deviation; gives the mean. curves: (seeds, points)."""
    mean = curves.mean(0)
    axes.plot(x, mean, color=color, **look)
    if len(curves) > 1:
        spread = curves.std(0, ddof=1)
        axes.fill_between(x, mean - spread, mean + spread, color=color, alpha=0.15, lw=0)
    return mean


def bars(axes: Axes, values: Sequence[pd.Series], index: int, of: int, color: str, label: str) -> None:
    """Series `index` of `of` series of bars side by side, error bars over seeds, hatched where a colour returns."""
    width = 0.8 / of
    before = [bar[0].get_facecolor() for bar in axes.containers if isinstance(bar, BarContainer)]
    hatch = HATCHES[sum(same_color(color, other) for other in before)]
    positions = np.arange(len(values)) + (index - (of - 1) / 2) * width
    spread = [sd(value) or 0 for value in values] if len(values[0]) > 1 else None
    heights = [value.mean() for value in values]
    look: dict[str, Any] = dict(color=color, hatch=hatch, edgecolor="white", lw=0, error_kw=dict(lw=0.8))
    axes.bar(positions, heights, 0.92 * width, yerr=spread, label=label, **look)


def legend_below(fig: Figure, axes: Axes, columns: int = 4) -> None:
    handles, labels = axes.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))


def plain_numbers(axis: Axis) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5 of each decade, or at 1 alone of many, as plain numbers."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def mode_handle(mode: str) -> Line2D:
    """A mode in a legend; the pre-trained model is a point in every figure."""
    row = MODES[mode]
    line = row.line if row.trained_as else "none"
    return Line2D([], [], color=row.colour, marker=row.marker, ls=line, mec="white", ms=7, label=row.title)


def method_looks(runs: Runs, rows: Iterable[Row]) -> dict[Row, dict[str, Any]]:
    """Colour and marker of each method, the same in every figure: by its place among those that adapt, or do not.

    The papers' own methods come first: as many as there are colours. Among more, markers tell those of a colour apart.
    """
    rows = list(rows)
    further = registered_rows("methods", "methods-adapting")
    every = sorted(in_order([*registered_rows(), *rows]), key=lambda row: row in further)
    looks = {}
    for adapting, palette in ((False, style.METHOD_PALETTE), (True, style.PALETTE)):
        for index, row in enumerate(row for row in every if adapts(runs, row) == adapting):
            marker = style.MARKERS[(index % len(palette) + index // len(palette)) % len(style.MARKERS)]
            looks[row] = {"color": palette[index % len(palette)], "marker": marker}
    return {row: looks[row] for row in rows}


def distinct(looks: Mapping[Row, Mapping[str, Any]]) -> dict[Row, dict[str, Any]]:
    """The looks, with a free colour for those whose colour another has, as far as there are colours."""
    free = [color for color in style.PALETTE if color not in {look["color"] for look in looks.values()}]
    taken: set[str] = set()
    made = {}
    for row, look in looks.items():
        color = free.pop(0) if look["color"] in taken and free else look["color"]
        taken.add(color)
        made[row] = {**look, "color": color}
    return made


def paper_lines(rows: Iterable[Row]) -> dict[Row, Any]:
    """A line style for each row, one for each paper: dashed, solid, dotted, and again."""
    rows = list(rows)
    papers = list(dict.fromkeys(METHODS[row.method].paper for row in rows))
    lines = (style.DASHED, "-", style.DOTTED)
    return {row: lines[papers.index(METHODS[row.method].paper) % len(lines)] for row in rows}


def matrices(maps: Mapping[str, np.ndarray], tasks: Sequence[str], label: str, own_scales: bool = False) -> Figure:
    """Tasks x tasks, the diagonal of ones left out of the scale, and numbers in the cells; three panels a line.

    own_scales: each panel's colours go from its lowest value to its highest, else all from 0 or below.
    """
    away = ~np.eye(len(tasks), dtype=bool)
    spans = {title: (matrix[away].min(), matrix[away].max()) for title, matrix in maps.items()}
    if not own_scales:
        spans = dict.fromkeys(spans, (min(0.0, *(low for low, _ in spans.values())), max(h for _, h in spans.values())))
    columns = len(maps) if len(maps) <= 3 else 2
    lines = -(-len(maps) // columns)
    size = (1.4 + (3.5 if own_scales else 3.0) * columns, 0.5 + 2.8 * lines)
    fig, grid = plt.subplots(lines, columns, figsize=size, squeeze=False, sharey=True, sharex=True)
    names = [printed(task) for task in tasks]
    for axes in grid.flat[len(maps) :]:
        axes.set_axis_off()
    for axes, (title, matrix) in zip(grid.flat, maps.items()):
        lowest, highest = spans[title]
        image = axes.imshow(np.where(away, matrix, np.nan), cmap=style.ERRORS, vmin=lowest, vmax=highest)
        if len(tasks) <= 8:
            _numbers(axes, matrix, dark_above=lowest + 0.6 * (highest - lowest))
        style.outlined(axes)
        axes.set_xticks(range(len(tasks)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(tasks)), names)
        axes.tick_params(length=0)
        axes.set_title(title)
        if own_scales:
            _color_bar(fig, image, axes, label)
    if not own_scales:
        _color_bar(fig, image, grid, label)
    return fig


def _color_bar(fig: Figure, image: AxesImage, beside: Any, label: str) -> None:
    bar = fig.colorbar(image, ax=beside, shrink=0.8, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)


def _numbers(axes: Axes, matrix: np.ndarray, dark_above: float) -> None:
    for (i, j), value in np.ndenumerate(matrix):
        if i != j:
            text = f"{round(value, 2) + 0.0:.2f}".replace("0.", ".").replace("-", "−")  # + 0: no −.00
            color = "white" if value > dark_above else style.BLACK
            axes.text(j, i, text, ha="center", va="center", fontsize=6.5, color=color)
