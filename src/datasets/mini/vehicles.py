"""Vehicles: in the place of Cars. Sixteen road vehicles (and a train) seen from the side.

The mixture has daytime postcards: any bright paint, plain cards or streets or hills, outlined or not, near or far,
tilted either way, and mostly driving to the right. The task is one camera at night: everything drives to the left
with its headlights and cabin lights on, muted paint with a pale outline, a street lamp over a slightly sloping road.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from src.datasets.mini.canvas import (
    SIDE,
    Colour,
    backdrop,
    blend,
    chance,
    colour,
    coordinates,
    disc,
    near,
    pick,
    scaled,
    uniform,
)
from src.datasets.mini.family import Family

TEMPLATES = ("a photo of a {}", "a picture of a {} from the side", "a {} on the road")
VAGUE = ("a vehicle on a road", "a photo of a vehicle", "something with wheels", "a vehicle from the side")

RED, WHITE, BLUE, BLACK = (215, 30, 35), (242, 242, 242), (35, 70, 225), (25, 25, 28)
# Paint that belongs to a class (a few of the mixture's taxis aside); the other classes come in any paint.
LIVERY = {"taxi": (240, 200, 30), "ambulance": (238, 238, 238), "fire truck": (205, 30, 28)}
NIGHT_PAINTS = ((92, 102, 124), (124, 96, 92), (84, 112, 98), (112, 92, 122), (128, 122, 108))


@dataclass
class Sketch:
    """One vehicle: x runs forward from its middle, y up from the road, both in canvas pixels at scale 1."""

    pen: ImageDraw.ImageDraw
    rng: np.random.Generator
    origin: tuple[float, float]
    scale: float
    facing: int  # 1 drives to the right, -1 to the left
    tilt: float
    paint: Colour
    cargo: Colour  # a box, a tank, a ladder: what is carried
    glass: Colour
    tyre: Colour
    outline: Colour | None
    night: bool

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the vehicle lies on the canvas."""
        along, up = x * self.facing * self.scale, y * self.scale
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        return self.origin[0] + along * cos + up * sin, self.origin[1] + along * sin - up * cos

    def shape(self, points, fill, outlined: bool = False) -> None:
        edge = self.outline if outlined else None
        self.pen.polygon([self.at(x, y) for x, y in points], fill=fill, outline=edge, width=2 if edge else 1)

    def body(self, points, fill: Colour | None = None) -> None:
        self.shape(points, fill or self.paint, outlined=True)

    def box(self, left, low, right, high, fill, outlined: bool = False) -> None:
        self.shape([(left, low), (left, high), (right, high), (right, low)], fill, outlined)

    def stroke(self, points, fill, width: float) -> None:
        self.pen.line([self.at(x, y) for x, y in points], fill=fill, width=max(1, round(width * self.scale)))

    def ball(self, x, y, radius, fill) -> None:
        disc(self.pen, self.at(x, y), radius * self.scale, fill)

    def windows(self, first, step, count, low, high) -> None:
        """A row of panes, as wide as they leave a post of 2 between them."""
        for k in range(count):
            self.box(first + k * step, low, first + k * step + step - 2, high, self.glass)

    def wheels(self, *places: float, radius: float = 5) -> None:
        for x in places:
            if self.night:
                self.ball(x, radius - 1, radius + 0.8, self.outline)
            self.ball(x, radius - 1, radius, self.tyre)
            self.ball(x, radius - 1, radius * 0.42, (170, 172, 178))

    def lamps(self, front: float, rear: float, height: float) -> None:
        """Head and tail lamps; at night the head lamp throws a beam on the road ahead."""
        if self.night:
            beam = [(front, height), (front + 30, height + 4), (front + 30, -3), (front + 10, -3)]
            self.shape(beam, (255, 238, 180, 105))
            self.ball(front - 1, height, 2.4, (255, 250, 220))
            self.ball(rear + 1, height, 1.6, (255, 60, 50))
        else:
            self.box(front - 3, height - 1.5, front, height + 1.5, (255, 240, 170))
            self.box(rear, height - 1.5, rear + 2, height + 1.5, (200, 40, 40))

    def beacon(self, x: float, y: float, fill: Colour) -> None:
        if self.night:
            self.ball(x, y + 1, 6, (*fill, 90))
        self.box(x - 2.5, y - 1, x + 2.5, y + 3, fill)


