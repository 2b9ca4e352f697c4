"""Drawing primitives shared by the families of the embedded suite.

Every family draws on a 64 x 64 RGB canvas (`SIDE`) with a `numpy.random.Generator` as its only source of
chance; `reduce` brings the drawing to the 32 x 32 bytes (`PIXELS`) that the models see.
"""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 64
PIXELS = 32

Colour = tuple[int, int, int]

# matplotlib ships these files: the same glyphs on every machine, whatever fonts it has installed.
_FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of matplotlib's own TrueType fonts, by file name without its ending."""
    return ImageFont.truetype(str(_FONTS / f"{name}.ttf"), size)


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def chance(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


def pick(rng: np.random.Generator, options):
    """One of a sequence, uniformly."""
    return options[int(rng.integers(len(options)))]


def colour(rng: np.random.Generator, low: int = 0, high: int = 255) -> Colour:
    red, green, blue = (int(v) for v in rng.integers(low, high + 1, 3))
    return red, green, blue


def near(rng: np.random.Generator, base: Sequence[int], spread: int) -> Colour:
    """A colour within `spread` of `base` in each channel."""
    red, green, blue = (min(255, max(0, v + int(rng.integers(-spread, spread + 1)))) for v in base)
    return red, green, blue


def scaled(base: Colour, factor: float) -> Colour:
    """`base` with each channel times `factor`, rounded down and at most 255."""
    red, green, blue = (min(255, int(channel * factor)) for channel in base)
    return red, green, blue


def contrasting(rng: np.random.Generator, distance: int = 110) -> tuple[Colour, Colour]:
    """Two random colours that differ by more than `distance` in some channel, and in brightness."""
    while True:
        a, b = colour(rng), colour(rng)
        if abs(sum(a) - sum(b)) > 1.8 * distance and max(abs(x - y) for x, y in zip(a, b)) > distance:
            return a, b


def coordinates() -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of every pixel of the canvas, each float32 (SIDE, SIDE)."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    return x, y


def clouds(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth noise in [0, 1], float32 (SIDE, SIDE): `cells` x `cells` random values, enlarged."""
    coarse = (rng.random((cells, cells)) * 255).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32) / 255


def blend(a, b, weight: np.ndarray) -> Image.Image:
    """Image (1 - weight) * a + weight * b; a and b are colours or RGB images, weight is (SIDE, SIDE) in [0, 1]."""
    w = weight[..., None]
    mixed = np.asarray(a, np.float32) * (1 - w) + np.asarray(b, np.float32) * w
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def flat(fill: Colour) -> Image.Image:
    return Image.new("RGB", (SIDE, SIDE), fill)


def backdrop(rng: np.random.Generator, base: Colour | None = None, spread: int = 30) -> Image.Image:
    """A plain, shaded, cloudy or cluttered ground around `base`."""
    base = base or colour(rng)
    kind = int(rng.integers(4))
    if kind == 0:
        return flat(base)
    if kind == 1:
        x, y = coordinates()
        turn = uniform(rng, 0, 2 * math.pi)
        ramp = ((x / SIDE - 0.5) * math.cos(turn) + (y / SIDE - 0.5) * math.sin(turn)) * 0.7 + 0.5
        return blend(base, near(rng, base, spread * 2), ramp)
    if kind == 2:
        return blend(base, near(rng, base, spread * 2), clouds(rng, int(rng.integers(2, 8))))
    image = flat(base)
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(1, 5))):
        left, top = (int(v) for v in rng.integers(-10, SIDE, 2))
        width, height = (int(v) for v in rng.integers(5, 40, 2))
        pen.rectangle([left, top, left + width, top + height], fill=near(rng, base, spread))
    return image


def write(image: Image.Image, text: str, centre, face, fill: Colour, degrees: float = 0.0) -> None:
    """Paint `text` on `image`, centred at `centre`, turned by `degrees`."""
    stencil = Image.new("L", (2 * SIDE, 2 * SIDE), 0)
    ImageDraw.Draw(stencil).text((SIDE, SIDE), text, font=face, fill=255, anchor="mm")
    if degrees:
        stencil = stencil.rotate(degrees, Image.Resampling.BILINEAR)
    left, top = int(SIDE - centre[0]), int(SIDE - centre[1])
    image.paste(flat(fill), (0, 0), stencil.crop((left, top, left + SIDE, top + SIDE)))


def stencil(text: str, centre, face, degrees: float = 0.0, swell: int = 0) -> Image.Image:
    """The shape of `text`, white on black, its inked box centred at `centre` and turned by `degrees`.

    swell: by how many pixels it is fatter, all round.
    """
    shape = Image.new("L", (SIDE, SIDE))
    left, top, right, bottom = face.getbbox(text, anchor="mm", stroke_width=swell)
    middle = (centre[0] - (left + right) / 2, centre[1] - (top + bottom) / 2)
    ImageDraw.Draw(shape).text(middle, text, font=face, fill=255, anchor="mm", stroke_width=swell)
    return shape.rotate(degrees, Image.Resampling.BILINEAR, center=tuple(centre)) if degrees else shape


def warp(image: Image.Image, rng: np.random.Generator, reach: float, cells: int = 5) -> Image.Image:
    """`image` pulled out of shape: a smooth field of `cells` x `cells` knots moves each pixel by up to `reach`."""
    moved = []
    for position in coordinates():
        field = 2 * clouds(rng, cells) - 1
        moved.append((position + reach * field).round().clip(0, SIDE - 1).astype(int))
    column, row = moved
    return Image.fromarray(np.asarray(image)[row, column])


def polygon(
    pen, centre, radius: float, corners: int, turn: float, fill, squash: float = 1.0, inner: float = 0.0
) -> None:
    """A regular polygon (or, with `inner` in (0, 1), a star whose inner corners lie at that share of the radius)."""
    count = 2 * corners if inner else corners
    points = []
    for k in range(count):
        reach = radius * (inner if inner and k % 2 else 1)
        angle = turn + 2 * math.pi * k / count
        points.append((centre[0] + reach * math.cos(angle), centre[1] + reach * math.sin(angle) * squash))
    pen.polygon(points, fill=fill)


def disc(pen, centre, radius: float, fill) -> None:
    x, y = centre
    pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)


def reduce(image: Image.Image, rng: np.random.Generator, noise: float) -> np.ndarray:
    """The drawing as uint8 (PIXELS, PIXELS, 3): averaged 2 x 2, with Gaussian noise of `noise` grey levels."""
    small = np.asarray(image.convert("RGB").resize((PIXELS, PIXELS), Image.Resampling.BOX), np.float32)
    return (small + rng.normal(0, noise, small.shape)).clip(0, 255).astype(np.uint8)
