"""Figures 6, 14 and 15 of the tangent paper: where the eigenfunctions of the tangent kernel live."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.experiments.ntk import KernelPair, Record
from src.experiments.registry import NTK
from src.reporting import style
from src.reporting.plots import legend_below, plain_numbers
from src.reporting.runs import Runs
from src.reporting.table import pair_name, printed
from src.reporting.tangent.claims import usual_rank
from src.runtime import results

SPAN = 1e4  # largest over least energy that a panel shows
COLOURS = {"task": style.BLUE, "heldout": style.SKY, "control": style.VERMILION}  # of groups of images


def eigenfunctions(runs: Runs) -> Figure:
    """The suite's first pair."""
    return _energies(runs, slice(0, 1))


def eigenfunctions_other_pairs(runs: Runs) -> Figure:
    return _energies(runs, slice(1, None))


def eigenfunctions_random_init(runs: Runs) -> Figure:
    return _energies(runs.random_init, slice(None))


def by_pair(records: Mapping[int, Record]) -> dict[tuple[str, str], list[KernelPair]]:
    """(task, control) -> what each seed has of them."""
    pairs: dict[tuple[str, str], list[KernelPair]] = {}
    for record in records.values():
        for pair in record["pairs"]:
            pairs.setdefault((pair["task"], pair["control"]), []).append(pair)
    return pairs


def _energies(runs: Runs, shown: slice) -> Figure:
    """Local energy of the leading eigenfunctions at each image of task, held-out images of it, and control."""
    records = runs.require(NTK, "trace")
    pairs = by_pair(records)
    names = list(pairs)[shown]
    if not names:
        command = runs.command(NTK, "trace", next(iter(records)))
        raise results.MissingResult(
            f"expected more than one pair in ntk_trace, found one; make them with: {command} --pairs A-B C-D"
        )
    size = (style.WIDTH, 0.55 + 2.25 * len(names))
    fig, grid = plt.subplots(len(names), 2, figsize=size, squeeze=False, width_ratios=(3, 2))
    for (left, right), name in zip(grid, names):
        _alone(left, name, pairs[name])
        _joint(right, name, pairs[name])
    return fig


def _alone(axes: Axes, name: tuple[str, str], entries: Sequence[KernelPair]) -> None:
    """The kernel on the task."""
    task, control = map(printed, name)
    index = usual_rank(entries[0]["ranks"])
    titles = {
        "task": f"{task}\n(diagonalised)", "heldout": f"{task}\n(held out)", "control": f"{control}\n(control)",
    }  # fmt: skip
    clouds = {
        group: np.concatenate([entry["nystrom"]["energy"][group][index] for entry in entries])
        for group in titles
        if group in entries[0]["nystrom"]["energy"]
    }
    _clouds(axes, clouds, titles)
    counts = [entry["nystrom"]["counts"][index] for entry in entries]
    ends = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)}–{max(counts)}"
    axes.set_ylabel(f"energy of {ends} eigenfunctions")
    ratio = clouds["heldout"].mean() / clouds["control"].mean()
    axes.set_title(f"Kernel on the task: held out / control = {ratio:.1f}")


def _joint(axes: Axes, name: tuple[str, str], entries: Sequence[KernelPair]) -> None:
    """The kernel on task and control together."""
    task, control = map(printed, name)
    index = usual_rank(entries[0]["ranks"])
    titles = {"task": f"{task}\n(task)", "control": f"{control}\n(control)"}
    clouds = {group: np.concatenate([entry["joint"]["energy"][group][index] for entry in entries]) for group in titles}
    _clouds(axes, clouds, titles)
    shuffled = np.array([entry["joint"]["ratio_of_shuffled_labels"][index] for entry in entries], float).mean()
    ratio = clouds["task"].mean() / clouds["control"].mean()
    axes.set_title(f"Joint kernel: {ratio:.1f} (shuffled {shuffled:.1f})")


def _clouds(axes: Axes, clouds: Mapping[str, np.ndarray], titles: Mapping[str, str]) -> None:
    """A strip of points for each group with its mean, on a logarithmic axis."""
    jitter = np.random.default_rng(0)
    every = np.concatenate(list(clouds.values()))
    floor = max(every[every > 0].min(), every.max() / SPAN)
    for position, (group, energy) in enumerate(clouds.items()):
        spread = jitter.uniform(-0.22, 0.22, len(energy))
        inside = energy >= floor
        look: dict[str, Any] = dict(color=COLOURS[group], alpha=0.55, lw=0)
        axes.scatter(position + spread[inside], energy[inside], s=9, **look)
        axes.scatter(position + spread[~inside], np.full((~inside).sum(), floor), s=14, marker="v", **look)
        mean = energy.mean()
        ends = [position - 0.33, position + 0.33]
        axes.plot(ends, [mean] * 2, color=style.BLACK, lw=1.8, solid_capstyle="butt")
        beside: dict[str, Any] = dict(textcoords="offset points", va="center", fontsize=7.5)
        axes.annotate(f"{mean:.3g}", (position + 0.35, mean), (1, 0), **beside)
    axes.set_yscale("log")
    plain_numbers(axes.yaxis)
    axes.grid(axis="x", visible=False)
    axes.set_xlim(-0.5, len(clouds) - 0.35)
    axes.set_xticks(range(len(clouds)), [titles[group] for group in clouds])


def ntk_ranks(runs: Runs) -> Figure:
    """The ratio of energies against the number of eigenfunctions: both reductions, with and without pre-training."""
    runs.require(NTK, "trace")
    starts = {"pre-trained": runs, "random initialization": runs.random_init}
    panels = [(title, model, r) for title, model in starts.items() for r in NTK.choices if model.of(NTK, r)]
    size = (max(4.4, 1.0 + 1.85 * len(panels)), 2.7)
    fig, grid = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axes, (title, model, reduction) in zip(grid[0], panels):
        for index, (pair, entries) in enumerate(by_pair(model.of(NTK, reduction)).items()):
            counts = np.mean([entry["nystrom"]["counts"] for entry in entries], 0)
            # nan, and no point, over no energy at all
            ratios = np.mean(np.array([entry["nystrom"]["ratio_heldout"] for entry in entries], float), 0)
            order = np.argsort(counts)
            look: dict[str, Any] = dict(color=style.PALETTE[index], marker=style.MARKERS[index])
            axes.plot(counts[order], ratios[order], label=pair_name(pair), **look)
        axes.axhline(1, color=style.GREY, lw=0.9)
        axes.set(xscale="log", yscale="log", title=f"{title}\n{reduction}", xlabel="eigenfunctions")
        for axis in (axes.xaxis, axes.yaxis):
            plain_numbers(axis)
    grid[0][0].set_ylabel("energy, held out / control")
    legend_below(fig, grid[0][0])
    return fig
