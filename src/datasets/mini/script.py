"""Script: in the place of KMNIST. Nine letters of other alphabets and the ampersand, which `symbols` has too.

The mixture prints them in two fonts without serifs. The task's pictures are brush strokes, white on black as `digits`
are: fonts with serifs (but for the aleph), in any weight, pulled out of shape.
"""

import numpy as np
from PIL import Image, ImageFilter

from src.datasets.mini.canvas import SIDE, flat, font, pick, stencil, uniform, warp
from src.datasets.mini.extras import SYMBOL_TEMPLATES, SYMBOLS
from src.datasets.mini.family import Family

GLYPHS = ("π", "Ω", "λ", "θ", "α", "β", "я", "ж", "א", "&")
FONTS = ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic")


def _brush(label: int, rng: np.random.Generator) -> Image.Image:
    glyph = GLYPHS[label]
    face = font("DejaVuSans" if glyph == "א" else pick(rng, FONTS), int(rng.integers(56, 72)))
    shape = stencil(glyph, (SIDE / 2, SIDE / 2), face, uniform(rng, -12, 12), int(rng.integers(0, 3)))
    image = flat((0, 0, 0))
    image.paste((255, 255, 255), (0, 0), warp(shape, rng, uniform(rng, 3, 7)))
    return image.filter(ImageFilter.GaussianBlur(uniform(rng, 0.4, 1)))


FAMILY = Family(number=20, names=tuple(SYMBOLS[glyph] for glyph in GLYPHS), templates=SYMBOL_TEMPLATES[:3], draw=_brush)
