"""Readers of the official files, in the folders where torchvision and the published code keep them.

A reader takes (folder, part, number of classes) and returns the Examples of an official part: "train", "val", "test",
or "all" for a set that comes unsplit. Examples stand in the order of the published code, because the pinned validation
split is made of positions. torchvision's classes read what they read without decoding an image, without hashing whole
archives at every start, and without executing a pickle; the rest is read here.
"""

import csv
import gzip
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from src.datasets.base import FileExamples
from src.datasets.classnames import CLASSNAMES
from src.datasets.examples import Arrays, BadFile, DataError, Files, plain
from src.runtime.messages import few

MAX_BYTES = 1 << 31  # of one array: the largest of the sets, SVHN's, has 225 MB


@dataclass(frozen=True)
class Layout:
    """Where official files may lie under the data root, how to tell that they do, and how to read them."""

    folder: str
    needs: tuple[str, ...]  # files or folders that must be there
    read: Callable[[Path, str, int], FileExamples]
    parts: tuple[str, ...] = ("train", "test")
    gzipped: bool = False  # a file may stand there as <name>.gz

    def missing(self, root: Path) -> list[str]:
        endings = ("", ".gz") if self.gzipped else ("",)
        base = root / self.folder
        return [need for need in self.needs if not any((base / f"{need}{end}").exists() for end in endings)]


ClassFolders = Callable[[], Iterable[Sequence[str]]]  # the names that each class's folder may have, in label order


def class_folders(base: Path, part: str, classes: int, *, folders: dict[str, str], names: ClassFolders) -> Files:
    """One folder of images for each class, in the order of their names; a label is that of the folder's name."""
    from torchvision.datasets import ImageFolder

    where = base / folders[part]
    try:
        images = ImageFolder(str(where))
    except FileNotFoundError as error:  # torchvision's word for no folder, or an empty one
        raise BadFile(where, f"{classes} folders of images, one for each class", str(error)) from error
    if len(images.classes) != classes:  # labels are positions among the folders: one less would shift them all
        raise BadFile(where, f"{classes} class folders", f"{len(images.classes)}: {', '.join(images.classes[:5])}, ...")
    expected = list(names())
    label = {plain(name): label for label, spellings in enumerate(expected) for name in spellings}
    labels = [label.get(plain(folder)) for folder in images.classes]
    if strange := [folder for folder, label in zip(images.classes, labels) if label is None]:
        first = [spellings[0] for spellings in expected]
        raise BadFile(where, f"folders named as the classes: {few(first)}", f"{len(strange)} others: {few(strange)}")
    if len(set(labels)) != classes:
        raise BadFile(where, "a folder of each class", f"two of one class among {few(images.classes)}")
    return Files.of((path, cast(int, labels[index])) for path, index in images.samples)


def cars(base: Path, part: str, classes: int) -> Files:
    from torchvision.datasets import StanfordCars

    for file in (base / "devkit/cars_meta.mat", base / "devkit/cars_train_annos.mat", *base.glob("*.mat")):
        _check_mat(file)
    return Files.of(StanfordCars(str(base.parent), part)._samples)


def dtd(base: Path, part: str, classes: int) -> Files:
    """Partition 1: its "train" and "val" lists are trained on, in the order of one folder that holds both."""
    from torchvision.datasets import DTD

    lists = [DTD(str(base.parent.parent), split) for split in (("train", "val") if part == "train" else ("test",))]
    return Files.of(sorted(sample for images in lists for sample in zip(images._image_files, images._labels)))


def gtsrb(base: Path, part: str, classes: int) -> Files:
    from torchvision.datasets import GTSRB

    samples = GTSRB(str(base.parent), part)._samples
    if part == "train":  # torchvision counts the folders, whose names are the classes' numbers
        names = {Path(path).parent.name: label for path, label in samples}
        if strange := sorted(name for name, label in names.items() if not name.isdecimal() or int(name) != label):
            raise BadFile(base, f"class folders 00000 to {classes - 1:05d}", f"others: {few(strange)}")
    return Files.of(samples)


def pets(base: Path, part: str, classes: int) -> Files:
    from torchvision.datasets import OxfordIIITPet

    images = OxfordIIITPet(str(base.parent), "trainval" if part == "train" else part)
    return Files.of(zip(images._images, images._labels))


