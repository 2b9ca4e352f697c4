"""What a data set is to the suite: a registry row, its examples and the pinned validation split."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

SPLITS = ("train", "val", "test")


class FileExamples(Protocol):
    """Labelled images of one split in files. Indexing decodes one image as PIL RGB; nothing is decoded before."""

    @property
    def labels(self) -> np.ndarray: ...  # (n,) int64

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Image.Image: ...

    def name(self, index: int) -> str:
        """How to call an image in a message."""

    def raw(self, index: int) -> bytes:
        """The undecoded bytes of an image, for the leak check."""

    def identity(self) -> str:
        """A hash that changes when the files do, made without reading them, for the image cache."""


class PixelArray(Protocol):
    """What is read of an array of images, uint8 (n, H, W, 3): a NumPy array, or what makes its images when asked."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int | slice | np.ndarray, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Pixels:
    """Examples that are decoded, in the size that the model sees."""

    pixels: PixelArray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])


Examples = Pixels | FileExamples


@dataclass(frozen=True)
class Dataset:
    """One row of the registry.

    `load(split, root, seed)` gives the Examples of "train", "val" or "test" from files under `root`. `seed`
    matters to drawn sets only: the splits of real ones are pinned. Fine-tuning lasts `epochs` (papers) or `steps`.
    names_of: the class names of heads that another publisher's checkpoints were fine-tuned against, where they differ.
    """

    name: str
    suite: str
    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    load: Callable[[str, Path, int], Examples]
    epochs: int | None = None
    steps: int | None = None
    about: dict[str, str] = field(default_factory=dict)  # licence, source: what a reader should know of it
    names_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def names(self, publisher: str | None) -> tuple[str, ...]:
        """The class names that heads are made of for a publisher's checkpoints; None: for those fine-tuned here."""
        return self.names_of.get(publisher or "", self.classnames)


def validation_indices(n: int, fraction: float = 0.1, most: int = 5000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(train, validation) indices of `n` training examples, split as the published code does.

    Source: `random_split` with a generator seeded 0 and min(10 % of n, 5000) validation images: for MNIST's 60,000
    images the first training index is 36044.
    """
    import torch  # here, so that the processes that draw need not load it

    held_out = min(int(n * fraction), most)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).numpy()
    return order[: n - held_out], order[n - held_out :]
