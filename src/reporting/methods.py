"""Results of merging as rows of tables and lines of figures: named and ordered as the methods are registered."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from src.experiments import stages
from src.merging.adaptation import Adapting
from src.merging.base import Method, Variant
from src.merging.registry import METHODS, variants
from src.modes import MODES
from src.reporting.result import MERGING, Result, as_text, canonical, differing
from src.reporting.runs import Runs
from src.runtime.messages import few

FINETUNED = "fine-tuned, one each"  # the row or line of what was merged
SHOWN = 4  # values of a list in the name of a row


@dataclass(frozen=True)
class Group:
    """What was merged: the tasks, in their order, the mode of their models, and the scope of the vectors."""

    tasks: tuple[str, ...]
    mode: str = "standard"
    scope: str = "visual"

    @property
    def columns(self) -> dict[str, Any]:
        return {"experiment": MERGING, "task_list": self.tasks, "mode": self.mode, "scope": self.scope}

    @property
    def fields(self) -> dict[str, Any]:
        """The same, as fields of Result."""
        return {"task_list": self.tasks, "mode": self.mode, "scope": self.scope}


@dataclass(frozen=True)
class Row:
    """Results of one method with the same options on the same checkpoints.

    options, encoders: as in Result. variant: the registered one whose options these are, or is nearest to them.
    """

    method: str
    options: str = ""
    encoders: str = ""
    variant: Variant | None = field(default=None, compare=False)

    @classmethod
    def of(cls, result: Result) -> "Row":
        return cls(
            result.method,
            result.options,
            result.encoders,
            _nearest(result.method, result.options, METHODS.get(result.method)),
        )

    @classmethod
    def registered(cls, variant: Variant) -> "Row":
        return cls(variant.method, as_text(differing(variant.method, variant.options)), "", variant)

    @property
    def columns(self) -> dict[str, str]:
        return {"method": self.method, "options": self.options, "encoders": self.encoders}

    def further_options(self, without: Sequence[str] = ()) -> dict[str, Any]:
        """Those that the variant does not have. without: options that are shown elsewhere."""
        own = self.variant.options if self.variant else {}
        options = json.loads(self.options) if self.options else {}
        return {name: value for name, value in options.items() if name not in own and name not in without}

    @property
    def exact(self) -> bool:
        """Whether this is a registered variant on checkpoints of its own."""
        return self.variant is not None and not self.further_options() and not self.encoders

    def title(self, without: Sequence[str] = ()) -> str:
        """The variant's title; options that it does not have, and foreign checkpoints, are added."""
        parts = [self.variant.title if self.variant else self.method]
        parts += [f"{name}={shown(value)}" for name, value in self.further_options(without).items()]
        if self.encoders:
            foreign = (f"{task} ({Path(path).name})" for task, path in json.loads(self.encoders).items())
            parts.append(f"other checkpoints of {few(foreign)}")
        return ", ".join(parts)

    def published_name(self, paper: str, table: str = "") -> str | None:
        return self.variant.published_name(paper, table) if self.exact and self.variant else None

    @property
    def overrides(self) -> tuple[str, ...]:
        """How main.py is told of it."""
        own = self.variant.overrides if self.variant else (f"method={self.method}",)
        further = (f"method.{name}={json.dumps(value)}" for name, value in self.further_options().items())
        foreign = (f"+encoders.{task}={path}" for task, path in json.loads(self.encoders or "{}").items())
        return *own, *further, *foreign

    @property
    def rank(self) -> tuple[Any, ...]:
        """Where it stands: variants as they are registered, then other options of each, then foreign checkpoints."""
        order = [(variant.method, variant.title) for variant in variants()]
        key = (self.variant.method, self.variant.title) if self.variant else None
        index = order.index(key) if key in order else len(order)
        return not self.exact, bool(self.encoders), index, _natural(self.title()), self.encoders


def _natural(title: str) -> tuple[str | float, ...]:
    """k=5 before k=20: texts and numbers in turn, each compared with its like."""
    parts = re.split(r"([0-9]+(?:\.[0-9]+)?)", title)
    return tuple(float(part) if index % 2 else part for index, part in enumerate(parts))


def trims(row: Row) -> bool:
    """As Method.trims, and with any method's option `use_ties`."""
    own = row.variant.options if row.variant else {}
    method = METHODS.get(row.method)
    return bool(method and method.trims) or bool({**own, **row.further_options()}.get("use_ties"))


