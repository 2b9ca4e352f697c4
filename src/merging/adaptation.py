"""Adapting a merge to images: gradient descent on the entropy of what it predicts for them, or on another loss.

    L = Σ_t mean_x H(q, p),        p = softmax(head_t(f(x; θ))),        H(q, p) = −Σ_c q_c log p_c

    θ = θ0 + m ∘ Σ_t λ_t τ_t

in the coefficients λ (arXiv:2310.02575) or in a mask m that all tasks share (arXiv:2312.06173). On a tangent model f is
f_lin, whose features are f(x; θ0) + J(x; θ0)(θ − θ0). The loss says what q is:

    entropy         p itself, through which the gradient passes too: the entropy of p
    expert          softmax(head_t(f(x; θ_t))): the soft labels of the task's own model (arXiv:2412.19098)
    expert_class    1 at the class that is most likely by them
    labels          1 at the label, of validation images alone (arXiv:2407.02880)

The gradient takes two steps. With θ as a leaf, one pass over the images gives g = ∂L/∂θ, all tasks' batches together,
for they share θ. Then g goes back through the formula of θ, one tensor at a time, whose graph is built for that moment.
Memory holds the τ_t once, θ, g, and the activations; no model per task, no masked copy of a τ_t, no graph of the merge.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from src.linearize import LinearizedModel
from src.merging.base import Method, Problem
from src.ranges import COUNT, FINITE, check_choice, option
from src.runtime.memory import bytes_of, bytes_of_pass, free_memory, images_that_fit
from src.runtime.messages import NotFinite, UsageError
from src.runtime.precision import features_at, matmul_precision
from src.task_vectors import TaskVector
from src.tensors import Weights

Mask = Callable[[str], torch.Tensor | None]  # name -> the rescaled mask of that tensor; None leaves it as it is
SPLITS = ("test", "val")
LOSSES = ("entropy", "expert", "expert_class", "labels")
IMAGES, LABELS = "unlabelled images", "labels of validation images"
LR = 1e-3  # Adam's, in all the papers


class NonFiniteLoss(NotFinite):
    """The entropy of a batch, or another loss, or what was learned from it, is no number."""


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Mean over the rows of H(softmax(logits)), in nats."""
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()


def unmasked(name: str) -> None:
    return None


def expert_weights(problem: Problem, task: str, like: Mapping[str, torch.Tensor]) -> Weights:
    """θ_t in scope, in the types and on the devices of `like`."""
    return {name: problem.finetuned[task][name].to(like[name]) for name in problem.keys}


@dataclass
class Adapting(Method):
    """Options of every method that adapts.

    adapt_on: "test": the images that are scored afterwards, as in the papers; "val": validation images. No labels, but
        for those of validation where a method's loss is "labels".
    coef: λ at the start. pass_size: most images of one forward and backward pass, which batches of several tasks share;
        a GPU takes fewer where its free memory does not hold what is kept of so many.
    vectors: the type that the τ_t are kept in (float16 halves their memory; arithmetic stays in float32).
    """

    adapt_on: str = "test"
    batch_size: int = option(16, COUNT)
    coef: float = option(0.3, FINITE)
    pass_size: int = option(128, COUNT)
    vectors: str = "float32"


def schedule(problem: Problem, asked: int | None, published: int, family: str) -> tuple[int, float]:
    """Number of steps and Adam's rate: the published schedule, as many times shorter as the suite says of the family.

    Its rate grows by the same factor: a step of Adam is about as long as its rate, so the path stays as long. Steps
    that were asked for have the published rate.
    """
    if asked is not None:
        return asked, LR
    shorter = problem.shorter(family)
    return published // shorter, LR * shorter


def stacked(problem: Problem) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor's name and its τ_t, (tasks, *shape)."""
    return ((name, torch.stack(list(problem.tensors(name)))) for name in problem.keys)


