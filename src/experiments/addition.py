"""Task addition: θ0 + α Σ τ_t (Ilharco et al., 2023, arXiv:2212.04089; Table 1 of arXiv:2305.12827)."""

from collections.abc import Iterator

import numpy as np

from src import store
from src.datasets import loading
from src.evaluation import Denominators
from src.experiments.base import carry_out
from src.experiments.numbers import Number, score_numbers
from src.experiments.registry import ADDITION
from src.merging.base import Scaled
from src.merging.evaluate import evaluate_merge
from src.ranges import check
from src.records import Addition
from src.run import Run

Record = Addition


def numbers(record: Record, suite: str) -> Iterator[Number]:
    """The numbers of a record."""
    return score_numbers(record, foreign=False)


def coefficients(points: int) -> tuple[float, ...]:
    """`points` coefficients from 0 to 1."""
    return tuple(float(alpha) for alpha in np.linspace(0, 1, points))


def add(run: Run, mode: str, n_eval_points: int | None = None, overwrite: bool = False) -> None:
    """Write addition_<mode>.json. n_eval_points: by default the suite's.

    Raises MissingResult without the single-task results of the mode and of `none`.
    """
    check(n_eval_points=n_eval_points)
    points = run.protocol.n_eval_points if n_eval_points is None else n_eval_points

    def made_of() -> dict[str, str]:
        return store.made_of(run, mode, run.tasks) | Denominators.made_of(run, mode, run.tasks)

    options = {"n_eval_points": points}
    record = carry_out(ADDITION, mode, run, options, lambda: _record(run, mode, points), overwrite, made_of)
    if record is None:
        return
    test = record["test"]
    print(
        f"addition {mode}: alpha {record['chosen'][run.tasks[0]]:.3f}, {100 * test['mean_accuracy']:.1f} % absolute, "
        f"{100 * test['mean_normalised']:.1f} % normalised "
        f"(zero-shot {100 * record['zeroshot']['mean_normalised']:.1f} %) -> {run.paths.result(ADDITION.result(mode))}"
    )


def _record(run: Run, mode: str, points: int) -> Addition:
    first, *others = (store.task_vector(run, task, mode) for task in run.tasks)
    total = sum(others, start=first)
    loading.examples(run, run.tasks[0], "test")  # mini's are drawn once, before the workers look for them
    merge = Scaled(tau=total, settings=coefficients(points), storage_bits=0)
    return evaluate_merge(run, merge, run.tasks, mode, fixed={"one": 1.0})
