"""The Concrete mask against its definition: Gumbel-max trick, relaxation, gradients, limits, and final masks."""

import numpy as np
import pytest
import torch

from src.merging.concrete_mask import FINAL, ConcreteMask, concrete, mean_of, rescaled
from src.runtime.messages import UsageError

LOGITS = {
    "a": torch.tensor([-2.0, -0.5, 0.0, 0.3, 1.5]).double(),
    "b": torch.tensor([[0.0, 4.0], [-4.0, 1.0]]).double(),
}


def mask(temperature: float = 0.5, logits=LOGITS, seed: int = 0) -> ConcreteMask:
    return ConcreteMask({name: x.clone().requires_grad_() for name, x in logits.items()}, temperature, seed)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_a_draw_is_the_closed_form_of_its_uniform_numbers(temperature):
    x, u = np.linspace(-3, 3, 7), np.linspace(0.05, 0.95, 7)
    sigma = 1 / (1 + np.exp(-x))
    expected = 1 / (1 + np.exp(-(np.log(u / (1 - u)) + np.log(sigma / (1 - sigma))) / temperature))
    found = concrete(torch.from_numpy(x), torch.from_numpy(u), temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(rescaled(found), expected / expected.mean(), rtol=1e-12)


def test_the_difference_of_two_gumbel_variables_decides_as_the_uniform_number_does():
    """P(g_1 + x > g_0) over drawn Gumbel pairs and P(m̂ > 1/2) over drawn uniform numbers are both σ(x)."""
    generator = torch.Generator().manual_seed(0)
    n, x = 200_000, torch.tensor([-1.0, 0.0, 2.0])
    g = -torch.log(-torch.log(torch.rand(2, n, 3, generator=generator)))
    by_argmax = (g[1] + x > g[0]).double().mean(0)
    by_mask = (concrete(x, torch.rand(n, 3, generator=generator), 0.5) > 0.5).double().mean(0)
    five_sd = 5 * 0.5 / n**0.5
    assert (by_argmax - torch.sigmoid(x)).abs().max() < five_sd
    assert (by_mask - torch.sigmoid(x)).abs().max() < five_sd


def test_the_limit_of_zero_temperature_is_bernoulli():
    n, x = 100_000, torch.tensor([-1.5, 0.0, 0.7]).double()
    u = torch.rand(n, 3, generator=torch.Generator().manual_seed(1)).double()
    found = concrete(x, u, 1e-4)
    assert ((found < 1e-3) | (found > 1 - 1e-3)).double().mean() > 0.999
    assert (found.mean(0) - torch.sigmoid(x)).abs().max() < 5 * 0.5 / n**0.5
    assert found.var(0).sub(torch.sigmoid(x) * torch.sigmoid(-x)).abs().max() < 0.01


def test_the_sample_is_differentiable_in_the_logits():
    u = torch.rand(6, generator=torch.Generator().manual_seed(2)).double()
    x = torch.linspace(-2, 2, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rescaled(concrete(x, u, 0.5)), [x])
    m = concrete(x, u, 0.5)
    (gradient,) = torch.autograd.grad(m.sum(), x)
    torch.testing.assert_close(gradient, m * (1 - m) / 0.5)


def test_a_uniform_number_of_zero_neither_breaks_the_mask_nor_its_gradient():
    x = torch.zeros(2, requires_grad=True)
    m = concrete(x, torch.tensor([0.0, 0.5]), 0.5)
    m.sum().backward()
    assert m.tolist() == [0.0, 0.5] and torch.isfinite(x.grad).all()


def test_a_draw_is_a_function_of_seed_draw_and_name_alone():
    one, two = mask(), mask()
    torch.rand(3)
    for name in LOGITS:
        assert torch.equal(one.relaxed(name, 7), two.relaxed(name, 7))
        assert not torch.equal(one.relaxed(name, 7), one.relaxed(name, 8))
        assert not torch.equal(one.relaxed(name, 7), mask(seed=1).relaxed(name, 7))
    same = ConcreteMask({"a": torch.zeros(5), "b": torch.zeros(5)}, 0.5, 0)
    assert not torch.equal(same.relaxed("a", 0), same.relaxed("b", 0))


def test_a_sample_has_mean_one_in_every_tensor_and_leaves_other_names_alone():
    sample = mask().sample(0)
    for name in LOGITS:
        torch.testing.assert_close(sample(name).mean(), torch.ones(()).double())
    assert sample("text") is None


def test_final_masks():
    found = {kind: {name: mask().final(name, kind, 3) for name in LOGITS} for kind in FINAL}
    assert all(not m.requires_grad for masks in found.values() for m in masks.values())
    for name, x in LOGITS.items():
        assert torch.equal(found["seeded"][name], found["mean"][name])
        assert torch.equal(found["binary"][name], (found["seeded"][name] > 0.5).double())
        assert torch.equal(found["threshold"][name], (x > 0).double())
        torch.testing.assert_close(found["expected"][name], torch.sigmoid(x))
    assert not torch.equal(found["seeded"]["a"], mask().final("a", "seeded", 4))
    many = mask(logits={"c": torch.zeros(200).double()})  # of which a draw has some that are little above a half
    assert torch.equal(many.final("c", "binary"), (many.final("c", "seeded") > 0.5).double())
    assert mask().density() == pytest.approx(float(torch.cat([x.flatten() for x in LOGITS.values()]).sigmoid().mean()))
    assert mean_of(found["threshold"].values()) == pytest.approx(4 / 9)


def test_an_empty_mask_stays_empty():
    assert not rescaled(torch.zeros(3)).any()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(UsageError, match="temperature: expected a number above 0"):
        mask(temperature)
