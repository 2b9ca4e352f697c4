"""Merging by singular values: TSV-M and TSV-C, Iso-C and Iso-CTS, CART.

Of every matrix (see matrices.py), Δ_t = U_t Σ_t V_tᵀ with r = min(m, n), singular values descending; the upper index
1:k is the leading k columns; polar(M) = P Qᵀ of M = P D Qᵀ. T tasks.

Task singular vectors (Gargiulo et al., 2025, arXiv:2412.00081), k = ⌊r/T⌋ or ⌊rank · r⌋:

    TSV-M    Δ = polar([U_1^{1:k} … U_T^{1:k}]) diag(Σ_1^{1:k} … Σ_T^{1:k}) polar([V_1^{1:k} … V_T^{1:k}])ᵀ
    TSV-C    Δ_t = U_t^{1:k} Σ_t^{1:k} V_t^{1:k}ᵀ; a model per task, the rest as it is

Isotropic merging (Marczak et al., 2025, arXiv:2502.04959):

    Iso-C    Σ_t Δ_t = U S Vᵀ;    Δ = mean(S) U Vᵀ
    Iso-CTS  k = r − s T with s = round((r − ⌊c r⌋)/T), c = common_space_fraction;
             Δ̄_t = Δ_t − U^{1:k} U^{1:k}ᵀ Δ_t = Ū_t S̄_t V̄_tᵀ;
             Δ = σ̄ polar([Ū_1^{1:s} … Ū_T^{1:s} U^{1:k}]) polar([V̄_1^{1:s} … V̄_T^{1:s} V^{1:k}])ᵀ,
             σ̄ the mean of the r singular values S̄_1^{1:s} … S̄_T^{1:s} S^{1:k}

CART (Choi et al., 2024, arXiv:2412.12153), δ_t = Δ_t − Δ_avg, k = max(1, ⌊rank · r⌋):

    CART     Δ = Δ_avg + λ Σ_t top_k(δ_t), with the matrices of attention and MLPs; the rest is the average

θ = θ0 + α Δ with validation's α, which scales the rest too; CART has validation's λ in the place of α.

Equal to the published code, but for this:
* A direction whose singular value is 0 up to rounding takes no part. The published code takes what the library fills
  in there, so that a task that does not move a matrix, or two equal tasks, change the merge at random.
* Iso-CTS takes visual.proj, which is [in, out], transposed: it projects the output side away, as in the other matrices.
  `transpose_proj=False` takes it as it lies, as published. TSV, Iso-C and CART do not depend on the orientation.
* Iso-CTS has s <= r/T; the published code stops where c is near 0 and rounding makes s T more than r.
* Validation sees every α; the published Iso stops after three that are not better. TSV's README has α = 1.
* CART's (λ, rank) are published by model and number of tasks: ViT-B/32 2.0, .12 (8 tasks); 1.5, .16 (14); 1.9, .32
  (20), without saying how they were chosen. Here rank is .12, and `+search.rank=[0.12,0.16,0.32]` searches it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from src.merging.base import Affine, Merge, Problem, Setting, scaled
from src.merging.matrices import SVD, Deltas, Matrix, MatrixMethod, map_matrices, matrices_of, moved, share, total
from src.merging.registry import register
from src.ranges import FINITE, RANK, SHARE, check_value, option
from src.task_vectors import TaskVector

TSV, ISO, CART = "Task Singular Vectors", "No Task Left Behind (Iso)", "CART"  # the papers, as published.csv has them
ALPHAS = tuple(tenth / 10 for tenth in range(1, 31))  # those of TSV and Iso; up to 1 they would clip


@dataclass
class MergedMatrices(MatrixMethod):
    """rest: what tensors that are no matrix get: "mean", "sum" or "zero"."""

    rest: str = "mean"
    alphas: list[float] = option(ALPHAS, FINITE)


def tsv_rank(deltas: Deltas, rank: float | None) -> int:
    """k: ⌊r/T⌋, which may be 0, or the share `rank` of r."""
    return deltas.r // len(deltas) if rank is None else share(rank, deltas.r)


def tsv_m(deltas: Deltas, k: int) -> Tensor:
    """Δ of TSV-M; 0 where k is."""
    if k == 0:
        return torch.zeros(deltas.shape, dtype=deltas.problem.dtype)
    u, s, vh = joined(svd.directions() for svd in deltas.svds(k))
    return (deltas.polar(u) * s) @ deltas.polar(vh)


def joined(svds: Iterable[SVD]) -> tuple[Tensor, Tensor, Tensor]:
    """[U_1 … U_T], the singular values, and [V_1 … V_T]ᵀ."""
    u, s, vh = zip(*((svd.u, svd.s, svd.vh) for svd in svds))
    return torch.cat(u, dim=1), torch.cat(s), torch.cat(vh)


@register(
    "tsv_m",
    studied=True,
    title="TSV-M",
    paper="2412.00081",
    published={TSV: "TSV-M", ISO: "TSV-M"},
    untuned=1.0,
    stage="methods",
)
@dataclass
class TSVM(MergedMatrices):
    """TSV-M: the leading singular vectors of every task, made orthogonal (Gargiulo et al., 2025).

    The result names the tensors `without_rank`, for which there are more tasks than singular values.
    """

    rank: float | None = option(None, RANK)

    def merge(self, problem: Problem) -> Merge:
        without_rank = set()

        def merged(deltas: Deltas) -> Tensor:
            k = tsv_rank(deltas, self.rank)
            if k == 0:
                without_rank.add(deltas.matrix.key)
            return tsv_m(deltas, k)

        tau = map_matrices(problem, self.layout(), merged, self.rest)
        return scaled(problem, tau, self.alphas, without_rank=sorted(without_rank))


@dataclass(kw_only=True)
class Compressed(Merge):
    """θ_t = θ0 + the leading triplets of each matrix; other tensors are the task's own."""

    problem: Problem
    triplets: dict[str, list[tuple[Matrix, list[SVD]]]]  # by tensor: its matrices, and the triplets of each task
    per_task: bool = True

    def vector(self, task: str, setting: Setting) -> TaskVector:
        index = self.problem.tasks.index(task)
        vector = {}
        for key, shape in self.problem.shapes.items():
            if key not in self.triplets:
                vector[key] = self.problem.tensor(task, key)
                continue
            vector[key] = torch.empty(shape, dtype=self.problem.dtype)
            for matrix, svds in self.triplets[key]:
                matrix.of(vector[key]).copy_(svds[index].matrix())
        return TaskVector(vector=vector) * setting


