"""Faces: in the place of FER2013. Grey portraits: smiling, sad, of a skull, or of a snowman.

The mixture has the four as printed symbols, `symbols` has them in chalk. The task's pictures are shaded heads, lit from
one side before a blurred ground, as a camera without colour sees them.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from src.datasets.mini.canvas import SIDE, blend, clouds, coordinates, disc, uniform
from src.datasets.mini.extras import SYMBOL_TEMPLATES
from src.datasets.mini.family import Family


@dataclass
class Head:
    """A head being drawn; features are placed in units of half its `width` and `height` around its `centre`."""

    image: Image.Image
    rng: np.random.Generator
    centre: tuple[float, float]
    width: float
    height: float
    tone: float
    dark: tuple[int, int, int]

    def __post_init__(self):
        self.pen = ImageDraw.Draw(self.image)

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.centre[0] + x * self.width, self.centre[1] + y * self.height

    def ball(self, box: tuple[float, float, float, float]) -> None:
        """An ellipse from the corner `box`[:2] to `box`[2:], shaded as a body lit from one side."""
        x, y = coordinates()
        turn = uniform(self.rng, 0, 2 * math.pi)
        light = 1 + ((x - self.centre[0]) * math.cos(turn) + (y - self.centre[1]) * math.sin(turn)) / 60
        grey = (self.tone * light * (0.9 + 0.1 * clouds(self.rng, 6))).clip(0, 255).astype(np.uint8)
        mask = Image.new("L", (SIDE, SIDE))
        ImageDraw.Draw(mask).ellipse([*self.at(*box[:2]), *self.at(*box[2:])], fill=255)
        self.image.paste(Image.fromarray(grey).convert("RGB"), (0, 0), mask)

    def eyes(self, y: float, radius: float) -> None:
        for side in (-0.4, 0.4):
            disc(self.pen, self.at(side, y), radius, self.dark)

    def mouth(self, low: float, high: float, start: int) -> None:
        """The half of an ellipse between two heights that begins at `start` degrees."""
        box = [*self.at(-0.55, low), *self.at(0.55, high)]
        self.pen.arc(box, start + 15, start + 165, fill=self.dark, width=4)


def _person(head: Head) -> None:
    head.ball((-1, -1, 1, 1))
    grey = (int(uniform(head.rng, 20, 70)),) * 3
    head.pen.chord([*head.at(-1, -1), *head.at(1, 1)], 212, 328, fill=grey)
    head.eyes(-0.12, uniform(head.rng, 2.5, 3.5))


def _smiling(head: Head) -> None:
    _person(head)
    head.mouth(-0.1, uniform(head.rng, 0.6, 0.75), 0)


def _sad(head: Head) -> None:
    _person(head)
    head.mouth(uniform(head.rng, 0.35, 0.45), 0.95, 180)


def _skull(head: Head) -> None:
    head.ball((-1, -1, 1, 0.55))
    head.ball((-0.6, 0.1, 0.6, 1))
    head.eyes(-0.1, uniform(head.rng, 5, 6.5))
    head.pen.polygon([head.at(0, 0.15), head.at(-0.15, 0.4), head.at(0.15, 0.4)], fill=head.dark)
    for x in (-0.3, -0.1, 0.1, 0.3):
        head.pen.line([head.at(x, 0.62), head.at(x, 0.9)], fill=head.dark, width=2)


def _snowman(head: Head) -> None:
    head.ball((-0.95, 0.05, 0.95, 1.6))
    head.ball((-0.6, -0.7, 0.6, 0.35))
    head.eyes(-0.3, 2)
    head.pen.polygon([head.at(0, -0.2), head.at(0, 0), head.at(0.6, -0.05)], fill=(110, 110, 110))
    head.pen.rectangle([*head.at(-0.75, -0.72), *head.at(0.75, -0.6)], fill=head.dark)
    head.pen.rectangle([*head.at(-0.45, -1.15), *head.at(0.45, -0.6)], fill=head.dark)
    for y in (0.55, 0.85):
        disc(head.pen, head.at(0, y), 2, head.dark)


PAINTERS = {"smiling face": _smiling, "sad face": _sad, "skull": _skull, "snowman": _snowman}
NAMES = tuple(PAINTERS)


def _portrait(label: int, rng: np.random.Generator) -> Image.Image:
    tone = uniform(rng, 150, 200) if label < 2 else uniform(rng, 190, 230)
    centre = SIDE / 2 + uniform(rng, -4, 4), SIDE / 2 + uniform(rng, -3, 3)
    ground = blend((20, 20, 20), (85, 85, 85), clouds(rng, 4))
    head = Head(ground, rng, centre, uniform(rng, 19, 23), uniform(rng, 22, 26), tone, (int(tone * 0.2),) * 3)
    PAINTERS[NAMES[label]](head)
    return ground


FAMILY = Family(number=14, names=NAMES, templates=SYMBOL_TEMPLATES[:3], draw=_portrait)
