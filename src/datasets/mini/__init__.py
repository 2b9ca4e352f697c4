"""The embedded suite: eight tasks and a control set, drawn by code (digits are real), for a tiny CLIP."""

from functools import partial

from src.datasets.base import Dataset
from src.datasets.mini.draw import FAMILIES, TASKS, load

STEPS = 250  # of fine-tuning, for every task

ROWS = tuple(
    Dataset(
        name=name,
        suite="mini",
        classnames=family.NAMES,
        templates=family.TEMPLATES,
        load=partial(load, name),
        steps=STEPS if name in TASKS else None,
        about={"licence": "BSD-3-Clause (scikit-learn)" if name == "digits" else "drawn by this project (MIT)"},
    )
    for name, family in FAMILIES.items()
)
