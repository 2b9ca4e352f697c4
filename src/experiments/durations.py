"""How long the stages of a reproduction took: a file beside the results, from which a dry run foresees its minutes."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from src.runtime.files import read_json, replacing
from src.runtime.locks import only_one
from src.runtime.paths import Places, from_root
from src.runtime.results import device_name

NAME = "stages.json"


class Durations(TypedDict):
    """jobs: so many tasks were worked on at once. seconds: of each stage, a seed's, or once for all."""

    device: str
    jobs: int
    seconds: dict[str, float]


_FILE = TypeAdapter(dict[str, list[Durations]])  # by model, one entry for each device and number of jobs


def record(folder: Path, model: str, jobs: int, device: str, seconds: Mapping[str, float]) -> None:
    """Add those of a run to the folder's file."""
    path, name = folder / NAME, device_name(device)
    with only_one(path):
        by_model = read(path)
        entries = by_model.setdefault(model, [])
        alike = [entry for entry in entries if (entry["device"], entry["jobs"]) == (name, jobs)]
        entry = alike[0] if alike else Durations(device=name, jobs=jobs, seconds={})
        entry["seconds"] |= {stage: round(value, 1) for stage, value in seconds.items()}
        entries += [] if alike else [entry]
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(by_model, indent=1) + "\n")


def foreseen(suite: str, model: str, jobs: int) -> dict[str, float]:
    """Seconds of each stage with so many jobs, by what the shipped results took; empty where nothing is known.

    Of several entries the one of as many jobs counts, or else that of the most stages.
    """
    entries = read(from_root(Places.results) / suite / NAME).get(model, [])
    if not entries:
        return {}
    entry = max(entries, key=lambda entry: (entry["jobs"] == jobs, len(entry["seconds"])))
    return {stage: value * entry["jobs"] / jobs for stage, value in entry["seconds"].items()}


def read(path: Path) -> dict[str, list[Durations]]:
    """A damaged file is as good as none: no number of a table hangs on it."""
    try:
        return _FILE.validate_python(read_json(path)) if path.is_file() else {}
    except ValueError:
        return {}
