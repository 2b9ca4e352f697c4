"""Lines in weight space: barriers between models of different tasks, and from the pre-trained model to each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean as mean
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from src.experiments.connectivity import Record, joint
from src.experiments.registry import CONNECTIVITY
from src.modes import EVALUATED, MODES
from src.reporting import style
from src.reporting.claim import Plain
from src.reporting.plots import banded, legend_below
from src.reporting.result import chosen
from src.reporting.runs import Runs
from src.reporting.table import Cell, Table

JOINT, SINGLE = "barrier_joint", "barrier_single"
SMALL = 0.01  # nats


def connectivity(runs: Runs) -> Iterator[Table]:
    """By kind of task vector: barriers between models, and the best point from θ0 to a model."""
    there = [mode for mode in EVALUATED if runs.of(CONNECTIVITY, mode)]
    if not there:
        return
    yield Table(
        "connectivity",
        "Loss barriers between models fine-tuned on different tasks, in nats, means over pairs of tasks; and lines "
        "from θ0 to each model: accuracy on its task and on the control set, %, at the model and half way (WiSE-FT).",
        [
            "",
            "barrier on both tasks",
            "barrier on one task",
            "pairs joined without one",
            "task, half way",
            "task, at the model",
            "control, at θ0",
            "control, half way",
            "control, at the model",
        ],
        [
            [
                MODES[mode].title,
                *(Cell(barriers(runs, mode, metric), digits=3) for metric in (JOINT, SINGLE)),
                Cell(100 * _joined(runs, mode)),
                Cell(_on_line(runs, mode, 0.5, control=False)),
                Cell(_on_line(runs, mode, 1.0, control=False)),
                *(Cell(_on_line(runs, mode, where, control=True)) for where in (0.0, 0.5, 1.0)),
            ]
            for mode in there
        ],
        runs.seeds,
        notes=(
            "The barrier is the most by which the loss at a point of the line between two models exceeds the line "
            f"between the losses at its ends; on both tasks it is that of their mean loss. Joined: below {SMALL:g} "
            "nats, %.",
        ),
    )


def barriers(runs: Runs, mode: str, metric: str) -> pd.Series:
    """The mean barrier over pairs of tasks, in nats."""
    return runs.values(**chosen(CONNECTIVITY, mode), metric=metric)


def _joined(runs: Runs, mode: str) -> pd.Series:
    """The share of pairs whose barrier on both tasks is small."""
    rows = runs.select(**chosen(CONNECTIVITY, mode), metric=JOINT, task=...)
    of_pairs = rows[rows["task"] != "mean"]
    return (of_pairs["value"] < SMALL).groupby(of_pairs["seed"]).mean()


def _on_line(runs: Runs, mode: str, where: float, control: bool) -> pd.Series:
    """Mean accuracy over tasks at a point from θ0 to each model, in percent; none where it is no point."""
    values = {}
    for seed, record in runs.of(CONNECTIVITY, mode).items():
        points = list(record["points"])
        curves = from_pretrained(record, control)
        if where in points and curves:
            values[seed] = 100 * mean(curve[points.index(where)] for curve in curves)
    return pd.Series(values, dtype=float)


def from_pretrained(record: Record, control: bool) -> list[Sequence[float]]:
    """The accuracies from θ0 to each model, on its task or on the control set."""
    if control and record["control"] is None:
        return []
    return [
        course["accuracy"][record["control"] if control and record["control"] else task]
        for task, course in record["from_pretrained"].items()
    ]


def connectivity_figure(runs: Runs) -> Figure:
    """The loss from one model to another on both tasks, and what the line from θ0 to a model trades."""
    records = {mode: list(there.values()) for mode in EVALUATED if (there := runs.of(CONNECTIVITY, mode))}
    if not records:
        runs.require(CONNECTIVITY, EVALUATED[0])
    fig, (between, along) = plt.subplots(1, 2, figsize=(style.WIDTH, 3.1))
    for mode, of_mode in records.items():
        row, points = MODES[mode], of_mode[0]["points"]
        look: dict[str, Any] = dict(marker=row.marker, ls=row.line, ms=4, label=row.title)
        losses = np.array([np.mean([joint(course) for course in r["pairs"].values()], axis=0) for r in of_mode])
        banded(between, points, losses, row.colour, **look)
        if not all(record["control"] for record in of_mode):
            continue
        control, task = (
            100 * np.mean([np.mean(from_pretrained(record, which), axis=0) for record in of_mode], axis=0)
            for which in (True, False)
        )
        along.plot(control, task, color=row.colour, **look)
    between.set(title="from one model to another", xlabel="s in (1 − s) θᵢ + s θⱼ", ylabel="loss on both tasks")
    between.set_ylim(0, None)
    along.set(title="from θ0 to a model", xlabel="accuracy on the control set, %", ylabel="accuracy on the task, %")
    legend_below(fig, between)
    return fig


@dataclass(frozen=True)
class Barrier(Plain):
    """The mean barrier over pairs of tasks, on both of them, in nats."""

    mode: str

    digits = 3

    @property
    def title(self) -> str:
        return f"barrier on both tasks, {MODES[self.mode].title}"

    def values(self, runs: Runs) -> pd.Series:
        return barriers(runs, self.mode, JOINT)

    def commands(self, runs: Runs) -> list[str]:
        return runs.missing(CONNECTIVITY, [self.mode])
