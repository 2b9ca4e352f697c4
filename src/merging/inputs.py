"""Moments of what each weight of an image encoder multiplies, from forward passes on unlabelled images.

src/inputs.py tells the input of each kind of weight.

Tangent models. The layers of f_lin(x; θ0 + Δ) = f(x; θ0) + J(x; θ0) Δ carry a value, which is f's at θ0, and a tangent:

    y = W_0 x + b_0,        ẏ = Δ_W x + W_0 ẋ + Δ_b

x is f's input at θ0, the same for every Δ; ẋ is the tangent of the layers before, linear in Δ. A layer's own Δ_W
multiplies x alone. So the input of W in f_lin is x at θ0, and two models with the same ẋ differ at this layer by
(Δ − Δ') x: no layer's least squares hangs on another layer's solution. What a standard model has in place of this is
an input at θ0 + Δ, x + ẋ to first order. Taking the inputs of f at θ0 + Δ for a tangent model would be wrong: no such
activation occurs in f_lin.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from src.dual_numbers import DualRules
from src.inputs import Inputs, See
from src.linearize import LinearizedModel
from src.merging.base import Problem, Unlabelled
from src.modeling import all_tokens
from src.runtime.messages import UsageError, few
from src.tensors import Weights, moved


@dataclass
class Moments:
    """Means over rows of what a weight's input x gives: xxᵀ, x, and for a drift d beside it d xᵀ and d.

    diagonal: of xxᵀ the diagonal alone. Sums are in float64, so that what lacks rank in exact arithmetic lacks it here.
    """

    diagonal: bool = False
    total: float = 0.0  # of the rows' weights
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, x: Tensor, d: Tensor | None = None, weights: Tensor | None = None) -> None:
        """x, d: (..., in). weights: of the rows, (...); by default 1."""
        w = torch.ones(x.shape[:-1], dtype=torch.float64) if weights is None else weights
        w = w.double().to(x.device).reshape(-1, 1)
        x = x.double().reshape(-1, x.shape[-1])
        self.total += float(w.sum())
        self._add("xx", (w * x.square()).sum(0) if self.diagonal else x.T @ (w * x))
        self._add("x", (w * x).sum(0))
        if d is not None:
            d = d.double().reshape(-1, d.shape[-1])
            self._add("dx", d.T @ (w * x))
            self._add("d", (w * d).sum(0))

    def _add(self, name: str, part: Tensor) -> None:
        self.sums[name] = self.sums[name] + part.cpu() if name in self.sums else part.cpu()

    def mean(self, name: str) -> Tensor:
        """ "xx": C = E xxᵀ, [in, in] or its diagonal, [in]. "x": [in]. "dx": E d xᵀ, [in, in]. "d": [in]."""
        return self.sums[name] / self.total


class Models:
    """The models of a problem: what their weights' inputs are on images. See the head of this file for tangent ones."""

    def __init__(self, problem: Problem, images: Unlabelled):
        encoder = images.encoder()
        self.tangent = isinstance(encoder, LinearizedModel)
        self.function: nn.Module = encoder.function if isinstance(encoder, LinearizedModel) else encoder
        self.start: Weights = {name: tensor.detach() for name, tensor in self.function.state_dict().items()}
        self.problem = problem

    def weights(self, tau: Mapping[str, Tensor]) -> Weights:
        """θ0 + τ, on the model's device."""
        return moved({name: self.start[name] for name in self.problem.keys}, tau, 1.0)

    @torch.no_grad()
    def observe(self, tau: Mapping[str, Tensor], images: Tensor, wanted: Collection[str], see: See) -> None:
        """see(name, x): the input of each wanted weight of the model with vector τ, in the order of the forward pass.

        Raises UsageError, naming them, for weights that no function of INPUTS multiplies.
        """
        theta = self.weights({} if self.tangent else tau)
        with all_tokens(self.function), _until_seen({name: theta[name] for name in wanted}, see):
            functional_call(self.function, theta, (images,))

    @torch.no_grad()
    def observe_tangents(self, tau: Mapping[str, Tensor], images: Tensor, wanted: Collection[str], see: See) -> None:
        """see(name, ẋ): the tangent along τ of the input of each wanted weight, at θ0. Raises as `observe`."""

        def unpack(name: str, x: Tensor) -> None:
            tangent = forward_ad.unpack_dual(x).tangent
            see(name, torch.zeros_like(x) if tangent is None else tangent)

        with DualRules(), forward_ad.dual_level():
            theta = {
                name: forward_ad.make_dual(self.start[name], tau[name].to(self.start[name]))
                for name in self.problem.keys
            }
            with all_tokens(self.function), _until_seen({name: theta[name] for name in wanted}, unpack):
                functional_call(self.function, theta, (images,))

    def drift(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], images: Tensor, wanted: Collection[str]
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, x, d): the input of each wanted weight of the student, and the teacher's less the student's.

        student, teacher: vectors. For tangent models d is the difference of the tangents.
        """
        x: Weights = {}
        self.observe(student, images, wanted, x.__setitem__)
        d: Weights = {}
        if self.tangent:
            self.observe_tangents({k: teacher[k] - student[k] for k in teacher}, images, wanted, d.__setitem__)
        else:
            self.observe(teacher, images, wanted, d.__setitem__)
        for name in wanted:
            yield name, x[name], d[name] if self.tangent else d[name] - x[name]


class _AllSeen(Exception):
    """Every wanted weight has been met: the rest of the forward pass is of no use."""


@contextlib.contextmanager
def _until_seen(weights: Mapping[str, Tensor], see: See) -> Iterator[None]:
    """See the inputs of all these weights; what is within ends with the last of them."""
    missing = set(weights)

    def met(name: str, x: Tensor) -> None:
        see(name, x)
        missing.discard(name)
        if not missing:
            raise _AllSeen

    with contextlib.suppress(_AllSeen), Inputs({id(weight): name for name, weight in weights.items()}, met):
        yield
    if missing:
        raise UsageError(
            f"expected weights that the image encoder multiplies its activations by; found {few(sorted(missing))}, "
            "which have no inputs. Choose other tensors: method.matrices=linear, or blocks"
        )


def gather(images: Unlabelled, task: str, split: str, count: int) -> Tensor:
    """`count` images of a task, no image twice; all that there are where there are fewer. UsageError for none."""
    return images.batch(task, split, count, 0)  # a round through the images never repeats one
