"""The embedded suite: twenty tasks and a control set, drawn by code (digits are real), for a tiny CLIP."""

from functools import partial

from src.datasets.base import Dataset
from src.datasets.mini.draw import FAMILIES, FIRST, TASKS
from src.datasets.mini.drawn import load

__all__ = ["FIRST", "ROWS", "TASKS"]

STEPS = 250  # of fine-tuning, for every task

ROWS = tuple(
    Dataset(
        name=name,
        suite="mini",
        classnames=family.names,
        templates=family.templates,
        load=partial(load, name),
        steps=STEPS if name in TASKS else None,
        about={"licence": family.licence},
    )
    for name, family in FAMILIES.items()
)
