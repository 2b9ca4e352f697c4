"""A reproduction beside the results that ship with the project: how many numbers are the same."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from src.reporting.frame import IDENTITY
from src.reporting.runs import every_number
from src.reporting.table import printed
from src.runtime.paths import Places, from_root
from src.runtime.results import read

KEY = [*IDENTITY, "task", "metric"]
PRINTED = 5e-4  # in [0, 1]: numbers within it are printed alike in percent, give or take the last digit
UNRELATED = "storage|seconds|memory|^chosen|loss|^control_threshold$"  # metrics that are no measurement on images


def compared_with_shipped(suite: str, model: str, results: Path) -> str:
    """What a reproduction ends with: how many numbers of test images are as in results/, and the furthest one."""
    shipped = from_root(Places.results)
    if results.resolve() == shipped.resolve() or not (shipped / suite / model).exists():
        return f"nothing of {model} ships to compare with" if results.resolve() != shipped.resolve() else ""
    both = _measured(suite, results).merge(_measured(suite, shipped), on=KEY, suffixes=("", "_shipped"))
    if both.empty:
        return "no number of these seeds, tasks and options ships to compare with"
    both["distance"] = (both["value"] - both["value_shipped"]).abs()
    alike = int((both["distance"] <= PRINTED).sum())
    line = f"{alike} of {len(both)} numbers as shipped"
    if alike == len(both):
        return line
    furthest = both.loc[both["distance"].idxmax()]
    what = " ".join(str(furthest[name]) for name in ("experiment", "mode", "method", "options") if furthest[name])
    return (
        f"{line}; furthest: {furthest['metric']} of {printed(furthest['task'])}, {what}, seed {furthest['seed']}: "
        f"{100 * furthest['value']:.1f}, shipped {100 * furthest['value_shipped']:.1f}"
    )


def recorded_seconds(outputs: Iterable[Path], results: Path) -> float | None:
    """How long the shipped counterparts of results took to make; None where none of them records it."""
    shipped = from_root(Places.results)
    seconds = []
    for output in outputs:
        counterpart = shipped / output.relative_to(results) if output.is_relative_to(results) else output
        if counterpart.suffix == ".json" and counterpart.is_file():
            seconds.append(read(counterpart)["provenance"].get("seconds"))
    known = [value for value in seconds if value is not None]
    return sum(known) if known else None


def _measured(suite: str, results: Path) -> pd.DataFrame:
    """Numbers on test images at what validation chose."""
    frame = every_number(suite, results)
    measured = (frame["split"] == "test") & frame["setting"].isna() & frame["value"].notna()
    return frame[measured & ~frame["metric"].str.contains(UNRELATED)][[*KEY, "value"]]
