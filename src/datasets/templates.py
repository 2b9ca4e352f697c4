"""Prompt templates of the vision data sets, as in the published code; `{}` stands for the class name.

A head averages its prompts, so their order is free: where a table pairs "a" with "the", it is written as a pattern.
"""

ARTICLES = ("a", "the")


def _each(patterns: tuple[str, ...], words: tuple[str, ...]) -> tuple[str, ...]:
    """Every pattern with every word in the place of its `*`."""
    return tuple(pattern.replace("*", word) for word in words for pattern in patterns)


NUMBER = ('a photo of the number: "{}".',)
PHOTO = _each(("a photo of * {}.",), ARTICLES)
CIFAR = _each(
    (
        "a photo of * {}.",
        "a blurry photo of * {}.",
        "a black and white photo of * {}.",
        "a low contrast photo of * {}.",
        "a high contrast photo of * {}.",
        "a bad photo of * {}.",
        "a good photo of * {}.",
        "a photo of * small {}.",
        "a photo of * big {}.",
    ),
    ARTICLES,
)
# OpenAI's ensemble of 80: 38 patterns with each article, and four that have no pair.
IMAGENET = _each(
    (
        "a photo of * {}.",
        "a bad photo of * {}.",
        "a good photo of * {}.",
        "a low resolution photo of * {}.",
        "a cropped photo of * {}.",
        "a bright photo of * {}.",
        "a dark photo of * {}.",
        "a close-up photo of * {}.",
        "a black and white photo of * {}.",
        "a pixelated photo of * {}.",
        "a jpeg corrupted photo of * {}.",
        "a blurry photo of * {}.",
        "a photo of * hard to see {}.",
        "a photo of * clean {}.",
        "a photo of * dirty {}.",
        "a photo of * cool {}.",
        "a photo of * nice {}.",
        "a photo of * weird {}.",
        "a photo of * small {}.",
        "a photo of * large {}.",
        "a sculpture of * {}.",
        "a rendering of * {}.",
        "a rendition of * {}.",
        "a drawing of * {}.",
        "a painting of * {}.",
        "a doodle of * {}.",
        "a sketch of * {}.",
        "a tattoo of * {}.",
        "graffiti of * {}.",
        "art of * {}.",
        "itap of * {}.",
        "* {} in a video game.",
        "* embroidered {}.",
        "* plastic {}.",
        "* origami {}.",
        "* cartoon {}.",
        "* plushie {}.",
        "* toy {}.",
    ),
    ARTICLES,
) + ("a photo of many {}.", "a photo of one {}.", "a photo of my {}.", "itap of my {}.")

TEMPLATES: dict[str, tuple[str, ...]] = {
    "Cars": PHOTO + ("i love my {}!",) + _each(("a photo of my *{}.",), ("", "dirty ", "clean ", "new ", "old ")),
    "DTD": _each(
        ("a photo of * {} texture.", "a photo of * {} pattern.", "a photo of * {} thing.", "a photo of * {} object."),
        ARTICLES,
    ),
    "EuroSAT": _each(("a centered satellite photo of *{}.",), ("", "a ", "the ")),
    "GTSRB": _each(('a * photo of a "{}" traffic sign.',), ("zoomed in", "centered", "close up")),
    "MNIST": NUMBER,
    "RESISC45": _each(
        (
            "satellite imagery of *{}.",
            "aerial imagery of *{}.",
            "satellite photo of *{}.",
            "aerial photo of *{}.",
            "satellite view of *{}.",
            "aerial view of *{}.",
        ),
        ("", "a ", "the "),
    ),
    "SVHN": NUMBER,
    "SUN397": PHOTO,
    "STL10": PHOTO,
    "OxfordIIITPet": ("a photo of a {}, a type of pet.",),
    "Flowers102": ("a photo of a {}, a type of flower.",),
    "CIFAR100": CIFAR,
    "PCAM": ("this is a photo of {}",),
    "FER2013": (
        "a photo of a {} looking face.",
        "a photo of a face showing the emotion: {}.",
        "a photo of a face looking {}.",
        "a face that looks {}.",
        "they look {}.",
        "look at how {} they are.",
    ),
    "CIFAR10": CIFAR,
    "Food101": ("a photo of {}, a type of food.",),
    "FashionMNIST": PHOTO,
    "RenderedSST2": ("a {} review of a movie.",),
    "EMNIST": ('a photo of the digit character: "{}".',),
    "KMNIST": ("a photo of the character {}.",),
    "ImageNet": IMAGENET,
}
TEMPLATES |= {"EMNIST_letters": TEMPLATES["EMNIST"], "FER2013_corrected": TEMPLATES["FER2013"]}
