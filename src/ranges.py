"""The numbers that make sense, one declaration for each flag and each option of a merging method.

Whatever checks one takes its range and its words from here: argparse, main.py's keys, the library.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from src.runtime.messages import UsageError


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
POSITIVE, AT_LEAST_0 = Range(0, whole=False, above=True), Range(0, whole=False)
SHARE = Range(0, 1, whole=False, what="a share")
SEED = Range(0, 2**63 - 1)  # what PyTorch's generators take
RANGES: dict[str, Range | Either] = {
    "seed": SEED,
    "seeds": SEED,
    "jobs": COUNT,
    "eval_batch_size": COUNT,
    "severity": Range(1, 5),
    "lr": POSITIVE,
    "wd": AT_LEAST_0,
    "ls": SHARE,
    "warmup_length": NUMBER,
    "epochs": COUNT,
    "steps": COUNT,
    "batch_size": COUNT,
    "num_grad_accumulation": COUNT,
    "clip": POSITIVE,
    "checkpoint_every": NUMBER,
    "checkpoint_seconds": AT_LEAST_0,
    "keep_every": NUMBER,
    "at": COUNT,
    "rank": COUNT,
    "lora_alpha": POSITIVE,
    "penalty": Range(0, whole=False),
    "penalty_batch_size": COUNT,
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
    "save_seconds": AT_LEAST_0,
    "eval_every": Range(0, what="steps (0: none)"),
    "alpha": FINITE,
    "side": COUNT,
    "images": COUNT,
    "horizon": COUNT,
    "cooldown": NUMBER,
}

PERCENT = Range(1, 100, whole=False, what="the percent of weights to keep (20 for a fifth)")
OF_WEIGHTS = "a share of the weights"
OPTIONS: dict[str, Range] = {  # of the merging methods, by name, or by `method.name` where a method means another thing
    "alpha": FINITE,
    "alphas": FINITE,
    "anchor": AT_LEAST_0,
    "batch_size": COUNT,
    "batches": COUNT,
    "betas": FINITE,
    "pcb.clamp": Range(0, 0.5, whole=False, below=True, what=OF_WEIGHTS),
    "clip": POSITIVE,
    "coef": FINITE,
    "coefficient": FINITE,
    "common_space_fraction": SHARE,
    "density": Range(0, 1, whole=False, above=True, what=OF_WEIGHTS),
    "draws": COUNT,
    "dare.draws": Range(2),
    "dare.p": Range(0, 1, whole=False, below=True, what=OF_WEIGHTS),
    "della.draws": Range(2),
    "epsilon": Range(0, 0.5, whole=False, what=OF_WEIGHTS),
    "floor": POSITIVE,
    "gamma": Range(0, 1, whole=False, below=True, what=OF_WEIGHTS),
    "images": COUNT,
    "initial_logit": POSITIVE,
    "initial_logits": FINITE,
    "inner_lr": AT_LEAST_0,
    "iterations": NUMBER,
    "k": PERCENT,
    "lambdas": FINITE,
    "last_tokens": AT_LEAST_0,
    "lr": AT_LEAST_0,
    "mask_lr": AT_LEAST_0,
    "mask_steps": NUMBER,
    "mu": AT_LEAST_0,
    "pass_size": COUNT,
    "prun_thre_k": Range(0, what="a number of tasks"),
    "rank": Range(0, 1, whole=False, above=True, what="a share of the singular values"),
    "surgery.rank": COUNT,
    "ratio": Range(0, 1, whole=False, above=True, what=OF_WEIGHTS),
    "ridge": AT_LEAST_0,
    "shrink": SHARE,
    "steps": NUMBER,
    "tall_mask_lambda": AT_LEAST_0,
    "teacher": SHARE,
    "temperature": POSITIVE,
    "weight_decay": AT_LEAST_0,
}


def check(**values: Any) -> None:
    """Raise UsageError for the first value that is not in the range of its flag; None stands for a default.

    Of a list every member has to be.
    """
    for name, value in values.items():
        for member in value if isinstance(value, (list, tuple)) else [value]:
            if member is not None and member not in RANGES[name]:
                raise UsageError(f"--{name.replace('_', '-')}: expected {RANGES[name]}; got {member!r}")


def check_option(name: str, value: Any, method: str = "", many: bool = False) -> None:
    """Raise UsageError for a value that is not in the range of an option; None stands for a default.

    many: the option is a list of such numbers, at least one, each once. Options that are not declared above, such as
    those of a method of your own, are finite numbers.
    """
    allowed = OPTIONS.get(f"{method}.{name}", OPTIONS.get(name, FINITE))
    if not many:
        if value is not None and value not in allowed:
            raise UsageError(f"{name}: expected {allowed}; got {value!r}")
        return
    if not isinstance(value, (list, tuple)) or not value:
        raise UsageError(f"{name}: expected at least one value in a list, each {allowed}; got {value!r}")
    for member in value:
        check_option(name, member, method)
    if len({*value}) < len(value):
        raise UsageError(f"{name}: expected each value once; got {value!r}")


def check_options(method: str, values: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """`check_option` of all that are numbers, or lists of numbers, by their types."""
    for name, value in values.items():
        members = _members(types[name])
        if not members.isdisjoint((list[int], list[float])):
            check_option(name, value, method, many=True)
        elif not members.isdisjoint((int, float)):
            check_option(name, value, method)


def _members(annotation: Any) -> set[Any]:
    """The types of a union, or the one."""
    return {*get_args(annotation)} if get_origin(annotation) in (Union, UnionType) else {annotation}
