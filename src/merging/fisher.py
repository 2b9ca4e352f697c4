"""Fisher merging (Matena & Raffel, 2022, arXiv:2111.09832): a weight counts where its task's predictions hang on it.

    θ = Σ_t λ_t F_t ∘ θ_t / Σ_t λ_t F_t,        F_t = E_x E_{y ~ p(y|x; θ_t)} (∇ log p(y|x; θ_t))²,     λ_t = 1 / ‖F_t‖

with the square of each weight's own derivative: the diagonal of the Fisher information at θ_t. x are `images`
unlabelled images of each task, 256 training images as published. `normalise=false`: λ_t = 1.

`estimator=diagonal`: this. The derivative is that of one image and one class; its mean over classes is exact
(`classes=all`, as in the authors' code) or over one class drawn from p for each image (`sampled`).
`estimator=published`: what MergeLM and FusionBench compute, the square of one gradient of a whole batch of 32,

    F_t = 1/n Σ_batches (∇ Σ_{x in batch} Σ_y √p(y|x) log p(y|x))²        (√p held fixed)

which is the square of a sum, not a sum of squares: images and classes cancel, and it is not a Fisher information.

`floor` keeps a weight that no task depends on from being 0/0: there the merge is an average, weighted by λ_t. The
authors take max(F_t, floor) and 1 / ‖F_t‖ (`floor_by=max`; their default floors the first model alone), MergeLM and
FusionBench F_t + floor and 1 / (‖F_t‖ + floor) (`sum`), with a floor of 1e-6.

On a tangent model p is that of f_lin, whose derivatives are f's at θ0, weighted by what f_lin predicts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from src.merging.adaptation import IMAGES
from src.merging.base import Merge, Method, Problem, scaled
from src.merging.registry import register
from src.ranges import COUNT, POSITIVE, check_choice, option
from src.runtime.seeds import event_seed
from src.task_vectors import TaskVector
from src.tensors import Weights

Logits = Callable[[Weights, torch.Tensor], torch.Tensor]  # (θ_t, images) -> (images, classes)


def diagonal(
    logits: Logits, theta: Weights, images: torch.Tensor, classes: str, pass_size: int, generator: torch.Generator
) -> Weights:
    """Σ_x E_y (∇ log p(y|x))² of these images. pass_size: pairs of image and class that are differentiated at once."""

    def log_likelihood(theta: Weights, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return logits(theta, image[None]).log_softmax(-1)[0].gather(0, label[None])[0]

    with torch.no_grad():
        p = logits(theta, images).softmax(-1)  # (images, classes)
    if classes == "sampled":
        labels = torch.multinomial(p.cpu(), 1, generator=generator).to(p.device)  # (images, 1)
        weights = torch.ones_like(labels, dtype=p.dtype)
    else:
        labels, weights = torch.arange(p.shape[1], device=p.device).expand(p.shape), p
    rows = torch.arange(len(images), device=p.device)[:, None].expand(labels.shape)
    total = {name: torch.zeros_like(weight) for name, weight in theta.items()}
    pairs = (part.flatten().split(pass_size) for part in (rows, labels, weights))
    for row, label, weight in zip(*pairs, strict=True):
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no rule for vmap
            gradients = vmap(grad(log_likelihood), (None, 0, 0))(theta, images[row], label)
        for name, gradient in gradients.items():
            total[name] += torch.tensordot(weight, gradient.square(), dims=1)
    return total


def published(logits: Logits, theta: Weights, images: torch.Tensor) -> Weights:
    """(∇ Σ_x Σ_y √p log p)² of these images."""

    def objective(theta: Weights) -> torch.Tensor:
        scores = logits(theta, images)
        return (scores.softmax(-1).detach().sqrt() * scores.log_softmax(-1)).sum()

    return {name: gradient.square() for name, gradient in grad(objective)(theta).items()}


def zeros(problem: Problem) -> Weights:
    return {key: torch.zeros(shape, dtype=problem.dtype) for key, shape in problem.shapes.items()}


@register(
    "fisher",
    title="Fisher merging",
    paper="2111.09832",
    stage="methods",
    published={"concrete": "Fisher Merging", "fusionbench": "Fisher Merging", "WUDI-Merging": "Fisher Merging"},
    needs=IMAGES,
)
@dataclass
class Fisher(Method):
    """Fisher merging: weights averaged by how much each task's predictions depend on them.

    images: of each task, of `split`. batch_size: images of one batch. pass_size: images of one pass for their single
    derivatives, each of which is as large as the weights in scope.
    """

    estimator: str = "diagonal"
    classes: str = "sampled"
    images: int = option(256, COUNT)
    split: str = "train"
    batch_size: int = option(32, COUNT)
    pass_size: int = option(8, COUNT)
    floor: float = option(1e-6, POSITIVE)
    floor_by: str = "max"
    normalise: bool = True

    def merge(self, problem: Problem) -> Merge:
        check_choice("estimator", self.estimator, ("diagonal", "published"))
        check_choice("classes", self.classes, ("sampled", "all"))
        check_choice("split", self.split, ("train", "val", "test"))
        check_choice("floor_by", self.floor_by, ("max", "sum"))
        encoder = problem.unlabelled(self).encoder()
        weighted, total = zeros(problem), zeros(problem)
        norms = {}
        for task in tqdm(problem.tasks, desc="fisher", leave=False, disable=None):
            information = self.information(problem, task, encoder)
            norms[task] = float(torch.stack([f.double().norm() for f in information.values()]).norm())
            lam = 1 / self.floored(torch.tensor(norms[task])) if self.normalise else 1.0
            for key, f in information.items():
                f = lam * self.floored(f)
                weighted[key] += f * problem.tensor(task, key)
                total[key] += f
        merged = TaskVector(vector={key: weighted[key] / total[key] for key in problem.keys})
        return scaled(problem, merged, [1.0], fisher_norm=norms)

    def floored(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(min=self.floor) if self.floor_by == "max" else x + self.floor

    def information(self, problem: Problem, task: str, encoder: torch.nn.Module) -> Weights:
        """F_t, on the CPU."""
        start = encoder.state_dict()
        head = problem.unlabelled(self).head(task).to(start[problem.keys[0]].device)
        theta = {key: problem.finetuned[task][key].to(start[key]) for key in problem.keys}

        def logits(theta: Weights, images: torch.Tensor) -> torch.Tensor:
            return head(functional_call(encoder, theta, (images,)))

        estimate: Callable[[torch.Tensor], Weights] = partial(published, logits, theta)
        if self.estimator == "diagonal":
            generator = torch.Generator().manual_seed(event_seed(problem.seed or 0, "fisher", task))
            estimate = partial(
                diagonal, logits, theta, classes=self.classes, pass_size=self.pass_size, generator=generator
            )
        total = {key: torch.zeros_like(weight) for key, weight in theta.items()}
        for images in self.batches(problem, task):
            for key, f in estimate(images).items():
                total[key] += f
        return {key: (f / self.images).cpu() for key, f in total.items()}

    def batches(self, problem: Problem, task: str) -> Iterator[torch.Tensor]:
        """`images` images of a task."""
        left, number = self.images, 0
        while left > 0:
            batch = problem.unlabelled(self).batch(task, self.split, self.batch_size, number)[:left]
            yield batch
            left, number = left - len(batch), number + 1
