"""The record of a prepared set (its source, its counts, the images of each split), and the images that it vouches for.

`prepare` writes `<data root>/prepared/<name>.json`. `load` reads by that record alone, without a network, and refuses
files that no longer agree with it.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import NonNegativeInt, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # Python's own does not serve pydantic before 3.12

from src.datasets.base import SPLITS, FileExamples
from src.datasets.examples import DataError, Subset
from src.datasets.facts import SOURCES, Facts
from src.runtime.files import read_json, replacing
from src.runtime.paths import expanded

FORMAT = 2


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
            reason = " ".join(first[1:3]) if isinstance(error, ValidationError) else first[0]
            raise DataError(
                f"{path} is damaged or of another version ({reason}). Run: {facts.command(root)}"
            ) from error
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
    counts = by_class(examples, facts)
    if counts != record.counts[part]:
        change = difference(record.counts[part], counts)
        raise DataError(f"{facts.name}: the {part} part changed since it was prepared: {change}. {again}")
    return examples if indices is None else Subset(examples, np.array(indices, dtype=np.int64))


def ready(facts: Facts, root: Path, source: str | None, as_is: bool) -> Record | None:
    """The record of a set that is prepared already: of this source, of whole files with the counts that it states."""
    try:
        record = Record.read(facts, root)
        whole = facts.origin(record.source, root) == record.origin
        asked = source in (None, record.source) and (record.published or as_is)
        if not (whole and asked):
            return None
        counts = {part: by_class(facts.read(record.source, root, part), facts) for part in record.counts}
    except DataError:
        return None
    return record if counts == record.counts else None


def split_size(counts: dict[str, list[int]], split: Piece) -> int:
    indices = split["indices"]
    return sum(counts[split["part"]]) if indices is None else len(indices)


def by_class(examples: FileExamples, facts: Facts) -> list[int]:
    return np.bincount(examples.labels, minlength=len(facts.classnames)).tolist()


def difference(expected: list[int], counts: list[int], classnames: tuple[str, ...] = ()) -> str:
    wrong = [label for label, (a, b) in enumerate(zip(expected, counts, strict=True)) if a != b]
    shown = ", ".join(
        f"{classnames[label] if classnames else f'class {label}'} {expected[label]} -> {counts[label]}"
        for label in wrong[:5]
    )
    return (
        f"expected {sum(expected)} images, found {sum(counts)}; "
        f"{len(wrong)} classes differ (expected -> found): {shown}{', ...' if len(wrong) > 5 else ''}"
    )
