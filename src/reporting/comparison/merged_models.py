"""Merged models seen closely: where the accuracy goes, disagreement and bias, calibration."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean as mean
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from src.analysis.calibration import TEMPERATURES
from src.experiments.merged_models import Record
from src.experiments.registry import MERGED_MODELS
from src.merging.registry import METHODS, variant_label, variants
from src.modes import EVALUATED, MODES
from src.reporting import style
from src.reporting.claim import Quantity
from src.reporting.methods import FINETUNED, Row, absent_seeds
from src.reporting.plots import legend_below, method_looks
from src.reporting.runs import Runs
from src.reporting.table import Cell, Table, printed

OWN = "finetuned"  # in the place of a method's name
SHOWN = ("average", "sum", "ties", "lines", "iso_c", "tsv_m", "wudi", "regmean", "adamerging", "tall_mask", "emr")


def rows(runs: Runs, mode: str) -> dict[str, Row]:
    """Name of a method's results -> row, of those that any seed has, in the order of the tables."""
    there = {label for record in runs.of(MERGED_MODELS, mode).values() for label in record["methods"]}
    return {label: Row.registered(variant) for variant in variants() if (label := variant_label(variant)) in there}


def merged_models(runs: Runs) -> Iterator[Table]:
    """Where the accuracy goes, by kind of task vector; predictions and features; calibration."""
    there = [mode for mode in EVALUATED if runs.of(MERGED_MODELS, mode)]
    if not there:
        return
    yield _accuracy_lost(runs, there)
    yield Table(
        "merged_models",
        "How merged models differ from the fine-tuned ones on their tasks' test images: predictions that differ (ξ), "
        "%, and the bias of the features, % of their size.",
        [
            "method",
            *(f"ξ, {MODES[mode].short}" for mode in there),
            *(f"bias, {MODES[mode].short}" for mode in there),
        ],
        [
            [
                row.title(),
                *(Cell(_measure(runs, mode, "disagreement", label)) for mode in there),
                *(Cell(_measure(runs, mode, "bias", label)) for mode in there),
            ]
            for label, row in _of_modes(runs, there).items()
        ],
        runs.seeds,
        notes=("ξ: against the model fine-tuned on the task alone. Bias: E |f − f_t| / E |f_t|, behind the adapter.",),
    )
    for mode in there:
        yield _calibration(runs, mode)


def _of_modes(runs: Runs, modes: Sequence[str]) -> dict[str, Row]:
    by_label = {label: row for mode in modes for label, row in rows(runs, mode).items()}
    return dict(sorted(by_label.items(), key=lambda entry: entry[1].rank))


def _measure(runs: Runs, mode: str, measure: str, label: str) -> pd.Series:
    return 100 * runs.values(experiment=MERGED_MODELS.name, mode=mode, metric=f"{measure}_{label}")


def _accuracy_lost(runs: Runs, there: Sequence[str]) -> Table:
    entries = []
    for mode in there:
        for label, row in rows(runs, mode).items():
            if METHODS[row.method].adds and not row.options:
                own, alone, merged = _steps(runs, mode, label)
                losses = (own - alone, alone - merged)
                entries.append([f"{row.title()}, {MODES[mode].title}", *map(Cell, (own, alone, merged, *losses))])
    return Table(
        "accuracy_lost",
        "Where the accuracy goes: of the fine-tuned models, of each task's own vector at the merged model's "
        "coefficient, of the merged model; test accuracy, %.",
        ["", "fine-tuned", "own vector, scaled", "merged", "lost by scaling", "lost by interference"],
        entries,
        runs.seeds,
    )


def _steps(runs: Runs, mode: str, label: str) -> tuple[pd.Series, pd.Series, pd.Series]:
    own, merged = (_measure(runs, mode, "accuracy", name) for name in (OWN, label))
    return own, _measure(runs, mode, "own_accuracy", label), merged


