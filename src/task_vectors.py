"""The algebra of task vectors, τ = θ − θ0, and of masks on weights.

    tau = NonLinearTaskVector(zeroshot, finetuned)       # paths, state dicts or modules
    edited = (0.5 * tau_1 + 0.7 * tau_2).apply_to(zeroshot, scaling_coef=0.8)
    mask = tau_1.abs() > (total - tau_1).abs() * 0.4      # a TALL mask
    edited = zeroshot + total * mask

Weights and their differences are different types: a state dict plus a vector is a state dict, a vector plus a vector is
a vector. Tensors are addressed by name, and vectors whose names or shapes differ do not mix. A vector of non-linear
models and one of linearized models share their names but not their meaning, so adding the two takes an explicit cast.

Sources: https://arxiv.org/abs/2212.04089 (task vectors), https://arxiv.org/abs/2305.12827 (tangent task vectors).
"""

import copy
import math
import os
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from src.modes import MODES
from src.runtime.messages import few
from src.tensors import Weights, check_same, difference, moved

Source = str | os.PathLike | Mapping[str, Tensor] | nn.Module
KIND = "task vector"  # of a file in the one format
SOURCES = (str, os.PathLike, Mapping, nn.Module)


def weights_of(source: Source) -> Mapping[str, Tensor]:
    """The state dict of a checkpoint path, a module, or a state dict itself."""
    if isinstance(source, nn.Module):
        return source.state_dict()
    if isinstance(source, (str, os.PathLike)):
        from src import checkpoints

        return checkpoints.Checkpoint(Path(source))
    return source


WRONG_KIND = {  # by what was found
    True: "expected an ordinary model, found a linearized one: use LinearizedTaskVector, to_linear or apply_to_linear",
    False: "expected a linearized model, found an ordinary one: "
    "use NonLinearTaskVector, to_nonlinear or apply_to_nonlinear",
}


class Mask:
    """One bool for every weight, by name. `&`, `|`, `^`, `~`; `mask * vector` keeps the weights where it is true."""

    def __init__(self, bits: Mapping[str, Tensor]):
        if wrong := [name for name, tensor in bits.items() if tensor.dtype != torch.bool]:
            raise TypeError(f"expected bool tensors in a mask, found others: {few(wrong)}")
        self.bits: Weights = dict(bits)

    def _with(self, other: "Mask", operation: Callable[[Tensor, Tensor], Tensor]) -> "Mask":
        if not isinstance(other, Mask):
            return NotImplemented
        check_same(self.bits, other.bits, "the masks")
        return Mask({name: operation(bits, other.bits[name]) for name, bits in self.bits.items()})

    def __and__(self, other: "Mask") -> "Mask":
        return self._with(other, torch.logical_and)

    def __or__(self, other: "Mask") -> "Mask":
        return self._with(other, torch.logical_or)

    def __xor__(self, other: "Mask") -> "Mask":
        return self._with(other, torch.logical_xor)

    def __invert__(self) -> "Mask":
        return Mask({name: ~bits for name, bits in self.bits.items()})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask) or set(self.bits) != set(other.bits):
            return False
        return all(torch.equal(bits, other.bits[name]) for name, bits in self.bits.items())

    def __mul__(self, other: "TaskVector") -> "TaskVector":
        return other * self if isinstance(other, TaskVector) else NotImplemented

    def count(self) -> int:
        """Weights where the mask is true."""
        return sum(int(bits.count_nonzero()) for bits in self.bits.values())

    def num_parameters(self) -> int:
        return sum(bits.numel() for bits in self.bits.values())

    def density(self) -> float:
        """Share of the weights where the mask is true."""
        return self.count() / max(1, self.num_parameters())

    def __repr__(self) -> str:
        return f"Mask({self.num_parameters()} weights, density {self.density():.3f})"


