"""Methods of several papers in one figure."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from src.modes import MODES, TRAINED
from src.reporting import style
from src.reporting.comparison.connectivity import connectivity_figure
from src.reporting.comparison.course import course_figure
from src.reporting.comparison.forest import claims
from src.reporting.comparison.geometry import alignment, interference
from src.reporting.comparison.layerwise import layer_interference
from src.reporting.comparison.mergeability import mergeability_figure
from src.reporting.comparison.merged_models import accuracy_lost, calibration, representation_bias
from src.reporting.comparison.plateau import plateaus
from src.reporting.comparison.prediction import prediction_figure
from src.reporting.comparison.ranking import methods
from src.reporting.comparison.storage import accuracy_against_storage
from src.reporting.comparison.studies import task_subsets
from src.reporting.methods import FINETUNED, Group, Row, adapts, groups, registered_rows, results_of, variant_row
from src.reporting.plots import Drawing, legend_below, matrices, method_looks
from src.reporting.result import VECTORS
from src.reporting.runs import Runs
from src.reporting.table import printed

LEGEND = 46  # characters of a line of the legend beside sizes


def number_of_tasks(runs: Runs) -> Figure:
    """Normalised accuracy and storage against the number of tasks; means over the sets of a size, with their range."""
    sets = [group for group in groups(runs) if (group.mode, group.scope) == ("standard", "visual")]
    if len({len(group.tasks) for group in sets}) < 2:
        count = 2 if any(len(group.tasks) == 4 for group in sets) else 4
        raise runs.missing_merge(f"num_tasks={count}", "method=sum")
    rows = _shown(runs)
    looks = method_looks(runs, rows)
    accuracies = {row: _by_size(sets, _normalised(runs, sets, row)) for row in rows}
    fig, (left, right) = plt.subplots(1, 2, figsize=(style.WIDTH, 3.0))
    for row, by_size in accuracies.items():
        if len(by_size) > 1:
            _range(left, by_size, label=row.title(), **looks[row])
    _sizes(right, runs, sets, [row for row, by_size in accuracies.items() if len(by_size) > 1], looks)
    left.set(xlabel="tasks", ylabel="normalised test accuracy (%)", title="Accuracy")
    right.set(xlabel="tasks", ylabel="size, in merged models", title="Storage")
    right.set_ylim(0, 1.7 * right.get_ylim()[1])  # room for the legend above the steepest line
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.legend(loc="upper left")
    legend_below(fig, left, 3)
    return fig


def _shown(runs: Runs) -> list[Row]:
    """The methods that do not adapt, but those of the stages `methods*`: too many for one picture of lines."""
    elsewhere = registered_rows("methods", "methods-adapting")
    return [row for row in registered_rows() if row not in elsewhere and not adapts(runs, row)]


def _normalised(runs: Runs, sets: Iterable[Group], row: Row) -> list[pd.Series]:
    """Of a method on each set; every result tells what zero-shot scores."""
    if row == variant_row("zeroshot"):
        what = {"metric": "zeroshot_normalised", "method": ..., "options": ...}
        return [100 * runs.any_of(**what, **group.columns) for group in sets]
    return [100 * runs.values(metric="normalised", **group.columns, **row.columns) for group in sets]


def _by_size(sets: Iterable[Group], values: Iterable[pd.Series]) -> dict[int, list[float]]:
    """Number of tasks -> the values of a method over the sets of that size and seeds."""
    by_size: dict[int, list[float]] = {}
    for group, of_set in zip(sets, values):
        if not of_set.empty:
            by_size.setdefault(len(group.tasks), []).extend(of_set)
    return dict(sorted(by_size.items()))


def _range(axes: Axes, by_size: Mapping[int, Sequence[float]], color: str, **look: Any) -> None:
    counts = list(by_size)
    axes.plot(counts, [np.mean(values) for values in by_size.values()], color=color, ms=4.5, **look)
    low, high = ([end(values) for values in by_size.values()] for end in (min, max))
    axes.fill_between(counts, low, high, color=color, alpha=0.13, lw=0)


def _sizes(axes: Axes, runs: Runs, sets: Sequence[Group], rows: Sequence[Row], looks: Mapping[Row, Any]) -> None:
    """Sizes in merged models: a line for all methods that take the same."""
    lines: dict[tuple[tuple[int, float], ...], list[Row]] = {}
    for row in rows:
        sizes = [runs.values(metric="storage", **g.columns, **row.columns) / _merged(runs, g) for g in sets]
        by_size = _by_size(sets, [values.dropna() for values in sizes])
        if len(by_size) > 1:
            lines.setdefault(tuple((n, round(float(np.mean(v)), 6)) for n, v in by_size.items()), []).append(row)
    for line, of_line in lines.items():
        title = textwrap.fill(", ".join(row.title() for row in of_line), LEGEND)
        axes.plot(*zip(*line), label=title, ms=4.5, **looks[of_line[0]])
    what = {"metric": "storage_finetuned", "method": ..., "options": ...}
    finetuned = _by_size(sets, [runs.any_of(**what, **group.columns) / _merged(runs, group) for group in sets])
    means = [np.mean(values) for values in finetuned.values()]
    axes.plot(list(finetuned), means, color=style.BLACK, marker="P", label=FINETUNED, ms=4.5)


def _merged(runs: Runs, group: Group) -> pd.Series:
    return runs.any_of(metric="storage_merged", method=..., options=..., **group.columns)


def radar(runs: Runs) -> Figure:
    """Test accuracy of every task under every method that does not adapt, with its default options."""
    group = Group(runs.main_tasks)
    firsts = [row for row in _shown(runs) if row == variant_row(row.method)]
    looks = method_looks(runs, firsts)
    lines = {row: _by_task(runs, group, row) for row in firsts}
    lines = {row: values for row, values in lines.items() if values}
    if not lines:
        raise runs.missing_merge("method=sum")
    axes: Any  # a PolarAxes, which the signature does not say
    fig, axes = plt.subplots(figsize=(6.4, 4.1), subplot_kw={"projection": "polar"})
    angles = np.linspace(0, 2 * np.pi, len(group.tasks), endpoint=False)
    for title, color, values, line in [
        (FINETUNED, style.BLACK, _finetuned(runs, group), style.DOTTED),
        *((row.title(), looks[row]["color"], values, "-") for row, values in lines.items()),
    ]:
        axes.plot(np.append(angles, 2 * np.pi), [*values, values[0]], color=color, ls=line, lw=1.4, label=title)
    polar: Any = axes
    polar.set_theta_zero_location("N")
    polar.set_theta_direction(-1)
    axes.set_xticks(angles, [printed(task) for task in group.tasks])
    axes.tick_params(axis="x", pad=7)
    axes.set_ylim(0, 100)
    axes.set_yticks([20, 40, 60, 80, 100], ["20", "40", "60", "80", "100 %"], fontsize=7, color=style.GREY)
    polar.set_rlabel_position(180 / len(group.tasks))
    for label in axes.get_yticklabels():
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8})
        label.set_zorder(5)
    axes.spines["polar"].set_color(style.PALE)
    handles, labels = axes.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right center")
    return fig


def _by_task(runs: Runs, group: Group, row: Row) -> list[float]:
    """Mean over seeds of each task's accuracy, in percent; empty where there are no results."""
    what = {"metric": "accuracy", **group.columns, **row.columns}
    values = [100 * runs.values(task=task, **what) for task in group.tasks]
    return [] if any(of_task.empty for of_task in values) else [of_task.mean() for of_task in values]