def of_other_scope(runs: Runs, group: Group, shown: Iterable[Row]) -> tuple[str, ...]:
    """A note on rows whose published number is of another share of the weights, where there is such a number."""
    titles = [row.title() for row in shown if trims(row)]
    if not runs.of_papers or group.scope != "visual" or not titles:
        return ()
    return (
        f"{', '.join(titles)}: other than in the brackets by construction. They keep a share of the trained weights, "
        "and in the published code of all, 22.6 % of which (ViT-B-32) are never trained: scope=published does so.",
    )


@cache  # tables ask for the row of every result again and again
def _nearest(method: str, options: str, registered: type[Method] | None) -> Variant | None:
    """registered: as the method is now."""
    return nearest(method, json.loads(options) if options else {})


def nearest(method: str, options: Mapping[str, Any]) -> Variant | None:
    """The registered variant with the most of these options, and none that differs from them."""
    own = METHODS[method].variants if method in METHODS else ()
    known = [v for v in own if all(options.get(name) == value for name, value in differing(method, v.options).items())]
    return max(known, key=lambda variant: len(variant.options), default=None)


def shown(value: Any) -> str:
    """A value of an option as it stands in the name of a row."""
    if isinstance(value, list):
        values = [*value[:SHOWN], "..."] if len(value) > SHOWN + 1 else value
        return "|".join(map(shown, values))
    return f"{value:g}" if isinstance(value, float) else str(value)


def variant_row(method: str, **options: Any) -> Row:
    """The registered variant with these options. Raises KeyError where there is none."""
    for variant in variants():
        if variant.method == canonical(method) and dict(variant.options) == options:
            return Row.registered(variant)
    raise KeyError(f"no variant of {method} is registered with {options}")


def groups(runs: Runs) -> list[Group]:
    """Everything that was merged on clean images, smallest first."""
    merged = {Group(r.task_list, r.mode, r.scope) for r in runs.read if r.experiment == MERGING and not r.corruption}
    modes = list(MODES)
    return sorted(merged, key=lambda g: (len(g.tasks), g.tasks, modes.index(g.mode), g.scope))


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Each once."""
    return sorted(dict.fromkeys(rows), key=lambda row: row.rank)


def rows(results: Iterable[Result]) -> list[Row]:
    """The rows that results of main.py make, in order."""
    return in_order(map(Row.of, results))


def registered_rows(*stages: str) -> list[Row]:
    """The variants as they are registered; stages: those that any of these stages of reproduce.py runs."""
    return [Row.registered(variant) for variant in variants() if variant.stage in stages or not stages]


def results_of(
    runs: Runs, group: Group, unseen: Sequence[str] = (), corruption: str = "", severity: int = 0
) -> list[Result]:
    """Of main.py on what was merged. unseen: tasks that were scored too."""
    where = (group.tasks, group.mode, group.scope, tuple(unseen), corruption, severity)
    return [
        r
        for r in runs.read
        if r.experiment == MERGING and (r.task_list, r.mode, r.scope, r.unseen, r.corruption, r.severity) == where
    ]


def adapts(runs: Runs, row: Row) -> bool:
    """Whether a method adapts to images: by its results, or where there are none, by its class."""
    records = [r.record for r in runs.read if r.experiment == MERGING and r.method == row.method]
    if records:
        return any("adaptation" in record for record in records)
    return row.method in METHODS and issubclass(METHODS[row.method], Adapting)


def absent_seeds(runs: Runs, seeds: Iterable[int], extended: bool = True) -> list[int]:
    """The seeds that are to have a result and are not among `seeds`. extended: whether an extended stage makes it."""
    return [seed for seed in (runs.extended_seeds if extended else runs.command_seeds) if seed not in seeds]


def missing_command(runs: Runs, group: Group, row: Row) -> list[str]:
    """The command that makes the results of a row, for the seeds that lack them, if any does."""
    usual = group == Group(runs.main_tasks) and row in registered_rows(stages.MERGING.name, stages.ADAPTATION.name)
    there = runs.values(metric="accuracy", **group.columns, **row.columns).index
    absent = absent_seeds(runs, there, extended=not usual)
    return [runs.merge_command(row.overrides, group.tasks, group.mode, absent)] if absent else []
