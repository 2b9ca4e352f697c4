"""What every experiment does around its own work: skip what is there, take the time, write the record."""

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from src.experiments.leaks import leaks_record
from src.experiments.registry import Experiment
from src.modes import MODES
from src.records import SCHEMAS, checked
from src.run import Run
from src.runtime import results

Record = TypeVar("Record", bound=Mapping[str, Any])


def carry_out(
    experiment: Experiment,
    choice: str,
    run: Run,
    options: Mapping[str, Any],
    compute: Callable[[], Record],
    overwrite: bool,
) -> Record | None:
    """Write the record that `compute` gives, unless the same result is there already; None where it is.

    options: what the record depends on beside the run. Raises ResultError for a result of other options or tasks.
    """
    path = run.paths.result(experiment.result(choice))
    config = run.config(**options)
    if not overwrite and results.skip_existing(path, config, ("tasks", *options)):
        return None
    started = time.time()
    record: Any = {**compute(), **run.corruption_record()}
    if choice in MODES:
        record |= leaks_record(run, choice)
    schema = SCHEMAS[experiment.schema]
    results.write(path, record, config, started, lambda document: checked(document, schema, path))
    return record
