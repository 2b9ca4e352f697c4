"""First-order Taylor expansion, in the parameters, of any nn.Module around its initial parameters θ0.

    f_lin(x; θ) = f(x; θ0) + J(x; θ0) (θ − θ0),        J = ∂f/∂θ

One pass over dual numbers (θ0 + ε (θ − θ0), forward-mode differentiation) gives both terms.

The gradient with respect to θ of a loss with ∂loss/∂f_lin = g is Jᵀg: it does not depend on θ, and is what
backpropagation through f(x; θ0) alone gives. So the tangents need no graph, and a training step is a standard one at θ0
plus two tangent products per matrix: 5/3 of its arithmetic. `_Substitute` puts θ0 in the place of θ and hands the
gradient on; `_dual_numbers` computes the tangents of linear maps, convolutions, layer norms and attention by fused
kernels outside the graph. (Backpropagating through the tangents has the same arithmetic, but more passes over memory.)
"""

import contextlib
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

with warnings.catch_warnings():
    # The first dual number loads these; on PyTorch 2.15 that warns about PyTorch's own use of torch.jit.script.
    warnings.simplefilter("ignore", FutureWarning)
    from torch._decomp import decompositions_for_jvp  # noqa: F401

Weights = dict[str, torch.Tensor]


class LinearizedModel(nn.Module):
    """`model`, linearized around its present parameters, or around those of `init_model`.

    Inputs and outputs are those of `model` (outputs: a tensor or any nest of tensors). Dropout is off and BatchNorm
    uses its running statistics, whatever `train()` says: f must be a function of x and θ alone. θ0 and the buffers that
    f sees are copied at construction; they follow `.to()` but are neither parameters nor in the state dict.

    Parameters, buffers and submodules are `model`'s own, under its own names: `state_dict()` is `model`'s, so
    checkpoints and task vectors of linear and ordinary models share their keys, and `load_state_dict` sets θ alone.
    A frozen parameter gets no gradient, but enters the tangent where it differs from θ0.

    The graph that the output carries gives exact gradients with respect to θ, once. When an input requires grad, or
    under torch.compile and torch.func, the expansion is differentiated as it stands instead (about a fifth slower);
    `twice_differentiable=True` asks for that always, which `backward(create_graph=True)` needs.

    Raises ValueError when the names or shapes of `init_model`'s parameters or buffers are not those of `model`.
    """

    def __init__(self, model: nn.Module, init_model: nn.Module | None = None, *, twice_differentiable: bool = False):
        super().__init__()
        init_model = init_model or model
        self.twice_differentiable = twice_differentiable
        self.params0 = _copies("parameters", dict(init_model.named_parameters()), dict(model.named_parameters()))
        self.buffers0 = _copies("buffers", dict(init_model.named_buffers()), dict(model.named_buffers()))
        # `model` itself must not become a submodule, or every name would start with its attribute's.
        object.__setattr__(self, "_function", model.eval())
        for registry in ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"):
            self.__dict__[registry] = model.__dict__[registry]

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        self._keep_evaluating()
        params = dict(self.named_parameters())
        # A frozen parameter that is where it started needs neither gradient nor tangent.
        moved = [n for n, p in params.items() if p.requires_grad or not torch.equal(p, self.params0[n])]
        if self._differentiates_as_it_stands(inputs, kwargs):
            return self._expand(params, moved, inputs, kwargs)

        with torch.no_grad():
            tangents = {name: params[name] - self.params0[name] for name in moved}
        primals = dict(self.params0)
        if torch.is_grad_enabled():
            primals |= {n: _Substitute.apply(params[n], primals[n]) for n in moved if params[n].requires_grad}
        pairs, structure = _dual_call(self._function, primals, tangents, self.buffers0, inputs, kwargs)
        return tree_unflatten([f0 if jd is None else f0 + jd.detach() for f0, jd in pairs], structure)

    def jvp_features(self, images: Any, direction: Mapping[str, torch.Tensor]) -> tuple[Any, Any]:
        """(f(x; θ0), J·direction), without a graph: f_lin(x; θ0 + α·direction) is the first plus α times the second."""
        self._keep_evaluating()
        return forward_and_jvp(self._function, self.params0 | self.buffers0, direction, images)

    def train(self, mode: bool = True) -> "LinearizedModel":
        """Remember `mode` in `training`; the function that is linearized stays in evaluation mode."""
        super().train(False)
        self.training = mode
        return self

    def _expand(self, params: Weights, moved: list[str], inputs: tuple, kwargs: dict) -> Any:
        """The expansion by torch.func.jvp, differentiable in every argument and to any order."""
        fixed = self.buffers0 | {name: p0 for name, p0 in self.params0.items() if name not in moved}
        params0 = {name: self.params0[name] for name in moved}
        direction = {name: params[name] - self.params0[name] for name in moved}
        with _lock, _forward_mode_kernels(self._function), _functions(_TWICE):
            f0, jd = torch.func.jvp(
                lambda p: functional_call(self._function, p | fixed, inputs, kwargs), (params0,), (direction,)
            )
        return tree_map(torch.add, f0, jd)

    def _differentiates_as_it_stands(self, inputs: tuple, kwargs: dict) -> bool:
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return True
        if not torch.is_grad_enabled():
            return False
        tensors = (leaf for leaf in tree_leaves((inputs, kwargs)) if isinstance(leaf, torch.Tensor))
        return self.twice_differentiable or any(t.requires_grad for t in tensors)

    def _keep_evaluating(self) -> None:
        """Undo a `train()` that reached the submodules around this one; refuse what recomputes f after θ0 has left."""
        modules = list(self._function.modules())
        if any(module.training for module in modules):
            self._function.eval()
        if any(getattr(module, "grad_checkpointing", False) for module in modules):
            raise RuntimeError(
                "a linearized model cannot recompute activations (it would do so at θ, not at θ0): "
                "call set_grad_checkpointing(False)"
            )

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.params0 = {name: fn(p) for name, p in self.params0.items()}
        self.buffers0 = {name: fn(b) for name, b in self.buffers0.items()}
        return self

    # `model`'s own hooks, versions and extra state apply to its names.
    def _save_to_state_dict(self, destination, prefix, keep_vars):
        self._function._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args):
        self._function._load_from_state_dict(*args)


