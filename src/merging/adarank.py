"""AdaRank: the singular components of each task vector that a merge keeps (Lee et al., 2025, arXiv:2503.22178).

Of every matrix of attention and MLPs, Δ_t = U_t Σ_t V_tᵀ with r = min(m, n), singular values descending;

    Δ = Σ_t λ_t U_t (B_t ∘ Σ_t) V_tᵀ,    B_t = 1{σ(b_t / T) > 1/2},    min over λ, b of the entropy of the predictions

on unlabelled images, by Adam at one rate. λ_t is of a task and tensor, B_t of a task and matrix, with r entries. The
step is straight-through: ∂B_t/∂b_t is that of σ(b_t / T). All other tensors get Σ_t λ_t τ_t. As one product,

    Δ = [U_1 … U_T] diag(λ_1 B_1 ∘ Σ_1, …, λ_T B_T ∘ Σ_T) [V_1 … V_T]ᵀ

b starts at `initial_logit` on the leading ⌊rank · r⌋ components, and at its negative on the others:

    start=task_arithmetic   θ = θ0 + Δ of the τ_t; published: rank 1, λ = 0.3. This is task arithmetic at its start.
    start=cart              θ = θ_avg + Δ of δ_t = θ_t − θ_avg; published for 8 tasks on ViT-B/32: rank 0.16, λ = 2.3.
                            This is CART at its start (see spectral.py).

The published code reports the best of 21 evaluations on the test images that it adapts to. Here the last step counts.
`loss` takes another loss in the place of the entropy (see adaptation.py).

A suite with a shorter schedule grows the rate by a tenth of the factor. Steps are as long as the rate, and the
published 10000 at 1e-3 are a hundred times the way from `initial_logit` to 0; by the whole factor, which is 200 on
mini, every step would be longer than that way, and the last gradients alone would choose the mask.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from src.merging.adaptation import IMAGES, LR, Adapting, Mask, MergedModel, schedule, unmasked
from src.merging.base import Merge, Problem, Variant, scaled
from src.merging.matrices import SVD, MatrixMethod, matrices_of, share, total
from src.merging.registry import register
from src.merging.steps import Adaptation
from src.ranges import NON_NEGATIVE, NUMBER, POSITIVE, RANK, check_choice, check_value, given, option
from src.runtime.messages import UsageError

STARTS = ("task_arithmetic", "cart")
STEPS = 10000
SHARE = 10  # the tenth that a shorter schedule keeps of the published number of steps times their rate


@dataclass(frozen=True)
class Components:
    """The singular triplets of a tensor's matrices, of which it has one, or three where q, k and v are apart.

    u: [U_1 … U_T], (matrices, m, tasks · r). s: (matrices, tasks, r). vh: [V_1 … V_T]ᵀ, (matrices, tasks · r, n).
    """

    u: Tensor
    s: Tensor
    vh: Tensor

    @classmethod
    def of(cls, svds: list[list[SVD]]) -> "Components":
        """Of each matrix's tasks."""
        return cls(
            torch.stack([torch.cat([svd.u for svd in of_matrix], 1) for of_matrix in svds]),
            torch.stack([torch.stack([svd.s for svd in of_matrix]) for of_matrix in svds]),
            torch.stack([torch.cat([svd.vh for svd in of_matrix]) for of_matrix in svds]),
        )

    def to(self, **where: Any) -> "Components":
        return Components(self.u.to(**where), self.s.to(**where), self.vh.to(**where))

    def sum(self, weights: Tensor) -> Tensor:
        """Σ_t U_t diag(w_t) V_tᵀ of every matrix, (matrices, m, n); weights: (matrices, tasks, r)."""
        return (self.u.to(weights.dtype) * weights.flatten(1)[:, None]) @ self.vh.to(weights.dtype)


class ComponentMask:
    """The logits b of every tensor with matrices, (matrices, tasks, r), and B.

    Raises UsageError unless temperature > 0.
    """

    def __init__(self, logits: dict[str, Tensor], temperature: float):
        check_value("temperature", temperature, POSITIVE)
        self.logits, self.temperature = logits, temperature

    def __call__(self, name: str) -> Tensor | None:
        """B with the gradient of σ(b / T); None for a tensor without matrices."""
        if name not in self.logits:
            return None
        soft = torch.sigmoid(self.logits[name] / self.temperature)
        return self.chosen(name).to(soft.dtype) + (soft - soft.detach())

    def chosen(self, name: str) -> Tensor:
        """B as truth values: σ(b / T) > 1/2 where b > 0."""
        return self.logits[name] > 0

    def density(self) -> float:
        """Share of all components that are kept."""
        chosen = [self.chosen(name) for name in self.logits]
        return sum(int(k.sum()) for k in chosen) / sum(k.numel() for k in chosen)


