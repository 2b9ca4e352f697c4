"""Thumbnails: in the place of CIFAR10. Ten things, nine of which `toys` has too, on 16 x 16 pixels.

The mixture shows each in its own family's way. The task's pictures are small things, dark or pale, before a landscape,
at half the resolution and in twelve colours.
"""

import numpy as np
from PIL import Image

from src.datasets.mini.canvas import SIDE, blend, chance, clouds, colour, coordinates, near, uniform
from src.datasets.mini.family import Family
from src.datasets.mini.sprites import silhouette
from src.datasets.mini.toys import TEMPLATES

NAMES = ("airplane", "sedan", "bus", "fish", "house", "tree", "flower", "cup", "umbrella", "tractor")


def _tiny(label: int, rng: np.random.Generator) -> Image.Image:
    _, y = coordinates()
    sky, land = near(rng, (120, 140, 165), 30), near(rng, (110, 115, 85), 30)
    horizon = uniform(rng, 26, 46)
    image = blend(sky, land, ((y - horizon) / 6 + 0.5).clip(0, 1))
    image = blend(image, colour(rng), 0.4 * clouds(rng, 8))
    shape = silhouette(NAMES[label], rng, uniform(rng, 34, 46))
    paint = colour(rng, 0, 80) if chance(rng, 0.5) else colour(rng, 180, 255)
    image.paste(blend(paint, near(rng, paint, 40), clouds(rng, 3)), (0, 0), shape)
    return (
        image.resize((16, 16), Image.Resampling.BOX)
        .quantize(12)
        .convert("RGB")
        .resize((SIDE, SIDE), Image.Resampling.NEAREST)
    )


FAMILY = Family(number=16, names=NAMES, templates=TEMPLATES, draw=_tiny)