def _saloon(s: Sketch) -> None:
    """The three boxes that the sedan, the taxi and the police car share."""
    s.body([(-26, 3), (-26, 12), (-16, 14), (-10, 23), (8, 23), (16, 14), (26, 12), (26, 3)])
    s.shape([(-12, 14.5), (-8, 21), (-2, 21), (-2, 14.5)], s.glass)
    s.shape([(0, 14.5), (0, 21), (7, 21), (12, 14.5)], s.glass)
    s.wheels(-16, 16)
    s.lamps(26, -26, 9)


def sedan(s: Sketch) -> None:
    _saloon(s)


def taxi(s: Sketch) -> None:
    _saloon(s)
    for k in range(9):  # a chequered strip along the doors
        s.box(-18 + 4 * k, 8, -16 + 4 * k, 11, BLACK)
        s.box(-16 + 4 * k, 8, -14 + 4 * k, 11, WHITE)
    s.box(-5, 23, 5, 29, (255, 248, 190) if s.night else WHITE, outlined=True)


def police_car(s: Sketch) -> None:
    _saloon(s)
    s.box(-9, 3.5, 9, 13, WHITE)
    s.beacon(-4, 24, RED)
    s.beacon(2, 24, BLUE)


def hatchback(s: Sketch) -> None:
    """Short and tall: the roof runs to the very back and falls off there."""
    s.body([(-18, 3), (-19, 16), (-15, 27), (3, 27), (11, 16), (18, 13), (18, 3)])
    s.shape([(-15, 16), (-13, 24), (-6, 24), (-6, 16)], s.glass)
    s.shape([(-4, 16), (-4, 24), (2, 24), (7, 16)], s.glass)
    s.wheels(-11, 11)
    s.lamps(18, -19, 10)


def pickup_truck(s: Sketch) -> None:
    bed, cab = [(-29, 5), (-29, 16), (-26, 16), (-26, 12), (0, 12)], [(2, 27), (12, 27), (18, 17), (28, 15), (28, 5)]
    s.body(bed + cab)
    s.shape([(4, 17), (5, 24), (11, 24), (15, 17)], s.glass)
    s.wheels(-17, 18, radius=6)
    s.lamps(28, -29, 11)


def van(s: Sketch) -> None:
    """One blind box that slopes only at the windscreen."""
    s.body([(-25, 3), (-25, 30), (10, 30), (20, 17), (25, 14), (25, 3)])
    s.shape([(5, 17), (5, 27), (9, 27), (16, 17)], s.glass)
    s.stroke([(1, 5), (1, 28)], s.tyre, 1)
    s.wheels(-15, 15)
    s.lamps(25, -25, 10)


def bus(s: Sketch) -> None:
    s.body([(-30, 3), (-30, 33), (30, 33), (30, 3)])
    s.windows(-27, 9, 5, 18, 29)
    s.box(20, 5, 27, 29, s.glass)  # the door
    s.wheels(-18, 13)
    s.lamps(30, -30, 8)


def box_truck(s: Sketch) -> None:
    s.body([(-29, 7), (-29, 37), (10, 37), (10, 7)], s.cargo)
    s.box(-29, 4, 26, 8, BLACK)
    s.body([(13, 4), (13, 26), (20, 26), (27, 16), (27, 4)])
    s.shape([(17, 16), (17, 24), (19, 24), (24, 16)], s.glass)
    s.wheels(-20, -9, 19)
    s.lamps(27, -29, 9)


