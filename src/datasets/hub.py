"""Hub mirrors: one snapshot of parquet files (or tar shards) at one revision, read offline ever after.

The first fetch writes `snapshot.json` beside the files: the repository's revision, and the size and SHA-256 of each
file. Later fetches complete or repair that same revision. Copying the folder to a machine without a network is enough.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import NonNegativeInt, TypeAdapter
from typing_extensions import TypedDict  # Python's own does not serve pydantic before 3.12

from src.datasets.download import TIMEOUT, require_room, set_aside
from src.datasets.examples import BadFile, DataError, decode, digest, plain
from src.runtime.files import file_hash, read_json, replacing
from src.runtime.messages import few
from src.runtime.paths import Places, from_root

SAME_NAMES = 0.9  # share of the classes that a mirror must call as we do
STROKES = 100  # images that tell how a set's strokes lie
UPRIGHT = 1.5  # height over width of strokes: 4 upright and 0.25 on their side, measured on scikit-learn's digit 1
READ_ONLY = from_root(Places.cache) / "arrow"  # Arrow copies of sets in a folder that may not be written to
COMPLETE = "dataset_info.json"  # the file of an Arrow copy that is written last
CONVERTED = "refs/convert/parquet"  # where the hub keeps its own parquet copy of a set that came in another format


@dataclass(frozen=True)
class Mirror:
    """A data set on the hub and how its columns and splits are called."""

    repo: str
    config: str = ""  # a folder of the repository, when it holds several variants
    image: str = "image"
    label: str = "label"
    train: str = "train"
    test: str = "test"
    # What the mirror may call the classes, in our label order; None: our class names.
    classes: tuple[str, ...] | None = None
    # Its names are longer than ours, in our order, as "tench, Tinca tinca".
    longer_names: bool = False
    # How its rows come to stand as the official files do, on which the pinned validation split depends:
    # the labels of the first training rows, where the mirror keeps the official order;
    first_labels: tuple[int, ...] = ()
    # or what official file names look like, where it keeps these: rows are then sorted by class and name, or by name.
    file_names: str = ""
    by_class: bool = True
    # The label of a class of upright strokes, where images must lie on their side and a mirror may have turned them;
    strokes: int | None = None
    # and whether such images are turned, or only told.
    turns: bool = True

    def folder(self, root: Path) -> Path:
        return root / "hub" / self.repo.replace("/", "--")

    def part(self, part: str) -> str:
        return {"train": self.train, "test": self.test}[part]

    def select(self, files: list[str], part: str) -> list[str]:
        """The files of a part, in the order of their numbers: data/train-00000-of-00002.parquet, train/0.tar, ..."""
        pattern = re.compile(rf"(^|/){re.escape(self.part(part))}([-/][^/]*)?\.(parquet|tar)$")
        chosen = [file for file in files if pattern.search(file) and f"{self.config}/" in f"/{file}"]
        parquet = [file for file in chosen if file.endswith(".parquet")]
        return sorted(parquet or chosen, key=lambda file: [int(n) for n in re.findall(r"\d+", file)] + [file])


class Fetched(TypedDict):
    """size: in bytes. sha256: in hexadecimal digits, or None where the hub states none."""

    size: NonNegativeInt
    sha256: str | None


@dataclass(frozen=True)
class Snapshot:
    """What was fetched: files by their path in the repository."""

    repo: str
    revision: str
    files: dict[str, Fetched]

    @classmethod
    def read(cls, folder: Path) -> "Snapshot | None":
        path = folder / "snapshot.json"
        if not path.exists():
            return None
        try:
            snapshot = TypeAdapter(cls).validate_python(read_json(path))
            for file in snapshot.files:
                if Path(file).is_absolute() or ".." in Path(file).parts:
                    raise ValueError(f"a file outside of the folder, {file!r}")
            return snapshot
        except ValueError as error:
            told = " ".join(str(error).splitlines()[:3])
            raise BadFile(path, "the record of a fetched snapshot", f"{told}; remove it and fetch again") from error

    def write(self, folder: Path) -> None:
        with replacing(folder / "snapshot.json") as temporary:
            temporary.write_text(json.dumps(vars(self), indent=1) + "\n", encoding="utf-8")

    def missing(self, folder: Path) -> list[str]:
        """Files that are absent or of another size: quick enough for every start."""
        sizes = {file: (folder / file).stat().st_size for file in self.files if (folder / file).exists()}
        return [file for file, facts in self.files.items() if sizes.get(file) != facts["size"]]

    def verify(self, folder: Path) -> list[str]:
        """The files to fetch. One whose size or hash is wrong is set aside and named."""
        lacking = []
        for file, facts in self.files.items():
            path = folder / file
            if path.exists():
                found: Fetched = {"size": path.stat().st_size, "sha256": facts["sha256"] and file_hash(path)}
                if found == facts:
                    continue
                print(f"{path}: expected {facts}, found {found}; set aside as {set_aside(path).name}")
            lacking.append(file)
        return lacking


def fetch(mirror: Mirror, root: Path) -> Snapshot:
    """The verified snapshot of a mirror; touches the network only for files that are not there.

    Raises DataError when the hub cannot be reached, asks for a login, or gives files that differ from its own hashes.
    """
    import huggingface_hub

    folder = mirror.folder(root)
    snapshot = describe(mirror, root)
    snapshot.write(folder)
    lacking = [name for name in snapshot.verify(folder) if not _from_shared_cache(snapshot, name, folder)]
    if lacking:
        require_room(folder, 2 * sum(snapshot.files[name]["size"] for name in lacking))  # and the Arrow copy
        try:
            huggingface_hub.snapshot_download(
                mirror.repo,
                repo_type="dataset",
                revision=snapshot.revision,
                allow_patterns=lacking,
                local_dir=folder,
            )
        except Exception as error:  # the hub's client changes its transport library, and with it its errors
            raise _unreachable(mirror, folder, error) from error
        if wrong := snapshot.verify(folder):
            raise DataError(
                f"{mirror.repo}@{snapshot.revision}: {len(wrong)} files did not arrive as the hub describes them: "
                f"{', '.join(wrong[:5])}. Run the same command again."
            )
    return snapshot


def describe(mirror: Mirror, root: Path) -> Snapshot:
    """What was fetched, or would be. Raises DataError when the hub cannot be asked."""
    folder = mirror.folder(root)
    return Snapshot.read(folder) or _listing(mirror, folder)


def _from_shared_cache(snapshot: Snapshot, name: str, folder: Path) -> bool:
    """Take a file that the hub's client has in its own cache (HF_HOME) already; whether there was one."""
    import huggingface_hub

    kept = huggingface_hub.try_to_load_from_cache(snapshot.repo, name, revision=snapshot.revision, repo_type="dataset")
    if not isinstance(kept, str) or Path(kept).stat().st_size != snapshot.files[name]["size"]:
        return False
    with replacing(folder / name) as temporary:
        try:
            os.link(Path(kept).resolve(), temporary)
        except OSError:  # another file system
            shutil.copyfile(kept, temporary)
    return True


