"""Chess: in the place of OxfordIIITPet, kinds that differ in detail: the six pieces, which `symbols` has too.

The mixture shows the outlined pieces of diagrams. The task's pictures are pieces on a wooden board: solid and shaded,
white or black, on a square of either colour between parts of its neighbours.
"""

import math

import numpy as np
from PIL import Image, ImageFilter

from src.datasets.mini.canvas import SIDE, blend, clouds, coordinates, font, near, pick, stencil, uniform
from src.datasets.mini.extras import SYMBOL_TEMPLATES
from src.datasets.mini.family import Family

# Each piece's solid shape, and the lines on it.
PIECES = {
    "king": ("♚", "♔"),
    "queen": ("♛", "♕"),
    "rook": ("♜", "♖"),
    "bishop": ("♝", "♗"),
    "knight": ("♞", "♘"),
    "pawn": ("♟", "♙"),
}
WOODS = (((195, 160, 115), (160, 110, 70)), ((190, 175, 150), (140, 110, 85)), ((165, 175, 150), (110, 130, 110)))
LIGHT, DARK = (238, 222, 190), (52, 36, 30)


def _on_board(label: int, rng: np.random.Generator) -> Image.Image:
    x, y = coordinates()
    turn = uniform(rng, -0.25, 0.25)
    centre = SIDE / 2 + uniform(rng, -4, 4), SIDE / 2 + uniform(rng, -4, 4)
    u = ((x - centre[0]) * math.cos(turn) + (y - centre[1]) * math.sin(turn)) / 46
    v = ((y - centre[1]) * math.cos(turn) - (x - centre[0]) * math.sin(turn)) / 46
    odd = (np.floor(u + 0.5) + np.floor(v + 0.5) + int(rng.integers(2))) % 2
    pale, deep = pick(rng, WOODS)
    image = blend(near(rng, pale, 12), near(rng, deep, 12), odd)
    image = blend(image, (60, 35, 20), 0.25 * clouds(rng, 3) + 0.1 * np.sin(u * 60 + 6 * clouds(rng, 3)) ** 2)

    face, degrees = font("DejaVuSans", int(rng.integers(52, 60))), uniform(rng, -8, 8)
    piece, lines = (stencil(text, centre, face, degrees) for text in tuple(PIECES.values())[label])
    fall = int(rng.integers(2, 5))
    shadow = Image.new("L", (SIDE, SIDE))
    shadow.paste(150, (fall, fall // 2), piece)
    image.paste((25, 15, 10), (0, 0), shadow.filter(ImageFilter.GaussianBlur(2)))
    side = ((x - centre[0]) / 20 * pick(rng, (-1, 1)) * 0.5 + 0.5).clip(0, 1)
    body = near(rng, pick(rng, (LIGHT, DARK)), 14)
    lit = blend(tuple(int(0.55 * v) for v in body), tuple(int(v + 0.25 * (255 - v)) for v in body), side)
    image.paste(lit, (0, 0), piece)
    image.paste(tuple(v // 3 for v in body), (0, 0), lines)
    return image


FAMILY = Family(number=12, names=tuple(PIECES), templates=SYMBOL_TEMPLATES[:3], draw=_on_board)
