"""What moving weights does to a task's features, in Kronecker factors: all that TAK's penalty needs of another task.

J holds the derivatives of the features f with respect to the weights, at θ0. For y = W x + b, where an image gives W a
row x for each token,

    E ‖J (ΔW, Δb)‖²  ≈  tr(G Δ A Δᵀ),        Δ = [ΔW Δb],   A = E_rows [x 1][x 1]ᵀ,   G = E_images Σ_rows g gᵀ,

where g = ∂(v·f)/∂y for v drawn from N(0, I), whose mean over v stands for the sum over features. It is exact where rows
of an image, and x and g, are independent; for the projection at the end, of one row, it is exact.
A LayerNorm y = γ ∘ z + β has few weights, and is exact but for v:

    E ‖J (Δγ, Δβ)‖²  =  δᵀ F δ,              δ = [Δγ Δβ],   F = E_images u uᵀ,   u = Σ_rows [g ∘ z, g].

Source: https://arxiv.org/abs/2602.17385, which normalises features before it differentiates them, and weights F by 10
and the projection by 0.1; here features are those of the tangent model, and all weights are 1.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from src.inputs import IN_OUT, Inputs
from src.modeling import all_tokens
from src.tensors import Weights


@dataclass
class Curvature:
    """Factors by the name of their weight: A [in (+ 1), in (+ 1)] and G [out, out], or F [2 width, 2 width], half of
    that for a norm without a bias.

    biases: the bias of each weight that has one. A is a mean over rows, G and F over images.
    """

    biases: dict[str, str] = field(default_factory=dict)
    a: Weights = field(default_factory=dict)
    g: Weights = field(default_factory=dict)
    f: Weights = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """Weights and biases that it says something of."""
        return {*self.g, *self.f, *self.biases.values()}

    def add(self, other: "Curvature", share: float) -> None:
        """Factors become sums: those of a mixture of tasks, where shares are of its images."""
        self.biases |= other.biases
        for mine, theirs in ((self.a, other.a), (self.g, other.g), (self.f, other.f)):
            for name, factor in theirs.items():
                mine[name] = mine[name] + share * factor if name in mine else share * factor

    def of(self, moved: Mapping[str, Tensor]) -> Tensor:
        """Σ_l tr(G Δ A Δᵀ) + Σ_l δᵀ F δ, a scalar with its first derivative, for Δ = θ − θ0 by name."""
        terms = []
        for name, g in self.g.items():
            delta = augmented(moved, name, self.biases.get(name))
            terms.append(_quadratic(delta, g @ delta.detach() @ self.a[name]))
        for name, f in self.f.items():
            delta = torch.cat([moved[part] for part in (name, self.biases.get(name)) if part])
            terms.append(_quadratic(delta, f @ delta.detach()))
        return torch.stack(terms).sum()


def augmented(moved: Mapping[str, Tensor], name: str, bias: str | None) -> Tensor:
    """[ΔW Δb], as A and G have it: [out, in (+ 1)]."""
    weight = moved[name].mT if name == IN_OUT else moved[name].flatten(1)
    return weight if bias is None else torch.cat([weight, moved[bias][:, None]], 1)


def _quadratic(delta: Tensor, product: Tensor) -> Tensor:
    """⟨δ, M δ⟩ of a symmetric M, given M δ: the derivative, 2 M δ, then takes no product of its own."""
    return 2 * (product * delta).sum() - (product * delta.detach()).sum()


def measure(model: nn.Module, theta0: Mapping[str, Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> Curvature:
    """The factors of a task.

    theta0: of all parameters and buffers of `model` that shall not be its own. batches: (images, v), where v, of the
    shape of their features, is N(0, I).
    """
    theta = {name: tensor.detach() for name, tensor in theta0.items()}
    biases = {f"{stem}weight": f"{stem}bias" for stem in (name.removesuffix("weight") for name in theta)}
    biases = {name: bias for name, bias in biases.items() if name in theta and bias in theta}
    curvature, seen, rows = Curvature(), 0, dict[str, int]()
    weights = [name for name in theta if name not in biases.values()]
    for images, v in batches:
        seen += len(images)
        for name, x, g in _inputs_and_gradients(model, theta, weights, images, v):
            if name in biases:
                curvature.biases[name] = biases[name]
            if theta[name].dim() == 1:
                u = torch.cat([g * x, g], -1) if name in biases else g * x
                u = u.flatten(1, -2).sum(1) if u.dim() > 2 else u
                curvature.f[name] = curvature.f.get(name, 0) + u.T @ u
                continue
            x, g = x.flatten(0, -2), g.flatten(0, -2)
            if name in curvature.biases:
                x = torch.cat([x, x.new_ones(len(x), 1)], 1)
            rows[name] = rows.get(name, 0) + len(x)
            curvature.a[name] = curvature.a.get(name, 0) + x.T @ x
            curvature.g[name] = curvature.g.get(name, 0) + g.T @ g
    for name in curvature.a:
        curvature.a[name] /= rows[name]
    for factors in (curvature.g, curvature.f):
        for name in factors:
            factors[name] /= seen
    return curvature


def _inputs_and_gradients(
    model: nn.Module, theta: Weights, weights: Iterable[str], images: Tensor, v: Tensor
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, x, g) of each weight that multiplies something: (images, rows, in) and (images, rows, out)."""
    x: Weights = {}
    y: Weights = {}

    def after(name: str, result: Tensor) -> Tensor:
        y[name] = result.requires_grad_() if result.is_leaf else result
        return y[name]

    seen = Inputs({id(theta[name]): name for name in weights}, x.__setitem__, after)
    with all_tokens(model), seen, torch.enable_grad():
        features = functional_call(model, theta, (images,))
        gradients = torch.autograd.grad((features * v).sum(), list(y.values()))
    for name, g in zip(y, gradients):
        # A convolution's rows are its patches.
        yield name, x[name].detach(), g.flatten(2).mT if theta[name].dim() == 4 else g
