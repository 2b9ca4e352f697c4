"""MetaGPT: coefficients in closed form (Zhou et al., 2024, arXiv:2406.11385): θ = θ0 + Σ_t λ_t τ_t.

λ_t = ‖τ_t‖² / Σ_k ‖τ_k‖² minimises the paper's bound on the loss that merging adds,

    Σ_t ‖τ_t‖² · ‖Σ_k λ_k τ_k − τ_t‖²,

whatever the angles between the τ_t: its gradient is 2 G (λ Σ_t ‖τ_t‖² − a), with G the Gram matrix of the τ_t and a its
diagonal. The paper's two assumptions, linearity around θ0 and orthogonal τ_t, are those under which the bound is the
loss. With τ_t of equal length this is weight averaging; otherwise the longer vectors weigh more.
"""

import math
from dataclasses import dataclass

import torch

from src.merging.base import Merge, Method, Problem, scaled
from src.merging.registry import register
from src.task_vectors import TaskVector


def squared_norms(problem: Problem) -> list[float]:
    """‖τ_t‖² of each task, summed in float64; one tensor is in memory at a time."""
    parts = [[float(tau.double().square().sum()) for tau in problem.tensors(key)] for key in problem.keys]
    return [math.fsum(of_task) for of_task in zip(*parts, strict=True)]


def coefficients(problem: Problem) -> list[float]:
    """λ_t of each task; equal ones where every τ_t is 0."""
    squares = squared_norms(problem)
    total = math.fsum(squares)
    return [square / total if total else 1 / len(squares) for square in squares]


@register("metagpt", title="MetaGPT", paper="2406.11385", stage="methods")
@dataclass
class MetaGPT(Method):
    def merge(self, problem: Problem) -> Merge:
        lam = coefficients(problem)
        merged = {key: torch.zeros(shape, dtype=problem.dtype) for key, shape in problem.shapes.items()}
        for key, total in merged.items():
            for coef, tau in zip(lam, problem.tensors(key), strict=True):
                total.add_(tau, alpha=coef)
        about = dict(zip(problem.tasks, lam, strict=True))
        return scaled(problem, TaskVector(vector=merged), [1.0], coefficients=about)
