"""House numbers: in the place of SVHN. A digit in the middle, between the digits that stand beside it.

The mixture shows flat digits in many fonts and colours, alone or in a number of up to four digits, the labelled one in
the middle. The task's pictures are enamel or cast plates on a wall: a rim, raised digits hardly different in colour
from the plate and shown by light and shadow on their edges, uneven light, low contrast and a slight blur; mostly with
neighbours, cropped by the frame. Its fonts are not used by the mixture.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from src.datasets.mini.canvas import SIDE, Colour, backdrop, chance, clouds, contrasting, font, near, pick, uniform
from src.datasets.mini.family import Family

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("a photo of the number {}", "the digit {}", "number {}")
VAGUE = ("a house number", "a number on a wall", "printed digits", "a picture of a number")

WEB_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSerif",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "cmr10",
    "cmtt10",
)
TASK_FONTS = ("DejaVuSerif-Bold", "STIXGeneralBol", "cmss10")
ENAMELS = ((40, 65, 120), (35, 85, 65), (120, 40, 40), (70, 70, 75), (175, 170, 155), (110, 85, 60))

# How many digits stand left and right of the labelled one in the mixture; often none.
ARRANGEMENTS = ((0, 0), (0, 0), (0, 0), (1, 0), (0, 1), (1, 1), (1, 2), (2, 1))


def _digit(rng: np.random.Generator) -> str:
    return str(rng.integers(10))


def _stencil(
    text: str, beside: Callable, rng, arrangement, centre, face, tilt: float, spacing: float, width: str = "0"
) -> Image.Image:
    """The shape of `text` at `centre` and of what `beside` draws on both sides, along a line tilted by up to `tilt`
    degrees. spacing: between their centres, over the width of the character `width`."""
    stencil = Image.new("L", (SIDE, SIDE))
    pen = ImageDraw.Draw(stencil)
    left, right = arrangement
    for offset in range(-left, right + 1):
        shown = beside(rng) if offset else text
        x = centre[0] + offset * face.getlength(width) * spacing
        pen.text((x, centre[1]), shown, font=face, fill=255, anchor="mm")
    return stencil.rotate(uniform(rng, -tilt, tilt), Image.Resampling.BILINEAR, center=centre)


def _print(digit: int, rng: np.random.Generator) -> Image.Image:
    """The mixture's style: flat digits on any ground."""
    ground, ink = contrasting(rng)
    image = backdrop(rng, ground, 15)
    arrangement = pick(rng, ARRANGEMENTS)
    # Among neighbours the labelled digit has to stay the middle one.
    reach, largest = (8, 60) if arrangement == (0, 0) else (3, 46)
    centre = (SIDE / 2 + uniform(rng, -reach, reach), SIDE / 2 + uniform(rng, -8, 8))
    face = font(pick(rng, WEB_FONTS), int(rng.integers(34, largest)))
    image.paste(ink, (0, 0), _stencil(str(digit), _digit, rng, arrangement, centre, face, 12, uniform(rng, 1.0, 1.2)))
    return image


def _plate(rng: np.random.Generator, enamel: Colour) -> Image.Image:
    """A plate on a wall; of its rim the upper and lower sides show, and sometimes the left or the right."""
    image = backdrop(rng, near(rng, (130, 115, 105), 40), 20)
    top, bottom = uniform(rng, 0, 6), SIDE - uniform(rng, 0, 6)
    left, right = uniform(rng, -12, 3), SIDE + uniform(rng, -3, 12)
    rim = tuple(min(255, channel + 55) for channel in enamel)
    box = [left, top, right, bottom]
    ImageDraw.Draw(image).rounded_rectangle(box, radius=8, fill=enamel, outline=rim, width=3)
    return image


def _relief(digit: int, rng: np.random.Generator) -> Image.Image:
    """The task's style."""
    return plate_of(str(digit), _digit, rng)


def plate_of(
    text: str, beside: Callable[[np.random.Generator], str], rng: np.random.Generator, width: str = "0"
) -> Image.Image:
    """A character raised from a plate, lit from the upper left, mostly between others.

    beside: draws a neighbour. width: a character as wide as the widest of them.
    """
    enamel = near(rng, pick(rng, ENAMELS), 15)
    centre = (SIDE / 2 + uniform(rng, -3, 3), SIDE / 2 + uniform(rng, -3, 3))
    face = font(pick(rng, TASK_FONTS), int(rng.integers(48, 58)))
    arrangement = (int(chance(rng, 0.85)), int(chance(rng, 0.85)))
    stencil = _stencil(text, beside, rng, arrangement, centre, face, 6, uniform(rng, 1.02, 1.15), width)

    raised = np.asarray(stencil, np.float32) / 255
    towards_light, away_from_light = np.roll(raised, (-2, -2), (0, 1)), np.roll(raised, (2, 2), (0, 1))
    top_shade = 38 if sum(enamel) < 330 else -38  # the characters' tops: paler on dark plates, darker on pale ones
    relief = top_shade * raised + uniform(rng, 45, 75) * (towards_light - away_from_light)
    light = uniform(rng, 0.65, 0.9) + 0.4 * clouds(rng, 3)
    plate = np.asarray(_plate(rng, enamel), np.float32)
    lit = (plate + relief[..., None]) * light[..., None]
    image = Image.fromarray(lit.clip(0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(uniform(rng, 0.4, 1.2)))


FAMILY = Family(number=7, names=NAMES, templates=TEMPLATES, draw=_relief, web=_print, vague=VAGUE)
