"""What some modes minimise: a penalty beside the loss of their task, or the worst loss nearby."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from src import store
from src.curvature import Curvature, measure
from src.datasets import loading
from src.finetuning.batches import IGNORED, Batches
from src.finetuning.settings import Training, other_tasks
from src.heads import get_classification_head
from src.inputs import is_embedding
from src.linearize import LinearizedModel
from src.modes import CYCLIC, ORTHO, TAK, TAU_JP
from src.run import Run
from src.runtime.distributed import World
from src.runtime.messages import UsageError, few
from src.runtime.precision import matmul_precision
from src.runtime.seeds import event_seed
from src.tensors import Weights, displacement


class Penalty(Protocol):
    """What is added to the loss of a task, for each of its forward passes."""

    def stream(self, first: int, stop: int) -> Iterator[Tensor]:
        """This process's share of the penalty, by the number of the forward pass."""
        ...


class JacobianPenalty:
    """λ times the mean over other tasks of the mean over their images of ‖J(x; θ0)(θ − θ0)‖, features' norm: τJp.

    Labels are not used. With `penalty_tasks` strict each forward pass sees a batch of every other task, else of one,
    in turn. Batches are numbered as the task's own, so a run that goes on sees those that it would have seen.
    Source: Yoshida et al., ICLR 2025 (norms are not squared). Their strict version has images of the control, too,
    which stays unseen here: negation is judged by it. Raises UsageError for a run of one task.
    """

    def __init__(self, run: Run, task: str, training: Training, encoder: nn.Module, world: World):
        others = _others(run, task, training)
        assert isinstance(encoder, LinearizedModel)
        assert training.penalty is not None and training.penalty_batch_size is not None  # Training.of fills them in
        self.weight, self.encoder, self.cyclic = training.penalty, encoder, training.penalty_tasks == CYCLIC
        of_each = replace(training, batch_size=training.penalty_batch_size, workers=-(-training.workers // len(others)))
        self.others = [
            Batches(run, of_each, encoder, loading.training_examples(run, other), world, other) for other in others
        ]

    def stream(self, first: int, stop: int) -> Iterator[Tensor]:
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


class WeightPenalty(ABC):
    """λ times a function of θ − θ0 alone, which is the same at every forward pass but for the weights."""

    weight: float
    encoder: nn.Module
    theta0: Weights  # of what is trained
    processes: int

    def stream(self, first: int, stop: int) -> Iterator[Tensor]:
        theta = dict(self.encoder.named_parameters())
        for _ in range(first, stop):
            tau = displacement({name: theta[name] for name in self.theta0}, self.theta0)
            yield self.weight * self.of(tau) / self.processes

    @abstractmethod
    def of(self, tau: Weights) -> Tensor:
        """θ − θ0 by name to a scalar, with its graph."""


class CurvaturePenalty(WeightPenalty):
    """λ times what τ does to other tasks' features, in Kronecker factors of each: TAK. See src/curvature.py.

    Factors are computed at θ0 before the first step, from `penalty_images` training images of each other task, rounded
    up to whole batches, augmented as in training, and without labels. Tasks count by their numbers of images.
    Raises UsageError for a run of one task, and for weights that have no factors.
    """

    def __init__(self, run: Run, task: str, training: Training, encoder: nn.Module, world: World):
        others = _others(run, task, training)
        assert isinstance(encoder, LinearizedModel)
        assert training.penalty is not None and training.penalty_images is not None  # Training.of fills them in
        self.weight, self.encoder, self.processes = training.penalty, encoder, world.size
        trained = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
        self.theta0 = {name: encoder.params0[name] for name in trained}
        self.curvature = Curvature()
        examples = {other: loading.training_examples(run, other) for other in others}
        total = sum(map(len, examples.values()))
        alone = World(device=world.device)  # every process computes the same factors
        width = get_classification_head(run, task).weight.shape[1]
        start, passes = encoder.params0 | encoder.buffers0, -(-training.penalty_images // training.batch_size)
        for other in others:
            batches = Batches(run, training, encoder, examples[other], alone, other)(0, passes)
            generator = torch.Generator().manual_seed(event_seed(run.seed, other, "curvature"))
            directed = (
                (images, torch.randn(len(images), width, generator=generator).to(images)) for images, *_ in batches
            )
            with matmul_precision(training.precision):
                of_task = measure(encoder.function, start, directed)
            self.curvature.add(of_task, len(examples[other]) / total)
            self._require_all(run, training, trained)

    def _require_all(self, run: Run, training: Training, trained: Sequence[str]) -> None:
        if missing := sorted({*trained} - self.curvature.names):
            raise UsageError(
                f"--finetuning-mode: {training.mode} needs weights that multiply activations, and LayerNorms; "
                f"{run.model} also trains {few(missing)}. Expected a vision transformer, as --model=ViT-B-32"
            )

    def of(self, tau: Weights) -> Tensor:
        return self.curvature.of(tau)


class OrthogonalityPenalty(WeightPenalty):
    """λ Σ_l ‖ΔWᵀΔW − I‖ over the matrices of the image tower, by their smaller side; norms of Frobenius, not squared.

    Embeddings are no matrices here. Source: https://arxiv.org/abs/2604.17078.
    """

    def __init__(self, run: Run, task: str, training: Training, encoder: nn.Module, world: World):
        assert training.penalty is not None  # Training.of fills it in
        self.weight, self.encoder, self.processes = training.penalty, encoder, world.size
        start = store.pretrained(run)
        self.theta0 = {
            name: start[name].to(parameter)
            for name, parameter in encoder.named_parameters()
            if parameter.requires_grad and parameter.dim() == 2 and not is_embedding(name)
        }

    def of(self, tau: Weights) -> Tensor:
        return torch.stack([_from_orthogonal(delta) for delta in tau.values()]).sum()


def _from_orthogonal(delta: Tensor) -> Tensor:
    tall = delta if delta.shape[0] >= delta.shape[1] else delta.mT
    gram = tall.mT @ tall
    return (gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype)).norm()


def _others(run: Run, task: str, training: Training) -> tuple[str, ...]:
    others = other_tasks(run, task)
    if not others:
        raise UsageError(f"--tasks: {training.mode} needs images of other tasks; expected two tasks, found {task}")
    return others


PENALTIES: dict[str, Callable[[Run, str, Training, nn.Module, World], Penalty]] = {
    TAU_JP: JacobianPenalty,
    TAK: CurvaturePenalty,
    ORTHO: OrthogonalityPenalty,
}


@contextmanager
def worst_nearby(trained: Sequence[Tensor], rho: float) -> Iterator[None]:
    """Within, the weights stand `rho` further along their gradient, where the loss is about the worst: SAM.

    Source: https://arxiv.org/abs/2010.01412. The gradient is that of all processes.
    """
    gradients = {weight: weight.grad for weight in trained if weight.grad is not None}
    at_start = [weight.detach().clone() for weight in gradients]
    with torch.no_grad():
        norm = torch.nn.utils.get_total_norm(gradients.values())
        for weight, gradient in gradients.items():
            weight.add_(gradient, alpha=rho / (float(norm) + 1e-12))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(gradients, at_start):
                weight.copy_(before)
