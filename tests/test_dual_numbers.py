"""Each rule of the dual numbers against the plain jvp: value, tangent, gradient; and that the rule was at work."""

import contextlib
import threading
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import LayerNorm, QuickGELU
from torch import nn
from torch.autograd import forward_ad

from src import dual_numbers
from src.dual_numbers import fused_jvp
from src.linearize import LinearizedModel, plain_jvp

torch.set_num_threads(1)
CLOSE = {torch.float64: {"rtol": 1e-10, "atol": 1e-11}, torch.float32: {"rtol": 1e-4, "atol": 1e-5}}


class Attention(nn.Module):
    """One projection and scaled_dot_product_attention with some options; x may be cut into heads."""

    def __init__(self, heads=None, **options):
        super().__init__()
        self.qkv, self.heads, self.options = nn.Linear(8, 24), heads, options

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.heads:
            q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, **self.options)


class MultiHead(nn.Module):
    """nn.MultiheadAttention after a linear map, so that its inputs have tangents, too."""

    def __init__(self, cross=False, attention=(), **options):
        super().__init__()
        self.before = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, **dict(attention))
        self.cross, self.options = cross, {"need_weights": False} | options

    def forward(self, x):
        x = self.before(x)
        return self.attention(x, x.tanh() if self.cross else x, x, **self.options)[0]


