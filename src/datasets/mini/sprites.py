"""Objects, symbols and vehicles of other families, cut out for pictures that set them on grounds of their own."""

import numpy as np
from PIL import Image, ImageDraw

from src.datasets.mini import control, vehicles
from src.datasets.mini.canvas import SIDE, Colour, chance, font, near, stencil, uniform
from src.datasets.mini.extras import SYMBOLS

MIDDLE = (SIDE / 2, SIDE / 2)
SYMBOL = {name: symbol for symbol, name in SYMBOLS.items()}


def silhouette(name: str, rng: np.random.Generator, size: float, tilt: float = 10) -> Image.Image:
    """The shape of an object of the control set, a symbol or a vehicle, in the middle, about `size` pixels large.

    White on black, turned by up to `tilt` degrees. The windows of a vehicle are holes.
    """
    if name in control.OBJECTS:
        shape = Image.new("L", (SIDE, SIDE))
        control.OBJECTS[name](ImageDraw.Draw(shape), size / 2, rng)
    elif name in vehicles.PAINTERS:
        key = (255, 0, 255)  # a colour that no vehicle has
        image = Image.new("RGB", (SIDE, SIDE), key)
        vehicles.PAINTERS[name](sketch(image, rng, size / 60, (128, 128, 128), glass=key))
        shape = Image.fromarray((np.asarray(image) != key).any(-1).astype(np.uint8) * 255)
    else:
        left, top, right, bottom = font("DejaVuSans", 100).getbbox(SYMBOL[name])
        face = font("DejaVuSans", round(100 * size / max(right - left, bottom - top)))
        return stencil(SYMBOL[name], MIDDLE, face, uniform(rng, -tilt, tilt))
    return shape.rotate(uniform(rng, -tilt, tilt), Image.Resampling.BILINEAR)


def sketch(image: Image.Image, rng: np.random.Generator, scale: float, paint: Colour, **more) -> vehicles.Sketch:
    """What a painter of `vehicles` draws with: by day, in the middle of `image`, level, facing either way."""
    settings = dict(
        origin=(SIDE / 2, SIDE / 2 + 14 * scale),
        facing=1 if chance(rng, 0.5) else -1,
        tilt=0.0,
        cargo=near(rng, (200, 200, 205), 25),
        glass=near(rng, (165, 205, 230), 25),
        tyre=near(rng, (30, 30, 32), 15),
        outline=None,
        night=False,
    )
    return vehicles.Sketch(pen=ImageDraw.Draw(image), rng=rng, scale=scale, paint=paint, **settings | more)
