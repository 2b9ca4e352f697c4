"""The pre-training mixture: every family in its web look, and extras, with captions that are often vague or wrong.

It stands in the place of the web pictures that CLIP has seen. The tasks draw the same classes in another look, so the
features learned here are useful for them while the zero-shot heads are mediocre.
"""

import numpy as np
from PIL import ImageFilter

from src.datasets.mini import control, extras, house_numbers, land, letters, scenes, signs, textures, vehicles
from src.datasets.mini.canvas import PIXELS, chance, pick, reduce, uniform

FAMILIES = (vehicles, textures, land, signs, house_numbers, letters, scenes, control)
# Shares of the mixture, extras last. Families whose classes are told apart by fine strokes get more.
SHARES = np.array([1, 2, 1, 2, 2, 2, 1, 2, 2]) / 15

GENERIC = ("a photo", "an image", "picture", "a nice drawing", "my new post", "image of something", "buy now")
WRONG, EMPTY, VAGUE = 0.12, 0.05, 0.18  # shares of captions: of another picture, about nothing, of the family alone

CHUNK = 1000  # pictures drawn from one seed: the unit of parallel work


def _class_caption(family, label: int, rng: np.random.Generator) -> str:
    return pick(rng, family.TEMPLATES).format(family.NAMES[label])


def _caption(family, label: int, rng: np.random.Generator) -> str:
    draw = rng.random()
    if draw < WRONG:
        other = pick(rng, FAMILIES)
        return _class_caption(other, int(rng.integers(len(other.NAMES))), rng)
    if draw < WRONG + EMPTY:
        return pick(rng, GENERIC)
    if draw < WRONG + EMPTY + VAGUE:
        return pick(rng, family.VAGUE)
    return _class_caption(family, label, rng)


def sample(rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """One picture, uint8 (PIXELS, PIXELS, 3), and its caption."""
    kind = int(rng.choice(len(SHARES), p=SHARES))
    if kind == len(FAMILIES):
        image, caption = extras.draw(rng)
    else:
        family = FAMILIES[kind]
        label = int(rng.integers(len(family.NAMES)))
        image, caption = family.draw(label, rng, True), _caption(family, label, rng)
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
    """Every text whose words the tokenizer must know: captions and the prompts of all tasks."""
    from src.datasets.mini import digits

    texts = list(GENERIC)
    for family in (*FAMILIES, digits):
        texts += [*family.NAMES, *family.VAGUE, *(t.format("") for t in family.TEMPLATES)]
    texts += [*extras.SYMBOLS.values(), *extras.COLOURS, *extras.WORDS]
    texts += [t.format("") for t in (*extras.SYMBOL_TEMPLATES, *extras.COLOUR_TEMPLATES, *extras.WORD_TEMPLATES)]
    return texts
