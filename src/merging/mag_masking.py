"""Magnitude masking, the baseline of TALL masks (Wang et al., 2024, arXiv:2405.07813): θ_t = θ0 + m_t ∘ Σ_t τ_t.

m_t keeps the top k % of |τ_t| over the whole flattened vector, with the threshold of ties.py: where it is 0, as for a
task vector of zeros, all weights are kept, as published.
"""

from dataclasses import dataclass

from src.merging.base import Merge, Method, Problem, register
from src.merging.masked import masked
from src.merging.task_arithmetic import multi_task_vector
from src.merging.ties import magnitude_threshold
from src.task_vectors import Mask


def magnitude_mask(problem: Problem, task: str, k: float) -> Mask:
    """m_t = 1{ |τ_t| >= the smallest of its top k percent }."""
    threshold = magnitude_threshold(problem, task, k)
    return Mask({key: problem.tensor(task, key).abs() >= threshold for key in problem.keys})


@register("mag_masking")
@dataclass
class MagnitudeMasking(Method):
    k: float = 10.0

    def merge(self, problem: Problem) -> Merge:
        return masked(
            problem,
            multi_task_vector(problem),
            mask=lambda task, setting: magnitude_mask(problem, task, self.k),
            settings=[1.0],
        )