def arrow_folders(root: Path) -> list[Path]:
    """Where Arrow copies may lie: beside the snapshots, or, where no file may be written there, in the cache."""
    return [root / "hub" / ".arrow", READ_ONLY]


def arrow_name(snapshot: Snapshot, folder: Path, files: list[str], part: str) -> str:
    """Of the Arrow copy of these files: the same wherever the snapshot lies, another where a file is another."""
    facts = [f"{file} {(status := (folder / file).stat()).st_size} {status.st_mtime_ns}" for file in files]
    return f"{snapshot.repo.replace('/', '--')}-{part}-{digest([snapshot.revision, *facts])[:16]}"


def stale_copies(mirror: Mirror, root: Path) -> list[Path]:
    """Arrow copies, beside the snapshots, of files of a mirror that are not there any more, or are others now.

    Earlier versions kept all copies in folders called parquet and webdataset.
    """
    folder, beside = mirror.folder(root), arrow_folders(root)[0]
    snapshot, current = Snapshot.read(folder), set()
    if snapshot and not snapshot.missing(folder):
        parts = {part: mirror.select(list(snapshot.files), part) for part in ("train", "test")}
        current = {arrow_name(snapshot, folder, files, part) for part, files in parts.items() if files}
    ours = re.compile(rf"{re.escape(mirror.repo.replace('/', '--'))}-(train|test)-[0-9a-f]{{16}}|parquet|webdataset")
    return [copy for copy in beside.glob("*") if ours.fullmatch(copy.name) and copy.name not in current]


