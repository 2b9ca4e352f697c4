"""Kronecker factors of what weights do to features, in float64: gradients, dense Jacobians, displacements."""

import copy

import pytest
import torch
from torch import nn
from towers import perturbed

from src import curvature
from src.curvature import Curvature, measure
from src.inputs import IN_OUT
from src.linearize import LinearizedModel

WIDTH, FEATURES = 6, 4


class Tower(nn.Module):
    """A convolution, a LayerNorm, attention, a linear map of all tokens, and a projection of the first, [in, out]."""

    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        visual = self.model.visual = nn.Module()
        visual.conv1 = nn.Conv2d(3, WIDTH, 2, 2, bias=False)
        visual.ln = nn.LayerNorm(WIDTH)
        visual.attn = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        visual.fc = nn.Linear(WIDTH, WIDTH)
        visual.proj = nn.Parameter(torch.randn(WIDTH, FEATURES))

    def forward(self, images):
        visual = self.model.visual
        x = visual.ln(visual.conv1(images).flatten(2).mT)
        x = x + visual.attn(x, x, x, need_weights=False)[0]
        return (x + torch.tanh(visual.fc(x)))[:, 0] @ visual.proj


@pytest.fixture
def tower() -> Tower:
    return perturbed(Tower)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def every_direction(images: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """In the place of random ones: v with E v vᵀ = I to the last bit."""
    basis = FEATURES**0.5 * torch.eye(FEATURES, dtype=images.dtype)
    return [(images, v.expand(len(images), -1)) for v in basis]


def displaced(tower: Tower, moved: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """E ‖J Δ‖² of the linearized model."""
    encoder = LinearizedModel(copy.deepcopy(tower))
    with torch.no_grad():
        for name, delta in moved.items():
            encoder.get_parameter(name).add_(delta)
        return encoder.displacement(images).square().sum(1).mean()


def test_inputs_and_gradients_make_the_gradient_of_every_weight(tower, images):
    v = torch.randn(5, FEATURES, dtype=torch.float64)
    theta = {name: weight.detach() for name, weight in tower.named_parameters()}
    weights = [name for name in theta if not name.endswith("bias")]
    parts = {name: (x, g) for name, x, g in curvature._inputs_and_gradients(tower, theta, weights, images, v)}
    assert parts.keys() == {*weights} and len(weights) == 6
    expected = torch.autograd.grad((tower(images) * v).sum(), [tower.get_parameter(name) for name in weights])
    for name, gradient in zip(weights, expected):
        x, g = (part.flatten(0, -2) for part in parts[name])
        if gradient.dim() == 1:
            found = (x * g).sum(0)
        else:
            found = x.T @ g if name == IN_OUT else (g.T @ x).view(gradient.shape)
        torch.testing.assert_close(found, gradient)


def test_norms_and_the_projection_are_exact(tower, images):
    theta0 = dict(tower.named_parameters())
    factors = measure(tower, theta0, every_direction(images))
    assert factors.names == {*theta0}
    for changed in ((IN_OUT,), ("model.visual.ln.weight", "model.visual.ln.bias")):
        moved = {name: torch.zeros_like(weight) for name, weight in theta0.items()}
        moved |= {name: torch.randn_like(moved[name]) for name in changed}
        torch.testing.assert_close(factors.of(moved), displaced(tower, moved, images))


@pytest.mark.parametrize(
    "weight, bias", [("model.visual.fc.weight", "model.visual.fc.bias"), ("model.visual.conv1.weight", None)]
)
def test_a_matrix_is_exact_in_what_it_takes_for_independent(tower, images, weight, bias):
    """tr(G Δ A Δᵀ) is the mean of ‖J_r Δ x_s‖² over all pairs of rows r, s of all images, by dense Jacobians."""
    theta0 = {name: tensor.detach() for name, tensor in tower.named_parameters()}
    factors = measure(tower, theta0, every_direction(images))
    module = tower.get_submodule(weight.rpartition(".")[0])
    rows, jacobians = [], []
    for image in images:
        shape = (1, WIDTH, 3, 3) if bias is None else (1, 9, WIDTH)
        dense = torch.autograd.functional.jacobian(
            lambda shift, image=image: _shifted(tower, module, image[None], shift), torch.zeros(shape).double()
        )[:, 0]
        jacobians.append(dense.flatten(2).mT if bias is None else dense)  # (features, rows, out)
        x = image[None] if bias is None else _input_of(tower, module, image[None])
        rows.append(nn.functional.unfold(x, 2, stride=2).mT[0] if bias is None else x[0])
    moved = {name: torch.zeros_like(tensor) for name, tensor in theta0.items()}
    moved[weight] = torch.randn_like(moved[weight])
    change = torch.cat(rows) @ moved[weight].flatten(1).T
    if bias is not None:
        moved[bias] = torch.randn_like(moved[bias])
        change = change + moved[bias]
    expected = torch.stack([(dense @ change.T).square().mean(2).sum() for dense in jacobians]).mean()
    torch.testing.assert_close(factors.of(moved), expected)


def _shifted(tower: Tower, module: nn.Module, image: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Features where the module's result is moved by `shift`."""
    handle = module.register_forward_hook(lambda _, inputs, result: result + shift)
    try:
        return tower(image)[0]
    finally:
        handle.remove()


def _input_of(tower: Tower, module: nn.Module, image: torch.Tensor) -> torch.Tensor:
    seen = []
    handle = module.register_forward_hook(lambda _, inputs, result: seen.append(inputs[0].detach()))
    tower(image)
    handle.remove()
    return seen[0]


def test_a_mixture_is_the_sum_of_the_shares_of_tasks(tower, images):
    theta0 = {name: tensor.detach() for name, tensor in tower.named_parameters()}
    one, two = (measure(tower, theta0, every_direction(part)) for part in (images[:2], images[2:]))
    both = Curvature()
    both.add(one, 0.4)
    both.add(two, 0.6)
    whole = measure(tower, theta0, every_direction(images))
    for mixed, expected in ((both.a, whole.a), (both.g, whole.g), (both.f, whole.f)):
        assert mixed.keys() == expected.keys()
        for name, factor in mixed.items():
            torch.testing.assert_close(factor, expected[name])


def test_the_derivative_is_that_of_the_value(tower, images):
    theta0 = {name: tensor.detach() for name, tensor in tower.named_parameters()}
    factors = measure(tower, theta0, every_direction(images))
    moved = [torch.randn_like(theta0[name], requires_grad=True) for name in theta0]
    assert torch.autograd.gradcheck(lambda *deltas: factors.of(dict(zip(theta0, deltas))), moved)
