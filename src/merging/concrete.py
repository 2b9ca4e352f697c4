"""Concrete subspace learning: a mask shared by all tasks, learned at test time (Tang et al., 2023, arXiv:2312.06173).

    θ = θ0 + m ∘ Σ_t λ_t τ_t,        min over the mask's logits x of the entropy of the predictions on unlabelled images

with a Concrete mask m (see concrete_mask.py) that is drawn anew at every step and, at the end, once and for all.

Concrete task arithmetic: λ = 0.3; Adam on x.
Concrete AdaMerging, one λ per task or per task and tensor: each meta step sets λ = 0.3, takes one step of Adam on λ at
rate 1 with the mask held fixed, and then one step of Adam on x, on other images, with that λ held fixed. Afterwards the
mask is frozen, λ starts again from 0.3, and Adam adapts it as in AdaMerging.

Both published codes merge for the inner step before they set λ = 0.3, so at the λ of the previous meta step, and apply
that gradient from 0.3 (`stale`). Where they clamp, they differentiate the clamp after λ was set, at 0.3, so that the
gradient in the clamped λ passes whole, even where the clamp had cut. `variant=original`: that, λ clamped to [0, 1], one
mask for the inner step and another for the outer one, 2000 meta steps; `fusion_bench`: that, no clamp, one mask for
both, 1000 meta steps; `fresh`: the original with the inner gradient at 0.3. Options that are None have the variant's
values.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from src import checkpoints
from src.checkpoints import VISUAL
from src.merging.adaptation import IMAGES, Adapting, Mask, MergedModel, NonFiniteLoss, schedule
from src.merging.base import Drawn, Merge, Problem, Scaled, scaled
from src.merging.concrete_mask import FINAL, ConcreteMask, mean_of, rescaled
from src.merging.registry import register
from src.merging.steps import Adaptation
from src.ranges import COUNT, FINITE, NON_NEGATIVE, NUMBER, POSITIVE, check_choice, given, option
from src.runtime.files import require_writable
from src.runtime.messages import UsageError
from src.runtime.paths import expanded


@dataclass(frozen=True)
class Published:
    """What a released code does, or one of them mended; see above."""

    mask_steps: int
    clamp: bool
    reuse_mask: bool
    stale: bool


VARIANTS = {
    "original": Published(2000, clamp=True, reuse_mask=False, stale=True),
    "fusion_bench": Published(1000, clamp=False, reuse_mask=True, stale=True),
    "fresh": Published(2000, clamp=True, reuse_mask=False, stale=False),
}
MASK_STEPS, STEPS = 2000, 1000


@dataclass
class Concrete(Adapting):
    """Options of both methods.

    final: the mask of the finished model, see concrete_mask.FINAL; "mean": accuracies are means over `draws` masks, and
        λ, where it is learned, is adapted under the first. mask_file: logits that another run kept, in the place of
        learning them; they may be of other tasks, but of the same `mode` and `adapt_on`.
    """

    temperature: float = option(0.5, POSITIVE)
    initial_logits: float = option(0.0, FINITE)
    mask_steps: int | None = option(None, NUMBER)
    mask_lr: float | None = option(None, NON_NEGATIVE)
    final: str = "seeded"
    draws: int = option(10, COUNT)
    mask_file: str | None = None

    def reads(self, masks_at: Callable[[str], Path], published_masks: Path | None = None) -> Path | None:
        return self._given

    @property
    def _given(self) -> Path | None:
        """The file of `mask_file`."""
        return expanded(self.mask_file, "method.mask_file") if self.mask_file else None

    def mask(self, problem: Problem, model: MergedModel) -> ConcreteMask:
        """The mask before it is learned, or that of `mask_file`; what is not trained, text-side tensors, has none.

        Raises CheckpointError for the mask of another model or protocol.
        """
        check_choice("final", self.final, FINAL)
        if self.final == "mean" and self.draws < 2:
            raise UsageError(f"draws: expected at least 2 for final=mean; got {self.draws}")
        masked = {name: problem.shapes[name] for name in problem.keys if name.startswith(VISUAL)}
        like = {name: torch.empty(shape, device="meta") for name, shape in masked.items()}
        where: dict[str, Any] = {"dtype": problem.dtype, "device": model.device}
        if given := self._given:
            logits_file = checkpoints.Checkpoint(given, like=like, kind="mask logits", model=problem.model)
            expected: dict[str, Any] = {"mode": problem.mode, "adapt_on": self.adapt_on}
            if problem.suite and problem.suite.drawn:
                expected["seed"] = problem.seed
            for key, value in expected.items():
                if (stored := logits_file.header["settings"].get(key)) != value:
                    raise checkpoints.CheckpointError(
                        f"{self.mask_file}: expected mask logits of {key} {value}, found those of {key} {stored}; "
                        "learn others by the same command without method.mask_file"
                    )
            logits = {name: tensor.to(**where) for name, tensor in logits_file.read(masked).items()}
        else:
            if problem.mask_path:
                require_writable(problem.mask_path(problem.label))
            logits = {name: torch.full(shape, self.initial_logits, **where) for name, shape in masked.items()}
        for x in logits.values():
            x.requires_grad_()
        return ConcreteMask(logits, self.temperature, problem.seed or 0)

    def finished(self, problem: Problem, adaptation: Adaptation, lam: torch.Tensor, mask: ConcreteMask) -> Merge:
        """The Merge of what was learned; it keeps the logits for later runs."""
        model = adaptation.model
        source = checkpoints.header(self._given)["settings"] if self._given else adaptation.settings
        about = {
            "final": self.final,
            "density": mean_of(mask.final(name, self.final) for name in mask.logits),
            "probability": mask.density(),
            "by_tensor": {name: float(mask.final(name, self.final).mean()) for name in mask.logits},
            "learned_on": {key: source.get(key) for key in ("tasks", "adapt_on")},
        }
        learned = None if self.mask_file else Logits(problem, mask, adaptation.settings)
        shared: dict[str, Any] = {"settings": (1.0,), "storage_bits": problem.storage_merged(), "logits": learned}
        shared["adaptation"] = adaptation.course(about)
        if self.final == "mean":

            def draw(number: int) -> Merge:
                return scaled(problem, model.vector(lam, fixed(mask, "mean", number)), (1.0,))

            return DrawnMasks(draw=draw, draws=self.draws, **shared)
        return FixedMask(tau=model.vector(lam, fixed(mask, self.final)), **shared)


@dataclass(frozen=True)
class Logits:
    """Those of a mask that was learned, and the settings that it was learned with."""

    problem: Problem
    mask: ConcreteMask
    settings: dict[str, Any]

    def save(self) -> dict[str, Any]:
        """Keep them for `mask_file`; gives the file."""
        if self.problem.mask_path is None:
            return {}
        path = self.problem.mask_path(self.problem.label)
        header = {"model": self.problem.model, "mode": self.problem.mode, "seed": self.problem.seed}
        logits = {name: x.detach() for name, x in self.mask.logits.items()}
        checkpoints.save(path, logits, header | {"settings": self.settings}, kind="mask logits")
        return {"mask_file": path}


@dataclass(kw_only=True)
class KeepsLogits(Merge):
    """A merge with a learned mask, whose logits later runs can load; None where they were loaded themselves."""

    logits: Logits | None = None

    def finish(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        return self.logits.save() if self.logits else {}


@dataclass(kw_only=True)
class FixedMask(KeepsLogits, Scaled):
    """One final mask."""


@dataclass(kw_only=True)
class DrawnMasks(KeepsLogits, Drawn):
    """Means over draws of the mask."""


def fixed(mask: ConcreteMask, kind: str, draw: int = 0) -> Callable[[str], torch.Tensor | None]:
    """name -> its rescaled final mask, or None; made once."""
    return {name: rescaled(mask.final(name, kind, draw)) for name in mask.logits}.get


@register(
    "concrete_task_arithmetic",
    "clip_concrete_task_arithmetic",
    "concrete_subspace/clip_concrete_task_arithmetic",
    title="Concrete TA",
    paper="2312.06173",
    published={"concrete": "Concrete TA"},
    compared=True,
    stage="adaptation",
    needs=IMAGES,
)
@dataclass
class ConcreteTaskArithmetic(Concrete):
    """Concrete task arithmetic: the task vectors' sum under one mask, learned at test time."""

    def merge(self, problem: Problem) -> Merge:
        usual_steps, usual_rate = schedule(problem, self.mask_steps, MASK_STEPS, "concrete")
        steps = given(self.mask_steps, 0 if self.mask_file else usual_steps)
        rate = given(self.mask_lr, usual_rate)
        method = replace(self, mask_steps=steps, mask_lr=rate)
        model = MergedModel(problem, method)
        mask, lam = method.mask(problem, model), model.coefficients("task")
        adam = torch.optim.Adam(mask.logits.values(), rate)
        adaptation = Adaptation(model, {"mask": steps}, lam, {"mask": adam}, mask)

        def step(index: int) -> dict[str, float]:
            adam.zero_grad()
            entropies = model.backward(lam, [index], mask.sample(index))
            adam.step()
            return entropies

        adaptation.run("mask", step, lambda: model.vector(lam, fixed(mask, method.final)))
        return method.finished(problem, adaptation, lam, mask)


