"""How tasks share the weights of a merged model: mask density, agreement, and the angles between task vectors.

The quantities of Wang et al., 2024 (arXiv:2405.07813). Everything is accumulated tensor by tensor.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from src.merging.base import Problem
from src.records import Masks

CHUNK = 2**20  # weights of a tensor that are in float64 at a time


def describe(masks: Mapping[str, Mapping[str, torch.Tensor]]) -> Masks:
    """Facts of {task: {name: bool tensor}}, as fractions of all weights.

    density: active weights of each task. usage[k]: weights that exactly k tasks activate, k = 0 ... T; `catastrophic`,
    `selfish` and `universal` are those of k = 0, 1 and T. iou: |m_s ∧ m_t| / |m_s ∨ m_t|, (tasks, tasks); two empty
    masks agree.
    """
    tasks = list(masks)
    usage = np.zeros(len(tasks) + 1, dtype=np.int64)
    both = np.zeros((len(tasks), len(tasks)), dtype=np.int64)
    for name in masks[tasks[0]]:
        active = np.stack([masks[task][name].numpy().reshape(-1) for task in tasks])  # (tasks, weights)
        usage += np.bincount(active.sum(0), minlength=len(usage))
        bits = np.packbits(active, axis=1)
        for row, mask in zip(both, bits, strict=True):
            row += np.bitwise_count(mask & bits).sum(1, dtype=np.int64)
    size, active = usage.sum(), both.diagonal()
    either = active[:, None] + active - both
    iou = np.divide(both, either, out=np.ones(both.shape), where=either > 0)
    shares = usage / size
    return {
        "density": dict(zip(tasks, (active / size).tolist(), strict=True)),
        "usage": shares.tolist(),
        "catastrophic": float(shares[0]),
        "selfish": float(shares[1]),
        "universal": float(shares[-1]),
        "iou": iou.tolist(),
    }


def vector_geometry(problem: Problem) -> dict[str, Any]:
    """Norms of the task vectors and cosines between them, (tasks, tasks); a vector of zeros has cosine 0 with all.

    Inner products are accumulated in float64, with one tensor of every task in memory.
    """
    gram = torch.zeros(len(problem.tasks), len(problem.tasks), dtype=torch.float64)
    for key in problem.keys:
        rows = torch.stack([tau.flatten() for tau in problem.tensors(key)])  # (tasks, weights)
        for piece in rows.split(CHUNK, dim=1):
            gram += (double := piece.double()) @ double.T
    norm = gram.diagonal().sqrt()
    cosine = gram / (norm[:, None] * norm).clamp(min=torch.finfo(torch.float64).tiny)
    return {"tasks": list(problem.tasks), "norm": norm.tolist(), "cosine": cosine.clamp(-1, 1).tolist()}
