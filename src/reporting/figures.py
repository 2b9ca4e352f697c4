"""The papers' figures as functions of results: Runs -> matplotlib figure, named in FIGURES.

Where there are several seeds, curves and heat maps are means over them, with bands or bars of one standard deviation,
and clouds of points are pooled. A figure whose results are missing raises results.MissingResult.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from scipy.special import expit

from src.datasets import registry
from src.datasets.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from src.reporting import style
from src.reporting.runs import (
    MODE_NAMES,
    MODES,
    SINGLE_TASK,
    Merges,
    PerSeed,
    Records,
    Runs,
    chance,
    printed,
    usual_rank,
)
from src.reporting.tables import ADAPTED, CONCRETE, METHODS, benchmarks, threshold_sweep
from src.run import Run
from src.runtime import results

FIGURES: dict[str, Callable[[Runs], Figure]] = {}  # filled by `figure`


def figure(name: str):
    """Make a function of Runs known to make_figures.py under `name`, which is also the file's."""

    def decorate(function: Callable[[Runs], Figure]) -> Callable[[Runs], Figure]:
        def drawn(runs: Runs) -> Figure:
            with style.styled():
                return function(runs)

        FIGURES[name] = drawn
        return drawn

    return decorate


# --- The tangent paper: non-linear advantage -----------------------------------------------------------------------


@figure("fig02_posthoc_advantage")
def posthoc_advantage(runs: Runs) -> Figure:
    return _advantage(runs, "posthoc")


@figure("fig05_linear_advantage")
def linear_advantage(runs: Runs) -> Figure:
    return _advantage(runs, "linear")


def _advantage(runs: Runs, mode: str) -> Figure:
    """Single-task accuracies of `mode` against non-linear ones, and each task's (acc_nonlin − acc_lin) / (1 − 1/C)."""
    nonlinear, other = runs.require(SINGLE_TASK["standard"]), runs.require(SINGLE_TASK[mode])
    tasks = [task for task in runs.tasks if all(task in r for r in (*nonlinear.values(), *other.values()))]
    fig, (left, right) = plt.subplots(1, 2, figsize=(style.WIDTH, 3.1), width_ratios=(1, 1.15))
    x, y = ([PerSeed({s: 100 * r[task] for s, r in found.items()}) for task in tasks] for found in (nonlinear, other))
    gaps = [(one - two).map(lambda gap, task=task: gap / (1 - chance(task))) for one, two, task in zip(x, y, tasks)]
    order = np.argsort([gap.mean for gap in gaps])
    low = min(value.mean for value in (*x, *y))
    low = max(0, 10 * np.floor((low - 2) / 10))
    left.plot([low, 100], [low, 100], color=style.GREY, lw=0.9, ls=(0, (4, 3)), zorder=1)
    middle = (low + 100) / 2
    left.annotate(
        "equal", (middle, middle), (-5, 5), textcoords="offset points", color=style.GREY, fontsize=7.5, rotation=45,
        ha="center", va="center",
    )  # fmt: skip
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    for place, i in enumerate(order):
        look = dict(color=style.PALETTE[i % 8], marker=style.MARKERS[i % 8], ls="none", mec="white", mew=0.6, ms=7)
        left.errorbar(x[i].mean, y[i].mean, xerr=_sd(x[i]), yerr=_sd(y[i]), elinewidth=0.8, **look)
        right.plot([0, gaps[i].mean], [place, place], color=look["color"], lw=1.4, zorder=1)
        right.errorbar(gaps[i].mean, place, xerr=_sd(gaps[i]), elinewidth=0.8, **look)
    ends = (low, 100 + 0.04 * (100 - low))
    left.set(xlim=ends, ylim=ends, aspect="equal", xlabel="non-linear fine-tuning, test accuracy (%)")
    left.set(ylabel=f"{MODE_NAMES[mode]} (%)", title="Single-task accuracy")
    right.set_yticks(range(len(tasks)), [printed(tasks[i]) for i in order])
    right.axvline(0, color=style.GREY, lw=0.9)
    right.grid(axis="y", visible=False)
    right.set(xlabel="(non-linear − linear) / (1 − 1/C), points", title="Non-linear advantage")
    return fig


def _sd(values: PerSeed) -> float | None:
    return values.sd if len(values) > 1 else None


# --- The tangent paper: disentanglement ----------------------------------------------------------------------------


@figure("fig03_disentanglement")
def disentanglement(runs: Runs) -> Figure:
    """Non-linear above post-hoc, one column for each pair."""
    return _heat_maps([(MODE_NAMES[mode], _errors(runs, mode)) for mode in ("standard", "posthoc")])


@figure("fig10_disentanglement_linear")
def disentanglement_linear(runs: Runs) -> Figure:
    return _heat_maps([(MODE_NAMES["linear"], _errors(runs, "linear"))])


@figure("fig09_disentanglement_scale")
def disentanglement_scale(runs: Runs) -> Figure:
    """One pair over the models of the suite, non-linear above post-hoc."""
    pair = registry.suite(runs.suite).pairs[1]
    rows = []
    for mode in ("standard", "posthoc"):
        runs.require(f"disentanglement_{mode}")
        found = {model.model: _errors(model, mode) for model in runs.siblings() if model.get(f"disentanglement_{mode}")}
        rows.append((MODE_NAMES[mode], {model: errors[pair] for model, errors in found.items() if pair in errors}))
    return _heat_maps(rows, axes_of=pair)


def _errors(runs: Runs, mode: str) -> dict[Any, dict]:
    """pair -> its record, with ξ averaged over seeds."""
    found: dict[tuple[str, str], list[dict]] = {}
    for record in runs.require(f"disentanglement_{mode}").values():
        for pair in record["pairs"]:
            found.setdefault(tuple(pair["tasks"]), []).append(pair)
    return {
        tasks: pairs[0]
        | {"error": np.mean([p["error"] for p in pairs], 0), "box_mean": np.mean([p["box_mean"] for p in pairs])}
        for tasks, pairs in found.items()
    }


