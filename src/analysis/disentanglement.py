"""Weight disentanglement: whether two task vectors act on their own task's data alone.

    ξ(α1, α2) = Σ_{t=1,2} E_{x~D_t} [ dist( f(x; θ0 + α_t τ_t), f(x; θ0 + α1 τ1 + α2 τ2) ) ],
    dist = 1 where the two predictions on task t's head differ, 0 where they agree.

Source: Ortiz-Jimenez et al. 2023, section 4, Figures 3, 9, 10. Each of the two terms is measured by itself, on the data
and the head of its task: `linear_term` for linear and post-hoc models, whose features are affine in the weights,
`nonlinear_term` for the others. `Disentanglement` puts the two together.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from typing_extensions import TypedDict

from src.runtime.memory import Batch, held_together
from src.runtime.messages import NotFinite
from src.tensors import check_same, displaced

SEARCH_BOX = 1.0  # the red box of Figures 3, 9, 10: where the papers look for coefficients, both ways from θ0
Alphas = Sequence[float] | np.ndarray
GRID_ELEMENTS = 1 << 22  # logits held at once while a grid is swept


class ErrorGrid(TypedDict):
    """ξ of a pair of tasks, (alphas of the first, alphas of the second), and its mean for |α| <= box.

    terms: of each task; error: their sum.
    """

    tasks: Sequence[str]
    samples: Sequence[int]
    alphas: Sequence[float]
    error: Sequence[Sequence[float]]
    terms: Sequence[Sequence[Sequence[float]]]
    box: float
    box_mean: float


@dataclass(frozen=True)
class Term:
    """One task's part of ξ: fraction of its images whose prediction the other task's vector changes, (n, n): α1, α2."""

    task: str
    disagreement: np.ndarray
    samples: int

    @classmethod
    def of_parts(cls, parts: Sequence["Term"]) -> "Term":
        """Of all images, from terms of some of them each: to the bit what one term of all of them is."""
        changed = sum(np.rint(part.disagreement * part.samples) for part in parts)
        samples = sum(part.samples for part in parts)
        return cls(parts[0].task, changed / samples, samples)


@dataclass(frozen=True)
class Disentanglement:
    """ξ on a grid, α1 and α2 both from `alphas`; `terms` are those of task 1 and task 2, in this order."""

    alphas: Alphas
    terms: tuple[Term, Term]

    def __post_init__(self):
        shape = (len(self.alphas), len(self.alphas))
        for term in self.terms:
            if term.disagreement.shape != shape:
                raise ValueError(f"{term.task}: a grid of {term.disagreement.shape} for {shape} pairs of coefficients")

    @property
    def error(self) -> np.ndarray:
        """ξ, (n, n), between 0 and 2."""
        one, two = self.terms
        return one.disagreement + two.disagreement

    def box_mean(self, box: float = SEARCH_BOX) -> float:
        """Mean of ξ over the grid points with |α1|, |α2| <= box."""
        inside = np.abs(np.asarray(self.alphas)) <= box + 1e-9
        if not inside.any():
            raise ValueError(f"no point of the grid lies inside [-{box:g}, {box:g}]²")
        return float(self.error[np.ix_(inside, inside)].mean())

    def record(self) -> ErrorGrid:
        """For the results' JSON."""
        return {
            "tasks": [term.task for term in self.terms],
            "samples": [term.samples for term in self.terms],
            "alphas": [float(alpha) for alpha in self.alphas],
            "error": self.error.tolist(),
            "terms": [term.disagreement.tolist() for term in self.terms],
            "box": SEARCH_BOX,
            "box_mean": self.box_mean(),
        }


def _check_index(index: int) -> None:
    if index not in (0, 1):
        raise ValueError(f"index is 0 for the data of the first vector's task, 1 for the second's; got {index!r}")


def _require_finite(features: Tensor, task: str, where: str) -> None:
    if not features.isfinite().all():
        raise NotFinite(_not_finite(task, where))


def _not_finite(task: str, where: str) -> str:
    return f"the features of {task} are not finite at {where}"