class MergedModel:
    """f(x; θ0 + m ∘ Σ_t λ_t τ_t) of a problem, and the gradient of its loss.

    taus: pairs of a name and the τ_t of that tensor, (tasks, *shape); by default those of the problem.
    clamp: λ counts as its nearest value in [0, 1]. loss: a word of LOSSES. The experts are read one at a time.
    Raises UsageError where the problem has no images, for an `adapt_on` or a loss that does not exist, and for labels
    of another split than validation.
    """

    def __init__(
        self,
        problem: Problem,
        method: Adapting,
        clamp: bool = False,
        taus: Iterable[tuple[str, torch.Tensor]] | None = None,
        loss: str = "entropy",
    ):
        self.images = problem.unlabelled(method)
        check_choice("adapt_on", method.adapt_on, SPLITS)
        check_choice("loss", loss, LOSSES)
        if loss == "labels" and method.adapt_on != "val":
            raise UsageError(
                "loss=labels learns from the labels of validation images, never of test images; "
                f"got adapt_on={method.adapt_on}: add method.adapt_on=val"
            )
        self.loss, self.labelled = loss, problem.labelled(method) if loss == "labels" else None
        check_choice("vectors", method.vectors, ("float16", "bfloat16", "float32", "float64"))
        self.problem, self.method, self.clamp = problem, method, clamp
        self.encoder = self.images.encoder()
        self.start = {name: tensor.detach() for name, tensor in self.encoder.state_dict().items()}  # θ0
        self.device = self.start[problem.keys[0]].device
        self.heads = {task: self.images.head(task).to(self.device) for task in problem.tasks}
        stored = dict(dtype=getattr(torch, method.vectors), device=self.device)
        taus = stacked(problem) if taus is None else taus
        self.taus = {name: tau.to(**stored) for name, tau in taus}  # (tasks, *shape) each
        self.layer = {name: column for column, name in enumerate(problem.keys)}

    @cached_property
    def together(self) -> int:
        """Batches of one pass, asked at the first, when all vectors are on the device.

        Beside what is kept of the pass there are θ, its gradient, and at most a mask with three more.
        """
        size, tangent = self.method.pass_size, isinstance(self.encoder, LinearizedModel)
        free, each = free_memory(self.device), bytes_of_pass(self.encoder, tangent)
        if free is not None and each is not None:
            besides = 6 * bytes_of(self.start[name] for name in self.layer)
            size = min(size, images_that_fit(free, each, besides))
        return max(1, size // self.method.batch_size)

    def parts(self, index: int) -> Iterator[torch.Tensor]:
        """Tensors of the task with this index: together they have the norm of its task vector."""
        return (tau[index] for tau in self.taus.values())

    def coefficients(self, granularity: str) -> torch.Tensor:
        """λ at the start, (tasks, 1) or (tasks, layers): a layer is a tensor. Raises UsageError for other words."""
        check_choice("granularity", granularity, ("task", "layer"))
        layers = len(self.layer) if granularity == "layer" else 1
        shape, dtype = (len(self.problem.tasks), layers), self.problem.dtype
        return torch.full(shape, self.method.coef, dtype=dtype, device=self.device)

    def effective(self, lam: torch.Tensor) -> torch.Tensor:
        """λ as it enters θ."""
        return lam.clamp(0, 1) if self.clamp else lam

    def update(self, name: str, lam: torch.Tensor, mask: Mask = unmasked) -> torch.Tensor:
        """m ∘ Σ_t λ_t τ_t of one tensor, for λ as it enters θ."""
        column = lam[:, self.layer[name] if lam.shape[1] > 1 else 0]  # (tasks,)
        tau = torch.tensordot(column, self.taus[name].to(column.dtype), dims=1)
        m = mask(name)
        return tau if m is None else m * tau

    @torch.no_grad()
    def vector(self, lam: torch.Tensor, mask: Mask = unmasked) -> TaskVector:
        """The merged vector, on the CPU."""
        lam = self.effective(lam)
        return TaskVector(vector={name: self.update(name, lam, mask).cpu() for name in self.layer})

    def backward(self, lam: torch.Tensor, numbers: Sequence[int], mask: Mask = unmasked) -> dict[str, float]:
        """Mean loss of each task on its batches of these numbers; adds ∂L/∂λ and ∂L/∂x to `.grad`.

        Raises NonFiniteLoss, before it adds anything, for a loss that is no number.
        """
        point = self.effective(lam.detach()).requires_grad_(lam.requires_grad)
        losses = self.backward_at(point, numbers, mask)
        if lam.requires_grad:
            self.effective(lam).backward(point.grad)
        return losses

    def backward_at(self, lam: torch.Tensor, numbers: Sequence[int], mask: Mask = unmasked) -> dict[str, float]:
        """`backward` for λ as it enters θ: no clamp."""
        with torch.no_grad():
            theta = {name: self.start[name] + self.update(name, lam, mask) for name in self.layer}
        for weight in theta.values():
            weight.requires_grad_()
        with matmul_precision(self.problem.precision):
            losses = self._losses(theta, numbers)
        if not all(math.isfinite(value) for value in losses.values()):
            raise NonFiniteLoss(f"the {'entropies' if self.loss == 'entropy' else 'losses'} are {losses}")
        for name in self.layer:
            gradient = theta.pop(name).grad
            if gradient is not None:  # a frozen tensor that the features do not see has none
                self.update(name, lam, mask).backward(gradient)
        return losses

    def _losses(self, theta: Mapping[str, torch.Tensor], numbers: Sequence[int]) -> dict[str, float]:
        """Mean loss of each task at θ, whose gradients are left in `.grad`."""
        batches = [(task, number) for number in numbers for task in self.problem.tasks]
        values = []
        for first in range(0, len(batches), self.together):
            chunk = batches[first : first + self.together]
            images = [self.batch(task, number) for task, number in chunk]
            features = features_at(self.encoder, theta, torch.cat(images), self.problem.precision)
            parts = features.split([len(batch) for batch in images])
            losses = [self.loss_of(*which, batch, part) for which, batch, part in zip(chunk, images, parts)]
            sum(losses[1:], start=losses[0]).backward()
            values += [loss.detach() for loss in losses]
        means = dict.fromkeys(self.problem.tasks, 0.0)
        for (task, _), value in zip(batches, torch.stack(values).tolist()):  # a GPU is waited for once
            means[task] += value / len(numbers)
        return means

    def batch(self, task: str, number: int) -> torch.Tensor:
        return self.images.batch(task, self.method.adapt_on, self.method.batch_size, number)

    def loss_of(self, task: str, number: int, images: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """mean_x H(q, p) of a task's batch of this number, which are these images with these features."""
        logits = self.heads[task](features)
        if self.loss == "entropy":
            return entropy(logits)
        if self.labelled:
            return F.cross_entropy(logits, self.labelled.labels(task, self.method.batch_size, number))
        with torch.no_grad():
            theta_t = expert_weights(self.problem, task, self.start)
            q = self.heads[task](features_at(self.encoder, theta_t, images, self.problem.precision)).softmax(-1)
        return F.cross_entropy(logits, q.argmax(-1) if self.loss == "expert_class" else q)
