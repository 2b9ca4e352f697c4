"""Accuracies in the course of an adaptation."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

from src.evaluation import Line, score_all
from src.merging.base import Watchable
from src.records import Watched
from src.run import Run
from src.runtime.files import read_json, replacing
from src.runtime.messages import CheckpointError
from src.task_vectors import TaskVector


class Watch:
    """Accuracies on validation images in the course of an adaptation, kept beside its state.

    `watch(step, phase, model)` evaluates at the start of each phase and every `every` steps (0: never). It tells the
    method nothing. What a resumed run comes to again takes the place of what was there. A subclass that scores more
    says so in `measures`.
    """

    split = "val"
    measures: tuple[str, ...] = ("accuracy",)  # of every point, by task
    anew = "overwrite=True"  # how its command starts anew

    def __init__(
        self, run: Run, mode: str, every: int, file: Path, log: Callable[[Mapping[str, SupportsFloat], int], None]
    ):
        self.run, self.mode, self.every, self.file, self.log = run, mode, every, file, log

    def __call__(self, step: int, phase: str, model: Callable[[], Watchable]) -> None:
        if not self.every:
            return
        points = self.points() if self.file.is_file() else []
        before = [point["step"] < step or (point["step"] == step and point["phase"] != phase) for point in points]
        points = points[: before.index(False) if False in before else None]
        if step % self.every and phase in {point["phase"] for point in points}:
            return
        self.add(points, step, phase, model())

    def add(self, points: Sequence[Mapping[str, Any]], step: int, phase: str, model: Watchable) -> None:
        """Keep these points, and that of a model."""
        models = dict.fromkeys(self.run.tasks, Line(model.vector)) if isinstance(model, TaskVector) else model
        scores = self.scores(models, step)
        with replacing(self.file) as temporary:
            temporary.write_text(json.dumps([*points, {"step": step, "phase": phase, **scores}]))
        self.log({f"watched/{task}": value for task, value in scores["accuracy"].items()}, step)

    def scores(self, models: Mapping[str, Line], step: int) -> dict[str, dict[str, float]]:
        """measure -> task -> value, of each task's model."""
        lines = {task: (task, models[task]) for task in self.run.tasks}
        curves = score_all(self.run, self.mode, lines, self.split, f"watching step {step}")
        return {"accuracy": {task: curve.accuracy[0] for task, curve in curves.items()}}

    def record(self) -> Watched | None:
        """Which split was watched, and its accuracies by task; None where nothing was."""
        if not (self.every and self.file.is_file()):
            return None
        points = self.points()
        return {
            "split": self.split,
            "step": [point["step"] for point in points],
            "phase": [point["phase"] for point in points],
            "accuracy": {task: [point["accuracy"][task] for point in points] for task in self.run.tasks},
        }

    def points(self) -> list[dict[str, Any]]:
        """What was watched until now. Raises CheckpointError for a damaged file."""
        try:
            points = read_json(self.file)
            for point in points:
                if not {"step", "phase", *self.measures} <= {*point}:
                    raise ValueError(f"a point without its step, phase or {' or '.join(self.measures)}")
                if not all({*self.run.tasks} <= {*point[measure]} for measure in self.measures):
                    raise ValueError("a point without a task")
            return points
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self.file}: expected the accuracies of an unfinished adaptation, found a damaged file ({error}); "
                f"start anew with {self.anew}"
            ) from None
