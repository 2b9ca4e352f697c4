"""First-order Taylor expansion, in the parameters, of any nn.Module around its initial parameters θ0.

    f_lin(x; θ) = f(x; θ0) + J(x; θ0) (θ − θ0),        J = ∂f/∂θ

Forward-mode differentiation gives both terms in one pass: `plain_jvp`. `LinearizedModel(model, fused=False)` runs this
and backpropagates through it.

The default, `fused=True`, has the same values and gradients at less cost. The gradient with respect to θ of a loss with
∂loss/∂f_lin = g is Jᵀg: it does not depend on θ, and is what backpropagation through f(x; θ0) alone gives. So the
second term needs no graph, and a training step is a standard one at θ0 plus two products per matrix, 5/3 of its
arithmetic. `_AtStart` puts θ0 in the place of θ and hands the gradient on; `fused_jvp` of src.dual_numbers computes the
second term by fused kernels outside the graph.
"""

import contextlib
import functools
import operator
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import nn
from torch.func import debug_unwrap, functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from src import checkpoints
from src.dual_numbers import fused_jvp
from src.modeling import PREPROCESSING, ImageEncoder, has_text
from src.tensors import check_same, displacement

Weights = Mapping[str, torch.Tensor]
Model = TypeVar("Model")
Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")


def plain_jvp(
    module: nn.Module, params: Weights, direction: Weights, fixed: Weights, inputs: tuple, kwargs: dict[str, Any]
) -> tuple[Any, Any]:
    """(f(x; params, fixed), J·direction), where J = ∂f/∂params.

    `direction` has the names of `params`; `fixed` holds the other parameters and buffers, where they are not the
    module's own. Both results have the structure of the module's output.
    """
    with forward_mode_attention():
        terms = torch.func.jvp(
            lambda p: functional_call(module, {**p, **fixed}, inputs, kwargs), (params,), (direction,)
        )
    return terms[0], terms[1]


def not_traced(method: Callable[Concatenate[Model, Inputs], Output]) -> Callable[Concatenate[Model, Inputs], Output]:
    """`torch.compiler.disable`: PyTorch does not trace forward-mode differentiation of modules such as attention.

    It imports the compiler, which takes two seconds of every process. A process that compiles anything has imported it.
    """
    disabled: list[Callable[Concatenate[Model, Inputs], Output]] = []

    @functools.wraps(method)
    def call(self: Model, *inputs: Inputs.args, **kwargs: Inputs.kwargs) -> Output:
        if "torch._dynamo" not in sys.modules:
            return method(self, *inputs, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(method))
        return disabled[0](self, *inputs, **kwargs)

    return call


