"""Layer-wise functional interference: what other tasks' vectors do on a task's images, part by part.

e_l(t←j) = J_l(x) τ_j^l, x ~ D_t, is the change of the features when task j's vector moves the part l alone. For tangent
models J τ = Σ_l J_l τ^l exactly; for others the change is f(x; θ0 + τ_j^l) − f(x; θ0), and the parts do not add up.

    interference      I_l(t←j) = E ‖e_l(t←j)‖² / E ‖e_l(t←t)‖²
    together          the same of all other tasks at once, Σ_{j≠t} τ_j^l
    signed            E ⟨e_l(t←j), e(t←t)⟩ / E ‖e(t←t)‖², of the whole own change; over all parts of a tangent
                      model they add up to the same of the whole τ_j, and to 1 for j = t
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from src.merging.regmean import TAIL, stage_of

STEM, END = "stem", "projection"
ATTENTION, MLP = "attention", "MLP"
ATTENTIVE = re.compile(r"blocks\.\d+\.(attn|ln_1|ls_1|ln_attn)")


def part_of(key: str) -> str:
    """`stem`, `0 attention`, `0 MLP`, ..., `projection`; a LayerNorm belongs to what it feeds."""
    stage = stage_of(key)
    if stage in (0, TAIL):
        return END if stage else STEM
    return f"{int(stage) - 1} {ATTENTION if ATTENTIVE.search(key) else MLP}"


def parts_of(keys: Iterable[str]) -> dict[str, list[str]]:
    """Part -> its tensors, in the order of the forward pass."""
    parts: dict[str, list[str]] = {}
    for key in sorted(keys, key=lambda key: (stage_of(key), not ATTENTIVE.search(key))):
        parts.setdefault(part_of(key), []).append(key)
    return parts


@dataclass(frozen=True)
class Interference:
    """Of one part on one task's images. others, signed: by task, in order; together: of all other tasks."""

    others: list[float]
    signed: list[float]
    together: float


def interference(changes: Sequence[Tensor], together: Tensor, whole: Tensor, own: int) -> Interference:
    """changes: e_l(t←j) of every task j, (images, features) each; together: of the others at once; whole: e(t←t).

    own: the index of t. Sums are taken in float64.
    """
    denominator, total = _energy(changes[own]), _energy(whole)
    return Interference(
        others=[_energy(change) / denominator for change in changes],
        signed=[float((change.double() * whole.double()).sum()) / total for change in changes],
        together=_energy(together) / denominator,
    )


def _energy(change: Tensor) -> float:
    return float(change.double().square().sum())


def cosine(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Of two vectors on the tensors of one part."""
    products = [
        sum(float((a[key].double() * b[key].double()).sum()) for key in one)
        for a, b in ((one, other), (one, one), (other, other))
    ]
    return products[0] / (products[1] * products[2]) ** 0.5
