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
from src.experiments.published_accuracy import doubts
from src.experiments.registry import CONTROL, SINGLE_TASK, Experiment
from src.modes import MODES
from src.ranges import check
from src.records import SUFFIXES, Bits, Corrupted, single_task_accuracies
from src.run import Run
from src.runtime import results
from src.runtime.distributed import warn
from src.runtime.messages import UsageError, few
from src.tensors import difference


class Record(Corrupted):
    """See `single_task_accuracies` for the accuracies, whose keys are names of data sets.

    losses, n: mean cross-entropy and number of images, by the keys of the accuracies.
    correct: which test images are right, by data set; none for the control of several fine-tuned models.
    control_per_task: split -> task -> what the task's fine-tuned model keeps on the control set.
    no_control: why the control set was not scored; nothing where it was.
    """

    losses: Mapping[str, float]
    n: Mapping[str, int]
    control_per_task: Mapping[str, Mapping[str, float]]
    no_control: NotRequired[str]
    correct: NotRequired[Mapping[str, Bits]]


def numbers(record: Record, suite: str) -> Iterator[Number]:
    row = registry.suite(suite)
    first = row.tasks[: registry.BENCHMARKS[0]]
    of_more = {split: kept for split, kept in record["control_per_task"].items() if kept.keys() > {*first}}
    for split, accuracy in single_task_accuracies(record, (*registry.names(row), row.control)).items():
        if split in of_more:  # the control's number is of the same models, however many tasks a run has
            accuracy[row.control] = mean(of_more[split][task] for task in first)
        yield from by_task("accuracy", accuracy, accuracy, split)
    for split, losses in single_task_accuracies(record["losses"], (*registry.names(row), row.control)).items():
        if split in of_more:
            losses.pop(row.control, None)  # of all models of the run, and that of each is not recorded
        yield from by_task("loss", losses, losses, split)
    for split, control in record["control_per_task"].items():
        yield from by_task("control_accuracy", control, control, split)


