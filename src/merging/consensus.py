"""Consensus merging: what only one task needs, or none, is left out (Wang et al., 2024, arXiv:2405.07813).

θ = θ0 + α · 1{ Σ_t m_t >= k } ∘ τ_MTL, with the TALL masks m_t that `method=tall_mask` kept and validation's α.
k = `prun_thre_k`: 0 is τ_MTL itself, 1 drops catastrophic weights, 2 selfish ones too, more than T is zero-shot.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from src.merging.base import ALPHAS, Merge, Method, Problem, Variant, scaled
from src.merging.masked import Masks
from src.merging.registry import register
from src.merging.tall_mask import load_tall_masks, masks_file, tau_mtl
from src.ranges import FINITE, TASKS, check_value, option
from src.task_vectors import Mask


def consensus_mask(masks: Masks, k: int) -> Mask:
    """1 where at least k of the tasks' masks are 1."""
    check_value("prun_thre_k", k, TASKS)
    shared = {}
    for name, shape in next(iter(masks.values())).shapes.items():
        users = torch.zeros(shape, dtype=torch.int16)
        for mask in masks.values():
            users += mask[name]
        shared[name] = users >= k
    return Mask(shared)


@register(
    "consensus",
    title="consensus TA",
    paper="2405.07813",
    published={
        "tall": "Consensus TA",
        "No Task Left Behind (Iso)": "consensus TA",
        "Task Singular Vectors": "Consensus TA",
        "WUDI-Merging": "Consensus Merging",
        "CART": "consensus TA",
    },
    stage="merging",
    after="tall_mask",
    variants=(
        Variant(
            "consensus TIES",
            {"use_ties": True},
            published={"tall": "Consensus TIES"},
            stage="merging",
            spelling="consensus_ties",
        ),
    ),
)
@dataclass
class Consensus(Method):
    prun_thre_k: int = option(2, TASKS)
    use_ties: bool = False
    mask_file: str | None = None
    alphas: list[float] = option(ALPHAS, FINITE)

    def reads(self, masks_at: Callable[[str], Path], published_masks: Path | None = None) -> Path:
        return masks_file(masks_at, self.use_ties, self.mask_file, published_masks)

    def merge(self, problem: Problem) -> Merge:
        masks, path = load_tall_masks(problem, self.use_ties, self.mask_file)
        mask = consensus_mask(masks, self.prun_thre_k)
        tau = mask * tau_mtl(problem, self.use_ties)
        source = {"mask_file": path} if path == problem.published_masks else {}
        return scaled(problem, tau, self.alphas, density=mask.density(), **source)