@dataclass
class ConcreteAdaMerging(Concrete):
    """inner_lr: of the one step on λ within a meta step; steps, lr: of the adaptation of λ under the frozen mask."""

    granularity: ClassVar[str]

    variant: str = "original"
    inner_lr: float = option(1.0, NON_NEGATIVE)
    steps: int | None = option(None, NUMBER)
    lr: float | None = option(None, NON_NEGATIVE)
    clamp: bool | None = None
    reuse_mask: bool | None = None
    stale: bool | None = None

    def merge(self, problem: Problem) -> Merge:
        check_choice("variant", self.variant, VARIANTS)
        published = VARIANTS[self.variant]
        usual_meta, usual_mask_lr = schedule(problem, self.mask_steps, published.mask_steps, "concrete")
        steps, usual_lr = schedule(problem, self.steps, STEPS, "concrete")
        resolved = replace(
            self,
            mask_steps=given(self.mask_steps, 0 if self.mask_file else usual_meta),
            mask_lr=given(self.mask_lr, usual_mask_lr),
            steps=steps,
            lr=given(self.lr, usual_lr),
            clamp=given(self.clamp, published.clamp),
            reuse_mask=given(self.reuse_mask, published.reuse_mask),
            stale=given(self.stale, published.stale),
        )
        return MetaLearning(resolved, problem).merge()


