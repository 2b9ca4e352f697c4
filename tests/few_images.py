"""Evaluation on the first images of each split: what a test asks for does not need all of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from src.datasets import loading
from src.datasets.base import Pixels


@contextmanager
def few_images(count: int) -> Iterator[None]:
    """In this process, until the end: the processes that scripts start score every image."""
    whole = loading.evaluation_pixels

    def first(*which) -> Pixels:
        every = whole(*which)
        return Pixels(every.pixels[:count], every.labels[:count])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "evaluation_pixels", first)
        yield
