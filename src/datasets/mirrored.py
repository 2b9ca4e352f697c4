"""The images of a mirror: its classes brought into our order, its rows into the official one, EMNIST on its side."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from src.datasets.arrow import copy_name, folders_of, rows_of
from src.datasets.examples import BadFile, DataError, decode, digest, plain
from src.datasets.hub import Mirror, Snapshot
from src.runtime.messages import few

SAME_NAMES = 0.9  # share of the classes that a mirror must call as we do
STROKES = 100  # images that tell how a set's strokes lie
UPRIGHT = 1.5  # height over width of strokes: 4 upright and 0.25 on their side, measured on scikit-learn's digit 1


@dataclass(frozen=True)
class Encoded:
    """Examples of a snapshot: encoded images in a memory-mapped table.

    rows: the row of each example. official: whether examples stand as in the official files. turned: whether images
    are transposed, as the official files have them. class_names: how many the mirror calls as we do. remarks: what a
    reader of the record should know.
    """

    table: Any  # datasets.Dataset whose image column holds {"bytes", "path"}
    labels: np.ndarray
    column: str
    origin: str  # repository@revision/part
    rows: np.ndarray
    official: bool = False
    turned: bool = False
    class_names: str = ""
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Image.Image:
        image = decode(self.raw(index), self.name(index))
        return image.transpose(Image.Transpose.TRANSPOSE) if self.turned else image

    def name(self, index: int) -> str:
        return f"{self.origin}[{self.rows[index]}]"

    def raw(self, index: int) -> bytes:
        return self.table[int(self.rows[index])][self.column]["bytes"] or b""

    def identity(self) -> str:
        return digest([self.origin, np.ascontiguousarray(self.rows).tobytes(), str(self.turned)])


def read(mirror: Mirror, root: Path, part: str, classnames: tuple[str, ...]) -> Encoded:
    """The examples of "train" or "test", with labels in our order of classes."""
    folder = mirror.folder(root)
    snapshot = Snapshot.read(folder)
    lacking = snapshot.missing(folder) if snapshot else ["snapshot.json"]
    if snapshot is None or lacking:
        raise DataError(f"{folder}: {len(lacking)} files are missing or cut short: {', '.join(lacking[:5])}")
    if not (files := mirror.select(list(snapshot.files), part)):
        raise BadFile(folder / "snapshot.json", f"files of the part {mirror.part(part)!r}", "none")
    name = copy_name(snapshot, folder, files, part)
    table = rows_of([str(folder / file) for file in files], part, name, folders_of(root))
    from datasets import Image as ImageFeature  # after rows_of, which explains a wrong `datasets`

    if absent := {mirror.image, mirror.label} - set(table.column_names):
        raise BadFile(
            folder / files[0],
            f"columns {mirror.image} and {mirror.label}",
            f"{', '.join(table.column_names)} (no {', '.join(sorted(absent))})",
        )
    feature = table.features[mirror.label]
    labels = table.data.column(mirror.label).to_numpy()
    if labels.dtype.kind not in "iub":
        raise BadFile(folder / files[0], f"whole numbers in {mirror.label}", f"{feature}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classnames):
        raise BadFile(folder / files[0], f"labels 0 to {len(classnames) - 1}", f"{labels.min()} to {labels.max()}")
    names_file = folder / "classnames.txt"
    names = getattr(feature, "names", None) or (names_file.read_text().split("\n") if names_file.exists() else [])
    names, ours = [name for name in names if name], classnames if mirror.classes is None else mirror.classes
    if mirror.longer_names:
        check_longer_names(names, ours)
        order = np.empty(0, dtype=np.int64)
    else:
        order = class_order(names, ours)
    labels = order[labels.astype(np.int64)] if len(order) else labels.astype(np.int64)
    rows, official = official_order(mirror, _file_names(table, mirror.image), labels, part)
    try:
        images = table.cast_column(mirror.image, ImageFeature(decode=False))
        images[:1]
    except Exception as error:  # as in rows_of
        raise BadFile(folder / files[0], f"images in {mirror.image}", f"{table.features[mirror.image]}") from error
    found = Encoded(
        images,
        labels[rows],
        mirror.image,
        f"{mirror.repo}@{snapshot.revision}/{part}",
        rows,
        official,
        class_names=_told_names(names, ours, mirror.longer_names),
    )
    return found if mirror.strokes is None else on_its_side(found, mirror.strokes, mirror.turns)


def class_order(theirs: list[str], ours: tuple[str, ...]) -> np.ndarray:
    """For each of the mirror's labels, ours; empty when there is nothing to compare.

    A class that both call the same goes to our place, spelling of separators aside; one that they call otherwise keeps
    its number. Raises DataError when that is no one-to-one order, and where fewer than nine in ten are called the same:
    numbers alone would then decide which image shows what.
    """
    if not theirs or not ours:
        return np.empty(0, dtype=np.int64)
    our_index = {plain(name): index for index, name in enumerate(ours)}
    same = [plain(name) in our_index for name in theirs]
    order = np.array([our_index.get(plain(name), index) for index, name in enumerate(theirs)])
    if len(theirs) != len(ours) or len(set(order.tolist())) != len(ours) or sum(same) < SAME_NAMES * len(ours):
        raise DataError(
            f"the mirror's classes do not fit: expected {len(ours)}: {', '.join(ours[:6])}, ...; "
            f"found {len(theirs)}: {', '.join(theirs[:6])}, ...; {sum(same)} are called the same. The mirror changed, "
            "or is of another data set: take --source official"
        )
    return order


def _told_names(theirs: list[str], ours: tuple[str, ...], longer: bool) -> str:
    """How many classes the mirror calls as we do, and which others keep their number."""
    if not theirs:
        return "the mirror names none"
    known = {plain(name) for name in ours}
    others = [] if longer else [name for name in theirs if plain(name) not in known]
    same = sum(plain(o) in plain(t) for o, t in zip(ours, theirs)) if longer else len(theirs) - len(others)
    return f"{same} of {len(ours)} the same" + (f"; by number: {few(others)}" if others else "")


def check_longer_names(theirs: list[str], ours: tuple[str, ...]) -> None:
    """Raise DataError unless most of the mirror's names contain ours at the same place, and there are as many."""
    same = sum(plain(our) in plain(their) for our, their in zip(ours, theirs))
    if theirs and (len(theirs) != len(ours) or same < len(ours) / 2):
        raise DataError(
            f"the mirror's classes do not fit: expected {len(ours)} in the order of {', '.join(ours[:4])}, ...; found "
            f"{len(theirs)}: {', '.join(theirs[:4])}, ..., of which {same} contain ours"
        )


