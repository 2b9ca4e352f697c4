"""Dual numbers: the value of a network and its tangent along a direction of the parameters, from one pass.

    f(x; θ + ε θ̇) = f(x; θ) + ε J(x; θ) θ̇,        ε² = 0

PyTorch differentiates forward through every operation. Its formulas record a graph of the tangent wherever a parameter
requires grad, and they take several passes over memory where one kernel would do. The rules below replace them for the
operations that take most of the time: the tangent comes from fused kernels and has no graph, the value keeps its graph.
A rule returns None for a case that it does not cover; PyTorch's formula covers it.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import conv2d, layer_norm, linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

with warnings.catch_warnings(), forward_ad.dual_level():
    # With the first dual number, PyTorch compiles formulas by its own deprecated torch.jit.script, and warns of it.
    warnings.simplefilter("ignore", FutureWarning)
    forward_ad.make_dual(torch.zeros(()), torch.zeros(()))


def fused_jvp(
    module: nn.Module,
    params: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
    fixed: Mapping[str, Tensor],
    inputs: tuple,
    kwargs: dict[str, Any],
) -> tuple[Any, Any]:
    """(f(x; params, fixed), J·direction), where J = ∂f/∂params: `plain_jvp` of src.linearize, with the rules below.

    The value has a graph to what requires grad, the tangent has none. Both have the structure of the module's output.
    """
    with DualRules(), forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(value, direction[name]) for name, value in params.items()}
        output = functional_call(module, {**duals, **fixed}, inputs, kwargs)
        return tree_map(lambda leaf: _split(leaf)[0], output), tree_map(_tangent, output)


def _split(x: Any) -> tuple[Any, Tensor | None]:
    """(value, tangent) of a dual number; the tangent of anything else is None."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x, None
    dual = forward_ad.unpack_dual(x)
    return dual.primal, dual.tangent


class _Alone(torch.autograd.Function):
    """A value that does not hold on to the dual number which it was a view of."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.data

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0]


def _parts(x: Any) -> tuple[Any, Tensor | None]:
    """`_split` of what a rule saves for the backward pass: its tangent is freed once it has been used."""
    value, tangent = _split(x)
    return (_Alone.apply(value), tangent) if tangent is not None and value.requires_grad else (value, tangent)


def _tangent(x: Any) -> Any:
    """The tangent of an output, zero where the output does not depend on the parameters."""
    value, tangent = _split(x)
    if tangent is not None:
        return tangent.detach()
    return torch.zeros_like(value) if isinstance(value, Tensor) else 0


class DualRules(TorchFunctionMode):
    """While entered, in this thread: the functions of RULES on dual numbers go by their rule."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in RULES:
            result = RULES[func](*args, **kwargs)
            if result is not None:
                return result
        if func in ATTENTION:
            # The fused kernels of attention have no forward-mode formula.
            with sdpa_kernel(SDPBackend.MATH):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """y = W x + b;  ẏ = Ẇ x + W ẋ + ḃ."""
    (x, dx), (w, dw), (b, db) = _parts(input), _split(weight), _split(bias)
    if dx is None or not _same_dtype(x, w):
        return None
    shape = (*x.shape[:-1], w.shape[0])
    x, dx = x.reshape(-1, x.shape[-1]), dx.reshape(-1, x.shape[-1])  # (tokens, in): what one addmm takes
    y = linear(x, w, b)
    with torch.no_grad():
        # A frozen weight has no tangent.
        dy = linear(dx, w, db) if dw is None else linear(x, dw, db).addmm_(dx, w.t())
    return forward_ad.make_dual(y.view(shape), dy.view(shape))


def _conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, *options: Any, **named: Any) -> Tensor | None:
    """y = W ∗ x + b;  ẏ = Ẇ ∗ x + W ∗ ẋ + ḃ."""
    (x, dx), (w, dw), (b, db) = _parts(input), _split(weight), _split(bias)
    if dw is None or (b is not None and db is None) or not _same_dtype(x, w):
        return None
    y = conv2d(x, w, b, *options, **named)
    with torch.no_grad():
        dy = conv2d(x, dw, db, *options, **named)
        if dx is not None:
            dy += conv2d(dx, w, None, *options, **named)
    return forward_ad.make_dual(y, dy)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    """y = w ∘ n(x) + b;  ẏ = ẇ ∘ n(x) + ḃ + w ∘ J_n ẋ. J_n is symmetric: the backward kernel gives J_nᵀ ẋ = J_n ẋ."""
    (x, dx), (w, dw), (b, db) = _parts(input), _split(weight), _split(bias)
    if dx is None or w is None or not _same_dtype(x, w):
        return None
    y, mean, rstd = torch.native_layer_norm(x, normalized_shape, w, b, eps)
    with torch.no_grad():
        normalised = torch.ops.aten.native_layer_norm_backward(
            dx, x, normalized_shape, mean, rstd, None, None, [True, False, False]
        )[0]
        if dw is None:  # frozen
            dy = normalised.mul_(w) if db is None else torch.addcmul(db, normalised, w)
        else:
            dy = layer_norm(x, normalized_shape, dw, db, eps).addcmul_(normalised, w)
    return forward_ad.make_dual(y, dy)