class LinearizedImageEncoder(LinearizedModel):
    """`ImageEncoder`, linearized: the same names, attributes and features.

    args, keep_lang: as for ImageEncoder, which is built from them unless `image_encoder` is given.
    init_encoder: the encoder around whose weights to linearize; by default the image encoder's present ones.
    """

    def __init__(
        self,
        args=None,
        keep_lang: bool = False,
        image_encoder: nn.Module | None = None,
        init_encoder: nn.Module | None = None,
    ):
        if image_encoder is None:
            from src.modeling import ImageEncoder

            image_encoder = ImageEncoder(args, keep_lang=keep_lang)
        super().__init__(image_encoder, init_encoder)
        for attribute in ("tokenizer", "train_preprocess", "val_preprocess", "image_size", "mean", "std"):
            setattr(self, attribute, getattr(image_encoder, attribute))


@torch.no_grad()
def forward_and_jvp(
    module: nn.Module, params0: Mapping[str, torch.Tensor], direction: Mapping[str, torch.Tensor], *inputs: Any
) -> tuple[Any, Any]:
    """(f(x; params0), J(x; params0)·direction) in one pass, without a graph; `module` itself is left as it is.

    params0: parameters and buffers; those it lacks are the module's own. direction: parameters; those it lacks do not
    move, and buffers in it do not count (J has no columns for them).
    Raises ValueError for a module in training mode, KeyError for names that the module does not have.
    """
    if module.training:
        raise ValueError("expected a module in evaluation mode: call eval() first")
    owners = {id(p): name for name, p in module.named_parameters()}  # a tied parameter counts under its first name
    aliases = {name: owners[id(p)] for name, p in module.named_parameters(remove_duplicate=False)}
    buffers = dict(module.named_buffers())
    for role, given in (("parameters", params0), ("direction", direction)):
        if unknown := [name for name in given if name not in aliases and name not in buffers]:
            raise KeyError(f"{role}: {', '.join(unknown[:4])} not among the module's parameters and buffers")
    primals = {name: p.detach() for name, p in module.named_parameters()}
    primals |= {aliases[name]: params0[name].detach() for name in params0 if name in aliases}
    fixed = {name: params0[name] for name in params0 if name in buffers}
    tangents = {aliases[n]: direction[n].to(primals[aliases[n]]) for n in direction if n in aliases}
    pairs, structure = _dual_call(module, primals, tangents, fixed, inputs, {})
    values = [f0 for f0, _ in pairs]
    jvps = [torch.zeros_like(f0) if jd is None else jd for f0, jd in pairs]
    return tree_unflatten(values, structure), tree_unflatten(jvps, structure)


