"""What draw.py left on the disk, read after a look at it. Here, since a change of draw.py draws every set anew."""

from pathlib import Path

import numpy as np

from src.datasets.base import Pixels
from src.datasets.examples import BadFile
from src.datasets.mini import draw
from src.datasets.mini.canvas import PIXELS


def load(name: str, split: str, folder: Path, seed: int) -> Pixels:
    """A split of a task or of the control set, in memory. Raises BadFile for files that are not what was drawn."""
    drawn = draw.cached(folder, seed, draw.TOGETHER if name in draw.TOGETHER else (name,))[name]
    n = draw.FAMILIES[name].sizes[split]
    _require(drawn / f"{split}_x.npy", np.dtype(np.uint8), (n, PIXELS, PIXELS, 3))
    _require(drawn / f"{split}_y.npy", np.dtype(np.int64), (n,))
    return draw.load(name, split, folder, seed)


def _require(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Reads the header alone: a mapping takes no memory for what a header promises."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
        found = f"{array.dtype} {array.shape}"
    except (OSError, ValueError) as error:
        found = f"{type(error).__name__}: {error}"
    if found != (expected := f"{dtype} {shape}"):
        raise BadFile(path, f"{expected} as drawn", f"{found}; remove the folder {path.parent}: it is drawn anew")
