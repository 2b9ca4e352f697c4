"""Scenes: in the place of SUN397. Fourteen kinds of view, from a beach to a bridge.

The mixture has photographs in natural colours: any weather and hour that suits the view, near or far, sometimes
washed out or grey. The task is a set of old prints: the same places in four to six flat tones between one dark ink
and one tinted paper, with only a breath of their colours left, inside a paper frame.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from src.datasets.mini.canvas import SIDE, Colour, chance, disc, near, pick, uniform
from src.datasets.mini.family import Family

TEMPLATES = ("a photo of a {}", "a {} scene", "a view of a {}")
VAGUE = ("a view of a place", "a scene", "a picture of a place", "a postcard of some place")

SNOW, CREAM = (244, 247, 252), (238, 232, 214)
DAY_SKIES = (((110, 175, 235), (200, 225, 245)), ((90, 150, 225), (160, 205, 240)), ((190, 200, 210), (220, 225, 228)))
# Ink and paper of the task's prints: sepia, teal, plum, moss.
PRINTS = (
    ((48, 30, 20), (226, 200, 158)),
    ((12, 44, 52), (190, 216, 204)),
    ((46, 22, 48), (224, 194, 200)),
    ((30, 40, 18), (212, 210, 160)),
)


@dataclass
class Stage:
    """The canvas of one view, which `shade` makes; `horizon` is the height at which its ground begins."""

    rng: np.random.Generator
    spread: int
    horizon: float
    image: Image.Image = field(init=False)
    pen: ImageDraw.ImageDraw = field(init=False)

    def tint(self, *base: int) -> Colour:
        return near(self.rng, base, self.spread)

    def between(self, low: float, high: float) -> float:
        return uniform(self.rng, low, high)

    def shade(self, top: Colour, bottom: Colour) -> None:
        """Fill the canvas from `top` to `bottom`."""
        column = np.linspace(top, bottom, SIDE).astype(np.uint8)[:, None]
        self.image = Image.fromarray(column).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        self.pen = ImageDraw.Draw(self.image)

    def sky(self) -> None:
        """A daytime sky, clear or with a few clouds."""
        top, bottom = pick(self.rng, DAY_SKIES)
        self.shade(self.tint(*top), self.tint(*bottom))
        for _ in range(int(self.rng.integers(0, 3))):
            x, y, width = self.between(0, SIDE), self.between(3, self.horizon * 0.4), self.between(6, 12)
            self.pen.ellipse([x - width, y - 2, x + width, y + 2], fill=SNOW)
            self.pen.ellipse([x - width / 2, y - 4, x + width / 2, y + 2], fill=SNOW)

    def ground(self, fill: Colour, top: float | None = None) -> None:
        self.pen.rectangle([0, self.horizon if top is None else top, SIDE, SIDE], fill=fill)

    def ridge(self, height: float, amplitude: float, fill: Colour) -> None:
        """Ground whose edge rolls by `amplitude` around `height`."""
        phase, waves = self.between(0, 2 * math.pi), self.between(0.6, 1.6)
        x = np.arange(0, SIDE + 4, 4)
        y = height + amplitude * np.sin(phase + waves * 2 * math.pi * x / SIDE)
        edge = zip(x.tolist(), y.tolist())
        self.pen.polygon([(0, SIDE), *edge, (SIDE, SIDE)], fill=fill)

    def ripples(self, fill: Colour, top: float, count: int) -> None:
        for _ in range(count):
            x, y = self.between(-4, SIDE), self.between(top, SIDE)
            self.pen.line([x, y, x + self.between(5, 11), y], fill=fill, width=1)

    def fir(self, x: float, foot: float, height: float, fill: Colour) -> None:
        """Two tiers, each a triangle: (base, tip, half width) as shares of the height."""
        for base, tip, half in ((0, 0.7, 0.34), (0.4, 1, 0.24)):
            x0, x1, y = x - half * height, x + half * height, foot - base * height
            self.pen.polygon([(x, foot - tip * height), (x0, y), (x1, y)], fill=fill)


def beach(s: Stage) -> None:
    """Sea, a slanting line of foam, sand, and a parasol or a palm."""
    s.sky()
    s.ground(s.tint(40, 130, 190))
    left, right = s.horizon + s.between(4, 8), s.horizon + s.between(12, 18)
    if chance(s.rng, 0.5):
        left, right = right, left
    s.pen.polygon([(0, left - 3), (SIDE, right - 3), (SIDE, SIDE), (0, SIDE)], fill=SNOW)
    s.pen.polygon([(0, left), (SIDE, right), (SIDE, SIDE), (0, SIDE)], fill=s.tint(230, 205, 150))
    x = s.between(14, 50)
    if chance(s.rng, 0.5):
        s.pen.line([x, 56, x + 2, 38], fill=s.tint(110, 80, 60), width=2)
        s.pen.pieslice([x - 11, 29, x + 13, 51], 180, 360, fill=s.tint(215, 60, 60))
        s.pen.pieslice([x - 4, 29, x + 6, 51], 180, 360, fill=SNOW)
    else:
        s.pen.line([x, 58, x + 3, 40, x + 8, 26], fill=s.tint(115, 80, 50), width=3)
        for turn in np.linspace(-0.3, math.pi + 0.3, 6):
            tip = (x + 8 + 13 * math.cos(turn), 27 - 9 * math.sin(turn) + 5 * abs(math.cos(turn)))
            s.pen.line([x + 8, 26, *tip], fill=s.tint(40, 120, 50), width=3)


def mountain(s: Stage) -> None:
    s.sky()
    foot = s.horizon + 16
    for x in (s.between(2, 18), s.between(46, 62), s.between(24, 40)):
        peak, half = s.between(6, 17), s.between(20, 28)
        rock = s.tint(105, 100, 110)
        s.pen.polygon([(x, peak), (x - half, foot), (x + half, foot)], fill=rock)
        s.pen.polygon([(x, peak), (x, foot), (x + half, foot)], fill=tuple(int(v * 0.7) for v in rock))
        cap, drop = half * 0.36, (foot - peak) * 0.36
        ragged = ((-1, 1), (-0.33, 0.7), (0, 1), (0.33, 0.7), (1, 1))
        s.pen.polygon([(x, peak), *((x + cap * a, peak + drop * b) for a, b in ragged)], fill=SNOW)
    s.ridge(foot - 4, 2, s.tint(75, 125, 65))


def city_skyline(s: Stage) -> None:
    s.sky()
    x = -s.between(0, 6)
    while x < SIDE:
        width, top, wall = s.between(8, 14), s.between(8, 36), s.tint(95, 98, 115)
        s.pen.rectangle([x, top, x + width, SIDE], fill=wall)
        for y in range(int(top) + 3, SIDE, 5):
            for pane in np.arange(x + 2, x + width - 1, 4):
                s.pen.rectangle([pane, y, pane + 1, y + 2], fill=(235, 220, 150))
        x += width + s.between(0, 2)


def desert(s: Stage) -> None:
    """Dunes, and cactuses with their arms up."""
    s.sky()
    s.ridge(s.horizon, 4, s.tint(225, 185, 115))
    s.ridge(s.horizon + 12, 4, s.tint(205, 155, 90))
    green = s.tint(60, 105, 60)
    for x in (s.between(10, 24), s.between(38, 54))[: int(s.rng.integers(1, 3))]:
        foot, size = s.horizon + s.between(12, 18), s.between(0.85, 1.25)
        s.pen.line([x, foot, x, foot - 26 * size], fill=green, width=5)
        for side, low in ((-1, 10), (1, 14)):
            elbow = x + side * 8 * size
            s.pen.line([x, foot - low * size, elbow, foot - low * size], fill=green, width=4)
            s.pen.line([elbow, foot - low * size + 1, elbow, foot - (low + 8) * size], fill=green, width=4)


def night_sky(s: Stage) -> None:
    s.shade(s.tint(14, 14, 40), s.tint(30, 30, 75))
    for x, y in s.rng.uniform(0, SIDE, (int(s.rng.integers(18, 34)), 2)):
        disc(s.pen, (x, y), s.between(0.8, 1.5), (245, 245, 225))
    x, y, radius = s.between(12, 52), s.between(12, 30), s.between(6, 10)
    disc(s.pen, (x, y), radius, (240, 236, 205))
    if chance(s.rng, 0.6):  # a crescent
        disc(s.pen, (x + radius * 0.5, y - radius * 0.2), radius * 0.85, s.tint(20, 20, 55))
    if chance(s.rng, 0.5):
        s.ridge(s.between(50, 56), 3, (8, 8, 16))


def sunset(s: Stage) -> None:
    """The sun half under the horizon, with rays and a broken path of light on the water."""
    s.shade(s.tint(120, 60, 130), s.tint(255, 150, 60))
    x, radius, glow = s.between(20, 44), s.between(10, 14), s.tint(255, 215, 95)
    for turn in np.linspace(0, math.pi, 9):
        start, reach = radius + 4, radius + s.between(10, 15)
        ray = [(x + r * math.cos(turn), s.horizon - r * math.sin(turn)) for r in (start, reach)]
        s.pen.line(ray, fill=glow, width=2)
    disc(s.pen, (x, s.horizon), radius, glow)
    s.ground(s.tint(75, 40, 70))
    for k, y in enumerate(range(int(s.horizon) + 3, SIDE, 5)):
        half = radius * (0.9 - 0.1 * k) * s.between(0.7, 1.1)
        s.pen.line([x - half, y, x + half, y], fill=glow, width=2)


def snowy_field(s: Stage) -> None:
    """White ground, firs with white shoulders, and falling flakes."""
    s.shade(s.tint(150, 170, 195), s.tint(190, 205, 220))
    s.ridge(s.horizon, 3, SNOW)
    for x in s.rng.permutation([11, 32, 53])[: int(s.rng.integers(1, 4))] + s.between(-4, 4):
        foot, height = s.horizon + s.between(4, 14), s.between(22, 30)
        s.fir(x, foot, height, s.tint(35, 75, 60))
        snow, half = foot - height * 0.7, height * 0.12
        s.pen.polygon([(x, foot - height), (x - half, snow), (x + half, snow)], fill=SNOW)
    for x, y in s.rng.uniform(0, SIDE, (int(s.rng.integers(14, 24)), 2)):
        disc(s.pen, (x, y), 1.2, (255, 255, 255))


def farm(s: Stage) -> None:
    """A barn with a white crossed door, and furrows that run to it."""
    s.sky()
    s.ground(s.tint(150, 165, 75))
    dark = s.tint(105, 115, 50)
    vanish = s.between(20, 44)
    for end in range(-80, 150, 16):
        s.pen.line([vanish, s.horizon, end, SIDE], fill=dark, width=2)
    x, half, foot = s.between(20, 44), s.between(12, 16), s.horizon + 5
    eaves, ridge = foot - half * 1.1, foot - half * 1.9
    roof = [(x - half, eaves), (x - half * 0.6, ridge), (x + half * 0.6, ridge), (x + half, eaves)]
    s.pen.polygon([(x - half, foot), *roof, (x + half, foot)], fill=s.tint(170, 40, 38))
    s.pen.line(roof, fill=SNOW, width=2)
    door = half * 0.45
    s.pen.rectangle([x - door, foot - 2 * door, x + door, foot], outline=SNOW, width=2)
    s.pen.line([x - door, foot - 2 * door, x + door, foot], fill=SNOW, width=1)
    s.pen.line([x + door, foot - 2 * door, x - door, foot], fill=SNOW, width=1)


def bedroom(s: Stage) -> None:
    """A bed from the side, a window with bars, a floor."""
    wall = s.tint(215, 200, 180)
    s.shade(wall, wall)
    floor = s.horizon + 10
    s.ground(s.tint(140, 100, 70), floor)
    left, wood = s.between(3, 12), s.tint(95, 60, 40)
    right = left + s.between(40, 46)
    s.pen.rectangle([left, floor - 18, left + 3, floor + 9], fill=wood)
    s.pen.rectangle([right, floor - 8, right + 3, floor + 9], fill=wood)
    s.pen.rectangle([left + 3, floor - 6, right, floor + 5], fill=s.tint(*pick(s.rng, ((175, 70, 90), (70, 95, 165)))))
    s.pen.rounded_rectangle([left + 4, floor - 12, left + 15, floor - 5], 3, fill=CREAM)
    x = s.between(28, 42)
    s.pen.rectangle([x, 5, x + 17, 23], fill=s.tint(150, 200, 240), outline=CREAM, width=2)
    s.pen.line([x + 8, 5, x + 8, 23], fill=CREAM, width=2)
    s.pen.line([x, 14, x + 17, 14], fill=CREAM, width=2)


def highway_road(s: Stage) -> None:
    """Asphalt to the horizon with edge lines and a dashed middle."""
    s.sky()
    s.ground(s.tint(100, 150, 75))
    vanish, grey = s.between(24, 40), s.tint(80, 80, 86)
    s.pen.polygon([(vanish - 3, s.horizon), (vanish + 3, s.horizon), (SIDE, SIDE), (0, SIDE)], fill=grey)
    depth = SIDE - s.horizon
    for start, end in ((0.12, 0.24), (0.36, 0.54), (0.7, 1.0)):
        dash = []
        for share, side in ((start, -3), (start, 3), (end, 3), (end, -3)):
            dash.append((vanish + (SIDE / 2 - vanish + side) * share, s.horizon + depth * share))
        s.pen.polygon(dash, fill=(245, 240, 205))
    for x, edge in ((-3, 5), (3, SIDE - 5)):
        s.pen.line([vanish + x * 0.8, s.horizon, edge, SIDE], fill=SNOW, width=2)


def lighthouse(s: Stage) -> None:
    """A banded tower with a lamp room and two beams, on a rock in the sea."""
    s.sky()
    s.ground(s.tint(40, 100, 165))
    x, foot = s.between(20, 44), s.horizon + 12
    top, red = foot - s.between(26, 30), s.tint(200, 40, 40)
    s.pen.ellipse([x - 17, foot - 5, x + 17, foot + 14], fill=s.tint(90, 85, 80))
    for k, y in enumerate(np.linspace(top, foot, 6)[:-1]):
        step, wide = (foot - top) / 5, 3.5 + 0.8 * k
        band = [(x - wide, y), (x + wide, y), (x + wide + 0.8, y + step), (x - wide - 0.8, y + step)]
        s.pen.polygon(band, fill=SNOW if k % 2 else red)
    s.pen.polygon([(x, top - 2), (x - 26, top - 9), (x - 26, top + 3)], fill=(255, 246, 190))
    s.pen.polygon([(x, top - 2), (x + 26, top - 9), (x + 26, top + 3)], fill=(255, 246, 190))
    s.pen.rectangle([x - 3, top - 5, x + 3, top], fill=s.tint(60, 55, 60))
    s.pen.polygon([(x - 5, top - 5), (x + 5, top - 5), (x, top - 10)], fill=red)


def forest_path(s: Stage) -> None:
    """Trunks on both sides of a pale path, under leaves."""
    s.shade(s.tint(95, 150, 80), s.tint(65, 115, 55))
    bend, middle = s.between(-8, 8), 32 + s.between(-3, 3)
    far, top = middle + bend, s.horizon - 2
    path = [(far - 3, top), (far + 3, top), (middle + 20, SIDE), (middle - 20, SIDE)]
    s.pen.polygon(path, fill=s.tint(205, 175, 125))
    bark = s.tint(58, 38, 24)
    for side in (-1, 1):
        for gap, width in ((9, 3), (18, 4), (28, 6)):
            x = middle + side * (gap + s.between(-2, 2)) + bend * (1 - gap / 32)
            s.pen.rectangle([x - width / 2, 0, x + width / 2, s.horizon + gap * 0.7], fill=bark)
    for x in range(0, SIDE + 8, 8):
        disc(s.pen, (x, s.between(-3, 5)), s.between(5, 9), s.tint(40, 85, 35))


def harbor(s: Stage) -> None:
    """Two or three sailing boats at a jetty."""
    s.sky()
    s.ground(s.tint(50, 110, 160), s.horizon - 4)
    s.ripples(s.tint(140, 185, 215), s.horizon, 8)
    boats = ((16, 46), (12, 32, 52))[int(s.rng.integers(2))]
    for middle in boats:
        x, water, size = middle + s.between(-3, 3), s.horizon + s.between(2, 8), s.between(0.85, 1.1)
        mast = water - 30 * size
        s.pen.line([x, water, x, mast], fill=s.tint(70, 50, 40), width=2)
        s.pen.polygon([(x + 2, mast + 2), (x + 2, water - 3), (x + 10 * size, water - 3)], fill=SNOW)
        s.pen.polygon([(x - 2, mast + 7), (x - 2, water - 3), (x - 8 * size, water - 3)], fill=CREAM)
        hull = s.tint(*pick(s.rng, ((160, 50, 45), (40, 60, 110), (60, 50, 45))))
        outline = [(x + reach * size, water + depth) for reach, depth in ((-10, -1), (11, -1), (7, 5), (-7, 5))]
        s.pen.polygon(outline, fill=hull)
    jetty = s.between(54, 58)
    s.pen.rectangle([0, jetty, SIDE, jetty + 3], fill=s.tint(120, 85, 55))
    for post in range(int(s.rng.integers(2, 8)), SIDE, 12):
        s.pen.rectangle([post, jetty, post + 2, SIDE], fill=s.tint(100, 70, 45))


def bridge(s: Stage) -> None:
    """Two towers, hanging cables and a deck over water."""
    s.sky()
    s.ground(s.tint(60, 120, 160), s.horizon + 8)
    s.ripples(s.tint(140, 185, 215), s.horizon + 12, 5)
    steel, shift = s.tint(150, 55, 45), s.between(-5, 5)
    deck, top = s.horizon + s.between(-2, 3), s.between(7, 13)
    left, right = 15 + shift, 49 + shift
    spans = ((left - 34, left), (left, right), (right, right + 34))
    for start, end in spans:
        sag = np.linspace(-1, 1, 9) ** 2
        hang = list(zip(np.linspace(start, end, 9), deck - 3 - (deck - 3 - top) * sag))
        s.pen.line(hang, fill=steel, width=2)
        for x, y in hang[1:-1]:
            s.pen.line([x, y, x, deck], fill=steel, width=1)
    s.pen.rectangle([0, deck, SIDE, deck + 4], fill=steel)
    for x in (left, right):
        s.pen.rectangle([x - 3, top - 3, x + 3, s.horizon + 18], fill=steel)


PAINTERS = {
    "beach": beach, "mountain": mountain, "city skyline": city_skyline, "desert": desert, "night sky": night_sky,
    "sunset": sunset, "snowy field": snowy_field, "farm": farm, "bedroom": bedroom, "highway road": highway_road,
    "lighthouse": lighthouse, "forest path": forest_path, "harbor": harbor, "bridge": bridge,
}  # fmt: skip
NAMES = tuple(PAINTERS)


def _handheld(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A closer, shifted and slightly turned crop that stays within the image."""
    shrink, turn = 1 / uniform(rng, 1.08, 1.25), math.radians(uniform(rng, -4, 4))
    cos, sin = shrink * math.cos(turn), shrink * math.sin(turn)
    middle = SIDE / 2
    slack = middle * (1 - abs(cos) - abs(sin))
    x, y = middle + uniform(rng, -slack, slack), middle + uniform(rng, -slack, slack)
    turned = (cos, -sin, x - middle * (cos - sin), sin, cos, y - middle * (sin + cos))
    return image.transform(image.size, Image.Transform.AFFINE, turned, Image.Resampling.BILINEAR)