@contextlib.contextmanager
def forward_mode_attention() -> Iterator[None]:
    """Let attention run only through kernels that can be differentiated forward; restores what was set before.

    The inference fast path of nn.MultiheadAttention and the fused kernels of scaled_dot_product_attention have no
    forward-mode formula.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextlib.contextmanager
def _forward_mode_kernels(module: nn.Module) -> Iterator[None]:
    """forward_mode_attention, and for recurrent layers the same: oneDNN's and cuDNN's have no forward-mode formula."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(forward_mode_attention())
        if any(isinstance(m, nn.RNNBase) for m in module.modules()):
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


class _Substitute(torch.autograd.Function):
    """(θ, θ0) -> θ0, with the gradient handed to θ."""

    @staticmethod
    def forward(ctx, theta, theta0):
        return theta0.view_as(theta0)

    @staticmethod
    def backward(ctx, gradient):
        if torch.is_grad_enabled():
            # A second derivative would see θ0's second derivatives of f, which f_lin does not have.
            raise RuntimeError("second derivatives need LinearizedModel(model, twice_differentiable=True)")
        return gradient, None


def _dual_call(
    module: nn.Module, primals: Weights, tangents: Weights, fixed: Weights, inputs: tuple, kwargs: dict
) -> tuple[list[tuple[Any, torch.Tensor | None]], Any]:
    """Run `module` on primals + ε·tangents: [(value, tangent or None)] of the output's leaves, and its structure."""
    with _dual_numbers(module):
        duals = {n: forward_ad.make_dual(p, tangents[n]) if n in tangents else p for n, p in primals.items()}
        leaves, structure = tree_flatten(functional_call(module, duals | fixed, inputs, kwargs))
        return [_split(leaf) for leaf in leaves], structure


_lock = threading.RLock()  # what _dual_numbers sets is the process's, as is PyTorch's forward-mode level
_PLAIN = {
    name: getattr(F, name)
    for name in ("linear", "conv2d", "layer_norm", "instance_norm", "batch_norm", "scaled_dot_product_attention")
}
_KERNELS = {
    SDPBackend.FLASH_ATTENTION: torch.backends.cuda.flash_sdp_enabled,
    SDPBackend.EFFICIENT_ATTENTION: torch.backends.cuda.mem_efficient_sdp_enabled,
    SDPBackend.CUDNN_ATTENTION: torch.backends.cuda.cudnn_sdp_enabled,
    SDPBackend.MATH: torch.backends.cuda.math_sdp_enabled,
}


