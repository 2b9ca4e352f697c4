"""Garden: in the place of Flowers102. Flowers and trees of six colours, whose names the control set has too.

The control set and the mixture show one large thing of a colour. The task's pictures are beds: rows of plants on a
green ground, in the reddish light of an evening or the bluish light of a morning.
"""

import numpy as np
from PIL import Image

from src.datasets.mini import control
from src.datasets.mini.canvas import blend, clouds, flat, near, pick, uniform
from src.datasets.mini.family import Family
from src.datasets.mini.sprites import silhouette

NAMES = tuple(f"{colour} {thing}" for colour in control.COLOURS for thing in ("flower", "tree"))
LIGHTS = ((1.0, 0.85, 0.75), (0.8, 0.88, 1.0))


def _bed(label: int, rng: np.random.Generator) -> Image.Image:
    colour, thing = NAMES[label].split()
    image = blend(near(rng, (70, 95, 55), 15), near(rng, (110, 100, 60), 20), clouds(rng, 9))
    step, start = uniform(rng, 36, 46), rng.uniform(-36, 0, 2)
    for row in range(3):
        for column in range(3):
            size = int(uniform(rng, 0.8, 1.0) * step)
            plant = silhouette(thing, rng, 60, tilt=20).resize((size, size), Image.Resampling.BILINEAR)
            x = start[0] + (column - 0.5 * (row % 2)) * step
            y = start[1] + row * step
            image.paste(flat(near(rng, control.COLOURS[colour], 25)).resize(plant.size), (int(x), int(y)), plant)
    light = np.array(pick(rng, LIGHTS), np.float32) * uniform(rng, 0.8, 1.1)
    return Image.fromarray((np.asarray(image, np.float32) * light).clip(0, 255).astype(np.uint8))


FAMILY = Family(number=11, names=NAMES, templates=control.TEMPLATES, draw=_bed)
