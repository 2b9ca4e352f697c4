"""M ≈ Σ_t G_t in Kronecker factors, layer by layer, and its inverse: a step of conjugate gradients goes further by it.

G_t = E J(x)ᵀ H J(x) couples all weights. M keeps what couples those of one layer, in the factors of src/curvature.py,
with v of covariance H. Factors are damped as by Martens & Grosse (2015, arXiv:1503.05671, section 6.3): for means a and
g of the diagonals of A and G,

    (A + π √λ I)⁻¹ and (G + √λ / π I)⁻¹,        π² = a / g,   λ = damping · a g + μ

A LayerNorm's matrix F gets λ = damping · its mean + μ. What no factor tells of (embeddings) is divided by the mean of
a g over the layers, plus μ.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from src.curvature import Curvature, augmented
from src.inputs import IN_OUT
from src.runtime.messages import UsageError
from src.task_vectors import TaskVector


class Kronecker:
    """M⁻¹. curvature: the mean of the tasks' factors; mu: μ over the number of tasks, for M is a mean too."""

    def __init__(self, curvature: Curvature, damping: float, mu: float):
        self.biases = curvature.biases
        self.layers: dict[str, tuple[Tensor, Tensor]] = {}  # (A⁻¹, G⁻¹)
        self.norms: dict[str, Tensor] = {}
        sizes = []
        for name, of_outputs in curvature.g.items():
            of_inputs = curvature.a[name]
            a, g = float(of_inputs.diagonal().mean()), float(of_outputs.diagonal().mean())
            if a and g:  # else no image sees the layer
                sizes.append(a * g)
                strength, ratio = (damping * a * g + mu) ** 0.5, (a / g) ** 0.5
                self.layers[name] = inverse(of_inputs, ratio * strength), inverse(of_outputs, strength / ratio)
        for name, f in curvature.f.items():
            if size := float(f.diagonal().mean()):
                self.norms[name] = inverse(f, damping * size + mu)
        self.others = 1 / (sum(sizes) / len(sizes) + mu) if sizes else 1.0

    def __call__(self, v: TaskVector) -> TaskVector:
        """M⁻¹ v"""
        solved: dict[str, Tensor] = {}
        for name, (a, g) in self.layers.items():
            self._layer(name, a, g, v.vector, solved)
        for name, f in self.norms.items():
            parts = [part for part in (name, self.biases.get(name)) if part]
            product = f @ torch.cat([v.vector[part] for part in parts])
            solved |= zip(parts, product.chunk(len(parts)))
        return TaskVector(vector={key: solved.get(key, self.others * part) for key, part in v.vector.items()})

    def _layer(self, name: str, a: Tensor, g: Tensor, v: Mapping[str, Tensor], solved: dict[str, Tensor]) -> None:
        bias = self.biases.get(name)
        product = g @ augmented(v, name, bias) @ a
        if bias:
            product, solved[bias] = product[:, :-1], product[:, -1]
        solved[name] = product.mT.contiguous() if name == IN_OUT else product.reshape(v[name].shape)


def inverse(matrix: Tensor, damping: float) -> Tensor:
    """Of a symmetric matrix whose diagonal grows by `damping`: symmetric and positive definite, as the iterations need.

    Raises UsageError for one that is not positive definite, up to the rounding of float64.
    """
    damped = matrix.double() + damping * torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
    try:
        return torch.cholesky_inverse(torch.linalg.cholesky(damped)).to(matrix)
    except torch.linalg.LinAlgError as error:
        raise UsageError(
            f"damping: expected Kronecker factors that it makes positive definite, found one of size {len(matrix)} "
            "that is not; take a larger one, or method.precondition=none"
        ) from error
