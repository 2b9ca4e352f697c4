"""What of a data set is on the disk: its row of the status table, and what nothing reads any more."""

from pathlib import Path

from src.datasets.arrow import stale_copies
from src.datasets.base import SPLITS
from src.datasets.classnames import CLASSNAMES
from src.datasets.examples import DataError
from src.datasets.facts import SOURCES, Facts
from src.datasets.record import Record


def leftovers(facts: Facts, root: Path) -> list[Path]:
    """What nothing reads of a set: set aside, cut short, an archive that is unpacked, an Arrow copy of other files."""
    folders = {root / layout.folder for layout in facts.layouts} | {root / load.folder for load in facts.downloads}
    if facts.mirror:
        folders.add(facts.mirror.folder(root))
    if facts.name not in CLASSNAMES:  # a folder of one's own is not ours to clean
        return []
    paths = {p for folder in folders for kind in ("*.bad*", "*.part") for p in _below(folder, kind, root)}
    if facts.mirror:
        paths |= {*stale_copies(facts.mirror, root)}
    if facts.layout(root):
        loads = (*facts.downloads, *facts.otherwise)
        paths |= {p for load in loads if load.is_archive and (p := load.path(root)).exists()}
    return sorted(paths)


def _below(folder: Path, pattern: str, root: Path) -> list[Path]:
    """Files in a folder and those below; of the data root itself, which all sets share, those of this folder alone."""
    paths = folder.glob(pattern) if folder == root else folder.rglob(pattern)
    return [path for path in paths if path.is_file()]


def state(facts: Facts, root: Path) -> dict[str, str]:
    """One row of the status table."""
    row = dict.fromkeys(("source", "train", "val", "test"), "") | {"name": facts.name}
    row["classes"] = str(len(facts.classnames))
    if Record.path(root, facts.name).exists():
        try:
            record = Record.read(facts, root)
            origin = facts.origin(record.source, root)
        except DataError as error:
            row["state"] = f"damaged: {error}"
            return row
    else:
        try:
            there = [source for source in SOURCES if facts.origin(source, root)]
        except DataError as error:
            row["state"] = f"damaged: {error}"
            return row
        row["state"] = f"{' and '.join(there)} files there; not prepared" if there else "absent"
        return row
    row |= {split: str(record.size(split)) for split in SPLITS}
    row["source"] = record.origin.partition("@")[0]
    row["state"] = "ready" if record.published else f"as is: {'; '.join(record.notes)}"
    if origin != record.origin:
        row["state"] = "prepared, but its files are gone"
    return row
