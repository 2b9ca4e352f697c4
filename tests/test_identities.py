"""What must hold exactly between ways of fine-tuning, in float64: LoRA, its linearization, the penalty of τJp."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from towers import perturbed

from src import store
from src.finetuning import trained as training_parts
from src.finetuning.objectives import worst_nearby
from src.finetuning.trained import LowRank, attention_weights
from src.linearize import LinearizedModel, forward_mode_attention, plain_jvp
from src.modeling import ImageEncoder
from src.runtime.messages import UsageError

RANK, ALPHA = 3, 6.0


class Tower(nn.Module):
    """Under the image tower's names: a linear map, attention, and a normalised output, of width 8."""

    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.visual = nn.Module()
        self.model.visual.stem = nn.Linear(5, 8)
        self.model.visual.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.model.visual.ln = nn.LayerNorm(8)

    def forward(self, x):
        x = self.model.visual.stem(x)
        x = x + self.model.visual.attn(x, x, x, need_weights=False)[0]
        return self.model.visual.ln(x).mean(1)


@pytest.fixture
def tower() -> Tower:
    return perturbed(Tower)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def low_rank(encoder: nn.Module, fixed_a: bool = False) -> LowRank:
    return LowRank(encoder, attention_weights(encoder), RANK, ALPHA, seed=5, fixed_a=fixed_a)


def drawn(tensors, scale: float = 0.5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [scale * torch.randn(t.shape, dtype=t.dtype, generator=generator) for t in tensors]


def set_to(parameters, values) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values):
            parameter.copy_(value)


