"""How long the stages of a reproduction took: a file beside the results, from which a dry run foresees its minutes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from src.runtime.files import read_json, replacing
from src.runtime.paths import Places, from_root
from src.runtime.results import device_name

NAME = "stages.json"


class Durations(TypedDict):
    """Of a model. jobs: so many tasks were worked on at once. seconds: of each stage, a seed's, or once for all."""

    device: str
    jobs: int
    seconds: dict[str, float]


def record(folder: Path, model: str, jobs: int, device: str, seconds: Mapping[str, float]) -> None:
    """Add those of a run to the folder's file, where they take the place of what other numbers of jobs took."""
    path = folder / NAME
    by_model = _read(path)
    entry = Durations(device=device_name(device), jobs=jobs, seconds={})
    before = by_model.get(model, entry)
    if {**before, "seconds": {}} == entry:
        entry = before
    entry["seconds"] |= {stage: round(value, 1) for stage, value in seconds.items()}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(by_model | {model: entry}, indent=1) + "\n")


def foreseen(suite: str, model: str, jobs: int) -> dict[str, float]:
    """Seconds of each stage with so many jobs, by what the shipped results took; empty where nothing is known."""
    entry = _read(from_root(Places.results) / suite / NAME).get(model)
    return {stage: value * entry["jobs"] / jobs for stage, value in entry["seconds"].items()} if entry else {}


def _read(path: Path) -> dict[str, Durations]:
    """By model. A damaged file is as good as none: no number of a table hangs on it."""
    try:
        by_model = read_json(path) if path.is_file() else {}
    except ValueError:
        return {}
    return by_model if isinstance(by_model, dict) else {}
