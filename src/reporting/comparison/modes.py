"""Ways of fine-tuning beside each other: alone, added, negated, disentangled; once an extended mode has results."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from src.experiments.registry import ADDITION, DISENTANGLEMENT, NEGATION, SINGLE_TASK
from src.modes import EVALUATED, MODES, usual
from src.reporting.methods import Group, variant_row
from src.reporting.runs import Runs
from src.reporting.table import Cell, Table, percent
from src.runtime.files import read_json
from src.runtime.paths import ROOT

STEPS, OF_MODEL = ROOT / "benchmarks" / "results" / "mode_steps.json", "ViT-Mini"


def modes(runs: Runs) -> Iterator[Table]:
    """Means over the papers' first tasks, and for ξ over the pairs."""
    shown = runs.modes(EVALUATED)
    if shown == usual(EVALUATED):
        return
    tasks, steps = runs.main_tasks, _steps(runs)
    what = "time of a training step over that of non-linear fine-tuning"
    note = f"step: {what}, as {STEPS.relative_to(ROOT)} has it."
    yield Table(
        "modes",
        f"Ways of fine-tuning, {len(tasks)} tasks: test accuracy alone, of θ0 + α Σ τ and of θ0 − α τ, and the mean "
        "disentanglement error over the search space, %.",
        [
            "mode",
            "single-task",
            "added, α = 1",
            "added, tuned",
            "α",
            "negated, target",
            "negated, control",
            "ξ",
            "step",
        ],
        [[*_row(runs, mode, tasks), steps.get(mode, "")] for mode in shown],
        runs.seeds,
        same_seeds=True,
        missing=tuple(
            command
            for experiment in (SINGLE_TASK, ADDITION, NEGATION, DISENTANGLEMENT)
            for command in runs.missing(experiment, shown)
        ),
        notes=(note,) if steps else (),
        in_readme=True,
    )


def _steps(runs: Runs) -> dict[str, str]:
    """The benchmark's ratios, of the model that it has."""
    if runs.model != OF_MODEL or not STEPS.is_file():
        return {}
    measured = read_json(STEPS)["steps"]
    return {mode: f"{measured[mode]['ratio']['median']:.2f}" for mode in MODES if mode in measured}


def _row(runs: Runs, mode: str, tasks: tuple[str, ...]) -> list[str | Cell]:
    added: dict[str, Any] = {"experiment": ADDITION.name, "mode": mode}
    negated: dict[str, Any] = {"experiment": NEGATION.name, "mode": mode}
    errors = runs.mean_over(None, experiment=DISENTANGLEMENT.name, mode=mode, metric="error_in_box")
    return [
        MODES[mode].title,
        Cell(100 * runs.mean_over(tasks, experiment=SINGLE_TASK.name, mode=mode, metric="accuracy")),
        Cell(100 * added_at_one(runs, mode)),
        percent(runs, metric="accuracy", **added),
        Cell(runs.values(metric="chosen", **added), digits=3),
        percent(runs, metric="target_accuracy", **negated),
        percent(runs, metric="control_accuracy", **negated),
        Cell(100 * errors),
    ]


def added_at_one(runs: Runs, mode: str) -> pd.Series:
    """Accuracy of θ0 + Σ τ, of task addition or, for seeds whose older results do not hold it, of main.py's `sum`."""
    of_sum = {**Group(runs.main_tasks, mode).columns, **variant_row("sum").columns}
    ours, theirs = (
        runs.values(metric="one_accuracy", **what) for what in ({"experiment": ADDITION.name, "mode": mode}, of_sum)
    )
    return ours.combine_first(theirs)