def _listing(mirror: Mirror, folder: Path) -> Snapshot:
    """The revision that the mirror is at, and its files of our parts."""
    import huggingface_hub

    seen: list[str] = []
    for revision in (None, CONVERTED):
        try:
            info = huggingface_hub.HfApi().dataset_info(
                mirror.repo, revision=revision, files_metadata=True, timeout=TIMEOUT
            )
        except huggingface_hub.errors.RevisionNotFoundError:
            continue
        except Exception as error:  # see fetch
            raise _unreachable(mirror, folder, error) from error
        entries = {entry.rfilename: entry for entry in info.siblings or ()}
        seen += entries
        chosen = [mirror.select(list(entries), part) for part in ("train", "test")]
        if all(chosen):
            names = sum(chosen, []) + [name for name in ("classnames.txt",) if name in entries]
            stored = {name: entries[name].lfs for name in names}
            hashes = {name: lfs.sha256 if lfs else None for name, lfs in stored.items()}
            files: dict[str, Fetched] = {
                name: {"size": entries[name].size or 0, "sha256": hashes[name]} for name in names
            }
            assert info.sha is not None  # the hub states it of every revision
            return Snapshot(mirror.repo, info.sha, files)
    raise DataError(
        f"hub data set {mirror.repo}: expected parquet or tar files of {mirror.train!r} and {mirror.test!r}, "
        f"found {', '.join(seen[:8])}, ... It changed; take --source official."
    )


def _unreachable(mirror: Mirror, folder: Path, error: Exception) -> DataError:
    import huggingface_hub

    if isinstance(error, huggingface_hub.errors.GatedRepoError):
        return DataError(
            f"hub data set {mirror.repo} is given only to those who accepted its terms: accept them on its page, "
            "then log in with: hf auth login"
        )
    if isinstance(error, huggingface_hub.errors.RevisionNotFoundError):
        return DataError(
            f"hub data set {mirror.repo}: expected the revision that {folder / 'snapshot.json'} names, found it gone "
            "from the hub. To take the one that is there now, which may hold other images: remove "
            f"{folder} and run the same command again"
        )
    return DataError(
        f"cannot fetch {mirror.repo} from the hub: {type(error).__name__}: {error}\n"
        "Without a network: run the same command on a machine that has one, "
        f"and copy its hub/{folder.name} folder to {folder}."
    )


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
    name = arrow_name(snapshot, folder, files, part)
    table = _table([str(folder / file) for file in files], part, name, arrow_folders(root))
    from datasets import Image as ImageFeature  # after _table, which explains a wrong `datasets`

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
    except Exception as error:  # as in _table
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
        kept = chunk.field("path").to_pylist() if chunk.type.num_fields == 2 else []
        names += [(name or "").rpartition("/")[2] for name in kept]
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


def _table(files: list[str], part: str, name: str, folders: list[Path]):
    """The rows of the files as a `datasets.Dataset`, memory-mapped from an Arrow copy of this name.

    A copy that is there is read as it is, from a folder that may not be written to as well; else it is made in the
    first folder that may be. The builders are used without `load_dataset`, which calls the hub to be counted even when
    all files are local.
    """
    try:
        from datasets.packaged_modules.parquet.parquet import Parquet
        from datasets.packaged_modules.webdataset.webdataset import WebDataset

        from datasets import Dataset, concatenate_datasets
    except ImportError as error:
        raise DataError(
            f"expected Hugging Face's datasets (4 or later), found: {error}. Where src/ stands on sys.path, `datasets` "
            "is this project's src/datasets: start from its root, as in python -m src.datasets or python finetune.py"
        ) from error
    kind = Parquet if files[0].endswith(".parquet") else WebDataset
    copies = [folder / name for folder in folders]
    copy = next((copy for copy in copies if (copy / COMPLETE).is_file()), None)
    try:
        if copy is None:
            copy = next((c for c in copies if _may_be_made(c)), copies[-1])
            kind(cache_dir=str(copy.parent), data_files={part: files}).download_and_prepare(str(copy))
        shards = [Dataset.from_file(str(shard)) for shard in sorted(copy.glob("*.arrow"))]
        expected = read_json(copy / COMPLETE)["splits"][part]["num_examples"]
        if sum(map(len, shards)) != expected:
            raise BadFile(copy, f"{expected} rows", f"{sum(map(len, shards))}; remove it, and it is made anew")
        return concatenate_datasets(shards)
    except BadFile:
        raise
    except OSError as error:
        raise DataError(
            f"cannot make or read the Arrow copy of {files[0]} in {copy}: {error}. It needs a folder that may be "
            f"written to, with room for as much as the files take: {' or '.join(map(str, folders))}"
        ) from error
    except Exception as error:  # Arrow and the builders promise no types
        reason = f"{type(error).__name__}: {error.__cause__ or error}".splitlines()[0]
        raise BadFile(Path(files[0]), f"whole {Path(files[0]).suffix[1:]} files", reason) from error


def _may_be_made(copy: Path) -> bool:
    """Whether the nearest folder that is there may be written to."""
    above = next(folder for folder in copy.parents if folder.exists())
    return os.access(above, os.W_OK)
