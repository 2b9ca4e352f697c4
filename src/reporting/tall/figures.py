"""Figures of the TALL paper: the masks, and consensus merging by its threshold."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from src.reporting import style
from src.reporting.methods import Group, Row, in_order, results_of, variant_row
from src.reporting.plots import Drawing, bars, legend_below, matrices, method_looks, sd
from src.reporting.runs import Runs
from src.reporting.table import printed
from src.reporting.tall.tables import SWEPT, THRESHOLD, consensus_rows, threshold_sweep

Masks = Mapping[Row, Mapping[int, Any]]  # method -> seed -> what its masks are like


def masks(runs: Runs, group: Group) -> Masks:
    """Of the registered methods that make a mask for each task."""
    of_method: dict[Row, dict[int, Any]] = {}
    for result in results_of(runs, group):
        row, described = Row.of(result), result.record["info"].get("masks")
        if described and row.exact:
            of_method.setdefault(row, {})[result.seed] = described
    return {row: of_method[row] for row in in_order(of_method)}


def _require_masks(runs: Runs) -> Masks:
    if described := masks(runs, Group(runs.main_tasks)):
        return described
    raise runs.missing_merge("method=tall_mask")


def mask_density(runs: Runs) -> Figure:
    """Share of weights that each task's mask keeps."""
    by_row, tasks = _require_masks(runs), runs.main_tasks
    looks = method_looks(runs, by_row)
    fig, axes = plt.subplots(figsize=(style.WIDTH, 2.6))
    for index, (row, described) in enumerate(by_row.items()):
        values = [100 * pd.Series({s: m["density"][task] for s, m in described.items()}) for task in tasks]
        bars(axes, values, index, len(by_row), looks[row]["color"], row.title())
    axes.set_xticks(range(len(tasks)), [printed(task) for task in tasks])
    axes.grid(axis="x", visible=False)
    axes.set(ylabel="weights kept (%)", title="Density of the masks", ylim=(0, None))
    axes.legend(loc="upper right", ncols=len(by_row), bbox_to_anchor=(1, 1.14))
    return fig


def weights_shared(runs: Runs) -> Figure:
    """Share of weights that exactly k tasks use, for each benchmark."""
    _require_masks(runs)
    panels = {n: by_row for n in runs.benchmarks if (by_row := masks(runs, Group(runs.suite_tasks[:n])))}
    size = (style.WIDTH if len(panels) > 1 else 5.2, 2.9)
    fig, grid = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharey=True)
    for axes, (count, by_row) in zip(grid[0], panels.items()):
        _usage(axes, count, by_row, method_looks(runs, by_row))
    grid[0][0].set_ylabel("weights used by exactly k tasks (%)")
    legend_below(fig, grid[0][0])
    return fig


def _usage(axes: Axes, count: int, by_row: Masks, looks: Mapping[Row, Any]) -> None:
    shares = {
        row: [100 * pd.Series({s: m["usage"][k] for s, m in described.items()}) for k in range(count + 1)]
        for row, described in by_row.items()
    }
    for index, (row, values) in enumerate(shares.items()):
        bars(axes, values, index, len(shares), looks[row]["color"], row.title())
    axes.grid(axis="x", visible=False)
    axes.set(xlabel="k", title=f"{count} tasks", xlim=(-0.7, count + 0.7))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=11))
    size = 7.5 if count < 14 else 6.0  # bars of 20 tasks stand close
    look: dict[str, Any] = dict(textcoords="offset points", ha="center", va="bottom", rotation=90, fontsize=size)
    for k, name in ((0, "catastrophic"), (1, "selfish"), (count, "universal")):
        height = max(values[k].mean() for values in shares.values())
        axes.annotate(name, (k, height), (0, 5), **look)
    highest = max(value.mean() for values in shares.values() for value in values)
    axes.set_ylim(0, max(axes.get_ylim()[1], 1.65 * highest))  # room for the names


def mask_overlap(runs: Runs) -> Figure:
    """Intersection over union of the masks of every two tasks."""
    maps = {
        row.title(): np.mean([m["iou"] for m in described.values()], 0)
        for row, described in _require_masks(runs).items()
    }
    return matrices(maps, runs.main_tasks, "intersection over union", own_scales=True)


def consensus_thresholds(runs: Runs) -> Figure:
    """Accuracy against the number of tasks that must use a weight."""
    groups = {n: Group(runs.suite_tasks[:n]) for n in runs.benchmarks}
    sweeps = {n: {row: threshold_sweep(runs, group, row) for row in consensus_rows()} for n, group in groups.items()}
    # Two points are those that every run has, task arithmetic and the default, and no sweep.
    sweeps = {n: by_row for n, by_row in sweeps.items() if max(map(len, by_row.values())) > 2}
    if not sweeps:
        raise runs.missing_merge(f"method={SWEPT}", f"method.{THRESHOLD}=3")
    size = (style.WIDTH if len(sweeps) > 1 else 4.6, 2.8)
    fig, grid = plt.subplots(1, len(sweeps), figsize=size, squeeze=False)
    looks = method_looks(runs, consensus_rows())
    for axes, (count, by_row) in zip(grid[0], sweeps.items()):
        for row, sweep in by_row.items():
            if sweep:
                values = [100 * v.mean() for v in sweep.values()]
                spread = [100 * (sd(v) or 0) for v in sweep.values()]
                label = row.title() if len(sweep) > 1 else f"{row.title()}, k = {next(iter(sweep))} alone"
                axes.errorbar(list(sweep), values, yerr=spread, label=label, elinewidth=0.8, **looks[row])
        zeroshot = runs.values(metric="accuracy", **groups[count].columns, **variant_row("zeroshot").columns)
        if not zeroshot.empty:
            _floor(axes, 100 * zeroshot.mean())
        axes.set(xlabel="k: tasks that must use a weight", title=f"{count} tasks")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[0][0].set_ylabel("mean test accuracy (%)")
    legend_below(fig, grid[0][0])
    return fig


def _floor(axes: Axes, level: float) -> None:
    axes.axhline(level, color=style.GREY, lw=0.9, ls=style.DASHED)
    look: dict[str, Any] = dict(textcoords="offset points", fontsize=7.5, color=style.GREY)
    axes.annotate("zero-shot", (0, level), (2, 3), **look)


FIGURES = (
    Drawing("mask_density", mask_density),
    Drawing("weights_shared", weights_shared),
    Drawing("mask_overlap", mask_overlap),
    Drawing("consensus_thresholds", consensus_thresholds),
)
