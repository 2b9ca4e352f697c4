"""The precision of matrix products: fp32, TF32's shorter mantissa, or bf16 by autocast. Weights stay as they are.

PyTorch's flags are the process's, and cuDNN's says TF32 by default. So whatever computes with a network says its
precision, and puts back what was set before. A CPU has no TF32: there `tf32` computes as `fp32` does.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch.func import functional_call


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Within, products of float32 matrices and convolutions are rounded to TF32 for "tf32" alone."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _set("high" if precision == "tf32" else "highest", precision == "tf32")
    try:
        yield
    finally:
        _set(*before)


def _set(matmul: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolutions


def autocast(precision: str, device: str | torch.device) -> AbstractContextManager:
    """The context of a forward pass: bf16's autocast for "bf16", nothing for others. It can be entered many times."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")


def features_at(
    encoder: torch.nn.Module, weights: Mapping[str, torch.Tensor], images: torch.Tensor, precision: str
) -> torch.Tensor:
    """Features (N, D) of the encoder with these weights, by name, on images (N, 3, H, W); never bf16 themselves."""
    with autocast(precision, images.device):
        features = functional_call(encoder, dict(weights), (images,))
    return features.float() if precision == "bf16" else features
