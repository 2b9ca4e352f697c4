"""The course of adaptations: what the best step on test adds, and whether entropy follows the loss."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from src.experiments.course import ENTROPY, EXPERT, Course, Readings, Record, over_tasks
from src.experiments.registry import COURSE
from src.merging.registry import variant_label, variants
from src.modes import MODES
from src.reporting import style
from src.reporting.claim import Plain, Quantity
from src.reporting.plots import banded, legend_below
from src.reporting.result import chosen
from src.reporting.runs import Runs
from src.reporting.table import Cell, Table

TITLE = 24  # characters of a line above a panel
USUAL = COURSE.choices[0]
LAST, BEST, STOPPED = Readings._fields
READINGS = {LAST: "last step", BEST: "best step on test", STOPPED: "best step on validation"}
PROXIES = {ENTROPY: "entropy of the predictions", EXPERT: "cross-entropy with the experts"}
MINIMISED = {ENTROPY: "entropy", EXPERT: "experts' labels"}


def course(runs: Runs) -> Iterator[Table]:
    """By kind of task vector a table: readings of each method's run, and what follows its loss."""
    for mode in COURSE.choices:
        if records := runs.of(COURSE, mode):
            yield _table(runs, mode, list(records.values()))


def _table(runs: Runs, mode: str, records: Sequence[Record]) -> Table:
    minimised = {label: one["minimised"] for record in records for label, one in record["methods"].items()}
    return Table(
        "course" if mode == USUAL else f"course_{mode}",
        f"One run of adaptation, read three times, {len(runs.main_tasks)} tasks, {MODES[mode].title}: test accuracy, "
        "%, at its last step and at the steps that are best on test and on validation images; and whether what is "
        "minimised follows the test loss.",
        ["method", *READINGS.values(), "best on test less last, points", "minimised", "Spearman with the test loss"],
        [
            [
                titles().get(label, label),
                *(Cell(reading(runs, mode, label, name)) for name in READINGS),
                Cell(reading(runs, mode, label, BEST) - reading(runs, mode, label, LAST), digits=2),
                MINIMISED[proxy],
                Cell(following(runs, mode, label, proxy), digits=2),
            ]
            for label, proxy in minimised.items()
        ],
        runs.seeds,
        notes=(
            "The best step is that of the best mean accuracy over tasks among the steps that were scored, the start "
            "included. Spearman's correlation is over those steps, of the mean entropy of the predictions on the test "
            "images, or of their cross-entropy with those of the tasks' own models, with the loss there; means over "
            "tasks.",
        ),
    )


def titles() -> dict[str, str]:
    """Of methods, by the name of their results."""
    return {variant_label(variant): variant.title for variant in variants()}


def reading(runs: Runs, mode: str, label: str, name: str) -> pd.Series:
    """Mean test accuracy, in percent. name: of READINGS."""
    return 100 * runs.values(**chosen(COURSE, mode), metric=f"{name}_accuracy_{label}")


def following(runs: Runs, mode: str, label: str, proxy: str) -> pd.Series:
    return runs.values(**chosen(COURSE, mode), metric=f"following_{proxy}_{label}")


def course_figure(runs: Runs) -> Figure:
    """The test loss along each method's run, and the two proxies; means over tasks."""
    by_label: dict[str, list[Course]] = {}
    for record in runs.require(COURSE, USUAL).values():
        for label, of_method in record["methods"].items():
            by_label.setdefault(label, []).append(of_method)
    size = (style.WIDTH, 2.9)
    fig, (panels,) = plt.subplots(1, len(by_label), figsize=size, sharey=True, squeeze=False)
    for axes, (label, courses) in zip(panels, by_label.items()):
        steps = courses[0]["step"]
        alike = [one for one in courses if one["step"] == steps]
        looks: dict[str, Any] = {
            ENTROPY: dict(color=style.BLUE, marker="o"),
            EXPERT: dict(color=style.ORANGE, marker="s"),
        }
        for proxy, look in looks.items():
            curves = np.array([over_tasks(one["proxies"][proxy]) for one in alike])
            line = "-" if courses[0]["minimised"] == proxy else style.DASHED
            banded(axes, steps, curves, ls=line, ms=3.5, label=PROXIES[proxy], **look)
        losses = np.array([over_tasks(one["test"]["loss"]) for one in alike])
        banded(axes, steps, losses, style.BLACK, marker="^", ms=3.5, label="loss with the labels")
        axes.set(title=textwrap.fill(titles().get(label, label), TITLE), xlabel="step", ylim=(0, None))
    panels[0].set_ylabel("on test images, nats")
    legend_below(fig, panels[0])
    return fig


@dataclass(frozen=True)
class Reading(Quantity):
    """Mean test accuracy of a method's run at one of its steps. label: of its results. name: of READINGS."""

    label: str
    name: str

    of_images = False  # results have no bits of every step

    @property
    def title(self) -> str:
        return f"{titles()[self.label]}, {READINGS[self.name]}"

    def values(self, runs: Runs) -> pd.Series:
        return reading(runs, USUAL, self.label, self.name)

    def commands(self, runs: Runs) -> list[str]:
        return runs.missing(COURSE, [USUAL])


@dataclass(frozen=True)
class Following(Plain):
    """Spearman's correlation of what a method minimises with the test loss, over the steps of its run."""

    label: str
    proxy: str

    @property
    def title(self) -> str:
        return f"{MINIMISED[self.proxy]} with the test loss, {titles()[self.label]}"

    def values(self, runs: Runs) -> pd.Series:
        return following(runs, USUAL, self.label, self.proxy)

    def commands(self, runs: Runs) -> list[str]:
        return runs.missing(COURSE, [USUAL])
