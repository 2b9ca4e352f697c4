"""Accuracies in the course of an adaptation."""

import json
from collections.abc import Callable
from pathlib import Path

from src.evaluation import Line, score_all
from src.merging.base import Watchable
from src.records import Watched
from src.run import Run
from src.runtime.files import replacing
from src.task_vectors import TaskVector


class Watch:
    """Accuracies on validation images in the course of an adaptation, kept beside its state.

    `watch(step, phase, model)` evaluates at the start of each phase and every `every` steps (0: never). It tells the
    method nothing. What a resumed run comes to again takes the place of what was there.
    """

    split = "val"

    def __init__(self, run: Run, mode: str, every: int, file: Path, log: Callable[[dict[str, float], int], None]):
        self.run, self.mode, self.every, self.file, self.log = run, mode, every, file, log

    def __call__(self, step: int, phase: str, model: Callable[[], Watchable]) -> None:
        if not self.every:
            return
        points = json.loads(self.file.read_text()) if self.file.is_file() else []
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
        points = json.loads(self.file.read_text())
        return {
            "split": self.split,
            "step": [point["step"] for point in points],
            "phase": [point["phase"] for point in points],
            "accuracy": {task: [point["accuracy"][task] for point in points] for task in self.run.tasks},
        }
