"""Names of models, taken apart and put together.

A name says what the model is: `ViT-Mini` (the shipped one), or one of open_clip with `/` written as `-` (`ViT-B-32`);
docs/vision.md says which of those are built. Suffixes: `__pretrained__<tag>` takes the open_clip weights of that tag in
the place of OpenAI's, `__init__` builds the image tower without any pre-trained weights.
"""

from dataclasses import dataclass, replace
from functools import cache

from src.runtime.messages import UsageError, nearest

MINI = "ViT-Mini"
PAPERS = ("ViT-B-32", "ViT-B-16", "ViT-L-14")
WEIGHTS, RANDOM = "__pretrained__", "__init__"


@dataclass(frozen=True)
class ModelName:
    """weights: an open_clip tag, or None for the model's own default; random: an image tower without pre-training."""

    architecture: str
    weights: str | None = None
    random: bool = False

    @classmethod
    def parse(cls, name: str) -> "ModelName":
        architecture, _, weights = name.removesuffix(RANDOM).partition(WEIGHTS)
        return cls(architecture, weights or None, name.endswith(RANDOM))

    def __str__(self) -> str:
        weights = WEIGHTS + self.weights if self.weights else ""
        return self.architecture + weights + (RANDOM if self.random else "")

    @property
    def mini(self) -> bool:
        return self.architecture == MINI


def pretrained_name(name: str) -> str:
    """The same network with its pre-trained image tower."""
    return str(replace(ModelName.parse(name), random=False))


def random_name(name: str) -> str:
    """The same network with an image tower that was never trained."""
    return str(replace(ModelName.parse(name), random=True))


@cache
def open_clip_names() -> dict[str, str]:
    """Our spelling of each open_clip architecture -> open_clip's own."""
    import open_clip  # here: it takes seconds, and the usual models are known without it

    return {name.replace("/", "-"): name for name in open_clip.list_models()}


def check_model(name: str) -> None:
    """Raise UsageError for a model that does not exist, with the nearest name that does."""
    parsed = ModelName.parse(name)
    architecture = parsed.architecture
    if parsed.mini and parsed.weights:
        raise UsageError(f"--model: {MINI} has one set of weights, found {name!r}; leave out {WEIGHTS}{parsed.weights}")
    if architecture in (MINI, *PAPERS) or architecture in open_clip_names():
        return
    known = (MINI, *open_clip_names())
    raise UsageError(
        f"--model: {architecture!r} does not exist{nearest(architecture, known)} "
        f"Known: {MINI}, {', '.join(PAPERS)} and open_clip's {len(known) - 1} names; "
        f"suffixes {WEIGHTS}<tag> and {RANDOM}"
    )
