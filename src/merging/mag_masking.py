"""Magnitude masking, the baseline of TALL masks (Wang et al., 2024, arXiv:2405.07813): θ_t = θ0 + m_t ∘ Σ_t τ_t.

m_t keeps the top k % of |τ_t| over the whole flattened vector, with the threshold of ties.py: where it is 0, as for a
task vector of zeros, all weights are kept, as published.
"""

from dataclasses import dataclass

from src.merging.base import Merge, Method, Problem, Setting, register
from src.merging.masked import Masked
from src.merging.task_arithmetic import multi_task_vector
from src.merging.ties import magnitude_threshold
from src.task_vectors import Mask


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
    k: float = 10.0

    def merge(self, problem: Problem) -> Merge:
        tau, bits = multi_task_vector(problem), problem.storage_masked()
        return MagnitudeMasked(tau=tau, settings=(1.0,), storage_bits=bits, problem=problem, k=self.k)
