"""What each weight of a module multiplies, and what comes of it, as a forward pass computes them.

    linear map      y = W x + b             the input of W, [out, in], is x: fused attention's in_proj and out_proj too
    projection      y = x P                 the input of P, [in, out], is x: open_clip's proj
    convolution     y = W * x               the input of W, as [out, in·p·p], is each patch of x
    LayerNorm       y = γ ∘ z(x) + β        the input of γ is z, the normalised x

`Inputs` replaces no module and needs none by name: while it is entered it sees every function that is called with one
of the wanted weights. So it works for whatever calls them, at any weights that `functional_call` gives.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from src.checkpoints import VISUAL
from src.dual_numbers import self_attention
from src.runtime.messages import UsageError

See = Callable[[str, Tensor], None]  # (weight's name, its input): (images, tokens, in), or (images, in)
After = Callable[[str, Tensor], Tensor]
IN_OUT = f"{VISUAL}proj"  # the projection P of open_clip's vision transformers


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return input


def _matmul(input: Tensor, other: Tensor) -> Tensor:
    return input


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if groups != 1 or isinstance(padding, str):
        raise UsageError(
            "expected a convolution of one group with padding in numbers, whose input can be told; found another. When "
            "merging: method.conv1=False"
        )
    return F.unfold(input, weight.shape[2:], dilation, padding, stride).mT


def _layer_norm(input: Tensor, normalized_shape: Any, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(input, normalized_shape, eps=eps)


INPUTS: dict[Callable, Callable[..., Tensor]] = {
    F.linear: _linear,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    F.conv2d: _conv2d,
    F.layer_norm: _layer_norm,
}


def is_embedding(name: str) -> bool:
    """Whether a weight multiplies nothing, though it may be a matrix: of tokens, of the class, of positions."""
    return "embedding" in name


class Inputs(TorchFunctionMode):
    """While entered, in this thread: see(name, x) for each weight that a function of INPUTS multiplies by x.

    names: of the weights, by the id of the very tensor that the function is called with.
    after(name, y), where it is given, takes the place of the function's result y, which it may hand on as it is. It is
    (images, tokens, out), or (images, out); a convolution's is (images, out, rows, columns).
    """

    def __init__(self, names: Mapping[int, str], see: See, after: After | None = None):
        self.names, self.see, self.after = names, see, after

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            return self._attention(*args, **kwargs)
        if func not in INPUTS:
            return func(*args, **kwargs)
        weights = [self.names[id(value)] for value in (*args, *kwargs.values()) if id(value) in self.names]
        for name in weights:
            self.see(name, INPUTS[func](*args, **kwargs))
        y = func(*args, **kwargs)
        if self.after is not None:
            for name in weights:
                y = self.after(name, y)
        return y

    def _attention(self, *args: Any, **kwargs: Any) -> Any:
        """By the functions inside, whose inputs are (tokens, images, width)."""
        see, after = self.see, self.after
        images_first = after and (lambda name, y: after(name, y.transpose(0, 1)).transpose(0, 1))
        with Inputs(self.names, lambda name, x: see(name, x.transpose(0, 1)), images_first):
            result = self_attention(*args, **kwargs)
        if result is None:
            raise UsageError(
                "expected plain self-attention (no mask, no dropout, queries, keys and values of one tensor), whose "
                "inputs can be told; found other. Choose a method, or a fine-tuning mode, that asks for no inputs"
            )
        return result
