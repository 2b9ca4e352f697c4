"""Where a tensor of an image tower stands, by its name: before the blocks, in one of them, or after them."""

import math
import re

from src.checkpoints import VISUAL

AFTER_BLOCKS = (f"{VISUAL}ln_post.", f"{VISUAL}proj")
TAIL = math.inf  # the stage of what comes after the blocks
_BLOCK = re.compile(rf"{re.escape(VISUAL)}.*?blocks\.(\d+)\.(.+)")


def block_of(key: str) -> tuple[int, str] | None:
    """(l, name in the block) of a tensor in block l = 0, 1, ...; None elsewhere."""
    match = _BLOCK.match(key)
    return (int(match[1]), match[2]) if match else None


def stage_of(key: str) -> float:
    """Where a tensor comes in the forward pass: before the blocks (0), in block l (l + 1), or after them (TAIL)."""
    if block := block_of(key):
        return block[0] + 1
    return TAIL if key.startswith(AFTER_BLOCKS) else 0
