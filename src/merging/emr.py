"""EMR-Merging: elect, mask, rescale (Huang et al., 2024, arXiv:2405.17461). One vector, a mask and a number per task.

Elect:   γ = sgn(Σ_t τ_t), where 0 counts as −1;    τ_uni = γ ∘ max_t |τ_t|·1{τ_t ∘ γ > 0}
Mask:    m_t = 1{τ_t ∘ γ > 0}
Rescale: λ_t = Σ|τ_t| / Σ|m_t ∘ τ_uni|,             θ_t = θ0 + λ_t m_t ∘ τ_uni

There is nothing to choose. Both sums go over all weights in the paper, and in the released script for 30 tasks
(`rescale=global`). The released script for CLIP takes the mean over each tensor and sums the means, so that a LayerNorm
counts as much as an MLP (`rescale=published`).

|τ_uni| >= |τ_t| on the mask of t, so λ_t is above 1 only where a task lost large weights in the election. A task that
lost all of them has an empty mask; its λ_t, which the released code gives as infinity, is 1 here.
"""

from dataclasses import dataclass

import torch

from src.merging.base import Merge, Method, Problem, Setting
from src.merging.masked import Masked
from src.merging.registry import register
from src.ranges import check_choice
from src.task_vectors import Mask, TaskVector

RESCALE = ("global", "published")


def elected_vector(problem: Problem) -> TaskVector:
    """τ_uni. Both candidates of each weight, max τ_t and min τ_t, are kept in one pass: γ is known at its end."""
    unified = {}
    for key, shape in problem.shapes.items():
        total, highest, lowest = torch.zeros(3, *shape, dtype=problem.dtype)
        for tau in problem.tensors(key):
            total += tau
            torch.maximum(highest, tau, out=highest)
            torch.minimum(lowest, tau, out=lowest)
        unified[key] = torch.where(total > 0, highest, lowest)
    return TaskVector(vector=unified)


def agreement(tau: torch.Tensor, unified: torch.Tensor) -> torch.Tensor:
    """m_t of one tensor: τ_uni has the sign γ wherever some τ_t has it, and is 0 elsewhere."""
    return tau.sign() * unified.sign() > 0


def rescalers(problem: Problem, unified: TaskVector, rescale: str) -> dict[str, float]:
    """λ_t of each task. Sums are taken in float64."""
    check_choice("rescale", rescale, RESCALE)
    before, after = dict.fromkeys(problem.tasks, 0.0), dict.fromkeys(problem.tasks, 0.0)
    for key, shape in problem.shapes.items():
        weights = shape.numel() if rescale == "published" else 1
        for task, tau in zip(problem.tasks, problem.tensors(key), strict=True):
            masked = unified.vector[key].where(agreement(tau, unified.vector[key]), 0.0)
            before[task] += float(tau.abs().sum(dtype=torch.float64)) / weights
            after[task] += float(masked.abs().sum(dtype=torch.float64)) / weights
    return {task: before[task] / after[task] if after[task] else 1.0 for task in problem.tasks}


@dataclass(kw_only=True)
class ElectedMasks(Masked):
    """tau: τ_uni. scales: λ_t by task."""

    problem: Problem
    scales: dict[str, float]

    def mask(self, task: str, setting: Setting) -> Mask:
        unified = self.tau.vector
        return Mask({key: agreement(self.problem.tensor(task, key), unified[key]) for key in self.problem.keys})

    def vector(self, task: str, setting: Setting) -> TaskVector:
        return self.scales[task] * super().vector(task, setting)


@register("emr", studied=True, title="EMR", paper="2405.17461", stage="methods")
@dataclass
class Emr(Method):
    rescale: str = "global"

    def merge(self, problem: Problem) -> Merge:
        check_choice("rescale", self.rescale, RESCALE)
        unified = elected_vector(problem)
        scales = rescalers(problem, unified, self.rescale)
        return ElectedMasks(
            tau=unified,
            settings=(1.0,),
            storage_bits=problem.storage_masked() + 32 * len(problem.tasks),
            info={"rescale": scales},
            problem=problem,
            scales=scales,
        )
