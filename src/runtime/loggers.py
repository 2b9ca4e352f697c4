"""Scalars to Weights & Biases or TensorBoard, when a flag asks for it; to nobody otherwise, nor from ranks above 0."""

import importlib
from pathlib import Path

from src.runtime.distributed import is_primary


class Logger:
    """`log({"loss": 0.3}, step)` to every logger that was asked for. `name` is the run's."""

    def __init__(self, args, name: str, folder):
        self._wandb = self._board = None
        if not is_primary():
            return
        if getattr(args, "wandb", False) or getattr(args, "tensorboard", False):
            # wandb takes the system's temporary folder in the place of one that is not there
            Path(folder).mkdir(parents=True, exist_ok=True)
        if getattr(args, "wandb", False):
            wandb = _need("wandb", "wandb")
            config = {k: str(v) for k, v in vars(args).items()}
            self._wandb = wandb.init(project="tangent-arithmetic", name=name, dir=folder, config=config, reinit=True)
        if getattr(args, "tensorboard", False):
            self._board = _need("torch.utils.tensorboard", "tensorboard").SummaryWriter(folder / "tensorboard" / name)

    def log(self, values: dict[str, float], step: int) -> None:
        if self._wandb:
            self._wandb.log(values, step=step)
        if self._board:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)

    def close(self) -> None:
        if self._wandb:
            self._wandb.finish()
        if self._board:
            self._board.close()


def _need(module: str, extra: str):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SystemExit(
            f"--{extra}: expected the package to be installed; mend with: pip install -e '.[{extra}]'"
        ) from error