class Squared(nn.Module):
    """The product of two linear maps, and of a number."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        return 1.5 * self.one(x) * self.other(x)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return self.scale * x * x.detach()


def after_linear(*layers):
    return nn.Sequential(nn.Linear(8, 8), *layers)


def after_conv(*layers):
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *layers)


SEQUENCE, IMAGES, VECTOR = (3, 5, 8), (2, 3, 6, 6), (8,)
MASK = torch.tensor([[True, False, False, False, False]] * 3)
COVERED = {
    "linear": (lambda: after_linear(nn.Linear(8, 4)), F.linear, SEQUENCE),
    "linear, a vector": (lambda: after_linear(nn.Linear(8, 4)), F.linear, VECTOR),
    "linear, no bias": (lambda: after_linear(nn.Linear(8, 3, bias=False)), F.linear, SEQUENCE),
    "gelu": (lambda: after_linear(nn.GELU(), nn.Linear(8, 4)), F.gelu, SEQUENCE),
    "gelu, tanh": (lambda: after_linear(nn.GELU("tanh"), nn.Linear(8, 4)), F.gelu, SEQUENCE),
    "quick gelu": (lambda: after_linear(QuickGELU(), nn.Linear(8, 4)), torch.sigmoid, SEQUENCE),
    "a product": (Squared, torch.Tensor.mul, SEQUENCE),
    "a product with a weight": (lambda: after_linear(Scale()), torch.Tensor.mul, SEQUENCE),
    "conv": (after_conv, F.conv2d, IMAGES),
    "conv, stride": (lambda: after_conv(nn.Conv2d(4, 5, 3, 2, 1, bias=False)), F.conv2d, IMAGES),
    "conv, groups": (lambda: after_conv(nn.Conv2d(4, 4, 3, padding="same", groups=2)), F.conv2d, IMAGES),
    "conv, one image": (after_conv, F.conv2d, IMAGES[1:]),
    "layer norm": (lambda: after_linear(nn.LayerNorm(8)), F.layer_norm, SEQUENCE),
    "layer norm, no bias": (lambda: after_linear(nn.LayerNorm(8, bias=False)), F.layer_norm, SEQUENCE),
    "layer norm, two axes": (lambda: after_linear(nn.LayerNorm((5, 8), eps=0.1)), F.layer_norm, SEQUENCE),
    "layer norm of open_clip": (lambda: after_linear(LayerNorm(8)), F.layer_norm, SEQUENCE),
    "attention": (partial(Attention, 2), F.scaled_dot_product_attention, SEQUENCE),
    "attention, one head": (Attention, F.scaled_dot_product_attention, SEQUENCE),
    "attention, scale": (partial(Attention, 2, scale=0.3), F.scaled_dot_product_attention, SEQUENCE),
    "multi-head": (MultiHead, F.multi_head_attention_forward, SEQUENCE),
    "multi-head, inside": (MultiHead, F.scaled_dot_product_attention, SEQUENCE),
    "multi-head, batch first": (
        partial(MultiHead, attention={"batch_first": True}),
        F.multi_head_attention_forward,
        SEQUENCE,
    ),
    "multi-head, no bias": (partial(MultiHead, attention={"bias": False}), F.multi_head_attention_forward, SEQUENCE),
    "multi-head, dropout off": (
        partial(MultiHead, attention={"dropout": 0.5}),
        F.multi_head_attention_forward,
        SEQUENCE,
    ),
}
LEFT_TO_PYTORCH = {
    "layer norm, no weights": (
        lambda: after_linear(nn.LayerNorm(8, elementwise_affine=False)),
        F.layer_norm,
        SEQUENCE,
    ),
    "attention, causal": (partial(Attention, 2, is_causal=True), F.scaled_dot_product_attention, SEQUENCE),
    "attention, mask": (
        partial(Attention, 2, attn_mask=torch.ones(5, 5, dtype=torch.bool).tril()),
        F.scaled_dot_product_attention,
        SEQUENCE,
    ),
    "multi-head, one sample": (MultiHead, F.multi_head_attention_forward, SEQUENCE[1:]),
    "multi-head, weights": (partial(MultiHead, need_weights=True), F.multi_head_attention_forward, SEQUENCE),
    "multi-head, cross": (partial(MultiHead, True), F.multi_head_attention_forward, SEQUENCE),
    "multi-head, mask": (
        partial(MultiHead, attention={"batch_first": True}, key_padding_mask=MASK),
        F.multi_head_attention_forward,
        SEQUENCE,
    ),
    "multi-head, more keys": (
        partial(MultiHead, attention={"add_bias_kv": True, "add_zero_attn": True}),
        F.multi_head_attention_forward,
        SEQUENCE,
    ),
    "linear, of the input": (after_linear, F.linear, SEQUENCE),
}


@pytest.fixture
def applied(monkeypatch):
    """Names of the functions that went by their rule, in order."""
    names = []

    def watched(function, rule):
        def call(*args, **kwargs):
            result = rule(*args, **kwargs)
            names.extend([] if result is None else [function])
            return result

        return call

    monkeypatch.setattr(dual_numbers, "RULES", {f: watched(f, rule) for f, rule in dual_numbers.RULES.items()})
    return names


def build(make, shape, dtype):
    """(module at θ0, moved parameters θ, input)."""
    torch.manual_seed(0)
    module = make().to(dtype).eval()
    for p in module.parameters():
        p.data += 0.2 * torch.randn_like(p)
    moved = {name: p.detach() + 0.2 * torch.randn_like(p) for name, p in module.named_parameters()}
    return module, moved, torch.randn(shape, dtype=dtype)


def assert_fused_is_plain(module, moved, x, dtype):
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    direction = {name: moved[name] - start[name] for name in start}
    with torch.no_grad():
        plain, fused = (jvp(module, start, direction, {}, (x,), {}) for jvp in (plain_jvp, fused_jvp))
    torch.testing.assert_close(fused, plain, **CLOSE[dtype])

    outputs, gradients = [], []
    for fuse in (False, True):
        linear = LinearizedModel(module, fused=fuse)
        linear.load_state_dict(moved)
        outputs.append(linear(x))
        outputs[-1].square().sum().backward()
        gradients.append([p.grad for p in linear.parameters()])
        linear.zero_grad()
        module.load_state_dict(start)
    torch.testing.assert_close(*outputs, **CLOSE[dtype])
    torch.testing.assert_close(*gradients, **CLOSE[dtype])
    assert all(gradient.any() for gradient in gradients[0])


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("name", COVERED)
def test_a_rule_gives_what_the_plain_jvp_gives(name, dtype, applied):
    make, function, shape = COVERED[name]
    assert_fused_is_plain(*build(make, shape, dtype), dtype)
    assert function in applied


@pytest.mark.parametrize("frozen", ["weight", "bias", "weight,bias"])
@pytest.mark.parametrize("name", ["linear", "layer norm"])
def test_what_is_frozen_has_no_tangent_and_the_rule_still_serves(name, frozen, applied):
    make, function, shape = COVERED[name]
    module, moved, x = build(make, shape, torch.float64)
    start = {key: p.detach().clone() for key, p in module.named_parameters()}
    direction = {
        key: moved[key] - start[key] for key in start if key not in {f"1.{part}" for part in frozen.split(",")}
    }
    params, fixed = {key: start[key] for key in direction}, {key: start[key] for key in start if key not in direction}
    with torch.no_grad():
        plain, fused = (jvp(module, params, direction, fixed, (x,), {}) for jvp in (plain_jvp, fused_jvp))
    torch.testing.assert_close(fused, plain, **CLOSE[torch.float64])
    assert function in applied


@pytest.mark.parametrize("name", LEFT_TO_PYTORCH)
def test_a_case_without_a_rule_is_left_to_pytorch(name, applied):
    make, function, shape = LEFT_TO_PYTORCH[name]
    assert_fused_is_plain(*build(make, shape, torch.float64), torch.float64)
    assert function not in applied


def test_outputs_that_do_not_depend_on_the_parameters_have_tangent_zero():
    class Several(nn.Linear):
        def forward(self, x):
            return {"y": super().forward(x), "x": x, "ranks": x.argsort(), "nothing": None, "width": x.shape[-1]}

    module, x = Several(3, 2), torch.randn(4, 3)
    params = {name: p.detach() for name, p in module.named_parameters()}
    value, tangent = fused_jvp(module, params, params, {}, (x,), {})
    assert torch.equal(value["x"], x)
    torch.testing.assert_close(tangent["y"], value["y"])  # linear in the parameters
    assert not tangent["x"].any() and not tangent["ranks"].any() and tangent["ranks"].dtype == torch.int64
    assert value["width"] == 3 and tangent["width"] == 0 and value["nothing"] is None


def test_other_threads_do_not_see_the_rules(applied):
    with dual_numbers.DualRules(), torch.autograd.forward_ad.dual_level():
        w = torch.autograd.forward_ad.make_dual(torch.ones(2, 2), torch.ones(2, 2))
        thread = threading.Thread(target=lambda: F.linear(w, w))
        thread.start()
        thread.join()
        assert applied == []
        F.linear(w, w)
    assert applied == [F.linear]


@pytest.mark.parametrize(
    "function",
    [
        F.gelu,
        lambda x: F.gelu(x, approximate="tanh"),
        torch.sigmoid,
        lambda x: x * torch.sigmoid(1.702 * x),
        lambda x: x * x.mean(0, keepdim=True) * 0.5,
        lambda x: x.mul(torch.arange(3.0)),
    ],
)
def test_rules_of_activations_are_pytorchs_to_the_bit_without_a_graph(function):
    x, dx = torch.randn(5, 3).requires_grad_(), torch.randn(5, 3)
    found = []
    for rules in (True, False):
        with dual_numbers.DualRules() if rules else contextlib.nullcontext(), forward_ad.dual_level():
            value, tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(x, dx)))
            found.append((value.detach().clone(), tangent.detach().clone(), tangent.requires_grad))
            (gradient,) = torch.autograd.grad(value.sum(), x)
            found[-1] += (gradient,)
    (ours, moved, graph, gradient), (theirs, same, _, expected) = found
    assert torch.equal(ours, theirs) and torch.equal(moved, same) and torch.equal(gradient, expected) and not graph
