"""Task analogies: accuracy on a data set that nothing was trained on, by vector and kind of task vectors."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from src.datasets import registry
from src.experiments.analogies import ANALOGY, PRETRAINED, VECTORS, Analogy
from src.experiments.registry import ANALOGIES
from src.modes import EVALUATED, MODES
from src.reporting import answers
from src.reporting.claim import Quantity
from src.reporting.result import chosen
from src.reporting.runs import Runs
from src.reporting.statistics import Accuracy, BySeed
from src.reporting.table import Cell, Table, printed

NAMES = (PRETRAINED, *VECTORS)


def analogies(runs: Runs) -> Iterator[Table]:
    """One table for each target."""
    by_mode = {mode: runs.of(ANALOGIES, mode) for mode in EVALUATED}
    targets = {t: a for of_mode in by_mode.values() for r in of_mode.values() for t, a in r["analogies"].items()}
    for target, analogy in targets.items():
        a, b, c = map(printed, analogy["tasks"])
        there = [mode for mode in EVALUATED if not accuracy(runs, mode, target, ANALOGY).empty]
        yield Table(
            f"analogy_{target}",
            f"Task analogy {a} : {b} = {c} : {printed(target)}. Accuracy on {printed(target)}, of which nothing was "
            "trained, %, and on the control set.",
            ["", *NAMES, *(f"control, {name}" for name in (PRETRAINED, ANALOGY))],
            [
                [
                    MODES[mode].title,
                    *(Cell(accuracy(runs, mode, target, name)) for name in NAMES),
                    *(Cell(accuracy(runs, mode, target, name, "control_accuracy")) for name in (PRETRAINED, ANALOGY)),
                ]
                for mode in there
            ],
            runs.seeds,
            notes=(
                f"A, B, C are {a}, {b}, {c}. Each vector is scaled by the coefficient that is best on validation "
                f"images of {printed(target)}.",
            ),
        )


def accuracy(runs: Runs, mode: str, target: str, name: str, metric: str = "accuracy") -> pd.Series:
    """In percent, by seed. name: of the vector."""
    return 100 * runs.values(**chosen(ANALOGIES, mode), metric=f"{metric} {name}", task=target)


@dataclass(frozen=True)
class ByAnalogy(Quantity):
    """Accuracy on the suite's first target of a vector, in percent."""

    name: str
    mode: str

    @property
    def title(self) -> str:
        return f"{self.name}, {MODES[self.mode].title}"

    def values(self, runs: Runs) -> pd.Series:
        by_seed = {seed: 100 * analogy["tried"][self.name]["test"] for seed, _, analogy in self._found(runs)}
        return pd.Series(by_seed, dtype=float)

    def formulas(self, runs: Runs) -> BySeed:
        return answers.percent(
            {
                seed: Accuracy(target, analogy["tried"][self.name]["correct"], analogy["n"]["test"])
                for seed, target, analogy in self._found(runs)
                if "correct" in analogy["tried"][self.name]
            }
        )

    def _found(self, runs: Runs) -> Iterator[tuple[int, str, Analogy]]:
        """(seed, target, record) of the suite's first analogy."""
        for *_, target in registry.suite(runs.suite).analogies[:1]:
            for seed, record in runs.of(ANALOGIES, self.mode).items():
                if target in record["analogies"]:
                    yield seed, target, record["analogies"][target]

    def commands(self, runs: Runs) -> list[str]:
        return runs.missing(ANALOGIES, [self.mode]) if registry.suite(runs.suite).analogies else []