def moved_by(adapted: LowRank, b: list[torch.Tensor], a: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """alpha / rank · B A of each matrix, the parts of a fused one stacked."""
    products = [torch.cat([part_b @ part_a for part_b, part_a in zip(of_b, of_a)]) for of_b, of_a in zip(b, a)]
    return {name: ALPHA / RANK * product for name, product in zip(adapted.names, products)}


def test_it_begins_as_the_encoder_and_draws_from_its_seed(tower, images):
    before = tower(images)
    adapted = low_rank(tower)
    torch.testing.assert_close(adapted(images), before, rtol=0, atol=1e-14)
    assert [tuple(a.shape) for a in adapted.a] == [(3, RANK, 8), (1, RANK, 8)]
    assert all(0.25 < a.abs().max() <= 8**-0.5 for a in adapted.a)
    again = low_rank(tower)
    assert all(torch.equal(one, two) for one, two in zip(adapted.a, again.a))


@pytest.mark.parametrize("fused", [True, False])
def test_l_lora_is_tangent_fine_tuning_restricted_to_b_a0(tower, images, fused):
    """f(x; B) = f(x; θ0) + J_W (s B A0), and its gradient in B is the tangent model's in W, times s A0ᵀ."""
    start = {name: weight.detach().clone() for name, weight in tower.named_parameters()}
    adapted = low_rank(LinearizedModel(tower, fused=fused), fixed_a=True)
    set_to(adapted.b, drawn(adapted.b))
    direction = moved_by(adapted, [b.detach() for b in adapted.b], list(adapted.a))
    params = {name: start[name] for name in direction}
    f0, moved = plain_jvp(tower, params, direction, {n: w for n, w in start.items() if n not in params}, (images,), {})
    torch.testing.assert_close(adapted(images), f0 + moved, rtol=1e-12, atol=1e-12)

    towards = drawn([f0])[0]
    (adapted(images) * towards).sum().backward()
    leaves = {name: weight.clone().requires_grad_() for name, weight in params.items()}
    of_w = torch.autograd.grad((functional_call(tower, leaves, (images,)) * towards).sum(), list(leaves.values()))
    for a, b, gradient in zip(adapted.a, adapted.b, of_w):
        parts = gradient.view(b.shape[0], -1, gradient.shape[1])
        torch.testing.assert_close(b.grad, ALPHA / RANK * parts @ a.mT, rtol=1e-11, atol=1e-12)
        assert a.grad is None and not a.requires_grad


def test_at_b_zero_nothing_depends_on_a(tower, images):
    """∂f/∂A = 0, so the tangent model of LoRA in (A, B) is that in B alone."""
    adapted = low_rank(tower)
    adapted(images).square().sum().backward()
    assert all(not a.grad.any() for a in adapted.a) and all(b.grad.any() for b in adapted.b)
    params = {name: p.detach() for name, p in adapted.named_parameters() if p.requires_grad}
    along_b = {n: d if n.startswith("b.") else torch.zeros_like(d) for n, d in zip(params, drawn(params.values()))}
    along_both = {n: d if n.startswith("a.") else along_b[n] for n, d in zip(params, drawn(params.values(), 3.0))}
    ways = [plain_jvp(adapted, params, along, {}, (images,), {})[1] for along in (along_b, along_both)]
    torch.testing.assert_close(*ways, rtol=1e-12, atol=1e-12)
    in_w = moved_by(adapted, [along_b[f"b.{i}"] for i in range(2)], list(adapted.a))
    weights = {name: w.detach() for name, w in tower.named_parameters()}
    params, fixed = {n: weights[n] for n in in_w}, {n: w for n, w in weights.items() if n not in in_w}
    torch.testing.assert_close(ways[0], plain_jvp(tower, params, in_w, fixed, (images,), {})[1], rtol=1e-12, atol=1e-12)


def test_merged_lora_is_factored_lora(tower, images):
    """Against attention whose linear maps are applied factor by factor: W x + s B (A x)."""
    adapted = low_rank(tower)
    set_to(adapted.b, drawn(adapted.b))
    visual, (a, a_out), (b, b_out) = tower.model.visual, adapted.a, adapted.b
    x = visual.stem(images)
    maps = zip(visual.attn.in_proj_weight.chunk(3), visual.attn.in_proj_bias.chunk(3), a, b)
    q, k, v = (F.linear(x, w, bias) + ALPHA / RANK * F.linear(F.linear(x, down), up) for w, bias, down, up in maps)
    heads = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k, v))
    y = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    out = visual.attn.out_proj
    y = F.linear(y, out.weight, out.bias) + ALPHA / RANK * F.linear(F.linear(y, a_out[0]), b_out[0])
    factored = visual.ln(x + y).mean(1)
    torch.testing.assert_close(adapted(images), factored, rtol=1e-12, atol=1e-12)
    merged = Tower().double()
    merged.load_state_dict(adapted.dense())
    torch.testing.assert_close(merged(images), factored, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
def test_the_penalty_has_the_gradient_of_a_dense_jacobian(tower, images, fused):
    """∇ mean ‖J_x d‖ = mean J_xᵀ J_x d / ‖J_x d‖."""
    start = {name: weight.detach().clone() for name, weight in tower.named_parameters()}
    linear = LinearizedModel(tower, fused=fused)
    set_to(linear.parameters(), [s + d for s, d in zip(start.values(), drawn(start.values(), 0.1))])
    assert linear.displacement(images).shape == (4, 8)
    linear.displacement(images).norm(dim=1).mean().backward()

    with forward_mode_attention():  # its plain kernel is the one that torch.func maps over rows
        jacobians = torch.func.jacrev(lambda params: functional_call(tower, params, (images,)))(start)
    dense = torch.cat([jacobians[name].flatten(2) for name in start], 2)  # (images, features, weights)
    d = torch.cat([(weight - start[name]).flatten() for name, weight in linear.named_parameters()]).detach()
    moved = dense @ d
    torch.testing.assert_close(linear.displacement(images), moved, rtol=1e-11, atol=1e-12)
    expected = torch.einsum("nfw,nf->w", dense, moved / moved.norm(dim=1, keepdim=True)) / len(images)
    found = torch.cat([weight.grad.flatten() for weight in linear.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_at_the_start_the_penalty_and_its_gradient_are_zero(tower, images):
    linear = LinearizedModel(tower)
    penalty = linear.displacement(images).norm(dim=1).mean()
    penalty.backward()
    assert penalty == 0 and not any(weight.grad.any() for weight in linear.parameters())


def test_the_worst_weights_lie_rho_along_the_gradient_and_are_left_exactly(tower, images):
    before = [weight.detach().clone() for weight in tower.parameters()]
    trained = list(tower.parameters())
    tower(images).square().sum().backward()
    gradients = [weight.grad.clone() for weight in trained]
    with worst_nearby(trained, 0.2):
        moves = [(weight - earlier).detach() for weight, earlier in zip(trained, before)]
    flat, along = (torch.cat([t.flatten() for t in tensors]) for tensors in (moves, gradients))
    assert float(flat.norm()) == pytest.approx(0.2)
    torch.testing.assert_close(flat, 0.2 * along / along.norm(), rtol=1e-9, atol=1e-12)
    assert all(torch.equal(weight, earlier) for weight, earlier in zip(trained, before))


def test_attention_is_four_blocks_of_two_matrices(make_run):
    names = attention_weights(ImageEncoder(make_run()))
    ends = {"attn.in_proj_weight", "attn.out_proj.weight"}
    assert len(names) == 8 and {name.rpartition("resblocks.")[2].partition(".")[2] for name in names} == ends


def test_a_network_without_attention_is_told(make_training, monkeypatch):
    monkeypatch.setattr(training_parts, "attention_weights", lambda encoder: ())
    run, settings = make_training("--finetuning-mode=lora")
    store.write_pretrained(run)
    with pytest.raises(UsageError, match="lora trains the weights of attention, and ViT-Mini has none"):
        training_parts.build(run, "signs", settings)