@torch.no_grad()
def linear_term(
    head: nn.Linear,
    batches: Iterable[tuple[Tensor, Tensor]],
    tangents: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    alphas: Alphas,
    index: int,
    task: str,
) -> Term:
    """The term of task `index` for a model affine in its weights: two jvps per batch, whatever the size of the grid.

    tangents: images -> (f(x; θ0), J τ1, J τ2), each (images, features); see `two_tangents`. The features at (α1, α2)
    are f0 + α1 J τ1 + α2 J τ2, and so are the logits of ClassificationHead but for the feature's norm, which no argmax
    sees: the grid is swept over three arrays of logits. Memory: GRID_ELEMENTS logits beside a batch.

    batches yields (images, labels) of the task, the labels unread. Raises FloatingPointError for features not finite.
    """
    _check_index(index)
    if head.bias is not None and head.bias.any():
        raise ValueError("the head has a bias, so the norm of the features counts: they cannot be swept as logits")
    names = ("(α1, α2) = (0, 0)", "any α1 but 0", "any α2 but 0")
    changed = torch.zeros(len(alphas), len(alphas), dtype=torch.int64)
    samples = 0
    for images, _ in batches:
        parts = tangents(images)
        for part, where in zip(parts, names, strict=True):
            _require_finite(part, task, where)
        logits = torch.stack([part @ head.weight.T for part in parts], 1)  # (images, 3, classes)
        samples += len(images)
        step = max(1, GRID_ELEMENTS // (len(alphas) * logits.shape[2]))
        for part in logits.split(step):
            changed += _count_changed(part, alphas, index).cpu()
    return _term(task, changed, samples)


def _count_changed(logits: Tensor, alphas: Alphas, index: int) -> Tensor:
    """(images, 3, classes) logits of f0, J τ1, J τ2 -> (n, n) images whose prediction changes."""
    column = torch.as_tensor(alphas, dtype=logits.dtype, device=logits.device).view(-1, 1, 1)
    base, first, second = logits.unbind(1)
    alone2 = (base + column * second).argmax(2)  # (n, images): θ0 + α2 τ2
    rows = []
    for alpha in alphas:
        alone1 = base + float(alpha) * first
        both = (alone1 + column * second).argmax(2)  # (n, images)
        rows.append((both != (alone2 if index else alone1.argmax(1))).sum(1))
    return torch.stack(rows)


def two_tangents(
    jvp_features: Callable[[Tensor, Mapping[str, Tensor]], tuple[Tensor, Tensor]],
    vector1: Mapping[str, Tensor],
    vector2: Mapping[str, Tensor],
) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """`tangents` for `linear_term` from the tensors of two task vectors.

    jvp_features: (images, direction) -> (f(x; θ0), J·direction), as forward_and_jvp of src.linearize gives them.
    """

    def tangents(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, first = jvp_features(images, vector1)
        return features, first, jvp_features(images, vector2)[1]

    return tangents


@torch.no_grad()
def nonlinear_term(
    head: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    model_at: Callable[[float, float], Callable[[Tensor], Tensor]],
    alphas: Alphas,
    index: int,
    task: str,
) -> Term:
    """The term of task `index` for any model, one forward pass per batch and grid point; each image is read once.

    model_at: (α1, α2) -> f(·; θ0 + α1 τ1 + α2 τ2), images -> (images, features); see `WeightPlane`. It is asked once
    for all batches that memory.held_together holds. The line θ0 + α_t τ_t costs one pass per coefficient, and none
    where `alphas` contains 0.

    batches yields (images, labels) of the task, the labels unread. Raises FloatingPointError for features not finite,
    naming the task and the coefficients.
    """
    _check_index(index)
    alphas = [float(alpha) for alpha in alphas]
    changed = torch.zeros(len(alphas), len(alphas), dtype=torch.int64)
    samples = 0
    for group in held_together(batches):
        finite: dict[tuple[float, float], Tensor] = {}

        @cache
        def predictions(alpha1: float, alpha2: float, group: Sequence[Batch] = group, finite=finite) -> Tensor:
            model = model_at(alpha1, alpha2)
            features = [model(images) for images, _ in group]
            finite[alpha1, alpha2] = torch.stack([part.isfinite().all() for part in features]).all()
            return torch.cat([head(part).argmax(1) for part in features])

        alone = [predictions(0.0, alpha) if index else predictions(alpha, 0.0) for alpha in alphas]
        differing = [
            (predictions(alpha1, alpha2) != alone[j if index else i]).sum()
            for i, alpha1 in enumerate(alphas)
            for j, alpha2 in enumerate(alphas)
        ]
        # A GPU is waited for once, here.
        broken = [point for point, fine in zip(finite, torch.stack([*finite.values()]).tolist()) if not fine]
        if broken:
            raise NotFinite(_not_finite(task, "(α1, α2) = ({:g}, {:g})".format(*broken[0])))
        changed += torch.stack(differing).view_as(changed).cpu()
        samples += sum(len(images) for images, _ in group)
    return _term(task, changed, samples)


def _term(task: str, changed: Tensor, samples: int) -> Term:
    if not samples:
        raise ValueError(f"no image of {task} to measure on")
    return Term(task, changed.numpy() / samples, samples)


class WeightPlane:
    """`model_at` for `nonlinear_term`: a module at θ0 + α1 τ1 + α2 τ2, its own weights left as they are.

    pretrained holds θ0; what neither vector holds keeps the module's value. Raises ValueError for tensors of a vector
    that θ0 or the module lacks, or has in another shape.
    """

    def __init__(
        self,
        module: nn.Module,
        pretrained: Mapping[str, Tensor],
        vector1: Mapping[str, Tensor],
        vector2: Mapping[str, Tensor],
    ):
        self.module = module
        names = sorted(vector1.keys() | vector2.keys())
        weights = module.state_dict()
        for vector in (vector1, vector2):
            for start, whose in ((pretrained, "the pre-trained model"), (weights, "the module")):
                check_same({n: start[n] for n in vector if n in start}, vector, f"{whose} and the task vector")
        self.pretrained = {name: pretrained[name].to(weights[name].device) for name in names}
        self.vectors = [
            {name: vector[name].to(weights[name].device) for name in vector} for vector in (vector1, vector2)
        ]

    def __call__(self, alpha1: float, alpha2: float) -> Callable[[Tensor], Tensor]:
        weights = self.pretrained
        for alpha, vector in zip((alpha1, alpha2), self.vectors, strict=True):
            if alpha:
                weights = displaced(weights, vector, alpha)
        return lambda images: functional_call(self.module, weights, (images,))
