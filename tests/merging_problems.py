"""Tiny vision transformers to merge: names, shapes and orientations of open_clip's, with a frozen text side."""

import weakref
from math import prod

import torch

from src.merging.base import Problem

VISUAL = "model.visual."
QKV = f"{VISUAL}transformer.resblocks.0.attn.in_proj_weight"
CONV1, POSITIONS, PROJ = (f"{VISUAL}{name}" for name in ("conv1.weight", "positional_embedding", "proj"))
BLOCK = {
    "attn.in_proj_weight": (18, 6),
    "attn.in_proj_bias": (18,),
    "attn.out_proj.weight": (6, 6),
    "mlp.c_fc.weight": (12, 6),
    "mlp.c_fc.bias": (12,),
    "mlp.c_proj.weight": (6, 12),
    "ln_1.weight": (6,),
}
TEXT = {"model.text_projection": (4, 3), "model.token_embedding.weight": (7, 4), "model.logit_scale": ()}
SHAPES: dict[str, tuple[int, ...]] = {
    f"{VISUAL}class_embedding": (6,),
    CONV1: (6, 3, 2, 2),
    POSITIONS: (5, 6),
    PROJ: (6, 4),
    f"{VISUAL}ln_pre.weight": (6,),
    f"{VISUAL}ln_post.weight": (6,),
    **{f"{VISUAL}transformer.resblocks.{block}.{name}": shape for block in range(3) for name, shape in BLOCK.items()},
    **TEXT,
}
BLOCK_MATRICES = [key for key, shape in SHAPES.items() if "resblocks" in key and len(shape) == 2]
MATRICES = [*BLOCK_MATRICES, POSITIONS, PROJ]


class Counted(dict):
    """Weights that count how many of their tensors are alive at once, over all tasks."""

    alive, most = 0, 0

    def __getitem__(self, key):
        tensor = super().__getitem__(key).clone()
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)
        weakref.finalize(tensor, Counted._gone)
        return tensor

    @staticmethod
    def _gone():
        Counted.alive -= 1


def cut(flat: torch.Tensor) -> dict[str, torch.Tensor]:
    """A state dict of all weights in the sorted order of their names."""
    names = sorted(SHAPES)
    pieces = flat.split([prod(SHAPES[name]) for name in names])
    return {name: piece.clone().view(SHAPES[name]) for name, piece in zip(names, pieces, strict=True)}


def problem_of(taus: list[dict[str, torch.Tensor]], **fields) -> Problem:
    """θ0 = 0, so that the task vectors are exactly these."""
    start = {key: torch.zeros_like(tau) for key, tau in taus[0].items()}
    return Problem(start, {f"task{t}": tau for t, tau in enumerate(taus)}, **fields)


def one_matrix(*deltas: torch.Tensor, key: str = f"{VISUAL}w") -> Problem:
    """A model that is one matrix."""
    return problem_of([{key: delta} for delta in deltas])


def draw(tasks: int = 3, seed: int = 0, dtype=torch.float64, **fields) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def tau() -> dict[str, torch.Tensor]:
        return {
            key: torch.zeros(shape, dtype=dtype)
            if key in TEXT
            else torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for key, shape in SHAPES.items()
        }

    return problem_of([tau() for _ in range(tasks)], **fields)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def truncated(matrix: torch.Tensor, k: int) -> torch.Tensor:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :k] * s[:k]) @ vh[:k]


def assert_equal(ours: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)
