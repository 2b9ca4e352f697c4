"""Tissue: in the place of PCAM, two classes that only the middle of the picture tells apart.

The mixture and `textures` fill the picture with one pattern. The task's pictures are stained slides, purple on pink:
the middle is polka dotted or honeycombed, and the surrounding is either of the two, whatever the label.
"""

import numpy as np
from PIL import Image, ImageFilter

from src.datasets.mini import textures
from src.datasets.mini.canvas import SIDE, blend, clouds, near, uniform
from src.datasets.mini.family import Family

NAMES = ("polka dotted", "honeycombed")
PINK, PURPLE = (238, 200, 222), (120, 50, 140)


def _slide(label: int, rng: np.random.Generator) -> Image.Image:
    middle, around = (textures.heights(textures.NAMES.index(NAMES[k]), rng) for k in (label, int(rng.integers(2))))
    inside = np.zeros((SIDE, SIDE), bool)
    margin = 12
    inside[margin:-margin, margin:-margin] = True
    cells = np.where(inside, middle, around)
    stain = cells * (0.6 + 0.4 * clouds(rng, 6)) * uniform(rng, 0.6, 0.95)
    image = blend(near(rng, PINK, 14), near(rng, PURPLE, 22), stain)
    return image.filter(ImageFilter.GaussianBlur(uniform(rng, 0.5, 1.2)))


FAMILY = Family(number=13, names=NAMES, templates=textures.TEMPLATES, draw=_slide)