class ComponentModel(MergedModel):
    """f(x; θ0 + Δ). B of a tensor is its mask. Raises NoDecomposition for a matrix without singular values."""

    def __init__(self, problem: Problem, method: "AdaRank"):
        super().__init__(problem, method, taus=(), loss=method.loss)
        self.components: dict[str, Components] = {}
        self.offset: dict[str, Tensor] = {}  # θ_avg − θ0
        centred = method.start == "cart"
        stored_as: dict[str, Any] = dict(dtype=getattr(torch, method.vectors), device=self.device)
        for name, matrices in matrices_of(problem, method.layout()):
            if centred:
                self.offset[name] = (total(problem.tensors(name)) / len(problem.tasks)).to(self.device)
            if matrices:
                self.components[name] = Components.of([d.svds(d.r, centred) for d in matrices]).to(**stored_as)
            else:
                tau = torch.stack(list(problem.tensors(name))).to(self.device)
                self.taus[name] = (tau - self.offset[name] if centred else tau).to(**stored_as)

    def parts(self, index: int) -> Iterator[Tensor]:
        yield from super().parts(index)
        for components in self.components.values():
            yield components.s[:, index]

    def update(self, name: str, lam: Tensor, mask: Mask = unmasked) -> Tensor:
        """Σ_t λ_t U_t (B_t ∘ Σ_t) V_tᵀ of a tensor with matrices, else Σ_t λ_t τ_t."""
        if name not in self.components:
            delta = super().update(name, lam)
        else:
            components, b = self.components[name], mask(name)
            weights = lam[:, self.layer[name], None] * components.s.to(lam.dtype)  # (matrices, tasks, r)
            delta = components.sum(weights if b is None else weights * b).reshape(self.problem.shapes[name])
        return self.offset[name] + delta if self.offset else delta


@register(
    "adarank",
    title="AdaRank",
    paper="2503.22178",
    stage="methods-adapting",
    needs=IMAGES,
    variants=(Variant("AdaRank, CART", {"start": "cart", "coef": 2.3, "rank": 0.16}, stage="methods-adapting"),),
)
@dataclass
class AdaRank(Adapting, MatrixMethod):
    """AdaRank: λ, and which singular components of each task count, learned at test time.

    rank: share of the components that are on at the start. mask_lr: Adam's rate on b; by default that on λ, lr.
    """

    matrices: str = "blocks"
    start: str = "task_arithmetic"
    rank: float = option(1.0, RANK)
    initial_logit: float = option(0.1, POSITIVE)
    temperature: float = option(10.0, POSITIVE)
    steps: int | None = option(None, NUMBER)
    lr: float | None = option(None, NON_NEGATIVE)
    mask_lr: float | None = option(None, NON_NEGATIVE)
    loss: str = "entropy"

    def merge(self, problem: Problem) -> Merge:
        check_choice("start", self.start, STARTS)
        steps, usual_lr = schedule(problem, self.steps, STEPS, "adarank")
        lr = given(self.lr, max(LR, usual_lr / SHARE))
        mask_lr = given(self.mask_lr, lr)
        method = replace(self, steps=steps, lr=lr, mask_lr=mask_lr)
        model = ComponentModel(problem, method)
        mask, lam = method.mask(model), model.coefficients("layer").requires_grad_()
        adam = torch.optim.Adam([lam], lr)
        mask_adam = torch.optim.Adam(mask.logits.values(), mask_lr)
        adaptation = Adaptation(model, {"mask": steps}, lam, {"lambda": adam, "mask": mask_adam}, mask)

        def step(index: int) -> dict[str, float]:
            adam.zero_grad()
            mask_adam.zero_grad()
            losses = model.backward(lam, [index], mask)
            adam.step()
            mask_adam.step()
            return losses

        adaptation.run("mask", step, lambda: model.vector(lam, mask))
        merge = scaled(problem, model.vector(lam, mask), (1.0,))
        merge.adaptation = adaptation.course(about(mask, problem.tasks))
        return merge

    def mask(self, model: ComponentModel) -> ComponentMask:
        """The mask at its start."""
        logits = {}
        for name, components in model.components.items():
            logits[name] = torch.full_like(components.s, -self.initial_logit, dtype=model.problem.dtype)
            logits[name][..., : share(self.rank, components.s.shape[-1])] = self.initial_logit
            logits[name].requires_grad_()
        if not logits:
            raise UsageError(
                f"adarank: expected matrices that a task has changed; found none with matrices={self.matrices}: "
                f"try method.matrices=all, and look whether the checkpoints are fine-tuned ones"
            )
        return ComponentMask(logits, self.temperature)


def about(mask: ComponentMask, tasks: Sequence[str]) -> dict[str, Any]:
    """What was kept, for the result: shares of the components, of all, by tensor and by task."""
    bits = {name: mask.chosen(name).double() for name in mask.logits}  # (matrices, tasks, r)
    size = sum(b[:, 0].numel() for b in bits.values())
    soft = [torch.sigmoid(b.detach() / mask.temperature) for b in mask.logits.values()]
    return {
        "final": "threshold",
        "density": mask.density(),
        "probability": float(sum(p.sum() for p in soft) / sum(p.numel() for p in soft)),
        "by_tensor": {name: float(b.mean()) for name, b in bits.items()},
        "by_task": {t: float(sum(b[:, index].sum() for b in bits.values())) / size for index, t in enumerate(tasks)},
    }
