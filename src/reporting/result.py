"""Results as they are read: a record, and what tells it from every other, all taken from the record itself."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from src import records
from src.experiments.registry import EXPERIMENTS, MERGING, NTK, Experiment, module
from src.merging.names import tasks_name
from src.merging.registry import METHODS, load_methods
from src.runtime import results
from src.runtime.paths import CORRUPTED, Paths

VECTORS = "vectors"


@dataclass(frozen=True)
class Result:
    """A record of an experiment; what does not apply is empty.

    options: as JSON; of a merging method those that are not its defaults today, with the values that a search tried,
        of the tangent kernel the reduction.
    encoders: foreign checkpoints by task, as JSON; of a single-task result of a checkpoint, its name.
    unseen: tasks that are scored without being merged. corruption, severity: of the test images; 0 is none.
    """

    seed: int
    experiment: str
    record: Mapping[str, Any]
    file: Path
    corruption: str = ""
    severity: int = 0
    mode: str = ""
    method: str = ""
    options: str = ""
    encoders: str = ""
    scope: str = ""
    task_list: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    @property
    def identity(self) -> tuple:
        """What results of several seeds share that one number is averaged over."""
        of_merging = (
            self.method,
            self.options,
            self.encoders,
            self.scope,
            self.task_list if self.method else (),
            self.unseen,
        )
        return (self.experiment, self.mode, self.corruption, self.severity, *of_merging)

    @property
    def tasks(self) -> tuple[str, ...]:
        """What it is of; empty where neither its record nor its configuration tells."""
        return self.task_list or tuple(self.record["provenance"]["config"].get("tasks") or ())

    def is_extended(self, first: Sequence[str]) -> bool:
        """Whether a stage made it that runs with --extended alone. first: the tasks of the papers' first benchmark."""
        if self.corruption:
            return True
        if self.experiment == MERGING:
            benchmark = self.task_list[: len(first)] == tuple(first)  # of more tasks too, as `merging` makes them
            return self.mode != "standard" or not benchmark or bool(self.unseen)
        return self.experiment in EXPERIMENTS and EXPERIMENTS[self.experiment].is_extended(self.mode)

    def columns(self, suite: str) -> dict[str, Any]:
        """What identifies the result, as columns of the frame."""
        foreign = json.loads(self.encoders) if self.method and self.encoders else {}
        return {
            "seed": self.seed,
            "corruption": self.corruption,
            "severity": self.severity,
            "experiment": self.experiment,
            "mode": self.mode,
            "method": self.method,
            "options": self.options,
            "encoders": self.encoders,
            "scope": self.scope,
            "tasks": tasks_name(suite, self.task_list, foreign) if self.task_list else "",
            "task_list": joined(self.task_list),
            "unseen": joined(self.unseen),
        }


def joined(names: Sequence[str]) -> str:
    """Names of data sets as a value of the frame."""
    return " ".join(names)


def read_results(paths: Paths) -> Iterator[Result]:
    """Every result of a seed that has a schema, those on corrupted images included.

    Raises results.ResultError for a damaged one, and for one that is not as its schema says.
    """
    folder = paths.seed_results()
    for file in sorted(folder.rglob("*.json")):
        record = results.read(file)
        apart = CORRUPTED in file.relative_to(folder).parts
        if file.stem != VECTORS and ("corruption" in record) != apart:
            raise results.ResultError(
                f"{file}: expected results on corrupted images in {CORRUPTED}/ and others beside it, found this one "
                f"{'in' if apart else 'outside'} it; move it, or make it again with: "
                f"{record['provenance']['command']}"
            )
        if (known := _experiment(file, record, merged=MERGING in file.relative_to(folder).parts)) is None:
            continue
        experiment, choice = known
        records.checked(record, records.Vectors if experiment == VECTORS else module(experiment).Record, file)
        yield Result(paths.seed, experiment, record, file, **_identity(experiment, choice, file, record))


def _experiment(file: Path, record: Mapping[str, Any], merged: bool) -> tuple[str, str] | None:
    """The experiment that a file is of and its choice; None for a file that no schema describes."""
    if merged:
        return (VECTORS, "") if file.stem == VECTORS else (MERGING, "")
    if file.stem in _names():
        return _names()[file.stem]
    return ("single_task", "") if "control_per_task" in record else None


@cache
def _names() -> dict[str, tuple[str, str]]:
    """Name of a result -> its experiment and choice."""
    return {row.result(choice): (row.name, choice) for row in EXPERIMENTS.values() for choice in row.choices}


def _identity(experiment: str, choice: str, file: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    identity: dict[str, Any] = {}
    if "corruption" in record:
        identity |= {"corruption": record["corruption"]["name"], "severity": record["corruption"]["severity"]}
    if experiment == NTK.name:
        return identity | {"options": as_text({"reduction": record["reduction"]})}
    identity["mode"] = record.get("finetuning_mode", choice)
    if experiment == "single_task" and not choice:
        identity["encoders"] = file.stem
    if "tasks" in record:
        identity["task_list"] = tuple(record["tasks"])
    if experiment in (MERGING, VECTORS):
        identity["scope"] = record["scope"]
    if experiment == MERGING:
        identity |= _merged(record)
    return identity


def _merged(record: Mapping[str, Any]) -> dict[str, Any]:
    searched = record["info"].get("search", {})
    return {
        "method": canonical(record["method"]),
        "options": as_text(differing(record["method"], {**record["options"], **searched})),
        "encoders": as_text(record["encoders"]),
        "unseen": tuple(record["unseen"]["tasks"]) if "unseen" in record else (),
    }


def canonical(method: str) -> str:
    """The registered name of a method that has several spellings; others stay as they are."""
    load_methods()
    return METHODS[method].name if method in METHODS else method


def differing(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that are not the defaults which the method has today.

    An option that is not among `options` counts as its default: results hold every option that their method had when
    they were made, so it was gained later.
    """
    load_methods()
    defaults = json.loads(json.dumps(METHODS[method].defaults())) if method in METHODS else {}
    return {name: value for name, value in options.items() if name not in defaults or value != defaults[name]}


def as_text(values: Mapping[str, Any]) -> str:
    """As a value of the frame; empty for nothing."""
    return json.dumps(values, sort_keys=True) if values else ""


def chosen(experiment: Experiment, choice: str) -> dict[str, Any]:
    """The columns of an experiment with a choice: a mode, or a reduction."""
    return {"experiment": experiment.name} | (
        {"options": {"reduction": choice}} if experiment == NTK else {"mode": choice}
    )
