"""The main table of the TALL paper, for every benchmark, mode and scope, and its sweep over consensus thresholds."""

from collections.abc import Iterator

import pandas as pd

from src.datasets import registry
from src.merging.names import tasks_name
from src.merging.registry import METHODS
from src.modes import MODES
from src.reporting.methods import (
    FINETUNED,
    Group,
    Row,
    adapts,
    groups,
    in_order,
    missing_command,
    of_other_scope,
    registered_rows,
    results_of,
    rows,
    variant_row,
)
from src.reporting.published import beside, published
from src.reporting.runs import Runs
from src.reporting.table import Cell, Table, percent, printed

THRESHOLD = "prun_thre_k"  # the option of consensus merging that the paper sweeps over
SWEPT = "consensus"


def merging(runs: Runs) -> Iterator[Table]:
    sets = {runs.suite_tasks[:count] for count in runs.benchmarks}
    first = Group(runs.main_tasks)
    there = [group for group in groups(runs) if group.tasks in sets]
    for group in there if first in there else [first, *there]:
        yield _merging(runs, group)
    for group in groups(runs):
        if not registry.suite(runs.suite).drawn and set(group.tasks) - set(runs.suite_tasks):  # with one's own data
            yield _merging(runs, group)


def _merging(runs: Runs, group: Group) -> Table:
    standard = group.mode == "standard"
    count, others = len(group.tasks), set(group.tasks) - set(runs.suite_tasks)
    shown = rows(results_of(runs, group)) if others else merging_rows(runs, group)
    suffix = "".join(f"_{part}" for part in (group.mode, group.scope) if part not in ("standard", "visual"))
    of = "" if standard else f", {MODES[group.mode].title}"
    scope = "" if group.scope == "visual" else f", vectors with the frozen tensors (scope={group.scope})"
    notes = ["normalised: over the fine-tuned model's accuracy. No α stands where each task has a mask of its own."]
    if any(row.encoders for row in shown):
        notes.append("Other checkpoints are normalised by their own single-task accuracies, where these were measured.")
    notes += of_other_scope(runs, group, shown)
    number = tasks_name(runs.suite, group.tasks).replace("task", "") if others else count
    named = f" ({', '.join(map(printed, group.tasks))})" if others else ""
    brackets = beside(runs.model) if standard and not others else ""
    return Table(
        f"merging{'' if group.tasks == runs.main_tasks else f'_{number}'}{suffix}",
        f"Merging {count} tasks{named}{of}{scope}: test accuracy, %, and storage{brackets}.",
        ["method", "absolute", "normalised", "α", "storage, Gb", "storage, merged models"],
        [*(_row(runs, group, row) for row in shown), _finetuned(runs, group)],
        runs.seeds,
        notes=tuple(notes),
        missing=tuple(line for row in shown if row.exact for line in missing_command(runs, group, row)),
        in_readme=group.tasks == runs.main_tasks and group.scope == "visual",
    )


def merging_rows(runs: Runs, group: Group) -> list[Row]:
    """The paper's methods, and whatever else has results, but methods that adapt and those of another table."""
    expected = registered_rows("merging") if group.mode == "standard" else []
    elsewhere = registered_rows("methods", "methods-adapting") if group.tasks == runs.main_tasks else []
    return [
        row
        for row in in_order([*expected, *rows(results_of(runs, group))])
        if row not in elsewhere and not adapts(runs, row) and not _swept(row)
    ]


def _swept(row: Row) -> bool:
    """Whether a row is a point of the sweep over thresholds, which has a table of its own."""
    return row.method == SWEPT and not row.encoders and list(row.further_options()) == [THRESHOLD]


def _row(runs: Runs, group: Group, row: Row) -> list[str | Cell]:
    what = group.columns | row.columns
    name = row.published_name("tall")
    return [
        row.title(),
        percent(runs, _theirs(runs, group, name, "absolute"), metric="accuracy", **what),
        percent(runs, _theirs(runs, group, name, "normalised"), metric="normalised", **what),
        Cell(runs.values(metric="chosen", **what), digits=2),
        *_storage(runs, group, name, runs.values(metric="storage", **what)),
    ]


