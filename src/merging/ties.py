"""TIES-Merging: trim, elect, merge (Yadav et al., 2023, arXiv:2306.01708).

Trim:  keep the k % of each τ_t with the largest magnitude, over the whole flattened vector.
Elect: γ = sgn(Σ_t τ_t) of each weight; a weight whose sum is 0 takes sgn(Σ_weights γ).
Merge: the mean (or the sum) of the τ_t whose sign is γ.

Equal to the published code in what the paper leaves open: the threshold is the (P − ⌊kP/100⌋)-th smallest magnitude
and is kept, so one weight more than k % remains, and more where magnitudes are equal; where Σ_weights γ is itself 0,
the negative entries are merged. `k` is a percent, of at least 1: the published code reads a k below 1 as a
fraction, so that one is refused.
"""

from dataclasses import dataclass

import torch

from src.merging.base import ALPHAS, Merge, Method, Problem, scaled
from src.merging.registry import register
from src.ranges import FINITE, PERCENT, check_value, option
from src.runtime.messages import UsageError
from src.task_vectors import TaskVector
from src.tensors import put_in_place


def magnitude_threshold(problem: Problem, task: str, k: float) -> float:
    """The smallest magnitude among the top `k` percent of τ_task; holds that one vector, flat.

    Raises UsageError unless 1 <= k <= 100.
    """
    check_value("k", k, PERCENT)
    if k == 100:
        return 0.0
    size = problem.num_parameters
    flat = torch.empty(size, dtype=problem.dtype)  # (parameters,)
    for key, piece in zip(problem.keys, flat.split([shape.numel() for shape in problem.shapes.values()])):
        torch.abs(problem.tensor(task, key).flatten(), out=piece)
    magnitudes = flat.numpy()
    rank = size - int(size * (k / 100))  # counted from 1, from below; k / 100 first, as published: the product rounds
    put_in_place(magnitudes, [rank - 1])
    return float(magnitudes[rank - 1])


def ties_vector(problem: Problem, k: float, reduce: str) -> TaskVector:
    """The merged vector of TIES before its coefficient. reduce: "mean" or "sum" over the tasks that agree with γ.

    Both candidates of each weight, its positive and its negative entries, are accumulated in one pass over the tasks,
    because γ is known only when the last task has been added.
    """
    if reduce not in ("mean", "sum"):
        raise UsageError(f"reduce: expected mean or sum; got {reduce!r}")
    thresholds = [magnitude_threshold(problem, task, k) for task in problem.tasks]
    merged, undecided, balance = {}, {}, 0
    for key, shape in problem.shapes.items():
        total, positive, negative = torch.zeros(3, *shape, dtype=problem.dtype)
        positives, negatives = torch.zeros(2, *shape, dtype=torch.int16)
        for tau, threshold in zip(problem.tensors(key), thresholds, strict=True):
            tau = torch.where(tau.abs() >= threshold, tau, 0.0)
            total += tau
            positive += tau.clamp(min=0)
            negative += tau.clamp(max=0)
            if reduce == "mean":
                positives += tau > 0
                negatives += tau < 0
        if reduce == "mean":
            positive /= positives.clamp(min=1)
            negative /= negatives.clamp(min=1)
        gamma = total.sign()
        balance += int(gamma.sum(dtype=torch.float64))
        merged[key] = torch.where(gamma > 0, positive, negative)
        cancelled = ((gamma == 0) & (positive != 0)).flatten().nonzero().squeeze(1)
        undecided[key] = cancelled, positive.flatten()[cancelled]
    if balance > 0:
        for key, (cancelled, values) in undecided.items():
            merged[key].view(-1)[cancelled] = values
    return TaskVector(vector=merged)


@register(
    "ties",
    studied=True,
    title="TIES",
    paper="2306.01708",
    untuned=1.0,
    published={
        "tall": "TIES",
        "concrete": "Ties-Merging",
        "fusionbench": "Ties-Merging",
        "No Task Left Behind (Iso)": "TIES",
        "WUDI-Merging": "Ties-Merging",
        "CART": "TIES",
    },
    stage="merging",
)
@dataclass
class Ties(Method):
    trims = True

    k: float = option(20.0, PERCENT)
    reduce: str = "mean"
    alphas: list[float] = option(ALPHAS, FINITE)

    def merge(self, problem: Problem) -> Merge:
        return scaled(problem, ties_vector(problem, self.k, self.reduce), self.alphas)
