"""Toys: in the place of STL10. Ten things of three families of the mixture, nine of which `thumbnails` has too.

The mixture shows each in its own family's way. The task's pictures are felt cut-outs, large, sewn with a pale seam on
cloth of another colour.
"""

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from src.datasets.mini.canvas import SIDE, blend, clouds, contrasting, near, uniform
from src.datasets.mini.family import Family
from src.datasets.mini.sprites import silhouette

NAMES = ("airplane", "sedan", "bus", "fish", "house", "tree", "flower", "cup", "umbrella", "anchor")
TEMPLATES = ("a photo of a {}", "a picture of a {}", "a drawing of a {}")


def _felt(label: int, rng: np.random.Generator) -> Image.Image:
    cloth, paint = contrasting(rng, 90)
    weave = 0.5 + 0.5 * (np.indices((SIDE, SIDE)).sum(0) % 2)
    image = blend(cloth, near(rng, cloth, 50), clouds(rng, 5) * weave)
    shape = silhouette(NAMES[label], rng, uniform(rng, 46, 56))
    fall = int(rng.integers(2, 4))
    shadow = ImageChops.offset(shape, fall, fall).filter(ImageFilter.GaussianBlur(1.5))
    image.paste((0, 0, 0), (0, 0), shadow.point(lambda v: v // 2))
    felt = blend(paint, tuple(int(0.7 * v) for v in paint), rng.random((SIDE, SIDE), np.float32) * 0.7)
    image.paste(felt, (0, 0), shape)
    seam = ImageChops.subtract(shape.filter(ImageFilter.MinFilter(3)), shape.filter(ImageFilter.MinFilter(7)))
    image.paste(tuple(int(v + 0.6 * (255 - v)) for v in paint), (0, 0), seam)
    return image


FAMILY = Family(number=10, names=NAMES, templates=TEMPLATES, draw=_felt)
