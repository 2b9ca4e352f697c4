"""The numbers that make sense, one declaration for each.

Whatever checks a flag takes its range and its words from `RANGES`: argparse, main.py's keys, the library. An option of
a merging method has its range where it is declared, as `option(default, range)`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from src.runtime.messages import UsageError

Given = TypeVar("Given")


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`. above, below: without `low`, `high` itself. what: the number's meaning."""

    low: float = 0
    high: float = math.inf
    whole: bool = True
    above: bool = False
    below: bool = False
    what: str = ""

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        low_enough = value < self.high if self.below else value <= self.high
        return low_enough and math.isfinite(value) and (value > self.low if self.above else value >= self.low)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        bounds = []
        if math.isfinite(self.low):
            bounds.append(f"{'above' if self.above else 'of at least'} {self.low:g}")
        if math.isfinite(self.high):
            bounds.append(f"{'below' if self.below else 'at most'} {self.high:.15g}")
        return (f"{self.what}, " if self.what else "") + " ".join([kind, " and ".join(bounds) or "that is finite"])


@dataclass(frozen=True)
class Either:
    """Numbers of one range or of another; no float is of the first where that has whole numbers alone."""

    one: Range
    other: Range

    def __contains__(self, value: Any) -> bool:
        return value in (self.other if isinstance(value, float) else self.one)

    def __str__(self) -> str:
        return f"{self.one}, or {self.other}"


COUNT, NUMBER = Range(1), Range(0)
FINITE = Range(-math.inf, whole=False)
POSITIVE, NON_NEGATIVE = Range(0, whole=False, above=True), Range(0, whole=False)
SHARE = Range(0, 1, whole=False, what="a share")
SEED = Range(0, 2**63 - 1)  # what PyTorch's generators take
RANGES: dict[str, Range | Either] = {
    "seed": SEED,
    "seeds": SEED,
    "jobs": COUNT,
    "eval_batch_size": COUNT,
    "severity": Range(1, 5),
    "lr": POSITIVE,
    "wd": NON_NEGATIVE,
    "ls": SHARE,
    "warmup_length": NUMBER,
    "epochs": COUNT,
    "steps": COUNT,
    "batch_size": COUNT,
    "num_grad_accumulation": COUNT,
    "clip": POSITIVE,
    "checkpoint_every": NUMBER,
    "checkpoint_seconds": Range(0, whole=False, what="seconds (0: by steps alone)"),
    "keep_every": NUMBER,
    "at": COUNT,
    "rank": COUNT,
    "lora_alpha": POSITIVE,
    "penalty": Range(0, whole=False),
    "penalty_batch_size": COUNT,
    "penalty_images": COUNT,
    "rho": POSITIVE,
    "world_size": COUNT,
    "workers": NUMBER,
    "n_eval_points": Range(2),
    "control_threshold": Range(0, 2, whole=False, what="a share of the control's accuracy (0.95 for 95 %)"),
    "range": FINITE,
    "n_points": Range(2),
    "num_samples": COUNT,
    "chunk_size": COUNT,
    "ranks": Either(Range(1, what="eigenfunctions"), Range(0, 1, whole=False, above=True, what="a share of the trace")),
    "num_tasks": COUNT,
    "save_every": Range(0, what="steps (0: none)"),
    "save_seconds": Range(0, whole=False, what="seconds (0: by steps alone)"),
    "every": COUNT,
    "eval_every": Range(0, what="steps (0: none)"),
    "alpha": FINITE,
    "side": COUNT,
    "images": COUNT,
    "horizon": COUNT,
    "cooldown": NUMBER,
}

SEVERAL = ("seeds", "range", "ranks")  # flags that take more than one value
ERRORS = {"sd": "sd", "se": "standard error"}  # over seeds: of one seed, and of their mean

# What several merging methods say of their options.
PERCENT = Range(1, 100, whole=False, what="the percent of weights to keep (20 for a fifth)")
OF_WEIGHTS = "a share of the weights"
SHARE_OF_WEIGHTS = Range(0, 1, whole=False, above=True, what=OF_WEIGHTS)
RANK = Range(0, 1, whole=False, above=True, what="a share of the singular values")
TASKS = Range(0, what="a number of tasks")


def option(default: Any, allowed: Range) -> Any:
    """A field of a merging method: `k: float = option(20.0, PERCENT)`. Of a list, every member is in the range."""
    metadata = {"range": allowed}
    if isinstance(default, (list, tuple)):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check(**values: Any) -> None:
    """Raise UsageError for the first value that is not in the range of its flag; None stands for a default.

    Of the flags that take several values every one has to be.
    """
    for name, value in values.items():
        for member in value if name in SEVERAL and isinstance(value, (list, tuple)) else [value]:
            if member is not None and member not in RANGES[name]:
                raise UsageError(f"--{name.replace('_', '-')}: expected {RANGES[name]}; got {member!r}")


def require(**values: Any) -> None:
    """As `check`, but None is refused: `seed=null` on main.py's command line."""
    check(**values)
    for name, value in values.items():
        if value is None:
            raise UsageError(f"--{name.replace('_', '-')}: expected {RANGES[name]}; got null")


def check_value(name: str, value: Any, allowed: Range) -> None:
    """Raise UsageError for a value that is not in the range; None stands for a default."""
    if value is not None and value not in allowed:
        raise UsageError(f"{name}: expected {allowed}; got {value!r}")


def check_values(name: str, values: Any, allowed: Range) -> None:
    """Raise UsageError unless it is a list of values in the range, at least one, each once."""
    if not isinstance(values, (list, tuple)) or not values:
        raise UsageError(f"{name}: expected at least one value in a list, each {allowed}; got {values!r}")
    for value in values:
        check_value(name, value, allowed)
    if len({*values}) < len(values):
        raise UsageError(f"{name}: expected each value once; got {values!r}")


def check_options(method: Any) -> None:
    """Check the fields of a merging method that are numbers, or lists of numbers, by their types.

    A number whose field is no `option` is finite.
    """
    cls: Any = type(method)
    types = _types(cls)
    for one in fields(method):
        value, members = getattr(method, one.name), _members(types[one.name])
        allowed = one.metadata.get("range", FINITE)
        if not members.isdisjoint((list[int], list[float])):
            check_values(one.name, value, allowed)
        elif not members.isdisjoint((int, float)):
            check_value(one.name, value, allowed)


_types = cache(get_type_hints)  # methods are made by the thousand, for their names in results


def given(value: Given | None, usual: Given) -> Given:
    """An option, or what is usual where it was not given."""
    return usual if value is None else value


def check_choice(option: str, value: str, known: Iterable[str]) -> None:
    """Raise UsageError for a word that is none of those of an option."""
    if value not in known:
        raise UsageError(f"{option}: expected one of {', '.join(known)}; got {value!r}")


def _members(annotation: Any) -> set[Any]:
    """The types of a union, or the one."""
    return {*get_args(annotation)} if get_origin(annotation) in (Union, UnionType) else {annotation}
