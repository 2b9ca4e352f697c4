"""TALL masks: localising a task in the multi-task vector (Wang et al., 2024, arXiv:2405.07813).

m_t = 1{ |τ_t| > λ_t |τ_MTL − τ_t| }, θ_t = θ0 + m_t ∘ τ_MTL, where τ_MTL = Σ_t τ_t or, with `use_ties`, TIES with
k = 20 and the disjoint sum. Validation chooses λ_t for each task; of equal ones the smallest wins. The chosen masks are
kept on disk for `load_mask` and for consensus.py; `mask_file` loads others, such as the published ones.

The published code takes |τ_MTL − τ_t| as |(θ0 + τ_MTL) − θ_t|, which rounds to the last bits of θ0 in float32. This is
the paper's formula; the masks differ only at weights whose two sides are equal up to that rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.checkpoints import PackedMask
from src.merging.base import Merge, Method, Problem, Variant
from src.merging.masked import LoadedMasks, Masked, Masks, kept_or_published, load_masks, save_masks
from src.merging.registry import register
from src.merging.task_arithmetic import multi_task_vector
from src.merging.ties import ties_vector
from src.ranges import NON_NEGATIVE, option
from src.run import as_overrides
from src.runtime.files import require_writable
from src.runtime.paths import expanded
from src.task_vectors import Mask, TaskVector
from src.tensors import Weights

LAMBDAS = (0.2, 0.3, 0.4, 0.5, 0.6)


def tau_mtl(problem: Problem, use_ties: bool) -> TaskVector:
    """τ_MTL of the paper's two variants, coefficient 1."""
    return ties_vector(problem, k=20, reduce="sum") if use_ties else multi_task_vector(problem)


def tall_masks(problem: Problem, task: str, tau_mtl: TaskVector, lambdas: Sequence[float]) -> list[Mask]:
    """m_t at each λ, from one reading of τ_t."""
    masks: list[Weights] = [{} for _ in lambdas]
    for key in problem.keys:
        tau = problem.tensor(task, key)
        rest = (tau_mtl.vector[key] - tau).abs_()
        tau.abs_()
        for mask, lambda_t in zip(masks, lambdas, strict=True):
            mask[key] = tau > rest * lambda_t
    return [Mask(mask) for mask in masks]


def load_tall_masks(problem: Problem, use_ties: bool, file: str | None) -> tuple[Masks, Path]:
    """The masks that an earlier `method=tall_mask` kept, else the published ones, or those of `file`; and their file.

    The published masks are of the sum of the task vectors.
    """
    told = {"model": problem.model, "finetuning_mode": problem.mode, "scope": problem.scope, "seed": problem.seed}
    tasks = f"DATASETS=[{','.join(problem.tasks)}]"
    command = f"python main.py {as_overrides(told | problem.named)} {tasks} method=tall_mask method.use_ties={use_ties}"
    published = None if use_ties else problem.published_masks
    return load_masks(problem, _name(use_ties), f"{command} overwrite=True", file, published)


def masks_file(masks_at: Callable[[str], Path], use_ties: bool, file: str | None, published: Path | None) -> Path:
    """The file that `load_tall_masks` reads. published: where the published masks of the problem lie."""
    if file:
        return expanded(file, "method.mask_file")
    return kept_or_published(masks_at(_name(use_ties)), None if use_ties else published)


@dataclass(kw_only=True)
class TallMasked(Masked):
    """The settings are λ, ascending; the masks of the chosen λ_t are kept on disk under `name`.

    Validation asks for all λ of a task before it turns to the next. What is asked for after that is what it chose: one
    mask is made, and kept as bits, for test, the result and the file.
    """

    problem: Problem
    name: str
    last: tuple[str, dict[float, Mask]] = ("", {})
    searched: set[str] = field(default_factory=set)  # tasks of which every λ was made
    chosen: dict[tuple[str, float], PackedMask] = field(default_factory=dict)

    def mask(self, task: str, setting: float) -> Mask:
        if self.last[0] == task:
            return self.last[1][setting]
        if task in self.searched:
            if (task, setting) not in self.chosen:
                (mask,) = tall_masks(self.problem, task, self.tau, [setting])
                self.chosen[task, setting] = PackedMask.of(mask.bits)
            return Mask(self.chosen[task, setting])
        self.last = "", {}  # those of the task before go first
        self.last = task, dict(zip(self.settings, tall_masks(self.problem, task, self.tau, self.settings)))
        self.searched.add(task)
        return self.last[1][setting]

    def keep(self, masks: Masks, chosen: Mapping[str, float]) -> dict[str, Any]:
        if set(masks) != set(self.problem.tasks):  # a search chose other options for the other tasks
            return {}
        return save_masks(self.problem, self.name, masks, tall_mask_lambda=dict(chosen))


@register(
    "tall_mask",
    title="TALL mask + TA",
    paper="2405.07813",
    published={"tall": "TALL Mask + TA"},
    stage="merging",
    variants=(
        Variant(
            "TALL mask + TIES",
            {"use_ties": True},
            published={"tall": "TALL Mask + TIES"},
            stage="merging",
            spelling="tall_mask_ties",
        ),
    ),
)
@dataclass
class TallMask(Method):
    use_ties: bool = False
    load_mask: bool = False
    mask_file: str | None = None
    tall_mask_lambda: list[float] = option(LAMBDAS, NON_NEGATIVE)

    def reads(self, masks_at: Callable[[str], Path], published_masks: Path | None = None) -> Path | None:
        if not (self.load_mask or self.mask_file):
            return None
        return masks_file(masks_at, self.use_ties, self.mask_file, published_masks)

    def merge(self, problem: Problem) -> Merge:
        merged = tau_mtl(problem, self.use_ties)
        if self.load_mask or self.mask_file:
            masks, path = load_tall_masks(problem, self.use_ties, self.mask_file)
            bits = problem.storage_masked()
            return LoadedMasks(tau=merged, settings=(1.0,), storage_bits=bits, masks=masks, file=path)
        if problem.mask_path:
            require_writable(problem.masks_at(_name(self.use_ties)))
        lambdas = sorted(self.tall_mask_lambda)  # ascending, so that the first of equal ones is the smallest
        return TallMasked(
            tau=merged,
            settings=tuple(lambdas),
            storage_bits=problem.storage_masked(),
            problem=problem,
            name=_name(self.use_ties),
        )


def _name(use_ties: bool) -> str:
    return "tall_mask_ties" if use_ties else "tall_mask"
