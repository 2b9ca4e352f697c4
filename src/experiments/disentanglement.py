"""Disentanglement error ξ(α1, α2) of pairs of tasks on a grid (Figures 3, 9, 10 of arXiv:2305.12827)."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, islice
from statistics import fmean as mean
from typing import Any

import numpy as np
import torch

from src import store
from src.analysis.disentanglement import (
    Disentanglement,
    ErrorGrid,
    Term,
    WeightPlane,
    linear_term,
    nonlinear_term,
    two_tangents,
)
from src.datasets import loading
from src.experiments.base import carry_out
from src.experiments.numbers import Number
from src.experiments.registry import DISENTANGLEMENT
from src.heads import get_classification_head
from src.linearize import forward_and_jvp
from src.modes import MODES
from src.ranges import check
from src.records import Corrupted
from src.run import Run
from src.runtime.distributed import world_size
from src.runtime.messages import UsageError
from src.runtime.parallel import map_tasks
from src.runtime.precision import matmul_precision

Pair = tuple[str, str]
Share = tuple[int, int]  # which of how many


class Record(Corrupted):
    finetuning_mode: str
    pairs: Sequence[ErrorGrid]


def numbers(record: Record, suite: str) -> Iterator[Number]:
    for pair in record["pairs"]:
        yield Number("error_in_box", pair["box_mean"], "-".join(pair["tasks"]))
        yield Number("error_outside_box", error_outside(pair), "-".join(pair["tasks"]))


def error_outside(pair: ErrorGrid) -> float:
    """The mean of ξ over the points of the grid outside the search box; nan where there are none."""
    alphas, box = pair["alphas"], pair["box"] + 1e-9
    outside = [
        pair["error"][i][j]
        for i, alpha1 in enumerate(alphas)
        for j, alpha2 in enumerate(alphas)
        if max(abs(alpha1), abs(alpha2)) > box
    ]
    return mean(outside) if outside else math.nan


def measure_disentanglement(
    run: Run,
    mode: str,
    pairs: Sequence[Pair] | None = None,
    range: tuple[float, float] = (-3.0, 3.0),
    n_points: int | None = None,
    num_samples: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write disentanglement_<mode>.json: the grid, each task's term, and the mean of ξ inside the box [-1, 1]².

    range, n_points: of the coefficients on each axis; num_samples: test images of each task, None: all on vision.
    What is None has the suite's value.
    """
    check(n_points=n_points, num_samples=num_samples, range=range)
    run.require_mantissa("the disentanglement error, which counts predictions that differ a little")
    low, high = range
    if not (np.isfinite([low, high]).all() and low <= -1 and high >= 1):
        raise UsageError(f"--range: expected an interval that contains the box [-1, 1]; got {low:g} {high:g}")
    options: dict[str, Any] = {
        "pairs": pairs or run.suite_row.pairs,
        "range": tuple(range),
        "n_points": run.protocol.n_grid_points if n_points is None else n_points,
        "num_samples": run.protocol.grid_samples if num_samples is None else num_samples,
    }
    made_of = partial(store.made_of, run, mode, sorted({name for pair in options["pairs"] for name in pair}))
    work = partial(_record, run, mode, **options)
    record = carry_out(DISENTANGLEMENT, mode, run, options, work, overwrite, made_of)
    for pair in record["pairs"] if record else ():
        print(
            f"disentanglement {mode}: {'-'.join(pair['tasks'])} mean ξ in the box {pair['box_mean']:.3f} "
            f"-> {run.paths.result(DISENTANGLEMENT.result(mode))}"
        )