@contextlib.contextmanager
def _functions(replacements: Mapping[str, Callable]) -> Iterator[None]:
    """Put functions in the place of torch.nn.functional's, but for those that someone else has replaced already."""
    ours = {name: function for name, function in replacements.items() if getattr(F, name) is _PLAIN[name]}
    try:
        for name, function in ours.items():
            setattr(F, name, function)
        yield
    finally:
        for name in ours:
            setattr(F, name, _PLAIN[name])


@contextlib.contextmanager
def _dual_numbers(module: nn.Module) -> Iterator[None]:
    """Forward-mode differentiation, with our own rules for the functions that a network spends its time in.

    PyTorch's rules are correct, but record a graph of the tangent wherever a weight requires grad, and add up in
    several passes what one fused kernel gives. Ours serve the usual case and leave every other to PyTorch's.
    """
    with _lock, contextlib.ExitStack() as stack:
        kernels = [kernel for kernel, enabled in _KERNELS.items() if enabled()]
        rules = {
            "linear": _linear,
            "conv2d": _conv2d,
            "layer_norm": _layer_norm,
            "scaled_dot_product_attention": partial(_attention, kernels),
        }
        stack.enter_context(_forward_mode_kernels(module))
        stack.enter_context(_functions(rules))
        # inference_mode turns forward-mode differentiation off without a word: every tangent would be lost.
        gradients = torch.is_grad_enabled()
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        stack.enter_context(forward_ad.dual_level())
        yield


def _split(x: Any) -> tuple[Any, torch.Tensor | None]:
    """(value, tangent) of a dual number; the tangent of anything else is None."""
    return tuple(forward_ad.unpack_dual(x)) if isinstance(x, torch.Tensor) and x.is_floating_point() else (x, None)


def _linear(input, weight, bias=None):
    """y = W x + b;  ẏ = Ẇ x + W ẋ + ḃ."""
    (x, dx), (w, dw), (b, db) = _split(input), _split(weight), _split(bias)
    if dx is None or dw is None or (b is not None and db is None) or not _same_dtype(x, w):
        return _PLAIN["linear"](input, weight, bias)
    shape = (*x.shape[:-1], w.shape[0])
    x, dx = x.reshape(-1, x.shape[-1]), dx.reshape(-1, x.shape[-1])  # (tokens, in): what one addmm takes
    y = _PLAIN["linear"](x, w, b)
    with torch.no_grad():
        dy = _PLAIN["linear"](x, dw, db).addmm_(dx, w.t())
    return forward_ad.make_dual(y.view(shape), dy.view(shape))


def _conv2d(input, weight, bias=None, *options, **named):
    """y = W ∗ x + b;  ẏ = Ẇ ∗ x + W ∗ ẋ + ḃ."""
    (x, dx), (w, dw), (b, db) = _split(input), _split(weight), _split(bias)
    if dw is None or (b is not None and db is None) or not _same_dtype(x, w):
        return _PLAIN["conv2d"](input, weight, bias, *options, **named)
    y = _PLAIN["conv2d"](x, w, b, *options, **named)
    with torch.no_grad():
        dy = _PLAIN["conv2d"](x, dw, db, *options, **named)
        if dx is not None:
            dy += _PLAIN["conv2d"](dx, w, None, *options, **named)
    return forward_ad.make_dual(y, dy)


def _layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    """y = w ∘ n(x) + b;  ẏ = ẇ ∘ n(x) + ḃ + w ∘ J_n ẋ. J_n is symmetric, so the backward kernel gives J_n ẋ."""
    (x, dx), (w, dw), (b, db) = _split(input), _split(weight), _split(bias)
    if dx is None or dw is None or (b is not None and db is None) or not _same_dtype(x, w):
        return _PLAIN["layer_norm"](input, normalized_shape, weight, bias, eps)
    y, mean, rstd = torch.native_layer_norm(x, normalized_shape, w, b, eps)
    with torch.no_grad():
        moved = torch.ops.aten.native_layer_norm_backward(
            dx, x, normalized_shape, mean, rstd, None, None, [True, False, False]
        )[0]
        dy = _PLAIN["layer_norm"](x, normalized_shape, dw, db, eps).addcmul_(moved, w)
    return forward_ad.make_dual(y, dy)


