"""From wherever the files come to a data set that can be loaded: fetched, counted, checked for leaks, split, recorded.

`prepare` writes `<data root>/prepared/<name>.json`: the source, how many images of each class every part holds, and the
indices of the train, validation and test splits. `load` reads by that record alone, without a network, and refuses
files that no longer agree with it.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

import numpy as np
from pydantic import NonNegativeInt, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # Python's own does not serve pydantic before 3.12

from src.datasets import hub
from src.datasets.base import SPLITS, FileExamples, validation_indices
from src.datasets.classnames import CLASSNAMES
from src.datasets.download import Download, remote_size, set_aside
from src.datasets.examples import BadFile, DataError, Subset, digest
from src.datasets.official import Layout
from src.runtime.files import read_json, replacing
from src.runtime.paths import ROOT, expanded

DEFAULT_ROOT = ROOT / "data"
SOURCES = ("official", "hub")
FORMAT = 2
AT_ONCE = 4  # sets that are fetched at a time: a mirror's files come eight at a time
MOST_LEAKS = 0.01  # share of the test images that may stand in another split too: a few are in official sets


@dataclass(frozen=True)
class Facts:
    """Where a data set comes from and what it must hold."""

    name: str
    classnames: tuple[str, ...]
    # Images of each published part: a total, or one number for each class.
    counts: dict[str, int | Sequence[int]]
    layouts: tuple[Layout, ...]
    mirror: hub.Mirror | None  # None for a set of one's own, in folders
    downloads: tuple[Download, ...] = ()
    otherwise: tuple[Download, ...] = ()  # the same from elsewhere, where a server does not give `downloads`
    by_hand: str = ""  # why the official files cannot be downloaded, where they cannot
    guarded: bool = False  # refuse the set when images stand in two splits
    other_order: str = ""  # why positions in the official files are not those that the published code splits

    def command(self, root: Path, source: str = "") -> str:
        where = "" if root == DEFAULT_ROOT else f" --data-location {shlex.quote(str(root))}"
        return f"python -m src.datasets prepare {self.name}{source and f' --source {source}'}{where}"

    def layout(self, root: Path) -> Layout | None:
        """How the official files lie there; None when they do not, or when an unpacking was cut short."""
        if any(download.interrupted(root) for download in (*self.downloads, *self.otherwise)):
            return None
        return next((layout for layout in self.layouts if not layout.missing(root)), None)

    def origin(self, source: str, root: Path) -> str:
        """The folder of the official files, or repository@revision; empty when nothing whole is there."""
        if source == "official":
            layout = self.layout(root)
            return layout.folder if layout else ""
        if self.mirror is None:
            return ""
        snapshot = hub.Snapshot.read(self.mirror.folder(root))
        if snapshot is None or snapshot.missing(self.mirror.folder(root)):
            return ""
        return f"{snapshot.repo}@{snapshot.revision}"

    def parts(self, source: str, root: Path) -> tuple[str, ...]:
        return ("train", "test") if source == "hub" else self._require_layout(root).parts

    def read(self, source: str, root: Path, part: str) -> FileExamples:
        """One official part, from files alone."""
        if source == "hub":
            return hub.read(self.require_mirror(root), root, part, self.classnames)
        return self.read_official(self._require_layout(root), root, part)

    def read_official(self, layout: Layout, root: Path, part: str) -> FileExamples:
        base = root / layout.folder
        try:
            examples = layout.read(base, part, len(self.classnames))
        except DataError:
            raise
        except Exception as error:  # the libraries that read these files promise no types
            raise DataError(
                f"{self.name}: cannot read the {part} part in {base}: {type(error).__name__}: {error}\n"
                f"Remove that folder and run: {self.command(root)}"
            ) from error
        labels, classes = examples.labels, len(self.classnames)
        if not len(labels):
            raise DataError(f"{self.name}: expected images of the {part} part in {base}, found none")
        if not 0 <= labels.min() <= labels.max() < classes:
            raise DataError(f"{base}: expected labels 0 to {classes - 1}, found {labels.min()} to {labels.max()}")
        return examples

    def require_mirror(self, root: Path) -> hub.Mirror:
        """Raises DataError for a set that has none."""
        if self.mirror is None:
            folders = ", ".join(str(root / layout.folder / need) for layout in self.layouts for need in layout.needs)
            raise DataError(f"{self.name} has no mirror: expected its images in {folders}, found no such folders")
        return self.mirror

    def _require_layout(self, root: Path) -> Layout:
        if layout := self.layout(root):
            return layout
        raise DataError(f"{self.name}: its official files are not in {root}.\n{self.how_to_get(root)}")

    def how_to_get(self, root: Path) -> str:
        """The ways that are left when the official files are not there."""
        ways = [f"The official download does not work: {self.by_hand}."] if self.by_hand else []
        if self.mirror:
            ways.append(f"Take the mirror {self.mirror.repo}: {self.command(root, 'hub')}")
        for layout in self.layouts:
            ways.append(
                f"Or put the official files there yourself: {root / layout.folder}/ with {', '.join(layout.needs)}"
            )
        return "\n".join(ways)


class Piece(TypedDict):
    """Which part a split is of, and which of its images; None: all of them."""

    part: str
    indices: list[NonNegativeInt] | None


@dataclass(frozen=True)
class Record:
    """What `prepare` found. `published`: the counts, and for guarded sets the leak check, are as they must be."""

    name: str
    source: str
    origin: str  # folder, or repository@revision
    published: bool
    counts: dict[str, list[NonNegativeInt]]  # images of each class in each part
    splits: dict[str, Piece]
    notes: list[str] = field(default_factory=list)
    # Why the validation images are not those that published checkpoints were not trained on; empty where they are.
    other_validation: str = ""
    train_labels: str = ""  # a hash of the training labels in their order, by which copies can be compared
    remarks: list[str] = field(default_factory=list)  # what else a reader should know
    class_names: str = ""  # how many classes a mirror calls as we do
    format: int = FORMAT

    @classmethod
    def path(cls, root: Path, name: str) -> Path:
        return root / "prepared" / f"{name}.json"

    @classmethod
    def read(cls, facts: Facts, root: Path) -> "Record":
        path = cls.path(root, facts.name)
        try:
            record = TypeAdapter(cls).validate_python(read_json(path))
            if record.format != FORMAT:
                raise ValueError(f"format {record.format}, expected {FORMAT}")
            record.check(facts)
        except FileNotFoundError as error:
            raise DataError(f"{facts.name} is not prepared in {root}. Run: {facts.command(root)}") from error
        except ValueError as error:
            first = str(error).splitlines()
            told = " ".join(first[1:3]) if isinstance(error, ValidationError) else first[0]
            raise DataError(f"{path} is damaged or of another version ({told}). Run: {facts.command(root)}") from error
        return record

    def check(self, facts: Facts) -> None:
        """Raise ValueError for splits that are not of the counted images, or that share some."""
        if self.source not in SOURCES:
            raise ValueError(f"source {self.source}, expected one of {', '.join(SOURCES)}")
        for part, counts in self.counts.items():
            if len(counts) != len(facts.classnames):
                raise ValueError(f"{len(counts)} counts of {part}, expected one for each of {len(facts.classnames)}")
        used: dict[str, list[np.ndarray]] = {}
        for split in SPLITS:
            if split not in self.splits or self.splits[split]["part"] not in self.counts:
                raise ValueError(f"expected a counted part for the split {split}, found none")
            part, indices = self.splits[split]["part"], self.splits[split]["indices"]
            total = sum(self.counts[part])
            if indices is not None and not (indices and max(indices) < total):
                raise ValueError(f"expected some of the {total} images of {part} in {split}, found none or others")
            used.setdefault(part, []).append(np.arange(total) if indices is None else np.array(indices, dtype=np.int64))
        for part, pieces in used.items():
            every = np.concatenate(pieces)
            if len(np.unique(every)) != len(every):
                raise ValueError(f"images of {part} stand twice, or in two splits")

    def write(self, root: Path) -> None:
        with replacing(self.path(root, self.name)) as temporary:
            temporary.write_text(json.dumps(vars(self)) + "\n", encoding="utf-8")

    def size(self, split: str) -> int:
        return split_size(self.counts, self.splits[split])


def load(facts: Facts, split: str, root: Path, seed: int = 0) -> FileExamples:
    """The Examples of "train", "val" or "test" of a prepared set. `seed` does not matter: the splits are pinned.

    Raises DataError when the set is not prepared, or when its files no longer hold what was counted.
    """
    if split not in SPLITS:
        raise ValueError(f"expected a split of {', '.join(SPLITS)}, found {split!r}")
    root = expanded(root)
    record = Record.read(facts, root)
    part, indices = record.splits[split]["part"], record.splits[split]["indices"]
    again = f"If that is meant, run: {facts.command(root, record.source)}"
    origin = facts.origin(record.source, root)
    if origin and origin != record.origin:  # another copy may have the same counts in another order
        raise DataError(f"{facts.name} was prepared from {record.origin}, but {origin} is there now. {again}")
    examples = facts.read(record.source, root, part)
    counts = _by_class(examples, facts)
    if counts != record.counts[part]:
        difference = _difference(record.counts[part], counts)
        raise DataError(f"{facts.name}: the {part} part changed since it was prepared: {difference}. {again}")
    return examples if indices is None else Subset(examples, np.array(indices, dtype=np.int64))


def prepare(
    facts: Facts,
    root: Path,
    source: str | None = None,
    as_is: bool = False,
    verify: bool = False,
    fetched: bool = False,
) -> Record:
    """Fetch what is not there, check everything, and write the record that `load` reads.

    source: "official", "hub", or None for the official files if they are there and the mirror if not.
    as_is: take other counts than the published ones, and leaks, as they are, and record that (a subset, a fake).
    verify: hash every file again, and check everything, also of a set that is ready.
    fetched: `fetch_all` brought what was not there.
    Raises DataError; where the files are at fault, an older record of the set is gone then, for nothing vouches for
    them. A record survives what is stopped on the way, and a network that fails.
    """
    root = expanded(root)
    if not verify and (record := ready(facts, root, source, as_is)):
        return record
    source = _source(facts, root, source)
    if not fetched:
        _fetch(facts, root, source)
    try:
        return _checked(facts, root, source, as_is)
    except DataError:
        Record.path(root, facts.name).unlink(missing_ok=True)
        raise


def fetch_all(
    every: Sequence[Facts], root: Path, source: str | None, as_is: bool = False, verify: bool = False
) -> dict[str, DataError]:
    """Bring the files of several sets, AT_ONCE at a time; gives why a set could not be fetched, by name.

    Sets that share a server's files or a mirror are fetched one after the other.
    """
    root = expanded(root)

    def shared(facts: Facts) -> str:
        from_mirror = facts.mirror and _source(facts, root, source) == "hub"
        return facts.mirror.repo if facts.mirror and from_mirror else facts.layouts[0].folder

    def fetch(group: Sequence[Facts]) -> dict[str, DataError]:
        failed = {}
        for facts in group:
            try:
                if verify or not ready(facts, root, source, as_is):
                    _fetch(facts, root, _source(facts, root, source))
            except DataError as error:
                failed[facts.name] = error
        return failed

    groups: dict[str, list[Facts]] = {}
    for facts in every:
        groups.setdefault(shared(facts), []).append(facts)
    failed: dict[str, DataError] = {}
    broken: list[Exception] = []
    waiting: SimpleQueue[list[Facts]] = SimpleQueue()
    for group in groups.values():
        waiting.put(group)

    def work() -> None:
        while not broken:
            try:
                failed.update(fetch(waiting.get_nowait()))
            except Empty:
                return
            except Exception as error:  # raised again where the user sees it
                broken.append(error)

    # Daemons, unlike those of an executor, do not keep a program that is stopped from its end.
    threads = [Thread(target=work, daemon=True) for _ in range(min(AT_ONCE, len(groups)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if broken:
        raise broken[0]
    return failed


def _source(facts: Facts, root: Path, source: str | None) -> str:
    return source or ("official" if facts.layout(root) else "hub")


def ready(facts: Facts, root: Path, source: str | None, as_is: bool) -> Record | None:
    """The record of a set that is prepared already: of this source, of whole files with the counts that it states."""
    try:
        record = Record.read(facts, root)
        whole = facts.origin(record.source, root) == record.origin
        asked = source in (None, record.source) and (record.published or as_is)
        if not (whole and asked):
            return None
        found = {part: _by_class(facts.read(record.source, root, part), facts) for part in record.counts}
    except DataError:
        return None
    return record if found == record.counts else None


def _checked(facts: Facts, root: Path, source: str, as_is: bool) -> Record:
    """Read, count and split the files that are there, and write the record."""
    origin = facts.origin(source, root)
    try:
        parts = {part: facts.read(source, root, part) for part in facts.parts(source, root)}
    except BadFile as error:
        again = facts.command(root, source)
        if source == "official" and error.path.is_file():
            raise DataError(f"{error}\nSet aside as {set_aside(error.path).name}. Fetch it anew: {again}") from error
        raise DataError(f"{error}\nComplete it, or remove it and run: {again}") from error
    counts = {part: _by_class(examples, facts) for part, examples in parts.items()}
    wrong = {part: problem for part in counts if (problem := _wrong(facts, part, counts[part]))}
    notes = [f"{part}: {problem}" for part, problem in wrong.items()]
    if wrong and not as_is:
        files = [file for part in wrong for file in getattr(parts[part], "files", ())] if facts.downloads else []
        aside = ", ".join(str(set_aside(file)) for file in files)
        listed = "\n  ".join(notes)
        raise DataError(
            f"{facts.name} from {origin} is not the published set:\n  {listed}\n"
            + (f"Set aside: {aside}. Run the same command again to fetch anew.\n" if aside else "")
            + f"To use it nevertheless, under its own numbers: {'rename it back and ' if aside else ''}add --as-is"
        )
    splits = cut(parts, len(facts.classnames))
    remarks = [remark for examples in parts.values() for remark in getattr(examples, "remarks", ())]
    leaks = find_leaks(parts, splits) if facts.guarded else []
    if facts.guarded and not leaks:
        remarks.append("no image stands in two splits")
    elif leaks:
        shown = "\n  ".join(" = ".join(pair) for pair in leaks[:5])
        told = f"{len(leaks)} images stand in two splits"
        few_enough = len(leaks) <= MOST_LEAKS * split_size(counts, splits["test"])
        (remarks if few_enough else notes).append(told)
        if not (as_is or few_enough):
            raise DataError(
                f"{facts.name} from {origin} leaks: {told}, so its test accuracy would say nothing:\n  {shown}\n"
                f"Take another copy: {facts.command(root, 'hub' if source == 'official' else 'official')}"
            )
    order = digest([np.ascontiguousarray(parts[next(iter(parts))].labels, dtype=np.int64).tobytes()])
    other = other_validation(facts, source, parts, bool(wrong))
    record = Record(
        facts.name,
        source,
        origin,
        not notes,
        counts,
        splits,
        notes,
        other,
        order,
        list(dict.fromkeys(remarks)),
        getattr(next(iter(parts.values())), "class_names", ""),
    )
    record.write(root)
    return record


def other_validation(facts: Facts, source: str, parts: dict[str, FileExamples], wrong: bool) -> str:
    """Why the pinned validation positions are not the published images; empty where they are.

    The published split is one of positions, so that it holds in the official order of the training images alone.
    """
    if facts.name not in CLASSNAMES:  # a set of one's own, of which nobody published checkpoints
        return ""
    if facts.other_order and (source == "official" or "all" in facts.counts):
        return facts.other_order
    if wrong:
        return "it does not hold the published images"
    if source == "official" or getattr(parts["train"], "official", False):
        return ""
    return f"the rows of {facts.mirror and facts.mirror.repo} are not known to stand in the official order"


def split_size(counts: dict[str, list[int]], split: Piece) -> int:
    indices = split["indices"]
    return sum(counts[split["part"]]) if indices is None else len(indices)


def _fetch(facts: Facts, root: Path, source: str) -> None:
    """Bring the files, where they are not there."""
    if source == "hub":
        hub.fetch(facts.require_mirror(root), root)
    elif facts.layout(root) is None:
        try:
            if any(download.interrupted(root) for download in facts.otherwise):
                raise DataError(f"{facts.name}: an unpacking was cut short, and goes on")
            for download in facts.downloads:
                download.fetch(root, facts.how_to_get(root))
        except DataError as error:
            if not facts.otherwise:
                raise
            print(f"{str(error).splitlines()[0]}\n{facts.name}: taking {facts.otherwise[0].url}")
            for download in facts.otherwise:
                download.fetch(root, facts.how_to_get(root))


def cut(parts: dict[str, FileExamples], classes: int) -> dict[str, Piece]:
    """Which part, and which of its indices, each split is.

    Validation is cut from train as published (`validation_indices`), unless the set brings its own. A set that comes
    unsplit gives a tenth of each class to validation and to test, drawn with seed 0: EuroSAT's 21,600 / 2,700 / 2,700.
    """
    if "val" in parts:
        return {split: {"part": split, "indices": None} for split in SPLITS}
    if "all" in parts:
        import torch  # here, so that a script's --help does not wait for it

        generator = torch.Generator().manual_seed(0)
        chosen: dict[str, list[int]] = {split: [] for split in SPLITS}
        for label in range(classes):
            members = np.flatnonzero(parts["all"].labels == label)
            members = members[torch.randperm(len(members), generator=generator).numpy()].tolist()
            tenth = len(members) // 10
            chosen["val"] += members[:tenth]
            chosen["test"] += members[tenth : 2 * tenth]
            chosen["train"] += members[2 * tenth :]
        return {split: {"part": "all", "indices": sorted(indices)} for split, indices in chosen.items()}
    train, validation = validation_indices(len(parts["train"]))
    return {
        "train": {"part": "train", "indices": train.tolist()},
        "val": {"part": "train", "indices": validation.tolist()},
        "test": {"part": "test", "indices": None},
    }


def find_leaks(parts: dict[str, FileExamples], splits: dict[str, Piece]) -> list[tuple[str, str]]:
    """Pairs of names of images that have the same bytes and stand in two splits."""
    seen: dict[str, tuple[str, str]] = {}
    leaks = []
    for split, where in splits.items():
        examples = parts[where["part"]]
        for index in range(len(examples)) if where["indices"] is None else where["indices"]:
            name = examples.name(index)
            first_split, first_name = seen.setdefault(digest([examples.raw(index)]), (split, name))
            if first_split != split:
                leaks.append((first_name, name))
    return leaks


def _by_class(examples: FileExamples, facts: Facts) -> list[int]:
    return np.bincount(examples.labels, minlength=len(facts.classnames)).tolist()


def _wrong(facts: Facts, part: str, counts: list[int]) -> str:
    """How a part differs from the published one; empty when it does not."""
    expected = facts.counts.get(part)
    if expected is None or isinstance(expected, int):
        if expected is not None and sum(counts) != expected:
            return f"expected {expected} images, found {sum(counts)}"
        empty = [facts.classnames[label] for label, count in enumerate(counts) if not count]
        return f"expected images of every class, found none of {', '.join(empty[:5])}" if empty else ""
    return "" if counts == list(expected) else _difference(list(expected), counts, facts.classnames)


def _difference(expected: list[int], counts: list[int], classnames: tuple[str, ...] = ()) -> str:
    wrong = [label for label, (a, b) in enumerate(zip(expected, counts, strict=True)) if a != b]
    shown = ", ".join(
        f"{classnames[label] if classnames else f'class {label}'} {expected[label]} -> {counts[label]}"
        for label in wrong[:5]
    )
    return (
        f"expected {sum(expected)} images, found {sum(counts)}; "
        f"{len(wrong)} classes differ (expected -> found): {shown}{', ...' if len(wrong) > 5 else ''}"
    )


def bytes_to_fetch(facts: Facts, root: Path, source: str | None) -> int | None:
    """What `prepare` would fetch of a set, by the servers' word; None where one does not tell, or does not answer."""
    if _source(facts, root, source) == "hub":
        try:
            snapshot = hub.describe(mirror := facts.require_mirror(root), root)
            files, lacking = snapshot.files, snapshot.missing(mirror.folder(root))
        except DataError:
            return None
        return sum(files[name]["size"] for name in lacking)
    if facts.layout(root):
        return 0
    sizes = [remote_size(download.url) for download in facts.downloads if not download.path(root).exists()]
    return None if facts.by_hand or None in sizes else sum(size or 0 for size in sizes)


def leftovers(facts: Facts, root: Path) -> list[Path]:
    """What nothing reads of a set: set aside, cut short, an archive that is unpacked, an Arrow copy of other files."""
    folders = {root / layout.folder for layout in facts.layouts} | {root / load.folder for load in facts.downloads}
    if facts.mirror:
        folders.add(facts.mirror.folder(root))
    if facts.name not in CLASSNAMES:  # a folder of one's own is not ours to clean
        return []
    found = {p for folder in folders for kind in ("*.bad*", "*.part") for p in _below(folder, kind, root)}
    if facts.mirror:
        found |= {*hub.stale_copies(facts.mirror, root)}
    if facts.layout(root):
        loads = (*facts.downloads, *facts.otherwise)
        found |= {p for load in loads if load.is_archive and (p := load.path(root)).exists()}
    return sorted(found)


def _below(folder: Path, pattern: str, root: Path) -> list[Path]:
    """Files in a folder and those below; of the data root itself, which all sets share, those of this folder alone."""
    found = folder.glob(pattern) if folder == root else folder.rglob(pattern)
    return [path for path in found if path.is_file()]


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
