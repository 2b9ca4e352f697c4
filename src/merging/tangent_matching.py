"""Tangent matching: the vector whose features are nearest to every task's own, by conjugate gradients.

For f_lin(x; θ0 + Δ) = f(x; θ0) + J(x) Δ, over images x of each task t,

    min_Δ  Σ_t E ‖J(x) (Δ − τ_t)‖²_H + μ ‖Δ − Δ_init‖²
    (Σ_t G_t + μ I) Δ = Σ_t G_t τ_t + μ Δ_init,        G_t = E J(x)ᵀ H J(x)

After MaTS (Tam et al., 2023, arXiv:2312.04339), which solves it with Fishers factored by layer in the place of G_t.
RegMean is the same with each linear map by itself, its inputs for J; here nothing is left out: for a tangent model Δ is
the exact minimum of the distance between features, as far as the iterations go, and what RegMean lacks of it is the
price of taking layers one by one. Where vectors are disentangled, J(x) τ_s = 0 on images of t ≠ s, Σ_t τ_t leaves
nothing of the sum.

metric: "features", H = I; or "gauss_newton", H of the cross-entropy at what the task's own model says: the squared
distance is then twice the second order of the Kullback-Leibler divergence from the task's predictions p,

    H = J_zᵀ (diag p − p pᵀ) J_z,        z the logits of the task's head, J_z = ∂z/∂f, at f_lin(x; θ_t)

init: "sum" (α Σ_t τ_t), "average". An iteration takes one jvp and one vjp over all images; `iterations` are the counts
at which the solution is looked at, and validation chooses among them: stopping early is what μ is for.

precondition: "kronecker", M⁻¹ of preconditioner.py, which takes one pass more; or "none". The optimum is the same where
it is one point, and is reached with fewer products: on mini six iterations leave as little of the sum as 32 without.
With μ = 0 it is the minimum nearest to Δ_init, as M measures it; or as weights do without M, where what no image sees
stays at Δ_init.

Standard models. θ0 + Δ is then evaluated in f itself, and its J is not constant. G_t is still taken at θ0, and f_lin in
the place of f(x; θ_t) in H: the merge is the optimum for the linearization of each task's model, and as good for the
models themselves as that is. It is allowed because that gap is of interest; no bound holds there.

Memory: the vectors Σ_t G_t τ_t, the residual, the direction, its product, and the solution at each count; images once;
M's factors, which of ViT-B/32 take four times as much room as its weights, and as much again while they are inverted.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp
from tqdm import tqdm

from src.curvature import Curvature, measure
from src.linearize import forward_and_jvp
from src.merging.adaptation import IMAGES
from src.merging.base import Merge, Method, Problem, Setting, Unlabelled
from src.merging.inputs import Models, gather
from src.merging.preconditioner import Kronecker
from src.merging.registry import register
from src.merging.task_arithmetic import multi_task_vector
from src.ranges import COUNT, FINITE, NON_NEGATIVE, NUMBER, POSITIVE, check_choice, option
from src.runtime.messages import UsageError
from src.runtime.seeds import event_seed
from src.task_vectors import TaskVector


def curvature(head: nn.Module, features: Tensor, direction: Tensor) -> Tensor:
    """H · direction of each image, both (images, D): H of the cross-entropy at these features."""
    terms = jvp(head, (features,), (direction,))
    p, change = terms[0].softmax(-1), terms[1]
    return vjp(head, features)[1](p * (change - (p * change).sum(-1, keepdim=True)))[0]


class Products:
    """G_t v of the tasks of a problem, on their images. Vectors are on the model's device."""

    def __init__(self, problem: Problem, images: Unlabelled, method: "TangentMatching"):
        self.problem, self.models, self.batch_size = problem, Models(problem, images), method.batch_size
        self.device = self.models.start[problem.keys[0]].device
        self.images = {task: gather(images, task, method.split, method.images) for task in problem.tasks}
        self.heads: dict[str, nn.Module] = {}
        self.features: dict[str, list[Tensor]] = {}  # f_lin(x; θ_t), where H depends on it
        if method.metric == "gauss_newton":
            for task in problem.tasks:
                self.heads[task] = images.head(task).to(self.device).requires_grad_(False)
                terms = [self.terms(self.own(task), batch) for batch in self.batches(task)]
                self.features[task] = [f0 + slope for f0, slope in terms]

    @cached_property
    def width(self) -> int:
        """D, of the features."""
        first = self.batches(self.problem.tasks[0])[0]
        with torch.no_grad():
            return functional_call(self.models.function, self.models.start, (first,)).shape[-1]

    def own(self, task: str) -> TaskVector:
        """τ_t"""
        return self.problem.vector(task).to(self.device)

    def batches(self, task: str) -> Sequence[Tensor]:
        return self.images[task].split(self.batch_size)

    def terms(self, v: TaskVector, images: Tensor) -> tuple[Tensor, Tensor]:
        """f(x; θ0) and J(x) v, both (images, D)."""
        return forward_and_jvp(self.models.function, self.models.start, v.vector, images)

    def pulled_back(self, images: Tensor, g: Tensor) -> TaskVector:
        """Σ_x J(x)ᵀ g_x"""
        start = {key: self.models.start[key].detach().requires_grad_() for key in self.problem.keys}
        features = functional_call(self.models.function, {**self.models.start, **start}, (images,))
        gradients = torch.autograd.grad(features, list(start.values()), g, allow_unused=True)
        parts = zip(start.items(), gradients, strict=True)
        return TaskVector(vector={key: torch.zeros_like(w) if part is None else part for (key, w), part in parts})

    def curvature(self) -> Curvature:
        """The mean over tasks of the factors of G_t."""
        start = {name: self.models.start[name] for name in self.problem.keys}
        mean = Curvature()
        try:
            for task in self.problem.tasks:
                mean.add(measure(self.models.function, start, self.directed(task)), 1 / len(self.problem.tasks))
        except UsageError as error:  # of layers whose inputs cannot be told
            raise UsageError(f"precondition: no Kronecker factors; take method.precondition=none. {error}") from error
        return mean

    def directed(self, task: str) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, v): v of covariance H for each image, seeded. Of the cross-entropy, its derivative at a label drawn
        from what the task's own model says."""
        generator = torch.Generator().manual_seed(event_seed(self.problem.seed or 0, "curvature", task))
        for number, batch in enumerate(self.batches(task)):
            if self.heads:
                f = self.features[task][number]
                terms = vjp(self.heads[task], f)
                p, pull_back = terms[0].softmax(-1), terms[1]
                label = torch.multinomial(p.cpu(), 1, generator=generator).to(p.device)
                yield batch, pull_back(torch.zeros_like(p).scatter_(1, label, 1.0) - p)[0]
            else:
                v = torch.randn(len(batch), self.width, generator=generator, dtype=self.problem.dtype)
                yield batch, v.to(self.device)

    def of(self, task: str, v: TaskVector) -> TaskVector:
        """G_t v"""
        return total(self.of_batch(task, v, number) for number in range(len(self.batches(task))))

    def of_batch(self, task: str, v: TaskVector, number: int) -> TaskVector:
        """The part of G_t v that the `number`-th batch gives."""
        images = self.batches(task)[number]
        g = self.terms(v, images)[1]
        if self.heads:
            g = curvature(self.heads[task], self.features[task][number], g)
        return self.pulled_back(images, g / len(self.images[task]))


