"""Two merging methods beside each other: paired differences with intervals, for each task and in the mean."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from src.experiments.numbers import MEAN
from src.modes import EVALUATED, MODES
from src.reporting import answers
from src.reporting.methods import Group, Row, results_of
from src.reporting.runs import Runs
from src.reporting.statistics import BySeed, Difference, difference
from src.reporting.table import FORMATS, Cell, Table, markdown, of_fewer, printed, span, write_text
from src.reporting.verdict import EQUAL_WITHIN, FAILS, HOLDS, Comparison
from src.runtime.messages import UsageError, nearest
from src.runtime.paths import from_root

AT_MODE = "@"


@dataclass(frozen=True)
class Contestant:
    """A row of results on the papers' first benchmark, merged from models of a mode."""

    runs: Runs
    row: Row
    mode: str

    @property
    def title(self) -> str:
        return self.row.title() + ("" if self.mode == "standard" else f", {MODES[self.mode].short}")

    def values(self, metric: str = "accuracy", task: str = MEAN) -> pd.Series:
        """In percent, for each seed."""
        return 100 * self.runs.values(**self._what(metric, task))

    def formulas(self, metric: str = "accuracy", task: str = MEAN) -> BySeed:
        return answers.percent(answers.formulas(self.runs, **self._what(metric, task)))

    def _what(self, metric: str, task: str) -> dict[str, Any]:
        group = Group(self.runs.main_tasks, self.mode)
        return {"metric": metric, "task": task, **group.columns, **self.row.columns}

    def minus(self, other: "Contestant", metric: str = "accuracy", task: str = MEAN) -> Difference:
        """In points."""
        ours, theirs = self.values(metric, task), other.values(metric, task)
        formulas = self.formulas(metric, task), other.formulas(metric, task)
        return difference(ours, theirs, formulas, self.runs.shared_images)


def compare(runs: Runs, one: str, other: str, out: Path | None = None) -> None:
    """Print the table of two methods, and write it to `out`. Raises UsageError for a name that no result has."""
    runs.check()
    if out and out.suffix not in FORMATS:
        raise UsageError(f"--out: expected a file that ends with {', '.join(FORMATS)}; found {out}")
    table = compared(contestant(runs, one), contestant(runs, other))
    print(markdown(table))
    if out:
        write_text(from_root(out), FORMATS[out.suffix](table))


def contestant(runs: Runs, name: str) -> Contestant:
    """name: of a result of main.py (`ties_k=10`) or a title (`TIES`), with `@linear` for models of another mode."""
    label, _, mode = name.partition(AT_MODE)
    mode = mode or "standard"
    if mode not in EVALUATED:
        raise UsageError(f"--compare: {mode!r} is no mode{nearest(mode, EVALUATED)} Known: {', '.join(EVALUATED)}")
    by_label: dict[str, Row] = {}
    by_title: dict[str, Row] = {}
    for result in results_of(runs, Group(runs.main_tasks, mode)):
        if not result.encoders:
            row = Row.of(result)
            by_label[result.record["label"]] = row
            by_title[row.title().casefold()] = row
    row_of_name = by_label.get(label, by_title.get(label.casefold()))
    if row_of_name is None:
        known = {*by_label, *(row.title() for row in by_title.values())}
        raise UsageError(
            f"--compare: expected the label or the title of a result on {len(runs.main_tasks)} tasks with "
            f"finetuning_mode={mode}, found none called {label!r}; {_nearest(label, known)}"
        )
    return Contestant(runs, row_of_name, mode)


def _nearest(name: str, known: Iterable[str]) -> str:
    by_lower = {each.lower(): each for each in sorted(known)}
    if not by_lower:
        return "there are no such results at all"
    close = difflib.get_close_matches(name.lower(), by_lower, n=5, cutoff=0.0)
    return f"nearest: {', '.join(by_lower[each] for each in close)}"


def compared(one: Contestant, other: Contestant) -> Table:
    """Raises UsageError where no seed has both."""
    runs = one.runs
    seeds = [sorted(each.values().index) for each in (one, other)]
    if not set(seeds[0]) & set(seeds[1]):
        has = " and ".join(f"{c.title} of {', '.join(map(str, s))}" for c, s in zip((one, other), seeds))
        raise UsageError(f"--compare: expected results of the same seeds, found {has}")
    tasks = [("accuracy", task, printed(task)) for task in runs.main_tasks]
    means = [("accuracy", MEAN, "mean"), ("normalised", MEAN, "mean, normalised")]
    return Table(
        "compare",
        f"{one.title} against {other.title}, {len(runs.main_tasks)} tasks: test accuracy, %, and the difference in "
        "points, paired by seed, with 95 % intervals.",
        ["task", one.title, other.title, "difference", "over seeds", "over images and seeds", "better"],
        [_row(one, other, *what) for what in (*tasks, *means)],
        runs.seeds,
        notes=(
            f"better: whose interval over seeds lies above the other's, with one seed that over test images; equal: it "
            f"lies within ±{EQUAL_WITHIN:g} points.",
        ),
    )


def _row(one: Contestant, other: Contestant, metric: str, task: str, name: str) -> list[str | Cell]:
    gap = one.minus(other, metric, task)
    verdict = Comparison(gap).verdict
    fewer = of_fewer(len(gap.values), len(one.runs.seeds))
    return [
        name,
        Cell(one.values(metric, task)),
        Cell(other.values(metric, task)),
        f"{gap.estimate:+.1f} {fewer}".strip(),
        span(gap.over_seeds, 1),
        span(gap.over_images, 1),
        {HOLDS: one.title, FAILS: other.title}.get(verdict, verdict),
    ]
