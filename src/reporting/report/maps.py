"""Charts of the tangent paper: the disentanglement error over two coefficients, and clouds of the tangent kernel."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from src.experiments.ntk import KernelPair
from src.experiments.registry import DISENTANGLEMENT, NTK
from src.modes import EVALUATED, MODES
from src.reporting.report import charts
from src.reporting.report.charts import Chart
from src.reporting.runs import Runs
from src.reporting.table import pair_name, printed
from src.reporting.tangent.claims import usual_rank
from src.reporting.tangent.heat_maps import Pair, mean_grids
from src.reporting.tangent.kernel_figures import COLOURS, by_pair

REDUCTION = "trace"  # of the kernel over classes; the other one is in the tables


def error_maps(runs: Runs) -> list[Chart]:
    """ξ of every pair of tasks and every mode, on one scale. Empty where there are no results."""
    by_mode = {mode: mean_grids(runs.of(DISENTANGLEMENT, mode)) for mode in EVALUATED}
    grids = [grid for of_mode in by_mode.values() for grid in of_mode.values()]
    if not grids:
        return []
    highest = 100 * max(float(np.max(grid["error"])) for grid in grids)
    pairs = list(dict.fromkeys(pair for of_mode in by_mode.values() for pair in of_mode))
    present = [(pair, mode) for pair in pairs for mode in EVALUATED if pair in by_mode[mode]]
    return [_error_map(pair, mode, by_mode[mode][pair], highest) for pair, mode in present]


def _error_map(pair: Pair, mode: str, grid: Any, highest: float) -> Chart:
    alphas = np.asarray(grid["alphas"], float)
    error = 100 * np.asarray(grid["error"])
    edges = _edges(alphas)
    cells = [
        {
            "first": alphas[i], "second": alphas[j], "error": error[i, j],
            "left": edges[i], "right": edges[i + 1], "low": edges[j], "high": edges[j + 1],
        }
        for i in range(len(alphas))
        for j in range(len(alphas))
    ]  # fmt: skip
    names = [printed(task) for task in pair]
    inside = 100 * grid["box_mean"]
    return Chart(
        f"error-{mode}-{'-'.join(pair)}",
        f"{pair_name(pair)}, {MODES[mode].short}: {inside:.1f} % in the box",
        f"Disentanglement error of {names[0]} and {names[1]}, {MODES[mode].title}, over both coefficients: "
        f"{inside:.1f} % on average in the search box, at most {error.max():.0f} % on the grid.",
        charts.error_map(highest, names),
        around=(56, 56),
        canvas=True,
        data={"cells": cells, "box": [{"a": -grid["box"], "b": grid["box"]}]},
    )


def _edges(alphas: np.ndarray) -> list[float]:
    """Of the cells around points that lie evenly."""
    half = (alphas[1] - alphas[0]) / 2
    return [*(alphas - half), alphas[-1] + half]


def kernel_clouds(runs: Runs) -> list[Chart]:
    """Local energies of the kernel on a task, with and without pre-training. Empty where there are no results."""
    starts = {"pre-trained": runs, "random initialization": runs.random_init}
    return [
        _cloud(title, pair, entries)
        for title, model in starts.items()
        for pair, entries in by_pair(model.of(NTK, REDUCTION)).items()
    ]


def _cloud(start: str, pair: tuple[str, str], entries: Sequence[KernelPair]) -> Chart:
    index = usual_rank(entries[0]["ranks"])
    task, control = map(printed, pair)
    names = {"task": f"{task}, in the kernel", "heldout": "held out", "control": f"control, {control}"}
    names = {group: name for group, name in names.items() if group in entries[0]["nystrom"]["energy"]}
    seeds = {group: [np.asarray(e["nystrom"]["energy"][group][index], float) for e in entries] for group in names}
    every = np.concatenate([cloud for clouds in seeds.values() for cloud in clouds])
    floor = float(every[every > 0].min())
    means = {group: float(np.concatenate(clouds).mean()) for group, clouds in seeds.items()}
    labels = {"task": "task", "heldout": "held out", "control": "control"}
    zeros = int((every <= 0).sum())
    ratio = means.get("heldout", means["task"]) / means["control"]
    return Chart(
        f"cloud-{start.split()[0]}-{'-'.join(pair)}",
        f"{task} against {control}, {start}: ratio {ratio:.1f}",
        f"Local energy of the leading eigenfunctions of the tangent kernel, {start}, at each image. "
        + ", ".join(f"{names[group]}: mean {means[group]:.3g}" for group in names)
        + (f". {zeros} images have no energy and stand at the lowest other value." if zeros else "."),
        charts.clouds({labels[group]: COLOURS[group] for group in names}),
        around=(38, 38),
        canvas=True,
        data={
            "images": list(_points(seeds, labels, floor)),
            "means": [{"group": labels[g], "energy": max(mean, floor), "jitter": 0.0} for g, mean in means.items()],
        },
    )


def _points(
    seeds: Mapping[str, Sequence[np.ndarray]], labels: Mapping[str, str], floor: float
) -> Iterator[dict[str, Any]]:
    jitter = np.random.default_rng(0)
    for group, clouds in seeds.items():
        for number, cloud in enumerate(clouds, start=1):
            for energy in cloud:
                beside = float(jitter.uniform(-0.6, 0.6))
                yield {"group": labels[group], "energy": float(max(energy, floor)), "seed": number, "jitter": beside}
