"""A model's matrices, one at a time: what the spectral methods and SVC share.

Which tensors are matrices. In open_clip's vision transformers the 2-D tensors of the image tower are

    attn.in_proj_weight [3d, d] (q, k and v, stacked), attn.out_proj.weight [d, d], mlp.c_fc.weight [4d, d],
    mlp.c_proj.weight [d, 4d]: [out, in];    proj [d, e]: [in, out];    positional_embedding [n, d]: no linear map.

The published code takes every 2-D tensor as it lies, in_proj_weight as one matrix, and nothing else. The options:

    matrices: "all": those. "linear": without embeddings. "blocks": the weights of attention and MLPs alone.
    split_qkv: q, k and v apart, as Hugging Face's CLIP stores them. Another method: a rank r/T is then given thrice.
    conv1: the convolutions before the blocks, as [out, in·p·p].

A method that treats the two sides of a matrix differently wants [out, in] throughout, and takes proj transposed.
All else (vectors, scalars, convolutions) is the `rest`: the mean of the τ_t, as published, their sum, or zero.
A tensor that no task has moved is rest too: its matrix is zero whatever the method, and may be a token embedding.

Decompositions. Δ_t = U Σ Vᵀ of a matrix takes most of a method's time, and the settings of a method, the options that
a search tries and several methods on one Problem ask for the same ones. They are kept in `Problem.memo`, in memory, and
go with the problem; two problems share none. Kept are the leading triplets that were asked for: those of rank r/T take
about as much room as one vector, whatever T. When BUDGET bytes are kept, no more are, and what is not kept is computed
again. Nothing is evicted, because a method goes through the matrices in order: each would be evicted before it is asked
for again. Nothing is on disk, where full decompositions would take a third more than all checkpoints. Beside what is
kept, one matrix of each task is in memory.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from src.checkpoints import VISUAL
from src.inputs import IN_OUT, is_embedding
from src.merging.base import Method, Problem
from src.merging.depth import block_of
from src.modes import MODES
from src.ranges import RANK, check_choice, check_value
from src.run import as_flags
from src.runtime.messages import NotFinite, few
from src.task_vectors import TaskVector

BUDGET = 2**30  # bytes of decompositions that a problem keeps: all of ViT-B/32's at rank r/T
SETS = ("all", "linear", "blocks")
RESTS = ("mean", "sum", "zero")
STACKED = "attn.in_proj_weight"


class NoDecomposition(NotFinite):
    """A matrix without a singular value decomposition."""


@dataclass(frozen=True)
class SVD:
    """A = u diag(s) vh, thin, or its leading triplets: [m, k], [k] in descending order, [k, n]."""

    u: Tensor
    s: Tensor
    vh: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> "SVD":
        """In float64 on the CPU where it does not converge otherwise. Raises torch.linalg.LinAlgError if not there."""
        try:
            return cls(*torch.linalg.svd(matrix, full_matrices=False))
        except torch.linalg.LinAlgError:
            wide = torch.linalg.svd(matrix.cpu().double(), full_matrices=False)
            return cls(*(part.to(matrix) for part in wide))

    def top(self, k: int) -> "SVD":
        return SVD(self.u[:, :k], self.s[:k], self.vh[:k])

    def matrix(self) -> Tensor:
        return (self.u * self.s) @ self.vh

    def directions(self, beside: Tensor | None = None) -> "SVD":
        """Without the triplets whose s is 0 up to rounding, √max(m, n) · eps · s_1: their vectors are arbitrary.

        beside: a singular value, [1], in the place of s_1, where this is what was left of another matrix.
        """
        size = max(len(self.u), self.vh.shape[1])
        least = size**0.5 * torch.finfo(self.s.dtype).eps * (self.s[:1] if beside is None else beside)
        return self.top(int((self.s > least).sum()))

    def copy(self) -> "SVD":
        return SVD(self.u.clone(), self.s.clone(), self.vh.clone())

    @property
    def nbytes(self) -> int:
        return self.u.nbytes + self.s.nbytes + self.vh.nbytes


@dataclass(frozen=True)
class Matrix:
    """A matrix in a tensor, which is flattened behind its first dimension: all of it, or rows, or its transpose."""

    key: str
    rows: tuple[int, int] | None = None
    transposed: bool = False

    def of(self, tensor: Tensor) -> Tensor:
        """[m, n], a view of a contiguous tensor."""
        matrix = tensor.reshape(len(tensor), -1)
        if self.rows is not None:
            matrix = matrix[slice(*self.rows)]
        return matrix.T if self.transposed else matrix


@dataclass(frozen=True)
class Layout:
    """Which matrices a model has: the options at the head of this file. transpose: proj as [out, in].

    Raises UsageError for an unknown set of matrices.
    """

    matrices: str = "all"
    split_qkv: bool = False
    conv1: bool = False
    transpose: bool = False

    def __post_init__(self):
        check_choice("matrices", self.matrices, SETS)

    def of(self, key: str, shape: torch.Size) -> list[Matrix]:
        """The matrices of a tensor; none where it is rest."""
        if self.conv1 and key.startswith(f"{VISUAL}conv1.") and len(shape) == 4:
            return [Matrix(key)]
        if len(shape) != 2 or not self._has(key):
            return []
        if self.split_qkv and key.endswith(STACKED):
            d = shape[0] // 3
            return [Matrix(key, (d * part, d * (part + 1))) for part in range(3)]
        return [Matrix(key, transposed=self.transpose and key == IN_OUT)]

    def _has(self, key: str) -> bool:
        if self.matrices == "blocks":
            block = block_of(key)
            return block is not None and block[1].startswith(("attn.", "mlp."))
        return not key.endswith("text_projection") and (self.matrices == "all" or not is_embedding(key))


@dataclass(frozen=True)
class Deltas:
    """Δ_t of one matrix, in the order of the tasks, and what is computed of them."""

    problem: Problem
    matrix: Matrix

    def __len__(self) -> int:
        return len(self.problem.tasks)

    def __iter__(self) -> Iterator[Tensor]:
        """Each Δ_t, [m, n], read anew."""
        return (self.matrix.of(tau) for tau in self.problem.tensors(self.matrix.key))

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.matrix.of(torch.empty(self.problem.shapes[self.matrix.key], device="meta")).shape
        return m, n

    @property
    def r(self) -> int:
        return min(self.shape)

    def total(self) -> Tensor:
        """Σ_t Δ_t"""
        return total(iter(self))

    def svds(self, k: int, centred: bool = False) -> list[SVD]:
        """The leading k triplets of each Δ_t, or of each Δ_t less their mean. Raises NoDecomposition."""
        names = [("centred" if centred else "own", task) for task in self.problem.tasks]
        stored = [self._remembered(name, k) for name in names]
        if all(stored):
            return [svd for svd in stored if svd]
        mean = self.total() / len(self) if centred else None
        return [
            svd or self._remember(name, self.svd(delta if mean is None else delta - mean).top(k))
            for name, svd, delta in zip(names, stored, self)
        ]

    def svd_of_total(self) -> SVD:
        """Of Σ_t Δ_t, whole. Raises NoDecomposition."""
        name = ("total", "")
        return self._remembered(name, self.r) or self._remember(name, self.svd(self.total()))

    def svd(self, matrix: Tensor) -> SVD:
        """Of a matrix that is made from Δ_t. Raises NoDecomposition, naming the tasks whose weights are no numbers."""
        try:
            return SVD.of(matrix)
        except torch.linalg.LinAlgError:
            broken = [task for task, delta in zip(self.problem.tasks, self) if not delta.isfinite().all()]
            tasks = broken or list(self.problem.tasks)
            mode, size = MODES[self.problem.mode].checkpoint, " x ".join(map(str, matrix.shape))
            raise NoDecomposition(
                f"{self.matrix.key} of {few(tasks)}: expected a matrix with a singular value decomposition, found none "
                f"in float64 either; of its {size} entries {int((~matrix.isfinite()).sum())} are not finite. "
                f"A checkpoint is damaged, or its training diverged; make it again: python finetune.py "
                f"{as_flags({'model': self.problem.model} | self.problem.named)} --tasks {' '.join(tasks)} "
                f"--finetuning-mode={mode} --overwrite"
            ) from None

    def polar(self, matrix: Tensor) -> Tensor:
        """P Qᵀ of M = P D Qᵀ, the nearest matrix with orthonormal columns, or rows.

        Where M lacks rank it is the partial isometry, without the directions that M does not have: P Qᵀ has some there
        that the library made up.
        """
        svd = self.svd(matrix).directions()
        return svd.u @ svd.vh

    def _remembered(self, name: tuple[str, str], k: int) -> SVD | None:
        svd = self.problem.memo.get((self.matrix, *name))
        return svd.top(k) if svd and len(svd.s) >= k else None

    def _remember(self, name: tuple[str, str], svd: SVD) -> SVD:
        memo = self.problem.memo
        if svd.nbytes + sum(other.nbytes for other in memo.values() if isinstance(other, SVD)) <= BUDGET:
            memo[self.matrix, *name] = svd.copy()  # a view would keep the whole in memory
        return svd


@dataclass
class MatrixMethod(Method):
    """Options of every method that works matrix by matrix; see the head of src/merging/matrices.py."""

    matrices: str = "all"
    split_qkv: bool = False
    conv1: bool = False

    def layout(self, transpose: bool = False) -> Layout:
        return Layout(self.matrices, self.split_qkv, self.conv1, transpose)


def matrices_of(problem: Problem, layout: Layout) -> Iterator[tuple[str, list[Deltas]]]:
    """Every tensor in scope and its matrices; none where it is rest."""
    for key, shape in tqdm(problem.shapes.items(), desc="matrices", leave=False, disable=None):
        matrices = layout.of(key, shape)
        yield key, [Deltas(problem, matrix) for matrix in matrices] if matrices and moved(problem, key) else []


def moved(problem: Problem, key: str) -> bool:
    """Whether any task has changed a tensor."""
    return any(bool(tau.any()) for tau in problem.tensors(key))


def map_matrices(
    problem: Problem, layout: Layout, merged: Callable[[Deltas], Tensor], rest: str = "mean"
) -> TaskVector:
    """The vector of merged(Δ_t) of every matrix, and of the mean, the sum or zero for the rest.

    Raises UsageError for another `rest`.
    """
    check_choice("rest", rest, RESTS)
    vector = {}
    for key, matrices in matrices_of(problem, layout):
        if matrices:
            vector[key] = tensor = torch.empty(problem.shapes[key], dtype=problem.dtype)
            for deltas in matrices:
                deltas.matrix.of(tensor).copy_(merged(deltas))
        elif rest == "zero":
            vector[key] = torch.zeros(problem.shapes[key], dtype=problem.dtype)
        else:
            vector[key] = total(problem.tensors(key)) / (len(problem.tasks) if rest == "mean" else 1)
    return TaskVector(vector=vector)


def share(rank: float, r: int) -> int:
    """⌊rank · r⌋, and at least 1. Raises UsageError unless 0 < rank <= 1."""
    check_value("rank", rank, RANK)
    return max(1, int(rank * r))


def total(tensors: Iterator[Tensor]) -> Tensor:
    """Their sum, in order; the first is changed in place."""
    first = next(tensors)
    for tensor in tensors:
        first += tensor
    return first