def evaluate_single_tasks(
    run: Run,
    mode: str,
    encoder: Path | None = None,
    name: str | None = None,
    control: str = CONTROL[0],
    at: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write the single-task result of a mode; or `<name>.json`, of the checkpoint `encoder` on every task.

    at: the step of fine-tuning after which the encoders are scored, into a result of its own; None: after the last.
    control: whether the control set is scored too: "prepared", where it is here; "always"; or "never".
    A result of more tasks than the run's will do; one that lacks some, or the control that is asked for, is made anew,
    with its own tasks and the run's.
    Raises UsageError for an encoder without a name and a name without an encoder, or with a step; and DataError for a
    control that is asked for and not prepared.
    """
    check(at=at)
    if at is not None and (encoder or MODES[mode].trained_as is None):
        raise UsageError(f"--at: expected a mode that is fine-tuned, and no --encoder; found {encoder or mode}")
    if bool(encoder) != bool(name):
        raise UsageError("--encoder and --name go together: the second names the result")
    if name and not re.fullmatch(r"\w[\w.+=-]*", name):
        raise UsageError(f"--name: expected letters, digits and . _ + = -, for a file; got {name!r}")
    file = name if at is None else f"{MODES[mode].single_task}_at_{at}"
    experiment = _Named(**vars(SINGLE_TASK), file=file) if file else SINGLE_TASK
    options: dict[str, Any] = {"encoder": encoder} | ({} if at is None else {"at": at})
    path = run.paths.result(experiment.result(mode))
    if not overwrite and results.exists(path):
        results.require_same(path, run.config(**options), ("precision", *options), _made_of(run, mode, encoder, at))
        earlier = results.read(path)
        there = _tasks_of(earlier, run)
        missing = [task for task in run.tasks if task not in there]
        lacking = [*missing, *([run.control] if control == "always" and run.control not in earlier else [])]
        if lacking:
            print(f"{path}: lacks {few(lacking)}; it is made anew with all of {len(there) + len(missing)} tasks")
        run, overwrite = replace(run, tasks=(*there, *missing)), bool(lacking)
    absent = "" if control == "always" else _no_control(run, control)
    made_of = partial(_made_of, run, mode, encoder, at)
    record = carry_out(
        experiment, mode, run, options, lambda: _record(run, mode, encoder, absent, at), overwrite, made_of
    )
    if record is not None:
        accuracy = f"{run.control} {100 * record[run.control]:.1f} %" if run.control in record else f"control: {absent}"
        over = f"{100 * mean(record[task] for task in run.tasks):.1f} % over {len(run.tasks)} tasks"
        print(f"{mode}: {over}, {accuracy} -> {path}")
        for doubt in doubts(run, mode, record) if file is None else ():
            warn(f"warning: {doubt}")


def _no_control(run: Run, control: str) -> str:
    """Why the control set is not scored; empty where it is."""
    if run.control in run.tasks or (control == "prepared" and loading.is_prepared(run, run.control)):
        return ""
    return "not asked for" if control == "never" else "not prepared"


def _made_of(run: Run, mode: str, encoder: Path | None, at: int | None) -> dict[str, str]:
    encoders = dict.fromkeys((*run.tasks, run.control), str(encoder)) if encoder else {}
    if at is not None:
        encoders = {task: str(run.paths.encoder_at(task, MODES[mode].checkpoint, at)) for task in run.tasks}
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


def _record(run: Run, mode: str, encoder: Path | None, no_control: str, at: int | None) -> dict[str, Any]:
    """For each data set its test accuracy under its name and its validation accuracy under <name>Val, as published.

    For fine-tuned encoders the control's is the mean over tasks of the accuracy that each keeps on the control set.
    no_control: why there is none; empty where it is scored.
    """
    store.write_pretrained(run)
    lines = _lines(run, mode, encoder, at)
    # mini's images are drawn once, before the workers look for them
    loading.examples(run, run.tasks[0] if no_control else run.control, "test")
    one_for_all = encoder is not None or MODES[mode].trained_as is None
    on_control = {} if no_control else dict(list(lines.items())[:1]) if one_for_all else lines
    record: dict[str, Any] = {"losses": {}, "n": {}, "control_per_task": {}, "correct": {}}
    if no_control:
        record["no_control"] = no_control
    for split, suffix in SUFFIXES.items():
        jobs = {(task, run.control): (run.control, line) for task, line in on_control.items()}
        jobs |= {(task, task): (task, line) for task, line in lines.items()}
        curves = score_all(run, mode, jobs, split, f"single-task {mode}, {split}")
        control = {task: curves[task, run.control] for task in on_control}
        scores = {run.control: list(control.values())} if control else {}
        scores |= {task: [curves[task, task]] for task in lines}
        for dataset, of_dataset in scores.items():
            field = dataset + suffix
            record[field] = mean(curve.accuracy[0] for curve in of_dataset)
            record["losses"][field] = mean(curve.loss[0] for curve in of_dataset)
            record["n"][field] = of_dataset[0].n
            if split == "test" and len(of_dataset) == 1:
                record["correct"][dataset] = of_dataset[0].correct[0]
        if control and not one_for_all:
            record["control_per_task"][split] = {task: curve.accuracy[0] for task, curve in control.items()}
    return record


def _lines(run: Run, mode: str, encoder: Path | None, at: int | None) -> dict[str, Line]:
    """The encoder to evaluate on each task, as a displacement from θ0."""
    if encoder:
        start = store.pretrained(run)
        end = checkpoints.load(encoder, model=run.model, like=start)
        return dict.fromkeys(run.tasks, Line(difference(end, start)))
    if MODES[mode].trained_as is None:
        return dict.fromkeys(run.tasks, ORIGIN)
    return {task: Line(store.stored_vector(run, task, mode, at)) for task in run.tasks}
