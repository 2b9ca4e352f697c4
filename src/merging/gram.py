"""The Gram family: every linear map of a merged model by least squares, from one normal equation.

For a linear map W_t = W_0 + Δ_t of each task t, [out, in], with inputs x of the merged model (the student) and inputs
x + α d of the task's own model (the teacher), d being how far the teacher's input is from the student's:

    min_Δ  Σ_t c_t E ‖(W_0 + Δ) x − W_t (x + α d)‖² + λ ‖Δ − A‖²
    Δ (Σ_t c_t C_t + λ I) = Σ_t c_t (Δ_t C_t + α W_t D_t) + λ A,        C_t = E x xᵀ,   D_t = E d xᵀ

Six papers solve it. Three switches tell them apart: whose inputs, whose targets (α), and whether c_t normalises C_t.

    method      arXiv        inputs x                                 α     c_t            λ, A
    RegMean     2212.09849   of θ_t                                   0     1              0; C_t shrunk to its diagonal
    LOT         2505.23859   of θ_t                                   0     1              0
    RegMean++   2508.03121   of θ_t's block on the merged model's     0     1              0; shrunk
    FeatCal     2605.13030   of the merged model                      .25   1 / ‖C_t‖_F    .05, ρ Δ_merged
    ACTMat      2604.01329   none: C_t = Δ_tᵀ Δ_t                     0     1              0
    WUDI        2503.08099   none: C_t = Δ_tᵀ Δ_t                     0     1 / tr C_t     ρ, Σ_t Δ_t

The first four are in regmean.py. Here are the two that need no images: their C_t takes the rows of Δ_t for inputs,
since a step of gradient descent is a sum of outputs' gradients times inputs. The papers solve for W; for Δ a direction
that no input has stays at θ0, or at A, where λ is 0 and the matrix on the left is singular: the solution is by its
pseudo-inverse, in float64. Where the tasks' inputs are orthogonal to each other, C_s C_t = 0, and each Δ_t moves its
own inputs alone, every member with λ = 0 and α = 0 returns Σ_t Δ_t.

WUDI. The loss of the paper is Σ_t ‖(Δ − Δ_t) Δ_tᵀ‖_F² / ‖Δ_t‖_F², whose minimum is the equation above, as tr C_t is
‖Δ_t‖_F². The released code goes towards it by Adam from Σ_t Δ_t (`solver=adam`), 300 steps with a rate of 1e-5, and so
stops early; FusionBench has 400. The rate is absolute, and right for vectors as long as CLIP's alone: `lr` is in units
of the root mean square of Σ_t Δ_t, in each matrix, or as it is with `lr_unit=absolute`. `solver=closed` has the exact
minimum; its ridge ρ, in units of the mean diagonal of Σ_t c_t C_t, draws it towards Σ_t Δ_t as stopping early does.

The released code merges the four kinds of matrices in the blocks, and leaves all else at θ0 (`matrices=blocks`,
`rest=zero`). FusionBench's takes every 2-D tensor, and the mean of the rest (`matrices=all`, `rest=mean`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from src.merging.base import Merge, Problem, Variant, scaled
from src.merging.matrices import Deltas, MatrixMethod, NoDecomposition, map_matrices
from src.merging.registry import register
from src.ranges import FINITE, NON_NEGATIVE, NUMBER, check_choice, option

WUDI = "WUDI-Merging"  # the paper, as published_more.csv has it

# c_t of C_t
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda gram: torch.ones((), dtype=gram.dtype),
    "frobenius": lambda gram: 1 / gram.norm(),
    "trace": lambda gram: 1 / gram.trace(),
}


class NormalEquation:
    """Δ L = R of a linear map [out, in]: L, [in, in], and R, [out, in], are sums over tasks, in float64."""

    def __init__(self, shape: tuple[int, int], normalise: str):
        check_choice("normalise", normalise, WEIGHTS)
        self.normalise = normalise
        self.left = torch.zeros(shape[1], shape[1], dtype=torch.float64)
        self.right = torch.zeros(shape, dtype=torch.float64)

    def add(self, gram: Tensor, target: Tensor) -> float:
        """A task's C_t and Δ_t C_t + α W_t D_t. Gives c_t; a task without inputs does not count."""
        c = float(WEIGHTS[self.normalise](gram)) if gram.any() else 0.0
        self.left += c * gram
        self.right += c * target
        return c

    def solve(
        self, name: str, ridge: float = 0.0, anchor: Tensor | float = 0.0, precision: torch.dtype = torch.float64
    ) -> tuple[Tensor, int]:
        """Δ of Δ (L + λ I) = R + λ A with the least norm, and the rank of L + λ I.

        precision: whose rounding an eigenvalue has to be above to count, in · eps of the largest.
        Raises NoDecomposition, with the name, where an entry is no number.
        """
        left = self.left + ridge * torch.eye(len(self.left), dtype=torch.float64)
        right = self.right + ridge * anchor
        if not (left.isfinite().all() and right.isfinite().all()):
            raise NoDecomposition(
                f"{name}: expected inputs that are numbers, found some that are not. A checkpoint is damaged, or its "
                "training diverged: python eval_single_task.py shows which"
            )
        values, vectors = torch.linalg.eigh(left)
        seen = values > len(values) * torch.finfo(precision).eps * values.abs().max()
        basis = vectors[:, seen]
        return (right @ basis / values[seen]) @ basis.T, int(seen.sum())


