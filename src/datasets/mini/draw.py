"""Draws the sets of the embedded suite into a cache, all cores at work, and reads them back.

The same seed gives the same bytes for the same versions of the libraries that draw; each set's folder is stamped with
those versions and with a hash of the code that draws it, so a stale one is never read.
"""

import ast
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from pkgutil import iter_modules
from typing import cast

import numpy as np

from src.datasets.base import SPLITS, Pixels
from src.datasets.mini.canvas import PIXELS, reduce, uniform
from src.datasets.mini.family import Family, Painter
from src.runtime.distributed import alone, cores
from src.runtime.files import require_writable
from src.runtime.locks import only_one
from src.runtime.parallel import map_tasks

FOLDER, PACKAGE = Path(__file__).parent, "src.datasets.mini"
TEMPORARY = "drawing"  # how the folders of unfinished sets end
CHUNK = 200  # pictures drawn from one seed: the unit of parallel work


def _families() -> dict[str, Family]:
    """Every set that a file of this folder describes, by the file's name, in the order of their numbers."""
    names = [module.name for module in iter_modules([str(FOLDER)]) if module.name != Path(__file__).stem]
    modules = {name: import_module(f"{PACKAGE}.{name}") for name in names}
    described = {name: module.FAMILY for name, module in modules.items() if hasattr(module, "FAMILY")}
    return dict(sorted(described.items(), key=lambda item: item[1].number))


FAMILIES = _families()
TASKS = tuple(name for name, family in FAMILIES.items() if "train" in family.sizes)
FIRST = TASKS[:8]  # the benchmark of a run that names no tasks
# Those and the sets without a training split are drawn at once, since most runs need them; other tasks one by one.
TOGETHER = tuple(name for name in FAMILIES if name not in TASKS or name in FIRST)


def library_versions() -> dict[str, str]:
    """The libraries whose versions decide the bytes."""
    return {name: version(name) for name in ("numpy", "pillow", "matplotlib", "scikit-learn")}


@cache
def _sources(module: str) -> frozenset[Path]:
    """A file of this folder and those of the folder that it imports, and so on."""
    file = FOLDER / f"{module}.py"
    imported = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{PACKAGE}."):
            imported.add(node.module.removeprefix(f"{PACKAGE}."))
    return frozenset({file}).union(*map(_sources, imported))


@cache
def stamp(name: str) -> str:
    """A short hash of the library versions and of the code that draws a set."""
    digest = hashlib.sha256(repr(sorted(library_versions().items())).encode())
    for file in sorted(_sources(name) | {Path(__file__)}):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _generator(name: str, split: str, seed: int, *more: int) -> np.random.Generator:
    return np.random.default_rng((seed, FAMILIES[name].number, SPLITS.index(split), *more))


def _labels(name: str, split: str, seed: int) -> np.ndarray:
    """Balanced labels in a seeded order, int64 (n,)."""
    labels = np.arange(FAMILIES[name].sizes[split]) % len(FAMILIES[name].names)
    _generator(name, split, seed).shuffle(labels)
    return labels.astype(np.int64)


def _draw_chunk(job: tuple[str, str, int, int]) -> tuple[str, str, int, np.ndarray]:
    name, split, seed, start = job
    paint = cast(Painter, FAMILIES[name].draw)
    rng = _generator(name, split, seed, start + 1)
    labels = _labels(name, split, seed)[start : start + CHUNK]
    pictures = [reduce(paint(int(label), rng), rng, uniform(rng, 2, 6)) for label in labels]
    return name, split, start, np.stack(pictures)


def _dealt(name: str, seed: int) -> dict[str, np.ndarray]:
    """Real pictures, dealt to the splits by the seed."""
    family = FAMILIES[name]
    images, labels = cast(Callable, family.pictures)()
    order = np.random.default_rng((seed, family.number)).permutation(len(labels))
    arrays, start = {}, 0
    for split, n in family.sizes.items():
        indices = order[start : start + n]
        start += n
        arrays[f"{split}_x"], arrays[f"{split}_y"] = images[indices], labels[indices]
    return arrays


def draw(names: Iterable[str], seed: int, jobs: int | None = None) -> dict[str, dict[str, np.ndarray]]:
    """Every split of the sets: name -> '<split>_x', uint8 (n, PIXELS, PIXELS, 3), and '<split>_y', int64 (n,)."""
    arrays: dict[str, dict[str, np.ndarray]] = {}
    chunks = []
    for name in names:
        family = FAMILIES[name]
        if family.pictures:
            arrays[name] = _dealt(name, seed)
            continue
        arrays[name] = {}
        for split, n in family.sizes.items():
            arrays[name][f"{split}_x"] = np.empty((n, PIXELS, PIXELS, 3), np.uint8)
            arrays[name][f"{split}_y"] = _labels(name, split, seed)
            chunks += [(name, split, seed, start) for start in range(0, n, CHUNK)]
    title = f"drawing {', '.join(arrays) if len(arrays) < 4 else f'{len(arrays)} sets'}, seed {seed}"
    with alone():  # ranks may find that they have to draw at different times, or one of them only
        drawn = map_tasks(_draw_chunk, chunks, jobs or cores(), title)
    for name, split, start, pictures in drawn:
        arrays[name][f"{split}_x"][start : start + len(pictures)] = pictures
    return arrays


def cached(folder: Path, seed: int, names: Iterable[str] = TOGETHER) -> dict[str, Path]:
    """Each set's folder of .npy files, under `folder`; sets that are not there are drawn first, all in one go.

    One process draws at a time, on all cores: another that starts meanwhile waits, and then draws what is still
    missing. A folder is renamed into its place when it is whole.
    """
    places = {name: folder / f"mini_seed{seed}" / f"{name}_{stamp(name)}" for name in names}
    if all(folder.is_dir() for folder in places.values()):
        return places
    sizes = [n for name, place in places.items() if not place.is_dir() for n in FAMILIES[name].sizes.values()]
    require_writable(folder / "mini", sum(sizes) * PIXELS * PIXELS * 3)
    with only_one(folder / "mini", each=True):
        missing = [name for name, folder in places.items() if not folder.is_dir()]
        for left_behind in folder.glob(f".*.{TEMPORARY}"):  # by a killed one: the lock says that it is gone
            shutil.rmtree(left_behind)
        for name, arrays in draw(missing, seed).items() if missing else ():
            places[name].parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.", suffix=f".{TEMPORARY}") as temporary:
                fresh = Path(temporary) / "drawn"
                fresh.mkdir()
                for key, array in arrays.items():
                    np.save(fresh / f"{key}.npy", array)
                fresh.rename(places[name])
    return places


def load(name: str, split: str, folder: Path, seed: int) -> Pixels:
    """A split of a task or of the control set, in memory."""
    drawn = cached(folder, seed, TOGETHER if name in TOGETHER else (name,))[name]
    return Pixels(np.load(drawn / f"{split}_x.npy"), np.load(drawn / f"{split}_y.npy"))
