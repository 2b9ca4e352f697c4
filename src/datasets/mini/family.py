"""What a file of this folder says of the set that it draws."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

Painter = Callable[[int, np.random.Generator], Image.Image]  # draws a picture of the class with this label

SIZES = {"train": 2000, "val": 400, "test": 1000}  # images per split


@dataclass(frozen=True)
class Family:
    """A task or the control set: `FAMILY` of a file in this folder, under whose name the registry lists it.

    Its pictures are drawn by `draw`, on a canvas of 64 x 64, or are the real ones that `pictures` gives: uint8
    (n, 32, 32, 3) and their labels, int64 (n,), which the seed deals to the splits.
    """

    number: int  # place in the suite's order, and part of the seed of its drawings: a new task takes the next
    names: tuple[str, ...]
    templates: tuple[str, ...]
    draw: Painter | None = None
    pictures: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None
    sizes: Mapping[str, int] = field(default_factory=SIZES.copy)  # without "train" it is no task
    web: Painter | None = None  # the family's look in the pre-training mixture, where that has it
    vague: tuple[str, ...] = ()  # captions that fit every class
    licence: str = "drawn by this project (MIT)"