def _heat_maps(rows: Sequence[tuple[str, dict[Any, dict]]], axes_of: tuple[str, str] | None = None) -> Figure:
    """ξ(α1, α2) of rows x columns on one scale, the search space in red."""
    columns = list(rows[0][1])
    most = max(entry["error"].max() for _, entries in rows for entry in entries.values())
    size = (1.55 + 2.0 * len(columns), 0.6 + 2.05 * len(rows))
    fig, grid = plt.subplots(len(rows), len(columns), figsize=size, squeeze=False, sharex=True, sharey="row")
    for line, (row, (title, entries)) in enumerate(zip(grid, rows)):
        for axes, column in zip(row, columns):
            if column not in entries:
                axes.set_axis_off()
                continue
            entry = entries[column]
            first, second = entry["alphas"]
            image = axes.pcolormesh(first, second, 100 * entry["error"].T, cmap=style.ERRORS, vmin=0, vmax=100 * most)
            image.set_rasterized(True)
            box = entry["box"]
            axes.add_patch(Rectangle((-box, -box), 2 * box, 2 * box, fill=False, ec="#E3120B", lw=1.6))
            style.outlined(axes)
            axes.set_aspect("equal")
            ticks = [alpha for alpha in (-3, -2, -1, 0, 1, 2, 3) if first[0] <= alpha <= first[-1]]
            axes.set_xticks(ticks)
            axes.set_yticks(ticks)
            name = column if axes_of else " – ".join(map(printed, column))
            head = f"{name}\n" if line == 0 else ""
            axes.set_title(f"{head}in the box: {100 * entry['box_mean']:.1f} %", fontsize=8.5, loc="center")
            tasks = axes_of or column
            if line == len(rows) - 1:
                axes.set_xlabel(f"α of {printed(tasks[0])}")
            if not axes_of or axes is row[0]:
                axes.set_ylabel(f"α of {printed(tasks[1])}")
        row[0].annotate(
            title, (0, 0.5), (-44, 0), xycoords="axes fraction", textcoords="offset points", rotation=90, va="center",
            ha="center", fontsize=9, weight="bold",
        )  # fmt: skip
    bar = fig.colorbar(
        image, ax=grid, shrink=0.85 if len(rows) > 1 else 0.95, aspect=28 if len(rows) > 1 else 16, pad=0.015
    )
    bar.set_label("disentanglement error ξ (%)")
    bar.outline.set_visible(False)
    return fig


# --- The tangent paper: localization of eigenfunctions -------------------------------------------------------------


@figure("fig06_eigenfunctions")
def eigenfunctions(runs: Runs) -> Figure:
    """The suite's first pair."""
    return _energies(runs, slice(0, 1))


@figure("fig14_eigenfunctions_other_pairs")
def eigenfunctions_other_pairs(runs: Runs) -> Figure:
    return _energies(runs, slice(1, None))


@figure("fig15_eigenfunctions_random_init")
def eigenfunctions_random_init(runs: Runs) -> Figure:
    return _energies(runs.random_init, slice(None))


def _energies(runs: Runs, which: slice) -> Figure:
    """Local energy of the leading eigenfunctions at each image of task, held-out images of it, and control."""
    records = runs.require("ntk_trace")
    found: dict[tuple[str, str], list[dict]] = {}
    for record in records.values():
        for pair in record["pairs"]:
            found.setdefault((pair["task"], pair["control"]), []).append(pair)
    pairs = list(found)[which]
    if not pairs:
        command = runs.command("ntk_trace", next(iter(records)))
        raise results.MissingResult(
            f"expected more than one pair in ntk_trace, found one; make them with: {command} --pairs A-B C-D"
        )
    fig, grid = plt.subplots(
        len(pairs), 2, figsize=(style.WIDTH, 0.55 + 2.25 * len(pairs)), squeeze=False, width_ratios=(3, 2)
    )
    for row, (task, control) in zip(grid, pairs):
        entries = found[task, control]
        place = usual_rank(entries[0]["ranks"])
        counts = [entry["nystrom"]["counts"][place] for entry in entries]
        titles = {
            "task": f"{printed(task)}\n(diagonalised)", "heldout": f"{printed(task)}\n(held out)",
            "control": f"{printed(control)}\n(control)",
        }  # fmt: skip
        for axes, kind, over in ((row[0], "nystrom", "heldout"), (row[1], "joint", "task")):
            clouds = {
                group: np.concatenate([entry[kind]["energy"][group][place] for entry in entries])
                for group in titles
                if group in entries[0][kind]["energy"]
            }
            _clouds(axes, clouds, titles if kind == "nystrom" else titles | {"task": f"{printed(task)}\n(task)"})
            ratio = clouds[over].mean() / clouds["control"].mean()
            if kind == "nystrom":
                axes.set_ylabel(f"energy of {_range(counts)} eigenfunctions")
                axes.set_title(f"Kernel on the task: held out / control = {ratio:.1f}")
            else:
                shuffled = np.mean(np.array([e[kind]["ratio_of_shuffled_labels"][place] for e in entries], float))
                axes.set_title(f"Joint kernel: {ratio:.1f} (shuffled {shuffled:.1f})")
    return fig


