"""The numbers that make sense, one declaration for each flag; what checks a flag takes its words from here."""

import math
from dataclasses import dataclass
from typing import Any

from src.runtime.messages import UsageError


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`, or above and below them where they are left out (`open`)."""

    low: float = 0
    high: float = math.inf
    whole: bool = True
    open: bool = False

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        if not math.isfinite(value):
            return False
        return self.low < value < self.high if self.open else self.low <= value <= self.high

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if self.open:
            return f"{kind} above {self.low:g}" + (f" and below {self.high:g}" if math.isfinite(self.high) else "")
        return f"{kind} of at least {self.low:g}" + (f" and at most {self.high:g}" if math.isfinite(self.high) else "")


COUNT, NUMBER = Range(1), Range(0)
POSITIVE = Range(0, whole=False, open=True)
RANGES = {
    "seed": NUMBER,
    "jobs": COUNT,
    "eval_batch_size": COUNT,
    "lr": POSITIVE,
    "wd": Range(0, whole=False),
    "ls": Range(0, 1, whole=False),
    "warmup_length": NUMBER,
    "epochs": COUNT,
    "steps": COUNT,
    "batch_size": COUNT,
    "num_grad_accumulation": COUNT,
    "clip": POSITIVE,
    "checkpoint_every": NUMBER,
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
    "control_threshold": Range(0, whole=False),
    "n_points": Range(2),
    "num_samples": COUNT,
    "chunk_size": COUNT,
}


def check(**values: Any) -> None:
    """Raise UsageError for the first value that is not in the range of its flag; None stands for a default."""
    for name, value in values.items():
        if value is not None and value not in RANGES[name]:
            raise UsageError(f"--{name.replace('_', '-')}: expected {RANGES[name]}; got {value!r}")