def _finetuned(runs: Runs, group: Group) -> list[str | Cell]:
    """One model for each task: the denominators that every result of the group carries."""
    name = "Fine-tuned"
    accuracy = runs.any_of(metric="finetuned_accuracy", method=..., options=..., **group.columns)
    bits = runs.any_of(metric="storage_finetuned", method=..., options=..., **group.columns)
    return [
        FINETUNED,
        Cell(100 * accuracy, _theirs(runs, group, name, "absolute")),
        Cell(100 * (accuracy / accuracy)),
        "",
        *_storage(runs, group, name, bits),
    ]


def _storage(runs: Runs, group: Group, name: str | None, bits: pd.Series) -> list[Cell]:
    """Storage in gigabits, and as a multiple of one merged model's."""
    theirs, one = (_theirs(runs, group, which, "storage Gb") for which in (name, "Zeroshot"))
    merged = runs.any_of(metric="storage_merged", method=..., options=..., encoders=..., **group.columns)
    digits = 3 if bits.mean() < 1e9 else 1
    ratio = theirs / one if theirs and one else None
    return [
        Cell(bits / 1e9, theirs, digits, spread=False),
        Cell((bits / merged).dropna(), ratio, digits=2, spread=False),
    ]


def _theirs(runs: Runs, group: Group, name: str | None, metric: str) -> float | None:
    """A number of the paper's main table, which is on non-linear vectors."""
    if group.mode != "standard" or set(group.tasks) - set(runs.suite_tasks):
        return None
    return published(runs.model, "tall", "main table", name, f"{len(group.tasks)} tasks", metric)


def consensus_thresholds(runs: Runs) -> Iterator[Table]:
    """Accuracy against the number of tasks that must use a weight, a table for each benchmark that was swept over.

    Every run has two points, task arithmetic and the default: they are no sweep.
    """
    for tasks in dict.fromkeys((runs.main_tasks, *(runs.suite_tasks[:count] for count in runs.benchmarks))):
        group, count = Group(tasks), len(tasks)
        sweeps = {row: threshold_sweep(runs, group, row) for row in consensus_rows()}
        ks = sorted(set().union(*sweeps.values()))
        if len(ks) > 2:
            yield Table(
                f"consensus_thresholds{'' if tasks == runs.main_tasks else f'_{count}'}",
                f"Consensus merging of {count} tasks by the number k of tasks that must use a weight: absolute test "
                f"accuracy, %{beside(runs.model)}.",
                ["k", *(row.title() for row in sweeps)],
                [[str(k), *(_at_threshold(runs, group, row, k, sweep) for row, sweep in sweeps.items())] for k in ks],
                runs.seeds,
                notes=(
                    "For consensus TA, k = 0 is task arithmetic itself; more than the number of tasks is zero-shot.",
                ),
                same_seeds=True,
            )


def _at_threshold(runs: Runs, group: Group, row: Row, k: int, sweep: dict[int, pd.Series]) -> Cell:
    what = "tall", "consensus threshold", row.published_name("tall"), f"{len(group.tasks)} tasks, k={k}", "absolute"
    return Cell(100 * sweep.get(k, pd.Series(dtype=float)), published(runs.model, *what))


def consensus_rows() -> tuple[Row, Row]:
    """Consensus TA and consensus TIES."""
    return variant_row(SWEPT), variant_row(SWEPT, use_ties=True)


def threshold_sweep(runs: Runs, group: Group, row: Row) -> dict[int, pd.Series]:
    """k -> test accuracy of consensus merging."""
    what = {"metric": "accuracy", **group.columns}
    return {k: runs.values(**what, **of_k.columns) for k, of_k in threshold_rows(runs, group, row).items()}


def threshold_rows(runs: Runs, group: Group, row: Row) -> dict[int, Row]:
    """k -> the row of its results; where k = 0 was not run for TA, it is task arithmetic itself."""
    sweep: dict[int, Row] = {}
    there = rows(results_of(runs, group))
    for other in there:
        of_sweep = other.method == SWEPT and other.variant == row.variant and not other.encoders
        if of_sweep and set(other.further_options()) <= {THRESHOLD}:
            sweep[other.further_options().get(THRESHOLD, default_threshold())] = other
    arithmetic = variant_row("sum")
    if sweep and row == variant_row(SWEPT) and 0 not in sweep and arithmetic in there:
        sweep[0] = arithmetic
    return dict(sorted(sweep.items()))


def default_threshold() -> int:
    """The paper's k."""
    return METHODS[SWEPT].defaults()[THRESHOLD]


TABLES = (merging, consensus_thresholds)