@dataclass
class DataFree(MatrixMethod):
    """C_t = Δ_tᵀ Δ_t. rest: what tensors that are no matrix get: "mean", "sum" or "zero" (see matrices.py).

    ridge: ρ, λ = ρ · mean diag L with A = Σ_t Δ_t.
    """

    matrices: str = "linear"
    rest: str = "mean"
    normalise: str = "none"
    ridge: float = option(0.0, NON_NEGATIVE)
    alphas: list[float] = option([1.0], FINITE)

    def merge(self, problem: Problem) -> Merge:
        layout = self.layout(transpose=True)
        return scaled(problem, map_matrices(problem, layout, self.merged, self.rest), self.alphas)

    def merged(self, deltas: Deltas) -> Tensor:
        """Δ of a matrix."""
        equation = self.equation(deltas)
        ridge = self.ridge * float(equation.left.diagonal().mean())
        return equation.solve(deltas.matrix.key, ridge, deltas.total().double())[0]

    def equation(self, deltas: Deltas) -> NormalEquation:
        equation = NormalEquation(deltas.shape, self.normalise)
        for delta in deltas:
            delta = delta.double()
            gram = delta.T @ delta
            equation.add(gram, delta @ gram)
        return equation


@register("actmat", title="ACTMat", paper="2604.01329", stage="methods")
@dataclass
class ActMat(DataFree):
    """ACTMat: RegMean with Δ_tᵀ Δ_t for the inputs' second moments. A task with a longer vector weighs more."""


@register(
    "wudi",
    studied=True,
    title="WUDI",
    paper="2503.08099",
    stage="methods",
    published={WUDI: "WUDI-Merging (Ours)"},
    variants=(
        Variant("WUDI, Adam as published", {"solver": "adam"}, stage="methods"),
        Variant(
            "WUDI, FusionBench's tensors",
            {"solver": "adam", "matrices": "all", "rest": "mean", "steps": 400},
            stage="methods",
        ),
    ),
)
@dataclass
class Wudi(DataFree):
    """WUDI: the merged vector differs from each task's where that task's vector has little (Cheng et al., 2025).

    solver: "closed", or "adam" with `steps` steps at a rate of `lr`, in units of rms(Σ_t Δ_t) or "absolute".
    """

    matrices: str = "blocks"
    rest: str = "zero"
    normalise: str = "trace"
    ridge: float = option(0.1, NON_NEGATIVE)
    solver: str = "closed"
    steps: int = option(300, NUMBER)
    lr: float = option(0.015, NON_NEGATIVE)
    lr_unit: str = "rms"

    def merge(self, problem: Problem) -> Merge:
        check_choice("solver", self.solver, ("closed", "adam"))
        check_choice("lr_unit", self.lr_unit, ("rms", "absolute"))
        return super().merge(problem)

    def merged(self, deltas: Deltas) -> Tensor:
        return super().merged(deltas) if self.solver == "closed" else self.descended(deltas)

    def descended(self, deltas: Deltas) -> Tensor:
        """Where Adam is after `steps` steps from Σ_t Δ_t; the gradient of the loss is 2 (Δ L − R)."""
        equation = self.equation(deltas)
        delta = deltas.total().double()
        lr = self.lr * (float(delta.square().mean().sqrt()) if self.lr_unit == "rms" else 1.0)
        adam = torch.optim.Adam([delta], lr=lr)
        for _ in range(self.steps):
            delta.grad = 2 * (delta @ equation.left - equation.right)
            adam.step()
        return delta