def _calibration(runs: Runs, mode: str) -> Table:
    named = {FINETUNED: OWN} | {row.title(): label for label, row in rows(runs, mode).items()}
    return Table(
        "calibration" if mode == "standard" else f"calibration_{mode}",
        f"Calibration of models merged of {MODES[mode].title}: test images, means over tasks, before and after one "
        "temperature for each task from validation.",
        ["method", "accuracy, %", "ECE, %", "ECE after, %", "loss", "loss after", "temperature"],
        [
            [
                title,
                *(
                    Cell(_measure(runs, mode, measure, label))
                    for measure in ("accuracy", "calibration_error", "scaled_calibration_error")
                ),
                *(Cell(_measure(runs, mode, measure, label) / 100, digits=2) for measure in ("loss", "scaled_loss")),
                Cell(temperatures(runs, mode, label), digits=2),
            ]
            for title, label in named.items()
        ],
        runs.seeds,
        notes=(
            "ECE: expected calibration error over 15 bins. Loss: negative log-likelihood. Temperature: the geometric "
            "mean over tasks; above 1 a model is over-confident, below 1 under-confident. Where validation has no "
            f"error it is the smallest tried, {TEMPERATURES[0]:g}.",
        ),
    )


def temperatures(runs: Runs, mode: str, label: str) -> pd.Series:
    """The geometric mean over tasks."""
    by_seed = {}
    for seed, record in runs.of(MERGED_MODELS, mode).items():
        of_label = record["finetuned"] if label == OWN else record["methods"].get(label)
        if of_label is not None:
            by_seed[seed] = float(np.exp(mean(np.log(list(of_label["temperature"].values())))))
    return pd.Series(by_seed, dtype=float)


def accuracy_lost(runs: Runs) -> Figure:
    """Task arithmetic, by task and kind of task vector: what is lost by scaling and by interference."""
    records = {mode: list(runs.of(MERGED_MODELS, mode).values()) for mode in EVALUATED}
    records = {mode: [r for r in of_mode if "sum" in r["scaled"]] for mode, of_mode in records.items()}
    records = {mode: of_mode for mode, of_mode in records.items() if of_mode}
    if not records:
        runs.require(MERGED_MODELS, EVALUATED[0])
        raise runs.missing_merge("method=sum")
    fig, panels = plt.subplots(1, len(records), figsize=(style.WIDTH, 2.8), sharey=True, squeeze=False)
    for axes, (mode, of_mode) in zip(panels[0], records.items()):
        tasks = of_mode[0]["tasks"]
        steps = np.mean([_by_task(record, tasks) for record in of_mode], 0)  # (3, tasks)
        own, alone, merged = steps[0], np.maximum(steps[1], steps[2]), steps[2]  # where other tasks help, none is lost
        parts = {
            "merged": (np.zeros(len(tasks)), merged, style.BLUE),
            "lost by interference": (merged, alone, style.VERMILION),
            "lost by scaling": (alone, np.maximum(own, alone), style.ORANGE),
        }
        for label, (low, high, colour) in parts.items():
            axes.bar(range(len(tasks)), high - low, 0.75, low, color=colour, label=label)
        axes.set_xticks(range(len(tasks)), [printed(task) for task in tasks], rotation=60, ha="right", fontsize=7)
        axes.set(title=MODES[mode].title, ylim=(0, 100))
        axes.grid(axis="x", visible=False)
    panels[0][0].set_ylabel("test accuracy (%)")
    legend_below(fig, panels[0][0])
    return fig


def _by_task(record: Record, tasks: Sequence[str]) -> list[list[float]]:
    parts = (record["finetuned"], record["scaled"]["sum"], record["methods"]["sum"])
    return [[100 * part["accuracy"][task] for task in tasks] for part in parts]


