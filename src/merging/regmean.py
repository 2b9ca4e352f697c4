"""RegMean, RegMean++, LOT and FeatCal: the normal equation of gram.py with inputs from unlabelled images.

RegMean (Jin et al., 2023, arXiv:2212.09849) multiplies what is beside the diagonal of C_t by `shrink`. LOT (Sun et al.,
2025, arXiv:2505.23859) is RegMean without that, by pseudo-inverse, and with LayerNorms' scales by their own least
squares, `norms=scale`: γ = Σ_t E z² ∘ γ_t / Σ_t E z². RegMean++ (Nguyen et al., 2025, arXiv:2508.03121) goes block by
block: each task's block l runs on what the merged model's blocks before l give, and its inputs inside are those of
RegMean. FeatCal (Gu et al., 2026, arXiv:2605.13030) calibrates a merge Δ_M, block by block too: the student is the
merged model, the blocks before l calibrated and block l as it was; the teacher is θ_t on its own. After the weights it
fits, `biases` and `norms=affine`,

    b = (Σ_t c_t (b_t + W_t (x̄ + α d̄) − W x̄) + λ A_b) / (Σ_t c_t + λ),        A = θ0 + ρ (θ_M − θ0) throughout
    (γ, β) of  min Σ_t E (γ z + β − γ_t z − β_t)² + λ ((γ − A_γ)² + (β − A_β)²),        z the student's

and in the last block `last_tokens` weighs all tokens but the class token, except as inputs of keys and values: no more
of them reaches the features. With α = 0 and λ = 0 its weights are those of RegMean++ with normalised C_t and
`inputs=merged`.

inputs: "own", of θ_t; "layer", of θ_t's block on the merged model's inputs; "merged", of the merged model.
teacher: α. A model has as many images as are asked for, or all that there are; the result tells how many, and names
matrices whose inputs lack directions (`without_rank`): there the merge stays at θ0, or at A with λ.

Tangent models (see inputs.py): x is f's input at θ0, whatever the weights, so that RegMean and RegMean++ are one. The
drift d is that of the tangents, d = J_x (τ_t − Δ), and multiplies W_0: of every term of the equation there is as much
as is of first order in the vectors. FeatCal has this part alone to go block by block for.

Not as published:
* The released RegMean and FeatCal know q, k and v as three linear maps; their inputs are the same, and so is the result
  but for FeatCal's `last_tokens`. FeatCal has `split_qkv` for it.
* proj, which those checkpoints do not train, is a linear map like the others (`matrices=blocks`: without), and the
  merge has the mean of ln_post. The released RegMean++ leaves both at θ0: `tail=pretrained`.
* Sums and solutions are in float64. RegMean solves by pseudo-inverse, as LOT does. FeatCal adds 1e-8 to λ; here λ is λ.
* FeatCal's paper has ρ = 2 and α = .3; its code, and the default here, 2.2 and .25.

Memory: C_t of every matrix for one task, and the sums of both sides; "layer" and "merged" have one block's at a time.
They repeat the forward pass up to that block for each block, so that no activation is kept between batches.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from src.merging.adaptation import IMAGES
from src.merging.base import Merge, Problem, Scaled, Variant, scaled
from src.merging.depth import TAIL, stage_of
from src.merging.gram import NormalEquation
from src.merging.inputs import Models, Moments, gather
from src.merging.matrices import RESTS, STACKED, Deltas, Matrix, MatrixMethod, moved
from src.merging.registry import register
from src.merging.task_arithmetic import multi_task_vector
from src.merging.wrapped import Wrapper
from src.ranges import COUNT, FINITE, NON_NEGATIVE, SHARE, check_choice, option
from src.runtime.messages import UsageError
from src.task_vectors import TaskVector
from src.tensors import Weights


@dataclass
class Regression(MatrixMethod):
    """The switches and options of the equation; see the head of this file.

    shrink: of C_t off its diagonal. ridge: λ. anchor: ρ. precision: "float32" or "float64", whose rounding an
    eigenvalue of the left side has to be above to count. images: of each task, of `split`. batch_size: of one pass.
    """

    matrices: str = "linear"
    inputs: str = "own"
    teacher: float = option(0.0, SHARE)
    normalise: str = "none"
    shrink: float = option(1.0, SHARE)
    ridge: float = option(0.0, NON_NEGATIVE)
    anchor: float = option(1.0, NON_NEGATIVE)
    biases: bool = False
    norms: str = "rest"
    last_tokens: float = option(1.0, NON_NEGATIVE)
    precision: str = "float64"
    images: int = option(256, COUNT)
    split: str = "train"
    batch_size: int = option(32, COUNT)
    alphas: list[float] = option([1.0], FINITE)

    def regressed(self, problem: Problem, start: TaskVector) -> Scaled:
        """The merge that begins at a vector: its tensors are the rest, the student's and A."""
        self.check()
        images = problem.unlabelled(self)
        models = Models(problem, images)
        vector = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in start.vector.items()}
        count: dict[str, int] = {}
        without_rank = set()
        for stage in tqdm(self.stages(problem, models), desc=type(self).name, leave=False, disable=None):
            fits = [fit for key in stage for fit in self.fits(problem, key)]
            for task in tqdm(problem.tasks if fits else (), desc="inputs", leave=False, disable=None):
                batch = gather(images, task, self.split, self.images)
                count[task] = len(batch)
                self.observe(models, task, stage, vector, batch, fits)
                for fit in fits:
                    fit.add(problem, task, models.tangent)
            for fit in fits:
                without_rank |= fit.solve(vector, start)
        info = {"images": count, "without_rank": sorted(without_rank)}
        return scaled(problem, TaskVector(vector=vector), self.alphas, **info)

    def check(self) -> None:
        check_choice("inputs", self.inputs, ("own", "layer", "merged"))
        check_choice("precision", self.precision, ("float32", "float64"))
        check_choice("norms", self.norms, ("rest", "scale", "affine"))
        check_choice("split", self.split, ("train", "val", "test"))
        if self.matrices == "all":
            raise UsageError("matrices: expected linear or blocks; got all, and an embedding has no inputs")

    def drifts(self) -> bool:
        return self.teacher > 0 and self.inputs != "own"

    def stages(self, problem: Problem, models: Models) -> list[list[str]]:
        """Tensors whose inputs are known at once, in the order of the forward pass."""
        if self.inputs == "own" or (models.tangent and not self.drifts()):
            return [list(problem.keys)]
        order = sorted({stage_of(key) for key in problem.keys})
        return [[key for key in problem.keys if stage_of(key) == stage] for stage in order]

    def fits(self, problem: Problem, key: str) -> Iterator["LinearFit | NormFit"]:
        """The least squares of a weight; none where it is rest."""
        shape = problem.shapes[key]
        matrices = self.layout(transpose=True).of(key, shape)
        bias = re.sub("weight$", "bias", key)
        last = stage_of(key) == max((s for s in map(stage_of, problem.keys) if s < TAIL), default=0)
        tokens = self.last_tokens if last else 1.0
        if matrices and moved(problem, key):
            for matrix in matrices:
                keys_or_values = key.endswith(STACKED) and not (matrix.rows and matrix.rows[0] == 0)
                own_bias = bias if self.biases and bias != key and bias in problem.shapes else None
                equation = NormalEquation(Deltas(problem, matrix).shape, self.normalise)
                yield LinearFit(self, matrix, equation, own_bias, 1.0 if keys_or_values else tokens)
        elif self.norms != "rest" and len(shape) == 1 and key.endswith(".weight"):
            if self.matrices != "blocks" or 0 < stage_of(key) < TAIL:
                yield NormFit(self, key, bias, tokens)

    def observe(
        self,
        models: Models,
        task: str,
        stage: Sequence[str],
        vector: Weights,
        images: Tensor,
        fits: "Iterable[LinearFit | NormFit]",
    ) -> None:
        """Fill the fits' moments with a task's inputs."""
        own = models.problem.vector(task).vector
        students: dict[str, Weights] = {
            "own": own,
            "layer": vector | {key: own[key] for key in stage},
            "merged": vector,
        }
        by_key: dict[str, list[LinearFit | NormFit]] = {}
        for fit in fits:
            fit.moments = Moments(diagonal=isinstance(fit, NormFit))
            by_key.setdefault(fit.key, []).append(fit)

        def see(key: str, x: Tensor, d: Tensor | None = None) -> None:
            for fit in by_key[key]:
                fit.see(x, d)

        student = students[self.inputs]
        for batch in images.split(self.batch_size):
            if self.drifts():
                for key, x, d in models.drift(student, own, batch, by_key):
                    see(key, x, d)
            else:
                models.observe(student, batch, by_key, see)


