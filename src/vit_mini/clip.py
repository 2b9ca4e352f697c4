"""ViT-Mini: open_clip's CLIP class at the size of a laptop, with a tokenizer of its own.

The image tower is a ViT of 16 tokens on 32 x 32 pixels. A stem of three stride-2 convolutions stands in the place of
the patch embedding: from scratch, on few images, it learns faster than one 8 x 8 patchify. Everything else (pre-norm
blocks, class token, projections, text tower) is open_clip's.
"""

import copy
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import nn

from src.datasets.mini.canvas import PIXELS

if TYPE_CHECKING:
    from open_clip.model import CLIP

SHIPPED = Path(__file__).with_name("vit_mini.safetensors")

WIDTH, LAYERS, EMBED = 128, 4, 128
TEXT_WIDTH, TEXT_LAYERS, CONTEXT = 128, 2, 12

# CLIP's own normalisation constants, in units of [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Tokenizer:
    """Words of a closed list, and bytes for whatever is not in it. Callable on texts like open_clip's tokenizers.

    Ids: 0..255 bytes (0 also pads), then the words, then start and end of text. The end has the largest id, which is
    where open_clip's text tower reads the feature.
    """

    def __init__(self, words: Sequence[str], context_length: int = CONTEXT):
        self.words = tuple(words)
        self.context_length = context_length
        self._ids = {word: 256 + i for i, word in enumerate(self.words)}
        self.start = 256 + len(self.words)
        self.end = self.start + 1

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Tokenizer":
        """The tokenizer that knows every word of `texts`."""
        return cls(sorted({word for text in texts for word in text.lower().split()}))

    @property
    def vocabulary_size(self) -> int:
        return self.end + 1

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> torch.Tensor:
        """Token ids, int64 (texts, context). Too long a text loses its end, as in open_clip."""
        texts = [texts] if isinstance(texts, str) else texts
        context = context_length or self.context_length
        tokens = torch.zeros(len(texts), context, dtype=torch.long)
        for row, text in zip(tokens, texts):
            ids = [self.start]
            for word in text.lower().split():
                ids += [self._ids[word]] if word in self._ids else list(word.encode())
            ids = ids[: context - 1] + [self.end]
            row[: len(ids)] = torch.tensor(ids)
        return tokens


def build(vocabulary_size: int) -> "CLIP":
    """A randomly initialised ViT-Mini (the caller seeds torch)."""
    from open_clip.model import CLIP  # here: it takes seconds, and what builds no network does not need it

    model = CLIP(
        embed_dim=EMBED,
        vision_cfg=dict(image_size=PIXELS, patch_size=8, width=WIDTH, layers=LAYERS, head_width=32, mlp_ratio=4.0),
        text_cfg=dict(
            context_length=CONTEXT, vocab_size=vocabulary_size, width=TEXT_WIDTH, heads=4, layers=TEXT_LAYERS
        ),
    )
    channels = (3, WIDTH // 4, WIDTH // 2, WIDTH)
    stem = []
    for before, after in zip(channels, channels[1:]):
        stem += [nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1, bias=False), nn.GELU()]
    model.visual.conv1 = nn.Sequential(*stem[:-1])  # the last convolution gives the tokens, as a patch embedding would
    return model


@functools.cache
def _shipped() -> "tuple[CLIP, Tokenizer]":
    with safe_open(SHIPPED, framework="pt") as file:
        tokenizer = Tokenizer(json.loads(file.metadata()["header"])["words"])
        weights = {name: file.get_tensor(name).float() for name in file.keys()}
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):  # building draws weights that are overwritten at once
        model = build(tokenizer.vocabulary_size)
    model.load_state_dict(weights)
    return model, tokenizer


def load() -> "tuple[CLIP, Tokenizer]":
    """The shipped model in float32, and its tokenizer. Weights are stored in half precision, words in the header."""
    model, tokenizer = _shipped()
    return copy.deepcopy(model), tokenizer  # which takes a third of the time that building takes
