"""Spectral geometry: ranks and interference of task vectors by mode, and whether alignment goes with accuracy."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean as mean
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from src.experiments.geometry import Record
from src.experiments.registry import GEOMETRY, MERGING
from src.merging.depth import TAIL, stage_of
from src.merging.registry import variant_label, variants
from src.modes import MODES, TRAINED
from src.reporting import style
from src.reporting.claim import Plain
from src.reporting.labels import name_points
from src.reporting.methods import Group, Row
from src.reporting.plots import legend_below
from src.reporting.runs import Runs
from src.reporting.table import Cell, Table, printed
from src.runtime.results import MissingResult

MEASURES = {"effective_rank": "effective rank", "stable_rank": "stable rank", "energy": "energy of the leading 1/T, %"}
Points = list[tuple[str, str, float, float]]  # title of a method, task, SAR, NAI


def geometry(runs: Runs) -> Iterator[Table]:
    """Means over matrices and tasks, by kind of task vector."""
    there = [mode for mode in TRAINED if runs.of(GEOMETRY, mode)]
    if not there:
        return
    yield Table(
        "geometry",
        "Spectral geometry of the task vectors: means over the matrices of the image tower and the tasks.",
        ["", *MEASURES.values(), "interference (STI over Σ σ)", "alignment and gain, correlation"],
        [
            [
                MODES[mode].title,
                *(Cell(_measure(runs, mode, metric), digits=1) for metric in MEASURES),
                Cell(_measure(runs, mode, "interference"), digits=2),
                Cell(correlations(runs, mode), digits=2),
            ]
            for mode in there
        ],
        runs.seeds,
        notes=(
            "The leading 1/T: the singular vectors that TSV keeps of each task. Correlation: Pearson's, over methods "
            "and tasks, of subspace alignment (SAR) with normalised accuracy improvement (NAI).",
        ),
    )


def _measure(runs: Runs, mode: str, metric: str) -> pd.Series:
    values = runs.values(experiment=GEOMETRY.name, mode=mode, metric=metric)
    return 100 * values if metric == "energy" else values


def points(runs: Runs, mode: str, seed: int, record: Record) -> Points:
    """Of every method that has results: SAR, and NAI = (accuracy − zero-shot) / (fine-tuned − zero-shot)."""
    of_seed: Points = []
    group = Group(runs.main_tasks, mode)
    for variant in variants():
        of_method = record["alignment"].get(variant_label(variant))
        row = Row.registered(variant)
        merged = runs.find(**{**group.fields, "experiment": MERGING, "method": row.method, "options": row.options})
        if of_method is None or seed not in merged:
            continue
        result = merged[seed]
        for task, sar in of_method.items():
            low, high = (result[part]["accuracy"][task] for part in ("zeroshot", "test"))
            finetuned = result["denominators"]["test"][task]
            if finetuned != low:  # else fine-tuning gained nothing to take a share of
                of_seed.append((row.title(), task, sar, (high - low) / (finetuned - low)))
    return of_seed


def correlations(runs: Runs, mode: str) -> pd.Series:
    """Pearson's correlation of SAR and NAI over methods and tasks, for each seed with results of two methods."""
    by_seed = {}
    for seed, record in runs.of(GEOMETRY, mode).items():
        of_seed = points(runs, mode, seed, record)
        if len({title for title, *_ in of_seed}) > 1:
            by_seed[seed] = float(np.corrcoef([p[2] for p in of_seed], [p[3] for p in of_seed])[0, 1])
    return pd.Series(by_seed, dtype=float)