@dataclass(kw_only=True)
class Iterates(Merge):
    """One model for all tasks; the settings are the numbers of iterations."""

    vectors: dict[int, TaskVector]

    def vector(self, task: str, setting: Setting) -> TaskVector:
        return self.vectors[setting]


@register("tangent_matching", title="tangent matching", needs=IMAGES, stage="methods")
@dataclass
class TangentMatching(Method):
    """Tangent matching: the vector whose features, in the tangent model, are nearest to all tasks' own.

    init: "sum", scaled by `alpha`, or "average". mu: μ, in units of G_t's entries. damping: of the preconditioner's
    factors, as a share of their size.

    iterations: in ascending order; 0 is the start. images: of each task, of `split`; batch_size: of one pass.
    """

    metric: str = "features"
    init: str = "sum"
    alpha: float = option(0.3, FINITE)
    mu: float = option(0.0, NON_NEGATIVE)
    precondition: str = "kronecker"
    damping: float = option(1e-3, POSITIVE)
    iterations: list[int] = option([1, 2, 4, 8, 16], NUMBER)
    images: int = option(256, COUNT)
    split: str = "train"
    batch_size: int = option(64, COUNT)

    def merge(self, problem: Problem) -> Merge:
        check_choice("metric", self.metric, ("features", "gauss_newton"))
        check_choice("init", self.init, ("sum", "average"))
        check_choice("precondition", self.precondition, ("kronecker", "none"))
        check_choice("split", self.split, ("train", "val", "test"))
        if self.iterations != sorted(self.iterations):
            raise UsageError(f"iterations: expected numbers of iterations in ascending order; got {self.iterations}")
        products = Products(problem, problem.unlabelled(self), self)
        share = self.alpha if self.init == "sum" else 1 / len(problem.tasks)
        start = share * multi_task_vector(problem).to(products.device)
        vectors, errors = self.solve(problem, products, start)
        return Iterates(
            vectors=vectors,
            settings=tuple(vectors),
            storage_bits=problem.storage_merged(),
            info={"images": {task: len(own) for task, own in products.images.items()}, "errors": errors},
        )

    def solve(
        self, problem: Problem, products: Products, start: TaskVector
    ) -> tuple[dict[int, TaskVector], list[float]]:
        """Δ at each number of iterations, on the CPU, and the minimised sum at 0, 1, 2, ... iterations.

        Where the residual is 0 up to rounding it stops: the counts that are left would be of the same Δ.
        """

        def left(v: TaskVector) -> TaskVector:
            """(Σ_t G_t + μ I) v"""
            return total(products.of(task, v) for task in problem.tasks) + self.mu * v

        errors = [0.0]

        def residual(task: str) -> TaskVector:
            """G_t (τ_t − Δ_init)"""
            away = products.own(task) - start
            product = products.of(task, away)
            errors[0] += away.dot(product)
            return product

        none = self.precondition == "none"
        solved: Callable[[TaskVector], TaskVector] = (  # M⁻¹
            (lambda r: r) if none else Kronecker(products.curvature(), self.damping, self.mu / len(problem.tasks))
        )
        delta = start
        r = total(residual(task) for task in problem.tasks)
        p = solved(r)
        rr = r.dot(p)  # rᵀ M⁻¹ r
        vectors = {0: start.to("cpu")} if 0 in self.iterations else {}
        least = rr * torch.finfo(problem.dtype).eps ** 2
        for k in tqdm(range(1, self.iterations[-1] + 1), desc=type(self).name, leave=False, disable=None):
            if rr <= least:
                vectors[k - 1] = delta.to("cpu")
                break
            q = left(p)
            step = rr / p.dot(q)
            delta, r = delta + step * p, r - step * q
            errors.append(errors[-1] - step * rr)
            z = solved(r)
            before, rr = rr, r.dot(z)
            p = z + (rr / before) * p
            if k in self.iterations:
                vectors[k] = delta.to("cpu")
        return vectors, errors


def total(vectors: Iterator[TaskVector]) -> TaskVector:
    """Their sum, in order."""
    total = next(vectors)
    for vector in vectors:
        total = total + vector
    return total