def _clouds(axes: Axes, clouds: dict[str, np.ndarray], titles: dict[str, str]) -> None:
    """A strip of points for each group with its mean, on a logarithmic axis."""
    colours = {"task": style.BLUE, "heldout": style.SKY, "control": style.VERMILION}
    jitter = np.random.default_rng(0)
    floor = min(cloud[cloud > 0].min() for cloud in clouds.values() if (cloud > 0).any())
    for place, (group, energy) in enumerate(clouds.items()):
        spread = jitter.uniform(-0.22, 0.22, len(energy))
        axes.scatter(place + spread, np.maximum(energy, floor), s=9, color=colours[group], alpha=0.55, lw=0)
        axes.plot([place - 0.33, place + 0.33], [energy.mean()] * 2, color=style.BLACK, lw=1.8, solid_capstyle="butt")
        axes.annotate(
            f"{energy.mean():.3g}",
            (place + 0.35, energy.mean()),
            (1, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )
    axes.set_yscale("log")
    _plain_numbers(axes.yaxis)
    axes.grid(axis="x", visible=False)
    axes.set_xlim(-0.5, len(clouds) - 0.35)
    axes.set_xticks(range(len(clouds)), [titles[group] for group in clouds])


def _plain_numbers(axis) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5 of each decade, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _range(counts: Sequence[int]) -> str:
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)}–{max(counts)}"


@figure("ntk_ranks")
def ntk_ranks(runs: Runs) -> Figure:
    """The ratio of energies against the number of eigenfunctions: both reductions, with and without pre-training."""
    runs.require("ntk_trace")
    starts = {"pre-trained": runs, "random initialization": runs.random_init}
    panels = [(title, m, r) for title, m in starts.items() for r in ("trace", "sum") if m.get(f"ntk_{r}")]
    fig, grid = plt.subplots(
        1, len(panels), figsize=(max(4.4, 1.0 + 1.85 * len(panels)), 2.7), sharey=True, squeeze=False
    )
    for axes, (title, model, reduction) in zip(grid[0], panels):
        lines: dict[tuple[str, str], list[tuple]] = {}
        for record in model.get(f"ntk_{reduction}").values():
            for pair in record["pairs"]:
                lines.setdefault((pair["task"], pair["control"]), []).append(
                    (pair["nystrom"]["counts"], pair["nystrom"]["ratio_heldout"])
                )
        for number, (pair, found) in enumerate(lines.items()):
            counts = np.mean([c for c, _ in found], 0)
            ratios = np.mean(np.array([r for _, r in found], float), 0)  # nan, and no point, over no energy at all
            order = np.argsort(counts)
            axes.plot(
                counts[order],
                ratios[order],
                color=style.PALETTE[number],
                marker=style.MARKERS[number],
                label=" – ".join(map(printed, pair)),
            )
        axes.axhline(1, color=style.GREY, lw=0.9)
        axes.set(xscale="log", yscale="log", title=f"{title}\n{reduction}", xlabel="eigenfunctions")
        for axis in (axes.xaxis, axes.yaxis):
            _plain_numbers(axis)
    grid[0][0].set_ylabel("energy, held out / control")
    _legend_below(fig, grid[0][0])
    return fig


def _legend_below(fig: Figure, axes: Axes, columns: int = 4) -> None:
    handles, labels = axes.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))


# --- The tangent paper: addition and negation ----------------------------------------------------------------------


@figure("addition")
def addition(runs: Runs) -> Figure:
    """Validation accuracy against α, absolute and normalised, for each mode."""
    found = {mode: runs.get(f"addition_{mode}") for mode in MODES if runs.get(f"addition_{mode}")}
    if not found:
        runs.require(f"addition_{MODES[0]}")
    fig, panels = plt.subplots(1, 2, figsize=(style.WIDTH, 2.9))
    for axes, field, title in zip(
        panels, ("mean_accuracy", "mean_normalised"), ("Absolute", "Normalised by single-task")
    ):
        for mode, records in found.items():
            alphas = next(iter(records.values()))["settings"]
            curves = 100 * np.array([record["val"][field] for record in records.values()])
            mean = _curve(axes, alphas, curves, mode)
            chosen = np.mean([next(iter(record["chosen"].values())) for record in records.values()])
            look = dict(color=style.MODE_COLOURS[mode], marker=style.MODE_MARKERS[mode], mec="white", mew=1, ms=8)
            axes.plot(chosen, np.interp(chosen, alphas, mean), zorder=5, **look)
        axes.set(xlabel="α", ylabel="mean validation accuracy (%)", title=title, xlim=(0, 1))
    handles = [_mode_handle(mode) for mode in found]
    fig.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), title="marker: the α chosen", title_fontsize=8
    )
    return fig


def _curve(axes: Axes, x, curves: np.ndarray, mode: str) -> np.ndarray:
    return _banded(axes, x, curves, color=style.MODE_COLOURS[mode], ls=style.MODE_LINES[mode])


def _banded(axes: Axes, x, curves: np.ndarray, color: str, **look) -> np.ndarray:
    """The mean over seeds with a band of one standard deviation. curves: (seeds, points)."""
    mean = curves.mean(0)
    axes.plot(x, mean, color=color, **look)
    if len(curves) > 1:
        sd = curves.std(0, ddof=1)
        axes.fill_between(x, mean - sd, mean + sd, color=color, alpha=0.15, lw=0)
    return mean


def _mode_handle(mode: str) -> Line2D:
    return Line2D(
        [], [], color=style.MODE_COLOURS[mode], marker=style.MODE_MARKERS[mode], ls=style.MODE_LINES.get(mode, "none"),
        mec="white", ms=7, label=MODE_NAMES[mode],
    )  # fmt: skip


