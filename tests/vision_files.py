"""Tiny data sets in the true on-disk formats of the vision suite, for tests.

Every image shows its own label as a colour, so that a reader which pairs images with wrong labels is caught whatever
order it reads in; a little noise makes all files differ.
"""

import csv
import gzip
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from src.datasets.classnames import CLASSNAMES
from src.datasets.hub import Snapshot
from src.datasets.official import imagenet_synsets
from src.datasets.vision import EUROSAT_FOLDERS as EUROSAT
from src.datasets.vision import FACTS

STEP = 25  # between the colours of two labels: far more than JPEG loses
_noise = np.random.default_rng(0)


def pixels(label: int, side: int = 8, grey: bool = False) -> np.ndarray:
    """uint8 (side, side, 3), or (side, side) for up to 26 labels, that shows `label`."""
    if grey:
        return np.full((side, side), 9 * label, np.uint8) + _noise.integers(0, 4, (side, side), dtype=np.uint8)
    colour = np.array([label % 10, label // 10 % 10, label // 100], np.uint8) * STEP
    return colour + _noise.integers(0, 4, (side, side, 3), dtype=np.uint8)


def shown(image: Image.Image, grey: bool = False) -> int:
    """The label that an image shows."""
    mean = np.asarray(image, dtype=float).mean((0, 1)) - 1.5
    if grey:
        return round(mean[0] / 9)
    ones, tens, hundreds = (int(round(value / STEP)) for value in mean)
    return ones + 10 * tens + 100 * hundreds


def encoded(label: int, kind: str = "JPEG", grey: bool = False, side: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(label, side, grey)).save(stream, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return stream.getvalue()


def put(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def labels_of(name: str, count: int) -> list[int]:
    """`count` labels that go round the classes, not in order."""
    classes = len(CLASSNAMES[name])
    return [(7 * index + 3) % classes for index in range(count)]


def cars(root: Path) -> None:
    base = root / "stanford_cars"
    fields = [(name, object) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    put(base / "devkit/.keep", "")
    savemat(base / "devkit/cars_meta.mat", {"class_names": np.array(CLASSNAMES["Cars"], dtype=object)})
    for folder, annotations, count in (
        ("cars_train", "devkit/cars_train_annos.mat", 24),
        ("cars_test", "cars_test_annos_withlabels.mat", 6),
    ):
        rows = []
        for index, label in enumerate(labels_of("Cars", count)):
            put(base / folder / f"{index + 1:05d}.jpg", encoded(label))
            rows.append((1, 1, 8, 8, label + 1, f"{index + 1:05d}.jpg"))
        savemat(base / annotations, {"annotations": np.array(rows, dtype=fields)})


def class_folders(name: str, base: Path, parts: dict[str, int], folders: Sequence[str], ending: str = "jpg") -> None:
    """`parts`: folder of a part -> images of each class."""
    kind = {"jpg": "JPEG", "JPEG": "JPEG", "png": "PNG", "ppm": "PPM"}[ending]
    for part, count in parts.items():
        for label, folder in enumerate(folders):
            for index in range(count):
                put(base / part / folder / f"{folder}_{part}_{index}.{ending}", encoded(label, kind))


def dtd(root: Path) -> None:
    base = root / "dtd/dtd"
    for part in ("train1", "val1", "test1"):
        lines = []
        for label, folder in enumerate(CLASSNAMES["DTD"]):
            lines.append(f"{folder}/{folder}_{part}.jpg")
            put(base / "images" / lines[-1], encoded(label))
        put(base / "labels" / f"{part}.txt", "\n".join(lines) + "\n")


def eurosat(root: Path) -> None:
    class_folders("EuroSAT", root / "eurosat", {"2750": 20}, EUROSAT)


def gtsrb(root: Path) -> None:
    base = root / "gtsrb"
    class_folders("GTSRB", base / "GTSRB", {"Training": 1}, [f"{label:05d}" for label in range(43)], "ppm")
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for index, label in enumerate(labels_of("GTSRB", 6)):
        put(base / "GTSRB/Final_Test/Images" / f"{index:05d}.ppm", encoded(label, "PPM"))
        lines.append(f"{index:05d}.ppm;8;8;1;1;7;7;{label}")
    put(base / "GT-final_test.csv", "\n".join(lines) + "\n")


def idx_bytes(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def idx(name: str, folder: str, train: str, test: str, first: int = 0, zipped: bool = True) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        for prefix, count in ((train, 24), (test, 6)):
            labels = labels_of(name, count)
            images = np.stack([pixels(label, 28, grey=True) for label in labels])
            for kind, values in (("images-idx3", images), ("labels-idx1", np.array(labels, np.uint8) + first)):
                data = idx_bytes(values.astype(np.uint8))
                path = root / folder / f"{prefix}-{kind}-ubyte{'.gz' if zipped else ''}"
                put(path, gzip.compress(data) if zipped else data)

    return write


def resisc45(root: Path) -> None:
    base = root / "resisc45"
    for number, part in enumerate(("train", "test"), start=1):
        names = []
        for label, classname in enumerate(CLASSNAMES["RESISC45"]):
            folder = classname.replace(" ", "_")
            names.append(f"{folder}_{number:03d}.jpg")
            put(base / "NWPU-RESISC45" / folder / names[-1], encoded(label))
        put(base / f"resisc45-{part}.txt", "\n".join(reversed(names)) + "\n")


def svhn(root: Path) -> None:
    for part, count in (("train", 24), ("test", 6)):
        labels = labels_of("SVHN", count)
        images = np.stack([pixels(label, 32) for label in labels], axis=-1)  # (32, 32, 3, n)
        path = root / "svhn" / f"{part}_32x32.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        savemat(path, {"X": images, "y": np.array([[label or 10] for label in labels], np.uint8)})


def sun397(root: Path) -> None:
    """The official tree has folders within folders, such as a/apse/indoor."""
    base = root / "SUN397"
    nested = {"indoor", "outdoor", "door", "interior", "exterior", "baseball", "football"}
    for part in ("Training_01", "Testing_01"):
        lines = []
        for label, classname in enumerate(CLASSNAMES["SUN397"]):
            *words, last = classname.split()
            folder = "_".join(words) + f"/{last}" if last in nested and words else "_".join((*words, last))
            lines.append(f"/{classname[0]}/{folder}/sun_{part}.jpg")
            put(base / lines[-1].lstrip("/"), encoded(label))
        put(base / f"{part}.txt", "\n".join(lines) + "\n")


def stl10(root: Path) -> None:
    for part, count in (("train", 24), ("test", 6)):
        labels = labels_of("STL10", count)
        images = np.stack([pixels(label, 96) for label in labels]).transpose(0, 3, 2, 1)
        put(root / "stl10/stl10_binary" / f"{part}_X.bin", images.tobytes())
        put(root / "stl10/stl10_binary" / f"{part}_y.bin", (np.array(labels, np.uint8) + 1).tobytes())


def pets(root: Path) -> None:
    base = root / "OxfordIIITPet/oxford-iiit-pet"
    for part, count in (("trainval", 24), ("test", 6)):
        lines = []
        for index, label in enumerate(labels_of("OxfordIIITPet", count)):
            stem = f"{CLASSNAMES['OxfordIIITPet'][label].replace(' ', '_')}_{part}{index}"
            put(base / "images" / f"{stem}.jpg", encoded(label))
            lines.append(f"{stem} {label + 1} 1 1")
        put(base / "annotations" / f"{part}.txt", "\n".join(lines) + "\n")


def flowers102(root: Path) -> None:
    base = root / "flowers102/flowers-102"
    labels = labels_of("Flowers102", 32)
    for number, label in enumerate(labels, start=1):
        put(base / "jpg" / f"image_{number:05d}.jpg", encoded(label))
    savemat(base / "imagelabels.mat", {"labels": np.array([labels]) + 1})
    numbers = np.arange(1, 33, dtype=np.uint16)[None]
    savemat(base / "setid.mat", {"trnid": numbers[:, :24], "valid": numbers[:, 24:26], "tstid": numbers[:, 26:]})


def python2_batch(images: np.ndarray, labels: list[int], key: str) -> bytes:
    """The pickle that Python 2 wrote for the CIFAR archives: protocol 2, byte strings, numpy.core."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value  # SHORT_BINSTRING

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)  # BININT

    data = images.tobytes()
    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t" + text(b"b") + b"tR"
    shape = b"(" + number(images.shape[0]) + number(images.shape[1]) + b"t"
    state = b"(" + number(1) + shape + dtype + b"I00\n" + b"T" + struct.pack("<i", len(data)) + data + b"tb"
    numbers = b"](" + b"".join(map(number, labels)) + b"e"
    items = text(b"batch_label") + text(b"one") + text(key.encode()) + numbers + text(b"data") + array + state
    return b"\x80\x02}(" + items + b"u."


def cifar(name: str, folder: str, batches: dict[str, int], key: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        for batch, count in batches.items():
            labels = labels_of(name, count)
            images = np.stack([pixels(label, 32) for label in labels]).transpose(0, 3, 1, 2).reshape(count, -1)
            put(root / folder / batch, python2_batch(images, labels, key))

    return write


def modern_batch(labels: list[int], key: str, protocol: int) -> bytes:
    """The same batch as today's Python and NumPy pickle it."""
    images = np.stack([pixels(label, 32) for label in labels]).transpose(0, 3, 1, 2).reshape(len(labels), -1)
    return pickle.dumps({"data": images, key: labels}, protocol=protocol)


def pcam(root: Path) -> None:
    import h5py

    for part, count in (("train", 24), ("test", 6)):
        labels = labels_of("PCAM", count)
        base = root / "PCAM/pcam"
        base.mkdir(parents=True, exist_ok=True)
        with h5py.File(base / f"camelyonpatch_level_2_split_{part}_x.h5", "w") as file:
            file["x"] = np.stack([pixels(label, 96) for label in labels])
        with h5py.File(base / f"camelyonpatch_level_2_split_{part}_y.h5", "w") as file:
            file["y"] = np.array(labels, np.uint8).reshape(-1, 1, 1, 1)


KAGGLE = (0, 1, 2, 3, 5, 6, 4)  # Kaggle's number of each of our labels is the inverse of this
FER_HEADERS = {"fer2013.csv": ("emotion", "pixels", "Usage"), "icml_face_data.csv": ("emotion", " Usage", " pixels")}


def fer2013(root: Path, file: str = "fer2013.csv") -> None:
    base = root / "fer2013"
    base.mkdir(parents=True, exist_ok=True)
    with open(base / file, "w", newline="") as stream:
        writer = csv.DictWriter(stream, FER_HEADERS[file])
        writer.writeheader()
        usages = ["Training"] * 24 + ["PublicTest"] * 3 + ["PrivateTest"] * 3
        for label, usage in zip(labels_of("FER2013", 30), usages, strict=True):
            numbers = " ".join(map(str, pixels(label, 48, grey=True).ravel()))
            values = {"emotion": KAGGLE.index(label), "pixels": numbers, "Usage": usage}
            writer.writerow({header: values[header.strip()] for header in FER_HEADERS[file]})


def food101(root: Path) -> None:
    base = root / "food101/food-101"
    for number, part in enumerate(("train", "test")):
        listing = {}
        for label, classname in enumerate(CLASSNAMES["Food101"]):
            listing[classname] = [f"{classname}/{1000 + number}"]
            put(base / "images" / f"{classname}/{1000 + number}.jpg", encoded(label))
        put(base / "meta" / f"{part}.json", json.dumps(listing))


def rendered_sst2(root: Path) -> None:
    parts = {"train": 12, "valid": 1, "test": 3}
    class_folders("RenderedSST2", root / "RenderedSST2/rendered-sst2", parts, CLASSNAMES["RenderedSST2"], "png")


def imagenet(root: Path) -> None:
    class_folders("ImageNet", root / "imagenet", {"train": 1, "val": 1}, synsets(), "JPEG")


def synsets() -> list[str]:
    return [name for (name,) in imagenet_synsets()]


OFFICIAL: dict[str, Callable[[Path], None]] = {
    "Cars": cars,
    "DTD": dtd,
    "EuroSAT": eurosat,
    "GTSRB": gtsrb,
    "MNIST": idx("MNIST", "MNIST/raw", "train", "t10k"),
    "RESISC45": resisc45,
    "SVHN": svhn,
    "SUN397": sun397,
    "STL10": stl10,
    "OxfordIIITPet": pets,
    "Flowers102": flowers102,
    "CIFAR100": cifar("CIFAR100", "cifar-100-python", {"train": 24, "test": 6}, "fine_labels"),
    "PCAM": pcam,
    "FER2013": fer2013,
    "CIFAR10": cifar(
        "CIFAR10", "cifar-10-batches-py", {f"data_batch_{n}": 6 for n in range(1, 6)} | {"test_batch": 6}, "labels"
    ),
    "Food101": food101,
    "FashionMNIST": idx("FashionMNIST", "FashionMNIST/FashionMNIST/raw", "train", "t10k", zipped=False),
    "RenderedSST2": rendered_sst2,
    "EMNIST": idx("EMNIST", "EMNIST/EMNIST/raw/gzip", "emnist-digits-train", "emnist-digits-test"),
    "KMNIST": idx("KMNIST", "KMNIST/KMNIST/raw", "train", "t10k", zipped=False),
    "ImageNet": imagenet,
    "EMNIST_letters": idx(
        "EMNIST_letters", "EMNIST/EMNIST/raw", "emnist-letters-train", "emnist-letters-test", first=1, zipped=False
    ),
    "FER2013_corrected": fer2013,
}
GREY = {"MNIST", "FashionMNIST", "EMNIST", "EMNIST_letters", "KMNIST", "FER2013", "FER2013_corrected"}


def hub(name: str, root: Path, train: int = 24, test: int = 6, names: Sequence[str] | None = None) -> Path:
    """The mirror's snapshot of a data set as `prepare` leaves it. `names`: the mirror's classes, in its own order."""
    import datasets

    mirror = FACTS[name].mirror
    folder = mirror.folder(root)
    ours = list(CLASSNAMES[name] if mirror.classes is None else mirror.classes or CLASSNAMES[name])
    names = list(names or ours)
    for split, count in ((mirror.train, train), (mirror.test, test)):
        labels = labels_of(name, count)
        images = [encoded(label, "PNG" if name in GREY else "JPEG", name in GREY, 28) for label in labels]
        theirs = [names.index(ours[label]) if names[0] in ours else label for label in labels]
        if mirror.label == "cls":
            tar_shard(folder / split / "0.tar", images, theirs)
            put(folder / "classnames.txt", "\n".join(names) + "\n")
            continue
        features = datasets.Features(
            {mirror.image: datasets.Image(), mirror.label: datasets.ClassLabel(names=_unique(names))}
        )
        rows = {mirror.image: [{"bytes": image, "path": None} for image in images], mirror.label: theirs}
        half = len(theirs) // 2
        for shard, part in enumerate((slice(0, half), slice(half, None))):
            path = folder / (mirror.config or "data") / f"{split}-0000{shard}-of-00002.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            table = datasets.Dataset.from_dict({key: value[part] for key, value in rows.items()}, features=features)
            table.to_parquet(path)
    describe(folder, mirror.repo)
    return folder


def _unique(names: list[str]) -> list[str]:
    """ClassLabel refuses names that occur twice, as some of ImageNet's do."""
    return [name if names.index(name) == index else f"{name} {index}" for index, name in enumerate(names)]


def tar_shard(path: Path, images: list[bytes], labels: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            for ending, data in (("jpg", image), ("cls", str(label).encode())):
                entry = tarfile.TarInfo(f"s{index:07d}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def describe(folder: Path, repo: str, revision: str = "0123456789abcdef") -> Snapshot:
    """Write the record that a fetch leaves."""
    from src.runtime.files import file_hash

    files = sorted(path for path in folder.rglob("*") if path.suffix in {".parquet", ".tar", ".txt"})
    facts = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": file_hash(path)} for path in files
    }
    snapshot = Snapshot(repo, revision, facts)
    snapshot.write(folder)
    return snapshot
