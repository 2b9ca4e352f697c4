"""Signs: in the place of GTSRB. European road signs: speed limits, orders, prohibitions and warnings.

The mixture shows them as clean pictograms with white faces, seen head-on, on any ground and in many shades. The
task is a car's camera in another country: yellow faces and serif figures, the board turned away in perspective on its
pole before a dull roadside, in light that is too dim or too bright, often with a shadow lying across it.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from src.datasets.mini.canvas import (
    SIDE,
    Colour,
    backdrop,
    blend,
    chance,
    clouds,
    colour,
    coordinates,
    disc,
    font,
    near,
    pick,
    polygon,
    uniform,
    write,
)
from src.datasets.mini.family import Family

TEMPLATES = ("a {} traffic sign", "a photo of a {} sign", "{} road sign")
VAGUE = ("a traffic sign", "a road sign", "a sign beside the road", "a photo of a street sign")

WEB_FONTS = ("DejaVuSans-Bold", "DejaVuSans", "DejaVuSans-BoldOblique")
TASK_FONT = "STIXGeneralBol"


@dataclass
class Sign:
    """A board being painted; emblems are given in units of `radius` around `centre`."""

    image: Image.Image
    centre: tuple[float, float]
    radius: float
    paints: dict[str, Colour]
    typeface: str
    bent: bool  # turning arrows with a shaft that comes from below

    def __post_init__(self):
        self.pen = ImageDraw.Draw(self.image)

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.centre[0] + x * self.radius, self.centre[1] + y * self.radius

    def line(self, points, width: float, paint: str) -> None:
        thickness = max(2, round(width * self.radius))
        self.pen.line([self.at(x, y) for x, y in points], fill=self.paints[paint], width=thickness, joint="curve")

    def fill(self, points, paint: str) -> None:
        self.pen.polygon([self.at(x, y) for x, y in points], fill=self.paints[paint])

    def text(self, text: str, width: float, paint: str) -> None:
        """`text` in the size at which it is `width` wide."""
        em = font(self.typeface, 100).getlength(text) / 100
        face = font(self.typeface, max(6, round(width * self.radius / em)))
        left, top, right, bottom = face.getbbox(text, anchor="mm")
        centre = (self.centre[0] - (left + right) / 2, self.centre[1] - (top + bottom) / 2)
        write(self.image, text, centre, face, self.paints[paint])


# Outlines: each paints a board of `radius` about `centre`, the point at which its emblem sits.


def _round(pen, centre, radius, fill):
    disc(pen, centre, radius, fill)


def _octagon(pen, centre, radius, fill):
    polygon(pen, centre, 1.06 * radius, 8, math.pi / 8, fill)


def _upright(pen, centre, radius, fill):
    polygon(pen, centre, 1.3 * radius, 3, -math.pi / 2, fill)


def _pointing_down(pen, centre, radius, fill):
    polygon(pen, centre, 1.3 * radius, 3, math.pi / 2, fill)


def _diamond(pen, centre, radius, fill):
    polygon(pen, centre, 1.1 * radius, 4, 0.0, fill)


# Emblems.


def _speed_limit(number: str):
    return lambda sign: sign.text(number, 1.32, "black")


def _nothing(sign):
    pass


def _stop(sign):
    sign.text("STOP", 1.6, "face")


def _bar(sign):
    sign.fill([(-0.68, -0.19), (0.68, -0.19), (0.68, 0.19), (-0.68, 0.19)], "face")


def _arrow(sign, path):
    """An arrow along `path`, its head at the last point."""
    (x0, y0), (x1, y1) = path[-2:]
    length = math.hypot(x1 - x0, y1 - y0)
    dx, dy = (x1 - x0) / length, (y1 - y0) / length
    x, y = x1 - 0.45 * dx, y1 - 0.45 * dy  # the middle of the head's base
    sign.line([*path[:-1], (x + 0.1 * dx, y + 0.1 * dy)], 0.26, "face")
    sign.fill([(x1, y1), (x - 0.42 * dy, y + 0.42 * dx), (x + 0.42 * dy, y - 0.42 * dx)], "face")


def _turn(side: int):
    def paint(sign):
        start = [(-0.4 * side, 0.62), (-0.4 * side, -0.12)] if sign.bent else [(-0.72 * side, 0)]
        _arrow(sign, [*start, (0.74 * side, start[-1][1])])

    return paint


def _ahead(sign):
    _arrow(sign, [(0, 0.75), (0, -0.78)])


def _keep_right(sign):
    _arrow(sign, [(-0.52, -0.52), (0.56, 0.56)])


def _circling_arrows(sign):
    box = [*sign.at(-0.6, -0.6), *sign.at(0.6, 0.6)]
    for start in (20, 140, 260):
        sign.pen.arc(box, start, start + 75, fill=sign.paints["face"], width=round(0.23 * sign.radius))
        end = math.radians(start + 75)
        tip = end + 0.62
        corners = [(0.24 * math.cos(end), 0.24 * math.sin(end)), (0.78 * math.cos(end), 0.78 * math.sin(end))]
        sign.fill([*corners, (0.5 * math.cos(tip), 0.5 * math.sin(tip))], "face")


def _exclamation_mark(sign):
    sign.fill([(-0.14, -0.52), (0.14, -0.52), (0.09, 0.1), (-0.09, 0.1)], "black")
    disc(sign.pen, sign.at(0, 0.3), 0.13 * sign.radius, sign.paints["black"])


def _saltire(sign):
    sign.line([(-0.3, -0.18), (0.3, 0.4)], 0.2, "black")
    sign.line([(0.3, -0.18), (-0.3, 0.4)], 0.2, "black")


def _walker(sign):
    disc(sign.pen, sign.at(0, -0.42), 0.15 * sign.radius, sign.paints["black"])
    sign.line([(0, -0.25), (0, 0.08)], 0.26, "black")
    sign.line([(-0.26, 0.42), (0, 0.02), (0.26, 0.42)], 0.15, "black")


def _humps(sign):
    for x in (-0.28, 0.28):
        sign.pen.pieslice([*sign.at(x - 0.27, 0.0), *sign.at(x + 0.27, 0.66)], 180, 360, fill=sign.paints["black"])
    sign.fill([(-0.6, 0.32), (0.6, 0.32), (0.6, 0.41), (-0.6, 0.41)], "black")


# A board: outline, paint of its border, paint of its middle and how much of the radius the middle takes.
BAN = (_round, "red", "face", 0.8)
ORDER = (_round, "blue", "blue", 1.0)
WARNING = (_upright, "red", "face", 0.72)

SIGNS = {
    "speed limit 20": (BAN, _speed_limit("20")),
    "speed limit 30": (BAN, _speed_limit("30")),
    "speed limit 50": (BAN, _speed_limit("50")),
    "speed limit 60": (BAN, _speed_limit("60")),
    "speed limit 70": (BAN, _speed_limit("70")),
    "speed limit 80": (BAN, _speed_limit("80")),
    "stop": ((_octagon, "red", "red", 1.0), _stop),
    "yield": ((_pointing_down, "red", "face", 0.6), _nothing),
    "no entry": ((_round, "red", "red", 1.0), _bar),
    "priority road": ((_diamond, "face", "gold", 0.66), _nothing),
    "turn left": (ORDER, _turn(-1)),
    "turn right": (ORDER, _turn(1)),
    "go straight": (ORDER, _ahead),
    "roundabout": (ORDER, _circling_arrows),
    "danger": (WARNING, _exclamation_mark),
    "crossroad": (WARNING, _saltire),
    "pedestrian crossing": (WARNING, _walker),
    "no vehicles": ((_round, "red", "face", 0.7), _nothing),
    "bumpy road": (WARNING, _humps),
    "keep right": (ORDER, _keep_right),
}
NAMES = tuple(SIGNS)


def _paint(sign: Sign, name: str) -> None:
    (outline, border, middle, share), emblem = SIGNS[name]
    outline(sign.pen, sign.centre, sign.radius, sign.paints[border])
    outline(sign.pen, sign.centre, sign.radius * share, sign.paints[middle])
    emblem(sign)


def _emblem_point(name: str, radius: float, centre: tuple[float, float]) -> tuple[float, float]:
    """A triangle's middle lies off the middle of its box: shift it so that the box is centred."""
    outline = SIGNS[name][0][0]
    shift = {_upright: 0.3, _pointing_down: -0.3}.get(outline, 0.0)
    return centre[0], centre[1] + shift * radius


