"""The linearized model against dense Jacobians in float64, for many kinds of module; what it leaves as it was."""

import copy
import threading
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.distributed
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from src.linearize import LinearizedImageEncoder, LinearizedModel, forward_and_jvp, forward_mode_attention

torch.set_num_threads(1)
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def tower(width=16, side=8, **options):
    return VisionTransformer(side, 4, width, layers=2, heads=2, mlp_ratio=2.0, output_dim=4, **options)


class ConvNet(nn.Module):
    """Convolutions of several kinds, BatchNorm with statistics of its own, dropout, an in-place activation."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, padding="same", groups=2),
            nn.ConvTranspose2d(4, 4, 2, 2),
            nn.GELU(),
            nn.GroupNorm(2, 4),
        )
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 8 * 8, 3, bias=False))
        nn.init.normal_(self.features[1].running_mean)
        nn.init.uniform_(self.features[1].running_var, 0.5, 2.0)

    def forward(self, x):
        return self.head(self.features(x))


class Tied(nn.Module):
    """The embedding and the decoder are one tensor; attention is causal."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.decoder = nn.Linear(8, 5)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return self.decoder(self.attention(x, x, x, attn_mask=mask, need_weights=False)[0])[:, -1]


class TwoInputs(nn.Module):
    """Cross-attention of two inputs, a keyword, a parameter that nothing uses, and a layer norm without weights."""

    def __init__(self):
        super().__init__()
        self.q, self.kv = nn.Linear(4, 6), nn.Linear(3, 12)
        self.norm = nn.LayerNorm(6, elementwise_affine=False)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x, context, power=1):
        k, v = self.kv(context).chunk(2, -1)
        return self.norm(F.scaled_dot_product_attention(self.q(x), k, v, scale=0.7)).sum(1) ** power


class Norms(nn.Module):
    """Normalisations whose statistics depend on x in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4, track_running_stats=False),
            nn.SiLU(),
            nn.InstanceNorm2d(4, affine=True),
            nn.Conv2d(4, 4, 3),
            nn.LayerNorm((4, 4, 4), bias=False),
        )

    def forward(self, x):
        return self.layers(x).square().mean((2, 3))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def encoder_layer():
    """Its evaluation takes another fast path than nn.MultiheadAttention's."""
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)


IMAGES, ROWS, SEQUENCE = (3, 3, 8, 8), (3, 4), (2, 3, 8)
KINDS = {
    "open_clip tower": (tower, IMAGES),
    "open_clip tower, QuickGELU": (partial(tower, act_layer=QuickGELU), IMAGES),
    "open_clip tower, its own attention": (partial(tower, qk_norm=True), IMAGES),
    "open_clip tower, pooled by attention": (partial(tower, attentional_pool=True, attn_pooler_heads=2), IMAGES),
    "convolutions and BatchNorm": (ConvNet, IMAGES),
    "tied weights": (Tied, "tokens"),
    "several inputs": (TwoInputs, (2, 5, 4), (2, 3, 3)),
    "statistics of the batch": (Norms, IMAGES),
    "LSTM": (Recurrent, (2, 5, 3)),
    "encoder layer": (encoder_layer, SEQUENCE),
    "one BatchNorm": (partial(nn.BatchNorm1d, 4), ROWS),
    "one linear map of a vector": (partial(nn.Linear, 4, 3), (4,)),
}


