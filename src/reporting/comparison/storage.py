"""Accuracy against storage, for the methods that keep more than one model: bits as results have measured them."""

from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from src.reporting import style
from src.reporting.methods import FINETUNED, Group, Row, results_of, rows, variant_row
from src.reporting.plots import legend_below, sd
from src.reporting.runs import Runs
from src.reporting.table import Cell, Table

ONE_MODEL = ("average", "sum", "tsv_m")  # methods that make one, for scale


def bits(runs: Runs, group: Group, row: Row) -> pd.Series:
    """All that is kept, in bits a weight and task: 32/T of one model in fp32, 32 of a model for each task."""
    this, merged = (
        runs.values(metric=metric, **group.columns, **row.columns) for metric in ("storage", "storage_merged")
    )
    return (32 * this / (len(group.tasks) * merged)).dropna()


def keeping(runs: Runs, group: Group) -> list[Row]:
    """Rows of results that keep more than one model."""
    several = [r for r in results_of(runs, group) if r.record["storage"]["this"] > r.record["storage"]["merged"]]
    return rows(several)


def storage(runs: Runs) -> Iterator[Table]:
    """By method: bits and accuracy."""
    group = Group(runs.main_tasks)
    shown = keeping(runs, group)
    if not shown:
        return
    yield Table(
        "storage",
        f"Accuracy against storage, {len(group.tasks)} tasks: methods that keep more than one model.",
        ["method", "bits a weight and task", "accuracy, %", "normalised, %"],
        [
            [
                row.title(),
                Cell(bits(runs, group, row), digits=2, spread=False),
                *(Cell(_accuracy(runs, group, row, metric)) for metric in ("accuracy", "normalised")),
            ]
            for row in shown
        ],
        runs.seeds,
        same_seeds=True,
        notes=(
            f"Of all that is kept, θ0 included where it is needed: one model in fp32 takes {32 / len(group.tasks):g} "
            "bits a weight and task, a fine-tuned model for each task 32.",
        ),
    )


def accuracy_against_storage(runs: Runs) -> Figure:
    """Accuracy against bits a weight and task, on a logarithmic axis; lines join the options of a method."""
    group = Group(runs.main_tasks)
    shown = keeping(runs, group)
    if not shown:
        raise runs.missing_merge("method=tall_mask")
    single = [row for row in map(variant_row, ONE_MODEL) if not _accuracy(runs, group, row).empty]
    by_variant: dict[str, list[Row]] = {}
    for row in (*single, *shown):
        by_variant.setdefault(row.variant.title if row.variant else row.method, []).append(row)
    fig, axes = plt.subplots(figsize=(style.WIDTH, 3.6))
    for index, (title, alike) in enumerate(by_variant.items()):
        points = sorted(
            [(bits(runs, group, row).mean(), _accuracy(runs, group, row)) for row in alike], key=lambda point: point[0]
        )
        look: Any = dict(
            color=style.PALETTE[index % len(style.PALETTE)], marker=style.MARKERS[index % len(style.MARKERS)]
        )
        x, y, spread = zip(*((x, values.mean(), sd(values) or 0.0) for x, values in points))
        axes.errorbar(x, y, spread, label=title, lw=0.9, elinewidth=0.8, ms=5.5, **look)
    finetuned = 100 * runs.any_of(metric="finetuned_accuracy", method=..., options=..., **group.columns)
    axes.plot(32, finetuned.mean(), "P", color=style.BLACK, ms=7, label=FINETUNED)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="stored in all, bits a weight and task", ylabel="test accuracy (%)")
    legend_below(fig, axes, 3)
    return fig


def _accuracy(runs: Runs, group: Group, row: Row, metric: str = "accuracy") -> pd.Series:
    return 100 * runs.values(metric=metric, **group.columns, **row.columns)