def representation_bias(runs: Runs) -> Figure:
    """Bias of the outputs of every block, by method."""
    modes = [mode for mode in EVALUATED if runs.of(MERGED_MODELS, mode)]
    if not modes:
        runs.require(MERGED_MODELS, EVALUATED[0])
    shown = {label: row for label, row in _of_modes(runs, modes).items() if label in SHOWN}
    looks = method_looks(runs, shown.values())
    fig, panels = plt.subplots(1, len(modes), figsize=(style.WIDTH, 3.4), sharey=True, squeeze=False)
    for axes, mode in zip(panels[0], modes):
        records = list(runs.of(MERGED_MODELS, mode).values())
        layers = records[0]["layers"]
        for label, row in shown.items():
            of_label = [100 * _mean_bias(record, label) for record in records if label in record["methods"]]
            if of_label:
                axes.plot(range(len(layers)), np.mean(of_label, 0), label=row.title(), ms=4, **looks[row])
        turned: dict[str, Any] = dict(rotation=60, ha="right") if len(layers) * len(modes) > 8 else {}
        axes.set_xticks(range(len(layers)), layers, fontsize=7, **turned)
        axes.set(title=MODES[mode].title, ylim=(0, None))
    panels[0][0].set_ylabel("representation bias (%)")
    legend_below(fig, panels[0][0])
    return fig


def _mean_bias(record: Record, label: str) -> np.ndarray:
    """(layers,), over tasks."""
    return np.mean(list(record["methods"][label]["bias"].values()), axis=0)


def calibration(runs: Runs) -> Figure:
    """Calibration error before and after one temperature, and that temperature, by method."""
    mode = EVALUATED[0]
    runs.require(MERGED_MODELS, mode)
    named = {FINETUNED: OWN} | {row.title(): label for label, row in rows(runs, mode).items()}
    order = sorted(named.items(), key=lambda entry: temperatures(runs, mode, entry[1]).mean())
    fig, (left, right) = plt.subplots(
        1, 2, figsize=(style.WIDTH, 0.6 + 0.17 * len(order)), sharey=True, width_ratios=(3, 2)
    )
    y = np.arange(len(order))
    errors = [
        np.array([_measure(runs, mode, measure, label).mean() for _, label in order])
        for measure in ("calibration_error", "scaled_calibration_error")
    ]
    left.hlines(y, *errors, color=style.PALE, lw=2.5)
    look: Mapping[str, Any] = dict(ls="none", ms=5)
    for values, colour, marker, label in zip(errors, (style.VERMILION, style.BLUE), "os", ("before", "after")):
        left.plot(values, y, color=colour, marker=marker, label=label, **look)
    left.set_yticks(y, [title for title, _ in order], fontsize=7)
    left.set(xlabel="expected calibration error (%)", xlim=(0, None), ylim=(-0.6, len(order) - 0.4))
    left.legend(loc="lower right")
    right.plot([temperatures(runs, mode, label).mean() for _, label in order], y, color=style.BLACK, marker="D", **look)
    right.axvline(1, color=style.GREY, lw=0.8, ls=style.DASHED)
    right.set_xscale("log", base=2)
    right.xaxis.set_major_formatter("{x:g}")
    right.set(xlabel="temperature: over-confident →")
    return fig


@dataclass(frozen=True)
class OfMerged(Quantity):
    """A mean over tasks of a method's merged models. measure: as in the record, or "temperature", or "interference".

    interference: what is lost to the other tasks at the merged model's coefficient, in points.
    """

    measure: str
    label: str
    mode: str = "standard"
    of_images: bool = False

    @property
    def digits(self) -> int:  # type: ignore[override]
        return 2 if self.measure == "temperature" else 1

    @property
    def in_points(self) -> bool:
        return self.measure != "temperature"

    @property
    def title(self) -> str:
        names = {variant_label(variant): variant.title for variant in variants()} | {OWN: FINETUNED}
        words = {
            "disagreement": "ξ",
            "calibration_error": "ECE",
            "scaled_calibration_error": "ECE after a temperature",
            "interference": "loss by interference",
        }
        return f"{words.get(self.measure, self.measure)} of {names[self.label]}, {MODES[self.mode].title}"

    def values(self, runs: Runs) -> pd.Series:
        if self.measure == "temperature":
            return temperatures(runs, self.mode, self.label)
        if self.measure == "interference":
            _, alone, merged = _steps(runs, self.mode, self.label)
            return (alone - merged).dropna()
        return _measure(runs, self.mode, self.measure, self.label)

    def commands(self, runs: Runs) -> list[str]:
        there = runs.of(MERGED_MODELS, self.mode)
        return [runs.command(MERGED_MODELS, self.mode, seed) for seed in absent_seeds(runs, there)]