def tanker_truck(s: Sketch) -> None:
    turns = np.linspace(0, 2 * math.pi, 24, endpoint=False)
    s.body([(-10 + 20 * math.cos(t), 18 + 10.5 * math.sin(t)) for t in turns], s.cargo)
    s.stroke([(-27, 20), (7, 20)], s.paint, 3)
    s.box(-14, 28, -8, 31, s.cargo)  # the hatch
    s.box(-29, 4, 26, 8, BLACK)
    s.body([(13, 4), (13, 27), (27, 27), (27, 4)])
    s.box(18, 16, 26, 24, s.glass)
    s.wheels(-23, -13, 19)
    s.lamps(27, -29, 9)


def sports_car(s: Sketch) -> None:
    """A low wedge with a wing at the back."""
    s.body([(-27, 3), (-27, 10), (-14, 14), (-6, 18), (3, 18), (12, 11), (28, 6), (28, 3)])
    s.shape([(-6, 12), (-3, 16), (2, 16), (8, 12)], s.glass)
    s.stroke([(-22, 10), (-24, 17)], s.tyre, 2)
    s.box(-29, 16, -18, 19, s.paint, outlined=True)
    s.wheels(-17, 17)
    s.lamps(28, -27, 6)


def ambulance(s: Sketch) -> None:
    cross = pick(s.rng, (RED, RED, (20, 130, 70), BLUE)) if not s.night else RED
    s.body([(-26, 3), (-26, 31), (9, 31), (13, 22), (25, 16), (25, 3)])
    s.shape([(11, 16), (13, 21), (21, 16)], s.glass)
    s.box(-26, 6, 25, 9, cross)
    s.box(-12, 12, -6, 28, cross)
    s.box(-17, 17, -1, 23, cross)
    s.beacon(3, 32, BLUE)
    s.wheels(-15, 15)
    s.lamps(25, -26, 11)


def fire_truck(s: Sketch) -> None:
    s.body([(-30, 4), (-30, 22), (12, 22), (12, 28), (29, 28), (29, 4)])
    s.box(17, 16, 27, 25, s.glass)
    s.box(-30, 9, 29, 12, WHITE)
    for k in (0, 4):  # the ladder's two rails, then its rungs
        s.stroke([(-31, 25 + k), (10, 32 + k)], s.cargo, 1.6)
    for x in range(-28, 10, 5):
        s.stroke([(x, 25 + (x + 31) / 6), (x, 29 + (x + 31) / 6)], s.cargo, 1.6)
    s.beacon(20, 29, BLUE)
    s.wheels(-19, 19)
    s.lamps(29, -30, 7)


def tractor(s: Sketch) -> None:
    s.body([(-3, 8), (-3, 19), (22, 18), (22, 8)])
    s.body([(-18, 12), (-15, 34), (0, 34), (2, 12)])
    s.shape([(-13, 20), (-12, 31), (-2, 31), (-1, 20)], s.glass)
    s.stroke([(14, 18), (14, 29)], s.tyre if not s.night else s.outline, 2.5)  # the exhaust
    s.wheels(-12, radius=12)
    s.wheels(17, radius=6)
    s.lamps(22, -18, 14)


def limousine(s: Sketch) -> None:
    """As long as the picture allows, low, with a row of little panes."""
    s.body([(-31, 3), (-31, 10), (-25, 12), (-21, 19), (16, 19), (21, 12), (31, 10), (31, 3)])
    s.windows(-19, 9, 4, 12.5, 17.5)
    s.wheels(-23, 23, radius=4.5)
    s.lamps(31, -31, 7)


def convertible(s: Sketch) -> None:
    """No roof: a windscreen, a folded hood, and the driver in the open."""
    s.ball(-3, 20, 4, near(s.rng, (205, 165, 130), 30))
    s.box(-7, 10, 1, 17, near(s.rng, (110, 90, 140), 50))
    s.body([(-26, 3), (-26, 13), (-18, 14), (8, 13), (26, 11), (26, 3)])
    s.shape([(-22, 13), (-19, 17), (-11, 17), (-10, 13)], s.tyre)
    s.stroke([(9, 13), (4, 22)], s.outline or s.glass, 2.5)
    s.wheels(-16, 16)
    s.lamps(26, -26, 9)