def _file_names(table, column: str) -> list[str]:
    """The names that the rows' files had, "" for one that the mirror does not keep; none where a column has none."""
    names: list[str] = []
    for chunk in table.data.column(column).chunks:
        paths = chunk.field("path").to_pylist() if chunk.type.num_fields == 2 else []
        names += [(name or "").rpartition("/")[2] for name in paths]
    return names


def official_order(mirror: Mirror, names: list[str], labels: np.ndarray, part: str) -> tuple[np.ndarray, bool]:
    """(the rows in the order in which the published code reads the official files, whether they are known to be).

    names: of the rows' files; labels: ours. Rows whose order cannot be found out stay as they are.
    """
    rows = np.arange(len(labels))
    if mirror.file_names and len(names) == len(labels) and all(re.fullmatch(mirror.file_names, n) for n in names):
        # The hub's ImageNet writes the class behind the name: n01440764_18_n01440764.JPEG
        shorter = [re.sub(r"_n\d{8}(?=\.)", "", name) for name in names]
        keys = [(int(label) if mirror.by_class else 0, name) for label, name in zip(labels, shorter)]
        if len(set(keys)) == len(keys):
            return np.array(sorted(rows, key=keys.__getitem__), dtype=np.int64), True
    first = labels[: len(mirror.first_labels)].tolist()
    return rows, part == "train" and bool(first) and tuple(first) == mirror.first_labels


def on_its_side(images: Encoded, strokes: int, turns: bool = True) -> Encoded:
    """The images as the official EMNIST files have them, on their side; turned where the mirror has them upright.

    strokes: the label of the digit 1, or of another class of upright strokes, which tell.
    turns: False leaves images of a mirror as they lie, and tells how that is.
    """
    some = np.flatnonzero(images.labels == strokes)[:STROKES]
    total = sum((np.asarray(images[index].convert("L"), dtype=float) for index in some), start=np.zeros(()))
    height = elongation(total) if total.ndim == 2 else 1.0
    if height > UPRIGHT:
        remark = "the mirror has its images upright; the official files have them on their side"
        remark += ", and they are turned so" if turns else ", and they stay as checkpoints were fine-tuned on them"
    elif height < 1 / UPRIGHT:
        remark = "the mirror has its images on their side, as the official files have them"
    else:
        remark = (
            "whether the mirror has its images upright or on their side cannot be told; the official ones are on it"
        )
    return replace(images, turned=turns and height > UPRIGHT, remarks=(*images.remarks, remark))


def elongation(image: np.ndarray) -> float:
    """Vertical over horizontal variance of what is bright in an image (H, W); 1 for an image of one colour."""
    bright = image - image.min()
    if not bright.any():
        return 1.0
    rows, columns = np.arange(image.shape[0])[:, None], np.arange(image.shape[1])

    def variance(positions: np.ndarray) -> float:
        mean = (positions * bright).sum() / bright.sum()
        return float(((positions - mean) ** 2 * bright).sum() / bright.sum())

    return variance(rows) / max(variance(columns), 1e-9)
