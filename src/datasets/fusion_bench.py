"""Class names of the heads that FusionBench's checkpoints were fine-tuned against, where they are not the papers'.

Of 20 sets 13 have the papers' names. Names stand in our order of labels. Food101's mirror numbers cheesecake before
cheese plate and FusionBench's list the other way round, so its checkpoints know either dish by the other's name.
Source: the lists of its package tasks.clip_classification, https://github.com/tanganke/fusion_bench.
"""

from src.datasets.classnames import CLASSNAMES


def _renamed(name: str, others: dict[int, str]) -> tuple[str, ...]:
    """The papers' names, with others at some labels."""
    return tuple(others.get(label, classname) for label, classname in enumerate(CLASSNAMES[name]))


def _food101() -> tuple[str, ...]:
    names = [name.replace("_", " ") for name in CLASSNAMES["Food101"]]
    plate, cake = names.index("cheese plate"), names.index("cheesecake")
    names[plate], names[cake] = names[cake], names[plate]
    return tuple(names)


NAMES: dict[str, tuple[str, ...]] = {
    "CIFAR100": _renamed("CIFAR100", {26: "cra"}),
    "FashionMNIST": _renamed("FashionMNIST", {0: "T - shirt / top"}),
    "FER2013": ("angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised"),
    "Flowers102": _renamed("Flowers102", {15: "globe-flower", 59: "pink-yellow dahlia?", 92: "ball moss"}),
    "Food101": _food101(),
    "KMNIST": tuple("おきすつなはまやれを"),
    "OxfordIIITPet": tuple(name.lower().replace(" ", "_") for name in CLASSNAMES["OxfordIIITPet"]),
}
