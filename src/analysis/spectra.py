"""Spectral geometry of task vectors: ranks of a matrix, and how the subspaces of several matrices lie to each other.

Δ_t = U_t diag(σ_t) V_tᵀ of one matrix, σ in descending order.

    stable rank       Σ σ² / σ_1²
    effective rank    exp(−Σ p log p), p = σ / Σ σ                         (Roy and Vetterli, 2007)
    energy at k       Σ_{i ≤ k} σ_i² / Σ σ²
    interference      ‖(UᵀU − I) Σ (VᵀV − I)‖₁ / Σ σ, of U = [U_1^{1:k} … U_T^{1:k}]: the singular task interference
                      of Gargiulo et al., 2025 (arXiv:2412.00081), over its scale, so that layers compare
    alignment         ‖U_k U_kᵀ Δ_t‖ / ‖Δ_t‖, U_k the leading left vectors of a merged Δ: SAR of Marczak et al., 2025
                      (arXiv:2502.04959). The code behind their figure takes the smallest k with √energy > 0.95 (an
                      energy of .9025), as here; the text asks for a tail of 0.05² (.9975). It also overwrites U_k after
                      the first task, so that Iso's published points are 1 for all others; here U_k stays.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from src.merging.matrices import SVD

SHARE = 0.95  # √energy that the leading vectors of a merged matrix hold


def stable_rank(s: Tensor) -> float:
    return float(s.square().sum() / s[0].square())


def effective_rank(s: Tensor) -> float:
    p = s[s > 0] / s.sum()
    return float((-(p * p.log()).sum()).exp())


def energy(s: Tensor, k: int) -> float:
    return float(s[:k].square().sum() / s.square().sum())


def interference(svds: Sequence[SVD]) -> float:
    """Of the leading triplets of every task's matrix; 0 where their spaces are orthogonal, or there is one task."""
    u, v = (torch.cat(parts, 1) for parts in zip(*((svd.u, svd.vh.T) for svd in svds)))
    s = torch.cat([svd.s for svd in svds])
    overlap = (u.T @ u - torch.eye(len(s), dtype=s.dtype)) * s
    return float((overlap @ (v.T @ v - torch.eye(len(s), dtype=s.dtype))).abs().sum() / s.sum())


def leading(s: Tensor, share: float = SHARE) -> int:
    """The smallest k with √energy above `share`."""
    shares = (s.square().cumsum(0) / s.square().sum()).sqrt()
    return int((shares <= share).sum()) + 1


def alignment(merged: SVD, delta: Tensor, share: float = SHARE) -> float:
    """Of Δ_t, [m, n], with the leading left vectors of a merged matrix."""
    u = merged.u[:, : leading(merged.s, share)]
    return float((u.T @ delta).norm() / delta.norm())
