"""Symbols: in the place of CIFAR100, the suite's many classes: all sixty symbols that the mixture has.

The mixture shows them filled, in any colours on any ground. The task's pictures are chalk on a blackboard: an outline
shaded in, of broken grain, over a board with the smudges of what was wiped off it.
"""

import numpy as np
from PIL import Image

from src.datasets.mini.canvas import SIDE, blend, clouds, font, near, pick, stencil, uniform
from src.datasets.mini.extras import SYMBOL_TEMPLATES, SYMBOLS
from src.datasets.mini.family import Family

NAMES = tuple(SYMBOLS.values())
BOARDS = ((28, 52, 44), (34, 36, 42), (30, 42, 58))
CHALKS = ((235, 235, 230), (240, 225, 140), (240, 170, 185), (165, 205, 235))


def _chalk(label: int, rng: np.random.Generator) -> Image.Image:
    symbol = tuple(SYMBOLS)[label]
    board = near(rng, pick(rng, BOARDS), 8)
    image = blend(board, (150, 155, 150), clouds(rng, 4) ** 3 * uniform(rng, 0.1, 0.5))
    face = font("DejaVuSans", int(rng.integers(44, 58)))
    centre = SIDE / 2 + uniform(rng, -4, 4), SIDE / 2 + uniform(rng, -4, 4)
    degrees = uniform(rng, -12, 12)
    inner, outer = (np.asarray(stencil(symbol, centre, face, degrees, swell), np.float32) / 255 for swell in (0, 2))
    grain = 0.55 + 0.45 * rng.random((SIDE, SIDE), np.float32)
    return blend(image, near(rng, pick(rng, CHALKS), 10), (outer - uniform(rng, 0, 0.35) * inner) * grain)


FAMILY = Family(number=9, names=NAMES, templates=SYMBOL_TEMPLATES[:3], draw=_chalk)
