"""Examples that come from files, and the three ways in which reading them fails."""

import hashlib
import io
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from src.datasets.base import FileExamples
from src.runtime.messages import UserError


class DataError(UserError, RuntimeError):
    """Data that cannot be used; the message says what was expected, what was found and what mends it."""


class BadFile(DataError):
    """A file that is not what its name promises. `path` lets `prepare` set it aside."""

    def __init__(self, path: Path, expected: str, found: str):
        super().__init__(path, expected, found)  # as given: an error must travel between processes
        self.path = path

    def __str__(self) -> str:
        return "{}: expected {}, found {}".format(*self.args)


class CorruptImage(DataError):
    """An image that cannot be decoded."""

    @classmethod
    def of(cls, name: str, reason: object) -> "CorruptImage":
        return cls(f"corrupt image {name}: {reason}")


# The formats of the sets. Of all others, whatever a file is called, Pillow's readers stay out of reach: that of EPS
# starts Ghostscript, which runs the program that such a file is.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
MAX_PIXELS = 89_478_485  # beyond them Pillow warns; decoded they take 270 MB
WIDE = 257  # 65535 / 255: from 16 bits to 8


def decode(source: str | bytes, name: str) -> Image.Image:
    """The image in a file, or in its bytes, as RGB; 16-bit grey is scaled to 8 bits, and EXIF turns nothing.

    Raises CorruptImage for what is no image of FORMATS, is cut short, has more than MAX_PIXELS, or has pixels without
    an agreed range (floating point, 32-bit integers).
    """
    try:
        if not isinstance(source, bytes) and not stat.S_ISREG(os.stat(source).st_mode):
            raise OSError("no regular file")  # a pipe would be waited for without end
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, expected at most {MAX_PIXELS}")
            return _eight_bits(image).convert("RGB")
    except Exception as error:  # Pillow promises no types; damaged files raise a dozen of them
        raise CorruptImage.of(name, error or type(error).__name__) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image with at most 8 bits a channel; Pillow's own `convert` clips what is more to white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide + WIDE // 2) // WIDE).clip(max=255).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}, which have no agreed range; save it with 8 or 16 bits")
    return image


def printable(path: str | Path) -> str:
    """A path in a message; bytes of a name that are no UTF-8 stand there as they are written in Python."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def plain(name: str) -> str:
    """The name of a class without case and separators, by which spellings of it are matched."""
    return re.sub(r"[\W_]", "", name.lower())


@dataclass(frozen=True)
class Files:
    """One image file for each example."""

    paths: tuple[str, ...]
    labels: np.ndarray

    @classmethod
    def of(cls, samples: Iterable[tuple[str | Path, int]]) -> "Files":
        paths, labels = zip(*samples, strict=True) if (samples := list(samples)) else ((), ())
        return cls(tuple(map(os.fspath, paths)), np.array(labels, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return decode(self.paths[index], self.name(index))

    def name(self, index: int) -> str:
        return printable(self.paths[index])

    def raw(self, index: int) -> bytes:
        try:
            if not os.path.isfile(self.paths[index]):
                raise OSError("no regular file")
            return Path(self.paths[index]).read_bytes()
        except OSError as error:
            raise CorruptImage.of(self.name(index), error) from error

    def identity(self) -> str:
        return digest(_stamps(self.paths))


@dataclass(frozen=True)
class Arrays:
    """Pixels that a few files hold decoded: uint8, (n, H, W) grey or (n, H, W, 3)."""

    pixels: np.ndarray
    labels: np.ndarray
    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self.pixels[index])).convert("RGB")

    def name(self, index: int) -> str:
        return f"{self.files[0]}[{index}]"

    def raw(self, index: int) -> bytes:
        return np.ascontiguousarray(self.pixels[index]).tobytes()

    def identity(self) -> str:
        return digest(_stamps(self.files))


@dataclass(frozen=True)
class Subset:
    """Some of another set's examples, by index."""

    examples: FileExamples
    indices: np.ndarray  # (n,) int64

    @cached_property
    def labels(self) -> np.ndarray:
        return self.examples.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Image.Image:
        return self.examples[int(self.indices[index])]

    def name(self, index: int) -> str:
        return self.examples.name(int(self.indices[index]))

    def raw(self, index: int) -> bytes:
        return self.examples.raw(int(self.indices[index]))

    def identity(self) -> str:
        if isinstance(self.examples, Files):  # of the others nothing is asked: a folder of ImageNet has 1.28 million
            return digest(_stamps(self.examples.paths[int(index)] for index in self.indices))
        return digest([self.examples.identity(), np.ascontiguousarray(self.indices, dtype=np.int64).tobytes()])


def _stamps(paths: Iterable[str | Path]) -> Iterator[str]:
    """Size and time of each file: reading all bytes of a large set at every start would cost what the cache saves."""
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            status = os.stat_result((0,) * 10)  # decoding it will say that it is missing
        yield f"{path} {status.st_size} {status.st_mtime_ns}"


def digest(parts: Iterable[str | bytes]) -> str:
    """A hash of the parts in their order."""
    total = hashlib.sha256()
    for part in parts:
        part = os.fsencode(part) if isinstance(part, str) else part  # names of files need not be UTF-8
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()
