"""Images decoded once: a split's cropped pixels in a memory-mapped uint8 file, shared by all methods and scripts.

A file's name carries a hash of everything its bytes depend on (data set, split, source files, labels, crop, versions of
the libraries that decode and resize), so a stale one is never opened. Its description lies beside it as JSON, written
last: without it the pixels do not count. At 224 x 224 an image takes 147 KiB.
"""

import errno
import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, features
from pydantic import NonNegativeInt, TypeAdapter
from tqdm import tqdm
from typing_extensions import TypedDict  # Python's own does not serve pydantic before 3.12

from src.datasets.base import Examples, FileExamples, Pixels
from src.datasets.examples import CorruptImage, DataError, Subset, digest
from src.runtime.distributed import cores
from src.runtime.files import read_json, replacing
from src.runtime.locks import only_one

FORMAT = 2  # 1: 16-bit images were clipped
BLOCK = 256  # images decoded before they are written: bounds the memory, keeps the threads busy
SHOWN = 10  # names of corrupt images in a message
Crop = Callable[[Image.Image], np.ndarray]
Result = TypeVar("Result")


class Description(TypedDict):
    """Of a file of pixels. key: what its bytes depend on. corrupt: position -> name and reason."""

    key: dict[str, Any]
    shape: list[NonNegativeInt]
    corrupt: dict[NonNegativeInt, str]


_DESCRIPTION = TypeAdapter(Description)


def cached(
    examples: FileExamples,
    crop: Crop,
    transform: str,
    folder: Path,
    dataset: str,
    split: str,
    skip_corrupt: bool = False,
) -> Pixels:
    """All images of a split, cropped: decoded now if nobody did before, else read from disk.

    crop: PIL image to uint8 (H, W, 3), the same shape for all; `transform` is its name and settings, for the key.
    skip_corrupt: leave images out that cannot be decoded, with a warning, where otherwise DataError names and counts
    them. Processes that ask at once wait for the one that builds. Where the cache cannot be written, each pass decodes
    again, with a warning.
    """
    if not len(examples):
        raise DataError(
            f"{dataset} {split}: expected images, found none; run: python -m src.datasets prepare {dataset}"
        )
    key = _key(examples, transform, dataset, split)
    path = folder / f"{dataset}-{split}-{digest([json.dumps(key, sort_keys=True)])[:16]}.pixels"
    try:
        description = _read(path, key, len(examples)) or _build_once(path, key, examples, crop)
    except OSError as error:
        warnings.warn(f"no image cache in {folder} ({error}): every pass decodes {dataset} again", stacklevel=2)
        return _uncached(examples, crop, dataset, split, skip_corrupt)
    decodable = _whole(description["corrupt"], len(examples), dataset, split, skip_corrupt)
    pixels = np.memmap(path, np.uint8, "r", shape=tuple(description["shape"]))
    return Pixels(pixels, examples.labels if len(decodable) == len(examples) else examples.labels[decodable])


def without_corrupt(examples: Examples, dataset: str, split: str, skip_corrupt: bool) -> Examples:
    """The examples that can be decoded, after trying all; DataError names and counts the others, unless skipped."""
    if isinstance(examples, Pixels):
        return examples
    tried = _decoded(examples, lambda image: None, f"checking {dataset} {split}")
    corrupt = dict(pair for block in tried for pair in _corrupt(block))
    return Subset(examples, _whole(corrupt, len(examples), dataset, split, skip_corrupt)) if corrupt else examples


def _key(examples: FileExamples, transform: str, dataset: str, split: str) -> dict:
    return {
        "format": FORMAT,
        "dataset": dataset,
        "split": split,
        "examples": examples.identity(),
        "labels": digest([np.ascontiguousarray(examples.labels, dtype=np.int64).tobytes()]),
        "transform": transform,
        "versions": {name: metadata.version(name) for name in ("pillow", "torchvision")}
        | {codec: str(features.version(codec)) for codec in ("jpg", "zlib", "webp")},
    }


def _read(path: Path, key: dict, count: int) -> Description | None:
    """The description of a whole file with that key, of `count` images; or None."""
    try:
        description = _DESCRIPTION.validate_python(read_json(_description(path)))
        shape = description["shape"]
        whole = path.stat().st_size == math.prod(shape) and shape[:1] == [count - len(description["corrupt"])]
    except (FileNotFoundError, ValueError):
        return None
    return description if whole and description["key"] == key else None


def _build_once(path: Path, key: dict, examples: FileExamples, crop: Crop) -> Description:
    """Build unless another process did while this one waited."""
    with only_one(path, each=True):
        if description := _read(path, key, len(examples)):
            return description
        return _build(path, key, examples, crop)