def food101(base: Path, part: str, classes: int) -> Files:
    from torchvision.datasets import Food101

    images = Food101(str(base.parent), part)
    return Files.of(zip(images._image_files, images._labels))


def rendered_sst2(base: Path, part: str, classes: int) -> Files:
    from torchvision.datasets import RenderedSST2

    return Files.of(RenderedSST2(str(base.parent), part)._samples)


def flowers102(base: Path, part: str, classes: int) -> Files:
    """Image numbers by part in setid.mat, classes from 1 by image number in imagelabels.mat."""
    numbers = _mat(base / "setid.mat", "trnid" if part == "train" else "tstid").ravel()
    labels = _mat(base / "imagelabels.mat", "labels").ravel()
    return Files.of((base / "jpg" / f"image_{n:05d}.jpg", int(labels[n - 1]) - 1) for n in numbers)


def resisc45(base: Path, part: str, classes: int) -> Files:
    """`resisc45-<part>.txt` lists names such as airport_123.jpg; the images lie in one folder for each class."""
    names = _lines(base / f"resisc45-{part}.txt")
    return _listed(
        base / f"resisc45-{part}.txt",
        ((base / "NWPU-RESISC45" / name.rpartition("_")[0] / name, name.rpartition("_")[0]) for name in names),
        "RESISC45",
    )


def sun397(base: Path, part: str, classes: int) -> Files:
    """Partition 1: `Training_01.txt` and `Testing_01.txt` list paths such as /a/apse/indoor/sun_xyz.jpg."""
    listing = base / ("Training_01.txt" if part == "train" else "Testing_01.txt")
    paths = [Path(line.lstrip("/")) for line in _lines(listing)]
    return _listed(listing, ((base / path, "_".join(path.parent.parts[1:])) for path in paths), "SUN397")


def _listed(listing: Path, rows: Iterable[tuple[Path, str]], name: str) -> Files:
    """(file, class) rows sorted as one folder for each class would be, which is how the published code reads them."""
    label = {classname.replace(" ", "_"): index for index, classname in enumerate(CLASSNAMES[name])}
    rows = sorted(rows, key=lambda row: (row[1], row[0].name))
    if unknown := sorted({key for _, key in rows} - label.keys()):
        raise BadFile(listing, f"classes of {name}", f"{len(unknown)} others: {', '.join(unknown[:5])}")
    return Files.of((path, label[key]) for path, key in rows)


def idx(base: Path, part: str, classes: int, *, prefix: dict[str, str], first: int = 0) -> Arrays:
    """MNIST's format, gzipped or not. `first` is the label of the first class.

    EMNIST's images lie on their side in the files; the published code leaves them so, and so does this.
    """
    pixels, image_file = _idx(base / f"{prefix[part]}-images-idx3-ubyte", dimensions=3)
    labels, label_file = _idx(base / f"{prefix[part]}-labels-idx1-ubyte", dimensions=1)
    if len(pixels) != len(labels):
        raise BadFile(label_file, f"{len(pixels)} labels, as many as {image_file.name} has images", str(len(labels)))
    return Arrays(pixels, labels.astype(np.int64) - first, (image_file, label_file))


def _idx(path: Path, dimensions: int) -> tuple[np.ndarray, Path]:
    """The bytes of an idx file as an array: magic 0 0 8 `dimensions`, big-endian sizes, uint8 data."""
    if not path.exists():
        path = path.with_name(f"{path.name}.gz")
    start = 4 + 4 * dimensions
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            head = file.read(start)
            if head[:4] != bytes((0, 0, 8, dimensions)) or len(head) < start:
                raise BadFile(
                    path, f"an idx file of bytes in {dimensions} dimensions", f"it starts with {head[:4].hex(' ')}"
                )
            shape = tuple(np.frombuffer(head, ">u4", dimensions, 4).tolist())
            if (size := math.prod(shape)) > MAX_BYTES:
                raise BadFile(path, f"at most {MAX_BYTES} bytes", f"a header of {shape}")
            data = file.read(size + 1)  # no more, however much a small gzip file may unpack to
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadFile(path, "a whole gzip file", str(error)) from error
    if len(data) != size:
        raise BadFile(path, f"{size} bytes for {shape}", f"{'more' if len(data) > size else len(data)}")
    return np.frombuffer(data, np.uint8).reshape(shape), path