def _gelu(input: Tensor, approximate: str = "none") -> Tensor | None:
    """y = gelu(x);  ẏ = gelu'(x) ∘ ẋ, which the backward kernel gives."""
    x, dx = _parts(input)
    if dx is None:
        return None
    y = F.gelu(x, approximate=approximate)
    with torch.no_grad():
        dy = torch.ops.aten.gelu_backward(dx, x, approximate=approximate)
    return forward_ad.make_dual(y, dy)


def _sigmoid(input: Tensor) -> Tensor | None:
    """y = σ(x);  ẏ = y ∘ (1 − y) ∘ ẋ, which the backward kernel gives."""
    x, dx = _parts(input)
    if dx is None:
        return None
    y = torch.sigmoid(x)
    with torch.no_grad():
        dy = torch.ops.aten.sigmoid_backward(dx, y)
    return forward_ad.make_dual(y, dy)


def _mul(input: Tensor, other: Any) -> Tensor | None:
    """y = a ∘ b;  ẏ = a ∘ ḃ + ȧ ∘ b. b: a tensor or a number."""
    (a, da), (b, db) = _parts(input), _parts(other)
    dtypes = {value.dtype for value in (a, b) if isinstance(value, Tensor)}
    if (da is None and db is None) or len(dtypes) > 1:
        return None
    y = a * b
    with torch.no_grad():
        terms = [factor * tangent for factor, tangent in ((a, db), (b, da)) if tangent is not None]
        dy = terms[0] + terms[1] if len(terms) == 2 else terms[0]
    return forward_ad.make_dual(y, dy)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """y = P v, P = softmax(S), S = s q kᵀ;  ẏ = Ṗ v + P v̇, Ṗ = J_softmax Ṡ, Ṡ = s (q̇ kᵀ + q k̇ᵀ)."""
    (q, dq), (k, dk), (v, dv) = _parts(query), _parts(key), _parts(value)
    if dq is None or dk is None or dv is None or q.dim() < 3:
        return None
    if attn_mask is not None or dropout_p or is_causal or enable_gqa:
        return None
    with torch.no_grad():
        s = q.shape[-1] ** -0.5 if scale is None else scale
        p, dp = _softmax(s * q @ k.mT, s * (dq @ k.mT + q @ dk.mT))  # (..., queries, keys)
        dy = dp @ v + p @ dv
    # The fused kernel's graph does not hold P.
    y = scaled_dot_product_attention(q, k, v, scale=scale) if torch.is_grad_enabled() else p @ v
    return forward_ad.make_dual(y, dy)


def _softmax(x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
    """p = softmax(x) and ṗ = J ẋ. J is symmetric: the backward kernel gives Jᵀ ẋ = J ẋ."""
    p = torch.softmax(x, -1)
    return p, torch.ops.aten._softmax_backward_data(dx, p, -1, x.dtype)


def self_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    width: int,
    heads: int,
    in_weight: Tensor | None,
    in_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_weight: Tensor,
    out_bias: Tensor | None,
    training: bool = True,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    **options: Any,
) -> tuple[Tensor, None] | None:
    """F.multi_head_attention_forward by the functions inside: [q k v] = W x + b, y = W_o attention(q, k, v) + b_o.

    A mode sees nn.MultiheadAttention as one function; these it sees one by one. query: (tokens, samples, width). None
    for what is no plain self-attention.
    """
    unusual = (bias_k, bias_v, add_zero_attn, training and dropout_p > 0, need_weights, *options.values())
    if not (query is key is value) or query.dim() != 3 or in_weight is None:
        return None
    if any(option is not None and option is not False for option in unusual):
        return None
    tokens, samples = query.shape[:2]
    qkv = F.linear(query, in_weight, in_bias).view(tokens, samples, 3, heads, width // heads)
    q, k, v = qkv.permute(2, 1, 3, 0, 4).contiguous().unbind(0)  # (samples, heads, tokens, width of a head)
    y = F.scaled_dot_product_attention(q, k, v).permute(2, 0, 1, 3).reshape(tokens, samples, width)
    return F.linear(y, out_weight, out_bias), None


def _multi_head_attention(*args: Any, **kwargs: Any) -> tuple[Tensor, None] | None:
    with DualRules():
        return self_attention(*args, **kwargs)


def _same_dtype(x: Tensor, w: Tensor) -> bool:
    """Whether x and w meet as they are; under autocast they would be cast first, in-place operations would not."""
    return x.dtype == w.dtype and not torch.is_autocast_enabled(x.device.type)


RULES: dict[Callable, Callable] = {
    linear: _linear,
    conv2d: _conv2d,
    layer_norm: _layer_norm,
    scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
    F.gelu: _gelu,
    torch.sigmoid: _sigmoid,  # with the product, QuickGELU
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _mul),
}
ATTENTION = (scaled_dot_product_attention, F.multi_head_attention_forward)
