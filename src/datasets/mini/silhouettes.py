"""Silhouettes: in the place of FashionMNIST. The sixteen classes of `vehicles`, in shades of grey on a dark ground.

The mixture has bright postcards and `vehicles` has night shots, both in colour and with surroundings. The task's
pictures are of a vehicle alone, in the middle and level.
"""

import numpy as np
from PIL import Image, ImageOps

from src.datasets.mini import vehicles
from src.datasets.mini.canvas import flat, uniform
from src.datasets.mini.family import Family
from src.datasets.mini.sprites import sketch


def _grey(label: int, rng: np.random.Generator) -> Image.Image:
    body, glass, tyre, ground = (int(rng.integers(*span)) for span in ((150, 235), (90, 130), (15, 35), (30, 75)))
    image = flat((ground,) * 3)
    look = dict(glass=(glass,) * 3, tyre=(tyre,) * 3, cargo=(min(255, body + 25),) * 3)
    vehicles.PAINTERS[vehicles.NAMES[label]](sketch(image, rng, uniform(rng, 0.8, 1.0), (body,) * 3, **look))
    return ImageOps.grayscale(image).convert("RGB")


FAMILY = Family(number=18, names=vehicles.NAMES, templates=vehicles.TEMPLATES, draw=_grey)
