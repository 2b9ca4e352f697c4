"""The results as one tidy table: a number a row, and beside it what it is of. Also results/<suite>/accuracies.csv."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from src.experiments.registry import module
from src.reporting.result import VECTORS, Result
from src.runtime.files import replacing
from src.runtime.results import ResultError

IDENTITY = (
    "suite", "model", "seed", "corruption", "severity", "experiment", "mode", "method", "options", "encoders", "scope",
    "tasks", "task_list", "unseen",
)  # fmt: skip
COLUMNS = (*IDENTITY, "task", "split", "metric", "setting", "value")


def frame(suite: str, results: Iterable[tuple[str, Result]]) -> pd.DataFrame:
    """COLUMNS of every number of the (model, result) pairs, in their order.

    Raises ResultError that names the file and the key which a result lacks, and for two results of the same thing.
    """
    rows: list[tuple[Any, ...]] = []
    files: dict[tuple[Any, ...], Path] = {}
    for model, result in results:
        if result.experiment == VECTORS:
            continue  # cosines between task vectors are no numbers of a task
        columns = {"suite": suite, "model": model} | result.columns(suite)
        identity = tuple(columns[name] for name in IDENTITY)
        if (other := files.setdefault(identity, result.file)) != result.file:
            raise ResultError(f"{result.file} and {other} are results of the same thing; remove one of them")
        try:
            numbers = module(result.experiment).numbers(result.record, suite)
            rows += [(*identity, n.task, n.split, n.metric, n.setting, n.value) for n in numbers]
        except KeyError as error:
            raise ResultError(f"{result.file}: expected the key {error.args[0]!r}, found none") from None
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"value": float, "setting": float})


def write(table: pd.DataFrame, path: Path) -> None:
    """As a file. The tasks of a benchmark, such as `8task`, are not listed in every row: they are the suite's first.

    Test images that are not corrupted are `clean` there: pandas would take a long column's empty part for numbers.
    """
    of_benchmark = table["tasks"].str.fullmatch(r"\d+task").astype(bool)
    task_list, corruption = table["task_list"].mask(of_benchmark, ""), table["corruption"].replace("", "clean")
    with replacing(path) as temporary:
        table.assign(task_list=task_list, corruption=corruption).to_csv(temporary, index=False, lineterminator="\n")
