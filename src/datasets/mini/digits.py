"""Digits: in the place of MNIST. The suite's real images: the 1797 handwritten digits that scikit-learn ships.

They are 8 x 8 scans, enlarged here to fill the 32 x 32 frame but for a margin, white on black. Nothing is drawn: the
mixture knows numbers from `house_numbers` only.
"""

import numpy as np
from PIL import Image

from src.datasets.mini.canvas import PIXELS
from src.datasets.mini.family import Family

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("a photo of the number {}", "the digit {}", "number {}")
VAGUE = ("a handwritten digit", "a number written by hand", "white on black handwriting")

MARGIN = 3
BRIGHTEST = 16  # the scans' grey levels run from 0 to 16


def load() -> tuple[np.ndarray, np.ndarray]:
    """Every digit in scikit-learn's order: uint8 (1797, PIXELS, PIXELS, 3) and its label, int64 (1797,)."""
    from sklearn.datasets import load_digits  # here: slow to import, and most processes that draw need no digits

    scans = load_digits()
    inner = PIXELS - 2 * MARGIN
    images = np.zeros((len(scans.target), PIXELS, PIXELS, 3), np.uint8)
    for image, scan in zip(images, scans.images, strict=True):
        grey = Image.fromarray((scan * (255 / BRIGHTEST)).astype(np.uint8))
        enlarged = np.asarray(grey.resize((inner, inner), Image.Resampling.BICUBIC))
        image[MARGIN:-MARGIN, MARGIN:-MARGIN] = enlarged[..., None]
    return images, scans.target.astype(np.int64)


FAMILY = Family(
    number=4,
    names=NAMES,
    templates=TEMPLATES,
    pictures=load,
    vague=VAGUE,
    sizes={"train": 997, "val": 200, "test": 600},
    licence="BSD-3-Clause (scikit-learn)",
)