@figure("negation")
def negation(runs: Runs) -> Figure:
    """Target against control accuracy along α on validation, and each task's target accuracy on test."""
    found = {mode: runs.get(f"negation_{mode}") for mode in MODES if runs.get(f"negation_{mode}")}
    if not found:
        runs.require(f"negation_{MODES[0]}")
    zeroshot = runs.require(SINGLE_TASK["none"])
    fig, (left, right) = plt.subplots(1, 2, figsize=(style.WIDTH, 3.2))
    for mode, records in found.items():
        targets = 100 * np.array(
            [np.mean([t["val"]["target"] for t in r["tasks"].values()], 0) for r in records.values()]
        )
        controls = 100 * np.array(
            [
                np.mean([t["val"]["control"] for t in r["tasks"].values()], 0) / r["pretrained_control"]["val"]
                for r in records.values()
            ]
        )
        left.plot(controls.mean(0), targets.mean(0), color=style.MODE_COLOURS[mode], ls=style.MODE_LINES[mode])
    record = next(iter(next(iter(found.values())).values()))
    threshold = 100 * record["control_threshold"]
    left.axvline(threshold, color=style.GREY, lw=0.9, ls=(0, (4, 3)))
    small = dict(rotation=90, va="top", ha="right", fontsize=7.5, color=style.GREY)
    left.text(threshold, 0.97, f"{threshold:g} % kept ", transform=left.get_xaxis_transform(), **small)
    left.invert_xaxis()
    left.set(
        xlabel="control accuracy kept, validation (%)",
        ylabel="target accuracy, validation (%)",
        title="Along α, mean of tasks",
    )
    left.set_ylim(0, None)
    tasks = list(record["tasks"])
    order = np.argsort([-np.mean([r[task] for r in zeroshot.values()]) for task in tasks])
    heights = np.arange(len(order))[::-1]
    columns = {"none": {s: {t: r[t] for t in tasks} for s, r in zeroshot.items()}}
    columns |= {
        m: {s: {t: r["tasks"][t]["test"]["target"] for t in tasks} for s, r in f.items()} for m, f in found.items()
    }
    for mode, records in columns.items():
        values = [PerSeed({s: 100 * r[tasks[i]] for s, r in records.items()}) for i in order]
        look = dict(
            color=style.MODE_COLOURS[mode], marker=style.MODE_MARKERS[mode], ls="none", ms=6, mec="white", mew=0.6
        )
        spread = [_sd(v) or 0 for v in values]
        right.errorbar([v.mean for v in values], heights, xerr=spread, elinewidth=0.8, **look)
    right.set_yticks(heights, [printed(tasks[i]) for i in order])
    right.set(xlabel="target accuracy, test (%)", title="At the chosen α", xlim=(0, 100))
    fig.legend(handles=[_mode_handle(mode) for mode in columns], loc="outside lower center", ncols=4)
    return fig


# --- The TALL paper ------------------------------------------------------------------------------------------------

TALL = {"tall_mask": "TALL + TA", "tall_mask_use_ties=True": "TALL + TIES"}
TALL_COLOURS = {"tall_mask": style.BLUE, "tall_mask_use_ties=True": style.ORANGE}


def _with_masks(runs: Runs, tasks: tuple[str, ...]) -> dict[str, Records]:
    """label -> records of the masking methods that describe their masks."""
    group = runs.merged(tasks)
    return {label: group.records[label] for label in TALL if label in group.records}


def _require_masks(runs: Runs) -> dict[str, Records]:
    if found := _with_masks(runs, runs.main_tasks):
        return found
    raise _missing_merge(runs, "method=tall_mask")


def _missing_merge(runs: Runs, options: str) -> results.MissingResult:
    command = runs.merge_command(options, runs.main_tasks)
    return results.MissingResult(f"expected merging results of {runs.model}, found none; make them with: {command}")


@figure("mask_density")
def mask_density(runs: Runs) -> Figure:
    """Share of weights that each task's mask keeps."""
    found = _require_masks(runs)
    tasks = runs.main_tasks
    fig, axes = plt.subplots(figsize=(style.WIDTH, 2.6))
    for number, (label, records) in enumerate(found.items()):
        values = [_percents(records, lambda r, task=task: r["info"]["masks"]["density"][task]) for task in tasks]
        _bars(axes, values, number, len(found), TALL_COLOURS[label], TALL[label])
    axes.set_xticks(range(len(tasks)), [printed(task) for task in tasks])
    axes.grid(axis="x", visible=False)
    axes.set(ylabel="weights kept (%)", title="Density of the masks", ylim=(0, None))
    axes.legend(loc="upper right", ncols=2, bbox_to_anchor=(1, 1.14))
    return fig


@figure("weights_shared")
def weights_shared(runs: Runs) -> Figure:
    """Share of weights that exactly k tasks use, for each benchmark."""
    _require_masks(runs)
    panels = {n: found for n in benchmarks(runs) if (found := _with_masks(runs, runs.tasks[:n]))}
    size = (style.WIDTH if len(panels) > 1 else 5.2, 2.7)
    fig, grid = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharey=True)
    for axes, (count, found) in zip(grid[0], panels.items()):
        for number, (label, records) in enumerate(found.items()):
            values = [_percents(records, lambda r, k=k: r["info"]["masks"]["usage"][k]) for k in range(count + 1)]
            _bars(axes, values, number, len(found), TALL_COLOURS[label], TALL[label])
        axes.grid(axis="x", visible=False)
        axes.set(xlabel="k", title=f"Weights used by exactly k of {count} tasks")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=11))
        for k, name in ((0, "catastrophic"), (1, "selfish"), (count, "universal")):
            height = max(_percents(r, lambda r, k=k: r["info"]["masks"]["usage"][k]).mean for r in found.values())
            axes.annotate(
                name,
                (k, height),
                (0, 5),
                textcoords="offset points",
                ha="center",
                va="bottom",
                rotation=90,
                fontsize=7.5,
            )
        axes.margins(y=0.3)
        axes.set_ylim(0, None)
    grid[0][0].set_ylabel("weights (%)")
    grid[0][-1].legend(loc="upper left")
    return fig


def _percents(records: Records, read: Callable[[dict], float]) -> PerSeed:
    return PerSeed({seed: 100 * read(record) for seed, record in records.items()})


