"""Figures of the tangent paper: non-linear advantage, addition, negation; others lie in files beside this one."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from src.experiments.registry import ADDITION, NEGATION, SINGLE_TASK, Experiment
from src.modes import EVALUATED, MODES
from src.reporting import style
from src.reporting.plots import Drawing, banded, mode_handle, sd
from src.reporting.runs import Runs
from src.reporting.table import printed
from src.reporting.tangent.heat_maps import disentanglement, disentanglement_linear, disentanglement_scale
from src.reporting.tangent.kernel_figures import (
    eigenfunctions,
    eigenfunctions_other_pairs,
    eigenfunctions_random_init,
    ntk_ranks,
)
from src.reporting.tangent.tables import guess_rate

MARKER = 0.075  # inches of height for each marker of a task: none hides another


def posthoc_advantage(runs: Runs) -> Figure:
    return _advantage(runs, "posthoc")


def linear_advantage(runs: Runs) -> Figure:
    return _advantage(runs, "linear")


def _advantage(runs: Runs, mode: str) -> Figure:
    """Single-task accuracies of `mode` against non-linear ones, and each task's (acc_nonlin − acc_lin) / (1 − 1/C)."""
    for required in ("standard", mode):
        runs.require(SINGLE_TASK, required)
    x, y = _single_task(runs, "standard"), _single_task(runs, mode)
    tasks = [task for task in runs.tasks if not x[task].empty and not y[task].empty]
    gaps = {task: (x[task] - y[task]).dropna() / (1 - guess_rate(task)) for task in tasks}
    order = sorted(tasks, key=lambda task: gaps[task].mean())
    fig, (left, right) = plt.subplots(1, 2, figsize=(style.WIDTH, 3.1), width_ratios=(1, 1.15))
    _diagonal(left, *(min(of[task].mean() - (sd(of[task]) or 0) for task in tasks) for of in (x, y)))
    for position, task in enumerate(order):
        again, i = divmod(tasks.index(task), 8)  # from the ninth task on colours come again, with other markers
        color, marker = style.PALETTE[i], style.MARKERS[(i + again) % 8]
        look: dict[str, Any] = dict(color=color, marker=marker, ls="none", ms=5.5, elinewidth=0.8)
        look |= dict(mfc="none", mew=1.2)  # hollow: equal accuracies do not hide each other
        left.errorbar(x[task].mean(), y[task].mean(), xerr=sd(x[task]), yerr=sd(y[task]), **look)
        right.plot([0, gaps[task].mean()], [position, position], color=look["color"], lw=1.4, zorder=1)
        right.errorbar(gaps[task].mean(), position, xerr=sd(gaps[task]), **look)
    left.set(xlabel="non-linear fine-tuning, test accuracy (%)")
    left.set(ylabel=f"{MODES[mode].title} (%)", title="Single-task accuracy, symbols as right")
    right.set_yticks(range(len(tasks)), [printed(task) for task in order])
    right.axvline(0, color=style.GREY, lw=0.9)
    right.grid(axis="y", visible=False)
    right.set(xlabel=f"(non-linear − {MODES[mode].short}) / (1 − 1/C), points", title="Non-linear advantage")
    return fig


def _single_task(runs: Runs, mode: str) -> dict[str, pd.Series]:
    what = {"experiment": SINGLE_TASK.name, "mode": mode, "metric": "accuracy"}
    return {task: 100 * runs.values(task=task, **what) for task in runs.tasks}


def _diagonal(axes: Axes, *lowest: float) -> None:
    """Axes from below the lowest values of x and of y to 100 %, each with a scale of its own, and the line x = y."""
    axes.plot([0, 100], [0, 100], color=style.GREY, lw=0.9, ls=(0, (4, 3)), zorder=1)
    ends = [(max(0.0, low - 0.04 * (100 - low)), 100 + 0.04 * (100 - low)) for low in lowest]
    axes.set(xlim=ends[0], ylim=ends[1])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    along: dict[str, Any] = dict(rotation=45, transform_rotates_text=True, rotation_mode="anchor")
    place = 0.7 * max(lowest) + 0.3 * 100
    axes.text(place, place, "equal", color=style.GREY, fontsize=7.5, ha="center", va="bottom", **along)


def addition(runs: Runs) -> Figure:
    """Validation accuracy against α, absolute and normalised, for each mode."""
    by_mode = _by_mode(runs, ADDITION)
    fig, panels = plt.subplots(1, 2, figsize=(style.WIDTH, 2.9))
    titles = {"mean_accuracy": "Absolute", "mean_normalised": "Normalised by single-task"}
    for axes, (field, title) in zip(panels, titles.items()):
        for mode, records in by_mode.items():
            row = MODES[mode]
            alphas = next(iter(records.values()))["settings"]
            curves = 100 * np.array([record["val"][field] for record in records.values()])
            mean = banded(axes, alphas, curves, color=row.colour, ls=row.line)
            chosen = runs.values(experiment=ADDITION.name, mode=mode, metric="chosen").mean()
            look: dict[str, Any] = dict(color=row.colour, marker=row.marker, mec="white", mew=1, ms=8)
            axes.plot(chosen, np.interp(chosen, alphas, mean), zorder=5, **look)
        axes.set(xlabel="α", ylabel="mean validation accuracy (%)", title=title, xlim=(0, 1))
    handles = [mode_handle(mode) for mode in by_mode]
    fig.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(4, len(handles)),
        handlelength=4,  # else the marker hides whether a line is dashed
        title="marker: the α chosen",
        title_fontsize=8,
    )
    return fig


