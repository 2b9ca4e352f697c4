"""The inverse of Kronecker factors against dense matrices, in float64."""

import pytest
import torch
from test_curvature import FEATURES, WIDTH, Tower
from test_curvature import images as images
from test_curvature import tower as tower
from torch import nn
from towers import perturbed

from src.curvature import Curvature, measure
from src.inputs import IN_OUT
from src.merging.preconditioner import Kronecker
from src.runtime.messages import UsageError
from src.task_vectors import TaskVector

DAMPING, MU = 0.01, 0.002


@pytest.fixture
def factors(tower: Tower, images: torch.Tensor) -> Curvature:
    v = torch.randn(len(images), FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return measure(tower, dict(tower.named_parameters()), [(images, v)])


@pytest.fixture
def vector(tower: Tower) -> TaskVector:
    generator = torch.Generator().manual_seed(3)
    named = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in tower.named_parameters()}
    return TaskVector(vector=named | {"model.visual.class_embedding": torch.ones(4, dtype=torch.float64)})


def test_the_inverse_is_that_of_each_layers_damped_matrix(factors, vector):
    solved = Kronecker(factors, DAMPING, MU)(vector).vector
    assert solved.keys() == vector.vector.keys() and len(factors.g) == 5 and len(factors.f) == 1
    sizes = []
    for name, g in factors.g.items():
        a, bias = factors.a[name], factors.biases.get(name)
        mean_a, mean_g = float(a.trace() / len(a)), float(g.trace() / len(g))
        sizes.append(mean_a * mean_g)
        strength = (DAMPING * mean_a * mean_g + MU) ** 0.5
        left = g + strength * (mean_g / mean_a) ** 0.5 * torch.eye(len(g)).double()
        right = a + strength * (mean_a / mean_g) ** 0.5 * torch.eye(len(a)).double()

        def rows(named: dict[str, torch.Tensor], name=name, bias=bias) -> torch.Tensor:
            weight = named[name].T if name == IN_OUT else named[name].flatten(1)
            return torch.cat([weight, named[bias][:, None]], 1) if bias else weight

        torch.testing.assert_close(torch.kron(left, right) @ rows(solved).flatten(), rows(vector.vector).flatten())
    (norm,) = factors.f
    f = factors.f[norm]
    pair = [torch.cat([named[norm], named[factors.biases[norm]]]) for named in (solved, vector.vector)]
    torch.testing.assert_close(f @ pair[0] + (DAMPING * f.trace() / len(f) + MU) * pair[0], pair[1])
    others = 1 / (sum(sizes) / len(sizes) + MU)
    torch.testing.assert_close(solved["model.visual.class_embedding"], torch.full((4,), others, dtype=torch.float64))


def test_a_norm_without_a_bias_has_factors_of_its_own(images):
    """And the layers beside it theirs."""
    tower = perturbed(Tower)
    tower.model.visual.ln = nn.LayerNorm(WIDTH, bias=False).double()
    v = torch.randn(len(images), FEATURES, dtype=torch.float64)
    factors = measure(tower, dict(tower.named_parameters()), [(images, v)])
    (norm,) = factors.f
    assert factors.f[norm].shape == (WIDTH, WIDTH) and norm not in factors.biases
    moved = {name: torch.ones_like(weight) for name, weight in tower.named_parameters()}
    solved = Kronecker(factors, DAMPING, MU)(TaskVector(vector=moved)).vector[norm]
    f = factors.f[norm]
    torch.testing.assert_close(f @ solved + (DAMPING * f.trace() / WIDTH + MU) * solved, moved[norm])
    assert float(factors.of(moved)) > 0


@pytest.mark.parametrize("damping", [1e-3, 1e-7])
def test_it_is_symmetric_and_positive_definite_in_float32(damping):
    """At the width of a real tower, of factors of less than full rank."""
    x, g = (torch.randn(64, size, generator=torch.Generator().manual_seed(size)) for size in (769, 768))
    factors = Curvature({"w": "b"}, {"w": x.T @ x / 64}, {"w": g.T @ g / 64}, {})
    solve = Kronecker(factors, damping, 0.0)
    one, other = (
        TaskVector(vector={"w": part[:, :-1], "b": part[:, -1]})
        for part in torch.randn(2, 768, 769, generator=torch.Generator().manual_seed(1))
    )
    assert float(one.dot(solve(other))) == pytest.approx(float(other.dot(solve(one))), rel=1e-3)
    assert float(one.dot(solve(one))) > 0


def test_factors_that_damping_does_not_make_definite_are_refused_with_what_helps():
    factors = Curvature({}, {"w": torch.diag(torch.tensor([1.0, -0.5]))}, {"w": torch.eye(2)}, {})
    with pytest.raises(UsageError, match="damping: .* take a larger one, or method.precondition=none"):
        Kronecker(factors, 1e-3, 0.0)


def test_what_no_image_sees_is_divided_by_nothing(factors, vector):
    blind = Curvature(
        factors.biases, *({name: 0 * m for name, m in part.items()} for part in (factors.a, factors.g, factors.f))
    )
    solved = Kronecker(blind, DAMPING, 0.0)(vector).vector
    assert all(torch.equal(solved[name], part) for name, part in vector.vector.items())
