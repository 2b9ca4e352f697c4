"""AdaMerging: coefficients learned at test time (Yang et al., 2024, arXiv:2310.02575).

    θ = θ0 + Σ_t λ_t τ_t,        min over λ of the entropy of the predictions on unlabelled images

with one λ per task (`granularity=task`) or per task and tensor (`layer`), by Adam from 0.3. AdaMerging++ takes the τ_t
after TIES's trimming and election: the k % with the largest magnitude, without those whose sign lost.

`loss` takes another loss in the place of the entropy (see adaptation.py): `expert`, the soft labels of each task's own
model, is SyMerge's objective (Jung et al., 2024, arXiv:2412.19098), which trains the heads beside λ; its released code
takes the expert's most likely class, `expert_class`, and leaves out the images where the merged model is surer of
another one. `labels` takes those of validation images and needs `adapt_on=val`.

`variant=original`: 500 steps of two batches of 16 per task, λ clamped to [0, 1]; `fusion_bench`: 1000 steps of one, not
clamped. Options that are None have the variant's values.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from src.merging.adaptation import IMAGES, Adapting, MergedModel, schedule, stacked
from src.merging.base import Merge, Problem, Variant, scaled
from src.merging.registry import register
from src.merging.steps import Adaptation
from src.merging.ties import magnitude_threshold
from src.ranges import COUNT, NON_NEGATIVE, NUMBER, PERCENT, check_choice, given, option


@dataclass(frozen=True)
class Published:
    """What a released code does."""

    steps: int
    batches: int
    clamp: bool


VARIANTS = {"original": Published(500, 2, clamp=True), "fusion_bench": Published(1000, 1, clamp=False)}
TASK_WISE = {"granularity": "task"}


def descended(
    model: MergedModel,
    lam: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    steps: int,
    batches: int = 1,
    clip: float = math.inf,
) -> Merge:
    """The merge with the λ that `steps` steps reach, each on `batches` batches. clip: largest norm of the gradient."""
    adaptation = Adaptation(model, {"lambda": steps}, lam, {"lambda": optimizer})

    def step(index: int) -> dict[str, float]:
        optimizer.zero_grad()
        losses = model.backward(lam, range(index * batches, (index + 1) * batches))
        if clip < math.inf:
            torch.nn.utils.clip_grad_norm_([lam], clip)
        optimizer.step()
        return losses

    adaptation.run("lambda", step, lambda: model.vector(lam))
    merge = scaled(model.problem, model.vector(lam), (1.0,))
    merge.adaptation = adaptation.course()
    return merge


@register(
    "adamerging",
    title="AdaMerging, layer-wise",
    paper="2310.02575",
    published={
        "concrete": "LW AM",
        "concrete:generalisation": "AdaMerging",
        "fusionbench:robustness": "Layer-wise AdaMerging",
        "WUDI-Merging": "AdaMerging",
        "CART": "AdaMerging + TA",
    },
    stage="adaptation",
    compared=True,
    needs=IMAGES,
    variants=(
        Variant("AdaMerging, task-wise", TASK_WISE, {"concrete": "TW AM"}, "adaptation"),
        Variant("AdaMerging, layer-wise, expert labels", {"loss": "expert"}, stage="methods-adapting"),
    ),
)
@dataclass
class AdaMerging(Adapting):
    granularity: str = "layer"
    variant: str = "original"
    steps: int | None = option(None, NUMBER)
    lr: float | None = option(None, NON_NEGATIVE)
    batches: int | None = option(None, COUNT)
    clamp: bool | None = None
    loss: str = "entropy"

    def merge(self, problem: Problem) -> Merge:
        check_choice("variant", self.variant, VARIANTS)
        published = VARIANTS[self.variant]
        steps, usual_lr = schedule(problem, self.steps, published.steps, "adamerging")
        lr = given(self.lr, usual_lr)
        batches, clamp = given(self.batches, published.batches), given(self.clamp, published.clamp)
        method = replace(self, steps=steps, lr=lr, batches=batches, clamp=clamp)
        model = MergedModel(problem, method, clamp, self.task_vectors(problem), self.loss)
        lam = model.coefficients(self.granularity).requires_grad_()
        return descended(model, lam, torch.optim.Adam([lam], lr), steps, batches)

    def task_vectors(self, problem: Problem) -> Iterable[tuple[str, torch.Tensor]]:
        """Each tensor's name and its τ_t, (tasks, *shape)."""
        return stacked(problem)


@register(
    "adamerging_pp",
    "adamerging++",
    title="AdaMerging++, layer-wise",
    paper="2310.02575",
    published={"concrete": "LW AM++", "concrete:generalisation": "AdaMerging++", "WUDI-Merging": "AdaMerging++"},
    stage="adaptation-more",
    needs=IMAGES,
    variants=(Variant("AdaMerging++, task-wise", TASK_WISE, {"concrete": "TW AM++"}, "adaptation-more"),),
)
@dataclass
class AdaMergingPP(AdaMerging):
    """AdaMerging++: AdaMerging of vectors that TIES has trimmed and elected.

    k: percent of each τ_t that is kept.
    """

    trims = True

    k: float = option(20.0, PERCENT)

    def task_vectors(self, problem: Problem) -> Iterable[tuple[str, torch.Tensor]]:
        thresholds = [magnitude_threshold(problem, task, self.k) for task in problem.tasks]
        return elected(dict(stacked(problem)), thresholds).items()


def elected(taus: dict[str, torch.Tensor], thresholds: list[float]) -> dict[str, torch.Tensor]:
    """The entries that TIES merges, changed in place: those of its magnitude threshold whose sign is γ."""
    balance = 0
    for tau in taus.values():  # (tasks, *shape)
        for one, threshold in zip(tau, thresholds):
            one *= one.abs() >= threshold
        balance += int(tau.sum(0).sign().sum(dtype=torch.float64))
    for tau in taus.values():
        gamma = tau.sum(0).sign()
        positive = (gamma > 0) | ((gamma == 0) & (balance > 0))
        tau *= torch.where(positive, tau > 0, tau < 0)
    return taus