def _bars(axes: Axes, values: Sequence[PerSeed], number: int, of: int, colour: str, label: str) -> None:
    """One of `of` series of bars side by side, with error bars over seeds."""
    width = 0.8 / of
    places = np.arange(len(values)) + (number - (of - 1) / 2) * width
    spread = [_sd(value) or 0 for value in values] if len(values[0]) > 1 else None
    axes.bar(
        places, [v.mean for v in values], 0.92 * width, yerr=spread, color=colour, label=label, error_kw=dict(lw=0.8)
    )


@figure("consensus_thresholds")
def consensus_thresholds(runs: Runs) -> Figure:
    """Accuracy against the number of tasks that must use a weight."""
    panels = {n: runs.merged(runs.tasks[:n]) for n in benchmarks(runs)}
    sweeps = {n: [threshold_sweep(group, use_ties) for use_ties in (False, True)] for n, group in panels.items()}
    sweeps = {n: both for n, both in sweeps.items() if max(map(len, both)) > 1}
    if not sweeps:
        raise _missing_merge(runs, "method=consensus method.prun_thre_k=3")
    size = (style.WIDTH if len(sweeps) > 1 else 4.6, 2.8)
    fig, grid = plt.subplots(1, len(sweeps), figsize=size, squeeze=False)
    names = ("consensus TA", "consensus TIES")
    for axes, (count, both) in zip(grid[0], sweeps.items()):
        for sweep, colour, marker, name in zip(both, TALL_COLOURS.values(), style.MARKERS, names):
            if sweep:
                values = [100 * v.mean for v in sweep.values()]
                spread = [100 * (_sd(v) or 0) for v in sweep.values()]
                axes.errorbar(list(sweep), values, yerr=spread, color=colour, marker=marker, label=name, elinewidth=0.8)
        floor = panels[count].number("zeroshot", lambda r: r["test"]["mean_accuracy"])
        if floor:
            axes.axhline(100 * floor.mean, color=style.GREY, lw=0.9, ls=(0, (4, 3)))
            axes.annotate(
                "zero-shot", (0, 100 * floor.mean), (2, 3), textcoords="offset points", fontsize=7.5, color=style.GREY
            )
        axes.set(xlabel="k: tasks that must use a weight", title=f"{count} tasks")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[0][0].set_ylabel("mean test accuracy (%)")
    grid[0][-1].legend()
    return fig


SCALING = ("zeroshot", "sum", "ties", "consensus", "tall_mask", "tall_mask_use_ties=True")


@figure("number_of_tasks")
def number_of_tasks(runs: Runs) -> Figure:
    """Normalised accuracy and storage against the number of tasks; means over the sets of a size."""
    groups = [g for g in runs.merges if (g.mode, g.scope) == ("standard", "visual")]
    if len({len(group.tasks) for group in groups}) < 2:
        raise _missing_merge(runs, "num_tasks=4 method=sum")
    fig, (left, right) = plt.subplots(1, 2, figsize=(style.WIDTH, 3.0))
    names = {method.label: method.name for method in METHODS}
    for number, label in enumerate(SCALING):
        look = dict(color=style.PALETTE[number], marker=style.MARKERS[number], label=names[label], ms=4.5)
        source, part = ("sum", "zeroshot") if label == "zeroshot" else (label, "test")  # what every result tells
        counts, accuracies = _by_size(groups, source, lambda r, part=part: 100 * r[part]["mean_normalised"])
        if len(counts) < 2:
            continue
        left.plot(counts, [np.mean(values) for values in accuracies], **look)
        left.fill_between(counts, *zip(*((min(v), max(v)) for v in accuracies)), color=look["color"], alpha=0.13, lw=0)
        if label in ("sum", "tall_mask"):
            counts, sizes = _by_size(groups, label, lambda r: r["storage"]["this"] / r["storage"]["merged"])
            title = {"sum": "any merged model", "tall_mask": "TALL masks"}[label]
            right.plot(counts, [np.mean(values) for values in sizes], **look | {"label": title})
    sizes: dict[int, list[float]] = {}
    for group in groups:
        for records in group.records.values():
            sizes.setdefault(len(group.tasks), []).extend(
                r["storage"]["finetuned"] / r["storage"]["merged"] for r in records.values()
            )
    right.plot(
        list(sizes),
        [np.mean(v) for v in sizes.values()],
        color=style.BLACK,
        marker="P",
        label="fine-tuned, one each",
        ms=4.5,
    )
    left.set(xlabel="tasks", ylabel="normalised test accuracy (%)", title="Accuracy")
    right.set(xlabel="tasks", ylabel="size, in merged models", title="Storage", ylim=(0, None))
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.legend(loc="upper left")
    _legend_below(fig, left, 3)
    return fig


def _by_size(
    groups: Sequence[Merges], label: str, read: Callable[[dict], float]
) -> tuple[list[int], list[list[float]]]:
    """Numbers of tasks, and the values of a method at each, over the sets of that size and seeds."""
    found: dict[int, list[float]] = {}
    for group in groups:
        if values := list(group.number(label, read).values()):
            found.setdefault(len(group.tasks), []).extend(values)
    sizes = sorted(found)
    return sizes, [found[size] for size in sizes]


