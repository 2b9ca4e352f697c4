"""Extras: what only the pre-training mixture has, so that it knows more than the tasks ask: symbols, colours, words."""

import numpy as np
from PIL import Image

from src.datasets.mini.canvas import SIDE, Colour, backdrop, chance, contrasting, font, near, pick, uniform, write

# Every symbol is in DejaVu Sans.
SYMBOLS = {
    "☀": "sun",
    "☁": "cloud",
    "☂": "umbrella",
    "☃": "snowman",
    "☎": "telephone",
    "☠": "skull",
    "☮": "peace sign",
    "☯": "yin yang",
    "☺": "smiling face",
    "☹": "sad face",
    "♔": "king",
    "♕": "queen",
    "♖": "rook",
    "♗": "bishop",
    "♘": "knight",
    "♙": "pawn",
    "♠": "spade",
    "♣": "club",
    "♦": "diamond",
    "♪": "music note",
    "♻": "recycling",
    "⚓": "anchor",
    "⚔": "swords",
    "⚖": "scales",
    "⚙": "gear",
    "⚛": "atom",
    "⚡": "lightning",
    "✂": "scissors",
    "✈": "airplane",
    "✉": "envelope",
    "✌": "victory hand",
    "✎": "pencil",
    "✓": "check mark",
    "✗": "cross mark",
    "❄": "snowflake",
    "➔": "arrow",
    "∞": "infinity",
    "∑": "sum",
    "∫": "integral",
    "√": "root",
    "π": "pi",
    "Ω": "omega",
    "λ": "lambda",
    "θ": "theta",
    "α": "alpha",
    "β": "beta",
    "@": "at",
    "#": "hash",
    "&": "ampersand",
    "%": "percent",
    "?": "question mark",
    "!": "exclamation mark",
    "€": "euro",
    "$": "dollar",
    "£": "pound",
    "+": "plus",
    "=": "equals",
    "я": "cyrillic ya",
    "ж": "cyrillic zhe",
    "א": "aleph",
}
SYMBOL_TEMPLATES = ("the {} symbol", "a drawing of the {} symbol", "an icon that shows {}", "{}")
SYMBOL_FONTS = ("DejaVuSans", "DejaVuSans-Bold")

COLOURS: dict[str, Colour] = {
    "red": (210, 35, 35),
    "green": (40, 160, 60),
    "blue": (40, 70, 210),
    "yellow": (235, 205, 40),
    "purple": (140, 50, 170),
    "white": (240, 240, 240),
    "black": (15, 15, 15),
    "grey": (128, 128, 128),
    "orange": (240, 130, 25),
    "pink": (245, 150, 185),
}
# A template with its own article suits every colour but "orange", hence "plain".
COLOUR_TEMPLATES = ("the color {}", "a plain {} background", "{} paint")

WORDS = ("cat", "dog", "sale", "open", "news", "hello", "love", "art", "menu", "taxi", "wifi", "exit")
WORD_TEMPLATES = ("the word {}", "a sign that says {}")
WORD_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif")


def _symbol(rng: np.random.Generator) -> tuple[Image.Image, str]:
    symbol = pick(rng, tuple(SYMBOLS))
    ground, ink = contrasting(rng)
    image = backdrop(rng, ground, 15)
    centre = (SIDE / 2 + uniform(rng, -8, 8), SIDE / 2 + uniform(rng, -8, 8))
    write(image, symbol, centre, font(pick(rng, SYMBOL_FONTS), int(rng.integers(34, 60))), ink, uniform(rng, -15, 15))
    return image, pick(rng, SYMBOL_TEMPLATES).format(SYMBOLS[symbol])


def _plain_colour(rng: np.random.Generator) -> tuple[Image.Image, str]:
    name = pick(rng, tuple(COLOURS))
    return backdrop(rng, near(rng, COLOURS[name], 15), 10), pick(rng, COLOUR_TEMPLATES).format(name)


def _word(rng: np.random.Generator) -> tuple[Image.Image, str]:
    word = pick(rng, WORDS)
    ground, ink = contrasting(rng)
    image = backdrop(rng, ground, 15)
    centre = (SIDE / 2 + uniform(rng, -3, 3), SIDE / 2 + uniform(rng, -12, 12))
    face = font(pick(rng, WORD_FONTS), int(rng.integers(14, 20)))
    write(image, word.upper() if chance(rng, 0.5) else word, centre, face, ink, uniform(rng, -6, 6))
    return image, pick(rng, WORD_TEMPLATES).format(word)


# Symbols twice: there are far more of them than there are colours or words.
PAINTERS = (_symbol, _symbol, _plain_colour, _word)


def draw(rng: np.random.Generator) -> tuple[Image.Image, str]:
    """A picture and its caption."""
    return pick(rng, PAINTERS)(rng)