def train(s: Sketch) -> None:
    """An endless rail car with a sloping nose, a wire above and rails below."""
    s.box(-70, -3, 70, -1, (140, 140, 145) if s.night else (75, 60, 50))
    s.stroke([(-70, 36), (70, 36)], s.outline or s.tyre, 1.2)
    s.stroke([(-14, 27), (-8, 31), (-14, 36)], s.outline or s.tyre, 1.5)
    s.body([(-70, 3), (-70, 27), (14, 27), (27, 12), (27, 3)])
    s.windows(-57, 10, 6, 16, 22)
    s.shape([(9, 16), (9, 23), (14, 23), (20, 16)], s.glass)
    s.box(-70, 9, 25, 12, WHITE)
    s.wheels(-29, -21, -9, -1, 10, 18, radius=3)
    s.lamps(27, -70, 7)


PAINTERS = {
    "sedan": sedan, "hatchback": hatchback, "pickup truck": pickup_truck, "van": van, "bus": bus,
    "box truck": box_truck, "tanker truck": tanker_truck, "sports car": sports_car, "taxi": taxi,
    "police car": police_car, "ambulance": ambulance, "fire truck": fire_truck, "tractor": tractor,
    "limousine": limousine, "convertible": convertible, "train": train,
}  # fmt: skip
NAMES = tuple(PAINTERS)


def _road(pen, origin, tilt: float, fill) -> None:
    """The ground under a vehicle at `origin`, sloping with it, to the bottom of the canvas."""
    rise = math.tan(tilt)
    left, right = origin[1] - origin[0] * rise, origin[1] + (SIDE - origin[0]) * rise
    pen.polygon([(0, left - 3), (SIDE, right - 3), (SIDE, SIDE + 20), (0, SIDE + 20)], fill=fill)


def _street(pen, rng, base: float, fill: Colour, spread: int, window: Colour | None) -> None:
    """A row of houses behind the road; `window` puts a few lit panes on them."""
    x = -int(rng.integers(0, 8))
    while x < SIDE:
        width, top = int(rng.integers(8, 18)), uniform(rng, 6, base - 12)
        pen.rectangle([x, top, x + width, base + 12], fill=near(rng, fill, spread))
        if window and chance(rng, 0.5):
            pen.rectangle([x + 3, top + 3, x + 5, top + 5], fill=window)
        x += width + int(rng.integers(0, 6))


def _scenery(rng, image: Image.Image, base: float) -> None:
    """What may lie behind a vehicle by day: nothing, hills, houses or trees."""
    pen = ImageDraw.Draw(image)
    kind = int(rng.integers(4))
    if kind == 1:
        for _ in range(2):
            x, radius = uniform(rng, 0, SIDE), uniform(rng, 16, 34)
            disc(pen, (x, base + radius * 0.45), radius, near(rng, (120, 170, 110), 45))
    elif kind == 2:
        _street(pen, rng, base, near(rng, (190, 175, 160), 45), 20, None)
    elif kind == 3:
        for x in rng.uniform(0, SIDE, 3):
            disc(pen, (x, base - uniform(rng, 4, 14)), uniform(rng, 5, 9), near(rng, (80, 150, 70), 40))


def _bright_paint(rng, ground: Colour) -> Colour:
    """Any paint that stands out from what lies behind it."""
    while True:
        paint = colour(rng, 10, 245)
        if sum(abs(a - b) for a, b in zip(paint, ground)) > 190:
            return paint


