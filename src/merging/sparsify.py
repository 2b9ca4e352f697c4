"""Task vectors made sparse before they are added: DARE, Model Breadcrumbs, DELLA; and MagMax, which adds none.

DARE (2311.03099):         τ_t <- b ∘ τ_t / (1 − p),  b ~ Bernoulli(1 − p), so that the mean over draws is τ_t
Breadcrumbs (2312.06795):  of each τ_t, layer by layer, neither the largest γ of |τ_t| nor what lies below the next β
DELLA (2406.11617):        τ_t <- b ∘ τ_t / q,  b ~ Bernoulli(q), q linear in the rank of |τ_t| within its row, from
                           density − ε to density + ε
MagMax (2407.06322):       of each weight, the τ_t that is largest in magnitude; of equal ones the later task's

θ = θ0 + α · merged, α by validation, where `then` says how the first three are merged: "sum", or "ties", as in
ties.py. Either keeps the top `k` percent of each sparse vector first; 100 keeps all, as mergekit does.

The released codes differ.
Breadcrumbs: the paper masks each layer (`by=tensor`), as does mergekit. The authors' code masks each row, along a
tensor's last dimension (`by=row`), so that a row shorter than 1/β is dropped whole. Both keep int(βn) weights and leave
int(γn) out, each count rounded down by itself. mergekit's slice is empty where int(γn) is 0: it drops every tensor of
fewer than 1/γ weights, such as a bias. That is not repeated here.
DELLA: the paper and its code divide by q (`rescale=inverse`), which keeps the mean; mergekit restores the ℓ1 norm of
each tensor instead (`rescale=l1`). A row here is what feeds one output, so a convolution's kernel is one row.
Both random ones are drawn per tensor from a seed that names the draw, the task and the tensor.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch

from src.merging.base import ALPHAS, Drawn, Merge, Method, Problem, Variant, scaled
from src.merging.registry import register
from src.merging.task_arithmetic import multi_task_vector
from src.merging.ties import ties_vector
from src.ranges import FINITE, OF_WEIGHTS, PERCENT, SHARE_OF_WEIGHTS, Range, check_choice, option
from src.runtime.messages import UsageError
from src.runtime.seeds import event_seed
from src.task_vectors import TaskVector

Sparsify = Callable[[str, str, torch.Tensor], torch.Tensor]  # (task, name, τ_t) -> the sparse τ_t


@dataclass(frozen=True)
class Sparse(Problem):
    """A problem whose τ_t are made sparse as they are read. A tensor that is read twice must come out the same."""

    sparsify: Sparsify = lambda task, key, tau: tau

    @classmethod
    def of(cls, problem: Problem, sparsify: Sparsify) -> "Sparse":
        return cls(**{own.name: getattr(problem, own.name) for own in fields(Problem)}, sparsify=sparsify)

    def tensor(self, task: str, key: str) -> torch.Tensor:
        return self.sparsify(task, key, super().tensor(task, key))

    def tensors(self, key: str) -> Iterator[torch.Tensor]:
        return (self.tensor(task, key) for task in self.tasks)

    def vector(self, task: str) -> TaskVector:
        return TaskVector(vector={key: self.tensor(task, key) for key in self.keys})


@dataclass
class Sparsifying(Method):
    """How the sparse vectors are merged."""

    then: str = "sum"
    k: float = option(100.0, PERCENT)
    reduce: str = "mean"
    alphas: list[float] = option(ALPHAS, FINITE)

    def combined(self, sparse: Problem) -> Merge:
        check_choice("then", self.then, ("sum", "ties"))
        if self.then == "ties":
            return scaled(sparse, ties_vector(sparse, self.k, self.reduce), self.alphas)
        return scaled(sparse, multi_task_vector(sparse, self.k), self.alphas)

    def drawn(
        self, problem: Problem, draws: int, sparsify: Callable[[torch.Tensor, torch.Generator], torch.Tensor]
    ) -> Merge:
        """The mean over draws of random sparse vectors."""
        check_choice("then", self.then, ("sum", "ties"))

        def draw(number: int) -> Merge:
            def sparse(task: str, key: str, tau: torch.Tensor) -> torch.Tensor:
                seed = event_seed(problem.seed or 0, self.name, number, task, key)
                return sparsify(tau, torch.Generator().manual_seed(seed))

            return self.combined(Sparse.of(problem, sparse))

        return Drawn(draw=draw, draws=draws, settings=tuple(self.alphas), storage_bits=problem.storage_merged())


def dropped(tau: torch.Tensor, p: float, rescale: bool, generator: torch.Generator) -> torch.Tensor:
    """DARE of one tensor. p: the chance that a weight is dropped."""
    stays = torch.rand(tau.shape, generator=generator, dtype=tau.dtype) >= p
    return tau.where(stays, 0.0) / (1 - p if rescale else 1)


def middle(tau: torch.Tensor, density: float, gamma: float, by: str) -> torch.Tensor:
    """Breadcrumbs of one tensor: of each row, the int(density·n) largest magnitudes after the int(gamma·n) largest."""
    if not tau.ndim:
        return tau  # as in the authors' code
    rows = tau.reshape(-1, tau.shape[-1] if by == "row" else tau.numel())  # (rows, n)
    n = rows.shape[1]
    count = int(density * n)
    first = min(int(gamma * n), n - count)  # density is kept to where it leaves no room for γ
    order = rows.abs().argsort(dim=1, descending=True, stable=True)[:, first : first + count]
    return torch.zeros_like(rows).scatter_(1, order, rows.gather(1, order)).view(tau.shape)


def keep_probabilities(tau: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """DELLA's q of one tensor. The only weight of a row has the mean, `density`."""
    rows = tau.flatten(1) if tau.ndim > 1 else tau.reshape(1, -1)  # (rows, n)
    n = rows.shape[1]
    if n == 1:
        return torch.full_like(tau, density)
    rank = rows.abs().argsort(dim=1, stable=True).argsort(dim=1)  # 0 ... n − 1
    return (density + epsilon * (2 * rank.to(tau.dtype) / (n - 1) - 1)).view(tau.shape)


