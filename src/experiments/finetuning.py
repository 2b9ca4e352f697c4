"""Fine-tuning of every task of a run: in this process, in several that share each batch, or one task to a process."""

from functools import partial
from typing import Any

from src import store
from src.datasets import loading
from src.finetuning.settings import MOST_WORKERS, Training
from src.run import Run
from src.runtime.distributed import World, cores, launch, under_torchrun
from src.runtime.loggers import Loggers
from src.runtime.parallel import map_tasks
from src.training import finetune, finetune_together


def finetune_tasks(
    run: Run, mode: str, wandb: bool = False, tensorboard: bool = False, overwrite: bool = False, **flags: Any
) -> None:
    """Fine-tune every task of the run; finished ones are skipped. flags: the other fields of Training."""
    together = under_torchrun() or flags.get("world_size", 1) > 1 or run.jobs == 1
    if flags.get("workers") is None and not together:
        flags["workers"] = min(MOST_WORKERS, max(1, cores() // run.jobs))
    training = Training.of(run, mode, loggers=Loggers(wandb, tensorboard), **flags)
    if together:
        work = partial(_together, run, training, overwrite)
        launch(work, run.device, training.world_size)
        return
    store.write_pretrained(run)
    loading.examples(run, run.tasks[0], "train")  # mini's are drawn once, before the workers look for them
    work = partial(_alone, run, training, overwrite)
    map_tasks(work, run.tasks, run.jobs, "fine-tuning", run.device)


def _together(run: Run, training: Training, overwrite: bool, world: World) -> None:
    finetune_together(run, training, world, overwrite)


def _alone(run: Run, training: Training, overwrite: bool, task: str) -> None:
    finetune(run, task, training, World(device=run.device), overwrite)
