"""Tables of the Concrete paper: adapting at test time, and tasks that were not merged."""

from collections.abc import Iterator, Sequence
from typing import Any

from src.reporting.methods import (
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
)
from src.reporting.published import beside, published, unseen_table
from src.reporting.result import MERGING
from src.reporting.runs import Runs
from src.reporting.table import Cell, Table, percent, printed

PAPER, MAIN_TABLE = "concrete", "multi-task"
SPLIT = "adapt_on"  # the option that says whose images a method adapts to
SPLIT_NAMES = {"test": "test", "val": "validation"}


def adaptation(runs: Runs) -> Iterator[Table]:
    """The main table: AdaMerging and Concrete, by the images that they adapt on, beside what does not adapt."""
    group = Group(runs.main_tasks)
    shown = [*baselines(runs), *adapting_rows(runs, group)]
    names = {row: [row.title(without=[SPLIT]), SPLIT_NAMES.get(adapts_on(runs, group, row), "")] for row in shown}
    shared: dict[str, Any] = {
        "caption": f"Adapting at test time, {len(group.tasks)} tasks: test accuracy, %{beside(runs.model)}.",
        "seeds": runs.seeds,
        "notes": (
            "adapts on: whose unlabelled images the method learns from. In the papers it is the test images that are "
            "then scored. Methods that do not adapt choose α on labelled validation images, in the paper α = 0.3.",
            *_differences(runs, group, shown),
        ),
        "missing": tuple(
            command for row in shown if row.exact and adapts(runs, row) for command in missing_command(runs, group, row)
        ),
    }
    yield Table(
        name="adaptation",
        header=["method", "adapts on", "absolute", "normalised"],
        rows=[[*names[row], _accuracy(runs, group, row), _accuracy(runs, group, row, "normalised")] for row in shown],
        in_readme=True,
        **shared,
    )
    by_task: list[list[str | Cell]] = [
        [*names[row], *(_accuracy(runs, group, row, task=t) for t in group.tasks), _accuracy(runs, group, row)]
        for row in shown
    ]
    header = ["method", "adapts on", *map(printed, group.tasks), "mean"]
    yield Table(name="adaptation_per_task", header=header, rows=by_task, **shared)


def _differences(runs: Runs, group: Group, shown: Sequence[Row]) -> tuple[str, ...]:
    """Notes on rows that differ from their bracket by construction, where the images are the papers'."""
    if not runs.of_papers:
        return ()
    example = published("ViT-B-32", "fusionbench", "example", "Concrete TA", "average", "accuracy")
    own = f" FusionBench's own checkpoints give Concrete TA {example:.1f} (its example)." if example else ""
    return (
        "TIES: in the paper the disjoint sum at α = 0.3 (method=ties method.reduce=sum method.alphas=[0.3]), here the "
        f"disjoint mean.{own if runs.model == 'ViT-B-32' else ''}",
        *of_other_scope(runs, group, shown),
    )


def _accuracy(runs: Runs, group: Group, row: Row, metric: str = "accuracy", task: str = "") -> Cell:
    """task: its accuracy, or else the mean; the paper gives absolute ones."""
    theirs = published(runs.model, PAPER, MAIN_TABLE, row.published_name(PAPER), task or "average", "accuracy")
    of_task = {"task": task} if task else {}
    return percent(
        runs, theirs if metric == "accuracy" else None, metric=metric, **of_task, **group.columns, **row.columns
    )


def baselines(runs: Runs) -> list[Row]:
    """Methods of the paper's table that do not adapt."""
    return [row for row in registered_rows() if row.published_name(PAPER) and not adapts(runs, row)]


def adapting_rows(runs: Runs, group: Group) -> list[Row]:
    """Methods that adapt: the papers', then what else has results, on test images first."""
    elsewhere = registered_rows("methods-adapting")
    there = [row for row in rows(results_of(runs, group)) if row not in elsewhere]
    expected = registered_rows("adaptation", "adaptation-more")
    adapting = [row for row in in_order([*expected, *there]) if adapts(runs, row)]
    return sorted(adapting, key=lambda row: (bool(row.further_options([SPLIT])), not row.exact))


def adapts_on(runs: Runs, group: Group, row: Row) -> str:
    """The split whose images a method adapts to; nothing for one that does not adapt."""
    if not adapts(runs, row):
        return ""
    records = runs.find(MERGING, **group.fields, **row.columns, unseen=()).values()
    return next((record["adaptation"]["adapt_on"] for record in records), "test")


def unseen(runs: Runs) -> Iterator[Table]:
    """Merged models on tasks that were not merged, one table for each split of the tasks that has results."""
    for group in groups(runs):
        if (group.mode, group.scope) == ("standard", "visual"):
            for tasks in splits(runs, group):
                yield _unseen(runs, group, tasks)


def splits(runs: Runs, group: Group) -> list[tuple[str, ...]]:
    """The sets of unseen tasks that models of a group were scored on."""
    where = (group.tasks, group.mode, group.scope)
    of_group = (r for r in runs.read if r.experiment == MERGING and (r.task_list, r.mode, r.scope) == where)
    return list(dict.fromkeys(r.unseen for r in of_group if r.unseen and not r.corruption))


def _unseen(runs: Runs, group: Group, tasks: tuple[str, ...]) -> Table:
    start = {"method": ..., "options": ..., "unseen": tasks, "metric": "unseen_zeroshot_accuracy", **group.columns}
    zeroshot = [Cell(100 * runs.any_of(task=task, **start)) for task in (*tasks, "mean")]
    shown = rows(results_of(runs, group, unseen=tasks))
    brackets = beside(runs.model) if unseen_table(runs.suite, group.tasks, tasks) else ""
    return Table(
        f"unseen_{'_'.join(tasks)}",
        f"Generalisation: merging and adapting on {len(group.tasks)} tasks, test accuracy on these and on "
        f"{' and '.join(map(printed, tasks))}, %{brackets}.",
        ["method", f"mean of {len(group.tasks)} seen", *map(printed, tasks), "mean of unseen"],
        [["zero-shot", "", *zeroshot], *(_unseen_row(runs, group, tasks, row) for row in shown)],
        runs.seeds,
        in_readme=True,
    )


def _unseen_row(runs: Runs, group: Group, tasks: tuple[str, ...], row: Row) -> list[str | Cell]:
    what = group.columns | row.columns | {"unseen": tasks}
    settings = {task: task for task in tasks} | {"mean": "average of unseen"}
    cells = [
        percent(runs, published_unseen(runs, group, tasks, row, setting), metric="unseen_accuracy", task=task, **what)
        for task, setting in settings.items()
    ]
    return [row.title(), percent(runs, metric="accuracy", **what), *cells]


def published_unseen(runs: Runs, group: Group, tasks: Sequence[str], row: Row, setting: str) -> float | None:
    """A number of the one of the paper's two splits which these unseen tasks are."""
    table = unseen_table(runs.suite, group.tasks, tasks)
    if table is None:
        return None
    return published(runs.model, PAPER, table, row.published_name(PAPER, "generalisation"), setting, "accuracy")


TABLES = (adaptation, unseen)