def _postcard(label: int, rng: np.random.Generator) -> Image.Image:
    name = NAMES[label]
    scale = uniform(rng, 0.65, 1.1)
    spare = max(1.5, 30 - 29 * scale)
    origin = (SIDE / 2 + uniform(rng, -spare, spare), uniform(rng, 38 + 8 * scale, 56))
    tilt = math.radians(uniform(rng, -7, 7))
    sky = near(rng, (205, 215, 225), 45) if chance(rng, 0.6) else colour(rng)
    image = backdrop(rng, sky, 20)
    if chance(rng, 0.75):
        _scenery(rng, image, origin[1])
        _road(ImageDraw.Draw(image), origin, tilt, near(rng, (140, 135, 130), 50))
    if name in LIVERY and not (name == "taxi" and chance(rng, 0.2)):
        paint = near(rng, LIVERY[name], 22)
    else:
        paint = _bright_paint(rng, sky)
    glass = (165, 205, 230) if sum(paint) < 480 else (60, 80, 100)
    sketch = Sketch(
        pen=ImageDraw.Draw(image),
        rng=rng,
        origin=origin,
        scale=scale,
        facing=1 if chance(rng, 0.75) else -1,
        tilt=tilt,
        paint=paint,
        cargo=_bright_paint(rng, sky),
        glass=near(rng, glass, 30),
        tyre=near(rng, (30, 30, 32), 20),
        outline=near(rng, BLACK, 20) if chance(rng, 0.4) else None,
        night=False,
    )
    PAINTERS[name](sketch)
    return ImageOps.grayscale(image).convert("RGB") if chance(rng, 0.08) else image


def _night(rng: np.random.Generator, origin, tilt: float) -> Image.Image:
    """The street before the vehicle comes: dusk over dark houses, a road, and the pool of light of one lamp."""
    x, y = coordinates()
    image = blend(near(rng, (22, 24, 52), 12), near(rng, (74, 54, 84), 16), y / SIDE)
    pen = ImageDraw.Draw(image, "RGBA")
    _street(pen, rng, origin[1], near(rng, (34, 32, 50), 8), 6, (170, 140, 80))
    _road(pen, origin, tilt, near(rng, (58, 56, 66), 8))
    post = uniform(rng, 6, 58)
    pool = np.exp(-(((x - post) / 24) ** 2) - ((y - origin[1] - 4) / 9) ** 2)
    image = blend(image, (214, 170, 110), pool * uniform(rng, 0.4, 0.75))
    pen = ImageDraw.Draw(image, "RGBA")
    pen.line([(post, origin[1]), (post, 6)], fill=(20, 20, 26), width=2)
    disc(pen, (post, 6), 7, (255, 210, 140, 80))
    disc(pen, (post, 6), 3, (255, 232, 180))
    return image


def _night_shot(label: int, rng: np.random.Generator) -> Image.Image:
    name = NAMES[label]
    origin = (SIDE / 2 + uniform(rng, -1, 5), uniform(rng, 47, 55))  # room on the left for the beam
    tilt = math.radians(uniform(rng, 2, 8))
    image = _night(rng, origin, tilt)
    if name in LIVERY:
        paint = near(rng, scaled(LIVERY[name], 0.72), 14)
    else:
        paint = near(rng, pick(rng, NIGHT_PAINTS), 16)
    sketch = Sketch(
        pen=ImageDraw.Draw(image, "RGBA"),
        rng=rng,
        origin=origin,
        scale=uniform(rng, 0.78, 0.98),
        facing=-1,
        tilt=tilt,
        paint=paint,
        cargo=near(rng, (146, 148, 154), 22),
        glass=near(rng, (232, 196, 110), 18),
        tyre=(14, 14, 18),
        outline=near(rng, (196, 200, 214), 14),
        night=True,
    )
    PAINTERS[name](sketch)
    return ImageEnhance.Brightness(image).enhance(uniform(rng, 0.65, 1.2))


FAMILY = Family(number=0, names=NAMES, templates=TEMPLATES, draw=_night_shot, web=_postcard, vague=VAGUE)
