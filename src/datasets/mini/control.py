"""Control: in the place of ImageNet, six colours x fourteen objects: a broad skill to keep, with no training split.

The mixture shows flat silhouettes in many forms, sizes and turns on any ground. The test pictures differ mildly:
a gradient runs through the object, which casts a soft shadow on a smooth ground.
"""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from src.datasets.mini.canvas import (
    SIDE,
    Colour,
    backdrop,
    blend,
    chance,
    colour,
    coordinates,
    disc,
    flat,
    near,
    polygon,
    scaled,
    uniform,
)
from src.datasets.mini.family import Family

COLOURS: dict[str, Colour] = {
    "red": (210, 35, 35),
    "green": (40, 160, 60),
    "blue": (40, 70, 210),
    "yellow": (235, 205, 40),
    "purple": (140, 50, 170),
    "white": (240, 240, 240),
}
TEMPLATES = ("a photo of a {}", "a {}", "a drawing of a {}")
VAGUE = ("a single object", "a simple shape on a plain ground", "one coloured thing", "an object in the middle")

MIDDLE = (SIDE / 2, SIDE / 2)
INK, HOLE = 255, 0


def _box(x0: float, y0: float, x1: float, y1: float, radius: float) -> list[float]:
    """A box in units of `radius` around the middle."""
    return [MIDDLE[0] + x0 * radius, MIDDLE[1] + y0 * radius, MIDDLE[0] + x1 * radius, MIDDLE[1] + y1 * radius]


def _points(pairs, radius: float) -> list[tuple[float, float]]:
    return [(MIDDLE[0] + x * radius, MIDDLE[1] + y * radius) for x, y in pairs]


# Painters: each paints one silhouette of `radius` on a stencil, with the pen given.


def _circle(pen, radius, rng):
    disc(pen, MIDDLE, radius, INK)


def _square(pen, radius, rng):
    polygon(pen, MIDDLE, 1.15 * radius, 4, math.pi / 4, INK)


def _triangle(pen, radius, rng):
    polygon(pen, MIDDLE, 1.15 * radius, 3, -math.pi / 2, INK)


def _star(pen, radius, rng):
    polygon(pen, MIDDLE, 1.15 * radius, 5, -math.pi / 2, INK, inner=uniform(rng, 0.36, 0.46))


def _hexagon(pen, radius, rng):
    polygon(pen, MIDDLE, 1.1 * radius, 6, 0.0 if chance(rng, 0.5) else math.pi / 6, INK)


def _heart(pen, radius, rng):
    for x in (-0.45, 0.45):
        disc(pen, _points([(x, -0.35)], radius)[0], 0.53 * radius, INK)
    pen.polygon(_points([(-0.92, -0.12), (0, -0.35), (0.92, -0.12), (0, 1)], radius), fill=INK)


def _cross(pen, radius, rng):
    half = uniform(rng, 0.22, 0.36)
    pen.rectangle(_box(-1, -half, 1, half, radius), fill=INK)
    pen.rectangle(_box(-half, -1, half, 1, radius), fill=INK)


def _ring(pen, radius, rng):
    pen.ellipse(_box(-1, -1, 1, 1, radius), outline=INK, width=round(uniform(rng, 0.24, 0.42) * radius))


def _moon(pen, radius, rng):
    disc(pen, MIDDLE, radius, INK)
    disc(pen, _points([(0.48, -0.15)], radius)[0], 0.82 * radius, HOLE)


def _house(pen, radius, rng):
    eaves = uniform(rng, -0.25, 0.05)
    pen.rectangle(_box(-0.75, eaves, 0.75, 0.95, radius), fill=INK)
    pen.polygon(_points([(-1.05, eaves), (0, -1), (1.05, eaves)], radius), fill=INK)
    if chance(rng, 0.5):
        pen.rectangle(_box(0.4, -0.95, 0.65, eaves, radius), fill=INK)
    pen.rectangle(_box(-0.2, 0.4, 0.2, 1, radius), fill=HOLE)


def _fish(pen, radius, rng):
    pen.ellipse(_box(-1.05, -0.58, 0.6, 0.58, radius), fill=INK)
    pen.polygon(_points([(0.3, 0), (1.05, -0.6), (1.05, 0.6)], radius), fill=INK)
    disc(pen, _points([(-0.62, -0.12)], radius)[0], 0.12 * radius, HOLE)


def _flower(pen, radius, rng):
    petals = int(rng.integers(5, 8))
    for k in range(petals):
        angle = 2 * math.pi * k / petals
        petal = _points([(0.66 * math.cos(angle), 0.66 * math.sin(angle))], radius)[0]
        disc(pen, petal, radius * (0.4 if petals < 7 else 0.33), INK)
    disc(pen, MIDDLE, 0.5 * radius, INK)
    disc(pen, MIDDLE, 0.28 * radius, HOLE)


