"""Representation Surgery: a small correction of each task's features (Yang et al., 2024, arXiv:2402.02705).

    f ← f − U_t ReLU(D_t f)        min over D_t (rank, d), U_t (d, rank) of mean_x ‖f_t(x) − f(x)‖₁ / d

of the features f of a merged model, `base`, on unlabelled images of task t, whose own model has the features f_t. The
encoder stays; each task has a pair of matrices between encoder and head. D_t starts uniform in ±1/√d and U_t at 0, so
that the first model is the base and the first loss its representation bias. Adam, one step on each batch of each task:
no task's step depends on another's.

Published: rank 16; 500 rounds of two batches of 16 images a task, of the test images that are scored afterwards; the
base is task arithmetic or TIES with λ = 0.3, the average, or AdaMerging.

As the adapters are fit to one model, validation does not choose the base's coefficient: it is `coefficient`, or the
only one that the base has. `+search.coefficient=[0.2,0.3]` tries several.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from src.evaluation import Line
from src.merging.adaptation import IMAGES, SPLITS, NonFiniteLoss, expert_weights, schedule
from src.merging.base import Drawn, Merge, Problem, Setting, Variant
from src.merging.registry import register
from src.merging.steps import Steps
from src.merging.wrapped import Based
from src.ranges import COUNT, FINITE, NON_NEGATIVE, NUMBER, check_choice, given, option
from src.runtime.messages import UsageError
from src.runtime.precision import features_at, matmul_precision
from src.runtime.seeds import event_seed
from src.task_vectors import TaskVector
from src.tensors import Weights, moved

STEPS = 1000
PAPER, RUN = "Representation Surgery", "Surgery (500 steps, test images)"  # as published.csv has them


@dataclass(frozen=True)
class Adapter:
    """f ↦ f − U ReLU(D f) of features (N, d). down: D, (rank, d). up: U, (d, rank)."""

    down: Tensor
    up: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        down, up = self.down.to(features), self.up.to(features)
        return features - F.relu(features @ down.T) @ up.T

    @classmethod
    def start(cls, rank: int, head: torch.nn.Module, seed: int) -> "Adapter":
        """U = 0, and D drawn. head: that of the task, whose weight is (classes, d)."""
        weight: Any = head.weight
        d, where = weight.shape[1], dict(dtype=weight.dtype, device=weight.device)
        down = (2 * torch.rand(rank, d, generator=torch.Generator().manual_seed(seed)) - 1) / math.sqrt(d)
        return cls(down.to(**where).requires_grad_(), torch.zeros(d, rank, **where).requires_grad_())

    def fixed(self) -> "Adapter":
        """As it now is, on the CPU."""
        return Adapter(self.down.detach().cpu().clone(), self.up.detach().cpu().clone())


@dataclass(kw_only=True)
class Repaired(Merge):
    """The models of another merge with an adapter for each task."""

    base: Merge
    adapters: Mapping[str, Adapter]
    per_task: bool = True

    def vector(self, task: str, setting: Setting) -> TaskVector:
        """That of the encoder, which for most bases is the same for all tasks."""
        return self.base.vector(task, setting)

    def lines(self, task: str, settings: Sequence[Setting]) -> list[Line]:
        return [replace(line, adapter=self.adapters[task]) for line in self.base.lines(task, settings)]

    def adapter(self, task: str, setting: Setting) -> Adapter:
        return self.adapters[task]

    def finish(self, chosen: Mapping[str, Setting]) -> dict[str, Any]:
        return self.base.finish(chosen)


@register(
    "surgery",
    title="Surgery, task arithmetic",
    paper="2402.02705",
    stage="methods-adapting",
    published={
        PAPER: f"task arithmetic + {RUN}",
        "FeatCal": "task arithmetic + Surgery",
        "WUDI-Merging": "Representation Surgery",
    },
    needs=IMAGES,
    variants=(
        Variant(
            "Surgery, weight averaging", {"base": "average"}, {PAPER: f"weight averaging + {RUN}"}, "methods-adapting"
        ),
        Variant(
            "Surgery, AdaMerging", {"base": "adamerging"}, {PAPER: f"layer-wise AdaMerging + {RUN}"}, "methods-adapting"
        ),
    ),
)
@dataclass
class Surgery(Based):
    """Surgery: another method's model, whose features a small adapter of each task corrects.

    coefficient: the base's, where it has several. adapt_on: as in Adapting.
    """

    coefficient: float = option(0.3, FINITE)
    rank: int = option(16, COUNT)
    adapt_on: str = "test"
    batch_size: int = option(16, COUNT)
    steps: int | None = option(None, NUMBER)
    lr: float | None = option(None, NON_NEGATIVE)

    def merge(self, problem: Problem) -> Merge:
        """Raises UsageError for a base whose features cannot be corrected."""
        problem.unlabelled(self)
        check_choice("adapt_on", self.adapt_on, SPLITS)
        steps, usual_lr = schedule(problem, self.steps, STEPS, "surgery")
        lr = given(self.lr, usual_lr)
        base = self.base_method()
        if isinstance(base, Surgery):
            raise UsageError("base: expected a method without adapters; got surgery")
        merge = base.merge(replace(problem, progress=problem.progress.part(0)))
        if isinstance(merge, Drawn):
            raise UsageError(
                f"base: surgery fits adapters to one encoder; {self.base} is a mean over random ones: "
                "take another base, such as sum or ties"
            )
        setting = merge.settings[0] if len(merge.settings) == 1 else self.coefficient
        return Operation(replace(self, steps=steps, lr=lr), problem, merge, setting).merge()


class Operation:
    """The adapters of each task, learned on the features of one merge at one setting. method: with steps and rate."""

    def __init__(self, method: Surgery, problem: Problem, base: Merge, setting: Setting):
        self.method, self.problem, self.base, self.setting = method, problem, base, setting
        self.images = problem.unlabelled(method)
        self.encoder = self.images.encoder()
        self.start = {name: tensor.detach() for name, tensor in self.encoder.state_dict().items()}  # θ0
        device, seed = self.start[problem.keys[0]].device, problem.seed or 0
        heads = {task: self.images.head(task).to(device) for task in problem.tasks}
        self.adapters = {
            task: Adapter.start(method.rank, head, event_seed(seed, "surgery", task)) for task, head in heads.items()
        }
        self.shared = None if base.per_task else self.weights(problem.tasks[0])

    def weights(self, task: str) -> Weights:
        """θ of the base's model."""
        return moved(self.start, self.base.vector(task, self.setting).vector, 1.0)

    def merge(self) -> Merge:
        """The base with what was learned."""
        tensors = {f"{name}/{t}": x for t, adapter in self.adapters.items() for name, x in vars(adapter).items()}
        adam = torch.optim.Adam(tensors.values(), float(self.method.lr or 0))
        about = {"coefficient of the base": self.setting}
        steps = Steps(
            self.problem, self.method, {"surgery": int(self.method.steps or 0)}, tensors, {"adam": adam}, about
        )
        steps.resume()

        def step(index: int) -> dict[str, float]:
            adam.zero_grad()
            losses = {task: self.loss(task, index) for task in self.adapters}
            values = dict(zip(losses, torch.stack(list(losses.values())).tolist()))
            if not all(map(math.isfinite, values.values())):
                raise NonFiniteLoss(f"the losses are {values}")
            for loss in losses.values():
                loss.backward()
            adam.step()
            return values

        steps.run("surgery", step, self.lines)
        merge = self.repaired()
        merge.adaptation = steps.course()
        return merge

    def loss(self, task: str, number: int) -> Tensor:
        """mean_x ‖f_t(x) − (f(x) − U ReLU(D f(x)))‖₁ / d of a batch of the task."""
        images = self.images.batch(task, self.method.adapt_on, self.method.batch_size, number)
        precision = self.problem.precision
        with torch.no_grad(), matmul_precision(precision):
            f = features_at(self.encoder, self.shared or self.weights(task), images, precision)
            f_t = features_at(self.encoder, expert_weights(self.problem, task, self.start), images, precision)
        return (f_t - self.adapters[task](f)).abs().mean()

    def repaired(self) -> Repaired:
        adapters = {task: adapter.fixed() for task, adapter in self.adapters.items()}
        numbers = sum(a.down.numel() + a.up.numel() for a in adapters.values())
        return Repaired(
            settings=(self.setting,),
            storage_bits=self.base.storage_bits + 32 * numbers,
            info=self.base.info,
            base=self.base,
            adapters=adapters,
        )

    def lines(self) -> dict[str, Line]:
        """Each task's model, to be watched."""
        repaired = self.repaired()
        return {task: repaired.lines(task, repaired.settings)[0] for task in self.adapters}
