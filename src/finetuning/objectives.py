"""What some modes minimise: a penalty on other tasks' features beside the loss, or the worst loss nearby."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from src.datasets import loading
from src.finetuning.batches import IGNORED, Batches
from src.finetuning.settings import CYCLIC, Training, other_tasks
from src.linearize import LinearizedModel
from src.run import Run
from src.runtime.distributed import World
from src.runtime.messages import UsageError


class JacobianPenalty:
    """λ times the mean over other tasks of the mean over their images of ‖J(x; θ0)(θ − θ0)‖, features' norm: τJp.

    Labels are not used. With `penalty_tasks` strict each forward pass sees a batch of every other task, else of one,
    in turn. Batches are numbered as the task's own, so a run that goes on sees those that it would have seen.
    Source: Yoshida et al., ICLR 2025 (norms are not squared). Their strict version has images of the control, too,
    which stays unseen here: negation is judged by it. Raises UsageError for a run of one task.
    """

    def __init__(self, run: Run, task: str, training: Training, encoder: LinearizedModel, world: World):
        others = other_tasks(run, task)
        if not others:
            raise UsageError(f"--tasks: {training.mode} needs images of other tasks; expected two tasks, found {task}")
        assert training.penalty is not None and training.penalty_batch_size is not None  # Training.of fills them in
        self.weight, self.encoder, self.cyclic = training.penalty, encoder, training.penalty_tasks == CYCLIC
        of_each = replace(training, batch_size=training.penalty_batch_size, workers=-(-training.workers // len(others)))
        self.others = [
            Batches(run, of_each, encoder, loading.training_examples(run, other), world, other) for other in others
        ]

    def stream(self, first: int, stop: int) -> Iterator[Tensor]:
        """This process's share of the penalty for each forward pass of the task, by number."""
        count = len(self.others)
        if self.cyclic:  # pass k is of the other k % count, whose batches are numbered by themselves
            ends = [[max(0, -(-(k - j) // count)) for k in (first, stop)] for j in range(count)]
        else:
            ends = [[first, stop]] * count
        streams = [batches(*span) for batches, span in zip(self.others, ends)]
        for number in range(first, stop):
            yield self._of([streams[number % count]] if self.cyclic else streams)

    def _of(self, streams: Sequence[Iterator[tuple[Tensor, Tensor, int]]]) -> Tensor:
        shares = []
        for images, labels, size in map(next, streams):
            norms = self.encoder.displacement(images).norm(dim=-1)
            shares.append((norms * (labels != IGNORED)).sum() / size)
        return self.weight * torch.stack(shares).mean()


@contextmanager
def worst_nearby(trained: Sequence[Tensor], rho: float) -> Iterator[None]:
    """Within, the weights stand `rho` further along their gradient, where the loss is about the worst: SAM.

    Source: https://arxiv.org/abs/2010.01412. The gradient is that of all processes.
    """
    gradients = {weight: weight.grad for weight in trained if weight.grad is not None}
    kept = [weight.detach().clone() for weight in gradients]
    with torch.no_grad():
        norm = torch.nn.utils.get_total_norm(gradients.values())
        for weight, gradient in gradients.items():
            weight.add_(gradient, alpha=rho / (float(norm) + 1e-12))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(gradients, kept):
                weight.copy_(before)