def disturb(module, scale=0.1, seed=1):
    """Move every parameter in place; returns the module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return module


def build(kind):
    """(module in float64, θ0 with no parameter at a special value; its inputs)."""
    torch.manual_seed(0)
    make, *shapes = KINDS[kind]
    if shapes == ["tokens"]:
        return disturb(make().double()), (torch.randint(0, 5, (2, 4)),)
    return disturb(make().double()), tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)


def dense(module, inputs):
    """(f(x; θ0) flat, {name: ∂f/∂θ (outputs, *shape)}) by reverse mode, one output at a time."""
    module = copy.deepcopy(module).eval()
    params = dict(module.named_parameters())
    out = functional_call(module, params, inputs).flatten()
    rows = [torch.autograd.grad(o, list(params.values()), retain_graph=True, materialize_grads=True) for o in out]
    return out.detach(), {name: torch.stack(columns) for name, columns in zip(params, zip(*rows))}


def apply(jacobian, direction):
    return sum(j.flatten(1) @ direction[name].flatten() for name, j in jacobian.items())


@pytest.fixture(params=KINDS)
def case(request):
    module, inputs = build(request.param)
    return module, inputs, dense(module, inputs)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
def test_value_and_gradient_are_those_of_the_dense_jacobian(case, fused):
    module, inputs, (f0, jacobian) = case
    linear = LinearizedModel(module, fused=fused).train()
    disturb(linear, seed=2)
    moved = {name: p.detach() - linear.params0[name] for name, p in linear.named_parameters()}
    expected = f0 + apply(jacobian, moved)
    out = linear(*inputs)
    torch.testing.assert_close(out.detach().flatten(), expected, **CLOSE)
    with torch.no_grad():
        torch.testing.assert_close(linear(*inputs).flatten(), expected, **CLOSE)
    with torch.inference_mode():
        torch.testing.assert_close(linear(*inputs).flatten().clone(), expected, **CLOSE)

    g = torch.randn_like(out)
    out.backward(g)
    for name, p in linear.named_parameters():
        gradient = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(gradient, (g.flatten() @ jacobian[name].flatten(1)).view_as(p), **CLOSE)


def test_is_the_model_at_theta0_and_affine_in_theta(case):
    module, inputs, (f0, _) = case
    linear = LinearizedModel(module)
    with torch.no_grad():
        torch.testing.assert_close(linear(*inputs).flatten(), f0, **CLOSE)
    start = copy.deepcopy(linear.state_dict())
    end = disturb(copy.deepcopy(linear)).state_dict()

    def at(t):
        mixed = {n: (1 - t) * w + t * end[n] if w.is_floating_point() else w for n, w in start.items()}
        linear.load_state_dict(mixed)
        with torch.no_grad():
            return linear(*inputs)

    torch.testing.assert_close(at(-1.7), 2.7 * at(0.0) - 1.7 * at(1.0), rtol=1e-8, atol=1e-9)


def test_forward_and_jvp_are_the_two_terms(case):
    module, inputs, (f0, jacobian) = case
    module.eval()
    params0 = {name: p.detach().clone() for name, p in module.named_parameters()}
    direction = {name: torch.randn_like(p) for name, p in params0.items()}
    disturb(module, seed=3)  # what is in the module does not count
    for subset in (direction, dict(list(direction.items())[:1]), {}):
        value, jvp = forward_and_jvp(module, params0, subset, *inputs)
        torch.testing.assert_close(value.flatten(), f0, **CLOSE)
        full = {name: subset.get(name, torch.zeros_like(p)) for name, p in params0.items()}
        torch.testing.assert_close(jvp.flatten(), apply(jacobian, full), **CLOSE)
        assert not value.requires_grad and not jvp.requires_grad
    with torch.inference_mode():
        inferred = forward_and_jvp(module, params0, direction, *inputs)[1].clone()
    assert torch.equal(inferred, forward_and_jvp(module, params0, direction, *inputs)[1])


def test_coefficients_come_from_one_jvp():
    module, (images,) = build("open_clip tower")
    linear = LinearizedModel(module)
    tau = {name: torch.randn_like(p) for name, p in linear.params0.items()}
    f0, slope = forward_and_jvp(module, linear.params0, tau, images)
    for alpha in (-1.0, 0.3, 2.0):
        linear.load_state_dict({name: linear.params0[name] + alpha * tau[name] for name in tau})
        torch.testing.assert_close(linear(images).detach(), f0 + alpha * slope, **CLOSE)


def test_direction_may_name_tied_weights_and_buffers_and_nothing_else():
    tied, tokens = build("tied weights")
    tied.eval()
    direction = {"embedding.weight": torch.randn(5, 8).double()}
    _, expected = forward_and_jvp(tied, {}, direction, *tokens)
    for names in (["decoder.weight"], ["embedding.weight", "decoder.weight"]):
        given = dict.fromkeys(names, direction["embedding.weight"])
        assert torch.equal(forward_and_jvp(tied, tied.state_dict(), given, *tokens)[1], expected)

    conv, images = build("convolutions and BatchNorm")
    conv.eval()
    whole = {name: torch.ones_like(t) for name, t in conv.state_dict().items()}  # as a task vector of state dicts has
    params = {name: whole[name] for name, _ in conv.named_parameters()}
    assert torch.equal(forward_and_jvp(conv, {}, whole, *images)[1], forward_and_jvp(conv, {}, params, *images)[1])
    with pytest.raises(KeyError, match="direction: nose"):
        forward_and_jvp(conv, {}, {"nose": torch.zeros(1)}, *images)
    with pytest.raises(KeyError, match="parameters: nose"):
        forward_and_jvp(conv, {"nose": torch.zeros(1)}, {}, *images)
    with pytest.raises(ValueError, match=r"eval\(\)"):
        forward_and_jvp(conv.train(), {}, {}, *images)


def test_around_another_model_with_its_buffers():
    start, images = build("convolutions and BatchNorm")
    end = disturb(copy.deepcopy(start))
    end.features[1].running_mean += 1.0  # part of f, which is start's
    f0, jacobian = dense(start, images)
    moved = {name: p.detach() - dict(start.named_parameters())[name].detach() for name, p in end.named_parameters()}
    linear = LinearizedModel(end, start)
    torch.testing.assert_close(linear(*images).detach().flatten(), f0 + apply(jacobian, moved), **CLOSE)

    with pytest.raises(ValueError, match=r"parameters of .* weight: expected \(2, 4\), found \(2, 3\)"):
        LinearizedModel(nn.Linear(4, 2), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="parameters of .*: (missing|unexpected) bias"):
        LinearizedModel(nn.Linear(4, 2), nn.Linear(4, 2, bias=False))
    with pytest.raises(ValueError, match="buffers of .*running_mean"):
        LinearizedModel(nn.BatchNorm1d(4), nn.LayerNorm(4))


def test_frozen_parameters_move_the_output_but_get_no_gradient():
    module, images = build("open_clip tower")
    f0, jacobian = dense(module, images)
    for name, p in module.named_parameters():
        p.requires_grad_(".mlp." not in name)
    linear = LinearizedModel(module)
    with torch.no_grad():
        linear.proj += 0.1
        linear.transformer.resblocks[0].mlp.c_fc.weight += 0.1  # frozen, and elsewhere than θ0
    moved = {name: p.detach() - linear.params0[name] for name, p in linear.named_parameters()}
    out = linear(*images)
    torch.testing.assert_close(out.detach().flatten(), f0 + apply(jacobian, moved), **CLOSE)
    out.sum().backward()
    for name, p in linear.named_parameters():
        assert (p.grad is None) == (".mlp." in name)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, jacobian[name].sum(0), **CLOSE)


@pytest.mark.parametrize("fused", [True, False])
def test_an_input_that_requires_grad_is_refused(fused):
    module, (images,) = build("open_clip tower")
    linear = LinearizedModel(module, fused=fused)
    images.requires_grad_()
    with pytest.raises(RuntimeError, match=r"detach\(\)"):
        linear(images)
    with torch.no_grad():
        linear(images)


def test_second_derivatives_are_refused_or_right():
    module, images = build("open_clip tower")
    _, jacobian = dense(module, images)
    v = [torch.randn_like(p) for p in module.parameters()]

    def curvature(linear):
        params = list(linear.parameters())
        gradients = torch.autograd.grad((linear(*images) ** 3).sum() / 6, params, create_graph=True)
        return torch.autograd.grad(sum((g * d).sum() for g, d in zip(gradients, v)), params)

    with pytest.raises(RuntimeError, match="fused=False"):
        curvature(LinearizedModel(copy.deepcopy(module)))
    linear = disturb(LinearizedModel(module, fused=False), scale=0.05)
    found = curvature(linear)
    names = [name for name, _ in linear.named_parameters()]
    weight = linear(*images).detach().flatten() * apply(jacobian, dict(zip(names, v)))  # loss'' ∘ J v
    for name, h in zip(names, found):
        torch.testing.assert_close(h, (weight @ jacobian[name].flatten(1)).view_as(h), rtol=1e-8, atol=1e-9)


def test_under_functorch_it_is_differentiated_as_it_stands():
    module, (images,) = build("open_clip tower")
    linear = LinearizedModel(module)
    params = {name: p.detach() for name, p in linear.named_parameters()}

    def loss(p, x):
        return functional_call(linear, p, (x[None],)).sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, images)
    _, jacobian = dense(module, (images,))
    for name, found in per_sample.items():
        torch.testing.assert_close(found, jacobian[name].unflatten(0, (3, -1)).sum(1), **CLOSE)


def test_a_compiled_model_gives_the_same():
    linear = disturb(LinearizedModel(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()))
    x = torch.randn(3, 4, dtype=torch.float64)
    expected = torch.autograd.grad(linear(x).sum(), list(linear.parameters()))
    compiled = torch.compile(linear, backend="aot_eager")
    found = torch.autograd.grad(compiled(x).sum(), list(linear.parameters()))
    torch.testing.assert_close(compiled(x), linear(x), **CLOSE)
    for f, e in zip(found, expected):
        torch.testing.assert_close(f, e, **CLOSE)


class Between(nn.Module):
    """A linear model between two layers that the compiler traces."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4).requires_grad_(False)
        self.linear = LinearizedModel(nn.Sequential(nn.Linear(4, 8), nn.Tanh()))
        self.last = nn.Linear(8, 2)

    def forward(self, x):
        return self.last(self.linear(self.first(x)))


