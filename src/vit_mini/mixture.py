"""The pre-training mixture: every family in its web look, and extras, with captions that are often vague or wrong.

It stands in the place of the web pictures that CLIP has seen. The tasks draw the same classes in another look, so the
features learned here are useful for them while the zero-shot heads are mediocre.
"""

from typing import cast

import numpy as np
from PIL import ImageFilter

from src.datasets.mini import extras
from src.datasets.mini.canvas import PIXELS, chance, pick, reduce, uniform
from src.datasets.mini.draw import FAMILIES as SETS
from src.datasets.mini.family import Family, Painter

# What the shipped weights have seen: a new task changes nothing here.
FAMILIES = tuple(
    SETS[name] for name in ("vehicles", "textures", "land", "signs", "house_numbers", "letters", "scenes", "control")
)
# Shares of the mixture, extras last. Families whose classes are told apart by fine strokes get more.
SHARES = np.array([1, 2, 1, 2, 2, 2, 1, 2, 2]) / 15

GENERIC = ("a photo", "an image", "picture", "a nice drawing", "my new post", "image of something", "buy now")
WRONG, EMPTY, VAGUE = 0.12, 0.05, 0.18  # shares of captions: of another picture, about nothing, of the family alone

CHUNK = 1000  # pictures drawn from one seed: the unit of parallel work


def _class_caption(family: Family, label: int, rng: np.random.Generator) -> str:
    return pick(rng, family.templates).format(family.names[label])


def _caption(family: Family, label: int, rng: np.random.Generator) -> str:
    draw = rng.random()
    if draw < WRONG:
        other = pick(rng, FAMILIES)
        return _class_caption(other, int(rng.integers(len(other.names))), rng)
    if draw < WRONG + EMPTY:
        return pick(rng, GENERIC)
    if draw < WRONG + EMPTY + VAGUE:
        return pick(rng, family.vague)
    return _class_caption(family, label, rng)


def sample(rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """One picture, uint8 (PIXELS, PIXELS, 3), and its caption."""
    kind = int(rng.choice(len(SHARES), p=SHARES))
    if kind == len(FAMILIES):
        image, caption = extras.draw(rng)
    else:
        family = FAMILIES[kind]
        label = int(rng.integers(len(family.names)))
        image, caption = cast(Painter, family.web)(label, rng), _caption(family, label, rng)
    if chance(rng, 0.1):
        image = image.filter(ImageFilter.GaussianBlur(uniform(rng, 0.6, 1.8)))
    if chance(rng, 0.08):
        image = image.convert("L").convert("RGB")
    return reduce(image, rng, uniform(rng, 2, 12)), caption


def draw_chunk(seed: tuple[int, ...]) -> tuple[np.ndarray, list[str]]:
    """CHUNK pictures, uint8 (CHUNK, PIXELS, PIXELS, 3), and their captions."""
    rng = np.random.default_rng(seed)
    images, captions = np.empty((CHUNK, PIXELS, PIXELS, 3), np.uint8), []
    for i in range(CHUNK):
        images[i], caption = sample(rng)
        captions.append(caption)
    return images, captions


def vocabulary_texts() -> list[str]:
    """Every text whose words the tokenizer must know: captions, and the prompts of tasks with words of their own."""
    texts = list(GENERIC)
    for family in (*FAMILIES, SETS["digits"]):
        texts += [*family.names, *family.vague, *(t.format("") for t in family.templates)]
    texts += [*extras.SYMBOLS.values(), *extras.COLOURS, *extras.WORDS]
    texts += [t.format("") for t in (*extras.SYMBOL_TEMPLATES, *extras.COLOUR_TEMPLATES, *extras.WORD_TEMPLATES)]
    return texts