@figure("radar")
def radar(runs: Runs) -> Figure:
    """Test accuracy of every task under several methods."""
    group = runs.merged(runs.main_tasks)
    tasks = group.tasks
    lines = {
        "zeroshot": style.GREY,
        "sum": style.SKY,
        "ties": style.GREEN,
        "consensus": style.PURPLE,
        "tall_mask": style.BLUE,
    }
    lines = {label: colour for label, colour in lines.items() if label in group.records}
    if not lines:
        raise _missing_merge(runs, "method=sum")
    fig, axes = plt.subplots(figsize=(6.0, 4.1), subplot_kw={"projection": "polar"})
    angles = np.linspace(0, 2 * np.pi, len(tasks), endpoint=False)
    names = {method.label: method.name for method in METHODS}
    finetuned = {seed: r["denominators"]["test"] for label in lines for seed, r in group.records[label].items()}
    series = [("fine-tuned, one each", style.BLACK, finetuned, (0, (2, 1.5)))]
    for label, colour in lines.items():
        series.append((names[label], colour, {s: r["test"]["accuracy"] for s, r in group.records[label].items()}, "-"))
    for name, colour, found, dashes in series:
        values = [100 * np.mean([record[task] for record in found.values()]) for task in tasks]
        axes.plot(np.append(angles, 2 * np.pi), [*values, values[0]], color=colour, ls=dashes, lw=1.4, label=name)
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    axes.set_xticks(angles, [printed(task) for task in tasks])
    axes.tick_params(axis="x", pad=7)
    axes.set_ylim(0, 100)
    axes.set_yticks([20, 40, 60, 80, 100], ["20", "40", "60", "80", "100 %"], fontsize=7, color=style.GREY)
    axes.set_rlabel_position(180 / len(tasks))
    for label in axes.get_yticklabels():
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8})
        label.set_zorder(5)
    axes.spines["polar"].set_color(style.PALE)
    fig.legend(loc="outside center right")
    return fig


@figure("mask_overlap")
def mask_overlap(runs: Runs) -> Figure:
    """Intersection over union of the masks of every two tasks."""
    found = _require_masks(runs)
    maps = {TALL[label]: np.mean([r["info"]["masks"]["iou"] for r in f.values()], 0) for label, f in found.items()}
    return _matrices(maps, runs.main_tasks, "intersection over union of masks")


@figure("task_vector_cosines")
def task_vector_cosines(runs: Runs) -> Figure:
    """Cosines between task vectors, one panel for each mode."""
    found: dict[str, list] = {}
    for records in runs.records.values():
        for record in records.values():
            if "cosine" in record and (tuple(record["tasks"]), record["scope"]) == (runs.main_tasks, "visual"):
                found.setdefault(record["finetuning_mode"], []).append(record["cosine"])
    if not found:
        raise _missing_merge(runs, "method=sum")
    maps = {MODE_NAMES[mode]: np.mean(found[mode], 0) for mode in MODES if mode in found}
    return _matrices(maps, runs.main_tasks, "cosine between task vectors")


def _matrices(maps: dict[str, np.ndarray], tasks: Sequence[str], label: str) -> Figure:
    """Tasks x tasks, the diagonal of ones left out of the scale, and numbers in the cells."""
    away = ~np.eye(len(tasks), dtype=bool)
    most = max(matrix[away].max() for matrix in maps.values())
    least = min(0.0, *(matrix[away].min() for matrix in maps.values()))
    fig, grid = plt.subplots(1, len(maps), figsize=(1.4 + 3.0 * len(maps), 3.3), squeeze=False, sharey=True)
    names = [printed(task) for task in tasks]
    for axes, (title, matrix) in zip(grid[0], maps.items()):
        shown = np.where(away, matrix, np.nan)
        image = axes.imshow(shown, cmap=style.ERRORS, vmin=least, vmax=most)
        for (i, j), value in np.ndenumerate(matrix):
            if i != j and len(tasks) <= 8:
                dark = value - least > 0.6 * (most - least)
                axes.text(
                    j,
                    i,
                    f"{value:.2f}".replace("0.", ".").replace("-", "−"),
                    ha="center",
                    va="center",
                    fontsize=6.5,
                    color="white" if dark else style.BLACK,
                )
        style.outlined(axes)
        axes.set_xticks(range(len(tasks)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(tasks)), names)
        axes.tick_params(length=0)
        axes.set_title(title)
    bar = fig.colorbar(image, ax=grid, shrink=0.8, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)
    return fig


# --- The Concrete paper --------------------------------------------------------------------------------------------

CONCRETE_TA, CONCRETE_TASK, CONCRETE_LAYER = (
    f"{CONCRETE}{name}" for name in ("task_arithmetic", "task_wise_adamerging", "layer_wise_adamerging")
)
ADAMERGING_TASK, ADAMERGING_LAYER = "adamerging_granularity=task", "adamerging"
ADAPTED_NAMES = {method.label: method.name for method in ADAPTED}
GRANULARITY_COLOURS = {
    CONCRETE_TA: style.GREY,
    CONCRETE_TASK: style.VERMILION,
    ADAMERGING_TASK: style.VERMILION,
    CONCRETE_LAYER: style.BLUE,
    ADAMERGING_LAYER: style.BLUE,
}
DASHED = (0, (4, 1.8))


def _courses(runs: Runs, labels: Sequence[str], part: str) -> dict[str, list[dict]]:
    """label -> this part of the adaptation of each seed; raises MissingResult where no label has one."""
    group = runs.merged(runs.main_tasks)
    courses = {label: [r["adaptation"] for r in group.records.get(label, {}).values()] for label in labels}
    courses = {label: [c for c in found if c[part]] for label, found in courses.items()}
    if not any(courses.values()):
        raise _missing_merge(
            runs, f"method={labels[-1]}" + (" eval_every=10 overwrite=True" if part == "watched" else "")
        )
    return {label: found for label, found in courses.items() if found}


