"""Arrow copies of a mirror's files, from which its rows are memory-mapped."""

import os
import re
from pathlib import Path

from src.datasets.examples import BadFile, DataError, digest
from src.datasets.hub import Mirror, Snapshot
from src.runtime.files import read_json
from src.runtime.paths import Places, from_root

READ_ONLY = from_root(Places.cache) / "arrow"  # Arrow copies of sets in a folder that may not be written to
COMPLETE = "dataset_info.json"  # the file of an Arrow copy that is written last


def folders_of(root: Path) -> list[Path]:
    """Where Arrow copies may lie: beside the snapshots, or, where no file may be written there, in the cache."""
    return [root / "hub" / ".arrow", READ_ONLY]


def copy_name(snapshot: Snapshot, folder: Path, files: list[str], part: str) -> str:
    """Of the Arrow copy of these files: the same wherever the snapshot lies, another where a file is another."""
    facts = [f"{file} {(status := (folder / file).stat()).st_size} {status.st_mtime_ns}" for file in files]
    return f"{snapshot.repo.replace('/', '--')}-{part}-{digest([snapshot.revision, *facts])[:16]}"


def stale_copies(mirror: Mirror, root: Path) -> list[Path]:
    """Arrow copies, beside the snapshots, of files of a mirror that are not there any more, or are others now.

    Earlier versions kept all copies in folders called parquet and webdataset.
    """
    folder, beside = mirror.folder(root), folders_of(root)[0]
    snapshot, current = Snapshot.read(folder), set()
    if snapshot and not snapshot.missing(folder):
        parts = {part: mirror.select(list(snapshot.files), part) for part in ("train", "test")}
        current = {copy_name(snapshot, folder, files, part) for part, files in parts.items() if files}
    ours = re.compile(rf"{re.escape(mirror.repo.replace('/', '--'))}-(train|test)-[0-9a-f]{{16}}|parquet|webdataset")
    return [copy for copy in beside.glob("*") if ours.fullmatch(copy.name) and copy.name not in current]


def rows_of(files: list[str], part: str, name: str, folders: list[Path]):
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
    except OSError as error:
        raise DataError(
            f"cannot make the Arrow copy of {files[0]} in {copy}: {error}. It needs a folder that may be "
            f"written to, with room for as much as the files take: {' or '.join(map(str, folders))}"
        ) from error
    except Exception as error:  # Arrow and the builders promise no types
        reason = f"{type(error).__name__}: {error.__cause__ or error}".splitlines()[0]
        raise BadFile(Path(files[0]), f"whole {Path(files[0]).suffix[1:]} files", reason) from error
    try:
        shards = [Dataset.from_file(str(shard)) for shard in sorted(copy.glob("*.arrow"))]
        expected = read_json(copy / COMPLETE)["splits"][part]["num_examples"]
        rows = concatenate_datasets(shards)
    except OSError as error:  # of the system, not of the file; Arrow's own for a damaged one have no number
        if error.errno is not None:
            raise DataError(f"cannot read the Arrow copy {copy}: {error}") from error
        raise BadFile(copy, "a whole Arrow copy", f"{error}; remove it, and it is made anew") from error
    except Exception as error:  # as above
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BadFile(copy, "a whole Arrow copy", f"{reason}; remove it, and it is made anew") from error
    if len(rows) != expected:
        raise BadFile(copy, f"{expected} rows", f"{len(rows)}; remove it, and it is made anew")
    return rows


def _may_be_made(copy: Path) -> bool:
    """Whether the nearest folder that is there may be written to."""
    above = next(folder for folder in copy.parents if folder.exists())
    return os.access(above, os.W_OK)
