"""What a training tells of itself: numbers that stay on the device until somebody looks, so that no step waits."""

import math

import torch
from torch import Tensor


class Tally:
    """Losses, gradients' norms and counts of right images, step by step.

    last_step: that was added. loss: the sum of all that were looked at; last_loss: the last of them.
    """

    def __init__(self) -> None:
        self.last_step = -1
        self.loss = self.last_loss = 0.0
        self._correct = self._seen = 0
        self._steps: list[int] = []
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._counts: list[Tensor] = []

    @property
    def accuracy(self) -> float:
        """Of all images that were looked at, in [0, 1]."""
        return self._correct / max(1, self._seen)

    def count(self, correct: Tensor, seen: Tensor) -> None:
        """Images of a forward pass: those that are right, and all."""
        self._counts += [correct, seen]

    def add(self, step: int, loss: Tensor, norm: Tensor) -> None:
        self.last_step = step
        self._steps.append(step)
        self._losses.append(loss)
        self._norms.append(norm)

    def look(self) -> tuple[int, float] | None:
        """Wait for the device and take its numbers in; the first step with one that is not finite, and its loss."""
        if not self._losses:
            return None
        numbers = torch.cat([torch.stack(part).double() for part in (self._losses, self._norms, self._counts) if part])
        values, n = numbers.tolist(), len(self._losses)
        losses, norms, counts = values[:n], values[n : 2 * n], values[2 * n :]
        self.loss += sum(losses)
        self.last_loss = losses[-1]
        self._correct += int(sum(counts[::2]))
        self._seen += int(sum(counts[1::2]))
        broken = [
            (step, loss)
            for step, loss, norm in zip(self._steps, losses, norms)
            if not (math.isfinite(loss) and math.isfinite(norm))
        ]
        self._steps, self._losses, self._norms, self._counts = [], [], [], []
        return broken[0] if broken else None
