"""SVC: singular values of a merge, calibrated to what the tasks want of each direction (arXiv:2602.05536).

Of every matrix [out, in] (see matrices.py) of the vector τ of another method, `base`, at its coefficient α:

    α Δ = U diag(σ) Vᵀ,    a_r = u_rᵀ α Δ,    a_r^t = u_rᵀ Δ_t,
    s_r^t = ⟨a_r, a_r^t⟩ / ‖a_r^t‖²,    γ_r = T / Σ_t max(clip, s_r^t),    Δ ← U diag(γ σ) Vᵀ

s > 1 says that the merge has more of task t along u_r than the task itself. The rest of the vector stays α τ.

s is proportional to α, and γ to its inverse: where no s is below `clip`, the matrices do not depend on α. With `clip`
they depend on clip/α alone. So there is little to tune, and the base is `average` unless asked otherwise, with the
clip that was published for it: α = 1/T is given, and a run chooses nothing. `alpha` fixes the coefficient of a base
that has several; without it validation chooses among them. Published (FusionBench, on CLIP ViT-B/32, 8 tasks): sum and
TIES α .3, clip .1; TSV-M α 1, clip 1; Iso-C α 1.5, clip .1; Iso-CTS α 1.5, clip .2.

FusionBench's checkpoints have q, k and v apart (`split_qkv`) and the projection [out, in], as here by `transpose_proj`.
Its implementation has s = ⟨a_r, a_r^t⟩/10⁻¹² where ‖a_r^t‖² is less than 10⁻¹². That depends on the scale of τ; here
s is 0 where a task has nothing along u_r but rounding, ‖a_r^t‖ <= 10 √max(m, n) · eps · ‖Δ_t‖.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from src.merging.base import Merge, Problem, Setting, Variant
from src.merging.matrices import SVD, Deltas, Matrix, MatrixMethod, matrices_of
from src.merging.registry import register
from src.merging.wrapped import Wrapper
from src.ranges import FINITE, POSITIVE, option
from src.task_vectors import TaskVector


def responses(svd: SVD, deltas: Deltas) -> Tensor:
    """s_r^t at α = 1, [T, r]; 0 where a task has nothing along u_r."""
    rows = svd.s[:, None] * svd.vh  # a_r, [r, n]
    s = []
    for delta in deltas:
        own = svd.u.T @ delta  # a_r^t
        norm = own.norm(dim=1)
        nothing = 10 * max(delta.shape) ** 0.5 * torch.finfo(delta.dtype).eps * delta.norm()
        s.append((rows * own).sum(1) / norm.square().where(norm > nothing, torch.inf))
    return torch.stack(s)


def calibrated(svd: SVD, s: Tensor, alpha: float, clip: float) -> Tensor:
    """Δ at a coefficient."""
    gamma = len(s) / (alpha * s).clamp(min=clip).sum(0)
    return SVD(svd.u, gamma * alpha * svd.s, svd.vh).matrix()


@dataclass(kw_only=True)
class Calibrated(Merge):
    """The settings are the coefficients α of τ; its decompositions are in memory once, for all of them."""

    tau: TaskVector
    spectra: dict[str, list[tuple[Matrix, SVD, Tensor]]]  # by tensor: its matrices, and their s
    clip: float

    def vector(self, task: str, setting: Setting) -> TaskVector:
        vector = {}
        for key, tensor in self.tau.vector.items():
            vector[key] = setting * tensor
            for matrix, svd, s in self.spectra.get(key, ()):
                matrix.of(vector[key]).copy_(calibrated(svd, s, setting, self.clip))
        return TaskVector(vector=vector)

    def finish(self, chosen: Mapping[str, Setting]) -> dict[str, Any]:
        """The share of all s_r^t that is below `clip`."""
        alpha = next(iter(chosen.values()))
        s = torch.cat([s.flatten() for matrices in self.spectra.values() for _, _, s in matrices])
        return {"clipped": float((alpha * s < self.clip).double().mean())}


@register(
    "svc",
    title="SVC, weight averaging",
    paper="2602.05536",
    stage="methods",
    variants=(
        Variant("SVC, task arithmetic", {"base": "sum"}, stage="methods"),
        Variant("SVC, TSV-M", {"base": "tsv_m", "alpha": 1.0, "clip": 1.0}, stage="methods"),
        Variant("SVC, Iso-C", {"base": "iso_c", "alpha": 1.5}, stage="methods"),
        Variant("SVC, Iso-CTS", {"base": "iso_cts", "alpha": 1.5, "clip": 0.2}, stage="methods"),
    ),
)
@dataclass
class SingularValueCalibration(MatrixMethod, Wrapper):
    base: str = "average"
    alpha: float | None = option(None, FINITE)
    clip: float = option(0.1, POSITIVE)
    transpose_proj: bool = True

    def wrapped(self, problem: Problem, tau: TaskVector, alphas: Sequence[float]) -> Merge:
        spectra: dict[str, list[tuple[Matrix, SVD, Tensor]]] = {}
        for key, matrices in matrices_of(problem, self.layout(transpose=self.transpose_proj)):
            for deltas in matrices:
                svd = deltas.svd(deltas.matrix.of(tau.vector[key]))
                spectra.setdefault(key, []).append((deltas.matrix, svd, responses(svd, deltas)))
        return Calibrated(
            tau=tau,
            spectra=spectra,
            clip=self.clip,
            settings=alphas if self.alpha is None else (self.alpha,),
            storage_bits=problem.storage_merged(),
        )
