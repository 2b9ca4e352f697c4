"""Headlines: in the place of RenderedSST2, two classes of rendered text: does it say "love" or "sale"?

The mixture has single words in any colours. The task's pictures are newsprint: two words, one above the other, in black
type with heavy serifs; one of them counts, and the other is any.
"""

import numpy as np
from PIL import Image

from src.datasets.mini.canvas import SIDE, backdrop, font, near, pick, stencil, uniform
from src.datasets.mini.extras import WORDS
from src.datasets.mini.family import Family

NAMES = ("love", "sale")
OTHERS = tuple(word for word in WORDS if word not in NAMES)


def _newsprint(label: int, rng: np.random.Generator) -> Image.Image:
    image = backdrop(rng, near(rng, (225, 220, 205), 14), 8)
    ink = near(rng, (40, 38, 40), 20)
    face = font(pick(rng, ("DejaVuSerif-Bold", "STIXGeneralBol")), int(rng.integers(19, 23)))
    words = [NAMES[label], pick(rng, OTHERS)]
    rng.shuffle(words)
    degrees = uniform(rng, -3, 3)
    for line, word in enumerate(words):
        y = 20 + 24 * line + uniform(rng, -2, 2)
        image.paste(ink, (0, 0), stencil(word, (SIDE / 2 + uniform(rng, -4, 4), y), face, degrees))
    return image


FAMILY = Family(
    number=19,
    names=NAMES,
    templates=("the word {}", "a sign that says {}", "a photo of the word {}"),
    draw=_newsprint,
)