def _attention(
    kernels, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """y = P v, P = softmax(S), S = s q kᵀ;  ẏ = Ṗ v + P v̇, Ṗ = J_softmax Ṡ, Ṡ = s (q̇ kᵀ + q k̇ᵀ).

    J_softmax is symmetric too. With a graph, y comes from the kernels that were enabled before, which store no P.
    """
    pairs = [_split(t) for t in (query, key, value)]
    plain = attn_mask is None and not dropout_p and not is_causal and not enable_gqa
    if not plain or query.dim() < 3 or any(tangent is None for _, tangent in pairs):
        return _PLAIN["scaled_dot_product_attention"](
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    (q, dq), (k, dk), (v, dv) = pairs
    with torch.no_grad():
        s = q.shape[-1] ** -0.5 if scale is None else scale
        p = torch.softmax(s * q @ k.mT, -1)  # (..., queries, keys)
        ds = s * (dq @ k.mT + q @ dk.mT)
        dp = torch.ops.aten._softmax_backward_data(ds, p, -1, p.dtype)
        dy = dp @ v + p @ dv
    if not torch.is_grad_enabled():
        return forward_ad.make_dual(p @ v, dy)
    with sdpa_kernel(kernels):
        return forward_ad.make_dual(_PLAIN["scaled_dot_product_attention"](q, k, v, scale=scale), dy)


# PyTorch's tangents of layer_norm, and of whatever normalises by its batch, hold the statistics of x constant when they
# are differentiated in x (https://github.com/pytorch/pytorch/issues/196700). Those of group_norm are right.


def _layer_norm_twice(x, normalized_shape, weight=None, bias=None, eps=1e-5):
    weight, bias = (None if p is None else p.flatten() for p in (weight, bias))
    return F.group_norm(x.reshape(-1, math.prod(normalized_shape)), 1, weight, bias, eps).view(x.shape)


def _instance_norm_twice(x, mean=None, var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5):
    if not use_input_stats:
        return _PLAIN["instance_norm"](x, mean, var, weight, bias, use_input_stats, momentum, eps)
    return F.group_norm(x, x.shape[1], weight, bias, eps)


def _batch_norm_twice(x, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    if not training:
        return _PLAIN["batch_norm"](x, mean, var, weight, bias, training, momentum, eps)
    channels = x.transpose(0, 1)  # (channels, images, ...): one image whose pixels are all images'
    rows = F.group_norm(channels.reshape(1, len(channels), -1), len(channels), weight, bias, eps)
    return rows.view(channels.shape).transpose(0, 1)


_TWICE = {"layer_norm": _layer_norm_twice, "instance_norm": _instance_norm_twice, "batch_norm": _batch_norm_twice}


def _same_dtype(x: torch.Tensor, w: torch.Tensor) -> bool:
    """Whether x and w meet as they are; under autocast they would be cast first, in-place operations would not."""
    return x.dtype == w.dtype and not torch.is_autocast_enabled(x.device.type)


def _copies(what: str, source: Weights, like: Weights) -> Weights:
    """Copies of `source` with the devices and types of `like`, after checking that names and shapes agree."""
    if names := sorted(source.keys() ^ like.keys()):
        raise ValueError(f"model and init_model differ in their {what}: {', '.join(names[:4])}")
    if names := [name for name in like if source[name].shape != like[name].shape]:
        shapes = [f"{name} {tuple(like[name].shape)} and {tuple(source[name].shape)}" for name in names[:4]]
        raise ValueError(f"model and init_model differ in the shapes of their {what}: {', '.join(shapes)}")
    return {name: source[name].detach().to(like[name], copy=True) for name in like}
