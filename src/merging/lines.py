"""LiNeS: deeper blocks get more of a merged vector (Wang et al., 2025, arXiv:2410.17146).

    τ^l ← (α + β l/(L − 1)) τ^l in block l = 0 … L − 1,    τ ← α τ elsewhere,    α = (‖Σ_t τ_t‖₁ / ‖τ‖₁) / T

of the vector τ of another method, `base`, with validation's β. Blocks are found by their names, `blocks.<l>.`.
Nothing of the base's own coefficients is used. For β = 0 and task arithmetic this is the average of the weights.

As in the published code, `elsewhere` are the stem and the embeddings, which are shallow, and also ln_post and proj,
which come after the last block; `tail="deep"` scales them as the last block. The published code finds block l by ".l."
anywhere in a name, which would also be a convolution of a stem such as ViT-Mini's conv1.2. The published grid of β ends
at 1.5 for TIES and at 1 for others; on ViT-Mini validation chooses the last one for TIES, so this one goes on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from src.checkpoints import VISUAL
from src.merging.base import Affine, Merge, Problem, Variant
from src.merging.depth import TAIL, block_of, stage_of
from src.merging.registry import register
from src.merging.task_arithmetic import multi_task_vector
from src.merging.wrapped import Wrapper
from src.ranges import FINITE, check_choice, option
from src.runtime.messages import UsageError, few
from src.task_vectors import TaskVector

BETAS = tuple(tenth / 10 for tenth in range(1, 31))
TAILS = ("shallow", "deep")


def depths(keys: Iterable[str], tail: str = "shallow") -> dict[str, float]:
    """l/(L − 1) of every tensor; 0 elsewhere, and 1 behind the blocks where the tail is deep.

    Raises UsageError where the names show fewer than two blocks.
    """
    check_choice("tail", tail, TAILS)
    keys = list(keys)
    blocks = {key: block[0] for key in keys if (block := block_of(key))}
    last = max(blocks.values(), default=0)
    if last == 0:
        raise UsageError(f"lines: expected two blocks or more, named {VISUAL}...blocks.<l>.; found {few(keys)}")
    behind = float(tail == "deep")
    return {key: blocks[key] / last if key in blocks else behind * (stage_of(key) == TAIL) for key in keys}


def l1_norm(vector: TaskVector) -> float:
    return sum(float(tensor.abs().sum(dtype=torch.float64)) for tensor in vector.vector.values())


@register(
    "lines",
    title="LiNeS, task arithmetic",
    paper="2410.17146",
    stage="methods",
    variants=(
        Variant("LiNeS, TIES", {"base": "ties"}, stage="methods"),
        Variant("LiNeS, consensus TA", {"base": "consensus"}, stage="methods"),
    ),
)
@dataclass
class Lines(Wrapper):
    tail: str = "shallow"
    betas: list[float] = option(BETAS, FINITE)

    def wrapped(self, problem: Problem, tau: TaskVector, alphas: Sequence[float]) -> Merge:
        depth = depths(problem.keys, self.tail)
        norm = l1_norm(tau)
        if not norm:
            raise UsageError(f"base: lines scales the vector of a method; that of {self.base} is 0")
        alpha = l1_norm(multi_task_vector(problem)) / norm / len(problem.tasks)
        return Affine(
            offset=alpha * tau,
            tau=TaskVector(vector={key: depth[key] * tensor for key, tensor in tau.vector.items()}),
            settings=tuple(self.betas),
            storage_bits=problem.storage_merged(),
            info={"lines_alpha": alpha},
        )
