"""Hub mirrors: one snapshot of parquet files (or tar shards) at one revision, read offline ever after.

The first fetch writes `snapshot.json` beside the files: the repository's revision, and the size and SHA-256 of each
file. Later fetches complete or repair that same revision. Copying the folder to a machine without a network is enough.
mirrored.py reads the images.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from pydantic import NonNegativeInt, TypeAdapter
from typing_extensions import TypedDict  # Python's own does not serve pydantic before 3.12

from src.datasets.download import TIMEOUT, require_room, set_aside
from src.datasets.examples import BadFile, DataError
from src.runtime.files import file_hash, read_json, replacing

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
    # How its rows come to stand as the official files do, on which the pinned validation split depends: the labels of
    # the first training rows, where the mirror keeps the official order and the hash of all (Facts) is not known;
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
            reason = " ".join(str(error).splitlines()[:3])
            raise BadFile(path, "the record of a fetched snapshot", f"{reason}; remove it and fetch again") from error

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

    cached = huggingface_hub.try_to_load_from_cache(
        snapshot.repo, name, revision=snapshot.revision, repo_type="dataset"
    )
    if not isinstance(cached, str) or Path(cached).stat().st_size != snapshot.files[name]["size"]:
        return False
    with replacing(folder / name) as temporary:
        try:
            os.link(Path(cached).resolve(), temporary)
        except OSError:  # another file system
            shutil.copyfile(cached, temporary)
    return True


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
