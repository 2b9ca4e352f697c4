"""What an evaluation needs, without a fine-tuning: checkpoints and single-task results that are made up."""

import time

import torch

from src import checkpoints, store
from src.run import Run
from src.runtime import results


def draw_checkpoints(run: Run) -> None:
    """θ0, for each task θ0 plus noise, and accuracies to divide by."""
    store.write_pretrained(run)
    start, generator = dict(store.pretrained(run)), torch.Generator().manual_seed(0)
    for task in run.tasks:
        moved = {k: p + 0.01 * torch.randn(p.shape, generator=generator) for k, p in start.items() if p.ndim}
        header = dict(model=run.model, task=task, mode="standard", seed=run.seed)
        checkpoints.save(run.paths.checkpoint(task, "standard"), start | moved, header)
    accuracies = {f"{task}{suffix}": 0.5 for task in run.tasks for suffix in ("", "Val")} | run.corruption_record()
    for mode in ("none", "standard"):
        results.write(run.paths.single_task(mode), accuracies, run.config(), started=time.time())