@dataclass
class LinearFit:
    """Of one linear map, and of its bias after it."""

    method: Regression
    matrix: Matrix
    equation: NormalEquation
    bias: str | None
    tokens: float  # the weight of tokens that are not the class token
    moments: Moments = field(default_factory=Moments)

    def __post_init__(self):
        self.key = self.matrix.key
        rows, columns = self.equation.right.shape
        self.x = torch.zeros(columns, dtype=torch.float64)  # Σ c_t x̄
        self.y = torch.zeros(rows, dtype=torch.float64)  # Σ c_t (δb_t + Δ_t x̄ + α W_t d̄)
        self.c = 0.0

    def see(self, x: Tensor, d: Tensor | None) -> None:
        self.moments.add(x, d, token_weights(x, self.tokens))

    def add(self, problem: Problem, task: str, tangent: bool) -> None:
        gram = self.moments.mean("xx")
        gram = self.method.shrink * gram + (1 - self.method.shrink) * gram.diagonal().diag()
        delta = self.matrix.of(problem.tensor(task, self.key)).double()
        target = delta @ gram
        offset = delta @ self.moments.mean("x")
        if self.method.drifts():
            w = self.matrix.of(problem.pretrained[self.key]).double()
            taught = self.method.teacher * (w if tangent else w + delta)  # α W_t; see the head of this file
            target += taught @ self.moments.mean("dx")
            offset += taught @ self.moments.mean("d")
        c = self.equation.add(gram, target)
        if self.bias:
            self.x += c * self.moments.mean("x")
            self.y += c * (self.of_bias(problem.tensor(task, self.bias)).double() + offset)
            self.c += c

    def of_bias(self, tensor: Tensor) -> Tensor:
        return Matrix(self.key, self.matrix.rows).of(tensor)[:, 0]

    def solve(self, vector: Weights, start: TaskVector) -> set[str]:
        """Write Δ, and the bias; gives the matrix' name where its inputs lack a direction."""
        ridge, anchor = self.method.ridge, self.method.anchor
        towards = anchor * self.matrix.of(start.vector[self.key]).double()
        delta, rank = self.equation.solve(self.key, ridge, towards, getattr(torch, self.method.precision))
        self.matrix.of(vector[self.key]).copy_(delta)
        if self.bias:
            b = self.y - delta @ self.x + ridge * anchor * self.of_bias(start.vector[self.bias]).double()
            self.of_bias(vector[self.bias]).copy_(b / (self.c + ridge))
        return {self.key} if rank < delta.shape[1] else set()