def _build(path: Path, key: dict, examples: FileExamples, crop: Crop) -> Description:
    """Decode and write all images; a corrupt one leaves no row, and its name in the description."""
    _description(path).unlink(missing_ok=True)
    corrupt: dict[int, str] = {}  # position -> name and reason
    shape: tuple[int, ...] = ()
    with replacing(path) as temporary, open(temporary, "wb") as file:
        title = f"decoding {key['dataset']} {key['split']}"
        for block in _decoded(examples, crop, title, cores(shared=False)):  # who wants the same images waits for them
            corrupt |= _corrupt(block)
            for image in (image for _, image in block if not isinstance(image, CorruptImage)):
                if not shape:
                    shape = image.shape
                    _require_room(path.parent, len(examples) * image.nbytes)
                if image.dtype != np.uint8 or image.shape != shape:
                    raise ValueError(f"expected uint8 crops of shape {shape}, found {image.dtype} {image.shape}")
                file.write(image.tobytes())  # not through a mapping: a full disk must raise, not kill the process
    description: Description = {"key": key, "shape": [len(examples) - len(corrupt), *shape], "corrupt": corrupt}
    with replacing(_description(path)) as temporary:
        temporary.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return description


def _decoded(
    examples: FileExamples, work: Callable[[Image.Image], Result], title: str, at_once: int | None = None
) -> Iterator[list[tuple[int, Result | CorruptImage]]]:
    """Blocks of (position, `work` of the image or CorruptImage), by a few threads (Pillow works without the GIL)."""

    def one(position: int) -> tuple[int, Result | CorruptImage]:
        try:
            return position, work(examples[position])
        except CorruptImage as error:
            return position, error
        except OSError as error:  # a container file that cannot be read; not to be taken for a cache that cannot
            return position, CorruptImage.of(examples.name(position), error)

    with ThreadPoolExecutor(min(16, cores() if at_once is None else at_once)) as threads:
        with tqdm(total=len(examples), desc=title, disable=None) as bar:
            for start in range(0, len(examples), BLOCK):
                block = list(threads.map(one, range(start, min(start + BLOCK, len(examples)))))
                bar.update(len(block))
                yield block


def _whole(corrupt: dict[int, str], total: int, dataset: str, split: str, skip_corrupt: bool) -> np.ndarray:
    """Positions of the whole images; raises DataError when some are corrupt and may not be skipped, or all are."""
    if corrupt:
        names = list(corrupt.values())
        listed = "\n  ".join(names[:SHOWN] + ["..."] * (len(names) > SHOWN))
        message = f"{dataset} {split}: {len(names)} of {total} images cannot be decoded:\n  {listed}"
        if not skip_corrupt or len(names) == total:
            raise DataError(f"{message}\nFetch them again: python -m src.datasets prepare {dataset}; or --skip-corrupt")
        warnings.warn(f"{message}\nThey are skipped.", stacklevel=3)
    return np.setdiff1d(np.arange(total), list(corrupt))


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"it needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free", str(folder))


def _description(path: Path) -> Path:
    return path.with_suffix(".json")


def _uncached(examples: FileExamples, crop: Crop, dataset: str, split: str, skip_corrupt: bool) -> Pixels:
    """The same pixels without a file: decoded whenever they are asked for."""
    decodable = np.arange(len(examples))
    if skip_corrupt:  # which labels go with the pixels must be known before the first is read
        corrupt = [
            pair for block in _decoded(examples, crop, f"checking {dataset} {split}") for pair in _corrupt(block)
        ]
        decodable = _whole(dict(corrupt), len(examples), dataset, split, skip_corrupt)
    shape = crop(examples[int(decodable[0])]).shape
    return Pixels(OnDemand(examples, crop, decodable, (len(decodable), *shape)), examples.labels[decodable])


def _corrupt(block: Sequence[tuple[int, object]]) -> list[tuple[int, str]]:
    return [(position, str(image)) for position, image in block if isinstance(image, CorruptImage)]


@dataclass(frozen=True)
class OnDemand:
    """Stands where an array of pixels would: indexing decodes."""

    examples: FileExamples
    crop: Crop
    positions: np.ndarray
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        positions = self.positions[index]
        if np.ndim(positions) == 0:
            return self.crop(self.examples[int(positions)])
        images = [self.crop(self.examples[int(position)]) for position in positions]
        return np.stack(images) if images else np.empty((0, *self.shape[1:]), np.uint8)
