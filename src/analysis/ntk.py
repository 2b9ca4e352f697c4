"""The empirical tangent kernel of an encoder with its head, and where its eigenfunctions live.

    K(x, x') = tr ∇θ f(x; θ0) ∇θ f(x'; θ0)ᵀ = Σ_c ⟨∇θ f_c(x), ∇θ f_c(x')⟩        (`trace`, the default)
    K(x, x') = ⟨∇θ Σ_c f_c(x), ∇θ Σ_c f_c(x')⟩                                  (`sum`, the pseudo-kernel)

Source: Ortiz-Jimenez et al. 2023, section 6.2 and Figures 6, 14, 15. The paper names neither the reduction over the
outputs, nor the number of samples, nor the number of eigenfunctions: all three are arguments here.

No Jacobian of the model is ever built. K is a sum over parameters, and for almost every parameter of a network the
gradient of one sample is a product of two small factors: with the inputs A_i (tokens, d_in) of a linear layer and the
gradients G_i (tokens, d_out) at its output, the gradient is G_iᵀ A_i, and

    ⟨G_iᵀ A_i, G_jᵀ A_j⟩ = Σ_tt' (A_i A_jᵀ)_tt' (G_i G_jᵀ)_tt'.

One forward pass records the factors' inputs, one backward pass per output gives the gradients of all layers, and each
layer takes the cheaper side of the equation. For n samples, T tokens, C outputs and P weights in linear layers the
trace costs about C n² P multiplications for the kernel and C n T P for the backward passes.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from unittest import mock

import numpy as np
import scipy.linalg
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from src.linearize import forward_mode_attention

REDUCTIONS = ("trace", "sum")
# Elements of one operand when per-sample gradients are written out: a slice that stays near the processor's cache.
SLICE = {"cpu": 1 << 20, "cuda": 1 << 26}
PROBE_SAMPLES = 3
PROBE_TOLERANCE = 1e-2  # of a gradient's norm: single precision, convolutions in TF32; a missed use is no such trifle


@dataclass
class _Use:
    """One use of a parameter: the gradient of a sample is a sum over rows of outer products leftᵀ right.

    `rows` turns the gradient at the operation's output into (rows, width); `other` is the second factor, (rows, width)
    or None, where the gradient is the sum of the rows themselves. `swap` puts `other` on the left (x @ W).
    """

    name: str
    edge: GradientEdge
    rows: Callable[[Tensor], Tensor]
    other: Tensor | None = None
    swap: bool = False
    tokens_first: bool = False

    def by_sample(self, rows: Tensor, samples: int) -> Tensor:
        """(rows, width) -> (samples, tokens, width)."""
        if self.tokens_first:
            return rows.reshape(-1, samples, rows.shape[-1]).transpose(0, 1)
        return rows.reshape(samples, -1, rows.shape[-1])


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


class _Recorder(TorchFunctionMode):
    """Lists the uses of parameters in a forward pass, and the parameters used in a way that no rule covers."""

    def __init__(self, parameters: Mapping[str, Tensor]):
        super().__init__()
        # Tensors are kept beside their names: an id is only good while its object lives.
        self.known = {id(tensor): (tensor, name) for name, tensor in parameters.items()}
        self.uses: list[_Use] = []
        self.opaque: set[str] = set()

    def name(self, value) -> str | None:
        return self.known[id(value)][1] if id(value) in self.known else None

    def names(self, value) -> set[str]:
        """Names of the parameters anywhere in nested arguments."""
        if isinstance(value, (list, tuple)):
            return set().union(*map(self.names, value))
        return {self.name(value)} - {None}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        present = self.names((args, tuple(kwargs.values())))
        if func is F.multi_head_attention_forward:
            out, covered = self._attention(args, kwargs)
        else:
            out, covered = func(*args, **kwargs), set()
        if not present or out is (args[0] if args else None) or not _has_tensor(out):
            return out  # what gives no new tensor (a shape, a dtype, `.to` of the same type) is no use
        if func in _RULES:
            found = list(_RULES[func](self, out, *args, **kwargs))
            covered = {use.name for use in found} | self.names(out)
            self.uses += found
        self.opaque |= present - covered
        return out

    def _attention(self, args, kwargs):
        """A mode sees nn.MultiheadAttention as one function, but inside it the projections look F.linear up by name."""
        linear, before = F.linear, len(self.uses)

        def recorded(*args, **kwargs):
            with self:
                return linear(*args, **kwargs)

        with mock.patch.object(F, "linear", recorded):
            out = F.multi_head_attention_forward(*args, **kwargs)
        return out, {use.name for use in self.uses[before:]}

    def use(self, value, out: Tensor, rows=_flat, other: Tensor | None = None, swap: bool = False) -> Iterable[_Use]:
        if self.name(value) is not None and out.requires_grad:
            yield _Use(self.name(value), get_gradient_edge(out), rows, None if other is None else other.detach(), swap)


def _has_tensor(value) -> bool:
    return isinstance(value, Tensor) or isinstance(value, (list, tuple)) and any(map(_has_tensor, value))


def _linear(recorder, out, input, weight, bias=None):
    yield from recorder.use(weight, out, other=_flat(input))
    yield from recorder.use(bias, out)


def _matmul(recorder, out, input, other):
    if other.ndim == 2 and recorder.name(input) is None:
        yield from recorder.use(other, out, other=_flat(input), swap=True)


def _conv2d(recorder, out, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    def rows(gradient):
        return _flat(gradient.flatten(2).transpose(1, 2))

    if groups == 1 and not isinstance(padding, str) and input.ndim == 4:
        patches = F.unfold(input.detach(), weight.shape[2:], dilation, padding, stride)  # (samples, d_in, places)
        yield from recorder.use(weight, out, rows, other=_flat(patches.transpose(1, 2)))
        yield from recorder.use(bias, out, rows)


def _layer_norm(recorder, out, input, normalized_shape, weight=None, bias=None, eps=1e-5):
    if len(normalized_shape) == 1:
        unit = _flat(F.layer_norm(input.detach(), normalized_shape, None, None, eps))
        yield from recorder.use(weight, out, lambda gradient: _flat(gradient) * unit)
        yield from recorder.use(bias, out)


def _trailing(recorder, out, value) -> Callable[[Tensor], Tensor] | None:
    """For a parameter broadcast along leading axes: gradient at the output -> (rows, size of the parameter)."""
    if recorder.name(value) is None:
        return None
    shape = list(value.shape)
    while shape and shape[0] == 1:
        shape.pop(0)
    if shape and list(out.shape[-len(shape) :]) == shape:
        return lambda gradient: gradient.reshape(-1, value.numel())
    return None


def _add(recorder, out, input, other, alpha=1):
    for value in (input, other):
        if alpha == 1 and (rows := _trailing(recorder, out, value)):
            yield from recorder.use(value, out, rows)


def _multiply(recorder, out, input, other):
    for value, factor in ((input, other), (other, input)):
        if isinstance(factor, Tensor) and recorder.name(factor) is None and (rows := _trailing(recorder, out, value)):
            scale = rows(factor.detach().expand_as(out))
            yield from recorder.use(value, out, lambda gradient, rows=rows, scale=scale: rows(gradient) * scale)


def _expand(recorder, out, input, *sizes, **named):
    if rows := _trailing(recorder, out, input):
        yield from recorder.use(input, out, rows)


def _reshape(recorder, out, input, *args, **kwargs):
    """A parameter in another shape, its elements in the same order, is still the parameter."""
    if out.numel() == input.numel():
        recorder.known[id(out)] = (out, recorder.name(input))
    return ()


_RULES = {
    F.linear: _linear,
    F.conv2d: _conv2d,
    F.layer_norm: _layer_norm,
    **dict.fromkeys((torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__), _matmul),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _add),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _multiply),
    **dict.fromkeys((Tensor.expand, Tensor.expand_as), _expand),
    **dict.fromkeys(
        (
            Tensor.view,
            Tensor.reshape,
            torch.reshape,
            Tensor.unsqueeze,
            torch.unsqueeze,
            Tensor.to,
            Tensor.type,
            Tensor.contiguous,
        ),
        _reshape,
    ),
}


@dataclass
class _Factors:
    """Per-sample gradients of one parameter: left_iᵀ right_i, from (samples, tokens, a) and (samples, tokens, b)."""

    left: Tensor
    right: Tensor

    def dense(self, columns: slice = slice(None)) -> Tensor:
        """(samples, a·b), or the part of it that belongs to some columns of `left`."""
        return torch.bmm(self.left[..., columns].transpose(1, 2), self.right).flatten(1)

    def of_sample(self, sample: int) -> Tensor:
        return self.left[sample].T @ self.right[sample]

    @classmethod
    def of_rows(cls, rows: Tensor) -> "_Factors":
        """From (samples, tokens, width), where the gradient is the sum over tokens."""
        left = rows.sum(1, keepdim=True)
        return cls(left, left.new_ones(len(left), 1, 1))

    def without_zeros(self) -> "_Factors":
        """Drop the tokens with no part in any gradient: in the last block's MLP, all but the class token."""
        live = torch.linalg.vector_norm(self.left, dim=2).any(0)
        return self if live.all() else _Factors(self.left[:, live], self.right[:, live])


