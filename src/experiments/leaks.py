"""Which published checkpoints may have been fine-tuned on the images that they are scored on here."""

from collections.abc import Mapping
from pathlib import Path

from src import checkpoints
from src.datasets import loading
from src.modes import MODES
from src.records import Corrupted
from src.run import Run


def leaks_record(run: Run, mode: str, encoders: Mapping[str, str] | None = None) -> Corrupted:
    """What a result says of its fine-tuned checkpoints: task -> why validation or test may hold training images.

    encoders: other checkpoints than the run's, by task. Nothing for those that were fine-tuned here, on this split.
    """
    if MODES[mode].trained_as is None:
        return {}
    reasons = {task: reason for task in run.tasks if (reason := _reason(run, mode, task, encoders or {}))}
    return {"leaks": reasons} if reasons else {}


def _reason(run: Run, mode: str, task: str, encoders: Mapping[str, str]) -> str:
    path = Path(encoders[task]) if task in encoders else run.paths.checkpoint(task, MODES[mode].checkpoint)
    origin = checkpoints.header(path).get("provenance") if path.is_file() else None
    if not origin:
        return ""
    other = loading.other_validation(run, task)
    texts = origin.get("note"), other and f"validation may hold training images: {other}"
    return "; ".join(text for text in texts if text)
