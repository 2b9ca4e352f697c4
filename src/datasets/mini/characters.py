"""Characters: in the place of EMNIST. Digits and letters together, which `digits`, `letters` and `house_numbers` have.

The mixture prints them in many fonts and colours. The task's pictures are a slanting hand, white on black as `digits`
are: italic fonts with serifs that neither the mixture nor those tasks use, slightly pulled out of shape.
"""

import string

import numpy as np
from PIL import Image, ImageFilter

from src.datasets.mini.canvas import SIDE, flat, font, pick, stencil, uniform, warp
from src.datasets.mini.digits import NAMES as DIGITS
from src.datasets.mini.family import Family
from src.datasets.mini.letters import FORMS

# Letters that pass for a digit are left out.
LETTERS = tuple(letter for letter in string.ascii_lowercase if letter not in "ilo")
NAMES = tuple(f"number {name}" for name in DIGITS) + tuple(f"letter {letter}" for letter in LETTERS)
FONTS = ("DejaVuSerif-BoldItalic", "cmti10", "STIXGeneralBolIta")


def _handwriting(label: int, rng: np.random.Generator) -> Image.Image:
    text = str(label) if label < 10 else pick(rng, FORMS[LETTERS[label - 10]])
    face = font(pick(rng, FONTS), int(rng.integers(48, 62)))
    shape = stencil(text, (SIDE / 2, SIDE / 2), face, uniform(rng, -8, 8), int(rng.integers(0, 2)))
    image = flat((0, 0, 0))
    image.paste((255, 255, 255), (0, 0), warp(shape, rng, uniform(rng, 1, 4)))
    return image.filter(ImageFilter.GaussianBlur(uniform(rng, 0.4, 1)))


FAMILY = Family(
    number=15,
    names=NAMES,
    templates=("a photo of the {}", "the {}", "{}"),
    draw=_handwriting,
)
