"""Layer-wise functional interference: by part of the network and kind of task vector, and what weights tell of it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from src.analysis.layerwise import ATTENTION, END, MLP, STEM
from src.experiments.layerwise import Record, geometric_mean, off_diagonal
from src.experiments.registry import LAYERWISE
from src.modes import EVALUATED, MODES
from src.reporting import style
from src.reporting.claim import Plain
from src.reporting.methods import Group, variant_row
from src.reporting.plots import legend_below
from src.reporting.runs import Runs
from src.reporting.table import Cell, Table

FIRST, SECOND = "first half of the blocks", "second half of the blocks"


def layerwise(runs: Runs) -> Iterator[Table]:
    """By kind of task vector: where interference is, what weights alone tell of it, and what LiNeS gains."""
    there = [mode for mode in EVALUATED if runs.of(LAYERWISE, mode)]
    if not there:
        return
    yield Table(
        "layerwise",
        "Layer-wise functional interference: what another task's vector changes of a task's features, over what its "
        "own changes, when each moves one part of the network alone; geometric means over pairs of tasks.",
        [
            "",
            FIRST,
            SECOND,
            "attention",
            "MLPs",
            "all other tasks at once",
            "parts, correlation with STI",
            "pairs, correlation with the cosine",
            "LiNeS' gain over task arithmetic, points",
        ],
        [
            [
                MODES[mode].title,
                *(Cell(_by_seed(runs, mode, of_parts(where)), digits=2) for where in (FIRST, SECOND, ATTENTION, MLP)),
                Cell(_by_seed(runs, mode, together), digits=2),
                Cell(_by_seed(runs, mode, with_singular), digits=2),
                Cell(_by_seed(runs, mode, with_cosine), digits=2),
                Cell(lines_gain(runs, mode)),
            ]
            for mode in there
        ],
        runs.seeds,
        notes=(
            "Energies, E ‖·‖². Exact for tangent vectors, whose features are linear in them; of others the change is a "
            "difference of two models. Correlations: Spearman's, of interference with the singular task interference "
            "of a part's matrices over parts, and with the size of the cosine of two vectors over pairs and parts.",
        ),
    )


def _by_seed(runs: Runs, mode: str, number: Callable[[Record], float]) -> pd.Series:
    return pd.Series({seed: number(record) for seed, record in runs.of(LAYERWISE, mode).items()}, dtype=float).dropna()


def block_of(part: str) -> int | None:
    """The block of a part; None for the stem and the projection."""
    return None if part in (STEM, END) else int(part.split()[0])


def of_parts(where: str) -> Callable[[Record], float]:
    """The geometric mean over pairs and the parts of the blocks: of a half of them, of attention, or of the MLPs.

    NaN where the mode moves none of these parts, as attention-only fine-tuning moves no MLP.
    """

    def mean(record: Record) -> float:
        blocks = [block for part in record["parts"] if (block := block_of(part)) is not None]
        middle = max(blocks) / 2

        def inside(part: str) -> bool:
            block = block_of(part)
            if block is None:
                return False
            return (block > middle) == (where == SECOND) if where in (FIRST, SECOND) else part.endswith(where)

        chosen = [grid for part, grid in zip(record["parts"], record["interference"]) if inside(part)]
        ratios = [value for grid in chosen for value in off_diagonal(grid)]
        return geometric_mean(ratios) if ratios else math.nan

    return mean


def together(record: Record) -> float:
    return geometric_mean([value for of_part in record["together"] for value in of_part])


def with_singular(record: Record) -> float:
    """Over the parts that have matrices."""
    known = [
        (geometric_mean(off_diagonal(grid)), singular)
        for grid, singular in zip(record["interference"], record["singular"])
        if singular is not None
    ]
    return _rank_correlation(*zip(*known))


def with_cosine(record: Record) -> float:
    pairs = [
        (value, abs(cosine))
        for grid, cosines in zip(record["interference"], record["cosine"])
        for value, cosine in zip(off_diagonal(grid), off_diagonal(cosines), strict=True)
    ]
    return _rank_correlation(*zip(*pairs))


def _rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    return float(spearmanr(one, other).statistic)


def lines_gain(runs: Runs, mode: str) -> pd.Series:
    group = Group(runs.main_tasks, mode)
    rows = (variant_row("lines"), variant_row("sum"))
    with_lines, without = (runs.values(metric="accuracy", **group.columns, **row.columns) for row in rows)
    return (100 * (with_lines - without)).dropna()


def layer_interference(runs: Runs) -> Figure:
    """Interference along the network, of another task's vector and of all others at once."""
    records = {mode: list(runs.of(LAYERWISE, mode).values()) for mode in EVALUATED}
    if not any(records.values()):
        runs.require(LAYERWISE, EVALUATED[0])
    fig, panels = plt.subplots(1, 2, figsize=(style.WIDTH, 3.3), sharex=True)
    measures: Mapping[str, Callable[[Record], list[float]]] = {
        "of another task": lambda record: [geometric_mean(off_diagonal(grid)) for grid in record["interference"]],
        "of all others at once": lambda record: [geometric_mean(of_part) for of_part in record["together"]],
    }
    for axes, (title, of_record) in zip(panels, measures.items()):
        for mode, of_mode in records.items():
            if of_mode:
                parts = of_mode[0]["parts"]
                values = np.array([of_record(record) for record in of_mode])
                look: dict[str, Any] = dict(color=MODES[mode].colour, marker=MODES[mode].marker, ls=MODES[mode].line)
                axes.plot(range(len(parts)), values.mean(0), ms=4, label=MODES[mode].title, **look)
                axes.set_xticks(range(len(parts)), parts, rotation=60, ha="right", fontsize=7)
        axes.axhline(1, color=style.GREY, lw=0.8, ls=style.DASHED)
        axes.set(title=title, ylim=(0, None))
    panels[0].set_ylabel("change of the features,\nover the own vector's")
    legend_below(fig, panels[0])
    return fig


@dataclass(frozen=True)
class Layered(Plain):
    """Layer-wise interference of a mode. where: a half of the blocks, attention or MLPs; empty: all at once."""

    where: str
    mode: str

    @property
    def title(self) -> str:
        return f"functional interference, {MODES[self.mode].title}, {self.where or 'all other tasks at once'}"

    def values(self, runs: Runs) -> pd.Series:
        return _by_seed(runs, self.mode, of_parts(self.where) if self.where else together)

    def commands(self, runs: Runs) -> list[str]:
        return runs.missing(LAYERWISE, [self.mode])
