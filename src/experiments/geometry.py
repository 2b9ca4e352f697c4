"""Spectral geometry of the task vectors, and of what methods merge of them; see analysis/spectra.py for the measures.

Every 2-D tensor of the image tower that some task has moved is a matrix, fused attention as it lies. Means over
matrices are plain. Of the merging methods those stand here that need weights alone, make one model, and read no other
method's files; with the published default where validation chooses a coefficient that turns subspaces (CART).
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean as mean
from typing import Any

from src import store
from src.analysis import spectra
from src.experiments.base import carry_out
from src.experiments.numbers import Number, by_task
from src.experiments.registry import GEOMETRY
from src.merging.base import Merge, Method, Problem
from src.merging.matrices import Deltas, Layout, matrices_of
from src.merging.problem import Source, read_problem
from src.merging.registry import METHODS, variant_label, variants
from src.merging.wrapped import Based
from src.records import Corrupted
from src.run import Run
from src.task_vectors import TaskVector


class Record(Corrupted):
    """matrices: their names. By matrix: interference, and of each task its ranks and the energy of its leading 1/T.

    alignment: name of a method's results -> task -> the mean over matrices.
    """

    finetuning_mode: str
    tasks: Sequence[str]
    matrices: Sequence[str]
    interference: Sequence[float]
    stable_rank: Mapping[str, Sequence[float]]
    effective_rank: Mapping[str, Sequence[float]]
    energy: Mapping[str, Sequence[float]]
    alignment: Mapping[str, Mapping[str, float]]


def numbers(record: Record, suite: str) -> Iterator[Number]:
    """Means over matrices; the alignment of a method has its name in the metric."""
    tasks = record["tasks"]
    for metric in ("stable_rank", "effective_rank", "energy"):
        by_matrix: Mapping[str, Sequence[float]] = record[metric]
        means = {task: mean(by_matrix[task]) for task in tasks}
        yield from by_task(metric, means, tasks)
        yield Number(metric, mean(means.values()))
    yield Number("interference", mean(record["interference"]))
    for label, of_method in record["alignment"].items():
        yield from by_task(f"alignment_{label}", of_method, tasks)
        yield Number(f"alignment_{label}", mean(of_method.values()))


def measure_geometry(run: Run, mode: str, overwrite: bool = False) -> None:
    """Write geometry_<mode>.json."""
    made_of = partial(store.made_of, run, mode, run.tasks)
    record = carry_out(GEOMETRY, mode, run, {}, lambda: measure(read_problem(run, Source(mode))), overwrite, made_of)
    if record is None:
        return
    ranks = [mean(of_task) for of_task in record["effective_rank"].values()]
    print(
        f"geometry {mode}: effective rank {mean(ranks):.1f}, interference {mean(record['interference']):.2f}, "
        f"{len(record['alignment'])} methods -> {run.paths.result(GEOMETRY.result(mode))}"
    )


def measure(problem: Problem) -> Record:
    by_name = {key: deltas[0] for key, deltas in matrices_of(problem, Layout()) if deltas}
    per_task: dict[str, dict[str, list[float]]] = {
        metric: {task: [] for task in problem.tasks} for metric in ("stable_rank", "effective_rank", "energy")
    }
    interference = []
    for deltas in by_name.values():
        leading = max(1, deltas.r // len(deltas))
        for task, svd in zip(problem.tasks, deltas.svds(deltas.r)):
            per_task["stable_rank"][task].append(spectra.stable_rank(svd.s))
            per_task["effective_rank"][task].append(spectra.effective_rank(svd.s))
            per_task["energy"][task].append(spectra.energy(svd.s, leading))
        interference.append(spectra.interference(deltas.svds(leading)))
    return {
        "finetuning_mode": problem.mode,
        "tasks": list(problem.tasks),
        "matrices": list(by_name),
        "interference": interference,
        "stable_rank": per_task["stable_rank"],
        "effective_rank": per_task["effective_rank"],
        "energy": per_task["energy"],
        "alignment": {
            label: aligned(by_name, tau) for label, tau in merged_vectors(problem) if any(t.any() for t in tau.values())
        },
    }


def merged_vectors(problem: Problem) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The name of a method's results, and the vector that it makes of all tasks."""
    for variant in (*variants("merging"), *variants("methods")):
        method = METHODS[variant.method](**variant.options)
        base = method.base_method() if isinstance(method, Based) else method
        if method.needs != "weights" or base.after:  # base: its files are not there before it was merged itself
            continue
        made = method.merge(problem)
        if not made.per_task:
            yield variant_label(variant), _vector(method, made, problem).vector


def _vector(method: Method, made: Merge, problem: Problem) -> TaskVector:
    """At the published default, or in the middle of what validation chooses among: most only scale with it."""
    usual = method.untuned in made.settings
    return made.vector(problem.tasks[0], method.untuned if usual else made.settings[len(made.settings) // 2])


def aligned(by_name: Mapping[str, Deltas], tau: Mapping[str, Any]) -> dict[str, float]:
    """Task -> SAR, the mean over the matrices that the merged vector moves."""
    shares: dict[str, list[float]] = {}
    for key, deltas in by_name.items():
        merged = deltas.matrix.of(tau[key])
        if not merged.any():
            continue
        svd = deltas.svd(merged)
        for task, delta in zip(deltas.problem.tasks, deltas):
            if delta.any():
                shares.setdefault(task, []).append(spectra.alignment(svd, delta))
    return {task: mean(of_task) for task, of_task in shares.items()}
