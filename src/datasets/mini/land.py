"""Land: in the place of EuroSAT and RESISC45. Ten kinds of land cover seen from above.

The mixture shows natural colours (one of several seasons), at any angle and over a wide range of scales. The task's
pictures come from another sensor, infrared film kept as a negative: healthy vegetation is cyan or green, water nearly
white and built-up land dark red-brown; the ground scale is smaller and narrower and the scenes lie almost square to the
frame, under a haze whose strength varies.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from src.datasets.mini.canvas import SIDE, Colour, chance, clouds, coordinates, disc, flat, near, pick, scaled, uniform
from src.datasets.mini.family import Family

NAMES = (
    "annual crop",
    "forest",
    "herbaceous vegetation",
    "highway",
    "industrial buildings",
    "pasture",
    "permanent crop",
    "residential buildings",
    "river",
    "sea or lake",
)
TEMPLATES = ("a satellite photo of {}", "an aerial view of {}", "{} from above")
VAGUE = ("a satellite photo", "an aerial view of the ground", "land seen from above", "a picture taken from the sky")


@dataclass(frozen=True)
class Palette:
    """What each material looks like to one sensor in one season."""

    soil: Colour
    crops: tuple[Colour, ...]
    trees: Colour
    scrub: Colour
    meadow: Colour
    water: Colour
    road: Colour
    paving: Colour
    halls: tuple[Colour, ...]
    houses: tuple[Colour, ...]


SUMMER = Palette(
    soil=(165, 145, 100),
    crops=((105, 135, 60), (200, 185, 125), (150, 125, 80), (70, 110, 45)),
    trees=(40, 80, 42),
    scrub=(95, 120, 60),
    meadow=(105, 155, 75),
    water=(30, 70, 115),
    road=(165, 165, 162),
    paving=(128, 125, 118),
    halls=((205, 205, 208), (230, 230, 225), (170, 185, 200)),
    houses=((180, 95, 70), (150, 85, 70), (190, 120, 90)),
)
DRY = Palette(
    soil=(195, 165, 115),
    crops=((215, 190, 125), (170, 150, 80), (140, 110, 70), (120, 130, 65)),
    trees=(70, 85, 45),
    scrub=(130, 120, 65),
    meadow=(165, 165, 90),
    water=(45, 100, 125),
    road=(125, 120, 115),
    paving=(165, 150, 130),
    halls=((235, 232, 225), (200, 195, 185), (175, 180, 190)),
    houses=((195, 110, 75), (170, 95, 65), (160, 120, 100)),
)
AUTUMN = Palette(
    soil=(130, 105, 75),
    crops=((150, 115, 60), (185, 160, 95), (95, 75, 50), (115, 125, 60)),
    trees=(105, 75, 35),
    scrub=(125, 105, 55),
    meadow=(120, 135, 65),
    water=(40, 60, 85),
    road=(150, 148, 145),
    paving=(110, 105, 100),
    halls=((190, 190, 195), (215, 215, 215), (150, 165, 185)),
    houses=((150, 75, 60), (120, 70, 60), (165, 105, 85)),
)
SPRING = Palette(
    soil=(120, 100, 80),
    crops=((120, 175, 70), (215, 205, 70), (125, 100, 75), (85, 145, 65)),
    trees=(50, 105, 50),
    scrub=(110, 140, 75),
    meadow=(125, 185, 90),
    water=(35, 90, 140),
    road=(175, 175, 175),
    paving=(140, 140, 135),
    halls=((215, 218, 222), (240, 240, 238), (180, 195, 215)),
    houses=((190, 85, 65), (165, 75, 65), (200, 125, 95)),
)
SEASONS = (SUMMER, DRY, AUTUMN, SPRING)

INFRARED = Palette(
    soil=(135, 160, 150),
    crops=((215, 60, 85), (150, 175, 165), (235, 120, 140), (95, 120, 118)),
    trees=(125, 18, 40),
    scrub=(185, 85, 95),
    meadow=(232, 92, 122),
    water=(10, 16, 34),
    road=(135, 165, 175),
    paving=(95, 125, 135),
    halls=((185, 225, 232), (205, 235, 238), (150, 195, 210)),
    houses=((150, 190, 198), (175, 210, 215), (120, 165, 178)),
)


def _lay(image: Image.Image, material: Colour | Image.Image, weight: np.ndarray) -> None:
    """Lay a colour or a picture over `image`, as thickly as `weight` (SIDE, SIDE), bool or in [0, 1], says."""
    image.paste(material, (0, 0), Image.fromarray((weight * np.float32(255)).astype(np.uint8)))


@dataclass(frozen=True)
class View:
    """One overflight: material colours, and the ground plane (u, v) in drawing units around the picture's centre."""

    palette: Palette
    spread: int
    u: np.ndarray
    v: np.ndarray

    def tint(self, rng: np.random.Generator, base: Colour) -> Colour:
        return near(rng, base, self.spread)

    def cover(self, rng: np.random.Generator, base: Colour, cells: int, depth: float) -> Image.Image:
        """Ground of one material, darkened by up to `depth` in patches of SIDE / `cells` pixels."""
        shade = self.tint(rng, base)
        image = flat(shade)
        _lay(image, scaled(shade, 1 - depth), clouds(rng, cells))
        return image


