"""Figures 3, 9 and 10 of the tangent paper: the disentanglement error ξ over two coefficients."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from src.analysis.disentanglement import ErrorGrid
from src.datasets import registry
from src.experiments.disentanglement import Record
from src.experiments.registry import DISENTANGLEMENT
from src.modes import MODES
from src.reporting import style
from src.reporting.runs import Runs
from src.reporting.table import pair_name, printed
from src.runtime import results
from src.runtime.messages import few

Pair = tuple[str, ...]
BOX = "#E3120B"  # red, as in the paper


def disentanglement(runs: Runs) -> Figure:
    """Non-linear above post-hoc, one column for each pair."""
    return _of_pairs(runs, ("standard", "posthoc"))


def disentanglement_linear(runs: Runs) -> Figure:
    return _of_pairs(runs, ("linear",))


def _of_pairs(runs: Runs, modes: Sequence[str]) -> Figure:
    rows = [(MODES[mode].title, mean_grids(runs.require(DISENTANGLEMENT, mode))) for mode in modes]
    titled = [(title, {pair_name(pair): (pair, grid) for pair, grid in grids.items()}) for title, grids in rows]
    return _heat_maps(titled, same_tasks=False)


def disentanglement_scale(runs: Runs) -> Figure:
    """One pair over the models of the suite, non-linear above post-hoc."""
    pair = registry.suite(runs.suite).pairs[1]
    rows = []
    for mode in ("standard", "posthoc"):
        runs.require(DISENTANGLEMENT, mode)
        grids = {model.model: mean_grids(model.of(DISENTANGLEMENT, mode)) for model in runs.siblings}
        columns = {model: (pair, of_model[pair]) for model, of_model in grids.items() if pair in of_model}
        rows.append((MODES[mode].title, columns))
    if len(rows[0][1]) < 2:
        raise results.MissingResult(f"expected two models of suite {runs.suite}, found {few(rows[0][1])}; fig03 has it")
    return _heat_maps(rows, same_tasks=True)


def mean_grids(records: Mapping[int, Record]) -> dict[Pair, ErrorGrid]:
    """Pair -> its grid, with ξ averaged over seeds."""
    grids: dict[Pair, list[ErrorGrid]] = {}
    for record in records.values():
        for pair in record["pairs"]:
            grids.setdefault(tuple(pair["tasks"]), []).append(pair)
    means = {}
    for tasks, of_pair in grids.items():
        means[tasks] = of_pair[0].copy()
        means[tasks]["error"] = np.mean([grid["error"] for grid in of_pair], 0)
        means[tasks]["box_mean"] = float(np.mean([grid["box_mean"] for grid in of_pair]))
    return means


def _heat_maps(rows: Sequence[tuple[str, Mapping[str, tuple[Pair, Any]]]], same_tasks: bool) -> Figure:
    """ξ(α1, α2) of rows x columns on one scale, the search space in red. same_tasks: whether columns share an axis."""
    columns = list(rows[0][1])
    highest = max(grid["error"].max() for _, entries in rows for _, grid in entries.values())
    size = (1.55 + 2.0 * len(columns), 0.6 + 2.05 * len(rows))
    fig, panels = plt.subplots(len(rows), len(columns), figsize=size, squeeze=False, sharex=True, sharey="row")
    for line, (row, (title, entries)) in enumerate(zip(panels, rows)):
        for axes, column in zip(row, columns):
            if column not in entries:
                axes.set_axis_off()
                continue
            tasks, grid = entries[column]
            image = _heat_map(axes, grid, highest)
            head = f"{column}\n" if line == 0 else ""
            axes.set_title(f"{head}in the box: {100 * grid['box_mean']:.1f} %", fontsize=8.5, loc="center")
            if line == len(rows) - 1:
                axes.set_xlabel(f"α of {printed(tasks[0])}")
            if not same_tasks or axes is row[0]:
                axes.set_ylabel(f"α of {printed(tasks[1])}")
        row[0].annotate(
            title, (0, 0.5), (-44, 0), xycoords="axes fraction", textcoords="offset points", rotation=90, va="center",
            ha="center", fontsize=9, weight="bold",
        )  # fmt: skip
    shape: dict[str, Any] = dict(shrink=0.85, aspect=28) if len(rows) > 1 else dict(shrink=0.95, aspect=16)
    bar = fig.colorbar(image, ax=panels, pad=0.015, **shape)
    bar.set_label("disentanglement error ξ (%)")
    bar.outline.set_visible(False)
    return fig


def _heat_map(axes: Axes, grid: Any, highest: float) -> Any:
    alphas = grid["alphas"]
    image = axes.pcolormesh(alphas, alphas, 100 * grid["error"].T, cmap=style.ERRORS, vmin=0, vmax=100 * highest)
    image.set_rasterized(True)
    box = grid["box"]
    axes.add_patch(Rectangle((-box, -box), 2 * box, 2 * box, fill=False, ec=BOX, lw=1.6))
    style.outlined(axes)
    axes.set_aspect("equal")
    ticks = [alpha for alpha in (-3, -2, -1, 0, 1, 2, 3) if alphas[0] <= alpha <= alphas[-1]]
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    return image
