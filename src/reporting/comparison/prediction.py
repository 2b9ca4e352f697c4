"""Whether the suite's order of methods is that of published tables: rank correlations, method by method."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import rankdata

from src.datasets.registry import BENCHMARKS
from src.merging.registry import METHODS
from src.reporting import style
from src.reporting.comparison.methods import FAMILIES, keeps_several
from src.reporting.labels import name_points
from src.reporting.methods import Group, Row, adapts, registered_rows, results_of
from src.reporting.published import published, published_model
from src.reporting.result import canonical
from src.reporting.runs import Runs
from src.reporting.statistics import LEVEL, REPEATS
from src.reporting.table import Table, percent

ALIKE = {"absolute": "accuracy", "normalised": "normalised"}  # metric of published tables -> of ours
PRUNING = "mag_prune"  # whose results the table redundancy shows
TRIMMING = "ties"  # whose trimming it is a reason for
PAPER_TITLES = {"concrete": "Concrete subspace learning", "tall": "TALL masks"}  # the others' names are titles
LEAST = 4  # methods that an order needs
NAMED = 2  # methods that the figure and the table name as placed wrongly
KINDS = {"single": ("merged at once", style.BLUE, "o"), "adapting": ("adapts to images", style.GREEN, "D"),
         "several": ("a model for each task", style.VERMILION, "s")}  # fmt: skip


@dataclass(frozen=True)
class Order:
    """The methods that a published table and the suite both have. theirs: (methods,) ours: (methods, seeds), in %."""

    title: str
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    theirs: np.ndarray
    ours: np.ndarray

    @cached_property
    def misplaced(self) -> np.ndarray:
        """Places by which each method stands higher in ours than in theirs."""
        return rankdata(self.ours.mean(1)) - rankdata(self.theirs)

    def single(self) -> "Order":
        """The methods that make one model, without images to adapt to."""
        index = [i for i, kind in enumerate(self.kinds) if kind == "single"]
        names, kinds = (tuple(values[i] for i in index) for values in (self.names, self.kinds))
        return Order(self.title, names, kinds, self.theirs[index], self.ours[index])

    @property
    def enough(self) -> bool:
        return len(self.names) >= LEAST


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rank correlation along the last axis, of average ranks; nan where all are equal. x, y: (..., methods)."""
    ranks = [rankdata(values, axis=-1) for values in (x, y)]
    a, b = (rank - rank.mean(-1, keepdims=True) for rank in ranks)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's τ_b along the last axis; nan where all are equal. x, y: (..., methods)."""
    a, b = (np.sign(values[..., :, None] - values[..., None, :]) for values in (x, y))
    with np.errstate(invalid="ignore"):
        return (a * b).sum((-1, -2)) / np.sqrt((a * a).sum((-1, -2)) * (b * b).sum((-1, -2)))


def interval(order: Order, correlation: Any) -> tuple[float, float]:
    """Percentiles of a bootstrap that draws seeds and methods with replacement; the same draws for every call."""
    rng = np.random.default_rng(0)
    methods, seeds = order.ours.shape
    drawn = rng.integers(methods, size=(REPEATS, methods))
    ours = order.ours[:, rng.integers(seeds, size=(REPEATS, seeds))].mean(-1).T  # (repeats, methods)
    values = correlation(order.theirs[drawn], np.take_along_axis(ours, drawn, 1))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def orders(runs: Runs) -> list[Order]:
    """Of every published table that has at least LEAST of the methods which have results, by checkpoint family."""
    made = []
    for family, (_, papers) in FAMILIES.items():
        for paper, (table, first, _) in papers.items():
            for count in BENCHMARKS:
                settings = {f"{count} tasks": ALIKE}
                if count == BENCHMARKS[0] and first not in settings:  # a table of the first benchmark alone
                    settings = {first: {"accuracy": "accuracy"}}
                for setting, metrics in settings.items():
                    for theirs, ours in metrics.items():
                        what = "" if ours == "accuracy" else ", normalised"
                        title = f"{paper}, {count} tasks{what} ({family})"
                        order = _order(runs, title, count, (paper, table, setting, theirs), ours)
                        made += [order] if order.enough else []
    return made


def _order(runs: Runs, title: str, count: int, where: tuple[str, str, str, str], metric: str) -> Order:
    group, (paper, table, setting, their_metric) = Group(runs.suite_tasks[:count]), where
    several = {Row.of(result) for result in results_of(runs, group) if keeps_several(result)}
    named: list[tuple[Row, float, pd.Series]] = []
    for row in registered_rows():
        theirs = published(runs.model, paper, table, row.published_name(paper, table), setting, their_metric)
        if theirs is not None and not (values := runs.values(metric=metric, **group.columns, **row.columns)).empty:
            named.append((row, theirs, values))
    columns = pd.DataFrame({index: values for index, (*_, values) in enumerate(named)}).dropna()
    kinds = ["several" if row in several else "adapting" if adapts(runs, row) else "single" for row, *_ in named]
    names = tuple(row.title() for row, *_ in named) if len(columns) else ()
    return Order(title, names, tuple(kinds), np.array([theirs for _, theirs, _ in named]), 100 * columns.to_numpy().T)