@figure("adaptation")
def adaptation(runs: Runs) -> Figure:
    """Accuracy while the mask is learned, and while λ is learned with and without a mask."""
    panels = {
        "Learning the mask": {CONCRETE_TA: "mask", CONCRETE_TASK: "meta", CONCRETE_LAYER: "meta"},
        "Learning λ": dict.fromkeys((ADAMERGING_TASK, CONCRETE_TASK, ADAMERGING_LAYER, CONCRETE_LAYER), "lambda"),
    }
    courses = _courses(runs, list(GRANULARITY_COLOURS), "watched")
    fig, grid = plt.subplots(1, 2, figsize=(style.WIDTH, 3.3), sharey=True, width_ratios=(1.25, 1))
    for axes, (title, phases) in zip(grid, panels.items()):
        for label, phase in phases.items():
            if label not in courses:
                continue
            watched = [course["watched"] for course in courses[label]]
            here = [place for place, name in enumerate(watched[0]["phase"]) if name == phase]
            if not here:
                continue
            steps = np.array(watched[0]["step"])[here]
            curves = 100 * np.array([np.mean(list(w["accuracy"].values()), 0)[here] for w in watched])
            look = dict(color=GRANULARITY_COLOURS[label], ls="-" if label.startswith(CONCRETE) else DASHED)
            _banded(axes, steps - steps[0], curves, label=ADAPTED_NAMES[label], **look)
        axes.set(title=title, xlabel="step")
    grid[0].set_ylabel("mean validation accuracy (%)")
    handles = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels())}
    fig.legend(handles.values(), handles, loc="outside lower center", ncols=3)
    return fig