def test_the_compiler_leaves_a_linear_models_forward_pass_out_of_its_graphs():
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        graphs.append(graph)
        return graph.forward

    model, x = Between(), torch.randn(3, 4)
    torch.testing.assert_close(torch.compile(model, backend=keep)(x), model(x))
    calls = [[node.name for node in graph.graph.nodes if node.op.startswith("call")] for graph in graphs]
    assert len(calls) == 2 and all(len(of_graph) == 1 for of_graph in calls), calls


class Nest(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        y = self.linear(x).tanh()
        return {"features": y, "also": [y.sum(), y.argmax(-1)], "input": x}


def test_nested_outputs():
    linear = disturb(LinearizedModel(Nest()), scale=0.1)
    x = torch.randn(5, 4)
    out, flat = linear(x), disturb(LinearizedModel(nn.Linear(4, 3)), scale=0.1)
    assert set(out) == {"features", "also", "input"} and out["also"][1].dtype == torch.int64
    torch.testing.assert_close(out["also"][0], out["features"].sum())
    assert torch.equal(out["input"], x) and flat(x).shape == (5, 3)


# ---- as a module


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_is_the_models_own(kind):
    module, inputs = build(kind)
    own = {name: t.clone() for name, t in module.state_dict().items()}
    linear = LinearizedModel(module)
    assert list(linear.state_dict()) == list(own)
    assert [name for name, _ in linear.named_parameters()] == [name for name, _ in build(kind)[0].named_parameters()]
    other = disturb(copy.deepcopy(linear)).state_dict()
    linear.load_state_dict(other)
    inside = nn.ModuleDict({"encoder": linear, "head": nn.Linear(2, 2)})
    assert [n for n in inside.state_dict() if n.startswith("encoder.")] == [f"encoder.{name}" for name in own]
    inside.load_state_dict(inside.state_dict())
    for name, tensor in linear.state_dict().items():
        assert torch.equal(tensor, other[name])
    for name, p in linear.params0.items():
        assert torch.equal(p, own[name])  # θ0 stays
    with pytest.raises(RuntimeError, match="nose"):
        linear.load_state_dict(other | {"nose": torch.zeros(1)})


def test_copies_and_pickles_keep_theta_and_theta0_apart(tmp_path):
    module, images = build("open_clip tower")
    linear = disturb(LinearizedModel(module), scale=0.05)
    expected = linear(*images).detach()
    twin = copy.deepcopy(linear)
    torch.save(linear, tmp_path / "module.pt")
    for other in (twin, torch.load(tmp_path / "module.pt", weights_only=False)):
        torch.testing.assert_close(other(*images).detach(), expected, **CLOSE)
        disturb(other)
        assert torch.equal(other.params0["proj"], linear.params0["proj"])
    torch.testing.assert_close(linear(*images).detach(), expected, **CLOSE)
    assert {p.dtype for p in (*twin.float().params0.values(), *twin.parameters())} == {torch.float32}
    torch.testing.assert_close(twin(images[0].float()).shape, expected.shape)


def test_dropout_stays_off_whoever_calls_train():
    module, images = build("convolutions and BatchNorm")
    linear = LinearizedModel(module)
    expected, statistics = linear(*images).detach(), module.features[1].running_mean.clone()
    assert linear.train().training and not linear.eval().training
    for train in (linear.train, module.train, nn.Sequential(linear).train):
        train()
        assert torch.equal(linear(*images).detach(), expected)
    assert torch.equal(module.features[1].running_mean, statistics)


def test_recomputed_activations_are_refused():
    module, images = build("open_clip tower")
    module.set_grad_checkpointing(True)
    with pytest.raises(RuntimeError, match=r"set_grad_checkpointing\(False\)"):
        LinearizedModel(module)(*images)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype):
    module, (images,) = build("open_clip tower")
    linear = disturb(LinearizedModel(module), scale=0.05).float()
    images = images.float()
    expected = linear(images).detach()
    with torch.autocast("cpu", dtype):
        out = linear(images)
    torch.testing.assert_close(out.detach().float(), expected, rtol=0.1, atol=0.1)
    out.float().sum().backward()
    assert linear.proj.grad.dtype == torch.float32
    half = copy.deepcopy(linear).to(dtype)(images.to(dtype))
    assert half.dtype == dtype
    torch.testing.assert_close(half.detach().float(), expected, rtol=0.1, atol=0.1)


