"""Letters on the plates of house numbers: the fourth corner of digits, letters and house numbers.

It is no task and nothing is trained on it: task analogies are judged by it, digits : house numbers = letters : this.
"""

import numpy as np
from PIL import Image

from src.datasets.mini.canvas import pick
from src.datasets.mini.family import Family
from src.datasets.mini.house_numbers import plate_of
from src.datasets.mini.letters import FORMS, NAMES, TEMPLATES


def _letter(rng: np.random.Generator) -> str:
    return pick(rng, FORMS[pick(rng, NAMES)])


def _relief(label: int, rng: np.random.Generator) -> Image.Image:
    return plate_of(pick(rng, FORMS[NAMES[label]]), _letter, rng, width="N")


FAMILY = Family(number=21, names=NAMES, templates=TEMPLATES, draw=_relief, sizes={"val": 400, "test": 1000})
