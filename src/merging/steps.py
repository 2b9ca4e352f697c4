"""The steps of what a method learns: resumed where they stopped, shown, watched and recorded."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol, SupportsFloat, cast

import torch
from tqdm import tqdm

from src import checkpoints, state_files
from src.merging.adaptation import MergedModel, NonFiniteLoss
from src.merging.base import Method, Problem, Watchable
from src.runtime import results
from src.runtime.distributed import broadcast, from_primary, is_primary
from src.runtime.files import require_writable
from src.runtime.parallel import in_worker
from src.runtime.signals import until_stopped

KEPT, KEPT_LAYERS = 200, 20  # most points of a curve in a result, and of λ by layer


class LearnedMask(Protocol):
    """A mask by tensor, of which an adaptation keeps the logits and records the density."""

    logits: dict[str, torch.Tensor]

    def density(self) -> float: ...


class Steps:
    """The steps of something that is learned: resumed where they stopped, shown, watched and recorded.

    phases: name -> number of steps, in order. settings: a saved state must have the same ones. tensors: these are
    learned. optimizers: Adam, by name. A saved state restores both in place. loss: the name of its values. Every step
    must be a function of these and of its number. Raises CheckpointError for the state of another run, and
    StorageError, before the first step, where a state is to be kept and cannot be written.
    """

    def __init__(
        self,
        problem: Problem,
        method: Method,
        phases: dict[str, int],
        tensors: dict[str, torch.Tensor],
        optimizers: Mapping[str, torch.optim.Optimizer],
        settings: Mapping[str, Any],
        loss: str = "loss",
    ):
        self.problem, self.method, self.phases = problem, method, phases
        self.progress, self.optimizers, self.tensors, self.loss = problem.progress, optimizers, tensors, loss
        self.total = sum(phases.values())
        self.done = 0
        self.curves: dict[str, Any] = {"step": [], loss: {task: [] for task in problem.tasks}}
        identity = {key: getattr(problem, key) for key in ("model", "mode", "scope", "seed")}
        # tasks: what is learned is kept by place, so their order counts
        identity |= {"tasks": list(problem.tasks)} | vars(method) | {"name": method.name}
        if problem.precision != "fp32":  # states of before there was a choice tell none
            identity |= {"precision": problem.precision}
        self.settings = identity | dict(settings)
        if self._keeps and is_primary():
            require_writable(cast(Path, self.progress.state))

    def resume(self) -> None:
        """Go on from the state that was kept, if there is one."""
        if is_primary() and self.progress.state and self.progress.state.is_file():
            self._resume(self.progress.state)

    def begins(self, phase: str) -> bool:
        """Whether the next step is the first of this phase."""
        return self.done == self._first(phase)

    def run(self, phase: str, step: Callable[[int], dict[str, float]], model: Callable[[], Watchable]) -> None:
        """The steps of a phase that are not yet done.

        step(index): does one and gives the mean loss of each task. model(): what there is to watch, as it now is.
        Under torchrun rank 0 does them, and gives the others what it learned. Raises NonFiniteLoss at the first step
        that gives no number, with the state before it kept.
        """
        self.done, self.curves = from_primary(lambda: self._run(phase, step, model))
        for tensor in self.tensors.values():
            broadcast(tensor)

    def _run(
        self, phase: str, step: Callable[[int], dict[str, float]], model: Callable[[], Watchable]
    ) -> tuple[int, dict[str, Any]]:
        first, steps = self._first(phase), self.phases[phase]
        if self.begins(phase):
            self._watch(phase, model)
        saved = time.monotonic()
        bar = tqdm(
            total=steps, initial=min(steps, self.done - first), desc=phase, leave=False, disable=in_worker() or None
        )
        for index in until_stopped(range(self.done - first, steps), lambda index: self._keep()):
            try:
                losses = step(index)
            except NonFiniteLoss as error:
                self._stop(phase, index, error)
            scalars = self._record(losses)
            if self.progress.log:
                self.progress.log(scalars, self.done)
            self.done += 1
            bar.update()
            bar.set_postfix({self.loss: f"{math.fsum(losses.values()) / len(losses):.3f}"})
            self._watch(phase, model)  # before the state is kept: a run killed in between watches this point again
            if self._due(saved):
                if broken := self._broken():
                    self._stop(phase, index, f"{broken[0]} is no number")
                self._save()
                saved = time.monotonic()
        bar.close()
        return self.done, self.curves

    def course(self) -> dict[str, Any]:
        """The course of the steps, for the result."""
        settings = vars(self.method)
        return {
            "adapt_on": settings["adapt_on"],
            "variant": settings.get("variant"),
            "settings": settings,
            "phases": [{"name": name, "steps": steps} for name, steps in self.phases.items()],
            "curves": {name: curve for name, curve in self.curves.items() if name != "layers"},
            "lambda": None,
            "lambda_layers_curve": None,
            "mask": None,
        }

    def _first(self, phase: str) -> int:
        """Steps of the phases before."""
        names = list(self.phases)
        return sum(self.phases[name] for name in names[: names.index(phase)])

    def _sampled(self) -> bool:
        """Whether the step is one of those that the result tells of."""
        return self.done % math.ceil(self.total / KEPT) == 0

    def _record(self, losses: dict[str, float], **more: Mapping[str, SupportsFloat]) -> dict[str, SupportsFloat]:
        """Add a step to the curves; gives its scalars. more: further numbers of each task, by the name of a curve."""
        groups: dict[str, Mapping[str, SupportsFloat]] = {self.loss: losses, **more}
        if self._sampled():
            self.curves["step"].append(self.done)
            for group, named in groups.items():
                for task, value in named.items():
                    self.curves[group][task].append(value)
        return {f"{group}/{task}": value for group, named in groups.items() for task, value in named.items()}

    def _watch(self, phase: str, model: Callable[[], Watchable]) -> None:
        if self.progress.watch:
            self.progress.watch(self.done, phase, model)

    def _broken(self) -> list[str]:
        learned = state_files.tensors({"value": self.tensors}, self.optimizers)
        return [name for name, tensor in learned.items() if not torch.isfinite(tensor).all()]

    def _keep(self) -> None:
        """Save a state between the regular ones, if it is good."""
        if self._keeps and self.done and not self._broken():
            self._save()

    @property
    def _keeps(self) -> bool:
        return bool(self.progress.state and (self.progress.save_every or self.progress.save_seconds))

    def _due(self, saved: float) -> bool:
        """Whether a state is to be kept now. saved: when the last one was."""
        every, seconds = self.progress.save_every, self.progress.save_seconds
        late = 0 < seconds < time.monotonic() - saved
        return self._keeps and (late or self.done == self.total or (every > 0 and self.done % every == 0))

    def _save(self) -> None:
        header: dict[str, Any] = {"model": self.problem.model, "settings": self.settings, "phases": self.phases}
        header |= {"step": self.done, "curves": self.curves}
        weights, path = {"value": self.tensors}, cast(Path, self.progress.state)
        state_files.save(path, weights, self.optimizers, header, kind="adaptation state")

    def _resume(self, path) -> None:
        state = checkpoints.Checkpoint(path, kind="adaptation state")
        checkpoints.require(state, "settings", "phases", "step", "curves")
        now = self.settings | {"phases": self.phases}
        then = state.header["settings"] | {"phases": state.header["phases"]}
        if differing := [key for key in now | then if now.get(key) != then.get(key)]:
            changes = ", ".join(f"{key} {then.get(key)} (now {now.get(key)})" for key in differing)
            raise checkpoints.CheckpointError(
                f"{path}: expected the state of a run with these settings, found {changes}; "
                "repeat the earlier settings, or start anew with overwrite=True"
            )
        values = state_files.load(state, self.optimizers, {"value": self.tensors})["value"]
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(values[name])
        self.done, self.curves = state.header["step"], state.header["curves"]
        print(f"goes on from step {self.done} of {self.total} ({path})")

    def _stop(self, phase: str, index: int, why: object) -> NoReturn:
        path, method = self.progress.state, self.method
        self._keep()
        left = "no state was kept"
        if path and path.is_file():
            step = checkpoints.header(path)["step"]
            left = f"the last good state is kept in {path} (step {step}); the same command would stop here again"
        rates = " or ".join(f"method.{name}=..." for name in ("lr", "mask_lr", "inner_lr") if hasattr(method, name))
        command = results.command_line().replace(" overwrite=True", "")
        raise NonFiniteLoss(
            f"{method.name}: {why} at step {index} of {self.phases[phase]} ({phase}); {left}. "
            f"Start anew with a smaller rate ({rates}): {command} overwrite=True"
        ) from None


class Adaptation(Steps):
    """The steps of an adaptation of λ, or of a mask, or of both.

    lam: λ; mask: whose logits are learned.
    """

    def __init__(
        self,
        model: MergedModel,
        phases: dict[str, int],
        lam: torch.Tensor,
        optimizers: Mapping[str, torch.optim.Optimizer],
        mask: LearnedMask | None = None,
    ):
        self.model, self.lam, self.mask = model, lam, mask
        problem, tensors = model.problem, {"lambda": lam} | (mask.logits if mask else {})
        norms = {task: _norm(model.parts(index)) for index, task in enumerate(problem.tasks)}
        about, loss = {"norms of the task vectors": norms}, "entropy" if model.loss == "entropy" else "loss"
        super().__init__(problem, model.method, phases, tensors, optimizers, about, loss)
        self.curves |= {"lambda": {task: [] for task in problem.tasks}}
        self.curves |= {"layers": {"step": [], "values": []}} | ({"density": []} if mask else {})
        self.resume()

    def course(self, mask: dict[str, Any] | None = None) -> dict[str, Any]:
        names, values = list(self.model.layer), self.model.effective(self.lam.detach())
        return super().course() | {
            "lambda": {
                "tasks": list(self.problem.tasks),
                "layers": names if values.shape[1] > 1 else None,
                "values": values.tolist(),
            },
            "lambda_layers_curve": self.curves["layers"] if values.shape[1] > 1 else None,  # (tasks, layers) each
            "mask": mask,
        }

    def _record(self, losses: dict[str, float], **more: Mapping[str, SupportsFloat]) -> dict[str, SupportsFloat]:
        values = self.model.effective(self.lam.detach())
        means = values.mean(1)
        of_task = means.tolist() if self._sampled() else means.unbind()  # a GPU is waited for where they are recorded
        scalars = super()._record(losses, **{"lambda": dict(zip(self.problem.tasks, of_task))})
        if self.mask and self._sampled():
            scalars["density"] = self.mask.density()
            self.curves["density"].append(scalars["density"])
        if values.shape[1] > 1 and self.done % math.ceil(self.total / KEPT_LAYERS) == 0:
            self.curves["layers"]["step"].append(self.done)
            self.curves["layers"]["values"].append([[round(v, 4) for v in row] for row in values.tolist()])
        return scalars


def _norm(tensors: Iterable[torch.Tensor]) -> str:
    """To six digits, which every device agrees on."""
    return f"{math.sqrt(math.fsum(float(tensor.double().square().sum()) for tensor in tensors)):.6g}"