def magnitude_dropped(
    tau: torch.Tensor, density: float, epsilon: float, rescale: str, generator: torch.Generator
) -> torch.Tensor:
    """DELLA of one tensor."""
    q = keep_probabilities(tau, density, epsilon)
    sparse = tau.where(torch.rand(tau.shape, generator=generator, dtype=tau.dtype) < q, 0.0)
    if rescale == "inverse":
        return sparse / q
    left = sparse.abs().sum()
    return sparse * (tau.abs().sum() / left) if rescale == "l1" and left > 0 else sparse


def largest(problem: Problem) -> TaskVector:
    """MagMax's vector; one tensor of one task is in memory beside it."""
    merged = {}
    for key in problem.keys:
        tensors = problem.tensors(key)
        merged[key] = next(tensors)
        for tau in tensors:
            merged[key] = torch.where(tau.abs() >= merged[key].abs(), tau, merged[key])
    return TaskVector(vector=merged)


@register(
    "dare",
    title="DARE + TA",
    paper="2311.03099",
    stage="methods",
    untuned=0.3,
    variants=(Variant("DARE + TIES", {"then": "ties", "k": 20.0}, stage="methods"),),
)
@dataclass
class Dare(Sparsifying):
    """DARE: weights dropped at random, the rest scaled up; accuracies are means over draws."""

    p: float = option(0.5, Range(0, 1, whole=False, below=True, what=OF_WEIGHTS))
    rescale: bool = True
    draws: int = option(5, Range(2))

    def merge(self, problem: Problem) -> Merge:
        return self.drawn(problem, self.draws, lambda tau, generator: dropped(tau, self.p, self.rescale, generator))


@register("breadcrumbs", title="Breadcrumbs", paper="2312.06795", stage="methods")
@dataclass
class Breadcrumbs(Sparsifying):
    """Model Breadcrumbs: neither the largest weights of each layer nor the small ones.

    density: β, the share that is kept. gamma: γ, the largest that are left out. Defaults: the authors' for CLIP, with
    which mergekit's .9 and .01, for language models, have little in common. by: "tensor", or "row" as released.
    """

    density: float = option(0.15, SHARE_OF_WEIGHTS)
    gamma: float = option(0.006, Range(0, 1, whole=False, below=True, what=OF_WEIGHTS))
    by: str = "tensor"

    def merge(self, problem: Problem) -> Merge:
        check_choice("by", self.by, ("tensor", "row"))
        return self.combined(Sparse.of(problem, lambda task, key, tau: middle(tau, self.density, self.gamma, self.by)))


@register("della", title="DELLA", paper="2406.11617", stage="methods")
@dataclass
class Della(Sparsifying):
    """DELLA: weights dropped at random, small ones more often; then TIES's election. Means over draws.

    density: the mean chance of a weight to be kept; epsilon: ε. Defaults: the example of the authors' code.
    rescale: "inverse", "l1" or "none".
    """

    then: str = "ties"
    density: float = option(0.7, SHARE_OF_WEIGHTS)
    epsilon: float = option(0.07, Range(0, 0.5, whole=False, what=OF_WEIGHTS))
    rescale: str = "inverse"
    draws: int = option(5, Range(2))

    def merge(self, problem: Problem) -> Merge:
        check_choice("rescale", self.rescale, ("inverse", "l1", "none"))
        if not (0 <= self.epsilon < self.density and self.density + self.epsilon <= 1):
            raise UsageError(
                "density, epsilon: expected density − epsilon above 0 and density + epsilon at most 1; "
                f"got {self.density}, {self.epsilon}"
            )

        def sparsify(tau: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            return magnitude_dropped(tau, self.density, self.epsilon, self.rescale, generator)

        return self.drawn(problem, self.draws, sparsify)


@register("magmax", title="MagMax", paper="2407.06322", untuned=0.5, stage="methods")
@dataclass
class MagMax(Method):
    """MagMax: of each weight, the change that is largest in magnitude. The authors' α is 0.5."""

    alphas: list[float] = option(ALPHAS, FINITE)

    def merge(self, problem: Problem) -> Merge:
        return scaled(problem, largest(problem), self.alphas)
