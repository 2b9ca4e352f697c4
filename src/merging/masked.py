"""What the masking methods share: θ_t = θ0 + m_t ∘ τ_MTL as a Merge, and the masks of a problem on disk.

The masks of all tasks are in memory at once as bits alone, an eighth of what bool tensors take.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from src import checkpoints
from src.checkpoints import PackedMask
from src.merging.base import Merge, Problem, Setting
from src.merging.geometry import describe
from src.published import convert
from src.run import as_flags
from src.runtime import results
from src.runtime.messages import MissingFile, few
from src.runtime.paths import expanded
from src.task_vectors import Mask, TaskVector
from src.tensors import check_same

Masks = dict[str, PackedMask]  # of each task
DOWNLOAD = "python download_checkpoints.py --model={} --kind=tall_masks --source=hub"


@dataclass(kw_only=True)
class Masked(Merge):
    """A model for each task, θ0 + mask(task, setting) ∘ τ; the result gets the density and overlap of the masks."""

    tau: TaskVector
    per_task: bool = True

    @abstractmethod
    def mask(self, task: str, setting: Setting) -> Mask: ...

    def vector(self, task: str, setting: Setting) -> TaskVector:
        return self.mask(task, setting) * self.tau

    def finish(self, chosen: Mapping[str, Setting]) -> dict[str, Any]:
        masks = {task: PackedMask.of(self.mask(task, setting).bits) for task, setting in chosen.items()}
        return {"masks": describe(masks)} | self.keep(masks, chosen)

    def keep(self, masks: Masks, chosen: Mapping[str, Setting]) -> dict[str, Any]:
        """What a method does with the masks of the chosen settings; gives further facts for the result."""
        return {}


@dataclass(kw_only=True)
class LoadedMasks(Masked):
    """Masks that an earlier run kept, or published ones: there is nothing to choose. file: where they come from."""

    masks: Masks
    file: Path

    def mask(self, task: str, setting: Setting) -> Mask:
        return Mask(self.masks[task])

    def keep(self, masks: Masks, chosen: Mapping[str, Setting]) -> dict[str, Any]:
        return {"mask_file": self.file}


def save_masks(problem: Problem, name: str, masks: Masks, **about: Any) -> dict[str, Any]:
    """Keep masks on disk, one bit per weight and task; gives the file and its size in bits. about: for the header."""
    path = problem.masks_at(name)
    header = dict(model=problem.model, mode=problem.mode, seed=problem.seed, scope=problem.scope, method=name)
    checkpoints.save_masks(path, masks, header | {"made_of": _made_of(problem)} | about)
    return {"mask_file": path, "mask_file_bits": 8 * path.stat().st_size}


def kept_or_published(kept: Path, published: Path | None) -> Path:
    """The masks that an earlier run kept, or, where it kept none, the published ones, if they were fetched."""
    return published if published and published.is_file() and not kept.is_file() else kept


def load_masks(
    problem: Problem, name: str, command: str, file: str | None = None, published: Path | None = None
) -> tuple[Masks, Path]:
    """The masks that `save_masks` kept for this problem, and their file.

    file: others in their place, which may be a published `.npy`. published: those to take where none were kept.
    Published masks are of all tensors; a problem of scope "visual" takes those of its own, which are the same: the
    others are never trained, so that nothing of them is masked.
    Raises MissingFile that tells the `command` which makes them, and CheckpointError, with both names, for masks
    of another model, mode or scope, or of other tasks.
    """
    if file:
        path = expanded(file, "method.mask_file")
    else:
        path = kept_or_published(problem.masks_at(name), published)
    if not path.is_file():
        told: dict[str, Any] = {name: value for name, value in problem.named.items() if name in ("seed", "save")}
        fetch = " ".join([DOWNLOAD.format(problem.model), as_flags(told)]).rstrip()
        fetched = f", or fetch the published ones with: {fetch}" if published else ""
        raise MissingFile(f"expected masks in {path}, found no file; make them with: {command}{fetched}")
    of_all = path.suffix == ".npy"  # tensors, whatever the scope
    if of_all:
        masks = convert.read_masks(path, like=problem.pretrained)
    else:
        header = checkpoints.header(path)
        of_all = header.get("scope") == "published"
        scope = None if of_all else problem.scope
        masks = checkpoints.load_masks(path, model=problem.model, mode=problem.mode, scope=scope)
        if stale := results.changed(header.get("made_of", {}), _made_of(problem)):
            raise checkpoints.CheckpointError(
                f"{path}: expected masks of the checkpoints that are there, found those of others: {few(stale)} "
                f"changed since; make them with: {command}"
            )
    _check(path, "tasks", sorted(problem.tasks), sorted(masks))
    like = {name: torch.empty(shape, device="meta") for name, shape in problem.shapes.items()}
    for task in problem.tasks:
        if of_all:
            masks[task] = masks[task].only(problem.shapes)
        check_same(like, masks[task], f"{path}: the task vectors and the masks", checkpoints.CheckpointError)
    return {task: masks[task] for task in problem.tasks}, path


def _made_of(problem: Problem) -> dict[str, str]:
    weights = {"theta0": problem.pretrained, **problem.finetuned}
    return {name: checkpoints.known_hashes(of_task) for name, of_task in weights.items()}


def _check(path: Path, what: str, expected: Any, found: Any) -> None:
    if expected != found:
        raise checkpoints.CheckpointError(f"{path}: expected masks of {what} {expected}, found {found}")
