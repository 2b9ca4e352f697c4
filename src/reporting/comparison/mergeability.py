"""Which pairs of tasks merge well, and what foretells it: correlations of measures with accuracy, over pairs."""

from collections.abc import Iterator
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from src.experiments.mergeability import MEASURES, MERGERS
from src.experiments.registry import MERGEABILITY
from src.merging.registry import METHODS, load_methods
from src.modes import MODES
from src.reporting import style
from src.reporting.claim import Plain
from src.reporting.plots import legend_below
from src.reporting.published import published
from src.reporting.result import chosen
from src.reporting.runs import Runs
from src.reporting.table import Cell, Table

USUAL = MERGEABILITY.choices[0]
BENCH = {"average": "weight_avg", "sum": "arithmetic (0.3)", "tsv_m": "tsv", "iso_c": "isotropic"}  # in published.csv
STRONG = 0.5  # |r|


def titles() -> dict[str, str]:
    load_methods()
    return {method: METHODS[method].title for method in MERGERS}


def mergeability(runs: Runs) -> Iterator[Table]:
    """By kind of task vector a table: measures x methods."""
    for mode in MERGEABILITY.choices:
        if runs.of(MERGEABILITY, mode):
            yield _table(runs, mode)


def _table(runs: Runs, mode: str) -> Table:
    rows: list[list[str | Cell]] = [
        ["normalised accuracy of a pair, %", "", *(Cell(_accuracy(runs, mode, m), _theirs(runs, m)) for m in MERGERS)]
    ]
    rows[0] += [""] * len(MERGERS)
    for measure, row in MEASURES.items():
        cells = [
            Cell(correlation(runs, mode, name, measure, method), digits=2)
            for name in ("pearson", "spearman")
            for method in MERGERS
        ]
        rows.append([row.title, "weights" if row.of_weights else "images", *cells])
    rows.append(
        ["largest size of a measure of weights", "weights"]
        + [Cell(largest(runs, mode, method), digits=2) for method in MERGERS]
        + [""] * len(MERGERS)
    )
    named = titles().values()
    return Table(
        "mergeability" if mode == USUAL else f"mergeability_{mode}",
        f"What foretells how well two tasks merge, {MODES[mode].title}: correlations of measures of a pair with the "
        f"normalised test accuracy of the model merged of it, over all pairs of {len(runs.main_tasks)} tasks; in "
        "brackets Mergeability-Bench's accuracy.",
        ["measure", "of", *(f"{name}, r" for name in named), *(f"{name}, ρ" for name in named)],
        rows,
        runs.seeds,
        notes=(
            "r: Pearson's, ρ: Spearman's. Task arithmetic is at the α that validation chooses for the pair, TSV-M and "
            "Iso-C at α = 1. Of weights: nothing but checkpoints is needed. Of images: of validation. Pairs that share "
            "a task are not independent of each other.",
        ),
    )


def _accuracy(runs: Runs, mode: str, method: str) -> pd.Series:
    return 100 * runs.values(**chosen(MERGEABILITY, mode), metric=f"normalised_{method}")


def _theirs(runs: Runs, method: str) -> float | None:
    where = "Demystifying Mergeability", "merging", BENCH[method], "2 tasks", "normalised"
    return published(runs.model, *where)


def correlation(runs: Runs, mode: str, name: str, measure: str, method: str) -> pd.Series:
    """name: pearson or spearman."""
    return runs.values(**chosen(MERGEABILITY, mode), metric=f"{name}_{measure}_{method}")


def largest(runs: Runs, mode: str, method: str) -> pd.Series:
    """For each seed the largest |r| of the measures of weights alone."""
    of_weights = [measure for measure, row in MEASURES.items() if row.of_weights]
    by_measure = {measure: correlation(runs, mode, "pearson", measure, method).abs() for measure in of_weights}
    return pd.DataFrame(by_measure).max(axis=1).dropna()


def mergeability_figure(runs: Runs) -> Figure:
    """Pearson's correlation of every measure with accuracy, by method."""
    runs.require(MERGEABILITY, USUAL)
    fig, axes = plt.subplots(figsize=(style.WIDTH, 3.6))
    places = np.arange(len(MEASURES))[::-1]
    for index, (method, title) in enumerate(titles().items()):
        values = [correlation(runs, USUAL, "pearson", measure, method) for measure in MEASURES]
        y = places + 0.15 * (1.5 - index)
        color, marker = style.PALETTE[index], style.MARKERS[index]
        spread = [of.std() if len(of) > 1 else 0 for of in values]
        axes.errorbar(
            [of.mean() for of in values], y, xerr=spread, color=color, marker=marker, ms=4, ls="none", elinewidth=0.8,
            label=title,
        )  # fmt: skip
    axes.axvline(0, color=style.BLACK, lw=0.8)
    for end in (-STRONG, STRONG):
        axes.axvline(end, color=style.GREY, lw=0.8, ls=style.DASHED)
    axes.set_yticks(places, [f"{row.title}{'' if row.of_weights else ' *'}" for row in MEASURES.values()])
    axes.set(xlim=(-1.03, 1.03), xlabel="Pearson's r with the normalised accuracy of a pair")
    legend_below(fig, axes)
    return fig


@dataclass(frozen=True)
class Foretelling(Plain):
    """The largest |r| over pairs of a measure of weights alone with the accuracy that a method has."""

    method: str

    @property
    def title(self) -> str:
        return f"largest correlation of a measure of weights, {titles()[self.method]}"

    def values(self, runs: Runs) -> pd.Series:
        return largest(runs, USUAL, self.method)

    def commands(self, runs: Runs) -> list[str]:
        return runs.missing(MERGEABILITY, [USUAL])