class TaskVector:
    """A difference of weights, floating tensors only: counters and other integer buffers have no difference.

    pretrained, finetuned: paths of checkpoints, state dicts, or modules; or the differences themselves as `vector`.
    Differences are in float32 at least, also those of half-precision weights. Raises ValueError, naming them, for
    tensors that differ in name or shape.
    """

    linear: ClassVar[bool | None] = None  # of linearized models or of ordinary ones; None: does not say
    __array_ufunc__ = None  # a NumPy scalar times a vector is a vector

    def __init__(
        self,
        pretrained: Source | None = None,
        finetuned: Source | None = None,
        vector: Mapping[str, Tensor] | None = None,
    ):
        if vector is None and pretrained is not None and finetuned is not None:
            vector = self._differences(pretrained, finetuned)
        elif vector is None or pretrained is not None or finetuned is not None:
            raise TypeError("expected a pre-trained and a fine-tuned checkpoint, or a vector")
        self.vector: Weights = {name: tensor for name, tensor in vector.items() if tensor.is_floating_point()}

    def _differences(self, pretrained: Source, finetuned: Source) -> Weights:
        start, end = self._weights_of(pretrained), self._weights_of(finetuned)
        check_same(start, end, "the pre-trained and the fine-tuned checkpoint")
        return difference(end, start)

    # ---- a vector space

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The vector of function(tensor)."""
        return type(self)(vector={name: function(tensor) for name, tensor in self.vector.items()})

    def _with(self, other: "TaskVector", operation: Callable[[Tensor, Tensor], Tensor]) -> "TaskVector":
        kind = _common_kind(self, other)
        check_same(self.vector, other.vector, "the task vectors")
        return kind(vector={name: operation(t, other.vector[name]) for name, t in self.vector.items()})

    def __add__(self, other):
        if isinstance(other, TaskVector):
            return self._with(other, torch.add)
        return self.__radd__(other)

    def __radd__(self, other):
        """`sum()` starts from 0; weights plus a vector are weights."""
        if isinstance(other, SOURCES):
            return self.apply_to(other)
        return self if isinstance(other, Real) and other == 0 else NotImplemented

    def __sub__(self, other):
        return self._with(other, torch.sub) if isinstance(other, TaskVector) else NotImplemented

    def __rsub__(self, other):
        if isinstance(other, SOURCES):
            return self.apply_to(other, -1.0)
        return -self if isinstance(other, Real) and other == 0 else NotImplemented

    def __neg__(self) -> Self:
        return self.map(torch.neg)

    def __mul__(self, other):
        if isinstance(other, Mask):
            check_same(self.vector, other.bits, "the task vector and the mask")
            # where(), because infinity times False is no number
            return type(self)(vector={n: t.where(other.bits[n].to(t.device), 0) for n, t in self.vector.items()})
        # A tensor without dimensions, such as CLIP's logit scale, would take the type of a scalar that is a tensor too.
        return self.map(lambda tensor: (tensor * other).to(tensor.dtype)) if _is_scalar(other) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, other) -> Self:
        return self.map(lambda tensor: (tensor / other).to(tensor.dtype)) if _is_scalar(other) else NotImplemented

    def __pow__(self, power) -> Self:
        """Of each weight, as in the published code."""
        return self.map(lambda tensor: (tensor**power).to(tensor.dtype)) if _is_scalar(power) else NotImplemented

    def abs(self) -> Self:
        return self.map(torch.abs)

    __abs__ = abs

    def dot(self, other: "TaskVector") -> float:
        """Inner product over all weights, summed in float64."""
        check_same(self.vector, other.vector, "the task vectors")
        return math.fsum(float((t.double() * other.vector[n].double()).sum()) for n, t in self.vector.items())

    def norm(self) -> float:
        return math.sqrt(self.dot(self))

    def cosine(self, other: "TaskVector") -> float:
        """Cosine of the angle between two vectors; 0 where one of them is 0."""
        lengths = self.norm() * other.norm()
        return self.dot(other) / lengths if lengths else 0.0

    # ---- masks

    def _compare(self, other, operation: Callable) -> Mask:
        if _is_scalar(other):
            return Mask({name: operation(tensor, other) for name, tensor in self.vector.items()})
        if not isinstance(other, TaskVector):
            return NotImplemented
        check_same(self.vector, other.vector, "the task vectors")
        return Mask({name: operation(tensor, other.vector[name]) for name, tensor in self.vector.items()})

    def __gt__(self, other) -> Mask:
        return self._compare(other, torch.gt)

    def __ge__(self, other) -> Mask:
        return self._compare(other, torch.ge)

    def __lt__(self, other) -> Mask:
        return self._compare(other, torch.lt)

    def __le__(self, other) -> Mask:
        return self._compare(other, torch.le)

    # ---- its tensors

    def keys(self) -> list[str]:
        return list(self.vector)

    def __getitem__(self, name: str) -> Tensor:
        return self.vector[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.vector)

    def num_parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.vector.values())

    def to(self, *where, **named) -> Self:
        """On another device or in another dtype, as Tensor.to."""
        return self.map(lambda tensor: tensor.to(*where, **named))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_parameters()} weights, norm {self.norm():.4g})"

    def save(self, path: Path, model: str, **header: Any) -> None:
        """Write it in the one format. model: of which it is; header: such as `task`. Raises CheckpointError."""
        from src import checkpoints

        mode = {None: None, False: "standard", True: "linear"}[self.linear]
        checkpoints.save(path, self.vector, {"model": model, "mode": mode} | header, KIND)

    @classmethod
    def load(cls, path: Path, **expect: Any) -> "TaskVector":
        """The vector that `save` wrote, of the kind that it was; expect: such as `model`.

        Raises CheckpointError for another file, and TypeError for a vector of the other kind than the class.
        """
        from src import checkpoints

        file = checkpoints.Checkpoint(path, kind=KIND, **expect)
        mode = MODES.get(file.header.get("mode") or "")
        kind = TaskVector if mode is None else LinearizedTaskVector if mode.tangent else NonLinearTaskVector
        if cls.linear is not None and kind.linear is not None and kind.linear != cls.linear:
            raise TypeError(f"{path}: expected a {cls.__name__}, found a {kind.__name__}: cast it with to_...linear()")
        return (kind if cls.linear is None else cls)(vector=dict(file))

    # ---- kinds and application

    def to_linear(self) -> "LinearizedTaskVector":
        """The same differences, meant for a linearized model."""
        return LinearizedTaskVector(vector=self.vector)

    def to_nonlinear(self) -> "NonLinearTaskVector":
        """The same differences, meant for an ordinary model."""
        return NonLinearTaskVector(vector=self.vector)

    def apply_to(self, pretrained: Source, scaling_coef: float = 1.0):
        """θ0 + scaling_coef · τ, of the kind that θ0 is given as: of a module a changed copy, of a state dict or a
        checkpoint's path a new state dict. Weights that τ does not have stay.

        Raises TypeError for a model of the other kind (linearized or not), naming the casts.
        """
        weights = moved(self._weights_of(pretrained), self.vector, scaling_coef)
        if not isinstance(pretrained, nn.Module):
            return weights
        edited = copy.deepcopy(pretrained)
        edited.load_state_dict(weights)
        return edited

    def apply_to_linear(self, pretrained: Source, scaling_coef: float = 1.0):
        """`apply_to` for a linearized model, whatever the vector was trained as: post-hoc linearization."""
        return self.to_linear().apply_to(pretrained, scaling_coef)

    def apply_to_nonlinear(self, pretrained: Source, scaling_coef: float = 1.0):
        """`apply_to` for an ordinary model, whatever the vector was trained as."""
        return self.to_nonlinear().apply_to(pretrained, scaling_coef)

    def _weights_of(self, source: Source) -> Weights:
        """Its tensors, read once. Raises TypeError for those of a model of the other kind, where the source says."""
        from src.linearize import LinearizedModel

        weights = weights_of(source)
        if isinstance(source, nn.Module):
            linear: bool | None = isinstance(source, LinearizedModel)
        else:
            header: Mapping[str, Any] = getattr(weights, "header", {})
            mode = MODES.get(header.get("mode", ""))
            linear = mode.tangent if mode else None
        if linear is not None and self.linear is not None and linear != self.linear:
            raise TypeError(f"{type(self).__name__}: {WRONG_KIND[linear]}")
        return dict(weights)


class NonLinearTaskVector(TaskVector):
    """Of two ordinary models."""

    linear = False


class LinearizedTaskVector(TaskVector):
    """Of two linearized models: a direction in the tangent space at θ0."""

    linear = True


def _common_kind(one: TaskVector, two: TaskVector) -> type[TaskVector]:
    """The kind of a sum: either vector's, where the other is of the same or of none."""
    kinds = {type(one), type(two)} - {TaskVector}
    if len(kinds) > 1:
        raise TypeError(
            "a tangent and a non-linear task vector do not add up: cast one of them with to_linear() or to_nonlinear()"
        )
    return kinds.pop() if kinds else TaskVector


def _is_scalar(value) -> bool:
    return isinstance(value, Real) or (isinstance(value, Tensor) and value.ndim == 0)
