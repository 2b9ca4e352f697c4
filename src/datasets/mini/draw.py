"""Draws the tasks of the embedded suite into a cache, all cores at work, and reads them back.

The same seed gives the same bytes for the same versions of the libraries that draw; the cache is stamped with those
versions and with a hash of the drawing code, so a stale one is never read.
"""

import hashlib
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

from src.datasets.base import Pixels
from src.datasets.mini import control, digits, house_numbers, land, letters, scenes, signs, textures, vehicles
from src.datasets.mini.canvas import PIXELS, reduce, uniform
from src.runtime.distributed import alone, cores
from src.runtime.parallel import map_tasks

TASKS = ("vehicles", "textures", "land", "signs", "digits", "letters", "scenes", "house_numbers")
FAMILIES = dict(
    vehicles=vehicles,
    textures=textures,
    land=land,
    signs=signs,
    digits=digits,
    letters=letters,
    scenes=scenes,
    house_numbers=house_numbers,
    control=control,
)
# Images per split. The control set is never trained on, so it has no training split.
SIZES = {name: dict(train=2000, val=400, test=1000) for name in TASKS}
SIZES["digits"] = dict(train=997, val=200, test=600)
SIZES["control"] = dict(val=504, test=1008)
SPLITS = ("train", "val", "test")
CHUNK = 200  # pictures drawn from one seed: the unit of parallel work


def library_versions() -> dict[str, str]:
    """The libraries whose versions decide the bytes."""
    return {name: version(name) for name in ("numpy", "pillow", "matplotlib", "scikit-learn")}


@cache
def stamp() -> str:
    """A short hash of the library versions and of the code that draws."""
    digest = hashlib.sha256(repr(sorted(library_versions().items())).encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if file.name not in {"__init__.py", "clip.py", "pretrain.py", "mixture.py", "extras.py"}:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _labels(name: str, split: str, seed: int) -> np.ndarray:
    """Balanced labels in a seeded order, int64 (n,)."""
    labels = np.arange(SIZES[name][split]) % len(FAMILIES[name].NAMES)
    _generator(name, split, seed).shuffle(labels)
    return labels.astype(np.int64)


def _generator(name: str, split: str, seed: int, *more: int) -> np.random.Generator:
    return np.random.default_rng((seed, list(FAMILIES).index(name), SPLITS.index(split), *more))


def _draw_chunk(job: tuple[str, str, int, int]) -> tuple[str, str, int, np.ndarray]:
    name, split, seed, start = job
    rng = _generator(name, split, seed, start + 1)
    labels = _labels(name, split, seed)[start : start + CHUNK]
    pictures = [reduce(FAMILIES[name].draw(int(label), rng, False), rng, uniform(rng, 2, 6)) for label in labels]
    return name, split, start, np.stack(pictures)


def _digits(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The real digits, dealt to the three splits by the seed."""
    images, labels = digits.load()
    order = np.random.default_rng((seed, TASKS.index("digits"))).permutation(len(labels))
    splits, start = {}, 0
    for split in SPLITS:
        indices = order[start : start + SIZES["digits"][split]]
        start += len(indices)
        splits[split] = images[indices], labels[indices]
    return splits


def draw(seed: int, jobs: int | None = None) -> dict[str, np.ndarray]:
    """Every split of every set: '<name>_<split>_x', uint8 (n, PIXELS, PIXELS, 3), and '<name>_<split>_y', int64."""
    arrays = {}
    chunks = []
    for name, sizes in SIZES.items():
        if name == "digits":
            continue
        for split, n in sizes.items():
            arrays[f"{name}_{split}_x"] = np.empty((n, PIXELS, PIXELS, 3), np.uint8)
            arrays[f"{name}_{split}_y"] = _labels(name, split, seed)
            chunks += [(name, split, seed, start) for start in range(0, n, CHUNK)]
    for split, (images, labels) in _digits(seed).items():
        arrays[f"digits_{split}_x"], arrays[f"digits_{split}_y"] = images, labels
    with alone():  # ranks may find that they have to draw at different times, or one of them only
        drawn = map_tasks(_draw_chunk, chunks, jobs or cores(), f"drawing seed {seed}")
    for name, split, start, pictures in drawn:
        arrays[f"{name}_{split}_x"][start : start + len(pictures)] = pictures
    return arrays


def cached(folder: Path, seed: int) -> Path:
    """The drawn tasks of a seed as a folder of .npy files under `folder`, drawn first where they are not there.

    Two processes may start at once: each draws into its own temporary folder and the first to finish renames it into
    place, whole.
    """
    target = folder / f"mini_seed{seed}_{stamp()}"
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{target.name}.") as temporary:
        fresh = Path(temporary) / "drawn"
        fresh.mkdir()
        for key, array in draw(seed).items():
            np.save(fresh / f"{key}.npy", array)
        try:
            fresh.rename(target)
        except OSError:
            if not target.is_dir():  # anything but another process having been first
                raise
    return target


def load(name: str, split: str, folder: Path, seed: int) -> Pixels:
    """A split of a task or of the control set, in memory."""
    drawn = cached(folder, seed)
    return Pixels(np.load(drawn / f"{name}_{split}_x.npy"), np.load(drawn / f"{name}_{split}_y.npy"))
