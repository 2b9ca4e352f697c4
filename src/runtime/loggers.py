"""Scalars to Weights & Biases or TensorBoard, when a flag asks for it; to nobody otherwise, nor from ranks above 0."""

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any, SupportsFloat

from src.runtime.distributed import is_primary
from src.runtime.messages import UsageError

GROUP = "WANDB_RUN_GROUP"  # wandb's own; jobs inherit it, on Slurm too


def begin_group() -> None:
    """Runs of this process and of those that it starts are one sweep's, unless they are another group's already."""
    os.environ.setdefault(GROUP, f"sweep-{datetime.now():%Y-%m-%d-%H.%M.%S}")


@dataclass(frozen=True)
class Loggers:
    """Which ones to tell."""

    wandb: bool = False
    tensorboard: bool = False


class Logger:
    """`log({"loss": 0.3}, step)` to every logger that was asked for. name: the run's; folder: of their files.

    Runs of a sweep are a group in wandb, and lie in a folder of the group's name in TensorBoard's.
    """

    def __init__(self, loggers: Loggers, name: str, folder: Path, config: Mapping[str, Any]):
        self._wandb = self._board = None
        if not is_primary():
            return
        if loggers.wandb or loggers.tensorboard:
            # wandb takes the system's temporary folder in the place of one that is not there
            folder.mkdir(parents=True, exist_ok=True)
        if loggers.wandb:
            texts = {key: str(value) for key, value in config.items()}
            wandb = _need("wandb", "wandb")
            try:
                self._wandb = wandb.init(
                    project="tangent-arithmetic",
                    group=os.environ.get(GROUP),
                    name=name,
                    dir=folder,
                    config=texts,
                    reinit=True,
                )
            except wandb.errors.Error as error:
                raise UsageError(
                    f"--wandb: expected a login, found: {error}; mend with: wandb login, or WANDB_MODE=offline to keep "
                    "the run on this machine"
                ) from error
        if loggers.tensorboard:
            events = folder / "tensorboard" / os.environ.get(GROUP, "").replace(os.sep, "-") / name
            self._board = _need("torch.utils.tensorboard", "tensorboard").SummaryWriter(events)

    def log(self, values: Mapping[str, SupportsFloat], step: int) -> None:
        """Numbers that a GPU holds are waited for where a logger takes them, and nowhere else."""
        if self._wandb:
            self._wandb.log({key: float(value) for key, value in values.items()}, step=step)
        if self._board:
            for key, value in values.items():
                self._board.add_scalar(key, float(value), step)

    def close(self) -> None:
        if self._wandb:
            self._wandb.finish()
        if self._board:
            self._board.close()


def _need(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"--{package}: expected the package to be installed, found none; mend with: pip install {package}"
        ) from error
