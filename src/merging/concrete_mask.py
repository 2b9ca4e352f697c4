"""The Concrete mask: a relaxed binary mask on the weights, shared by all tasks (arXiv:2312.06173, arXiv:1611.00712).

Of two categories with logits x and 0, the Gumbel-max trick draws the first where g_1 + x > g_0, with g standard Gumbel.
g_1 − g_0 is logistic, log u − log(1 − u) with u ~ U(0, 1), so

    m = 1{log u − log(1 − u) + x > 0} ~ Bernoulli(σ(x)),      m̂ = σ((log u − log(1 − u) + x) / T)

and m̂ is differentiable in x; T -> 0 gives m. A mask that is used is divided by its mean, tensor by tensor, so that it
chooses among the weights of a tensor but keeps the size of its update.
"""

from collections.abc import Callable, Iterable

import torch

from src.ranges import POSITIVE, check_value
from src.runtime.seeds import event_seed

# Masks of a finished model, from (mask, name, draw). "seeded", "mean": m̂ of this draw (the published codes take one
# unseeded draw); "binary": m of this draw; "expected": σ(x), the mean of m; "threshold": 1{σ(x) > 1/2}.
FINAL = {
    "seeded": lambda mask, name, draw: mask.relaxed(name, ("final", draw)),
    "mean": lambda mask, name, draw: mask.relaxed(name, ("final", draw)),
    "binary": lambda mask, name, draw: (mask.relaxed(name, ("final", draw)) > 0.5).to(mask.logits[name].dtype),
    "expected": lambda mask, name, draw: torch.sigmoid(mask.logits[name]),
    "threshold": lambda mask, name, draw: (mask.logits[name] > 0).to(mask.logits[name].dtype),
}


def concrete(x: torch.Tensor, u: torch.Tensor, temperature: float) -> torch.Tensor:
    """m̂ of logits x and uniform draws u."""
    return torch.sigmoid((torch.logit(u) + x) / temperature)


def rescaled(mask: torch.Tensor) -> torch.Tensor:
    """m / mean(m); a mask of nothing but zeros stays."""
    return mask / mask.mean().clamp(min=torch.finfo(mask.dtype).tiny)


class ConcreteMask:
    """Logits by name of the weights, and the masks drawn from them, not yet rescaled.

    A draw is a function of (seed, draw, name) and of the kind of device, whose own generator draws it: the CPU's would
    take longer over a large model's numbers than a GPU over the rest of a step. Draws are made again where they are
    needed, and never kept. Raises UsageError unless temperature > 0.
    """

    def __init__(self, logits: dict[str, torch.Tensor], temperature: float, seed: int):
        check_value("temperature", temperature, POSITIVE)
        self.logits, self.temperature, self.seed = logits, temperature, seed

    def relaxed(self, name: str, draw) -> torch.Tensor:
        """m̂; draw: anything that tells one draw from another."""
        x = self.logits[name]
        generator = torch.Generator(x.device).manual_seed(event_seed(self.seed, "mask", draw, name))
        u = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return concrete(x, u, self.temperature)

    def sample(self, draw) -> Callable[[str], torch.Tensor | None]:
        """name -> the rescaled m̂; None for weights that have no logits."""
        return lambda name: rescaled(self.relaxed(name, draw)) if name in self.logits else None

    @torch.no_grad()
    def final(self, name: str, kind: str, draw: int = 0) -> torch.Tensor:
        """The mask of a finished model; kind: see FINAL."""
        return FINAL[kind](self, name, draw)

    @torch.no_grad()
    def density(self) -> float:
        """Mean of σ(x) over all weights."""
        return mean_of(torch.sigmoid(x) for x in self.logits.values())


def mean_of(masks: Iterable[torch.Tensor]) -> float:
    """Mean over all weights, each weight counting once."""
    total, count = 0.0, 0
    for mask in masks:
        total, count = total + mask.sum(dtype=torch.float64).item(), count + mask.numel()
    return total / count