def _record(
    run: Run, mode: str, pairs: Sequence[Pair], range: tuple[float, float], n_points: int, num_samples: int | None
) -> Record:
    loading.examples(run, pairs[0][0], "test")  # mini's are drawn once, before the workers look for them
    alphas = np.linspace(*range, n_points)
    wanted = [(pair, own) for pair in pairs for own in (0, 1)]
    at_once = max(run.jobs, world_size())
    # One part each, but where that leaves processes without work: on vision a task has 1,880 to 26,032 images.
    dealt = [shares(run, pair[own], num_samples, at_once if at_once > len(pairs) else 1) for pair, own in wanted]
    jobs = [(*term, share) for term, of_term in zip(wanted, dealt) for share in of_term]
    work = partial(part_of_term, run=run, mode=mode, alphas=alphas, num_samples=num_samples)
    parts = iter(map_tasks(work, jobs, run.jobs, f"ξ {mode}", run.device))
    terms = [Term.of_parts([part for part in islice(parts, len(of_term)) if part]) for of_term in dealt]
    records = [Disentanglement(alphas, both).record() for both in zip(terms[::2], terms[1::2])]
    return {"finetuning_mode": mode, "pairs": records}


def shares(run: Run, dataset: str, num_samples: int | None, most: int) -> list[Share]:
    """At most so many parts of a task's images, each of whole batches, so that no number depends on how many."""
    images = len(loading.examples(run, dataset, "test"))
    batches = math.ceil((images if num_samples is None else min(images, num_samples)) / run.batch_size)
    return [(which, min(most, batches)) for which in range(min(most, batches))]


def part_of_term(
    job: tuple[Pair, int, Share], run: Run, mode: str, alphas: np.ndarray, num_samples: int | None
) -> Term | None:
    """A part of one task's term of ξ for a pair of tasks: on images and the head of `pair[own]`, for the job's `own`.

    job: (pair, own, share). None where the share has no image.
    """
    with matmul_precision(run.precision):
        return _part_of_term(job, run, mode, alphas, num_samples)


def _part_of_term(
    job: tuple[Pair, int, Share], run: Run, mode: str, alphas: np.ndarray, num_samples: int | None
) -> Term | None:
    pair, own, share = job
    batches = some_images(run, pair[own], "test", num_samples, share)
    if share[0]:  # the first part tells of a task without images
        first = next(batches, None)
        if first is None:  # images were left out that cannot be decoded
            return None
        batches = chain([first], batches)
    encoder = store.encoder(run)
    head = get_classification_head(run, pair[own]).to(run.device)
    vectors = [store.to_device(store.task_vector(run, task, mode).vector, run.device) for task in pair]
    theta0 = store.start_of(encoder, *vectors)
    if MODES[mode].tangent:
        tangents = two_tangents(lambda x, direction: forward_and_jvp(encoder, theta0, direction, x), *vectors)
        return linear_term(head, batches, tangents, alphas, own, pair[own])
    plane = WeightPlane(encoder, theta0, *vectors)
    return nonlinear_term(head, batches, plane, alphas, own, pair[own])


def some_images(
    run: Run, dataset: str, split: str, most: int | None, share: Share = (0, 1)
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Evaluation batches of `most` images (None: all), or of a share of these, in whole batches of `run.batch_size`.

    The images of a drawn set lie in random order, and the first are taken. Real sets often lie by class: theirs are
    drawn without replacement, by the run's seed. A pass is of fewer images than a batch where memory holds no more.
    """
    encoder = store.encoder(run)
    images = loading.evaluation_pixels(run, dataset, split, encoder.image_size)
    count = len(images) if most is None else min(most, len(images))
    chosen = np.arange(count)
    if count < len(images) and not run.suite_row.drawn:
        chosen = np.sort(np.random.default_rng(run.seed).choice(len(images), count, replace=False))
    which, of = share
    batches = math.ceil(count / run.batch_size)
    first, stop = (min(count, run.batch_size * (batches * part // of)) for part in (which, which + 1))
    size = loading.images_at_once(run, encoder)
    for start in range(first, stop, size):
        part = chosen[start : min(start + size, stop)]
        labels = loading.on_device(images.labels[part], run.device)
        yield loading.batch_of(images.pixels[part], encoder, run.device), labels
