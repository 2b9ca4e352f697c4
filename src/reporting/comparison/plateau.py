"""How much the coefficient matters: the plateau of coefficients that are about as good as the best, on validation.

From the stored curves of mean validation accuracy, linear between points of the grid. An end of the plateau that is an
end of the grid is not the plateau's own: it goes at least so far.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from src.modes import EVALUATED, MODES
from src.reporting import style
from src.reporting.claim import Plain
from src.reporting.comparison.methods import rows_with_results
from src.reporting.methods import Group, Row, missing_command, variant_row
from src.reporting.plots import plain_numbers
from src.reporting.result import MERGING
from src.reporting.runs import Runs
from src.reporting.table import Cell, Table

POINTS = 1.0  # of accuracy, in percent: how much a coefficient of the plateau may lose


@dataclass(frozen=True)
class Range:
    """low, high: ends of the plateau around the best coefficient. open_low, open_high: whether the grid ends there."""

    low: float
    best: float
    high: float
    open_low: bool
    open_high: bool

    @property
    def decades(self) -> float:
        """log10 of high over low: free of the scale of a method's vector. inf where 0 is inside."""
        return math.log10(self.high / self.low) if self.low > 0 else math.inf


def plateau_of(settings: Sequence[float], accuracy: Sequence[float], points: float = POINTS) -> Range:
    """The connected range around the best setting, where the accuracy, in percent, is within `points` of the best."""
    order = np.argsort(settings, kind="stable")
    x, y = np.asarray(settings, float)[order], np.asarray(accuracy, float)[order]
    best = int(y.argmax())
    least = y[best] - points
    low, high = (_end(x, y, best, step, least) for step in (-1, 1))
    return Range(low[0], float(x[best]), high[0], low[1], high[1])


def _end(x: np.ndarray, y: np.ndarray, start: int, step: int, least: float) -> tuple[float, bool]:
    """Where the curve falls below `least`, and whether it does not before the grid ends."""
    index = start
    while 0 <= index + step < len(x):
        there = index + step
        if y[there] < least:
            share = (y[index] - least) / (y[index] - y[there])
            return float(x[index] + share * (x[there] - x[index])), False
        index = there
    return float(x[index]), True


def ranges(runs: Runs, row: Row, mode: str) -> dict[int, Range]:
    """For each seed with results; nothing for a method without coefficients that all tasks share."""
    group = Group(runs.main_tasks, mode)
    records = runs.find(MERGING, **group.fields, method=row.method, options=row.options, unseen=())
    return {
        seed: plateau_of(record["settings"], [100 * value for value in record["val"]["mean_accuracy"]])
        for seed, record in records.items()
        if has_coefficients(record)
    }


def has_coefficients(record: Mapping[str, Any]) -> bool:
    settings = record["settings"]
    return (
        not record["chosen_per_task"] and len(settings) > 2 and all(isinstance(setting, Real) for setting in settings)
    )


def plateau(runs: Runs) -> Iterator[Table]:
    """By kind of task vector: the chosen coefficient, and the ratio of the plateau's ends."""
    modes = runs.modes(EVALUATED)
    by_row = {row: {mode: ranges(runs, row, mode) for mode in modes} for row in rows_with_results(runs)}
    by_row = {row: by_mode for row, by_mode in by_row.items() if any(by_mode.values())}
    if not by_row:
        return
    open_ended = [
        f"{row.title()} ({MODES[mode].short})"
        for row, by_mode in by_row.items()
        for mode, by_seed in by_mode.items()
        if any(one.open_low or one.open_high for one in by_seed.values())
    ]
    kinds = "Of LiNeS the coefficient is β, of tangent matching the number of iterations."
    note = (f"At an end of the grid in some seed, so that it is at least so wide: {', '.join(open_ended)}.",)
    yield Table(
        "plateau",
        f"How much the coefficient matters: the largest over the smallest whose mean validation accuracy is within "
        f"{POINTS:g} point of the best, {len(runs.main_tasks)} tasks.",
        ["method", *(f"{MODES[mode].short}: {what}" for mode in modes for what in ("from", "to", "ratio"))],
        [
            [row.title(), *(cell for by_seed in by_mode.values() for cell in _cells(by_seed))]
            for row, by_mode in by_row.items()
        ],
        runs.seeds,
        same_seeds=True,
        notes=(kinds, *(note if open_ended else ())),
    )


def _cells(by_seed: Mapping[int, Range]) -> list[Cell]:
    def of(number: Any) -> pd.Series:
        return pd.Series({seed: number(one) for seed, one in by_seed.items()}, dtype=float)

    ratio = of(lambda one: 10**one.decades)
    return [Cell(of(lambda one: one.low), digits=2), Cell(of(lambda one: one.high), digits=2), Cell(ratio, digits=1)]


def plateaus(runs: Runs) -> Figure:
    """The plateau of every method, over the coefficient that is best, by kind of task vector."""
    modes = runs.modes(EVALUATED)
    by_row = {row: {mode: ranges(runs, row, mode) for mode in modes} for row in rows_with_results(runs)}
    by_row = {row: by_mode for row, by_mode in by_row.items() if any(by_mode.values())}
    if not by_row:
        raise runs.missing_merge("method=sum")
    modes = tuple(mode for mode in modes if any(by_mode[mode] for by_mode in by_row.values()))
    size = style.WIDTH, 0.8 + 0.17 * len(by_row)
    fig, panels = plt.subplots(1, len(modes), figsize=size, sharex=True, sharey=True, squeeze=False)
    for axes, mode in zip(panels[0], modes):
        for y, by_mode in enumerate(by_row.values()):
            of_mode = list(by_mode[mode].values())
            if not of_mode:
                continue
            low, high = (float(np.exp(np.mean(np.log(ends)))) for ends in zip(*(_relative(one) for one in of_mode)))
            axes.plot([low, high], [y, y], color=MODES[mode].colour, lw=4, solid_capstyle="butt")
            if any(one.open_high for one in of_mode):
                axes.plot(high, y, ">", color=MODES[mode].colour, ms=5)
            if any(one.open_low for one in of_mode):
                axes.plot(low, y, "<", color=MODES[mode].colour, ms=5)
        axes.axvline(1, color=style.BLACK, lw=0.8)
        axes.set_xscale("log")
        plain_numbers(axes.xaxis)
        axes.set(title=MODES[mode].title, xlabel="coefficient, over the best")
    panels[0][0].set_yticks(range(len(by_row)), [row.title() for row in by_row], fontsize=7)
    panels[0][0].invert_yaxis()
    return fig


def _relative(one: Range) -> tuple[float, float]:
    return max(one.low, 1e-2 * one.best) / one.best, one.high / one.best


@dataclass(frozen=True)
class Plateau(Plain):
    """log10 of the ratio of the plateau's ends. options: of the registered variant."""

    method: str
    options: tuple[tuple[str, Any], ...] = ()
    mode: str = "standard"

    @property
    def row(self) -> Row:
        return variant_row(self.method, **dict(self.options))

    @property
    def title(self) -> str:
        return f"decades of the plateau of {self.row.title()}"

    def values(self, runs: Runs) -> pd.Series:
        return pd.Series({seed: one.decades for seed, one in ranges(runs, self.row, self.mode).items()}, dtype=float)

    def commands(self, runs: Runs) -> list[str]:
        return missing_command(runs, Group(runs.main_tasks, self.mode), self.row)
