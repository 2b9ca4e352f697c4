"""Biscuits: in the place of Food101, many classes: thirteen shapes in four icings, whose names the control set has too.

The control set and the mixture show one large thing of a colour. The task's pictures are baked: a biscuit of the shape
with a brown rim and uneven icing, on a round plate on a cloth.
"""

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from src.datasets.mini import control
from src.datasets.mini.canvas import SIDE, backdrop, blend, clouds, colour, disc, near, uniform
from src.datasets.mini.family import Family
from src.datasets.mini.sprites import silhouette

ICINGS = ("red", "green", "yellow", "white")
SHAPES = tuple(thing for thing in control.OBJECTS if thing != "hexagon")  # baked, it passes for a circle
NAMES = tuple(f"{icing} {shape}" for icing in ICINGS for shape in SHAPES)
DOUGH, BAKED = (165, 110, 60), (95, 55, 30)


def _on_plate(label: int, rng: np.random.Generator) -> Image.Image:
    icing, thing = NAMES[label].split()
    image = backdrop(rng, colour(rng, 60, 200), 30)
    pen = ImageDraw.Draw(image)
    china = near(rng, (120, 135, 165), 20)
    middle = SIDE / 2 + uniform(rng, -4, 4), SIDE / 2 + uniform(rng, -4, 4)
    disc(pen, middle, 31, tuple(v + 50 for v in china))
    disc(pen, middle, 28, china)
    shape = silhouette(thing, rng, uniform(rng, 38, 44), tilt=14)
    shape = ImageChops.offset(shape, *(int(v) for v in rng.integers(-2, 3, 2)))
    image.paste(blend(near(rng, DOUGH, 15), BAKED, clouds(rng, 7)), (0, 0), shape.filter(ImageFilter.MaxFilter(5)))
    paint = near(rng, control.COLOURS[icing], 20)
    image.paste(blend(paint, tuple(int(0.7 * v) for v in paint), clouds(rng, 5)), (0, 0), shape)
    return image


FAMILY = Family(number=17, names=NAMES, templates=control.TEMPLATES, draw=_on_plate)
