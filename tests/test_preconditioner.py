"""The inverse of Kronecker factors against dense matrices, in float64."""

import pytest
import torch
from test_curvature import FEATURES, Tower
from test_curvature import images as images
from test_curvature import tower as tower

from src.curvature import Curvature, measure
from src.inputs import IN_OUT
from src.merging.preconditioner import Kronecker
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


def test_what_no_image_sees_is_divided_by_nothing(factors, vector):
    blind = Curvature(
        factors.biases, *({name: 0 * m for name, m in part.items()} for part in (factors.a, factors.g, factors.f))
    )
    solved = Kronecker(blind, DAMPING, 0.0)(vector).vector
    assert all(torch.equal(solved[name], part) for name, part in vector.vector.items())