class MetaLearning:
    """The mask learned with an inner step on λ in each of its own, and λ adapted under the frozen mask.

    method: without an option that is None.
    """

    def __init__(self, method: ConcreteAdaMerging, problem: Problem):
        options: Any = method  # whose optional fields are all given
        self.method, self.problem, self.meta_steps = method, problem, int(options.mask_steps)
        self.model = MergedModel(problem, method, clamp=options.clamp)
        self.mask = method.mask(problem, self.model)
        self.lam = self.model.coefficients(method.granularity).requires_grad_()
        self.inner = torch.optim.Adam([self.lam], options.inner_lr)
        self.outer = torch.optim.Adam(self.mask.logits.values(), options.mask_lr)
        self.last = torch.optim.Adam([self.lam], options.lr)
        optimizers = {"inner": self.inner, "outer": self.outer, "last": self.last}
        phases = {"meta": self.meta_steps, "lambda": options.steps}
        self.adaptation = Adaptation(self.model, phases, self.lam, optimizers, self.mask)

    def merge(self) -> Merge:
        self.adaptation.run("meta", self.meta_step, lambda: self.model.vector(self.lam, self.fixed()))
        if self.adaptation.begins("lambda"):
            self.restart()
        frozen = self.fixed()
        self.adaptation.run(
            "lambda", lambda index: self.step(index, frozen), lambda: self.model.vector(self.lam, frozen)
        )
        return self.method.finished(self.problem, self.adaptation, self.lam, self.mask)

    def fixed(self) -> Mask:
        """The final mask of the logits as they are."""
        return fixed(self.mask, self.method.final)

    def restart(self) -> None:
        """λ at its start."""
        with torch.no_grad():
            self.lam.fill_(self.method.coef)

    def meta_step(self, index: int) -> dict[str, float]:
        """One step on λ from its start with the mask held fixed, and one on the mask with that λ held fixed."""
        outside = self.mask.sample(("outer", index))
        inside = outside if self.method.reuse_mask else self.mask.sample(("inner", index))
        before = self.lam.detach().clone(), copy.deepcopy(self.inner.state_dict())
        if not self.method.stale:
            self.restart()
        self.inner.zero_grad()
        point = self.model.effective(self.lam.detach()).requires_grad_()
        self.model.backward_at(point, [2 * index], lambda name: detached(inside(name)))
        self.restart()
        self.model.effective(self.lam).backward(point.grad)
        self.inner.step()
        self.outer.zero_grad()
        try:
            entropies = self.model.backward(self.lam.detach(), [2 * index + 1], outside)
        except NonFiniteLoss:  # undo the inner step: what is kept is the state before the meta step
            with torch.no_grad():
                self.lam.copy_(before[0])
            self.inner.load_state_dict(before[1])
            raise
        self.outer.step()
        return entropies

    def step(self, index: int, frozen: Mask) -> dict[str, float]:
        """One step on λ under the frozen mask."""
        self.last.zero_grad()
        entropies = self.model.backward(self.lam, [2 * self.meta_steps + index], frozen)
        self.last.step()
        return entropies


def detached(mask: torch.Tensor | None) -> torch.Tensor | None:
    return None if mask is None else mask.detach()


@register(
    "concrete_task_wise_adamerging",
    "clip_concrete_task_wise_adamerging",
    "concrete_subspace/clip_concrete_task_wise_adamerging",
    title="Concrete AdaMerging, task-wise",
    paper="2312.06173",
    published={"concrete": "TW Concrete AM"},
    stage="adaptation-more",
    needs=IMAGES,
)
@dataclass
class TaskWiseConcreteAdaMerging(ConcreteAdaMerging):
    """Concrete AdaMerging with one λ per task: a shared mask learned together with λ."""

    granularity: ClassVar[str] = "task"


@register(
    "concrete_layer_wise_adamerging",
    "clip_concrete_layer_wise_adamerging",
    "concrete_subspace/clip_concrete_layer_wise_adamerging",
    title="Concrete AdaMerging, layer-wise",
    paper="2312.06173",
    published={"concrete": "LW Concrete AM", "concrete:generalisation": "Concrete AM"},
    stage="adaptation",
    needs=IMAGES,
)
@dataclass
class LayerWiseConcreteAdaMerging(ConcreteAdaMerging):
    """Concrete AdaMerging with one λ per task and tensor: a shared mask learned together with λ."""

    granularity: ClassVar[str] = "layer"
