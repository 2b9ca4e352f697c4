"""What was run: the model, seeds, machines, and the minutes of each kind of work, from the provenance of results."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from src.experiments.registry import EXPERIMENTS
from src.reporting.result import MERGING, VECTORS, Result
from src.reporting.runs import Runs
from src.reporting.table import printed
from src.runtime.messages import few

WORK = {row.name: row.title for row in EXPERIMENTS.values()} | {MERGING: "merging"}
ADAPTING = "merging that adapts to images"
CORRUPTED = "on corrupted images"


@dataclass(frozen=True)
class Work:
    """Results of one kind. seconds: recorded ones, None where none was; timed: how many results they are of."""

    name: str
    results: int
    timed: int
    seconds: float | None


@dataclass(frozen=True)
class Setup:
    """facts: name -> value, as printed."""

    facts: Mapping[str, str]
    work: tuple[Work, ...]
    tasks: tuple[str, ...]


def setup(runs: Runs) -> Setup:
    results = [*runs.read, *runs.random_init.read]
    records = [result for result in results if result.experiment != VECTORS]
    return Setup(_facts(runs, records), tuple(_work(records)), tuple(map(printed, runs.tasks)))


def _facts(runs: Runs, results: Iterable[Result]) -> dict[str, str]:
    made = [result.record["provenance"] for result in results]
    dates = sorted(entry["date"][:10] for entry in made if entry.get("date"))
    versions: dict[str, set[str]] = {}
    for entry in made:
        for name, version in entry.get("versions", {}).items():
            versions.setdefault(name, set()).add(str(version))
    facts = {
        "model": runs.model,
        "suite": f"{runs.suite}: {len(runs.tasks)} tasks and a control set",
        "seeds": ", ".join(map(str, runs.seeds)),
        "results": str(len(made)),
        "made": dates[0] if dates and dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}" if dates else "",
        "machine": "; ".join(sorted({str(entry["device"]) for entry in made if entry.get("device")})),
        "versions": ", ".join(f"{name} {'/'.join(sorted(values))}" for name, values in sorted(versions.items())),
        "commits": few(sorted({str(entry["commit"])[:8] for entry in made if entry.get("commit")}), 3),
    }
    return {name: value for name, value in facts.items() if value}


def _work(results: Iterable[Result]) -> Iterable[Work]:
    kinds: dict[str, list[Any]] = {}
    for result in results:
        kinds.setdefault(_kind(result), []).append(result.record["provenance"].get("seconds"))
    order = [*(WORK[name] for name in EXPERIMENTS), WORK[MERGING], ADAPTING, CORRUPTED]
    for name in (name for name in order if name in kinds):
        seconds = [value for value in kinds[name] if value is not None]
        yield Work(name, len(kinds[name]), len(seconds), sum(seconds) if seconds else None)


def _kind(result: Result) -> str:
    if result.corruption:
        return CORRUPTED
    return ADAPTING if "adaptation" in result.record else WORK[result.experiment]
