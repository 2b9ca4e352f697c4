"""Accuracies in the course of an adaptation."""

import json
from collections.abc import Callable, Mapping
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
    method nothing. What a resumed run comes to again takes the place of what was there.
    """

    split = "val"

    def __init__(
        self, run: Run, mode: str, every: int, file: Path, log: Callable[[Mapping[str, SupportsFloat], int], None]
    ):
        self.run, self.mode, self.every, self.file, self.log = run, mode, every, file, log

    def __call__(self, step: int, phase: str, model: Callable[[], Watchable]) -> None:
        if not self.every:
            return
        points = self._points() if self.file.is_file() else []
        before = [point["step"] < step or (point["step"] == step and point["phase"] != phase) for point in points]
        points = points[: before.index(False) if False in before else None]
        if step % self.every and phase in {point["phase"] for point in points}:
            return
        made = model()
        of_task = dict.fromkeys(self.run.tasks, Line(made.vector)) if isinstance(made, TaskVector) else made
        lines = {task: (task, of_task[task]) for task in self.run.tasks}
        curves = score_all(self.run, self.mode, lines, self.split, f"watching step {step}")
        accuracy = {task: curve.accuracy[0] for task, curve in curves.items()}
        with replacing(self.file) as temporary:
            temporary.write_text(json.dumps([*points, {"step": step, "phase": phase, "accuracy": accuracy}]))
        self.log({f"watched/{task}": value for task, value in accuracy.items()}, step)

    def record(self) -> Watched | None:
        """Which split was watched, and its accuracies by task; None where nothing was."""
        if not (self.every and self.file.is_file()):
            return None
        points = self._points()
        return {
            "split": self.split,
            "step": [point["step"] for point in points],
            "phase": [point["phase"] for point in points],
            "accuracy": {task: [point["accuracy"][task] for point in points] for task in self.run.tasks},
        }

    def _points(self) -> list[dict[str, Any]]:
        """What was watched until now. Raises CheckpointError for a damaged file."""
        try:
            points = read_json(self.file)
            for point in points:
                if not {"step", "phase", "accuracy"} <= {*point} or not {*self.run.tasks} <= {*point["accuracy"]}:
                    raise ValueError("a point without its step, phase or accuracies")
            return points
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self.file}: expected the accuracies of an unfinished adaptation, found a damaged file ({error}); "
                "start anew with overwrite=True"
            ) from None
