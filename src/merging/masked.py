"""What the masking methods share: θ_t = θ0 + m_t ∘ τ_MTL as a Merge, and the masks of a problem on disk."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from src import checkpoints
from src.merging.base import Merge, Problem
from src.merging.geometry import describe
from src.published import convert
from src.task_vectors import Mask, TaskVector

Masks = dict[str, Mask]  # of each task


def masked(
    problem: Problem,
    tau: TaskVector,
    mask: Callable[[str, float], Mask],
    settings: Sequence[float],
    keep: Callable[[Masks, Mapping[str, float]], dict[str, Any]] | None = None,
) -> Merge:
    """A model for each task, θ0 + mask(task, setting) ∘ τ; the result gets the density and overlap of the masks.

    keep(masks, chosen): called with the masks of the chosen settings; gives further facts for the result.
    """

    def finish(chosen: Mapping[str, float]) -> dict[str, Any]:
        masks = {task: mask(task, setting) for task, setting in chosen.items()}
        return {"masks": describe(_bits(masks))} | (keep(masks, chosen) if keep else {})

    return Merge(
        vector=lambda task, setting: mask(task, setting) * tau,
        settings=tuple(settings),
        storage_bits=problem.storage_masked(),
        per_task=True,
        finish=finish,
    )


def save_masks(problem: Problem, name: str, masks: Masks, **about: Any) -> dict[str, Any]:
    """Keep masks on disk, one bit per weight and task; gives the file and its size in bits. about: for the header."""
    path = problem.mask_path(name)
    header = dict(model=problem.model, mode=problem.mode, seed=problem.seed, scope=problem.scope, method=name)
    checkpoints.save_masks(path, _bits(masks), header | about)
    return {"mask_file": path, "mask_file_bits": 8 * path.stat().st_size}


def load_masks(problem: Problem, name: str, command: str, file: str | None = None) -> Masks:
    """The masks that `save_masks` kept for this problem, or those of `file`, which may be a published `.npy`.

    Raises FileNotFoundError that tells the `command` which makes them, and CheckpointError, with both names, for masks
    of another model, mode or scope, or of other tasks.
    """
    path = Path(file) if file else problem.mask_path(name)
    if not path.is_file():
        raise FileNotFoundError(f"expected masks in {path}, found no file; make them with: {command}")
    if path.suffix == ".npy":
        found = convert.read_masks(path, like=problem.pretrained)
        _check(path, "scope", problem.scope, "published")
    else:
        found = checkpoints.load_masks(path, model=problem.model, mode=problem.mode, scope=problem.scope)
    _check(path, "tasks", sorted(problem.tasks), sorted(found))
    return {task: Mask(found[task]) for task in problem.tasks}


def _bits(masks: Masks) -> checkpoints.Masks:
    return {task: mask.bits for task, mask in masks.items()}


def _check(path: Path, what: str, expected: Any, found: Any) -> None:
    if expected != found:
        raise checkpoints.CheckpointError(f"{path}: expected masks of {what} {expected}, found {found}")
