"""Seeds that name an event: the same on every machine, in every process, in whatever order things happen."""

import hashlib
import math
from functools import lru_cache

import numpy as np
import torch


def event_seed(*event) -> int:
    """A seed of 63 bits from anything that names an event."""
    return int.from_bytes(hashlib.sha256(repr(event).encode()).digest()[:8], "big") >> 1


def batch_indices(n: int, batch_size: int, number: int, seed: int) -> np.ndarray:
    """Indices of the `number`-th batch: every epoch is a fresh permutation whose last batch may be smaller."""
    epoch, batch = divmod(number, math.ceil(n / batch_size))
    return _order(n, seed, epoch)[batch * batch_size : (batch + 1) * batch_size].copy()


@lru_cache(maxsize=32)  # of this epoch and the next, of as many tasks as take turns
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    return torch.randperm(n, generator=torch.Generator().manual_seed(event_seed(seed, "epoch", epoch))).numpy()