def _pictogram(label: int, rng: np.random.Generator) -> Image.Image:
    name = NAMES[label]
    image = backdrop(rng, colour(rng, 30, 225) if chance(rng, 0.6) else near(rng, (120, 130, 125), 50), 30)
    radius = uniform(rng, 20, 28)
    middle = (SIDE / 2 + uniform(rng, -1, 1) * (31 - radius), SIDE / 2 + uniform(rng, -1, 1) * (31 - radius))
    paints = {
        "red": near(rng, (205, 35, 40), 35),
        "blue": near(rng, (35, 75, 185), 35),
        "face": near(rng, (240, 240, 240), 15),
        "black": near(rng, (25, 25, 25), 20),
        "gold": near(rng, (240, 190, 25), 20),
    }
    if chance(rng, 0.1):
        paints["face"], paints["black"] = paints["black"], paints["face"]
    centre = _emblem_point(name, radius, middle)
    if chance(rng, 0.4):
        rim = pick(rng, (paints["face"], paints["black"]))
        SIGNS[name][0][0](ImageDraw.Draw(image), centre, radius + 2.5, rim)
    _paint(Sign(image, centre, radius, paints, pick(rng, WEB_FONTS), chance(rng, 0.5)), name)
    image = image.rotate(uniform(rng, -10, 10), Image.Resampling.BILINEAR, fillcolor=image.getpixel((1, 1)))
    return image.convert("L").convert("RGB") if chance(rng, 0.08) else image


