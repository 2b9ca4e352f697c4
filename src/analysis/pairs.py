"""How two task vectors of one network lie to each other, and what their models do with images.

Of the weights:

    cosine          see layerwise.py
    sign_agreement  of the weights that both move, the share that both move the same way
    norm_ratio      the smaller norm over the larger
    overlap         ‖AᵀB‖² / k of two orthonormal bases, [m, k]: 1 for one space, k/m for random ones, 0 for orthogonal
    spaces          of a matrix, the overlaps of the leading k and of the least k singular vectors, left and right
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from src.merging.matrices import SVD

Vector = Mapping[str, Tensor]


def sign_agreement(one: Vector, other: Vector) -> float:
    products = [torch.sign(one[key]) * torch.sign(other[key]) for key in one]
    same, apart = (sum(int((product == sign).sum()) for product in products) for sign in (1, -1))
    return same / max(1, same + apart)


def norm_ratio(one: Vector, other: Vector) -> float:
    small, large = sorted(sum(float(tensor.double().square().sum()) for tensor in of.values()) for of in (one, other))
    return (small / large) ** 0.5


def overlap(one: Tensor, other: Tensor) -> float:
    return float((one.T @ other).square().sum() / one.shape[1])


def spaces(one: SVD, other: SVD, k: int) -> dict[str, float]:
    """top_left, top_right, bottom_left, bottom_right -> overlap, of at most k vectors with singular values above 0.

    Empty where there are none.
    """
    one, other = one.directions(), other.directions()
    k = min(k, len(one.s), len(other.s))
    if k == 0:
        return {}
    sides = {"left": (one.u, other.u), "right": (one.vh.T, other.vh.T)}
    return {f"top_{side}": overlap(a[:, :k], b[:, :k]) for side, (a, b) in sides.items()} | {
        f"bottom_{side}": overlap(a[:, -k:], b[:, -k:]) for side, (a, b) in sides.items()
    }
