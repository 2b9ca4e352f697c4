"""PCB-Merging: parameter competition balancing (Du et al., 2024, arXiv:2410.02396).

a_t = |τ_t|, cut off at its quantiles c and 1 − c;    n_t = sgn(τ_t) ∘ norm(a_t);    norm(x) = (x − min) / (max − min)

    intra_t = exp(T · norm(a_t)²)               a weight competes with the others of its task
    inter_t = Σ_j tanh(n_t ∘ n_j)               and with the same weight of the other tasks
    s_t     = norm(max(intra_t ∘ inter_t, the smallest of its top `ratio`))
    θ       = θ0 + λ Σ_t s_t ∘ sgn(τ_t) ∘ a_t / Σ_t s_t

Quantiles, min and max are of a whole task vector, so `scope=published` counts the frozen tensors, as released. The
repository has three programs, and `variant` names them by their files:

    pcb_ES       c = .01, ratio = .05, the formula above, and one λ_t per task by an evolutionary search on validation
    pcb          c = .01, ratio = .05, inter_t = tanh(τ_t ∘ Σ_j n_j), λ = 1.2
    pcb-merging  c = .0001, ratio = .1, inter_t = tanh(τ_t ∘ Σ_j τ_j)

Here validation chooses one λ, in and around the interval [.8, 1.3] of the published search. Options that are None have
the variant's values.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from src.merging.base import Merge, Method, Problem, scaled
from src.merging.registry import register
from src.ranges import FINITE, OF_WEIGHTS, SHARE_OF_WEIGHTS, Range, check_choice, given, option
from src.task_vectors import TaskVector
from src.tensors import put_in_place

LAMBDAS = tuple(tenth / 10 for tenth in range(5, 21))


@dataclass(frozen=True)
class Published:
    """What one of the programs does. inter(τ, n, t): of all tasks' τ and n of a tensor, (tasks, *shape)."""

    clamp: float
    ratio: float
    inter: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


VARIANTS = {
    "pcb_ES": Published(0.01, 0.05, lambda tau, n, t: torch.tanh(n[t] * n).sum(0)),
    "pcb": Published(0.01, 0.05, lambda tau, n, t: torch.tanh(tau[t] * n.sum(0))),
    "pcb-merging": Published(0.0001, 0.1, lambda tau, n, t: torch.tanh(tau[t] * tau.sum(0))),
}


@dataclass(frozen=True)
class Extremes:
    """The smallest and the largest value of a flat vector after it was cut off."""

    low: float
    high: float

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(self.low, self.high)

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        """0 where there is but one value."""
        span = self.high - self.low
        return (self.cut(x) - self.low) / span if span else torch.zeros_like(x)


def range_of(problem: Problem, tensors: Iterator[torch.Tensor], low: float, high: float) -> Extremes:
    """What is left of a vector without its lowest and highest shares; holds that one vector, flat."""
    size = problem.num_parameters
    flat = torch.empty(size, dtype=problem.dtype)  # (parameters,)
    for tensor, piece in zip(tensors, flat.split([shape.numel() for shape in problem.shapes.values()]), strict=True):
        piece.copy_(tensor.flatten())
    values, places = flat.numpy(), [int(size * low), int(size * (1 - high) - 1)]  # as released; the products round
    put_in_place(values, places)
    return Extremes(*(values[index].item() for index in places))


class Competition:
    """The scores of the tasks, tensor by tensor: only a range per task is kept of a whole vector."""

    def __init__(self, problem: Problem, published: Published, clamp: float, ratio: float):
        self.problem, self.inter = problem, published.inter
        self.magnitudes = [
            range_of(problem, (problem.tensor(task, key).abs() for key in problem.keys), clamp, clamp)
            for task in problem.tasks
        ]
        self.scores: list[Extremes] = []
        for t in range(len(problem.tasks)):
            rows = (self.balance(self.stacked(key), t) for key in problem.keys)
            self.scores.append(range_of(problem, rows, 1 - ratio, 0))

    def stacked(self, key: str) -> torch.Tensor:
        """τ_t of a tensor, (tasks, *shape)."""
        return torch.stack(list(self.problem.tensors(key)))

    def balance(self, tau: torch.Tensor, t: int) -> torch.Tensor:
        """intra_t ∘ inter_t of a tensor."""
        norms = torch.stack([of_task.norm(own.abs()) for of_task, own in zip(self.magnitudes, tau, strict=True)])
        return torch.exp(len(tau) * norms[t] ** 2) * self.inter(tau, tau.sign() * norms, t)

    def merged(self, key: str) -> torch.Tensor:
        """Σ_t s_t ∘ sgn(τ_t) ∘ a_t / Σ_t s_t of a tensor; 0 where every score is 0."""
        tau = self.stacked(key)
        total, scores = torch.zeros(2, *tau.shape[1:], dtype=tau.dtype)
        for t, own in enumerate(tau):
            score = self.scores[t].norm(self.balance(tau, t))
            total += score * own.sign() * self.magnitudes[t].cut(own.abs())
            scores += score
        return total / scores.clamp(min=1e-12)


@register(
    "pcb", title="PCB", paper="2410.02396", published={"WUDI-Merging": "PCB Merging"}, untuned=1.2, stage="methods"
)
@dataclass
class Pcb(Method):
    variant: str = "pcb_ES"
    clamp: float | None = option(None, Range(0, 0.5, whole=False, below=True, what=OF_WEIGHTS))
    ratio: float | None = option(None, SHARE_OF_WEIGHTS)
    alphas: list[float] = option(LAMBDAS, FINITE)

    def merge(self, problem: Problem) -> Merge:
        check_choice("variant", self.variant, VARIANTS)
        published = VARIANTS[self.variant]
        competition = Competition(
            problem, published, given(self.clamp, published.clamp), given(self.ratio, published.ratio)
        )
        return scaled(problem, TaskVector(vector={key: competition.merged(key) for key in problem.keys}), self.alphas)