def switches():
    cuda = torch.backends.cuda
    return (
        torch.backends.mha.get_fastpath_enabled(),
        (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()),
        (F.linear, F.conv2d, F.layer_norm, F.scaled_dot_product_attention),
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.backends.mkldnn.enabled),
    )


def test_everything_is_switched_back_also_after_an_error():
    before = switches()
    with pytest.raises(ZeroDivisionError), forward_mode_attention():
        assert switches()[0] is False and switches()[1] == (False, False, True)
        raise ZeroDivisionError
    assert switches() == before
    for fused in (True, False):
        linear = LinearizedModel(tower(), fused=fused)
        for wrong in (torch.zeros(1, 1, 8, 8), None):
            for grad in (True, False):
                with torch.set_grad_enabled(grad), pytest.raises((RuntimeError, TypeError, AttributeError)):
                    linear(wrong)
    assert switches() == before
    flash = torch.backends.cuda.flash_sdp_enabled()
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        linear(torch.zeros(1, 3, 8, 8))
        assert not torch.backends.cuda.flash_sdp_enabled()
    finally:
        torch.backends.cuda.enable_flash_sdp(flash)


class Watched(nn.Module):
    """Notes the switches of the process inside of its forward pass."""

    def __init__(self):
        super().__init__()
        self.attention, self.seen = nn.MultiheadAttention(8, 2, batch_first=True), []

    def forward(self, x):
        self.seen.append(switches())
        return self.attention(x, x, x, need_weights=False)[0]


