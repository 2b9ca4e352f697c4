"""Accuracy of the pre-trained and of each fine-tuned encoder on its own task and on the control set."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NotRequired

from src import checkpoints, store
from src.datasets import loading, registry
from src.evaluation import ORIGIN, Line, mean, score_all
from src.experiments.base import carry_out
from src.experiments.numbers import Number, by_task
from src.experiments.registry import SINGLE_TASK, Experiment
from src.modes import MODES
from src.records import SUFFIXES, Bits, Corrupted, single_task_accuracies
from src.run import Run
from src.runtime import results
from src.runtime.messages import UsageError, few
from src.tensors import difference


class Record(Corrupted):
    """See `single_task_accuracies` for the accuracies, whose keys are names of data sets.

    losses, n: mean cross-entropy and number of images, by the keys of the accuracies.
    correct: which test images are right, by data set; none for the control of several fine-tuned models.
    control_per_task: split -> task -> what the task's fine-tuned model keeps on the control set.
    """

    losses: Mapping[str, float]
    n: Mapping[str, int]
    control_per_task: Mapping[str, Mapping[str, float]]
    correct: NotRequired[Mapping[str, Bits]]


def numbers(record: Record, suite: str) -> Iterator[Number]:
    row = registry.suite(suite)
    for split, accuracy in single_task_accuracies(record, (*registry.names(row), row.control)).items():
        yield from by_task("accuracy", accuracy, accuracy, split)
    for split, losses in single_task_accuracies(record["losses"], (*registry.names(row), row.control)).items():
        yield from by_task("loss", losses, losses, split)
    for split, control in record["control_per_task"].items():
        yield from by_task("control_accuracy", control, control, split)


def evaluate_single_tasks(
    run: Run, mode: str, encoder: Path | None = None, name: str | None = None, overwrite: bool = False
) -> None:
    """Write the single-task result of a mode; or `<name>.json`, of the checkpoint `encoder` on every task.

    A result of more tasks than the run's will do; one that lacks some is made anew, with its own tasks and the run's.
    Raises UsageError for an encoder without a name and a name without an encoder.
    """
    if bool(encoder) != bool(name):
        raise UsageError("--encoder and --name go together: the second names the result")
    if name and not re.fullmatch(r"\w[\w.+=-]*", name):
        raise UsageError(f"--name: expected letters, digits and . _ + = -, for a file; got {name!r}")
    experiment = _Named(**vars(SINGLE_TASK), file=name) if name else SINGLE_TASK
    options = {"encoder": encoder}
    path = run.paths.result(experiment.result(mode))
    if not overwrite and results.exists(path):
        results.require_same(path, run.config(**options), options, _made_of(run, mode, encoder))
        there = _tasks_of(results.read(path), run)
        if missing := [task for task in run.tasks if task not in there]:
            print(f"{path}: lacks {few(missing)}; it is made anew with all of {len(there) + len(missing)} tasks")
        run, overwrite = replace(run, tasks=(*there, *missing)), bool(missing)
    made_of = partial(_made_of, run, mode, encoder)
    record = carry_out(experiment, mode, run, options, lambda: _record(run, mode, encoder), overwrite, made_of)
    if record is not None:
        print(
            f"{mode}: {100 * mean(record[task] for task in run.tasks):.1f} % over {len(run.tasks)} tasks, "
            f"{run.control} {100 * record[run.control]:.1f} % -> {path}"
        )


def _made_of(run: Run, mode: str, encoder: Path | None) -> dict[str, str]:
    encoders = dict.fromkeys((*run.tasks, run.control), str(encoder)) if encoder else None
    return store.made_of(run, mode, (*run.tasks, run.control), encoders)


def _tasks_of(record: Mapping[str, Any], run: Run) -> tuple[str, ...]:
    """The tasks that a result has, in its own order."""
    config = record["provenance"]["config"]
    return tuple(config.get("tasks") or (task for task in registry.names(run.suite_row) if task in record))


@dataclass(frozen=True)
class _Named(Experiment):
    """A result in a file of another name."""

    file: str = ""

    def result(self, choice: str) -> str:
        return self.file


def _record(run: Run, mode: str, encoder: Path | None) -> dict[str, Any]:
    """For each data set its test accuracy under its name and its validation accuracy under <name>Val, as published.

    For fine-tuned encoders the control's is the mean over tasks of the accuracy that each keeps on the control set.
    """
    store.write_pretrained(run)
    lines = _lines(run, mode, encoder)
    loading.examples(run, run.control, "test")  # mini's are drawn once, before the workers look for them
    one_for_all = encoder is not None or MODES[mode].trained_as is None
    on_control = dict(list(lines.items())[:1]) if one_for_all else lines
    record: dict[str, Any] = {"losses": {}, "n": {}, "control_per_task": {}, "correct": {}}
    for split, suffix in SUFFIXES.items():
        jobs = {(task, run.control): (run.control, line) for task, line in on_control.items()}
        jobs |= {(task, task): (task, line) for task, line in lines.items()}
        curves = score_all(run, mode, jobs, split, f"single-task {mode}, {split}")
        control = {task: curves[task, run.control] for task in on_control}
        scores = {run.control: list(control.values())} | {task: [curves[task, task]] for task in lines}
        for dataset, of_dataset in scores.items():
            field = dataset + suffix
            record[field] = mean(curve.accuracy[0] for curve in of_dataset)
            record["losses"][field] = mean(curve.loss[0] for curve in of_dataset)
            record["n"][field] = of_dataset[0].n
            if split == "test" and len(of_dataset) == 1:
                record["correct"][dataset] = of_dataset[0].correct[0]
        if not one_for_all:
            record["control_per_task"][split] = {task: curve.accuracy[0] for task, curve in control.items()}
    return record


def _lines(run: Run, mode: str, encoder: Path | None) -> dict[str, Line]:
    """The encoder to evaluate on each task, as a displacement from θ0."""
    if encoder:
        start = store.pretrained(run)
        end = checkpoints.load(encoder, model=run.model, like=start)
        return dict.fromkeys(run.tasks, Line(difference(end, start)))
    if MODES[mode].trained_as is None:
        return dict.fromkeys(run.tasks, ORIGIN)
    return {task: Line(store.task_vector(run, task, mode).vector) for task in run.tasks}