def _gather(uses: Sequence[_Use], gradients: Sequence[Tensor | None], samples: int) -> dict[str, _Factors]:
    """Per-sample gradients by parameter; the uses of a shared parameter add up, as more tokens where they can."""
    found: dict[str, list[_Factors]] = {}
    for use, gradient in zip(uses, gradients, strict=True):
        if gradient is None:
            continue  # the output does not depend on this product
        rows = use.by_sample(use.rows(gradient), samples)
        if use.other is None:
            factors = _Factors.of_rows(rows)
        else:
            other = use.by_sample(use.other, samples)
            factors = _Factors(rows, other).without_zeros()
            factors = _Factors(factors.right, factors.left) if use.swap else factors
        found.setdefault(use.name, []).append(factors)
    return {name: _add_up(parts) for name, parts in found.items()}


def _add_up(parts: list[_Factors]) -> _Factors:
    if len(parts) == 1:
        return parts[0]
    if len({(part.left.shape[2], part.right.shape[2]) for part in parts}) == 1:
        return _Factors(torch.cat([part.left for part in parts], 1), torch.cat([part.right for part in parts], 1))
    return _Factors.of_rows(sum(part.dense() for part in parts).unsqueeze(1))


def _products(one: _Factors, two: _Factors) -> Tensor:
    """Inner products of all gradients of `one` with all of `two`, (samples of one, samples of two)."""
    (m, s, a), (n, t, b) = one.left.shape, two.right.shape
    if s * t * (a + b) < a * b * (1 + s / n + t / m):
        product = (_flat(one.left) @ _flat(two.left).T).mul_(_flat(one.right) @ _flat(two.right).T)  # (m·s, n·t)
        return product.view(m, s, n, t).sum((1, 3))
    step = max(1, SLICE.get(one.left.device.type, SLICE["cpu"]) // (max(m, n) * b))
    kernel = one.left.new_zeros(m, n)
    for start in range(0, a, step):
        columns = slice(start, start + step)
        rows = one.dense(columns)
        kernel.addmm_(rows, (rows if two is one else two.dense(columns)).T)
    return kernel


@dataclass(frozen=True)
class _Plan:
    """A model, and how the gradients of its parameters are found: from recorded factors, or one by one with vmap."""

    module: nn.Module
    head: Callable[[Tensor], Tensor]
    factored: Mapping[str, Tensor]
    generic: Mapping[str, Tensor]
    tokens_first: Sequence[bool]

    @classmethod
    def of(cls, module: nn.Module, head: Callable[[Tensor], Tensor], images: Tensor) -> "_Plan":
        """Try the recorded factors on a few samples against autograd; a parameter that differs is left to vmap.

        The trial also tells which rows belong to which sample: attention may put tokens before samples.
        """
        if module.training:
            raise ValueError("the module is in training mode; call .eval(): samples must not depend on each other")
        parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
        if not parameters:
            raise ValueError("no parameter of the module requires a gradient: the tangent kernel would be zero")
        images = images[torch.arange(PROBE_SAMPLES) % len(images)]
        with _Recorder(parameters) as recorder:
            outputs = head(module(images))
        if outputs.ndim != 2:
            raise ValueError(f"expected outputs of shape (samples, outputs), got {tuple(outputs.shape)}")
        uses = [use for use in recorder.uses if use.name not in recorder.opaque]
        # Unequal weights, so that no output can cancel another.
        weights = torch.linspace(1, 2, outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
        cotangents = torch.eye(PROBE_SAMPLES).to(outputs).unsqueeze(2) * weights  # (samples, samples, outputs)
        gradients = [_gradients(outputs, [use.edge for use in uses], one) for one in cotangents]
        shared = {use.name for use, gradient in zip(uses, gradients[0]) if not _divides(use, gradient)}
        for index, use in enumerate(uses):
            if use.name not in shared:
                use.tokens_first = any(_leaks(use, row[index], sample) for sample, row in enumerate(gradients))

        used, right = set(), {use.name for use in uses} - shared
        for sample, (row, cotangent) in enumerate(zip(gradients, cotangents)):
            kept = [(use, gradient) for use, gradient in zip(uses, row) if use.name not in shared]
            found = _gather(*zip(*kept), PROBE_SAMPLES) if kept else {}
            true = _gradients(outputs, list(parameters.values()), cotangent)
            for name, expected in zip(parameters, true):
                if expected is not None:
                    used.add(name)
                    actual = found[name].of_sample(sample) if name in found else torch.zeros_like(expected)
                    if (actual.flatten() - expected.flatten()).norm() > PROBE_TOLERANCE * expected.norm():
                        right.discard(name)
        factored = {name: parameter for name, parameter in parameters.items() if name in used & right}
        generic = {name: parameter for name, parameter in parameters.items() if name in used - right}
        return cls(module, head, factored, generic, [use.tokens_first for use in uses if use.name in factored])


def _gradients(outputs: Tensor, inputs: Sequence, cotangent: Tensor) -> Sequence[Tensor | None]:
    if not inputs:
        return ()
    return torch.autograd.grad(outputs, inputs, cotangent, retain_graph=True, allow_unused=True)


def _divides(use: _Use, gradient: Tensor | None) -> bool:
    """Whether the rows can be those of single samples: not so in a product of parameters alone."""
    return gradient is None or len(use.rows(gradient)) % PROBE_SAMPLES == 0


def _leaks(use: _Use, gradient: Tensor | None, sample: int) -> bool:
    """Whether rows that would be another sample's, were samples first, have a part in this sample's output."""
    if gradient is None:
        return False
    sums = use.rows(gradient).abs().sum(1).view(PROBE_SAMPLES, -1).sum(1)
    return bool((sums > 0).sum() > (sums[sample] > 0))


class _Block:
    """Some samples' graph: one forward pass, then a backward pass for each output asked for."""

    def __init__(self, plan: _Plan, images: Tensor):
        self.plan, self.images = plan, images
        with _Recorder(plan.factored) as recorder:
            self.outputs = plan.head(plan.module(images))
        self.uses = recorder.uses
        if len(self.uses) != len(plan.tokens_first):
            raise RuntimeError("the module's operations differ from batch to batch; its kernel cannot be factored")
        for use, tokens_first in zip(self.uses, plan.tokens_first, strict=True):
            use.tokens_first = tokens_first
        if not self.outputs.isfinite().all():
            bad = (~self.outputs.isfinite().all(1)).nonzero()[0].item()
            raise FloatingPointError(f"the output of sample {bad} of a block of {len(images)} is not finite")

    def gradients(self, weights: Tensor) -> dict[str, _Factors]:
        """Gradients of Σ_c weights_c f_c, by parameter."""
        found = _gather(
            self.uses,
            _gradients(self.outputs, [use.edge for use in self.uses], weights.expand_as(self.outputs)),
            len(self.images),
        )
        for name, parameter in self.plan.generic.items():
            found[name] = _Factors.of_rows(self._one_by_one(name, parameter, weights).flatten(1).unsqueeze(1))
        return found

    def _one_by_one(self, name: str, parameter: Tensor, weights: Tensor) -> Tensor:
        """(samples, *parameter) for any use of the parameter at all; slow: a forward pass for every call."""

        def output(value: Tensor, image: Tensor) -> Tensor:
            features = functional_call(self.plan.module, {name: value}, (image.unsqueeze(0),))
            return (self.plan.head(features).squeeze(0) * weights).sum()

        # What attention lacks for jvp, it lacks for vmap: rules for its fused kernels.
        with torch.no_grad(), forward_mode_attention():
            return vmap(grad(output), in_dims=(None, 0))(parameter.detach(), self.images)


def _thin(head):
    """The same trace from at most as many outputs as features: Wᵀ W = Rᵀ R, with W = Q R and so R (features, features).

    A head that ends in its `weight` (outputs, features) takes part in Σ_c ∇f_cᵀ ∇f_c through Wᵀ W alone.
    """
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or weight.shape[0] <= weight.shape[1]:
        return head
    thin = copy.deepcopy(head)
    thin.weight = nn.Parameter(torch.linalg.qr(weight.detach(), mode="r").R, requires_grad=False)
    thin.bias = None
    return thin


@torch.enable_grad()
def tangent_kernel(
    module: nn.Module,
    head: Callable[[Tensor], Tensor] | None,
    images: Tensor,
    others: Tensor | None = None,
    *,
    reduction: str = "trace",
    chunk_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Tangent kernel of head(module(x)) between `images` and `others` (themselves if None), over module's parameters.

    Parameters that require no gradient are constants, and so is the head. A head with a matrix `weight` must be linear
    in it up to a bias, as ClassificationHead is. `reduction`: `trace` or `sum` over outputs, see the formulas above.

    At most two blocks of `chunk_size` samples are held, for each its graph and the gradients at all layers for one
    output at a time. With B blocks each sample goes through B backward passes per output instead of one: take as large
    a chunk as memory allows.

    `progress(done, total)` is called after every step. Returns (images, others), float64, on the CPU.
    Raises ValueError for a module in training mode and FloatingPointError for outputs that are not finite.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"unknown reduction {reduction!r}; there are {', '.join(REDUCTIONS)}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    symmetric = others is None
    others = images if symmetric else others
    if not len(images) or not len(others):
        raise ValueError(f"the kernel needs samples on both sides, got {len(images)} and {len(others)}")
    head = nn.Identity() if head is None else head
    device = next(module.parameters()).device
    plan = _Plan.of(module, _thin(head) if reduction == "trace" else head, images[:PROBE_SAMPLES].to(device))

    starts = [
        (i, j)
        for i in range(0, len(images), chunk_size)
        for j in range(0, len(others), chunk_size)
        if not symmetric or j <= i
    ]
    kernel = torch.zeros(len(images), len(others), dtype=torch.float64, device=device)
    done = 0
    for i, j in starts:
        column_block = None  # its memory is the next one's
        if j == 0:
            row_block = None
            row_block = _Block(plan, images[i : i + chunk_size].to(device))
        column_block = row_block if symmetric and i == j else _Block(plan, others[j : j + chunk_size].to(device))
        outputs = row_block.outputs
        cotangents = torch.eye(outputs.shape[1]).to(outputs) if reduction == "trace" else torch.ones_like(outputs[:1])
        for cotangent in cotangents:
            one = row_block.gradients(cotangent)
            two = one if column_block is row_block else column_block.gradients(cotangent)
            for name in sorted(one.keys() & two.keys()):
                kernel[i : i + chunk_size, j : j + chunk_size] += _products(one[name], two[name])
            del one, two
            done += 1
            if progress:
                progress(done, len(starts) * len(cotangents))
    if symmetric:
        kernel = kernel.tril() + kernel.tril(-1).T
    return kernel.cpu()


@dataclass(frozen=True)
class Localization:
    """Local energy E_loc(x) = Σ_ρ φ_ρ(x)² of the leading eigenfunctions, for several numbers of them at once.

    eigenvalues  of the diagonalised matrix, descending, null ones cut off
    shares       Σ of the leading eigenvalues over Σ of all, one per count
    counts       how many leading eigenfunctions each row of `energy` counts (of these, `kept` enter the sum)
    energy       group of points -> (counts, points)
    task_share   per eigenfunction, the part of its energy that lies on D_t: 1 localised there, 0 on the control;
                 None where the eigenfunctions were found on D_t alone
    chance       joint decomposition: the ratio when the points' labels are shuffled, one per count; else None
    """

    eigenvalues: np.ndarray
    shares: np.ndarray
    counts: np.ndarray
    kept: np.ndarray
    energy: Mapping[str, np.ndarray]
    task_share: np.ndarray | None = None
    chance: np.ndarray | None = None

    def ratio(self, over: str = "control", group: str = "task") -> np.ndarray:
        """Mean energy on a group of points over that on another, one per count.

        inf where the latter is zero, nan where both are: none of the leading eigenfunctions was kept.
        """
        return _ratio(self.energy[group].mean(1), self.energy[over].mean(1))


def _ratio(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return one / two


def _eigenfunctions(kernel: np.ndarray, tolerance: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, descending, and unit eigenvectors in columns, without the numerically null ones."""
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(f"expected a square kernel matrix, got {kernel.shape}")
    if not np.isfinite(kernel).all():
        raise FloatingPointError("the kernel matrix is not finite")
    values, vectors = scipy.linalg.eigh(kernel)
    values, vectors = values[::-1], vectors[:, ::-1]
    if tolerance is None:
        tolerance = len(kernel) * float(np.finfo(np.float32).eps)
    if values[0] <= 0:
        raise ValueError("the kernel matrix has no positive eigenvalue")
    keep = values > tolerance * values[0]
    return values[keep], vectors[:, keep]


def _counts(values: np.ndarray, ranks: Sequence[float | int]) -> np.ndarray:
    """Numbers of eigenfunctions: an int counts them; a float is the share of the trace that they carry, 1.0 all."""
    carried = np.cumsum(values) / values.sum()
    counts = []
    for rank in ranks:
        if isinstance(rank, float):
            if not 0 < rank <= 1:
                raise ValueError(f"a share of the trace lies in (0, 1], got {rank}")
            counts.append(len(values) if rank == 1 else int(np.searchsorted(carried, rank)) + 1)
        else:
            if rank < 1:
                raise ValueError(f"at least one eigenfunction is needed, got {rank}")
            counts.append(min(rank, len(values)))
    return np.minimum(counts, len(values))


def localize(
    kernel: np.ndarray,
    cross: Mapping[str, np.ndarray],
    ranks: Sequence[float | int] = (0.9,),
    tolerance: float | None = None,
) -> Localization:
    """Eigenfunctions of K on D_t, carried to other points by Nyström's formula.

    kernel: K on D_t, (n, n) = U Λ Uᵀ; cross: group of points -> K between these and D_t, (m, n). With unit mean square
    on D_t, (1/n) Σ_ν φ_ρ(x_ν)² = 1, the eigenfunctions are

        φ_ρ(x) = (√n / λ_ρ) Σ_ν K(x, x_ν) U_νρ,    on D_t itself √n U_νρ.

    So the mean energy on D_t is the number of eigenfunctions, whatever the kernel, and with all n of an invertible
    kernel the energy is n at every point of D_t: only the energy elsewhere is a finding, and only for few leading
    eigenfunctions, since 1/λ_ρ makes those of small eigenvalue noise away from D_t. Pass held-out points of the task
    as a group beside `control`: they are what the control should be compared with, as neither was diagonalised.

    `ranks`: numbers of leading eigenfunctions; a float is the share of the trace that they carry. The default, 90 %,
    leaves out the tail that fits the diagonalised points alone. A finding should hold for several: pass them.
    Eigenvalues below `tolerance` times the largest are null; the default is n times the resolution of float32.
    """
    kernel = np.asarray(kernel, dtype=np.float64)
    values, vectors = _eigenfunctions(kernel, tolerance)
    counts = _counts(values, ranks)
    samples = len(kernel)
    functions = {"task": np.sqrt(samples) * vectors}
    for group, matrix in cross.items():
        matrix = np.asarray(matrix, dtype=np.float64)
        if matrix.ndim != 2 or matrix.shape[1] != samples:
            raise ValueError(f"{group}: expected a kernel of shape (points, {samples}), got {matrix.shape}")
        functions[group] = np.sqrt(samples) * matrix @ vectors / values
    return Localization(
        values,
        values.cumsum()[counts - 1] / values.sum(),
        counts,
        counts,
        {group: (phi**2).cumsum(1)[:, counts - 1].T for group, phi in functions.items()},
    )


def localize_jointly(
    kernel: np.ndarray,
    task: np.ndarray,
    ranks: Sequence[float | int] = (0.9,),
    tolerance: float | None = None,
    keep: str = "localized",
    shuffles: int = 20,
    seed: int = 0,
) -> Localization:
    """Eigenfunctions of K on D_t ∪ D_t' together, those of the task kept.

    kernel: (N, N) over both supports; task: (N,) bool, True on D_t. With unit mean square on the union,
    φ_ρ(x_ν) = √N U_νρ. All N eigenfunctions together have the energy N at every point, so a choice is needed:
    `localized` keeps, among the leading ones of `ranks`, those with more mean energy on D_t than on D_t'; `all` keeps
    every leading one. To choose is to favour D_t: `chance`, the ratio for shuffled labels, says by how much.
    """
    if keep not in ("localized", "all"):
        raise ValueError(f"unknown choice {keep!r} of eigenfunctions; there are localized, all")
    task = np.asarray(task, dtype=bool)
    kernel = np.asarray(kernel, dtype=np.float64)
    if task.shape != kernel.shape[:1] or task.all() or not task.any():
        raise ValueError(f"expected {len(kernel)} labels that mark some points, not all; got {task.shape}")
    values, vectors = _eigenfunctions(kernel, tolerance)
    counts = _counts(values, ranks)
    squares = len(kernel) * vectors**2  # (points, eigenfunctions)

    def energies(labels):
        kept = squares[labels].mean(0) > squares[~labels].mean(0) if keep == "localized" else np.ones(len(values), bool)
        energy = (squares * kept).cumsum(1)[:, counts - 1].T  # (counts, points)
        return kept, {"task": energy[:, labels], "control": energy[:, ~labels]}

    kept, energy = energies(task)
    random = np.random.default_rng(seed)
    shuffled = [energies(random.permutation(task))[1] for _ in range(shuffles)]
    chance = _ratio(*(sum(one[group].mean(1) for one in shuffled) for group in ("task", "control")))
    return Localization(
        values,
        values.cumsum()[counts - 1] / values.sum(),
        counts,
        kept.cumsum()[counts - 1],
        energy,
        squares[task].sum(0) / len(kernel),
        chance,
    )
