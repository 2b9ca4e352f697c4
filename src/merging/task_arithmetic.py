"""Task arithmetic (Ilharco et al., 2023, arXiv:2212.04089) and its two fixed points: θ = θ0 + α Σ_t τ_t.

`sum` lets validation choose α, `average` is α = 1/T (the mean of the fine-tuned weights), `zeroshot` is α = 0.

The code released with arXiv:2405.07813 keeps the top `k` percent of each |τ_t| before either sum, over the whole
flattened vector and with the threshold of ties.py; its configuration, and the default here, is 100: all of them.
"""

from dataclasses import dataclass

import torch

from src.merging.base import ALPHAS, Merge, Method, Problem, scaled
from src.merging.registry import register
from src.merging.ties import magnitude_threshold
from src.ranges import FINITE, PERCENT, option
from src.task_vectors import TaskVector


def multi_task_vector(problem: Problem, k: float = 100.0) -> TaskVector:
    """τ_MTL = Σ_t τ_t, summed in the order of the tasks; one tensor of one task is in memory beside the sum.

    k: the percent of each τ_t, by magnitude, that is summed. Raises UsageError unless 1 <= k <= 100.
    """
    thresholds = [magnitude_threshold(problem, task, k) for task in problem.tasks]
    total = {}
    for key in problem.keys:
        tensors = (
            tau if k == 100 else tau.where(tau.abs() >= threshold, 0.0)
            for tau, threshold in zip(problem.tensors(key), thresholds, strict=True)
        )
        total[key] = next(tensors)
        for tau in tensors:
            total[key] += tau
    return TaskVector(vector=total)


@register(
    "sum",
    studied=True,
    title="task arithmetic",
    paper="2212.04089",
    untuned=0.3,
    compared=True,
    published={
        "tall": "Task arithmetic",
        "concrete": "Task Arithmetic",
        "fusionbench": "Task Arithmetic",
        "No Task Left Behind (Iso)": "task arithmetic",
        "Task Singular Vectors": "Task Arithmetic",
        "WUDI-Merging": "Task Arithmetic",
        "CART": "task arithmetic",
    },
    stage="merging",
)
@dataclass
class Sum(Method):
    """Task arithmetic: θ0 + α Σ_t τ_t, with the α that is best on validation images."""

    adds = True

    k: float = option(100.0, PERCENT)
    alphas: list[float] = option(ALPHAS, FINITE)

    def merge(self, problem: Problem) -> Merge:
        return scaled(problem, multi_task_vector(problem, self.k), self.alphas)


@register(
    "average",
    studied=True,
    title="weight averaging",
    paper="2203.05482",
    published={
        "tall": "Weight averaging",
        "concrete": "Weight Averaging",
        "No Task Left Behind (Iso)": "weight averaging",
        "Task Singular Vectors": "Weight Average",
        "WUDI-Merging": "Weight Averaging",
        "CART": "weight averaging",
    },
    stage="merging",
)
@dataclass
class Average(Method):
    """The mean of the fine-tuned weights: task arithmetic with α = 1/T."""

    adds = True

    k: float = option(100.0, PERCENT)

    def merge(self, problem: Problem) -> Merge:
        return scaled(problem, multi_task_vector(problem, self.k), [1 / len(problem.tasks)])


@register(
    "zeroshot",
    title="zero-shot",
    paper="2103.00020",
    published={
        "tall": "Zeroshot",
        "No Task Left Behind (Iso)": "zero-shot",
        "Task Singular Vectors": "Zero-shot",
        "WUDI-Merging": "Pretrained",
        "CART": "Pretrained",
    },
    stage="merging",
)
@dataclass
class ZeroShot(Method):
    """The pre-trained model itself: task arithmetic with α = 0."""

    def merge(self, problem: Problem) -> Merge:
        zero = torch.zeros((), dtype=problem.dtype)
        return scaled(problem, TaskVector(vector={k: zero.expand(s) for k, s in problem.shapes.items()}), [0.0])