def _photograph(label: int, rng: np.random.Generator) -> Image.Image:
    stage = Stage(rng, spread=int(rng.integers(12, 38)), horizon=uniform(rng, 28, 42))
    PAINTERS[NAMES[label]](stage)
    image = _handheld(stage.image, rng) if chance(rng, 0.6) else stage.image
    if chance(rng, 0.5):
        image = ImageOps.mirror(image)
    haze = uniform(rng, 0, 0.45) if chance(rng, 0.3) else 0.0
    if haze:
        image = Image.blend(image, Image.new("RGB", image.size, near(rng, (225, 222, 215), 25)), haze)
    return ImageOps.grayscale(image).convert("RGB") if chance(rng, 0.08) else image


def _print(label: int, rng: np.random.Generator) -> Image.Image:
    """The view in a few flat tones from ink to paper, framed by the paper."""
    stage = Stage(rng, spread=18, horizon=uniform(rng, 31, 38))
    PAINTERS[NAMES[label]](stage)
    colours = np.asarray(stage.image, np.float32)
    light = colours @ np.array([0.3, 0.55, 0.15], np.float32)
    contrast = (light - light.min()) / (np.ptp(light) + 1)  # the whole range, or a tone may swallow the subject
    tones = int(rng.integers(4, 7))
    tone = np.floor(contrast * tones).clip(0, tones - 1) / (tones - 1)
    ink, paper = (np.array(near(rng, end, 14), np.float32) for end in pick(rng, PRINTS))
    printed = ink + (paper - ink) * tone[..., None] ** uniform(rng, 1.0, 1.5)
    printed += 0.18 * (colours - light[..., None])
    frame = int(rng.integers(3, 6))
    inside = np.zeros((SIDE, SIDE, 1), bool)
    inside[frame:-frame, frame : -frame - 2] = True
    return Image.fromarray(np.where(inside, printed, paper).clip(0, 255).astype(np.uint8))


FAMILY = Family(number=6, names=NAMES, templates=TEMPLATES, draw=_print, web=_photograph, vague=VAGUE)
