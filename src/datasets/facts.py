"""What is known of a data set of files before any is there: where it comes from, and what it must hold."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.datasets import mirrored
from src.datasets.base import FileExamples
from src.datasets.download import Download
from src.datasets.examples import DataError
from src.datasets.hub import Mirror, Snapshot
from src.datasets.official import Layout
from src.runtime.paths import ROOT

DEFAULT_ROOT = ROOT / "data"
SOURCES = ("official", "hub")


@dataclass(frozen=True)
class Facts:
    """Where a data set comes from and what it must hold."""

    name: str
    classnames: tuple[str, ...]
    # Images of each published part: a total, or one number for each class.
    counts: dict[str, int | Sequence[int]]
    layouts: tuple[Layout, ...]
    mirror: Mirror | None  # None for a set of one's own, in folders
    downloads: tuple[Download, ...] = ()
    otherwise: tuple[Download, ...] = ()  # the same from elsewhere, where a server does not give `downloads`
    by_hand: str = ""  # why the official files cannot be downloaded, where they cannot
    guarded: bool = False  # refuse the set when images stand in two splits
    train_labels: str = ""  # a hash of the official training labels in their order, as a record has it; where known
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
        snapshot = Snapshot.read(self.mirror.folder(root))
        if snapshot is None or snapshot.missing(self.mirror.folder(root)):
            return ""
        return f"{snapshot.repo}@{snapshot.revision}"

    def parts(self, source: str, root: Path) -> tuple[str, ...]:
        return ("train", "test") if source == "hub" else self._require_layout(root).parts

    def read(self, source: str, root: Path, part: str) -> FileExamples:
        """One official part, from files alone."""
        if source == "hub":
            return mirrored.read(self.require_mirror(root), root, part, self.classnames)
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

    def require_mirror(self, root: Path) -> Mirror:
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