@dataclass
class NormFit:
    """Of a LayerNorm's γ (`norms=scale`), or of γ and β."""

    method: Regression
    key: str
    bias: str
    tokens: float
    moments: Moments = field(default_factory=Moments)

    def __post_init__(self):
        self.left = torch.zeros(2, 2, dtype=torch.float64)  # (width, 2, 2): Σ_t E [z 1]ᵀ [z 1]
        self.right = torch.zeros(2, dtype=torch.float64)  # (width, 2)

    def see(self, z: Tensor, d: Tensor | None) -> None:
        self.moments.add(z, None, token_weights(z, self.tokens))

    def add(self, problem: Problem, task: str, tangent: bool) -> None:
        energy, mean = self.moments.mean("xx"), self.moments.mean("x")
        own = torch.stack([problem.tensor(task, key).double() for key in (self.key, self.bias)], -1)
        if self.method.norms == "scale":
            mean = torch.zeros_like(mean)  # the two equations are then apart, and `solve` keeps the first
        left = torch.stack([energy, mean, mean, torch.ones_like(mean)], -1).view(-1, 2, 2)
        self.left = self.left + left
        self.right = self.right + (left @ own[..., None])[..., 0]

    def solve(self, vector: Weights, start: TaskVector) -> set[str]:
        ridge, anchor = self.method.ridge, self.method.anchor
        begin = torch.stack([start.vector[key].double() for key in (self.key, self.bias)], -1)
        left = self.left + ridge * torch.eye(2, dtype=torch.float64)
        right = self.right + ridge * anchor * begin
        solution = (torch.linalg.pinv(left, hermitian=True) @ right[..., None])[..., 0]
        vector[self.key] = solution[:, 0].to(vector[self.key])
        if self.method.norms == "affine":
            vector[self.bias] = solution[:, 1].to(vector[self.bias])
        return set()


