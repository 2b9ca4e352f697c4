"""The empirical tangent kernel of an encoder with its head.

    K(x, x') = tr ∇θ f(x; θ0) ∇θ f(x'; θ0)ᵀ = Σ_c ⟨∇θ f_c(x), ∇θ f_c(x')⟩        (`trace`, the default)
    K(x, x') = ⟨∇θ Σ_c f_c(x), ∇θ Σ_c f_c(x')⟩                                  (`sum`, the pseudo-kernel)

Source: Ortiz-Jimenez et al. 2023, section 6.2 and Figures 6, 14, 15, which do not name the reduction over the outputs.
The kernel is computed as it is written: the gradients of single samples by vmap(grad), then their inner products.
"""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from src.linearize import forward_mode_attention
from src.runtime.memory import bytes_of, bytes_of_sample, free_memory, images_that_fit
from src.runtime.messages import NotFinite

REDUCTIONS = ("trace", "sum")
# Of the gradients that are held at once, where no chunk size is given and no GPU's memory decides.
GRADIENT_BYTES = 4 << 30
SLICE = 1 << 14  # elements of a gradient that are summed in its own precision

Block = tuple[slice, slice]  # rows and columns of a kernel, with a start and a stop


def tangent_kernel(
    module: nn.Module,
    head: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    reduction: str = "trace",
    chunk_size: int | None = None,
    blocks: Sequence[Block] | None = None,
    part: tuple[int, int] = (0, 1),
) -> Tensor:
    """Tangent kernel of head(module(x)) over the module's parameters that require grad, (images, images).

    blocks: those below the diagonal, or on it, that are read; by default all. What no block or its mirror image
    covers may be zero. part: (which, of how many) terms of a sum that gives the kernel, each over some of the outputs.
    There are at most as many as outputs; further ones are zero.

    Other parameters are constants, and so is the head. The kernel is float64, on the CPU; the gradients have the
    precision of the module.

    Memory: for one output c at a time, the gradients of two chunks of samples, and the activations of one chunk. A
    sample's gradient is as large as the parameters: 3.6 MB for ViT-Mini, 0.35 GB for ViT-B-32, 1.2 GB for ViT-L-14. By
    default a chunk has as many samples as the GPU's free memory allows; on a CPU, and for other networks than vision
    transformers, as many as keep the gradients within 4 GiB (one sample of ViT-L-14). With B chunks each gradient is
    computed (B + 1) / 2 times on average.

    Raises ValueError for a module in training mode or without parameters that require grad, and FloatingPointError for
    outputs that are not finite.
    """
    parameters = _moving(module, images, reduction)
    device, n = next(iter(parameters.values())).device, len(images)
    if chunk_size is None:
        chunk_size = usual_chunk(module, parameters.values(), device)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    chunks = [(slice(i, min(i + chunk_size, n)), images[i : i + chunk_size]) for i in range(0, n, chunk_size)]
    read = [(slice(0, n), slice(0, n))] if blocks is None else blocks

    def output(parameters: dict[str, Tensor], image: Tensor, weights: Tensor) -> Tensor:
        """Σ_c weights_c f_c(image)."""
        features = functional_call(module, parameters, (image.unsqueeze(0),))
        return head(features).squeeze(0) @ weights

    def gradients(images: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """∇θ Σ_c weights_c f_c of each image: for each parameter (images, elements)."""
        per_sample = vmap(grad(output), in_dims=(None, 0, None))(parameters, images.to(device), weights)
        return {name: gradient.flatten(1) for name, gradient in per_sample.items()}

    kernel = torch.zeros(n, n, dtype=torch.float64, device=device)
    # Like forward mode, vmap has no rule for the fused kernels of attention.
    with torch.no_grad(), forward_mode_attention():
        outputs = torch.cat([head(module(part.to(device))) for _, part in chunks])
        _check(outputs)
        # One row of weights picks one output; for `sum` all of them at once.
        weights = torch.eye(outputs.shape[1]) if reduction == "trace" else torch.ones(1, outputs.shape[1])
        for weight in weights.to(outputs)[part[0] :: part[1]]:
            for i, (rows, images_of_rows) in enumerate(chunks):
                within = {j: _cut(read, rows, columns) for j, (columns, _) in enumerate(chunks[: i + 1])}
                if not any(within.values()):
                    continue
                row_gradients = gradients(images_of_rows, weight)
                for j, pieces in within.items():
                    columns, images_of_columns = chunks[j]
                    column_gradients = (
                        row_gradients if j == i else gradients(images_of_columns, weight) if pieces else {}
                    )
                    for left, right in pieces:
                        products = _inner_products(
                            _of(row_gradients, left, rows), _of(column_gradients, right, columns)
                        )
                        kernel[left, right] += products
    return (kernel.tril() + kernel.tril(-1).T).cpu()


def _moving(module: nn.Module, images: Tensor, reduction: str) -> dict[str, Tensor]:
    """The parameters that the kernel is over. Raises ValueError for what has no tangent kernel."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"unknown reduction {reduction!r}; there are {', '.join(REDUCTIONS)}")
    if module.training:
        raise ValueError("the module is in training mode; call .eval(): samples must not depend on each other")
    parameters = {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}
    if not parameters:
        raise ValueError("no parameter of the module requires a gradient: the tangent kernel would be zero")
    if not len(images):
        raise ValueError("the kernel needs at least one image, got none")
    return parameters


def usual_chunk(module: nn.Module, parameters: Collection[Tensor], device: torch.device) -> int:
    """Samples whose gradients are held at once, where nobody says how many."""
    free, each = free_memory(device), bytes_of_sample(module, parameters)
    if free is None or each is None:
        return max(1, GRADIENT_BYTES // (2 * bytes_of(parameters)))
    return images_that_fit(free, each)


def _cut(blocks: Sequence[Block], rows: slice, columns: slice) -> list[Block]:
    """What of the blocks lies within some rows and columns."""
    both = [(_common(left, rows), _common(right, columns)) for left, right in blocks]
    return [(left, right) for left, right in both if left.start < left.stop and right.start < right.stop]


def _common(one: slice, two: slice) -> slice:
    return slice(max(one.start, two.start), min(one.stop, two.stop))


def _of(gradients: dict[str, Tensor], images: slice, chunk: slice) -> dict[str, Tensor]:
    """The gradients of some images of a chunk."""
    rows = slice(images.start - chunk.start, images.stop - chunk.start)
    return {name: gradient[rows] for name, gradient in gradients.items()}


def _inner_products(one: dict[str, Tensor], two: dict[str, Tensor]) -> Tensor:
    """⟨g, g'⟩ of all gradients g of `one` with all g' of `two`, (samples of one, samples of two), float64.

    Sums of many products in single precision lose digits, so they are taken over slices and added up in float64.
    """
    first, second = next(iter(one.values())), next(iter(two.values()))
    products = first.new_zeros(len(first), len(second), dtype=torch.float64)
    for name in one:
        for left, right in zip(one[name].split(SLICE, 1), two[name].split(SLICE, 1), strict=True):
            products += left @ right.T
    return products


def _check(outputs: Tensor) -> None:
    if outputs.ndim != 2:
        raise ValueError(f"expected outputs of shape (samples, outputs), got {tuple(outputs.shape)}")
    finite = outputs.isfinite().all(1)
    if not finite.all():
        raise NotFinite(f"the output of image {(~finite).nonzero()[0].item()} is not finite")
