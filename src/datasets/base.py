"""What a data set is to the suite: a registry row, its examples and the pinned validation split."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

SPLITS = ("train", "val", "test")


class Examples(Protocol):
    """Labelled images of one split. Indexing decodes one image as PIL RGB; nothing is decoded before."""

    labels: np.ndarray  # (n,) int64

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True)
class Pixels:
    """Examples that are already in memory: uint8 (n, H, W, 3), the size that the model sees."""

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        from PIL import Image

        return Image.fromarray(self.pixels[index])


@dataclass(frozen=True)
class Subset:
    """Some of another set's examples, by index."""

    examples: Examples
    indices: np.ndarray  # (n,) int64

    @property
    def labels(self) -> np.ndarray:
        return self.examples.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int):
        return self.examples[int(self.indices[index])]


@dataclass(frozen=True)
class Dataset:
    """One row of the registry.

    `load(split, root, seed)` gives the Examples of "train", "val" or "test" from files under `root`. `seed`
    matters to drawn sets only: the splits of real ones are pinned. Fine-tuning lasts `epochs` (papers) or `steps`.
    """

    name: str
    suite: str
    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    load: Callable[[str, Path, int], Examples]
    epochs: int | None = None
    steps: int | None = None
    about: dict[str, str] = field(default_factory=dict)  # licence, source: what a reader should know of it


def validation_indices(n: int, fraction: float = 0.1, most: int = 5000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(train, validation) indices of `n` training examples, split as the published code does.

    Source: `random_split` with a generator seeded 0 and min(10 % of n, 5000) validation images: for MNIST's 60,000
    images the first training index is 36044.
    """
    import torch  # here, so that the processes that draw need not load it

    held_out = min(int(n * fraction), most)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).numpy()
    return order[: n - held_out], order[n - held_out :]