class LinearizedModel(nn.Module):
    """`model`, linearized around its present parameters, or around those of `init_model`.

    Inputs and outputs are those of `model` (outputs: a tensor or any nest of tensors). Dropout is off and BatchNorm
    uses its running statistics, whatever `train()` says: f must be a function of x and θ alone. θ0 and the buffers that
    f sees are copied at construction; they follow `.to()` but are neither parameters nor in the state dict.

    Parameters, buffers and submodules are `model`'s own, under its own names: `state_dict()` is `model`'s, so
    checkpoints and task vectors of linear and ordinary models share their keys, and `load_state_dict` sets θ alone.
    A frozen parameter gets no gradient, but enters the second term where it differs from θ0; it is compared again where
    PyTorch tells that it was written to, which it does not of a write through `.data`.

    fused: see the head of this file. Gradients with respect to θ are exact either way; gradients of these
    (`backward(create_graph=True)`) need `fused=False`. The transforms of torch.func take the plain way, too;
    torch.compile leaves the forward pass as it is.

    Raises ValueError when the names or shapes of `init_model`'s parameters or buffers are not those of `model`, and
    RuntimeError in the forward pass for an input that requires grad.
    """

    _function: nn.Module

    def __init__(self, model: nn.Module, init_model: nn.Module | None = None, *, fused: bool = True):
        super().__init__()
        init_model = model if init_model is None else init_model
        self.fused = fused
        self.params0 = _copies("parameters", dict(init_model.named_parameters()), dict(model.named_parameters()))
        self._compared: dict[str, tuple[tuple[torch.Tensor, ...], list[int], bool]] = {}  # see _as_at_start
        self.buffers0 = _copies("buffers", dict(init_model.named_buffers()), dict(model.named_buffers()))
        # `model` itself must not become a submodule, or every name would start with its attribute's.
        object.__setattr__(self, "_function", model.eval())
        for registry in ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"):
            self.__dict__[registry] = model.__dict__[registry]

    @property
    def function(self) -> nn.Module:
        """f: the model that is linearized, with θ for its parameters."""
        return self._function

    @not_traced
    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        self._keep_evaluating()
        _refuse_gradients_of(inputs, kwargs)
        params = dict(self.named_parameters())
        plain = not self.fused or _transformed(params, inputs, kwargs)
        with _forward_mode(self._function):
            f0, jd = (self._plain if plain else self._fused)(params, inputs, kwargs)
        return tree_map(operator.add, f0, jd)

    def displacement(self, *inputs: Any) -> Any:
        """J(x; θ0) (θ − θ0), with its gradient to θ: what θ adds to f(x; θ0)."""
        self._keep_evaluating()
        _refuse_gradients_of(inputs, {})
        params = dict(self.named_parameters())
        with _forward_mode(self._function):
            if not self.fused:
                return self._plain(params, inputs, {})[1]
            f0, jd = self._fused(params, inputs, {})
        # The graph of f0 is that of the sum: its value leaves, its gradient stays.
        return tree_map(lambda start, tangent: tangent + (start - start.detach()), f0, jd)

    def _plain(self, params: Weights, inputs: tuple, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """f(x; θ0) and J(x; θ0) (θ − θ0), the latter with a graph to θ."""
        direction = displacement(params, self.params0)
        return plain_jvp(self._function, self.params0, direction, self.buffers0, inputs, kwargs)

    def _fused(self, params: Weights, inputs: tuple, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The same two terms, the former with the graph of their sum to θ."""
        # A frozen parameter that is where it started needs neither gradient nor tangent.
        moving = {n: p for n, p in params.items() if p.requires_grad or not self._as_at_start(n, p)}
        with torch.no_grad():
            direction = displacement(moving, self.params0)
        start = {name: _AtStart.apply(p, self.params0[name]) for name, p in moving.items()}
        fixed = {name: p0 for name, p0 in self.params0.items() if name not in moving}
        return fused_jvp(self._function, start, direction, {**self.buffers0, **fixed}, inputs, kwargs)

    def _as_at_start(self, name: str, parameter: torch.Tensor) -> bool:
        """Whether a frozen parameter equals θ0: compared again where one of the two is another, or was written to."""
        pair = parameter, self.params0[name]
        if any(tensor.is_inference() for tensor in pair):  # these do not tell of being written to
            return torch.equal(*pair)
        written = [tensor._version for tensor in pair]
        known = self._compared.get(name)
        if known is None or known[0][0] is not pair[0] or known[0][1] is not pair[1] or known[1] != written:
            known = self._compared[name] = pair, written, torch.equal(*pair)
        return known[2]

    def train(self, mode: bool = True) -> "LinearizedModel":
        """Remember `mode` in `training`; the function that is linearized stays in evaluation mode."""
        super().train(False)
        self.training = mode
        return self

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

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "LinearizedModel":
        super()._apply(fn, recurse)
        self.params0 = {name: fn(p) for name, p in self.params0.items()}
        self.buffers0 = {name: fn(b) for name, b in self.buffers0.items()}
        return self

    # `model`'s own hooks, versions and extra state apply to its names.
    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        self._function._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._function._load_from_state_dict(*args, **kwargs)


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
            image_encoder = ImageEncoder(args, keep_lang=keep_lang)
        super().__init__(image_encoder, init_encoder)
        for attribute in PREPROCESSING:
            if hasattr(image_encoder, attribute):  # one's own encoder need not have them all
                setattr(self, attribute, getattr(image_encoder, attribute))

    def save(self, path: str | Path, **header: Any) -> None:
        """Write θ as ImageEncoder.save does, as that of a linearized model. θ0 is not written, but `load` tells it."""
        image = {name: start for name, start in self.params0.items() if name.startswith(checkpoints.VISUAL)}
        own = {"model": getattr(self, "model_name", None), "mode": "linear"}
        own["around"] = checkpoints.fingerprint(image)
        checkpoints.save(Path(path), self.state_dict(), own | header)

    @classmethod
    def load(cls, run, path: str | Path) -> "LinearizedImageEncoder":
        """The model of a checkpoint's θ, linearized around the run's θ0.

        Raises CheckpointError for another model's, and for one that was linearized around other weights.
        """
        file = checkpoints.Checkpoint(Path(path), model=run.model)
        encoder = cls(run, keep_lang=has_text(file))
        image = {name: start for name, start in encoder.params0.items() if name.startswith(checkpoints.VISUAL)}
        if file.header.get("around") not in (None, around := checkpoints.fingerprint(image)):
            raise checkpoints.CheckpointError(
                f"{path}: expected a model that was linearized around the run's θ0 ({around}), found one around other "
                f"weights ({file.header['around']}); build it with init_encoder, and load_state_dict"
            )
        encoder.load_state_dict(checkpoints.load(file.path, model=run.model, like=encoder.state_dict()))
        return encoder


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
    start = {name: p.detach() for name, p in module.named_parameters()}
    start |= {aliases[name]: params0[name].detach() for name in params0 if name in aliases}
    moved = {aliases[name]: direction[name].to(start[aliases[name]]) for name in direction if name in aliases}
    fixed = {name: p for name, p in start.items() if name not in moved}
    fixed |= {name: params0[name] for name in params0 if name in buffers}
    with _forward_mode(module):
        return fused_jvp(module, {name: start[name] for name in moved}, moved, fixed, inputs, {})


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


_lock = threading.RLock()  # PyTorch has one level of forward-mode differentiation in a process, for all threads


@contextlib.contextmanager
def _forward_mode(module: nn.Module) -> Iterator[None]:
    """Where forward-mode differentiation of `module` works: in one thread at a time, with the kernels that have it."""
    with _lock, contextlib.ExitStack() as stack:
        if any(isinstance(m, nn.RNNBase) for m in module.modules()):
            # oneDNN's and cuDNN's recurrent layers have no forward-mode formula.
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        # inference_mode turns forward-mode differentiation off without a word: every tangent would be lost.
        gradients = torch.is_grad_enabled()
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        yield


class _AtStart(torch.autograd.Function):
    """(θ, θ0) -> θ0, with the gradient handed to θ."""

    @staticmethod
    def forward(ctx: Any, theta: torch.Tensor, theta0: torch.Tensor) -> torch.Tensor:
        return theta0.view_as(theta0)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        if torch.is_grad_enabled():
            # A second derivative would see θ0's second derivatives of f, which f_lin does not have.
            raise RuntimeError("second derivatives need LinearizedModel(model, fused=False)")
        return gradients[0], None


def _tensors(*nests: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(nests) if isinstance(leaf, torch.Tensor))


def _refuse_gradients_of(inputs: tuple, kwargs: dict[str, Any]) -> None:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in _tensors(inputs, kwargs)):
        # PyTorch's tangent of layer_norm, differentiated in x, holds the statistics of x constant:
        # https://github.com/pytorch/pytorch/issues/196700
        raise RuntimeError(
            "expected inputs of a linearized model without requires_grad, found one with it: f_lin is differentiated "
            "in its parameters alone. Call detach() on the input"
        )


def _transformed(*nests: Any) -> bool:
    """Whether a transform of torch.func (grad, vmap, ...) is at work on any of the tensors."""
    return any(debug_unwrap(tensor, recurse=False) is not tensor for tensor in _tensors(*nests))


def _copies(what: str, source: Weights, like: Weights) -> dict[str, torch.Tensor]:
    """Copies of `source` with the devices and types of `like`, after checking that names and shapes agree."""
    check_same(like, source, f"the {what} of model and init_model")
    return {name: source[name].detach().to(like[name], copy=True) for name in like}
