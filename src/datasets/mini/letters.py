"""Letters: in the place of EMNIST. One letter of the Latin alphabet, upper or lower case.

The mixture shows filled letters in many fonts, colours, sizes and tilts. The task's pictures are a sign-writer's work:
large hollow letters with heavy serifs, whose body hardly differs from the ground, with a light outline and a hard drop
shadow, on a ground of two tones. Their fonts are not used by the mixture.
"""

import math
import string

import numpy as np
from PIL import Image, ImageDraw

from src.datasets.mini.canvas import (
    SIDE,
    backdrop,
    blend,
    colour,
    contrasting,
    coordinates,
    font,
    near,
    pick,
    uniform,
    write,
)
from src.datasets.mini.family import Family

NAMES = tuple(string.ascii_lowercase)
TEMPLATES = ("a photo of the letter {}", "the letter {}", "letter {}")
VAGUE = ("a single letter", "a letter of the alphabet", "a printed character", "a piece of lettering")

# Left out are the forms that pass for another letter or a digit when small and tilted: I and l, g and q (also for 9).
FORMS = {letter: (letter.upper(), letter) for letter in NAMES} | {"g": ("G",), "i": ("i",), "l": ("L",), "q": ("Q",)}

WEB_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmr10",
    "cmss10",
    "cmtt10",
)
TASK_FONTS = ("DejaVuSerif-Bold", "cmb10")


def _print(label: int, rng: np.random.Generator) -> Image.Image:
    """The mixture's style: a filled letter on a plain or cluttered ground."""
    form = pick(rng, FORMS[NAMES[label]])
    ground, ink = contrasting(rng)
    image = backdrop(rng, ground, 15)
    centre = (SIDE / 2 + uniform(rng, -7, 7), SIDE / 2 + uniform(rng, -7, 7))
    face = font(pick(rng, WEB_FONTS), int(rng.integers(36, 60)))
    write(image, form, centre, face, ink, uniform(rng, -15, 15))
    return image


def _stencil(form: str, centre, face, degrees: float, swell: int) -> Image.Image:
    """The letter's shape, made fatter by `swell` pixels all round."""
    stencil = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(stencil).text(centre, form, font=face, fill=255, anchor="mm", stroke_width=swell)
    return stencil.rotate(degrees, Image.Resampling.BILINEAR, center=centre)


def _sign_writing(label: int, rng: np.random.Generator) -> Image.Image:
    """The task's style: shadow, outline and body, one over the other, on a ground of two tones."""
    form = pick(rng, FORMS[NAMES[label]])
    ground = colour(rng, 80, 190)
    x, y = coordinates()
    turn = uniform(rng, 0, 2 * math.pi)
    far_side = (x - SIDE / 2) * math.cos(turn) + (y - SIDE / 2) * math.sin(turn) > uniform(rng, -10, 10)
    darker = tuple(int(channel * 0.75) for channel in near(rng, ground, 20))
    image = blend(ground, darker, far_side.astype(np.float32))

    centre = (SIDE / 2 + uniform(rng, -3, 3), SIDE / 2 + uniform(rng, -3, 3))
    face = font(pick(rng, TASK_FONTS), int(rng.integers(52, 60)))
    degrees = uniform(rng, -12, 12)
    outline = _stencil(form, centre, face, degrees, swell=2)
    body = _stencil(form, centre, face, degrees, swell=0)
    image.paste(colour(rng, 0, 45), (int(rng.integers(3, 6)), int(rng.integers(3, 6))), outline)
    image.paste(near(rng, (240, 240, 230), 15), (0, 0), outline)
    image.paste(near(rng, ground, 35), (0, 0), body)
    return image


FAMILY = Family(number=5, names=NAMES, templates=TEMPLATES, draw=_sign_writing, web=_print, vague=VAGUE)
