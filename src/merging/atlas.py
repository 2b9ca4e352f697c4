"""aTLAS: coefficients learned on labels (Zhang et al., 2024, arXiv:2407.02880).

    θ = θ0 + Σ_t λ_t τ_t,    min over λ of Σ_t mean_x −log p(y|x) on labelled validation images, and λ decayed

with one λ per task and tensor, from 0, by AdamW with weight decay 0.1 and the gradient's norm clipped to 1. What
AdaMerging's coefficients can do at most, when labels take the place of the entropy. No label of a test image is seen.

Published: 20 epochs of the smallest validation set in batches of 16 images a task, which for the 8 tasks is DTD's 376
images, 480 steps. The released code then takes the epoch with the best accuracy on the images that it learned from;
here the last step counts.
"""

from dataclasses import dataclass, replace

import torch

from src.merging.adamerging import descended
from src.merging.adaptation import LABELS, Adapting, MergedModel, schedule
from src.merging.base import Merge, Problem
from src.merging.registry import register
from src.ranges import FINITE, NON_NEGATIVE, NUMBER, POSITIVE, given, option

STEPS = 480


@register("atlas", title="aTLAS", paper="2407.02880", needs=LABELS, stage="methods-adapting")
@dataclass
class Atlas(Adapting):
    adapt_on: str = "val"
    coef: float = option(0.0, FINITE)
    granularity: str = "layer"
    steps: int | None = option(None, NUMBER)
    lr: float | None = option(None, NON_NEGATIVE)
    weight_decay: float = option(0.1, NON_NEGATIVE)
    clip: float = option(1.0, POSITIVE)

    def merge(self, problem: Problem) -> Merge:
        steps, usual_lr = schedule(problem, self.steps, STEPS, "adamerging")
        lr = given(self.lr, usual_lr)
        model = MergedModel(problem, replace(self, steps=steps, lr=lr), loss="labels")
        lam = model.coefficients(self.granularity).requires_grad_()
        adam = torch.optim.AdamW([lam], lr, weight_decay=self.weight_decay)
        return descended(model, lam, adam, steps, clip=self.clip)