def _finetuned(runs: Runs, group: Group) -> list[float]:
    """Of the models that the group was merged from."""
    records = {result.seed: result.record for result in results_of(runs, group) if not result.encoders}
    accuracies = [record["denominators"]["test"] for record in records.values()]
    return [100 * float(np.mean([accuracy[task] for accuracy in accuracies])) for task in group.tasks]


def task_vector_cosines(runs: Runs) -> Figure:
    """Cosines between task vectors, one panel for each way of fine-tuning: others share its vectors."""
    what = {"task_list": runs.main_tasks, "scope": "visual"}
    cosines = {mode: [r["cosine"] for r in runs.find(VECTORS, mode=mode, **what).values()] for mode in TRAINED}
    maps = {MODES[mode].title: np.mean(of_mode, 0) for mode, of_mode in cosines.items() if of_mode}
    if not maps:  # they are written beside results of merging, anew with those
        there = results_of(runs, Group(runs.main_tasks))
        raise runs.missing_merge("method=sum", *(["overwrite=True"] if there else []))
    return matrices(maps, runs.main_tasks, "cosine between task vectors")


FIGURES = (
    Drawing("claims", claims),
    Drawing("methods", methods),
    Drawing("prediction", prediction_figure),
    Drawing("number_of_tasks", number_of_tasks),
    Drawing("radar", radar),
    Drawing("task_vector_cosines", task_vector_cosines),
    Drawing("alignment", alignment),
    Drawing("interference", interference),
    Drawing("layer_interference", layer_interference),
    Drawing("connectivity", connectivity_figure),
    Drawing("course", course_figure),
    Drawing("mergeability", mergeability_figure),
    Drawing("accuracy_lost", accuracy_lost),
    Drawing("representation_bias", representation_bias),
    Drawing("calibration", calibration),
    Drawing("storage", accuracy_against_storage),
    Drawing("plateaus", plateaus),
    Drawing("task_subsets", task_subsets),
)
