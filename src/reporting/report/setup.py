"""What was run: the model, seeds and machines, the minutes of each stage, and how long a result of each kind took."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from src.experiments import durations, stages
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
    """Results of one kind. timed: how many record how long they took; seconds: their mean, None where none does."""

    name: str
    results: int
    timed: int
    seconds: float | None


@dataclass(frozen=True)
class Timed:
    """A stage of reproduce.py. seconds: of a seed, or once for all seeds."""

    name: str
    title: str
    seconds: float


@dataclass(frozen=True)
class Reproduction:
    """What reproduce.py took on a machine. jobs: so many tasks were worked on at once. untimed: names of stages."""

    device: str
    jobs: int
    of_seed: tuple[Timed, ...]
    once: tuple[Timed, ...]
    untimed: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Of a seed."""
        return sum(stage.seconds for stage in self.of_seed)


@dataclass(frozen=True)
class Setup:
    """facts: name -> value, as printed."""

    facts: Mapping[str, str]
    work: tuple[Work, ...]
    tasks: tuple[str, ...]
    reproduction: Reproduction | None


def setup(runs: Runs) -> Setup:
    results = [*runs.read, *runs.random_init.read]
    records = [result for result in results if result.experiment != VECTORS]
    tasks = tuple(map(printed, runs.tasks))
    return Setup(_facts(runs, records), tuple(_work(records)), tasks, _reproduction(runs))


def _reproduction(runs: Runs) -> Reproduction | None:
    """By the file that reproduce.py keeps: the machine that ran most stages. None where nothing is known."""
    recorded = durations.read(runs.paths.index().parent / durations.NAME)
    entries = [entry for entry in recorded.get(runs.model, []) if entry["seconds"]]
    if not entries:
        return None
    most = max(entries, key=lambda entry: len(entry["seconds"]))
    of_seed, once = (
        tuple(Timed(s.name, s.title, most["seconds"][s.name]) for s in group if s.name in most["seconds"])
        for group in (stages.STAGES, stages.REPORT)
    )
    untimed = tuple(name for name in stages.NAMES if name not in most["seconds"])
    return Reproduction(most["device"], most["jobs"], of_seed, once, untimed)


def _facts(runs: Runs, results: Iterable[Result]) -> dict[str, str]:
    made = [result.record["provenance"] for result in results]
    dates = sorted(entry["date"][:10] for entry in made if entry.get("date"))
    versions: dict[str, set[str]] = {}
    for entry in made:
        for name, version in entry.get("versions", {}).items():
            versions.setdefault(name, set()).add(str(version))
    facts = {
        "model": runs.model,
        "suite": f"{runs.suite}: {_tasks(runs)} and a control set",
        "seeds": ", ".join(map(str, runs.seeds)),
        "results": str(len(made)),
        "made": dates[0] if dates and dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}" if dates else "",
        "machine": "; ".join(sorted({str(entry["device"]) for entry in made if entry.get("device")})),
        "versions": ", ".join(f"{name} {'/'.join(sorted(values))}" for name, values in sorted(versions.items())),
        "commits": few(sorted({str(entry["commit"])[:8] for entry in made if entry.get("commit")}), 3),
    }
    return {name: value for name, value in facts.items() if value}


def _tasks(runs: Runs) -> str:
    """How many there are, and how many of them most numbers are of."""
    tasks, first = len(runs.tasks), len(runs.main_tasks)
    return f"{tasks} tasks, of which the first {first} are the first benchmark," if tasks > first else f"{tasks} tasks"


def _work(results: Iterable[Result]) -> Iterable[Work]:
    kinds: dict[str, list[Any]] = {}
    for result in results:
        kinds.setdefault(_kind(result), []).append(result.record["provenance"].get("seconds"))
    order = [*(WORK[name] for name in EXPERIMENTS), WORK[MERGING], ADAPTING, CORRUPTED]
    for name in (name for name in order if name in kinds):
        seconds = [value for value in kinds[name] if value is not None]
        yield Work(name, len(kinds[name]), len(seconds), fmean(seconds) if seconds else None)


def _kind(result: Result) -> str:
    if result.corruption:
        return CORRUPTED
    return ADAPTING if "adaptation" in result.record else WORK[result.experiment]