def _by_mode(runs: Runs, experiment: Experiment) -> dict[str, dict[int, Any]]:
    """Mode -> seed -> record, of the modes that have results. Raises MissingResult where none has."""
    by_mode = {mode: records for mode in EVALUATED if (records := runs.of(experiment, mode))}
    return by_mode or {EVALUATED[0]: runs.require(experiment, EVALUATED[0])}


def negation(runs: Runs) -> Figure:
    """Target against control accuracy along α on validation, and each task's target accuracy on test."""
    by_mode = _by_mode(runs, NEGATION)
    runs.require(SINGLE_TASK, "none")
    markers = len(_first(by_mode)["tasks"]) * (1 + len(by_mode))
    fig, (left, right) = plt.subplots(1, 2, figsize=(style.WIDTH, max(3.2, 1.2 + MARKER * markers)))
    _forgetting_curves(left, by_mode)
    _forgotten_tasks(right, runs, by_mode)
    handles = [mode_handle(mode) for mode in ("none", *by_mode)]
    fig.legend(handles=handles, loc="outside lower center", ncols=4, handlelength=3)
    return fig


def _forgetting_curves(axes: Axes, by_mode: Mapping[str, Mapping[int, Any]]) -> None:
    for mode, records in by_mode.items():
        targets, controls = (
            np.array([np.mean([task["val"][part] for task in r["tasks"].values()], 0) for r in records.values()])
            for part in ("target", "control")
        )
        before = np.array([record["pretrained_control"]["val"] for record in records.values()])
        share_kept = controls / before[:, None]
        axes.plot(100 * share_kept.mean(0), 100 * targets.mean(0), color=MODES[mode].colour, ls=MODES[mode].line)
    threshold = 100 * _first(by_mode)["control_threshold"]
    axes.axvline(threshold, color=style.GREY, lw=0.9, ls=(0, (4, 3)))
    small: dict[str, Any] = dict(rotation=90, va="top", ha="right", fontsize=7.5, color=style.GREY)
    axes.text(threshold, 0.97, f"{threshold:g} % kept ", transform=axes.get_xaxis_transform(), **small)
    axes.invert_xaxis()
    axes.set(xlabel="control accuracy kept, validation (%)", ylabel="target accuracy, validation (%)")
    axes.set_title("Along α, mean of tasks")
    axes.set_ylim(0, None)


def row_step(columns: int) -> float:
    """Between the markers of a task, whose row is 1 high: all of them stay in it."""
    return min(0.24, 0.85 / columns)


def _forgotten_tasks(axes: Axes, runs: Runs, by_mode: Mapping[str, Mapping[int, Any]]) -> None:
    tasks = list(_first(by_mode)["tasks"])
    start = {"experiment": SINGLE_TASK.name, "mode": "none", "metric": "accuracy"}
    order = sorted(tasks, key=lambda task: -runs.values(task=task, **start).mean())
    heights = np.arange(len(order))[::-1]
    columns = {mode: {"experiment": NEGATION.name, "mode": mode, "metric": "target_accuracy"} for mode in by_mode}
    step = row_step(len(columns))
    for column, (mode, what) in enumerate({"none": start, **columns}.items()):
        values = [100 * runs.values(task=task, **what) for task in order]
        row = MODES[mode]
        look: dict[str, Any] = dict(color=row.colour, marker=row.marker, ls="none", ms=4.8, mec="white", mew=0.4)
        spread = [sd(v) or 0 for v in values]
        shifted = heights + step * (len(columns) / 2 - column)  # else equal accuracies hide each other
        axes.errorbar([v.mean() for v in values], shifted, xerr=spread, elinewidth=0.8, **look)
    for height in heights[:-1]:
        axes.axhline(height - 0.5, color=style.GREY, lw=0.4)
    axes.set_yticks(heights, [printed(task) for task in order])
    axes.set(xlabel="target accuracy, test (%)", title="At the chosen α", xlim=(-1.5, 100))


def _first(by_mode: Mapping[str, Mapping[int, Any]]) -> Any:
    return next(iter(next(iter(by_mode.values())).values()))


FIGURES = (
    Drawing("fig02_posthoc_advantage", posthoc_advantage),
    Drawing("fig05_linear_advantage", linear_advantage),
    Drawing("fig03_disentanglement", disentanglement),
    Drawing("fig10_disentanglement_linear", disentanglement_linear),
    Drawing("fig09_disentanglement_scale", disentanglement_scale),
    Drawing("fig06_eigenfunctions", eigenfunctions),
    Drawing("fig14_eigenfunctions_other_pairs", eigenfunctions_other_pairs),
    Drawing("fig15_eigenfunctions_random_init", eigenfunctions_random_init),
    Drawing("ntk_ranks", ntk_ranks),
    Drawing("addition", addition),
    Drawing("negation", negation),
)
