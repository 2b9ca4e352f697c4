"""Magnitude masking and pruning, baselines of TALL masks (Wang et al., 2024, arXiv:2405.07813).

    masking: θ_t = θ0 + m_t ∘ Σ_k τ_k            pruning: θ_t = θ0 + m_t ∘ τ_t

m_t keeps the top k % of |τ_t| over the whole flattened vector, with the threshold of ties.py: where it is 0, as for a
task vector of zeros, all weights are kept, as published. No code of the pruning was released, and its k
is not known here: 10 is that of the masking.

Pruning merges nothing: it is what a task keeps of its own model when it may store as much as a mask. Its storage is θ0,
and for each task a mask bit per weight and the weights that are kept, in fp32.
"""

from dataclasses import dataclass

from src.merging.base import Merge, Method, Problem, Setting
from src.merging.masked import Masked
from src.merging.registry import register
from src.merging.task_arithmetic import multi_task_vector
from src.merging.ties import magnitude_threshold
from src.ranges import PERCENT, option
from src.task_vectors import Mask, TaskVector


def magnitude_mask(problem: Problem, task: str, k: float) -> Mask:
    """m_t = 1{ |τ_t| >= the smallest of its top k percent }."""
    threshold = magnitude_threshold(problem, task, k)
    return Mask({key: problem.tensor(task, key).abs() >= threshold for key in problem.keys})


@dataclass(kw_only=True)
class MagnitudeMasked(Masked):
    problem: Problem
    k: float

    def mask(self, task: str, setting: Setting) -> Mask:
        return magnitude_mask(self.problem, task, self.k)


@register(
    "mag_masking",
    title="magnitude masking",
    paper="2405.07813",
    published={"tall": "Magnitude Masking"},
    stage="merging",
)
@dataclass
class MagnitudeMasking(Method):
    trims = True

    k: float = option(10.0, PERCENT)

    def merge(self, problem: Problem) -> Merge:
        tau, bits = multi_task_vector(problem), problem.storage_masked()
        return MagnitudeMasked(tau=tau, settings=(1.0,), storage_bits=bits, problem=problem, k=self.k)


@dataclass(kw_only=True)
class MagnitudePruned(Merge):
    """A task's own vector, pruned; made anew whenever it is asked for."""

    problem: Problem
    k: float
    per_task: bool = True

    def vector(self, task: str, setting: Setting) -> TaskVector:
        threshold = magnitude_threshold(self.problem, task, self.k)
        taus = ((key, self.problem.tensor(task, key)) for key in self.problem.keys)
        return TaskVector(vector={key: tau.where(tau.abs() >= threshold, 0.0) for key, tau in taus})


@register(
    "mag_prune",
    title="magnitude pruning",
    paper="2405.07813",
    stage="methods",
    published={"tall": "Magnitude Pruning"},
)
@dataclass
class MagnitudePruning(Method):
    """Magnitude pruning: each task's own vector without its small weights; a model per task, and no merging."""

    trims = True

    k: float = option(10.0, PERCENT)

    def merge(self, problem: Problem) -> Merge:
        weights = sum(magnitude_mask(problem, task, self.k).count() for task in problem.tasks)
        bits = 32 * (problem.num_parameters_total + weights) + len(problem.tasks) * problem.num_parameters
        return MagnitudePruned(settings=(1.0,), storage_bits=bits, problem=problem, k=self.k)