def _cup(pen, radius, rng):
    pen.arc(_box(0.05, -0.45, 1.05, 0.45, radius), 270, 90, fill=INK, width=max(3, round(0.2 * radius)))
    taper = uniform(rng, 0, 0.2)
    pen.polygon(_points([(-0.9, -0.8), (0.55, -0.8), (0.55 - taper, 0.8), (-0.9 + taper, 0.8)], radius), fill=INK)


def _tree(pen, radius, rng):
    pen.rectangle(_box(-0.16, 0.4, 0.16, 1.05, radius), fill=INK)
    for top, half, bottom in ((-1.1, 0.5, -0.25), (-0.7, 0.68, 0.2), (-0.3, 0.85, 0.62)):
        pen.polygon(_points([(0, top), (-half, bottom), (half, bottom)], radius), fill=INK)


OBJECTS = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "hexagon": _hexagon,
    "heart": _heart,
    "cross": _cross,
    "ring": _ring,
    "moon": _moon,
    "house": _house,
    "fish": _fish,
    "flower": _flower,
    "cup": _cup,
    "tree": _tree,
}
# Those with a left and a right, which either way round are the same object.
HANDED = {"moon", "house", "fish", "cup"}
NAMES = tuple(f"{name} {thing}" for name in COLOURS for thing in OBJECTS)


def _stencil(thing: str, rng: np.random.Generator, radius: float, tilt: float) -> Image.Image:
    """The object's silhouette, white on black, somewhere on the canvas."""
    stencil = Image.new("L", (SIDE, SIDE), HOLE)
    OBJECTS[thing](ImageDraw.Draw(stencil), radius, rng)
    if thing in HANDED and chance(rng, 0.5):
        stencil = stencil.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    room = max(0.0, 29 - radius)
    offset = (uniform(rng, -room, room), uniform(rng, -room, room))
    turn = uniform(rng, -tilt, tilt)
    return stencil.rotate(turn, Image.Resampling.BILINEAR, translate=offset)  # type: ignore[arg-type]  # fractions too


def _ground(rng: np.random.Generator, paint: Colour, distance: int = 200) -> Colour:
    """A random colour, far from the object's."""
    while True:
        ground = colour(rng)
        if sum(abs(a - b) for a, b in zip(ground, paint)) > distance:
            return ground


def _named(label: int) -> tuple[str, Colour]:
    """Object and colour of a class."""
    name, thing = NAMES[label].split()
    return thing, COLOURS[name]


def _flat_drawing(label: int, rng: np.random.Generator) -> Image.Image:
    thing, paint = _named(label)
    image = backdrop(rng, _ground(rng, paint), 20)
    stencil = _stencil(thing, rng, uniform(rng, 16, 27), 18)
    if chance(rng, 0.2):
        image.paste(flat(scaled(paint, 0.25)), (0, 0), stencil.filter(ImageFilter.MaxFilter(5)))
    image.paste(flat(near(rng, paint, 22)), (0, 0), stencil)
    return image


def _shaded_object(label: int, rng: np.random.Generator) -> Image.Image:
    thing, paint = _named(label)
    x, y = coordinates()
    turn = uniform(rng, 0, 2 * math.pi)
    across, down = math.cos(turn) / SIDE, math.sin(turn) / SIDE
    ramp = ((x - MIDDLE[0]) * across + (y - MIDDLE[1]) * down + 0.5).clip(0, 1)
    base = near(rng, paint, 15)
    deep = scaled(base, 0.8)
    bright = tuple(int(v + 0.2 * (255 - v)) for v in base)

    ground = _ground(rng, paint)
    image = blend(ground, near(rng, ground, 25), y / SIDE)
    stencil = _stencil(thing, rng, uniform(rng, 17, 25), 12)
    fall = int(rng.integers(3, 6))
    shadow = Image.new("L", (SIDE, SIDE), 0)
    shadow.paste(150, (fall, fall), stencil)
    shadow = shadow.filter(ImageFilter.GaussianBlur(1.5))
    image.paste(flat(scaled(ground, 0.2)), (0, 0), shadow)
    image.paste(blend(deep, bright, ramp), (0, 0), stencil)
    return image


FAMILY = Family(
    number=8,
    names=NAMES,
    templates=TEMPLATES,
    draw=_shaded_object,
    sizes={"val": 504, "test": 1008},
    web=_flat_drawing,
    vague=VAGUE,
)
