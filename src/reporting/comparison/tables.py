"""Methods of several papers beside each other, also on corrupted test images."""

from collections.abc import Iterator

from src.datasets.corruptions import CORRUPTIONS
from src.reporting.comparison.analogies import analogies
from src.reporting.comparison.connectivity import connectivity
from src.reporting.comparison.course import course
from src.reporting.comparison.geometry import geometry
from src.reporting.comparison.layerwise import layerwise
from src.reporting.comparison.mergeability import mergeability
from src.reporting.comparison.merged_models import merged_models
from src.reporting.comparison.methods import (
    methods,
    methods_chosen,
    methods_cost,
    methods_per_task,
    methods_published,
)
from src.reporting.comparison.modes import modes
from src.reporting.comparison.plateau import plateau
from src.reporting.comparison.prediction import prediction, redundancy
from src.reporting.comparison.storage import storage
from src.reporting.comparison.studies import studies
from src.reporting.methods import FINETUNED, Group, Row, absent_seeds, results_of, rows
from src.reporting.published import published, published_model
from src.reporting.runs import Runs
from src.reporting.table import Cell, Table, percent, printed

CLEAN = ("", 0)
PUBLISHED_SETTINGS = {"": "Clean Test set", "jpeg_compression": "JPEG Compression"}  # FusionBench's; others by name


def robustness(runs: Runs) -> Iterator[Table]:
    """Methods on corrupted test images, one table for each severity that has results."""
    for severity in sorted({r.severity for r in runs.read if r.corruption}):
        yield _robustness(runs, severity)


def _robustness(runs: Runs, severity: int) -> Table:
    group = Group(runs.main_tasks)
    kinds = [CLEAN, *((name, severity) for name in CORRUPTIONS)]
    corrupted = [result for kind in kinds[1:] for result in results_of(runs, group, (), *kind)]
    shown = rows(corrupted)
    table_rows: list[list[str | Cell]] = [
        [row.title(), *(_accuracy(runs, group, row, *kind) for kind in kinds)] for row in shown
    ]
    finetuned = {"metric": "finetuned_accuracy", "method": ..., "options": ..., **group.columns}
    alone = [runs.any_of(corruption=name, severity=level, **finetuned) for name, level in kinds]
    table_rows.append([FINETUNED, *(Cell(100 * accuracy) for accuracy in alone)])
    model = published_model(runs.model)
    brackets = f"; in brackets FusionBench's {model} on four tasks" if model else ""
    return Table(
        f"robustness_{severity}",
        f"Robustness: test accuracy on corrupted images of severity {severity}, {len(runs.main_tasks)} tasks, %"
        f"{brackets}.",
        ["method", "clean", *map(printed, CORRUPTIONS)],
        table_rows,
        runs.seeds,
        same_seeds=True,
        notes=("Methods that adapt see corrupted test images; α is chosen on clean validation images.",),
        missing=tuple(line for row in shown if row.exact for line in _missing(runs, group, row, severity)),
        in_readme=True,
    )


def _accuracy(runs: Runs, group: Group, row: Row, corruption: str, severity: int) -> Cell:
    setting = PUBLISHED_SETTINGS.get(corruption, printed(corruption).title())
    name = row.published_name("fusionbench", "robustness")
    theirs = published(runs.model, "fusionbench", "robustness", name, setting, "accuracy")
    return percent(
        runs, theirs, metric="accuracy", corruption=corruption, severity=severity, **group.columns, **row.columns
    )


def _missing(runs: Runs, group: Group, row: Row, severity: int) -> list[str]:
    """The commands that make what is not there of a row: one for all corruptions that the same seeds lack."""
    what = {"metric": "accuracy", "severity": severity, **group.columns, **row.columns}
    lacking: dict[tuple[int, ...], list[str]] = {}
    for name in CORRUPTIONS:
        if absent := absent_seeds(runs, runs.values(corruption=name, **what).index):
            lacking.setdefault(tuple(absent), []).append(name)
    return [
        runs.merge_command(
            (f"corruption={','.join(names)}", f"severity={severity}", *row.overrides), group.tasks, seeds=absent
        )
        for absent, names in lacking.items()
    ]


TABLES = (
    modes,
    methods,
    methods_per_task,
    methods_chosen,
    methods_published,
    methods_cost,
    prediction,
    redundancy,
    geometry,
    layerwise,
    connectivity,
    analogies,
    course,
    mergeability,
    merged_models,
    storage,
    plateau,
    studies,
    robustness,
)
