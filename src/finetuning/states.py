"""What an earlier fine-tuning left: whether it is what is asked for now, and how to go on from it."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from src import checkpoints, state_files, store
from src.datasets import loading, registry
from src.datasets.examples import DataError
from src.finetuning.settings import Training, differences, number_of_steps, settings_of
from src.finetuning.trained import factors_beside
from src.run import Run


def check_finished(run: Run, task: str, training: Training) -> None:
    """Raise CheckpointError unless the finished checkpoint is whole, began at θ0 and was trained as is asked now."""
    target = run.paths.checkpoint(task, training.mode)
    header = checkpoints.header(target, model=run.model, task=task, mode=training.mode)
    store.check_start(run, target, header)
    asked = settings_of(run, task, training)
    steps = _known_steps(run, task, training)
    if steps is not None:
        asked["steps"] = steps
    if other := differences(header.get("settings", {}), asked):
        raise checkpoints.CheckpointError(
            f"{target}: expected a checkpoint of these settings, found one that was trained with {other}; "
            "repeat those, train anew with --overwrite, or keep both with --save=ANOTHER_FOLDER"
        )
    after = kept_steps(training, header["step"] if steps is None else steps)
    if missing := [step for step in after if not run.paths.encoder_at(task, training.mode, step).is_file()]:
        raise checkpoints.CheckpointError(
            f"{run.paths.encoder_at(task, training.mode, missing[0])}: expected the encoder after step {missing[0]}, "
            f"found none, for {target} was made without --keep-every={training.keep_every}; train anew with --overwrite"
        )


def kept_steps(training: Training, steps: int) -> range:
    """After which steps the encoder is kept; after the last it is the checkpoint."""
    every = training.keep_every
    return range(every, steps, every) if every else range(0)


def remove(run: Run, task: str, mode: str) -> None:
    """Remove the checkpoint of a task, what is beside it, and its training state."""
    target = run.paths.checkpoint(task, mode)
    steps = run.paths.encoder_at(task, mode, 0).parent.glob("*.safetensors")
    for path in (target, factors_beside(target), run.paths.training_state(task, mode), *steps):
        path.unlink(missing_ok=True)


def _known_steps(run: Run, task: str, training: Training) -> int | None:
    """The steps that are asked for; None where a number of epochs says so and the images are not at hand."""
    if training.steps is not None or (training.epochs is None and registry.get(task).steps is not None):
        return number_of_steps(training, task, 0)
    try:
        images = len(loading.training_examples(run, task))
    except DataError:
        return None
    return number_of_steps(training, task, math.ceil(images / training.batch_size))


def resume(path: Path, encoder: nn.Module, optimizer: torch.optim.Optimizer, header: dict[str, Any]) -> int:
    """Load a training state; the number of steps it has seen. Raises CheckpointError where its settings differ."""
    state = checkpoints.Checkpoint(path, kind="training state", **{f: header[f] for f in ("model", "task", "mode")})
    checkpoints.require(state, "settings", "step")
    if other := differences(state.header["settings"], header["settings"]):
        raise checkpoints.CheckpointError(
            f"{path}: expected the state of a run with these settings, found {other}; "
            "repeat the earlier settings, or start anew with --overwrite"
        )
    model = encoder.state_dict()
    encoder.load_state_dict(state_files.load(state, {"optimizer": optimizer}, {"model": model})["model"])
    return state.header["step"]