def test_the_fused_forward_pass_switches_nothing_of_the_process():
    module = Watched()
    before = switches()
    LinearizedModel(module)(torch.randn(2, 3, 8))
    assert module.seen == [before] == [switches()]


def test_somebody_elses_attention_is_left_in_place(monkeypatch):
    """A patched function (a profiler, another kernel) is part of the model: differentiated, not replaced."""
    module, images = build("open_clip tower")
    plain = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, *a, **o: 2 * plain(q, k, v, *a, **o))
    f0, jacobian = dense(module, images)
    linear = disturb(LinearizedModel(module))
    moved = {name: p.detach() - linear.params0[name] for name, p in linear.named_parameters()}
    torch.testing.assert_close(linear(*images).detach().flatten(), f0 + apply(jacobian, moved), **CLOSE)


def test_threads_take_turns():
    module, images = build("open_clip tower")
    linear = disturb(LinearizedModel(module))
    models, found = [copy.deepcopy(linear) for _ in range(4)], []
    expected, before = linear(*images).detach(), switches()
    threads = [threading.Thread(target=lambda m=m: found.append(m(*images).detach())) for m in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and switches() == before
    for out in found:
        torch.testing.assert_close(out, expected, **CLOSE)


# ---- cost


def arithmetic(model, images):
    """Floating-point operations of matrix products in one forward and backward pass."""
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    return counter.get_total_flops()


def work(out):
    """Kinds of the nodes of an output's graph that compute (products, norms, attention), one entry per node."""
    seen, todo = set(), [out.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [following for following, _ in node.next_functions]
    kinds = ("Addmm", "Mm", "Bmm", "Convolution", "NativeLayerNorm", "ScaledDotProduct", "Softmax", "Gelu")
    return [kind for node in seen for kind in kinds if type(node).__name__.startswith(kind)]


def test_step_costs_five_thirds_and_records_no_graph_of_the_tangent():
    torch.manual_seed(0)
    images = torch.randn(4, 3, 8, 8)
    ordinary, linear = tower(64).eval(), LinearizedModel(tower(64))
    assert arithmetic(linear, images) / arithmetic(ordinary, images) < 1.75
    assert len(work(linear(images))) == len(work(ordinary(images))) >= 20


def test_inside_distributed_data_parallel(tmp_path):
    """One process: gradients reach θ through the wrapper's hooks. Two processes: tests/test_training.py."""
    images = torch.randn(4, 3, 8, 8)
    linear = disturb(LinearizedModel(tower()), scale=0.05)
    twin = copy.deepcopy(linear)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(linear)
        for _ in range(2):
            wrapped(images).square().mean().backward()
    finally:
        torch.distributed.destroy_process_group()
    (2 * twin(images).square().mean()).backward()
    for (name, p), (_, q) in zip(linear.named_parameters(), twin.named_parameters()):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


class Encoder(nn.Module):
    """What LinearizedImageEncoder needs of an ImageEncoder."""

    tokenizer = train_preprocess = val_preprocess = None
    image_size, mean, std = 8, (0.0,), (1.0,)

    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict({"visual": tower()})

    def forward(self, images):
        return self.model["visual"](images)


def test_image_encoder_keeps_names_and_attributes():
    encoder = Encoder()
    names = list(encoder.state_dict())
    linear = LinearizedImageEncoder(image_encoder=encoder)
    assert list(linear.state_dict()) == names and linear.model is encoder.model
    assert (linear.image_size, linear.mean, linear.val_preprocess) == (8, (0.0,), None)
    assert linear(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
