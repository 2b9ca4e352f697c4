"""Scores that were taken before: no forward pass of the same weights on the same images is made twice.

This holds within one call of score_all, and within `kept` in all calls of the process, as reproduce.py makes them.
There zero-shot, average and sum lie on the line of addition, and negation has the tangents of the single tasks.
Weights are known by their content, images by their run, data set and split.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from src.run import Run

if TYPE_CHECKING:
    from src.evaluation import Curve, Line

Features = tuple[torch.Tensor, torch.Tensor]  # of a batch: f(x; θ0) and J(x; θ0) τ, (N, D) each
FEATURE_SHARE = 4  # features take at most one byte in so many of the machine's memory


class Model(NamedTuple):
    """What is scored, but for its coefficient: images, and digests of weights; an empty one stands for none."""

    run: Run
    split: str
    dataset: str
    tangent: bool
    direction: str
    offset: str
    adapter: str


class Point(NamedTuple):
    """Scores at one coefficient: fields of Curve."""

    accuracy: float
    loss: float
    n: int
    correct: str


@dataclass(frozen=True)
class Job:
    """A line with the coefficients that are missing. features: of every batch, where they are known."""

    model: Model
    line: Line
    features: tuple[Features, ...] = ()


@dataclass
class Scores:
    """Points by model and coefficient, and the features of tangent models, the latest within `room` bytes."""

    room: int = 0
    points: dict[tuple[Model, float], Point] = field(default_factory=dict)
    features: dict[Model, tuple[Features, ...]] = field(default_factory=dict)

    def missing(self, models: Iterable[tuple[Model, Line]]) -> list[Job]:
        """What is to be computed, each coefficient of a model once."""
        jobs, asked = [], set(self.points)
        for model, line in models:
            coefs = []
            for alpha in line.coefs:
                if (key := coefficient(model, alpha, line)) not in asked:
                    asked.add(key)
                    coefs.append(alpha)
            if coefs:
                jobs.append(Job(model, replace(line, coefs=tuple(coefs)), self.features.get(model, ())))
        return jobs

    def add(self, job: Job, curve: Curve, features: tuple[Features, ...] = ()) -> None:
        for alpha, accuracy, loss, correct in zip(job.line.coefs, curve.accuracy, curve.loss, curve.correct):
            self.points[coefficient(job.model, alpha, job.line)] = Point(accuracy, loss, curve.n, correct)
        if features:
            self.features[job.model] = features
        while self.features and sum(map(_bytes, self.features.values())) > self.room:
            del self.features[next(iter(self.features))]  # the oldest

    def of(self, model: Model, line: Line) -> list[Point]:
        """The points of a line, in order."""
        return [self.points[coefficient(model, alpha, line)] for alpha in line.coefs]


_shared: ContextVar[Scores | None] = ContextVar("_shared", default=None)


@contextmanager
def shared(processes: int = 1) -> Iterator[Scores]:
    """Within, calls of score_all share the scores of all of them. processes: that do so at once, on one machine."""
    earlier, memory = _shared.get(), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    token = _shared.set(earlier or Scores(memory // FEATURE_SHARE // processes))
    try:
        scores = _shared.get()
        assert scores is not None
        yield scores
    finally:
        _shared.reset(token)


def scores_of(run: Run, tangent: bool, split: str) -> tuple[Scores, Callable[[str, Line], Model]]:
    """The scores that are known here, and what names a line on a data set in them."""
    scores = _shared.get()
    name = _by_identity if scores is None else _digest
    names: dict[int, str] = {}  # a vector that several lines share is read once
    alone = replace(run, tasks=run.tasks[:1], jobs=1)  # neither decides a score

    def named(vector: Mapping[str, torch.Tensor]) -> str:
        if id(vector) not in names:
            names[id(vector)] = name(vector) if vector else ""
        return names[id(vector)]

    def model(dataset: str, line: Line) -> Model:
        adapter = hashlib.sha256(pickle.dumps(line.adapter)).hexdigest() if line.adapter else ""
        moves = bool(line.direction) and (tangent or any(line.coefs))
        direction = named(line.direction) if moves else ""
        return Model(alone, split, dataset, tangent and moves, direction, named(line.offset), adapter)

    return Scores() if scores is None else scores, model


def coefficient(model: Model, alpha: float, line: Line) -> tuple[Model, float]:
    """The key of a point: at 0 a model that is no tangent one has no direction."""
    if not model.direction or not (alpha or model.tangent):
        return model._replace(direction=""), 0.0
    return model, alpha if _wide(line.direction) else float(np.float32(alpha))  # as it multiplies τ


def _wide(vector: Mapping[str, torch.Tensor]) -> bool:
    """Whether a tensor is float64; a vector on disk says it without reading one."""
    known = getattr(vector, "wide", None)
    return any(tensor.dtype == torch.float64 for tensor in vector.values()) if known is None else known


def _by_identity(vector: Mapping[str, torch.Tensor]) -> str:
    return str(id(vector))


def _digest(vector: Mapping[str, torch.Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(vector):
        tensor = vector[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _bytes(features: tuple[Features, ...]) -> int:
    return sum(part.nbytes for batch in features for part in batch)


class Tangents:
    """forward_and_jvp of the batches of a split in order; what is known already is given again."""

    def __init__(self, jvp: Callable[..., Features], known: tuple[Features, ...]):
        self.jvp, self.known, self.batches = jvp, iter(known), list(known)

    def __call__(self, encoder, theta0, direction, images: torch.Tensor) -> Features:
        known = next(self.known, None)
        if known is not None:
            return known[0].to(images.device), known[1].to(images.device)
        f0, slope = self.jvp(encoder, theta0, direction, images)
        self.batches.append((f0.cpu(), slope.cpu()))
        return f0, slope