def svhn(base: Path, part: str, classes: int) -> Arrays:
    """X is (32, 32, 3, n); the digit 0 is written 10."""
    path = base / f"{part}_32x32.mat"
    pixels, labels = _mat(path, "X"), _mat(path, "y").ravel()
    if pixels.ndim != 4 or pixels.shape[-1] != len(labels):
        raise BadFile(path, f"pixels of {len(labels)} images, (32, 32, 3, n)", f"X of shape {pixels.shape}")
    return Arrays(pixels.transpose(3, 0, 1, 2), labels.astype(np.int64) % 10, (path,))


def _mat(path: Path, name: str) -> np.ndarray:
    from scipy.io import loadmat

    try:
        _check_mat(path)
        return loadmat(path, variable_names=[name])[name]
    except (FileNotFoundError, BadFile):
        raise
    except Exception as error:  # SciPy promises no types
        raise BadFile(path, f"a MATLAB 5 file with {name!r}", f"{type(error).__name__}: {error}") from error


def _check_mat(path: Path) -> None:
    """Raise BadFile for a file that promises arrays which no memory could hold; SciPy would make room for them."""
    from scipy.io import whosmat

    try:
        arrays = whosmat(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # SciPy promises no types
        raise BadFile(path, "a MATLAB 5 file", f"{type(error).__name__}: {error}") from error
    for name, shape, _ in arrays:
        if math.prod(map(int, shape)) > MAX_BYTES:
            raise BadFile(path, f"at most {MAX_BYTES} numbers in {name!r}", f"a header of {shape}")


def stl10(base: Path, part: str, classes: int) -> Arrays:
    """Images are (3, width, height), column by column; labels start from 1."""
    images, labels = base / f"{part}_X.bin", base / f"{part}_y.bin"
    values = np.fromfile(labels, np.uint8).astype(np.int64) - 1
    if images.stat().st_size != len(values) * 3 * 96 * 96:
        raise BadFile(images, f"{len(values) * 3 * 96 * 96} bytes for {len(values)} images", f"{images.stat().st_size}")
    pixels = np.memmap(images, np.uint8, "r", shape=(len(values), 3, 96, 96))
    return Arrays(pixels.transpose(0, 3, 2, 1), values, (images, labels))


def cifar(base: Path, part: str, classes: int, *, files: dict[str, tuple[str, ...]], labels: str) -> Arrays:
    """Python's pickled batches, read without executing them."""
    paths = tuple(base / name for name in files[part])
    pixels, values = zip(*(_batch(path, labels) for path in paths), strict=True)
    planes = np.concatenate(pixels).reshape(-1, 3, 32, 32)
    return Arrays(planes.transpose(0, 2, 3, 1), np.concatenate(values), paths)


def _batch(path: Path, labels: str) -> tuple[np.ndarray, np.ndarray]:
    """(pixels (n, 3072) uint8, labels (n,)) of one batch: {"data": array, `labels`: list, ...}."""
    from src.published.unpickle import UnpickleError, byte_array, plain_pickle  # here: it takes torch

    try:
        with open(path, "rb") as file:
            batch = plain_pickle(file)
        pixels, values = byte_array(batch["data"]), np.fromiter(batch[labels], np.int64)
        if pixels.shape != (len(values), 3072):
            raise ValueError(f"pixels of shape {pixels.shape} for {len(values)} labels")
    except (UnpickleError, KeyError, TypeError, ValueError) as error:
        raise BadFile(path, f"a pickled CIFAR batch with 'data' and {labels!r}", str(error)) from error
    return pixels, values


# Kaggle numbers the emotions angry, disgust, fear, happy, sad, surprise, neutral; the published loader, as every copy
# in folders, numbers them by name: angry, disgust, fear, happy, neutral, sad, surprise.
FER_USAGES = ("Training", "PublicTest", "PrivateTest")
FER_ORDER = np.array((0, 1, 2, 3, 5, 6, 4))


def fer2013(base: Path, part: str, classes: int) -> Arrays:
    """Kaggle's csv with the columns emotion, pixels (48 x 48 numbers) and Usage."""
    path = next(path for name in ("fer2013.csv", "icml_face_data.csv") if (path := base / name).exists())
    usages = ("Training",) if part == "train" else ("PublicTest", "PrivateTest")
    pixels, labels = [], []
    with open(path, newline="") as file:
        rows = csv.DictReader(file, skipinitialspace=True)
        if missing := {"emotion", "pixels", "Usage"} - {column.strip() for column in rows.fieldnames or ()}:
            raise BadFile(path, "columns emotion, pixels, Usage", f"no {', '.join(sorted(missing))}")
        try:
            for row in rows:
                if row["Usage"] not in FER_USAGES:
                    raise ValueError(f"Usage {row['Usage']}")
                if row["Usage"] in usages:
                    pixels.append(np.array(row["pixels"].split(), dtype=np.uint8).reshape(48, 48))
                    labels.append(int(row["emotion"]))
        except (ValueError, OverflowError, AttributeError, csv.Error) as error:
            expected = f"an emotion, {48 * 48} pixels and a known Usage in line {rows.line_num}"
            raise BadFile(path, expected, str(error)) from error
    if not pixels:
        raise BadFile(path, f"rows with Usage {' or '.join(usages)}", "none")
    return Arrays(np.stack(pixels), FER_ORDER[labels], (path,))


@dataclass(frozen=True)
class Pcam:
    """PatchCamelyon's HDF5 files; pixels stay on disk."""

    images: Path
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Image.Image:
        with _h5py().File(self.images) as file:
            return Image.fromarray(file["x"][index]).convert("RGB")

    def name(self, index: int) -> str:
        return f"{self.images}[{index}]"

    def raw(self, index: int) -> bytes:
        with _h5py().File(self.images) as file:
            return file["x"][index].tobytes()

    def identity(self) -> str:
        return Files((str(self.images),), self.labels).identity()


def pcam(base: Path, part: str, classes: int) -> Pcam:
    images, labels = (base / f"camelyonpatch_level_2_split_{part}_{kind}.h5" for kind in "xy")
    h5py = _h5py()
    try:
        with h5py.File(images) as x, h5py.File(labels) as y:
            count = len(x["x"])
            if y["y"].size != count:
                raise BadFile(labels, f"{count} labels, as many as {images.name} has images", str(y["y"].size))
            values = y["y"][:].reshape(-1).astype(np.int64)
    except BadFile:
        raise
    except Exception as error:  # HDF5 promises no types
        raise BadFile(images, "whole HDF5 files with 'x' and 'y'", str(error)) from error
    return Pcam(images, values)


def _h5py():
    try:
        import h5py
    except ImportError as error:
        raise DataError(
            "PCAM's official files are HDF5 and need h5py: pip install h5py, "
            "or take the mirror: python -m src.datasets prepare PCAM --source hub"
        ) from error
    return h5py


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def idx_layouts(*folders: str, train: str = "train", test: str = "t10k", first: int = 0) -> tuple[Layout, ...]:
    prefix = {"train": train, "test": test}
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    needs = tuple(f"{name}-{kind}" for name in (train, test) for kind in kinds)
    read = partial(idx, prefix=prefix, first=first)
    return tuple(Layout(folder, needs, read, gzipped=True) for folder in folders)


def folder_layout(folder: str, names: ClassFolders, **folders: str) -> Layout:
    """`folders` says which folder holds which part: train="train", test="val"."""
    read = partial(class_folders, folders=folders, names=names)
    return Layout(folder, tuple(folders.values()), read, tuple(folders))


def named_as_classes(name: str) -> list[tuple[str, ...]]:
    """Folders that are called as the classes of a set, or with the first letter before it, as SUN397 sorts them."""
    return [(classname, f"{classname[0]} {classname}") for classname in CLASSNAMES[name]]


def imagenet_synsets() -> list[tuple[str]]:
    """WordNet's numbers of ImageNet's 1,000 classes."""
    from timm.data import ImageNetInfo  # here: it takes torch

    return [(synset,) for synset in ImageNetInfo("imagenet-1k").label_names()]


def cifar_layout(folder: str, train: tuple[str, ...], test: tuple[str, ...], labels: str) -> Layout:
    files = {"train": train, "test": test}
    return Layout(folder, train + test, partial(cifar, files=files, labels=labels))
