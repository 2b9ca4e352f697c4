"""Figures of the Concrete paper: the course of an adaptation, its coefficients and its mask."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy.special import expit

from src.merging.depth import TAIL, block_of, stage_of
from src.reporting import style
from src.reporting.methods import Group, Row, in_order, results_of
from src.reporting.plots import Drawing, banded, distinct, legend_below, method_looks, paper_lines
from src.reporting.runs import Runs
from src.reporting.table import printed

PANELS = {"Learning the mask": ("mask", "meta"), "Learning λ": ("lambda",)}  # title -> names of phases
PHASE_NAMES = {"mask": "mask", "meta": "mask", "lambda": "λ"}
Courses = dict[Row, list[Any]]  # src.records.Adaptation, with the part that was asked for


def courses(runs: Runs, part: str, method: str) -> Courses:
    """The registered methods that adapt to test images -> the course of each seed, of those that tell `part`.

    Raises MissingResult, with the command that runs `method`, where none does.
    """
    by_row: Courses = {}
    for result in results_of(runs, Group(runs.main_tasks)):
        row, course = Row.of(result), result.record.get("adaptation")
        if course and row.exact and (course.get(part) or course["curves"].get(part)):
            by_row.setdefault(row, []).append(course)
    if not by_row:
        watching = ("eval_every=10", "overwrite=True") if part == "watched" else ()
        raise runs.missing_merge(f"method={method}", *watching)
    return {row: by_row[row] for row in in_order(by_row)}


def adaptation(runs: Runs) -> Figure:
    """Accuracy while the mask is learned, and while λ is learned with and without a mask."""
    by_row = courses(runs, "watched", "concrete_layer_wise_adamerging")
    looks, lines = method_looks(runs, by_row), paper_lines(by_row)
    fig, grid = plt.subplots(1, 2, figsize=(style.WIDTH, 3.4), sharey=True, width_ratios=(1.25, 1))
    for axes, (title, phases) in zip(grid, PANELS.items()):
        for row, of_row in by_row.items():
            _learning(axes, of_row, phases, color=looks[row]["color"], ls=lines[row], label=row.title())
        axes.set(title=title, xlabel="step")
    grid[0].set_ylabel("mean validation accuracy (%)")
    handles = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels())}
    shown = [row.title() for row in by_row if row.title() in handles]
    fig.legend([handles[title] for title in shown], shown, loc="outside lower center", ncols=3)
    return fig


def _learning(axes: Axes, of_row: Sequence[Any], phases: Sequence[str], **look: Any) -> None:
    """The mean accuracy in a phase, from its start; nothing for a method without it."""
    watched = [course["watched"] for course in of_row]
    points = [index for index, phase in enumerate(watched[0]["phase"]) if phase in phases]
    if points:
        steps = np.array(watched[0]["step"])[points]
        curves = 100 * np.array([np.mean(list(w["accuracy"].values()), 0)[points] for w in watched])
        banded(axes, steps - steps[0], curves, **look)


def adaptation_entropy(runs: Runs) -> Figure:
    """Entropy of every task's predictions while a method adapts, seeds and neighbouring steps averaged."""
    by_row = courses(runs, "entropy", "concrete_layer_wise_adamerging")
    columns = 1 if len(by_row) == 1 else 2 if len(by_row) <= 4 else 3
    lines = -(-len(by_row) // columns)
    size = (style.WIDTH if columns > 1 else style.WIDTH / 2, 0.7 + 2.1 * lines)
    fig, grid = plt.subplots(lines, columns, figsize=size, squeeze=False, sharey=True)
    for axes in grid.flat[len(by_row) :]:
        axes.set_axis_off()
    for axes, (row, of_row) in zip(grid.flat, by_row.items()):
        _entropies(axes, of_row, runs.main_tasks)
        axes.set(title=row.title(), xlabel="step")
    grid[0][0].set_ylim(0, None)
    for panels in grid:
        panels[0].set_ylabel("entropy (nats)")
    legend_below(fig, grid[0][0])
    return fig


def _entropies(axes: Axes, of_row: Sequence[Any], tasks: Sequence[str]) -> None:
    steps = np.array(of_row[0]["curves"]["step"])
    window = max(1, len(steps) // 12)
    for index, task in enumerate(tasks):
        curve = np.mean([course["curves"]["entropy"][task] for course in of_row], 0)
        smooth = np.convolve(curve, np.ones(window) / window, mode="valid")
        look: dict[str, Any] = dict(color=style.PALETTE[index % 8], lw=1.1, label=printed(task))
        axes.plot(steps[window - 1 :] - (window - 1) / 2, smooth, **look)
    phases = of_row[0]["phases"]
    small: dict[str, Any] = dict(fontsize=7.5, color=style.GREY, va="top", ha="right")
    small |= dict(transform=axes.get_xaxis_transform())
    for phase, end in zip(phases, np.cumsum([phase["steps"] for phase in phases])):
        axes.text(end, 0.98, f"{PHASE_NAMES.get(phase['name'], phase['name'])} ", **small)
        if phase is not phases[-1]:
            axes.axvline(end, color=style.GREY, lw=0.9, ls=style.DASHED)


def lambda_heat_map(runs: Runs) -> Figure:
    """The coefficient of every task and layer, layers in the order of the network."""
    by_row = courses(runs, "lambda", "concrete_layer_wise_adamerging")
    by_row = {row: of_row for row, of_row in by_row.items() if of_row[0]["lambda"]["layers"]}
    if not by_row:
        raise runs.missing_merge("method=adamerging")
    maps = {row: np.mean([course["lambda"]["values"] for course in of_row], 0) for row, of_row in by_row.items()}
    starts = {row: of_row[0]["settings"]["coef"] for row, of_row in by_row.items()}
    farthest = max(np.abs(values - starts[row]).max() for row, values in maps.items())
    norm = Normalize(-farthest, farthest)
    size = (style.WIDTH, 0.5 + 2.0 * len(maps))
    fig, grid = plt.subplots(len(maps), 1, figsize=size, squeeze=False, sharex=True)
    for axes, (row, values) in zip(grid[:, 0], maps.items()):
        coefficients = by_row[row][0]["lambda"]
        layers = list(coefficients["layers"] or ())
        order = [index for _, index in sorted((depth(layer), index) for index, layer in enumerate(layers))]
        image = axes.imshow(
            values[:, order] - starts[row], aspect="auto", cmap="RdBu", norm=norm, interpolation="nearest"
        )
        axes.set_yticks(range(len(values)), [printed(task) for task in coefficients["tasks"]])
        axes.set_title(f"{row.title()}: λ from {starts[row]:g}")
        style.outlined(axes)
        axes.tick_params(length=0)
        mark_blocks(axes, [layers[index] for index in order])
    bar = fig.colorbar(image, ax=grid, shrink=0.85, pad=0.01)
    bar.set_label("λ − λ at the start")
    bar.outline.set_visible(False)
    return fig


def mask_by_tensor(runs: Runs) -> Figure:
    """Mean of the final mask in every tensor, in the order of the network."""
    by_row = courses(runs, "mask", "concrete_layer_wise_adamerging")
    tensors = {row: [c["mask"]["by_tensor"] for c in of_row if c["mask"]] for row, of_row in by_row.items()}
    layers = sorted({layer for means in tensors.values() for layer in means[0]}, key=depth)
    looks, lines = distinct(method_looks(runs, by_row)), paper_lines(by_row)
    fig, axes = plt.subplots(figsize=(style.WIDTH, 2.9))
    for row, means in tensors.items():
        own = [index for index, layer in enumerate(layers) if layer in means[0]]  # some mask matrices alone
        densities = 100 * np.array([[of_seed[layers[index]] for index in own] for of_seed in means])
        banded(axes, np.array(own), densities, label=row.title(), ms=3.5, lw=0.8, ls=lines[row], **looks[row])
    mark_blocks(axes, layers)
    axes.grid(axis="x", visible=False)
    axes.set(ylabel="mean of the mask (%)", title="Density by tensor")
    axes.margins(x=0.01)
    legend_below(fig, axes)
    return fig


def depth(layer: str) -> tuple[float, str]:
    """Where a tensor stands in the image tower, to sort by."""
    block = block_of(layer)
    return stage_of(layer), block[1] if block else layer


def mark_blocks(axes: Axes, layers: Sequence[str]) -> None:
    """Names of the blocks of the network below a sequence of its tensors, and lines between them."""
    stages = [stage_of(layer) for layer in layers]
    firsts = [index for index, stage in enumerate(stages) if index == 0 or stage != stages[index - 1]]
    for first in firsts[1:]:
        axes.axvline(first - 0.5, color=style.BLACK, lw=0.7)
    crowded = len(firsts) > 8
    names = {0: "input", TAIL: "output"}
    block = "{}" if crowded else "block {}"
    labels = [names.get(stages[first], block.format(f"{stages[first] - 1:g}")) for first in firsts]  # as in names
    middles = [(first + end - 1) / 2 for first, end in zip(firsts, [*firsts[1:], len(stages)])]
    axes.set_xticks(middles, labels)
    if crowded:
        axes.set_xlabel("block")


def sigmoid_temperatures(runs: Runs) -> Figure:
    """σ(x / T), the relaxation of a step, at several temperatures; needs no results."""
    fig, axes = plt.subplots(figsize=(3.9, 2.8))
    x = np.linspace(-5, 5, 401)
    for temperature, color in zip((2, 1, 0.5, 0.1), (style.SKY, style.GREEN, style.BLUE, style.VERMILION)):
        axes.plot(x, expit(x / temperature), color=color, label=f"T = {temperature:g}")
    axes.plot(x, x > 0, color=style.BLACK, lw=0.9, ls=style.DASHED, label="T → 0")
    axes.set(xlabel="x", ylabel="σ(x / T)", title="The Concrete mask's sigmoid")
    axes.legend()
    return fig


FIGURES = (
    Drawing("adaptation", adaptation),
    Drawing("adaptation_entropy", adaptation_entropy),
    Drawing("lambda_heat_map", lambda_heat_map),
    Drawing("concrete_mask_density", mask_by_tensor),
    Drawing("sigmoid_temperatures", sigmoid_temperatures),
)
