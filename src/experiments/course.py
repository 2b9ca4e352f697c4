"""The course of an adaptation: three readings of one run, and whether what it minimises follows the loss.

A method that learns is run as main.py runs it. Every few steps the merged model is scored on validation and on test
images, and on the same test images stands the mean of what a method can minimise there without labels:

    entropy     of the predictions                                                          (arXiv:2310.02575)
    expert      cross-entropy with the predictions of the task's own model                  (arXiv:2412.19098)

One run has several readings, of the mean accuracy over tasks: at its last step, which is what the suite reports; at
the step that validation images choose; and at the step that is best on test, which AdaRank's released code reports
(arXiv:2503.22178). The difference of the first and the last is what the choice on test adds.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean as mean
from typing import NamedTuple, SupportsFloat

import torch
from scipy.stats import spearmanr
from torch import Tensor
from typing_extensions import TypedDict

from src import store
from src.analysis import calibration
from src.datasets import loading
from src.evaluation import Line
from src.experiments.base import carry_out
from src.experiments.merged_models import Model, known_variants, logits
from src.experiments.numbers import Number
from src.experiments.registry import COURSE, COURSE_EVERY
from src.merging import names
from src.merging.adaptation import IMAGES, LOSSES, Adapting, entropy
from src.merging.base import Progress, Variant, Watchable
from src.merging.problem import Source, read_problem
from src.merging.registry import METHODS, variant_label, variants
from src.merging.watch import Watch
from src.modes import MODES
from src.ranges import check
from src.records import Corrupted
from src.run import FP32, Run
from src.runtime.distributed import from_primary, is_primary
from src.runtime.messages import UsageError, few
from src.runtime.parallel import map_tasks
from src.runtime.precision import matmul_precision
from src.task_vectors import TaskVector

USUAL = ("adamerging", "adamerging_loss=expert", "adarank")  # names of results of main.py; others by --methods
PROXIES = ENTROPY, EXPERT = LOSSES[:2]  # those that need no label
ByTask = Mapping[str, Sequence[float]]  # at each point


class Scored(TypedDict):
    """On the images of a split. loss: mean cross-entropy with the labels."""

    accuracy: ByTask
    loss: ByTask


class Course(TypedDict):
    """minimised: of PROXIES. step, phase: of each point, the last step of all included. proxies: on test images."""

    minimised: str
    step: Sequence[int]
    phase: Sequence[str]
    val: Scored
    test: Scored
    proxies: Mapping[str, ByTask]


class Record(Corrupted):
    """methods: by the name of the method's results."""

    finetuning_mode: str
    tasks: Sequence[str]
    every: int
    methods: Mapping[str, Course]


class Readings(NamedTuple):
    """Mean test accuracy over tasks: at the last step, at the best on test, and at the best on validation."""

    last: float
    best: float
    stopped: float


def readings(course: Course) -> Readings:
    """Of a run; the earliest step wins a draw."""
    val, test = (over_tasks(scored["accuracy"]) for scored in (course["val"], course["test"]))
    return Readings(test[-1], max(test), test[val.index(max(val))])


def over_tasks(by_task: ByTask) -> list[float]:
    """The mean over tasks at each point."""
    return [mean(values) for values in zip(*by_task.values(), strict=True)]


def following(course: Course, proxy: str) -> float:
    """Spearman's correlation of a proxy with the test loss over the points, the mean over tasks.

    Tasks in which either stays as it is have none; nan where no task has one.
    """
    by_task = course["proxies"][proxy]
    pairs = [(values, course["test"]["loss"][task]) for task, values in by_task.items()]
    moving = [(one, other) for one, other in pairs if len({*one}) > 1 and len({*other}) > 1]
    return mean(float(spearmanr(*pair).statistic) for pair in moving) if moving else math.nan


def numbers(record: Record, suite: str) -> Iterator[Number]:
    """The name of a method's results is in the metric. following_<name>: of what the method minimises."""
    for label, course in record["methods"].items():
        for reading, value in readings(course)._asdict().items():
            yield Number(f"{reading}_accuracy_{label}", value)
        for proxy in PROXIES:
            value = following(course, proxy)
            yield Number(f"following_{proxy}_{label}", None if math.isnan(value) else value)


def measure_course(
    run: Run,
    mode: str,
    methods: Sequence[str] | None = None,
    every: int = COURSE_EVERY,
    overwrite: bool = False,
) -> None:
    """Write course_<mode>.json. methods: names of results of main.py, by default USUAL. every: steps between points.

    A run that was killed goes on. Raises UsageError for a method that minimises none of PROXIES.
    """
    check(every=every)
    chosen = known_variants(methods or USUAL)
    for variant in chosen:
        minimised(variant)
    options = {"methods": [variant_label(variant) for variant in chosen], "every": every}
    watches = [CourseWatch(run, mode, variant, every) for variant in chosen]
    if overwrite and is_primary():
        _remove(watches)

    def compute() -> Record:
        loading.examples(run, run.tasks[0], "test")  # mini's are drawn once, before the workers look for them
        courses = {variant_label(watch.variant): course_of(watch) for watch in watches}
        return {"finetuning_mode": mode, "tasks": list(run.tasks), "every": every, "methods": courses}

    record = carry_out(COURSE, mode, run, options, compute, overwrite, partial(store.made_of, run, mode, run.tasks))
    if record is None:
        return
    if is_primary():
        _remove(watches)
    for label, course in record["methods"].items():
        last, best, stopped = (100 * value for value in readings(course))
        print(
            f"course {mode}, {label}: {last:.1f} % at the last step, {best:.1f} % at the best on test, {stopped:.1f} % "
            f"at the best on validation -> {run.paths.result(COURSE.result(mode))}"
        )