def prediction(runs: Runs) -> Iterator[Table]:
    """Spearman's and Kendall's correlation with each published table."""
    if not (made := orders(runs)):
        return
    yield Table(
        "prediction",
        f"Does {runs.model} predict the order of methods that was published for {published_model(runs.model)}? Rank "
        f"correlations with {LEVEL:.0%} intervals, over all methods and over those that make one model without images.",
        ["published table", "methods", "Spearman", "Kendall", "single models", "Spearman", "Kendall", "placed wrongly"],
        [
            [order.title, *_correlations(order), *_correlations(order.single()), ", ".join(_misplaced(order))]
            for order in made
        ],
        runs.seeds,
        averaged=False,
        in_readme=True,
        notes=(
            "Intervals: a bootstrap that draws seeds and methods. In brackets behind a title: the checkpoints that the "
            "published numbers are of. Placed wrongly: the methods farthest from their published place among all, "
            "+ for a higher place here.",
        ),
    )


def redundancy(runs: Runs) -> Iterator[Table]:
    """What a task's own model keeps when its vector is trimmed: a reason for the places of methods that trim."""
    group = Group(runs.main_tasks)
    by_share: dict[float, Row] = {}
    for result in results_of(runs, group):
        if canonical(result.method) == PRUNING and not result.encoders:
            row = Row.of(result)
            by_share[json.loads(row.options or "{}").get("k", METHODS[PRUNING].defaults()["k"])] = row
    if not by_share:
        return
    paper, (table, *_) = "tall", FAMILIES["TALL"][1]["tall"]
    cells = []
    for share in sorted(by_share):
        row = by_share[share]
        name, setting = row.published_name(paper, table), f"{BENCHMARKS[0]} tasks"
        theirs = published(runs.model, paper, table, name, setting, "normalised")
        cells.append([f"{share:g} %", percent(runs, theirs, metric="normalised", **group.columns, **row.columns)])
    yield Table(
        "redundancy",
        f"How much of a fine-tuned model is in its largest weights, {len(runs.main_tasks)} tasks: normalised accuracy "
        f"of θ0 and the largest k % of |τ| of a task alone, %; in brackets the published "
        f"{published_model(runs.model)}.",
        ["largest weights kept", "normalised"],
        cells,
        runs.seeds,
        notes=(
            f"TIES and AdaMerging++ keep {METHODS[TRIMMING].defaults()['k']:g} % of each vector before they merge. "
            "Where that costs a task's own model more than it costs CLIP's, methods that trim stand lower than "
            "published.",
        ),
        in_readme=True,
    )


def _correlations(order: Order) -> list[str]:
    if not order.enough:
        return [str(len(order.names)), "", ""]
    cells = []
    for correlation in (spearman, kendall):
        low, high = interval(order, correlation)
        cells.append(f"{correlation(order.theirs, order.ours.mean(1)):.2f} ({low:.2f} to {high:.2f})")
    return [str(len(order.names)), *cells]


def _misplaced(order: Order) -> list[str]:
    by_size = sorted(zip(order.misplaced, order.names), key=lambda pair: -abs(pair[0]))
    return [f"{name} {f'{places:+g}'.replace('-', '−')}" for places, name in by_size[:NAMED] if abs(places) >= 1]


def prediction_figure(runs: Runs) -> Figure:
    """Ours against published, one panel for each published table; those placed most wrongly are named."""
    made = orders(runs)
    if not made:
        raise runs.missing_merge("method=sum,ties,average,consensus")
    columns = min(3, len(made))
    lines = -(-len(made) // columns)
    size = (style.WIDTH, 0.8 + 2.4 * lines)
    fig, grid = plt.subplots(lines, columns, figsize=size, squeeze=False)
    for axes in grid.flat[len(made) :]:
        axes.set_axis_off()
    for axes, order in zip(grid.flat, made):
        _points(axes, order)
    for panels in grid:
        panels[0].set_ylabel(f"{runs.model} (%)")
    handles = [
        Line2D([], [], ls="none", color=color, marker=marker, label=label) for label, color, marker in KINDS.values()
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=3)
    fig.draw_without_rendering()
    for axes, order in zip(grid.flat, made):
        _names(axes, order)
    return fig


def _points(axes: Axes, order: Order) -> None:
    means, spread = order.ours.mean(1), order.ours.std(1, ddof=1) if order.ours.shape[1] > 1 else None
    for kind, (_, color, marker) in KINDS.items():
        index = [i for i, of_method in enumerate(order.kinds) if of_method == kind]
        axes.errorbar(
            order.theirs[index], means[index], yerr=None if spread is None else spread[index], color=color,
            marker=marker, ls="none", ms=4, elinewidth=0.8,
        )  # fmt: skip
    axes.margins(0.12)
    axes.set_xlabel("published (%)")
    paper, _, what = order.title.partition(", ")  # on two lines, as one is too long for a panel
    paper = PAPER_TITLES.get(paper, paper)
    axes.set_title(f"{paper}\n{what}: ρ = {spearman(order.theirs, means):.2f}", fontsize=7).set_in_layout(False)


def _names(axes: Axes, order: Order) -> None:
    """Of the methods that are placed most wrongly."""
    means, spread = order.ours.mean(1), order.ours.std(1, ddof=1) if order.ours.shape[1] > 1 else 0 * order.theirs
    farthest = np.argsort(-np.abs(order.misplaced), kind="stable")[:NAMED]
    named = {order.names[i]: (order.theirs[i], means[i]) for i in farthest if abs(order.misplaced[i]) >= 1}
    name_points(axes, named, list(zip(order.theirs, means - spread, means + spread)), fontsize=6)
