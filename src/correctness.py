"""Which images a model classified right, one bit an image: what paired comparisons of models need."""

import base64
import binascii

import numpy as np


def pack(correct: np.ndarray) -> str:
    """(n,) bool, in the order of the split, as text: base64 of the bits, the first image's the highest of its byte."""
    return base64.b64encode(np.packbits(correct).tobytes()).decode("ascii")


def unpack(text: str, n: int) -> np.ndarray:
    """(n,) bool of what `pack` made of n images. Raises ValueError for text of another number of images."""
    try:
        packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except binascii.Error as error:
        raise ValueError(f"expected the bits of {n} images in base64, found none: {error}") from None
    if len(packed) != -(-n // 8):
        raise ValueError(f"expected the bits of {n} images, found those of {8 * len(packed) - 7} to {8 * len(packed)}")
    return np.unpackbits(packed, count=n).astype(bool)