def token_weights(x: Tensor, others: float) -> Tensor | None:
    """1 for the class token, which is the first, and `others` for the other tokens; None where all count alike."""
    if others == 1.0 or x.dim() < 3:
        return None
    weights = torch.full(x.shape[:-1], others, dtype=torch.float64)
    weights[:, 0] = 1.0
    return weights


@register(
    "regmean",
    studied=True,
    title="RegMean",
    paper="2212.09849",
    stage="methods",
    published={"concrete": "RegMean", "fusionbench": "RegMean", "WUDI-Merging": "RegMean"},
    needs=IMAGES,
)
@dataclass
class RegMean(Regression):
    """RegMean: every linear map nearest to all tasks' own maps on the inputs of each.

    rest: what all else gets, and where a block stands before it is merged: "mean", "sum" or "zero".
    """

    rest: str = "mean"
    shrink: float = option(0.95, SHARE)

    def merge(self, problem: Problem) -> Merge:
        check_choice("rest", self.rest, RESTS)
        share = {"mean": 1 / len(problem.tasks), "sum": 1.0, "zero": 0.0}[self.rest]
        return self.regressed(problem, share * multi_task_vector(problem))


@register("lot", title="LOT", paper="2505.23859", needs=IMAGES, stage="methods")
@dataclass
class Lot(RegMean):
    """LOT: RegMean with whole second moments, by pseudo-inverse, and LayerNorms' scales by least squares.

    precision: a pseudo-inverse in float32, as is usual, drops directions with less than in · 1.2e-7 of the most.
    """

    shrink: float = option(1.0, SHARE)
    norms: str = "scale"
    precision: str = "float32"


@register(
    "regmean_plusplus",
    title="RegMean++",
    paper="2508.03121",
    stage="methods",
    published={"fusionbench": "RegMean++"},
    needs=IMAGES,
)
@dataclass
class RegMeanPlusPlus(RegMean):
    """RegMean++: RegMean block by block, on the inputs that the merged blocks before it give.

    tail: "merged", or "pretrained": ln_post and proj stay at θ0, as in the released code.
    """

    inputs: str = "layer"
    tail: str = "merged"

    def regressed(self, problem: Problem, start: TaskVector) -> Scaled:
        check_choice("tail", self.tail, ("merged", "pretrained"))
        merge = super().regressed(problem, start)
        for key in problem.keys if self.tail == "pretrained" else ():
            if stage_of(key) == TAIL:
                merge.tau.vector[key].zero_()
        return merge


@register(
    "featcal",
    title="FeatCal",
    paper="2605.13030",
    stage="methods",
    published={"FeatCal": "task arithmetic 0.3 + FeatCal"},
    needs=IMAGES,
    variants=(Variant("FeatCal, as in its paper", {"anchor": 2.0, "teacher": 0.3}, stage="methods"),),
)
@dataclass
class FeatCal(Regression, Wrapper):
    """FeatCal: another method's model, calibrated block by block to the features of every task's own.

    It starts from θ0 + alpha · τ of `base` (see wrapped.py).
    """

    matrices: str = "blocks"
    split_qkv: bool = True
    inputs: str = "merged"
    teacher: float = option(0.25, SHARE)
    normalise: str = "frobenius"
    ridge: float = option(0.05, NON_NEGATIVE)
    anchor: float = option(2.2, NON_NEGATIVE)
    biases: bool = True
    norms: str = "affine"
    last_tokens: float = option(0.01, NON_NEGATIVE)
    alpha: float = option(0.3, FINITE)

    def merge(self, problem: Problem) -> Merge:
        return Wrapper.merge(self, problem)

    def wrapped(self, problem: Problem, tau: TaskVector, alphas: Sequence[float]) -> Merge:
        return self.regressed(problem, self.alpha * tau)
