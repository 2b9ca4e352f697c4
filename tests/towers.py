"""Small networks for identities that hold exactly."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

Tower = TypeVar("Tower", bound=nn.Module)


def perturbed(make: Callable[[], Tower]) -> Tower:
    """A network in float64, none of whose weights is 0 or 1, as those of a new LayerNorm are."""
    torch.manual_seed(0)
    made = make().double().eval()
    for weight in made.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    return made
