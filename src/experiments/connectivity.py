"""Loss along lines in weight space: between fine-tuned models, and from θ0 to each (WiSE-FT, arXiv:2109.01903).

The barrier of two models on a data set is the most by which the loss of (1 − s)·θ_i + s·θ_j exceeds the line between
the losses at its ends; see `barrier`. Models of different tasks are joined on the data of each and on both. The head
normalises features, so the loss of tangent models is not convex in θ either. On test images; nothing is chosen.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from statistics import fmean as mean

import numpy as np
from typing_extensions import TypedDict

from src import store
from src.datasets import loading
from src.evaluation import Curve, Line, score_all
from src.experiments.addition import coefficients
from src.experiments.base import carry_out
from src.experiments.numbers import Number
from src.experiments.registry import CONNECTIVITY, CONNECTIVITY_POINTS
from src.ranges import check
from src.records import Corrupted
from src.run import Run


class Course(TypedDict):
    """Test accuracy and mean cross-entropy at each point of a line, by data set."""

    accuracy: Mapping[str, Sequence[float]]
    loss: Mapping[str, Sequence[float]]


class Record(Corrupted):
    """pairs: "i-j" -> from θ_i to θ_j on both tasks. from_pretrained: task -> from θ0 to θ_t on the task, and on the
    control set where it is prepared."""

    finetuning_mode: str
    tasks: Sequence[str]
    points: Sequence[float]
    pairs: Mapping[str, Course]
    from_pretrained: Mapping[str, Course]
    control: str | None


def barrier(losses: Sequence[float], points: Sequence[float]) -> float:
    """max_s L(s) − (1 − s)·L(0) − s·L(1): at least 0, since both ends are among the points.

    Source: Frankle et al., arXiv:1912.05671, whose instability is this at s = 1/2 or its maximum.
    """
    height = np.asarray(losses) - np.interp(points, (points[0], points[-1]), (losses[0], losses[-1]))
    return float(max(0.0, height.max()))  # at the ends it is 0 but for rounding


def joint(course: Course) -> list[float]:
    """The mean loss of the data sets of a line."""
    return [mean(losses) for losses in zip(*course["loss"].values(), strict=True)]


def numbers(record: Record, suite: str) -> Iterator[Number]:
    """Barriers of pairs, in nats: on both tasks at once, and the mean of those on each. Means over pairs."""
    barriers: dict[str, list[float]] = {"barrier_joint": [], "barrier_single": []}
    for pair, course in record["pairs"].items():
        of_pair = {
            "barrier_joint": barrier(joint(course), record["points"]),
            "barrier_single": mean(barrier(losses, record["points"]) for losses in course["loss"].values()),
        }
        for metric, value in of_pair.items():
            barriers[metric].append(value)
            yield Number(metric, value, pair)
    for metric, values in barriers.items():
        if values:
            yield Number(metric, mean(values))


def measure_connectivity(
    run: Run, mode: str, n_eval_points: int = CONNECTIVITY_POINTS, overwrite: bool = False
) -> None:
    """Write connectivity_<mode>.json. n_eval_points: of each line, with its ends."""
    check(n_eval_points=n_eval_points)
    made_of = partial(store.made_of, run, mode, run.tasks)
    options = {"n_eval_points": n_eval_points}
    record = carry_out(CONNECTIVITY, mode, run, options, lambda: _record(run, mode, n_eval_points), overwrite, made_of)
    if record is None:
        return
    means = {number.metric: number.value for number in numbers(record, run.suite) if number.task == "mean"}
    shown = ", ".join(f"{metric.replace('_', ' ')} {value:.3f}" for metric, value in means.items())
    print(f"connectivity {mode}: {shown} -> {run.paths.result(CONNECTIVITY.result(mode))}")


def _record(run: Run, mode: str, n_eval_points: int) -> Record:
    points = coefficients(n_eval_points)
    control = loading.prepared_control(run)
    loading.examples(run, control or run.tasks[0], "test")  # mini's are drawn once, before the workers look for them
    vectors = {task: store.task_vector(run, task, mode) for task in run.tasks}
    work: dict[tuple[str, str], tuple[str, Line]] = {}
    for one, other in combinations(run.tasks, 2):
        line = Line((vectors[other] - vectors[one]).vector, points, vectors[one].vector)
        work |= {(f"{one}-{other}", dataset): (dataset, line) for dataset in (one, other)}
    for task, vector in vectors.items():
        line = Line(vector.vector, points)
        work |= {(task, dataset): (dataset, line) for dataset in (task, control) if dataset}
    curves = score_all(run, mode, work, "test", f"connectivity {mode}")
    courses = {name: _course(name, curves) for name in dict.fromkeys(name for name, _ in work)}
    return {
        "finetuning_mode": mode,
        "tasks": list(run.tasks),
        "points": list(points),
        "pairs": {name: course for name, course in courses.items() if name not in vectors},
        "from_pretrained": {task: courses[task] for task in vectors},
        "control": control,
    }


def _course(name: str, curves: Mapping[tuple[str, str], Curve]) -> Course:
    of_line = {dataset: curve for (line, dataset), curve in curves.items() if line == name}
    return {
        "accuracy": {dataset: list(curve.accuracy) for dataset, curve in of_line.items()},
        "loss": {dataset: list(curve.loss) for dataset, curve in of_line.items()},
    }