@figure("adaptation_entropy")
def adaptation_entropy(runs: Runs) -> Figure:
    """Entropy of every task's predictions while a method adapts, seeds and neighbouring steps averaged."""
    labels = (ADAMERGING_TASK, ADAMERGING_LAYER, CONCRETE_TA, CONCRETE_LAYER)
    courses = _courses(runs, labels, "entropy")
    rows = -(-len(courses) // 2)
    columns = min(2, len(courses))
    size = (style.WIDTH * columns / 2, 0.7 + 2.1 * rows)
    fig, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True)
    for axes in grid.flat[len(courses) :]:
        axes.set_axis_off()
    for axes, (label, found) in zip(grid.flat, courses.items()):
        steps = np.array(found[0]["entropy"]["step"])
        window = max(1, len(steps) // 12)
        for number, task in enumerate(runs.main_tasks):
            curve = np.mean([course["entropy"]["tasks"][task] for course in found], 0)
            kept = np.convolve(curve, np.ones(window) / window, mode="valid")
            look = dict(color=style.PALETTE[number % 8], lw=1.1, label=printed(task))
            axes.plot(steps[window - 1 :] - (window - 1) / 2, kept, **look)
        ends = np.cumsum([phase["steps"] for phase in found[0]["phases"]])
        for phase, end in zip(found[0]["phases"], ends):
            name = {"mask": "mask", "meta": "mask", "lambda": "λ"}[phase["name"]]
            small = dict(fontsize=7.5, color=style.GREY, va="top", ha="right", transform=axes.get_xaxis_transform())
            axes.text(end, 0.98, f"{name} ", **small)
            if end != ends[-1]:
                axes.axvline(end, color=style.GREY, lw=0.9, ls=DASHED)
        axes.set(title=ADAPTED_NAMES[label], xlabel="step", ylim=(0, None))
    for row in grid:
        row[0].set_ylabel("entropy (nats)")
    _legend_below(fig, grid[0][0])
    return fig


@figure("lambda_heat_map")
def lambda_heat_map(runs: Runs) -> Figure:
    """The coefficient of every task and layer, layers in the order of the network."""
    courses = _courses(runs, (ADAMERGING_LAYER, CONCRETE_LAYER), "lambda")
    start = next(iter(courses.values()))[0]["settings"]["coef"]
    size = (style.WIDTH, 0.5 + 2.0 * len(courses))
    fig, grid = plt.subplots(len(courses), 1, figsize=size, squeeze=False, sharex=True)
    maps = {label: np.mean([course["lambda"]["values"] for course in found], 0) for label, found in courses.items()}
    every = np.concatenate([values.ravel() for values in maps.values()])
    norm = TwoSlopeNorm(start, min(every.min(), start - 1e-6), max(every.max(), start + 1e-6))
    for axes, (label, values) in zip(grid[:, 0], maps.items()):
        layers = courses[label][0]["lambda"]["layers"]
        order = sorted(range(len(layers)), key=lambda place, layers=layers: _depth(layers[place]))
        image = axes.imshow(values[:, order], aspect="auto", cmap="RdBu", norm=norm, interpolation="nearest")
        axes.set_yticks(range(len(values)), [printed(task) for task in courses[label][0]["lambda"]["tasks"]])
        axes.set_title(ADAPTED_NAMES[label])
        style.outlined(axes)
        axes.tick_params(length=0)
        _mark_blocks(axes, [layers[place] for place in order])
    bar = fig.colorbar(image, ax=grid, shrink=0.85, pad=0.01)
    bar.set_label(f"λ (from {start:g})")
    bar.outline.set_visible(False)
    return fig


@figure("concrete_mask_density")
def concrete_mask_density(runs: Runs) -> Figure:
    """Mean of the final mask in every tensor, in the order of the network."""
    courses = _courses(runs, (CONCRETE_TA, CONCRETE_TASK, CONCRETE_LAYER), "mask")
    fig, axes = plt.subplots(figsize=(style.WIDTH, 2.9))
    for number, (label, found) in enumerate(courses.items()):
        layers = sorted(found[0]["mask"]["by_tensor"], key=_depth)
        densities = 100 * np.array([[course["mask"]["by_tensor"][layer] for layer in layers] for course in found])
        look = dict(color=GRANULARITY_COLOURS[label], marker=style.MARKERS[number], ms=3.5, lw=0.8)
        _banded(axes, np.arange(len(layers)), densities, label=ADAPTED_NAMES[label], **look)
        _mark_blocks(axes, layers)
    axes.grid(axis="x", visible=False)
    axes.set(ylabel="mean of the mask (%)", title="Density by tensor")
    axes.margins(x=0.01)
    _legend_below(fig, axes)
    return fig


def _depth(layer: str) -> tuple[int, str]:
    """Where a tensor stands in the image tower, to sort by: before the blocks, in one of them, after them."""
    block = re.search(r"resblocks\.(\d+)\.(.*)", layer)
    if block:
        return int(block[1]), block[2]
    return (10**6 if re.search(r"visual\.(ln_post|proj)", layer) else -1), layer


def _mark_blocks(axes: Axes, layers: Sequence[str]) -> None:
    """Names of the blocks of the network below a sequence of its tensors, and lines between them."""
    stages = [_depth(layer)[0] for layer in layers]
    firsts = [place for place, stage in enumerate(stages) if place == 0 or stage != stages[place - 1]]
    names = {-1: "input", 10**6: "output"}
    for first in firsts[1:]:
        axes.axvline(first - 0.5, color=style.BLACK, lw=0.7)
    middles = [(first + end - 1) / 2 for first, end in zip(firsts, [*firsts[1:], len(stages)])]
    labels = [names.get(stages[first], f"block {stages[first] + 1}") for first in firsts]
    crowded = len(labels) > 8
    axes.set_xticks(middles, [label.removeprefix("block ") if crowded else label for label in labels])
    if crowded:
        axes.set_xlabel("block")


@figure("sigmoid_temperatures")
def sigmoid_temperatures(runs: Runs) -> Figure:
    """σ(x / T), the relaxation of a step, at several temperatures; needs no results."""
    fig, axes = plt.subplots(figsize=(3.9, 2.8))
    x = np.linspace(-5, 5, 401)
    for temperature, colour in zip((2, 1, 0.5, 0.1), (style.SKY, style.GREEN, style.BLUE, style.VERMILION)):
        axes.plot(x, expit(x / temperature), color=colour, label=f"T = {temperature:g}")
    axes.plot(x, x > 0, color=style.BLACK, lw=0.9, ls=DASHED, label="T → 0")
    axes.set(xlabel="x", ylabel="σ(x / T)", title="The Concrete mask's sigmoid")
    axes.legend()
    return fig


# --- Pictures ------------------------------------------------------------------------------------------------------

COLUMNS, SIDE, GAP, SCALE = 20, 32, 2, 2  # pictures of a row, their side and distance in pixels, their enlargement


def contact(run: Run) -> Figure:
    """Pictures of the default tasks, of the control set, and on the embedded suite of the pre-training mixture."""
    suite = registry.suite(run.suite)
    rows = _rows(run, (*suite.default, suite.control))
    if suite.drawn:
        from src.vit_mini import mixture

        rng = np.random.default_rng(run.seed)
        rows["pre-training"] = np.stack([mixture.sample(rng)[0] for _ in range(COLUMNS)])
    return contact_sheet(rows)


def contact_more(run: Run) -> Figure:
    """Pictures of the tasks that only larger benchmarks have."""
    suite = registry.suite(run.suite)
    if not (more := suite.tasks[len(suite.default) :]):
        raise results.MissingResult(f"suite {suite.name} has no tasks but those that `contact` shows")
    return contact_sheet(_rows(run, more))


def _rows(run: Run, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Validation pictures of the named sets, COLUMNS of each."""
    from src.datasets import loading as data  # reads images: torch is loaded for pictures alone

    rows = {}
    for name in names:
        found = data.evaluation_pixels(run, name, "val", SIDE)
        rows[printed(name)] = found.pixels[of_many_classes(found.labels, COLUMNS)]
    return rows


def of_many_classes(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of `count` examples, spread over the classes, each class first come first shown."""
    order = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    picked, turn = [], 0
    while len(picked) < min(count, len(labels)):
        ready = [indices[turn] for indices in order if turn < len(indices)]
        wanted = count - len(picked)
        if len(ready) > wanted:
            ready = [ready[i] for i in np.linspace(0, len(ready) - 1, wanted).round().astype(int)]
        picked += ready
        turn += 1
    return np.array(picked)


def contact_sheet(rows: dict[str, np.ndarray]) -> Figure:
    """Rows of pictures with their names. rows: name -> uint8 (n, SIDE, SIDE, 3)."""
    dots, step = 200, (SIDE + GAP) * SCALE
    margin = 210
    width, height = margin + COLUMNS * step, len(rows) * step
    sheet = np.full((height, width, 3), 255, np.uint8)
    for line, pictures in enumerate(rows.values()):
        for column, picture in enumerate(pictures):
            top, left = line * step, margin + column * step
            sheet[top : top + SIDE * SCALE, left : left + SIDE * SCALE] = picture.repeat(SCALE, 0).repeat(SCALE, 1)
    with style.styled():
        fig = plt.figure(figsize=(width / dots, height / dots))
        fig.set_layout_engine("none")
        axes = fig.add_axes((0, 0, 1, 1))
        axes.imshow(sheet, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        for line, name in enumerate(rows):
            axes.text(8, line * step + SIDE * SCALE / 2, name, va="center", fontsize=8)
    return fig


def corruptions(run: Run) -> Figure:
    """Pictures of four tasks at each severity of every corruption, left to right; above, as they are."""
    from src.datasets import loading as data

    severities = SEVERITIES * (COLUMNS // len(SEVERITIES))
    tasks = np.repeat(registry.suite(run.suite).tasks[: COLUMNS // len(SEVERITIES)], len(SEVERITIES))
    clean = np.stack([data.evaluation_pixels(run, task, "test", SIDE).pixels[0] for task in tasks])
    rows = {"clean": clean}
    for name in CORRUPTIONS:
        shown = [corrupt(picture[None], name, severity, [run.seed])[0] for picture, severity in zip(clean, severities)]
        rows[printed(name)] = np.stack(shown)
    return contact_sheet(rows)


PICTURES = {"contact": contact, "contact_more": contact_more, "corruptions": corruptions}