def alignment(runs: Runs) -> Figure:
    """Subspace alignment against normalised accuracy improvement: a point is a method, means over tasks and seeds."""
    of_modes: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for mode in TRAINED:
        for seed, record in runs.of(GEOMETRY, mode).items():
            for title, _, sar, nai in points(runs, mode, seed, record):
                of_modes.setdefault(mode, {}).setdefault(title, []).append((sar, nai))
    if not of_modes:
        raise _missing(runs)
    size = (style.WIDTH * max(1, len(of_modes) / 3), 3.6)
    fig, (panels,) = plt.subplots(1, len(of_modes), figsize=size, sharey=True, squeeze=False)
    shown = []
    for axes, (mode, by_title) in zip(panels, of_modes.items()):
        means = {title: tuple(np.mean(of_method, 0) * (1, 100)) for title, of_method in by_title.items()}
        for x, y in means.values():
            axes.plot(x, y, "o", ms=4, color=MODES[mode].colour)
        of_seeds = correlations(runs, mode)
        known = "" if of_seeds.empty else f", r = {of_seeds.mean():.2f}"
        axes.set(title=MODES[mode].title + known, xlabel="subspace alignment (SAR)")
        axes.margins(x=0.1)
        shown.append((axes, means))
    panels[0].set_ylabel("accuracy gained, % of fine-tuning's (NAI)")
    fig.draw_without_rendering()
    for axes, means in shown:
        marks = [(x, y, y) for x, y in means.values()]
        name_points(axes, means, marks, crowded=True, fontsize=6, color=style.GREY)
    return fig


def interference(runs: Runs) -> Figure:
    """Singular task interference of every matrix along the network, by kind of task vector."""
    records = {mode: list(runs.of(GEOMETRY, mode).values()) for mode in TRAINED}
    if not any(records.values()):
        raise _missing(runs)
    fig, axes = plt.subplots(figsize=(style.WIDTH, 3.2))
    for mode, of_mode in records.items():
        if of_mode:
            names = of_mode[0]["matrices"]
            order = sorted(range(len(names)), key=lambda i: stage_of(names[i]))
            names, values = [names[i] for i in order], np.array([r["interference"] for r in of_mode])[:, order]
            look: dict[str, Any] = dict(color=MODES[mode].colour, marker=MODES[mode].marker, ls=MODES[mode].line)
            axes.plot(range(len(names)), values.mean(0), ms=4, label=MODES[mode].title, **look)
            axes.set_xticks(range(len(names)), [_short(name) for name in names], rotation=60, ha="right", fontsize=7)
    axes.set(ylabel="interference (STI over Σ σ)", ylim=(0, None))
    legend_below(fig, axes)
    return fig


def _short(name: str) -> str:
    """`model.visual.transformer.resblocks.0.attn.in_proj_weight` -> `0 attn.in_proj`."""
    name = name.rpartition("visual.")[2].removesuffix("_weight").removesuffix(".weight")
    return printed(name.replace("transformer.resblocks.", "").replace(".", " ", 1))


def _missing(runs: Runs) -> MissingResult:
    command = runs.command(GEOMETRY, TRAINED[0], runs.command_seeds[0])
    return MissingResult(f"expected spectral geometry of {runs.model}, found none; make it with: {command}")


@dataclass(frozen=True)
class Spectral(Plain):
    """A mean over matrices of the geometry of a mode. half: of the blocks alone, the first (0) or the second (1)."""

    metric: str
    mode: str
    half: int | None = None

    @property
    def title(self) -> str:
        where = "" if self.half is None else f", {('first', 'second')[self.half]} half of the blocks"
        return f"{MEASURES.get(self.metric, self.metric)}, {MODES[self.mode].title}{where}"

    def values(self, runs: Runs) -> pd.Series:
        if self.metric == "correlation":
            return correlations(runs, self.mode)
        if self.half is None:
            return _measure(runs, self.mode, self.metric)
        records = runs.of(GEOMETRY, self.mode)
        return pd.Series({seed: _of_half(record, self.half) for seed, record in records.items()}, dtype=float)

    def commands(self, runs: Runs) -> list[str]:
        return runs.missing(GEOMETRY, [self.mode])


def _of_half(record: Mapping[str, Any], half: int) -> float:
    """The mean interference of the matrices in the first or the second half of the blocks."""
    in_blocks = [(stage_of(name), value) for name, value in zip(record["matrices"], record["interference"])]
    in_blocks = [(stage, value) for stage, value in in_blocks if 0 < stage < TAIL]
    middle = max(stage for stage, _ in in_blocks) / 2
    return mean(value for stage, value in in_blocks if (stage > middle) == bool(half))
