"""What every experiment does around its own work: skip what is there, take the time, write the record."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from src.experiments.leaks import leaks_record
from src.experiments.registry import Experiment, module
from src.modes import MODES
from src.records import checked
from src.run import Run
from src.runtime import results
from src.runtime.files import require_writable
from src.runtime.locks import only_one

Record = TypeVar("Record", bound=Mapping[str, Any])


def carry_out(
    experiment: Experiment,
    choice: str,
    run: Run,
    options: Mapping[str, Any],
    compute: Callable[[], Record],
    overwrite: bool,
    made_of: Callable[[], dict[str, str]] = dict,
) -> Record | None:
    """Write the record that `compute` gives, unless the same result is there already; None where it is.

    options: what the record depends on beside the run. made_of: the files that it depends on; see store.made_of.
    Raises ResultError for a result of other options, tasks or files, and StorageError, before the work, where it could
    not be written.
    """
    path = run.paths.result(experiment.result(choice))
    config = run.config(**options)

    def there(before: Mapping[str, str]) -> bool:
        return not overwrite and results.skip_existing(path, config, ("tasks", "precision", *options), before)

    if there(made_of()):
        return None
    require_writable(path)
    with only_one(path):
        if there(before := made_of()):  # another run made it meanwhile
            return None
        started = time.time()
        record: Any = {**compute(), **run.corruption_record()}
        if choice in MODES:
            record |= leaks_record(run, choice)
        schema = module(experiment.name).Record
        made = unchanged(path, before, made_of())
        results.write(path, record, config, started, lambda document: checked(document, schema, path), made)
    return record


def unchanged(path: Path, before: Mapping[str, str], now: dict[str, str]) -> dict[str, str]:
    """`now`. Raises ResultError where the files that a result is made of changed while it was computed."""
    if changed := results.changed(before, now):
        raise results.ResultError(
            f"{path}: expected files that stay as they are, found that {', '.join(changed)} changed while the result "
            "was computed; nothing was written: give the same command again"
        )
    return now