@register("tsv_c", title="TSV-C", paper="2412.00081", published={TSV: "TSV-C"}, stage="methods")
@dataclass
class TSVC(MatrixMethod):
    """TSV-C: a task vector of rank r/T for each task (Gargiulo et al., 2025).

    Its storage is θ0, k (m + n + 1) numbers of every matrix and task, and the rest of every task, in fp32. That is more
    than the matrix itself where T is 1, or 2 and the matrix nearly square.
    """

    rank: float | None = option(None, RANK)

    def merge(self, problem: Problem) -> Merge:
        triplets, numbers = {}, problem.num_parameters_total
        for key, matrices in matrices_of(problem, self.layout()):
            if matrices:
                ranks = [tsv_rank(deltas, self.rank) for deltas in matrices]
                triplets[key] = [(d.matrix, [svd.copy() for svd in d.svds(k)]) for d, k in zip(matrices, ranks)]
                each = sum(k * (sum(deltas.shape) + 1) for deltas, k in zip(matrices, ranks))
            else:
                each = problem.shapes[key].numel() if moved(problem, key) else 0
            numbers += len(problem.tasks) * each
        return Compressed(problem=problem, triplets=triplets, settings=(1.0,), storage_bits=32 * numbers)


def iso_c(deltas: Deltas) -> Tensor:
    """Δ of Iso-C."""
    whole = deltas.svd_of_total()
    svd = whole.directions()
    return whole.s.mean() * (svd.u @ svd.vh)


@register("iso_c", studied=True, title="Iso-C", paper="2502.04959", published={ISO: "Iso-C"}, stage="methods")
@dataclass
class IsoC(MergedMatrices):
    """Iso-C: the sum with equal singular values (Marczak et al., 2025)."""

    def merge(self, problem: Problem) -> Merge:
        return scaled(problem, map_matrices(problem, self.layout(), iso_c, self.rest), self.alphas)


def iso_spaces(r: int, tasks: int, common_space_fraction: float) -> tuple[int, int]:
    """k, the size of the common space, and s, that of each task's own.

    Raises UsageError for a fraction that is not in [0, 1].
    """
    check_value("common_space_fraction", common_space_fraction, SHARE)
    s = min(round((r - int(common_space_fraction * r)) / tasks), r // tasks)
    return r - s * tasks, s


def iso_cts(deltas: Deltas, common_space_fraction: float) -> Tensor:
    """Δ of Iso-CTS."""
    k, s = iso_spaces(deltas.r, len(deltas), common_space_fraction)
    whole = deltas.svd_of_total()
    common = whole.top(k)
    own = []
    for delta in deltas if s else ():
        own.append(deltas.svd(delta - common.u @ (common.u.T @ delta)).top(s))
    u, sigma, vh = joined(svd.directions(beside=whole.s[:1]) for svd in (*own, common))
    return sigma.sum() / deltas.r * (deltas.polar(u) @ deltas.polar(vh))


@register("iso_cts", title="Iso-CTS", paper="2502.04959", published={ISO: "Iso-CTS"}, stage="methods")
@dataclass
class IsoCTS(MergedMatrices):
    """Iso-CTS: Iso-C with the least directions of the sum replaced by the tasks' own (Marczak et al., 2025)."""

    common_space_fraction: float = option(0.8, SHARE)
    transpose_proj: bool = True

    def merge(self, problem: Problem) -> Merge:
        layout = self.layout(transpose=self.transpose_proj)
        tau = map_matrices(problem, layout, lambda deltas: iso_cts(deltas, self.common_space_fraction), self.rest)
        return scaled(problem, tau, self.alphas)


@register("cart", title="CART", paper="2412.12153", published={CART: "CART"}, untuned=2.0, stage="methods")
@dataclass
class Cart(MatrixMethod):
    """CART: the average, and the leading triplets of what each task differs from it in (Choi et al., 2024)."""

    matrices: str = "blocks"
    rank: float = option(0.12, RANK)
    lambdas: list[float] = option(ALPHAS, FINITE)

    def merge(self, problem: Problem) -> Merge:
        average, residuals = {}, {}
        for key, matrices in matrices_of(problem, self.layout()):
            average[key] = total(problem.tensors(key)) / len(problem.tasks)
            residuals[key] = torch.zeros_like(average[key])
            for deltas in matrices:
                for svd in deltas.svds(share(self.rank, deltas.r), centred=True):
                    deltas.matrix.of(residuals[key]).add_(svd.matrix())
        return Affine(
            offset=TaskVector(vector=average),
            tau=TaskVector(vector=residuals),
            settings=tuple(self.lambdas),
            storage_bits=problem.storage_merged(),
        )
