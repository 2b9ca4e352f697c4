"""Layer-wise functional interference between task vectors; see analysis/layerwise.py for what it is.

Parts are those that every task has moved. On test images of each task, without labels. Beside it stand, by part, the
singular task interference of its matrices (analysis/spectra.py) and the cosines of the task vectors.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean as mean

import torch
from torch import Tensor
from torch.func import functional_call

from src import store
from src.analysis import layerwise, spectra
from src.analysis.layerwise import Interference, parts_of
from src.datasets import loading
from src.experiments.base import carry_out
from src.experiments.ntk import spread_images
from src.experiments.numbers import Number
from src.experiments.registry import LAYERWISE, LAYERWISE_SAMPLES
from src.linearize import forward_and_jvp
from src.merging.base import Problem
from src.merging.matrices import Layout, matrices_of
from src.merging.problem import Source, read_problem
from src.modes import MODES
from src.ranges import check
from src.records import Corrupted, Grid
from src.run import Run
from src.runtime.parallel import map_tasks
from src.runtime.precision import matmul_precision
from src.task_vectors import TaskVector
from src.tensors import moved


class Record(Corrupted):
    """By part, in the order of the forward pass: interference, signed and cosine, (tasks t, tasks j); together, (t,).

    singular: the mean over the part's matrices; None where it has none.
    """

    finetuning_mode: str
    tasks: Sequence[str]
    num_samples: int
    parts: Sequence[str]
    interference: Sequence[Grid]
    signed: Sequence[Grid]
    together: Grid
    cosine: Sequence[Grid]
    singular: Sequence[float | None]


def numbers(record: Record, suite: str) -> Iterator[Number]:
    """By part, whose name is in the metric: geometric means over pairs of tasks, or over tasks."""
    for part, pairs, others in zip(record["parts"], record["interference"], record["together"], strict=True):
        name = part.replace(" ", "_")
        yield Number(f"interference_{name}", geometric_mean(off_diagonal(pairs)))
        yield Number(f"interference_together_{name}", geometric_mean(others))


def off_diagonal(grid: Grid) -> list[float]:
    return [value for i, row in enumerate(grid) for j, value in enumerate(row) if i != j]


def geometric_mean(ratios: Sequence[float]) -> float:
    return math.exp(mean(map(math.log, ratios)))


def measure_layerwise(run: Run, mode: str, num_samples: int = LAYERWISE_SAMPLES, overwrite: bool = False) -> None:
    """Write layerwise_<mode>.json. num_samples: test images of each task."""
    check(num_samples=num_samples)
    run.require_mantissa("small differences of features")
    made_of = partial(store.made_of, run, mode, run.tasks)
    options = {"num_samples": num_samples}
    record = carry_out(LAYERWISE, mode, run, options, lambda: _record(run, mode, num_samples), overwrite, made_of)
    if record is None:
        return
    by_part = zip(record["parts"], record["interference"])
    shown = ", ".join(f"{part} {geometric_mean(off_diagonal(pairs)):.2f}" for part, pairs in by_part)
    print(f"layer-wise interference {mode}: {shown} -> {run.paths.result(LAYERWISE.result(mode))}")


def _record(run: Run, mode: str, num_samples: int) -> Record:
    loading.examples(run, run.tasks[0], "test")  # mini's are drawn once, before the workers look for them
    problem = read_problem(run, Source(mode))
    everywhere = [key for key in problem.keys if all(bool(tau.any()) for tau in problem.tensors(key))]
    parts = parts_of(everywhere)
    work = partial(on_task, run=run, mode=mode, parts=parts, num_samples=num_samples)
    by_task = map_tasks(work, run.tasks, run.jobs, f"layer-wise interference {mode}", run.device)
    by_part = [[of_task[part] for of_task in by_task] for part in parts]
    vectors = [problem.vector(task) for task in problem.tasks]
    return {
        "finetuning_mode": mode,
        "tasks": list(run.tasks),
        "num_samples": num_samples,
        "parts": list(parts),
        "interference": [[one.others for one in of_part] for of_part in by_part],
        "signed": [[one.signed for one in of_part] for of_part in by_part],
        "together": [[one.together for one in of_part] for of_part in by_part],
        "cosine": [cosines(vectors, keys) for keys in parts.values()],
        "singular": singular_interference(problem, parts),
    }


def on_task(
    task: str, run: Run, mode: str, parts: Mapping[str, Sequence[str]], num_samples: int
) -> dict[str, Interference]:
    """Part -> what every task's vector does there on the images of one."""
    encoder = store.encoder(run)
    images = spread_images(run, task, "test", num_samples)
    vectors = [store.task_vector(run, other, mode) for other in run.tasks]
    own, tangent = run.tasks.index(task), MODES[mode].tangent
    with matmul_precision(run.precision):
        return measured(encoder, images.split(run.batch_size), vectors, parts, own, tangent)


@torch.no_grad()
def measured(
    encoder: torch.nn.Module,
    batches: Sequence[Tensor],
    vectors: Sequence[TaskVector],
    parts: Mapping[str, Sequence[str]],
    own: int,
    tangent: bool,
) -> dict[str, Interference]:
    """Part -> interference, of the task at an index. A tangent model takes a jvp for each task and part."""

    at_start = None if tangent else torch.cat([encoder(batch) for batch in batches])

    def change(vector: TaskVector, keys: Sequence[str]) -> Tensor:
        direction = {key: vector.vector[key].to(batches[0].device) for key in keys}
        start = store.start_of(encoder, direction)
        if at_start is None:
            return torch.cat([forward_and_jvp(encoder, start, direction, batch)[1] for batch in batches])
        there = moved(start, direction, 1.0)
        return torch.cat([functional_call(encoder, there, (batch,)) for batch in batches]) - at_start

    rest = sum((vector for j, vector in enumerate(vectors) if j != own), start=0.0 * vectors[own])
    whole = change(vectors[own], [key for keys in parts.values() for key in keys])
    by_part = {}
    for part, keys in parts.items():
        changes = [change(vector, keys) for vector in vectors]
        by_part[part] = layerwise.interference(changes, change(rest, keys), whole, own)
    return by_part


def cosines(vectors: Sequence[TaskVector], keys: Sequence[str]) -> Grid:
    restricted = [{key: vector.vector[key] for key in keys} for vector in vectors]
    return [[layerwise.cosine(one, other) for other in restricted] for one in restricted]


def singular_interference(problem: Problem, parts: Mapping[str, Sequence[str]]) -> list[float | None]:
    """Of the leading 1/T of every task, as TSV keeps them."""
    of_keys = {
        key: spectra.interference(deltas[0].svds(max(1, deltas[0].r // len(problem.tasks))))
        for key, deltas in matrices_of(problem, Layout())
        if deltas
    }
    by_part = [[of_keys[key] for key in keys if key in of_keys] for keys in parts.values()]
    return [mean(values) if values else None for values in by_part]
