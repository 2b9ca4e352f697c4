"""Studies of other experts: the same tasks fine-tuned otherwise, and merged by a few methods.

A study has checkpoints and results of its own, in folders of the run's: `<save>/robust/<name>` and
`<results>/robust/<name>`, laid out as every other run's. So all commands are the usual ones in other places.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from src.datasets import registry
from src.experiments.stages import ROBUST_CONFIDENCE, ROBUST_LENGTH, ROBUST_NORM
from src.merging.base import Variant
from src.merging.registry import variants
from src.run import Run

FOLDER = "robust"
LABEL_SMOOTHING = 0.1


@dataclass(frozen=True)
class Study:
    """name: of its folder. title: in tables. stage: of reproduce.py. length: of fine-tuning, over the usual one.

    one: whether a single expert, drawn by the seed, is of this length, and the others are as usual.
    smoothing: of labels; None: the suite's.
    """

    name: str
    title: str
    stage: str
    length: float = 1.0
    one: bool = False
    smoothing: float | None = None

    def run(self, run: Run) -> Run:
        """The run in the study's folders."""
        places = run.places
        folders = (folder / FOLDER / self.name for folder in (places.save, places.results))
        return replace(run, places=replace(places, **dict(zip(("save", "results"), folders))))

    def results(self, results: Path) -> Path:
        return results / FOLDER / self.name

    def trainings(self, run: Run) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
        """(tasks, flags of finetune.py beside the usual ones), for all tasks of the run."""
        smoothing = () if self.smoothing is None else (f"--ls={self.smoothing:g}",)
        changed = {odd_one(run)} if self.one else set(run.tasks)
        by_flags: dict[tuple[str, ...], list[str]] = {}
        for task in run.tasks:
            length = self._length(task) if task in changed and self.length != 1 else ()
            by_flags.setdefault((*length, *smoothing), []).append(task)
        for flags, tasks in by_flags.items():
            yield tuple(tasks), flags

    def _length(self, task: str) -> tuple[str, ...]:
        row = registry.get(task)
        name, usual = ("steps", row.steps) if row.steps is not None else ("epochs", row.epochs or 1)
        return (f"--{name}={max(1, round(self.length * usual))}",)


def odd_one(run: Run) -> str:
    """The task whose expert differs."""
    return run.tasks[int(np.random.default_rng(run.seed).integers(len(run.tasks)))]


def compared() -> list[Variant]:
    """The variants that studies merge with, in the order of the tables: of each family of methods one or two."""
    return [variant for variant in variants() if variant.studied]


STUDIES = (
    Study("longer", "one expert 3 × longer", ROBUST_NORM.name, length=3, one=True),
    Study("smoothing", "label smoothing 0.1", ROBUST_CONFIDENCE.name, smoothing=LABEL_SMOOTHING),
    Study("quarter", "¼ length", ROBUST_LENGTH.name, length=0.25),
    Study("half", "½ length", ROBUST_LENGTH.name, length=0.5),
    Study("double", "2 × length", ROBUST_LENGTH.name, length=2),
)
BY_NAME = {study.name: study for study in STUDIES}
