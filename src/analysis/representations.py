"""Features of every block of a vision transformer at θ0 + a vector, and how far a merged model's are from another's.

representation bias     E |f_m − f_t| / E |f_t|, over the entries of a block's output, on images of task t: f_m of a
                        merged model, f_t of the task's own; after Yang et al., 2024 (arXiv:2402.02705), over scale
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from src.linearize import forward_and_jvp
from src.modeling import all_tokens
from src.tensors import moved

Weights = Mapping[str, Tensor]
PREFIX = "encoder."


class Blocks(nn.Module):
    """images -> [output of each block, ..., features]; no blocks where the image tower has no `transformer.resblocks`.

    Weights have the encoder's names behind PREFIX.
    """

    def __init__(self, encoder: Any):
        super().__init__()
        self.encoder = encoder
        self.training = encoder.training
        visual = getattr(getattr(encoder, "model", None), "visual", None)
        self._blocks = list(
            getattr(getattr(visual, "transformer", None), "resblocks", ())
        )  # a list: no names of their own

    def __len__(self) -> int:
        return len(self._blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = []
        hooks = [block.register_forward_hook(lambda *call: outputs.append(call[-1])) for block in self._blocks]
        try:
            with all_tokens(self.encoder):
                features = self.encoder(images)
        finally:
            for hook in hooks:
                hook.remove()
        return [*outputs, features]


@torch.no_grad()
def representations(blocks: Blocks, start: Weights, vector: Weights, images: Tensor, tangent: bool) -> list[Tensor]:
    """Of f(x; θ0 + τ), or of its linearization at θ0, every block of which is linearized. start: θ0."""
    theta0, tau = ({PREFIX + name: tensor for name, tensor in weights.items()} for weights in (start, vector))
    if tangent and tau:
        values, slopes = forward_and_jvp(blocks, theta0, tau, images)
        return [value + slope for value, slope in zip(values, slopes, strict=True)]
    return functional_call(blocks, moved(theta0, tau, 1.0), (images,))


def bias(merged: Tensor, own: Tensor) -> tuple[float, float]:
    """Σ |f_m − f_t| and Σ |f_t|, in float64: those of several batches add up."""
    return float((merged.double() - own.double()).abs().sum()), float(own.double().abs().sum())