def _turned_away(rng: np.random.Generator) -> list[float]:
    """Coefficients, as Pillow wants them, of a perspective that sees the canvas from one side.

    Its corners move to `quad`; Pillow maps the other way, from the picture back to the board.
    """
    far, close, shrink, lift = uniform(rng, 5, 13), 2.0, uniform(rng, 4, 9), uniform(rng, -5, 5)
    left, right = (far, close) if chance(rng, 0.5) else (close, far)
    left_end, right_end = (shrink, 0.0) if left == far else (0.0, shrink)
    quad = [
        (left, left_end + lift),
        (SIDE - right, right_end + lift),
        (SIDE - right, SIDE - right_end + lift),
        (left, SIDE - left_end + lift),
    ]
    rows, values = [], []
    for (x, y), (u, v) in zip(quad, [(0, 0), (SIDE, 0), (SIDE, SIDE), (0, SIDE)]):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return list(np.linalg.solve(np.array(rows, float), np.array(values, float)))


def _light(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Too dim or too bright, and perhaps with a shadow's edge across the picture."""
    pixels: np.ndarray = np.asarray(image, np.float32)
    if chance(rng, 0.5):
        pixels = pixels * uniform(rng, 0.4, 0.65)
    else:
        pixels = pixels * uniform(rng, 1.1, 1.3) + uniform(rng, 15, 45)
    if chance(rng, 0.6):
        x, y = coordinates()
        turn = uniform(rng, 0, 2 * math.pi)
        depth = (x - SIDE / 2) * math.cos(turn) + (y - SIDE / 2) * math.sin(turn) + uniform(rng, -14, 14)
        pixels = pixels * (1 - uniform(rng, 0.25, 0.5) * (depth / 3 + 0.5).clip(0, 1))[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _photograph(label: int, rng: np.random.Generator) -> Image.Image:
    name = NAMES[label]
    paints = {
        "red": near(rng, (175, 35, 30), 15),
        "blue": near(rng, (30, 60, 130), 15),
        "face": near(rng, (240, 200, 50), 12),
        "black": near(rng, (30, 28, 25), 10),
        "gold": near(rng, (215, 120, 25), 12),
    }
    radius = uniform(rng, 25, 28)
    centre = _emblem_point(name, radius, (SIDE / 2, SIDE / 2))
    board = Image.new("RGB", (SIDE, SIDE), paints[SIGNS[name][0][1]])
    cutout = Image.new("L", (SIDE, SIDE), 0)
    _paint(Sign(board, centre, radius, paints, TASK_FONT, True), name)
    SIGNS[name][0][0](ImageDraw.Draw(cutout), centre, radius, 255)
    board.putalpha(cutout)
    board = board.transform(board.size, Image.Transform.PERSPECTIVE, _turned_away(rng), Image.Resampling.BILINEAR)

    roadside = blend(near(rng, (95, 100, 85), 20), near(rng, (150, 150, 145), 25), clouds(rng, int(rng.integers(3, 9))))
    pole = uniform(rng, 29, 35)
    ImageDraw.Draw(roadside).rectangle([pole - 2, SIDE / 2, pole + 2, SIDE], fill=near(rng, (120, 120, 120), 15))
    roadside.paste(board, (0, 0), board)
    return _light(roadside, rng)


FAMILY = Family(number=3, names=NAMES, templates=TEMPLATES, draw=_photograph, web=_pictogram, vague=VAGUE)
