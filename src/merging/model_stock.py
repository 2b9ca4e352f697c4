"""Model Stock (Jang et al., 2024, arXiv:2403.19522), as a negative control: it was made for T models of one task.

For each tensor, θ = θ0 + s · mean_t τ_t with s = T cos φ / ((T − 1) cos φ + 1), where φ is the angle between two τ_t.
Models of one task have cos φ well above 0. Vectors of different tasks are nearly orthogonal, so the merge is nearly θ0.

For T > 2 the paper leaves open which angle; this is the mean of cos φ over all pairs, as in mergekit. Where it is
negative, s is negative, with a pole at cos φ = −1/(T − 1). The paper looks for a point between θ0 and the mean, so s is
0 there; `clamp=False` takes the formula as it is, as mergekit and FusionBench do.
"""

from dataclasses import dataclass

import torch

from src.merging.base import Merge, Method, Problem, scaled
from src.merging.registry import register
from src.task_vectors import TaskVector

POLE = 1e-8  # FusionBench adds as much to the denominator


def mean_cosine(taus: torch.Tensor) -> float:
    """Mean of the cosines between pairs of rows, (tasks, weights); 1 for one row. A row of zeros has cosine 0."""
    tasks = len(taus)
    if tasks == 1:
        return 1.0
    double = taus.double()
    unit = double / double.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    cosines = unit @ unit.T
    return float((cosines.sum() - cosines.diagonal().sum()) / (tasks * (tasks - 1)))


def interpolation(cosine: float, tasks: int, clamp: bool) -> float:
    """s, the place between θ0 (0) and the mean of the weights (1)."""
    if clamp:
        cosine = max(cosine, 0.0)
    return tasks * cosine / max((tasks - 1) * cosine + 1, POLE)


@register("model_stock", title="Model Stock", paper="2403.19522", stage="methods")
@dataclass
class ModelStock(Method):
    clamp: bool = True

    def merge(self, problem: Problem) -> Merge:
        merged, places = {}, {}
        for key, shape in problem.shapes.items():
            taus = torch.stack([tau.flatten() for tau in problem.tensors(key)])  # (tasks, weights)
            places[key] = interpolation(mean_cosine(taus), len(taus), self.clamp)
            merged[key] = (places[key] * taus.mean(0)).view(shape)
        return scaled(problem, TaskVector(vector=merged), [1.0], interpolation=places)
