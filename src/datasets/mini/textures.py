"""Textures: in the place of DTD. Sixteen patterns, each a field of heights in [0, 1] on the canvas.

The mixture shows a field as flat graphics in two colours, at any angle that leaves its name true, over the whole
canvas or on a swatch. The task carves the same fields into stone and clay: a relief in one warm tone, lit from a side.
"""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from src.datasets.mini.canvas import (
    SIDE,
    backdrop,
    blend,
    chance,
    clouds,
    colour,
    contrasting,
    coordinates,
    near,
    pick,
    uniform,
)
from src.datasets.mini.family import Family

TEMPLATES = ("a photo of a {} texture", "a {} pattern", "{} texture")
VAGUE = ("a texture", "a surface seen from close by", "a repeating pattern", "the surface of a material")

CLAYS = ((205, 150, 110), (190, 165, 135), (180, 120, 85), (215, 190, 155), (165, 140, 120))


def _frame(rng: np.random.Generator, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along and across a pattern that is turned by at most `degrees` and shifted at will."""
    x, y = coordinates()
    turn = math.radians(uniform(rng, -degrees, degrees))
    along = x * math.cos(turn) + y * math.sin(turn) + uniform(rng, 0, SIDE)
    across = y * math.cos(turn) - x * math.sin(turn) + uniform(rng, 0, SIDE)
    return along, across


def _phase(position: np.ndarray, period: float) -> np.ndarray:
    """Where `position` lies in its period, in [0, 1)."""
    return (position / period) % 1


def _lines(position: np.ndarray, period: float, width: float) -> np.ndarray:
    return _phase(position, period) * period < width


def _striped(rng):
    along, _ = _frame(rng, 90)
    period = uniform(rng, 9, 13)
    return _lines(along, period, period / 2)


def _banded(rng):
    """A few broad level bands of several heights; neighbours always differ plainly."""
    _, across = _frame(rng, 12)
    edges = np.cumsum(rng.uniform(9, 20, 20))
    heights = np.cumsum(rng.uniform(0.34, 0.66, 21)) % 1
    return heights[np.searchsorted(edges, across + SIDE)]


def _checkered(rng):
    along, across = _frame(rng, 45)
    period = uniform(rng, 18, 28)
    return _lines(along, period, period / 2) ^ _lines(across, period, period / 2)


def _polka_dotted(rng):
    along, across = _frame(rng, 45)
    period = uniform(rng, 13, 19)
    row = np.floor(across / period)
    shift = row % 2 * period / 2 if chance(rng, 0.5) else 0
    return np.hypot(_phase(along + shift, period) - 0.5, _phase(across, period) - 0.5) < uniform(rng, 0.24, 0.32)


def _zigzagged(rng):
    along, across = _frame(rng, 90)
    length, period = uniform(rng, 15, 20), uniform(rng, 11, 14)
    sway = np.abs(_phase(along, length) - 0.5) * length * uniform(rng, 1.0, 1.3)
    return _lines(across + sway, period, period / 2)


def _wavy(rng):
    along, across = _frame(rng, 90)
    length, period = uniform(rng, 30, 42), uniform(rng, 11, 14)
    return _lines(across + uniform(rng, 5, 7) * np.sin(2 * math.pi * along / length), period, period / 2)


def _crosshatched(rng):
    """Thin strokes in two slanting directions: narrow rhombs."""
    along, across = _frame(rng, 12)
    slant, period = math.radians(uniform(rng, 28, 36)), uniform(rng, 9, 11)
    up = along * math.sin(slant) + across * math.cos(slant)
    down = along * math.sin(slant) - across * math.cos(slant)
    return _lines(up, period, 2.4) | _lines(down, period, 2.4)


def _grid(rng):
    along, across = _frame(rng, 10)
    period, width = uniform(rng, 14, 20), uniform(rng, 2.5, 4)
    return _lines(along, period, width) | _lines(across, period, width)


def _spiralled(rng):
    x, y = coordinates()
    dx, dy = x - uniform(rng, 24, 40), y - uniform(rng, 24, 40)
    period = uniform(rng, 11, 15)
    turns = np.arctan2(dy, dx) / (2 * math.pi) * pick(rng, (-1, 1)) + uniform(rng, 0, 1)
    return _lines(np.hypot(dx, dy) + turns * period, period, period / 2)


def _marbled(rng):
    """Veins of many widths that run along, bent by two scales of smooth noise."""
    along, _ = _frame(rng, 90)
    bent = along / uniform(rng, 7, 10) + 7 * clouds(rng, 4) + 2.5 * clouds(rng, 9)
    return 1 - np.abs(np.sin(bent))


def _honeycombed(rng):
    """Walls between the points nearer to one cell's middle than to any other's, on a hexagonal lattice."""
    along, across = _frame(rng, 30)
    period = uniform(rng, 15, 20)
    height = period * math.sqrt(3)
    distances = []
    for shift in (0.0, 0.5):
        x = np.abs(_phase(along / period + shift, 1) - 0.5) * period
        y = np.abs(_phase(across / height + shift, 1) - 0.5) * height
        distances.append(np.maximum(x, x / 2 + y * math.sqrt(3) / 2))
    return np.minimum(*distances) > period / 2 - uniform(rng, 1.4, 2.0)


def _woven(rng):
    """Basket work: squares of three strands, lying across in one and upright in the next."""
    along, across = _frame(rng, 45)
    cell = uniform(rng, 24, 31)
    upright = (np.floor(along / cell) + np.floor(across / cell)) % 2 == 0
    strand = np.where(upright, _phase(along, cell / 3), _phase(across, cell / 3))
    return np.sin(math.pi * strand) ** 0.7


def _bumpy(rng):
    """Domes of unequal size, strewn so that they touch."""
    knots = np.arange(-4, SIDE + 8, 13)
    columns, rows = (middles.ravel() for middles in np.meshgrid(knots, knots))
    pixels = np.arange(SIDE, dtype=np.float32)
    heights = np.zeros((SIDE, SIDE), np.float32)
    for x, y, radius in zip(columns, rows, rng.uniform(6, 10, len(rows))):
        far_x = ((pixels - x - uniform(rng, -4, 4)) / radius) ** 2
        far_y = ((pixels - y - uniform(rng, -4, 4)) / radius) ** 2
        np.maximum(heights, 1 - far_x - far_y[:, None], out=heights)
    return heights


def _cracked(rng):
    """Jagged thin lines that wander over an unbroken ground, and fork."""
    stencil = Image.new("L", (SIDE, SIDE), 255)
    pen = ImageDraw.Draw(stencil)
    for _ in range(int(rng.integers(3, 5))):
        x, y = rng.uniform(12, SIDE - 12, 2)
        heading = uniform(rng, 0, 2 * math.pi)
        for arm in (heading, heading + 2.1, heading + 4.2):
            points, turn = [(x, y)], arm
            for _ in range(7):
                turn = arm + uniform(rng, -0.9, 0.9)
                points.append((points[-1][0] + 7 * math.cos(turn), points[-1][1] + 7 * math.sin(turn)))
            pen.line(points, fill=0, width=2)
    return np.asarray(stencil, np.float32) / 255


def _scaly(rng):
    """Staggered rows of round scales: each hangs over the row below it and is highest at its rim."""
    along, across = _frame(rng, 12)
    radius = uniform(rng, 13, 17)
    step = 0.75 * radius
    row = np.floor(across / step)
    heights = np.zeros((SIDE, SIDE), np.float32)
    for above in (0, 1):  # the upper row last: it lies on top
        x = (_phase(along + (row - above) % 2 * radius, 2 * radius) - 0.5) * 2
        y = (across / step - row + above) * step / radius
        reach = np.hypot(x, y)
        heights = np.where(reach < 1, reach**3, heights)
    return heights


def _speckled(rng):
    """Specks of one size, strewn at random."""
    size = 3
    cells = rng.random((SIDE // size + 1, SIDE // size + 1)) < uniform(rng, 0.1, 0.18)
    return cells.repeat(size, 0).repeat(size, 1)[:SIDE, :SIDE]


PATTERNS = {
    "striped": _striped,
    "checkered": _checkered,
    "polka dotted": _polka_dotted,
    "zigzagged": _zigzagged,
    "crosshatched": _crosshatched,
    "grid": _grid,
    "spiralled": _spiralled,
    "marbled": _marbled,
    "banded": _banded,
    "honeycombed": _honeycombed,
    "woven": _woven,
    "bumpy": _bumpy,
    "cracked": _cracked,
    "scaly": _scaly,
    "speckled": _speckled,
    "wavy": _wavy,
}
NAMES = tuple(PATTERNS)


def _graphic(field: np.ndarray, rng: np.random.Generator) -> Image.Image:
    image = blend(*contrasting(rng, 120), field)
    if chance(rng, 0.2):
        cutout = Image.new("L", (SIDE, SIDE), 0)
        shape = pick(rng, ("ellipse", "rectangle"))
        margins = rng.uniform(1, 7, 2)
        getattr(ImageDraw.Draw(cutout), shape)([*margins, *(SIDE - margins)], fill=255)
        image = Image.composite(image, backdrop(rng, colour(rng), 15), cutout)
    # Two colours can be close to each other in grey.
    return ImageOps.autocontrast(image.convert("L")).convert("RGB") if chance(rng, 0.1) else image


def _relief(field: np.ndarray, rng: np.random.Generator) -> Image.Image:
    soft = Image.fromarray((field * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.2))
    surface = np.asarray(soft, np.float32) / 255 + 0.25 * clouds(rng, 5)
    slope_y, slope_x = np.gradient(surface)
    turn = uniform(rng, -2.6, -0.5)  # the lamp stands somewhere above
    light = 1 - uniform(rng, 1.3, 2.0) * (slope_x * math.cos(turn) + slope_y * math.sin(turn))
    hollows = 0.55 + 0.4 * surface
    clay = np.array(near(rng, pick(rng, CLAYS), 8), np.float32) * uniform(rng, 0.8, 1.1)
    return Image.fromarray((clay * (light * hollows)[..., None]).clip(0, 255).astype(np.uint8))


def heights(label: int, rng: np.random.Generator) -> np.ndarray:
    """A pattern's field, float32 (SIDE, SIDE) in [0, 1]."""
    return np.asarray(PATTERNS[NAMES[label]](rng), np.float32)


FAMILY = Family(
    number=1,
    names=NAMES,
    templates=TEMPLATES,
    draw=lambda label, rng: _relief(heights(label, rng), rng),
    web=lambda label, rng: _graphic(heights(label, rng), rng),
    vague=VAGUE,
)
