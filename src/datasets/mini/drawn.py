"""What draw.py left on the disk, read after a look at it. Here, since a change of draw.py draws every set anew."""

from pathlib import Path

import numpy as np

from src.datasets.base import Pixels
from src.datasets.examples import BadFile
from src.datasets.mini import draw
from src.datasets.mini.canvas import PIXELS

ANEW = "remove the folder {}: it is drawn anew"


def load(name: str, split: str, folder: Path, seed: int) -> Pixels:
    """A split of a task or of the control set, in memory. Raises BadFile for files that are not what was drawn."""
    drawn = draw.cached(folder, seed, draw.TOGETHER if name in draw.TOGETHER else (name,))[name]
    pixels, labels = (drawn / f"{split}_{kind}.npy" for kind in "xy")
    count = _length(pixels, np.dtype(np.uint8), (PIXELS, PIXELS, 3))
    if (found := _length(labels, np.dtype(np.int64), ())) != count:
        raise BadFile(labels, f"{count} labels, one of each picture", f"{found}; {ANEW.format(labels.parent)}")
    return draw.load(name, split, folder, seed)


def _length(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> int:
    """How many there are. Reads the header alone: a mapping takes no memory for what a header promises."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # NumPy promises no types for what a header may hold
        found = f"{type(error).__name__}: {error}"
    else:
        if array.dtype == dtype and array.ndim == 1 + len(shape) and array.shape[1:] == shape and len(array):
            return len(array)
        found = f"{array.dtype} {array.shape}"
    raise BadFile(path, f"{dtype} (n{''.join(f', {side}' for side in shape)})", f"{found}; {ANEW.format(path.parent)}")