def minimised(variant: Variant) -> str:
    """The proxy that a method minimises. Raises UsageError where it is none of PROXIES."""
    proxy = _proxy(variant)
    if proxy is None:
        known = [variant_label(other) for other in variants() if _proxy(other)]
        raise UsageError(
            "--methods: expected methods that minimise the entropy of predictions, or their cross-entropy with those "
            f"of the tasks' own models; {variant_label(variant)} does not. Known: {few(known, 80)}"
        )
    return proxy


def _proxy(variant: Variant) -> str | None:
    method = METHODS[variant.method](**variant.options)
    if not isinstance(method, Adapting) or method.needs != IMAGES:
        return None
    loss = getattr(method, "loss", ENTROPY)
    return loss if loss in PROXIES else None


class CourseWatch(Watch):
    """Of a method: accuracy and loss on validation and on test images, and both proxies on the latter."""

    measures = ("accuracy", "loss", "test_accuracy", "test_loss", *PROXIES)  # the first two: on validation
    anew = "--overwrite"

    def __init__(self, run: Run, mode: str, variant: Variant, every: int):
        folder = names.folder(run.suite, run.tasks, mode, "visual")
        name = f"{folder}/course_{variant_label(variant)}_every={every}"
        self.variant, self.state = variant, run.paths.adaptation_state(name)
        super().__init__(run, mode, every, run.paths.adaptation_state(f"{name}.watched"), log=_unlogged)
        self._experts: dict[str, Tensor] = {}

    @property
    def files(self) -> tuple[Path, Path]:
        """What an unfinished run goes on from."""
        return self.state, self.file

    def scores(self, models: Mapping[str, Line], step: int) -> dict[str, dict[str, float]]:
        run, tangent = self.run, MODES[self.mode].tangent
        if not self._experts:
            experts = map_tasks(partial(_expert, run=run, mode=self.mode), run.tasks, run.jobs, "experts", run.device)
            self._experts = dict(zip(run.tasks, experts))
        work = [(task, models[task], self._experts[task]) for task in run.tasks]
        scored = map_tasks(partial(_scored, run=run, tangent=tangent), work, run.jobs, f"step {step}", run.device)
        return {measure: {task: of[measure] for task, of in zip(run.tasks, scored)} for measure in self.measures}

    def finish(self, step: int, phase: str, model: Watchable) -> None:
        """Keep the point of the finished model too, where `every` steps do not end with it."""
        points = self.points()
        if (points[-1]["step"], points[-1]["phase"]) != (step, phase):
            self.add(points, step, phase, model)


def _unlogged(scalars: Mapping[str, SupportsFloat], step: int) -> None:
    """Nobody looks on."""


def _remove(watches: Sequence[CourseWatch]) -> None:
    for watch in watches:
        for file in watch.files:
            file.unlink(missing_ok=True)


def course_of(watch: CourseWatch) -> Course:
    """Adapt as main.py does, and score on the way."""
    run, variant = watch.run, watch.variant
    label = variant_label(variant)
    torch.manual_seed(run.seed)
    progress = Progress(watch, state=watch.state, save_seconds=300)
    with matmul_precision(FP32):
        made = METHODS[variant.method](**variant.options).merge(
            read_problem(run, Source(watch.mode), label.replace("=", "-"), progress)
        )
    phases = (made.adaptation or {})["phases"]
    model = made.vector(run.tasks[0], made.settings[0])
    from_primary(lambda: watch.finish(sum(phase["steps"] for phase in phases), phases[-1]["name"], model))
    points = from_primary(watch.points)

    def curve(measure: str) -> ByTask:
        return {task: [point[measure][task] for point in points] for task in run.tasks}

    return {
        "minimised": minimised(variant),
        "step": [point["step"] for point in points],
        "phase": [point["phase"] for point in points],
        "val": {"accuracy": curve("accuracy"), "loss": curve("loss")},
        "test": {"accuracy": curve("test_accuracy"), "loss": curve("test_loss")},
        "proxies": {proxy: curve(proxy) for proxy in PROXIES},
    }


def _expert(task: str, run: Run, mode: str) -> Tensor:
    """Probabilities of the task's own model on its test images, (images, classes)."""
    with matmul_precision(run.precision):
        own = store.task_vector(run, task, mode)
        return logits(run, Model(task), own, "test", MODES[mode].tangent)[0].double().softmax(1)


def _scored(work: tuple[str, Line, Tensor], run: Run, tangent: bool) -> dict[str, float]:
    """measure -> value, of the model of a task."""
    task, line, expert = work
    vector, model = TaskVector(vector=dict(line.direction)), Model(task, adapter=line.adapter)
    with matmul_precision(run.precision):
        of_val, labels_val = logits(run, model, vector, "val", tangent)
        of_test, labels = logits(run, model, vector, "test", tangent)
    return {
        "accuracy": _accuracy(of_val, labels_val),
        "loss": calibration.log_loss(of_val, labels_val),
        "test_accuracy": _accuracy(of_test, labels),
        "test_loss": calibration.log_loss(of_test, labels),
        ENTROPY: float(entropy(of_test.double())),
        EXPERT: calibration.log_loss(of_test, expert),
    }


def _accuracy(of_images: Tensor, labels: Tensor) -> float:
    return float((of_images.argmax(1) == labels).double().mean())
