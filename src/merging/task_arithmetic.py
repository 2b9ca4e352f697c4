"""Task arithmetic (Ilharco et al., 2023, arXiv:2212.04089) and its two fixed points: θ = θ0 + α Σ_t τ_t.

`sum` lets validation choose α, `average` is α = 1/T (the mean of the fine-tuned weights), `zeroshot` is α = 0.
"""

from dataclasses import dataclass, field

import torch

from src.merging.base import ALPHAS, Merge, Method, Problem, register, scaled
from src.task_vectors import TaskVector


def multi_task_vector(problem: Problem) -> TaskVector:
    """τ_MTL = Σ_t τ_t, summed in the order of the tasks; one tensor of one task is in memory beside the sum."""
    total = {}
    for key in problem.keys:
        tensors = problem.tensors(key)
        total[key] = next(tensors)
        for tau in tensors:
            total[key] += tau
    return TaskVector(vector=total)


@register(
    "sum",
    title="task arithmetic",
    paper="2212.04089",
    published={"tall": "Task arithmetic", "concrete": "Task Arithmetic", "fusionbench": "Task Arithmetic"},
    stage="merging",
)
@dataclass
class Sum(Method):
    alphas: list[float] = field(default_factory=lambda: list(ALPHAS))

    def merge(self, problem: Problem) -> Merge:
        return scaled(problem, multi_task_vector(problem), self.alphas)


@register(
    "average",
    title="weight averaging",
    paper="2203.05482",
    published={"tall": "Weight averaging", "concrete": "Weight Averaging"},
    stage="merging",
)
@dataclass
class Average(Method):
    def merge(self, problem: Problem) -> Merge:
        return scaled(problem, multi_task_vector(problem), [1 / len(problem.tasks)])


@register("zeroshot", title="zero-shot", paper="2103.00020", published={"tall": "Zeroshot"}, stage="merging")
@dataclass
class ZeroShot(Method):
    def merge(self, problem: Problem) -> Merge:
        zero = torch.zeros((), dtype=problem.dtype)
        return scaled(problem, TaskVector(vector={k: zero.expand(s) for k, s in problem.shapes.items()}), [0.0])
