"""For how many images at once a GPU has memory: worked out from a vision transformer's shape, before the work begins.

What autograd keeps of an image grows with tokens x width x layers, which are called units here. A CPU's memory is not
asked, so that results there do not depend on what else the machine does.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]  # images, labels

# float32 numbers that autograd keeps for each unit: inputs of products and norms, queries, keys and values (12), and
# what activations keep; and for each token and feature before and behind the blocks. tests/test_memory.py counts them.
KEPT, QUICK_GELU, ACTIVATION, TANGENT, AROUND = 12.1, 8, 4, 1, 3
PASSING_QUICK, PASSING = 22, 10  # of the tangents of one block, on their way
EVALUATED = 2  # of these, where values are on their way too
# Of a gradient for each sample by torch.func, which keeps the graph of its backward pass too; from peaks on a CPU.
KEPT_PER_SAMPLE, ATTENTION_PER_SAMPLE, GRADIENTS = 75, 3, 2.5
SHARE = 0.85  # of the free memory: the rest is for workspaces, and for what the allocator has cut into pieces
HELD = 1 << 28  # bytes of images that are on the device at once where each coefficient needs weights of its own


def held_together(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    """Lists of (images, labels) in order, of HELD bytes of images at most; each of one batch at least.

    What makes weights for a coefficient makes them once for a list, and not once for a batch.
    """
    group: list[Batch] = []
    for batch in batches:
        if group and bytes_of(images for images, _ in (*group, batch)) > HELD:
            yield group
            group = []
        group.append(batch)
    if group:
        yield group


def free_memory(device: torch.device | str) -> int | None:
    """Bytes that this process can still take on a GPU; None on a CPU."""
    if torch.device(device).type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def images_that_fit(free: int, bytes_each: float, besides: float = 0) -> int:
    """Images at once for which `free` bytes are enough, at least one. besides: bytes that any number takes."""
    return max(1, int((SHARE * free - besides) / bytes_each))


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def bytes_of_pass(encoder: nn.Module, tangent: bool = False) -> float | None:
    """What an image takes in a pass through an ImageEncoder, or its linearization, in float32.

    That is what autograd keeps, and the tangents; a last block for the class token alone keeps less. None for a
    network that is no vision transformer of open_clip's.
    """
    visual = _transformer(encoder)
    if visual is None:
        return None
    tokens, width = visual.positional_embedding.shape
    blocks = visual.transformer.resblocks
    quick = type(blocks[0].mlp.gelu).__name__ == "QuickGELU"
    numbers = KEPT + (QUICK_GELU if quick else ACTIVATION) + (TANGENT if tangent else 0)
    pixels = 3 * math.prod(visual.image_size)
    activations = 4 * (tokens * width * (len(blocks) * numbers + AROUND) + pixels)
    return activations + (_bytes_of_tangents(visual, quick) if tangent else 0)


def bytes_of_evaluation(encoder: nn.Module) -> float | None:
    """What an image takes in a pass of values and tangents without a graph, in float32; None as above."""
    visual = _transformer(encoder)
    if visual is None:
        return None
    quick = type(visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    return EVALUATED * _bytes_of_tangents(visual, quick) + 4 * 3 * math.prod(visual.image_size)


def _bytes_of_tangents(visual: Any, quick: bool) -> float:
    """Of one image and block, for a tangent is freed once it has been used."""
    tokens, width = visual.positional_embedding.shape
    of_attention = ATTENTION_PER_SAMPLE * visual.transformer.resblocks[0].attn.num_heads * tokens
    return 4 * tokens * ((PASSING_QUICK if quick else PASSING) * width + of_attention)


def bytes_of_sample(encoder: nn.Module, parameters: Iterable[Tensor]) -> float | None:
    """What an image takes where each image's gradient with respect to the parameters is kept: two of these, and more.

    None as above.
    """
    visual = _transformer(encoder)
    if visual is None:
        return None
    tokens, width = visual.positional_embedding.shape
    blocks = visual.transformer.resblocks
    weights = tokens**2 * sum(block.attn.num_heads for block in blocks)
    units = tokens * width * len(blocks)
    return 4 * (KEPT_PER_SAMPLE * units + ATTENTION_PER_SAMPLE * weights) + GRADIENTS * bytes_of(parameters)


def _transformer(encoder: nn.Module) -> Any:
    visual = getattr(getattr(encoder, "model", None), "visual", None)
    known = hasattr(visual, "positional_embedding") and hasattr(getattr(visual, "transformer", None), "resblocks")
    return visual if known else None
