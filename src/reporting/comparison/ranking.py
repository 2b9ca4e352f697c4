"""Merging methods in order, with intervals, and brackets around those that cannot be told apart."""

from collections.abc import Callable, Sequence
from statistics import fmean as mean

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from src.reporting import style
from src.reporting.compare import Contestant
from src.reporting.methods import Group, adapts, registered_rows, results_of, rows
from src.reporting.runs import Runs
from src.reporting.statistics import Constant, Difference, difference
from src.reporting.table import of_fewer

ROW_HEIGHT = 0.2  # inches
MINIMUM, MERGING, ADAPTING = 2, "merged at once", "adapts to images"


def methods(runs: Runs) -> Figure:
    """Mean test accuracy of every registered method on the papers' first benchmark, best first."""
    contestants = ranked(runs)
    if len(contestants) < MINIMUM:
        there = [contestant.row for contestant in contestants]
        absent = next(row for row in registered_rows("merging") if row not in there)
        raise runs.missing_merge(*absent.overrides)
    fig, axes = plt.subplots(figsize=(style.WIDTH, ROW_HEIGHT * len(contestants) + 1.2))
    for index, contestant in enumerate(contestants):
        number = alone(contestant)
        color, marker = _look(adapts(runs, contestant.row))
        if ends := number.over_images:
            axes.plot(_possible(ends), [index + 0.14] * 2, color=color, lw=3.2, alpha=0.35, solid_capstyle="butt")
        if ends := number.over_seeds:
            axes.plot(_possible(ends), [index] * 2, color=color, lw=1.3)
        seeds = number.values  # a little above the mean, which would hide those that are close to it
        axes.plot(seeds, [index - 0.26] * len(seeds), color=color, marker=".", ms=3.2, mew=0, ls="none", alpha=0.8)
        axes.plot(
            number.estimate, index, color=color, marker=marker, ms=5, mec="white", mew=0.5, ls="none", clip_on=False
        )
    axes.set_xlim(right=100)
    tied = brackets(len(contestants), lambda i, j: contestants[i].minus(contestants[j]).told_apart)
    for column, group in columns_of(tied):
        x = 1.015 + 0.02 * column
        axes.plot([x, x], [group[0] - 0.25, group[-1] + 0.25], color=style.BLACK, lw=2.2, clip_on=False,
                  transform=axes.get_yaxis_transform(), solid_capstyle="butt")  # fmt: skip
    axes.set_yticks(range(len(contestants)), [_name(contestant) for contestant in contestants])
    axes.set_ylim(len(contestants) - 0.4, -0.6)
    axes.set_xlabel(f"test accuracy, mean over {len(runs.main_tasks)} tasks (%)")
    axes.grid(axis="y", visible=False)
    handles = [
        *(Line2D([], [], color=color, marker=marker, lw=1.3, label=label) for color, marker, label in _legend()),
        Line2D([], [], color=style.GREY, marker=".", ms=3.2, mew=0, ls="none", label="a seed"),
        Line2D([], [], color=style.GREY, lw=1.3, label="95 % over seeds"),
        Line2D([], [], color=style.GREY, lw=3.2, alpha=0.4, label="over test images and seeds"),
        Line2D([], [], color=style.BLACK, lw=2.2, label="not told apart"),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=7)
    return fig


def ranked(runs: Runs) -> list[Contestant]:
    """Every registered variant that has results, best first."""
    there = [Contestant(runs, row, "standard") for row in rows(results_of(runs, Group(runs.main_tasks))) if row.exact]
    return sorted(there, key=lambda contestant: -mean(contestant.values()))


def alone(contestant: Contestant) -> Difference:
    """A method's accuracy as a difference from nothing: with the intervals of one."""
    values, formulas = contestant.values(), contestant.formulas()
    nothing = dict.fromkeys(formulas, Constant(0.0))
    return difference(values, 0 * values, (formulas, nothing), contestant.runs.shared_images)


def brackets(count: int, told_apart: Callable[[int, int], bool]) -> list[range]:
    """The longest runs of neighbours of which none can be told apart from the first.

    A run that lies within the one before it is left out, and so is a run of one.
    """
    groups: list[range] = []
    for first in range(count):
        end = first + 1
        while end < count and not told_apart(first, end):
            end += 1
        if end - first > 1 and not (groups and end <= groups[-1].stop):
            groups.append(range(first, end))
    return groups


def columns_of(groups: Sequence[range]) -> list[tuple[int, range]]:
    """Each bracket with the leftmost column in which it touches no other."""
    ends: list[int] = []
    placed = []
    for group in groups:
        column = next((i for i, end in enumerate(ends) if end < group.start), len(ends))
        ends[column : column + 1] = [group[-1]]
        placed.append((column, group))
    return placed


def _possible(ends: tuple[float, float]) -> np.ndarray:
    """An interval without what no accuracy can be."""
    return np.clip(ends, 0, 100)


def _name(contestant: Contestant) -> str:
    fewer = of_fewer(len(contestant.values()), len(contestant.runs.seeds))
    return f"{contestant.title} {fewer}".strip()


def _look(adapting: bool) -> tuple[str, str]:
    return (style.PURPLE, "s") if adapting else (style.BLUE, "o")


def _legend() -> list[tuple[str, str, str]]:
    return [(*_look(False), MERGING), (*_look(True), ADAPTING)]