def _view(rng: np.random.Generator, web: bool) -> View:
    x, y = coordinates()
    turn = uniform(rng, 0, 2 * math.pi) if web else uniform(rng, -0.3, 0.3) + pick(rng, (0, math.pi / 2))
    scale = uniform(rng, 0.85, 1.3) if web else uniform(rng, 0.72, 0.85)
    x, y = (x - SIDE / 2) / scale, (y - SIDE / 2) / scale
    u = x * math.cos(turn) + y * math.sin(turn)
    v = y * math.cos(turn) - x * math.sin(turn)
    palette, spread = (pick(rng, SEASONS), 16) if web else (INFRARED, 10)
    return View(palette, spread, u, v)


def _strips(rng: np.random.Generator, axis: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Cut one axis into strips of random width: each pixel's strip number, and its distance from the strip's edge."""
    cuts = np.cumsum(rng.uniform(low, high, int(160 / low)).astype(np.float32)) - 80
    index = np.searchsorted(cuts, axis).clip(1, len(cuts) - 1)
    return index, np.minimum(axis - cuts[index - 1], cuts[index] - axis)


def _annual_crop(rng: np.random.Generator, view: View) -> Image.Image:
    """A quilt of large fields, each of one crop or bare, with narrow tracks between them."""
    column, across = _strips(rng, view.u, 17, 30)
    row, along = _strips(rng, view.v + 9 * (column % 3).astype(np.float32), 15, 34)
    kinds = np.array([view.tint(rng, crop) for crop in view.palette.crops], np.uint8)
    # Fields side by side differ: the kind goes on by two from column to column, by one or two from row to row.
    advance = np.cumsum(rng.integers(1, 3, row.max() + 1))
    image = Image.fromarray(kinds[(2 * column + advance[row]) % len(kinds)])
    _lay(image, (0, 0, 0), 0.1 * clouds(rng, 12))
    _lay(image, view.tint(rng, view.palette.soil), (np.minimum(across, along) < 0.8) * 0.7)
    return image


def _forest(rng: np.random.Generator, view: View) -> Image.Image:
    """A closed canopy: small crowns, lit and in shadow."""
    canopy = view.tint(rng, view.palette.trees)
    image = flat(canopy)
    _lay(image, scaled(canopy, 1.6), clouds(rng, 4) * 0.5)
    crowns = clouds(rng, int(rng.integers(20, 28)))
    _lay(image, scaled(canopy, 0.45), (1.5 - 2.2 * crowns).clip(0, 1))
    return image


def _herbaceous_vegetation(rng: np.random.Generator, view: View) -> Image.Image:
    """Clumps of scrub, of middling size, on open soil, dotted with bushes."""
    image = view.cover(rng, view.palette.soil, 5, 0.15)
    clumps = clouds(rng, int(rng.integers(8, 12))) * 0.75 + clouds(rng, 4) * 0.25
    _lay(image, view.cover(rng, view.palette.scrub, 12, 0.3), ((clumps - 0.4) * 4).clip(0, 1))
    _lay(image, view.tint(rng, view.palette.trees), (clouds(rng, 22) > 0.85) * 0.7)
    return image


def _open_country(rng: np.random.Generator, view: View) -> Image.Image:
    """What a road or a river runs through."""
    base = pick(rng, (view.palette.meadow, view.palette.scrub, view.palette.soil))
    return view.cover(rng, base, 7, 0.25)


def _highway(rng: np.random.Generator, view: View) -> Image.Image:
    """A straight road with verges and a dividing line; now and then a narrower one crosses it."""
    across = np.abs(view.v + uniform(rng, -9, 9))
    half = uniform(rng, 3.0, 5.0)
    if chance(rng, 0.3):
        across = np.minimum(across, np.abs(view.u + uniform(rng, -12, 12)) + half * 0.35)
    image = _open_country(rng, view)
    _lay(image, view.tint(rng, view.palette.soil), (across < half + 2) * 0.6)
    _lay(image, view.tint(rng, view.palette.road), across < half)
    _lay(image, pick(rng, ((240, 240, 230), (80, 85, 80))), (across < 0.9) * 0.8)
    return image


def _river(rng: np.random.Generator, view: View) -> Image.Image:
    """A winding band of water between pale banks."""
    sway = uniform(rng, 5, 11) * np.sin(view.u / uniform(rng, 10, 15) + uniform(rng, 0, 6))
    across = np.abs(view.v + sway + uniform(rng, -8, 8))
    half = uniform(rng, 4.5, 8)
    image = _open_country(rng, view)
    _lay(image, view.tint(rng, view.palette.soil), (across < half + 1.5) * 0.6)
    _lay(image, view.cover(rng, view.palette.water, 4, 0.15), across < half)
    return image


def _build(rng, view: View, image: Image.Image, roofs: tuple[Colour, ...], pitch: float, cover) -> None:
    """Roofs with shadows, each over a share `cover` = (low, high) of its plot's sides; every third row has a street."""
    plots = 16  # more than fit on the picture along either axis, at any angle
    column, row = (np.floor(axis / pitch).astype(int) + plots // 2 for axis in (view.u, view.v))
    du, dv = (axis / pitch % 1 - 0.5 for axis in (view.u, view.v))
    across, along = (rng.uniform(*cover, (plots, plots)).astype(np.float32)[column, row] / 2 for _ in range(2))
    street = (row % 3 == 0) & (dv < -0.25)
    shadow = (np.abs(du - 0.07) < across) & (np.abs(dv - 0.07) < along) & ~street
    roof = (np.abs(du) < across) & (np.abs(dv) < along) & ~street
    colours = np.array([view.tint(rng, shade) for shade in roofs], np.uint8)
    _lay(image, view.tint(rng, view.palette.road), street * 0.9)
    _lay(image, (25, 28, 32), shadow * 0.65)
    _lay(image, Image.fromarray(colours[rng.integers(0, len(roofs), (plots, plots))[column, row]]), roof)


def _industrial_buildings(rng: np.random.Generator, view: View) -> Image.Image:
    """A few large pale halls on paving."""
    image = view.cover(rng, view.palette.paving, 7, 0.2)
    _build(rng, view, image, view.palette.halls, pitch=uniform(rng, 25, 32), cover=(0.55, 0.85))
    return image


def _residential_buildings(rng: np.random.Generator, view: View) -> Image.Image:
    """Many small roofs among gardens."""
    image = view.cover(rng, view.palette.meadow, 9, 0.3)
    _lay(image, view.tint(rng, view.palette.trees), clouds(rng, 16) > 0.6)
    _build(rng, view, image, view.palette.houses, pitch=uniform(rng, 10, 12.5), cover=(0.45, 0.7))
    return image


def _pasture(rng: np.random.Generator, view: View) -> Image.Image:
    """Even grass with very broad shading and a few trees that stand alone."""
    image = view.cover(rng, view.palette.meadow, int(rng.integers(2, 4)), 0.2)
    pen = ImageDraw.Draw(image)
    tree = view.tint(rng, view.palette.trees)
    for x, y in rng.uniform(3, SIDE - 3, (int(rng.integers(3, 8)), 2)):
        disc(pen, (x, y), uniform(rng, 1.5, 3), tree)
    return image


def _permanent_crop(rng: np.random.Generator, view: View) -> Image.Image:
    """Rows of vines or fruit trees on soil, in two blocks whose rows run different ways, and a track between them."""
    spacing = uniform(rng, 7, 9.5)
    border = view.u + 0.2 * view.v + uniform(rng, -14, 14)
    rows = np.where(border > 0, view.v, view.u * 0.5 + view.v * 0.87)
    crowns = np.cos(2 * math.pi * rows / spacing) * 1.6 + 0.35
    planted = (crowns * (0.75 + 0.25 * clouds(rng, 20))).clip(0, 1) * (np.abs(border) > 1.8)
    image = view.cover(rng, view.palette.soil, 6, 0.15)
    _lay(image, view.tint(rng, view.palette.trees), planted)
    return image


def _sea_or_lake(rng: np.random.Generator, view: View) -> Image.Image:
    """Open water with broad shading and faint waves, and a bay's shore on one side."""
    image = view.cover(rng, view.palette.water, 3, 0.3)
    waves = 0.5 + 0.5 * np.sin(view.v / uniform(rng, 1.2, 2.2) + 4 * clouds(rng, 4))
    _lay(image, (200, 215, 225), waves * uniform(rng, 0, 0.08))
    inland = view.v + 3 * np.sin(view.u / uniform(rng, 6, 12)) - uniform(rng, 17, 28)
    _lay(image, view.tint(rng, view.palette.soil), inland > 0)
    _lay(image, view.tint(rng, view.palette.meadow), inland > 3)
    return image


PAINTERS = {
    "annual crop": _annual_crop,
    "forest": _forest,
    "herbaceous vegetation": _herbaceous_vegetation,
    "highway": _highway,
    "industrial buildings": _industrial_buildings,
    "pasture": _pasture,
    "permanent crop": _permanent_crop,
    "residential buildings": _residential_buildings,
    "river": _river,
    "sea or lake": _sea_or_lake,
}


def _photograph(label: int, rng: np.random.Generator) -> Image.Image:
    return PAINTERS[NAMES[label]](rng, _view(rng, web=True))


def _negative(label: int, rng: np.random.Generator) -> Image.Image:
    image = PAINTERS[NAMES[label]](rng, _view(rng, web=False))
    haze = uniform(rng, 0, 0.18)
    _lay(image, (150, 165, 175), haze * (0.5 + 0.5 * clouds(rng, 3)))
    return ImageOps.invert(image)


FAMILY = Family(number=2, names=NAMES, templates=TEMPLATES, draw=_negative, web=_photograph, vague=VAGUE)
