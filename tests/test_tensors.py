"""The suite's one equation, and the one check that names and shapes agree."""

import numpy as np
import pytest
import torch

from src import checkpoints
from src.checkpoints import CheckpointError
from src.tensors import check_same, difference, moved, put_in_place, shapes

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def weights(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return {"a": torch.randn(3, 4).to(dtype), "b": torch.randn(()).to(dtype), "steps": torch.tensor(7)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_going_from_theta0_along_tau_ends_at_theta(dtype):
    start, end = weights(dtype), weights(dtype, seed=1)
    tau = difference(end, start)
    assert tau.keys() == {"a", "b"} and all(t.dtype == torch.promote_types(dtype, torch.float32) for t in tau.values())
    reached = moved(start, tau, 1.0)
    assert reached.keys() == start.keys() and reached["steps"] is start["steps"]
    for name in tau:
        assert reached[name].dtype == dtype
        torch.testing.assert_close(reached[name], end[name])
        torch.testing.assert_close(moved(start, tau, 0.5)[name], (start[name] + end[name]) / 2)
        assert torch.equal(moved(start, tau, 0.0)[name], start[name])


def test_half_precision_is_left_before_it_rounds():
    start, end = {"a": torch.tensor([1.0]).half()}, {"a": torch.tensor([1.0 + 2**-10]).half()}
    tau = difference(end, start)["a"]
    assert tau.item() == 2**-10 and tau.dtype == torch.float32
    large = {"a": torch.tensor([3e4]).half()}
    assert difference({"a": -large["a"]}, large)["a"].item() == -2 * large["a"].item()  # -inf in half precision
    # α·τ is taken in the wider type of the two: half precision would round the product.
    assert moved({"a": torch.zeros(1)}, {"a": torch.tensor([1.001]).half()}, 0.3)["a"].item() == pytest.approx(
        0.3 * torch.tensor(1.001).half().item(), rel=1e-7
    )


def test_names_and_types_can_be_asked_for():
    start, end = weights(), weights(seed=1)
    assert difference(end, start, names=["b"]).keys() == {"b"}
    assert difference(end, start, dtype=torch.float64)["a"].dtype == torch.float64
    assert difference(end, start, dtype=torch.float16)["a"].dtype == torch.float32  # the weights' own is wider
    start["a"].requires_grad_()
    assert not difference(end, start)["a"].requires_grad
    coefficient = torch.tensor(0.5, requires_grad=True)
    moved(start, difference(end, start), coefficient)["a"].sum().backward()
    assert coefficient.grad.item() == pytest.approx(difference(end, start)["a"].sum().item(), rel=1e-5)


def test_what_differs_is_named_with_what_was_expected():
    one = {"a": torch.zeros(3), "b": torch.zeros(2), "c": torch.zeros(())}
    two = {"a": torch.zeros(3), "b": torch.zeros(2, 1), "d": torch.zeros(1)}
    check_same(one, dict(reversed(one.items())), "the models")
    message = r"the models differ in their tensors: missing c; unexpected d; b: expected \(2,\), found \(2, 1\)$"
    with pytest.raises(ValueError, match=message):
        check_same(one, two, "the models")
    with pytest.raises(CheckpointError, match="missing d"):
        check_same(two, one, "the models", CheckpointError)
    with pytest.raises(ValueError, match="missing 0, 1, 2, 3 and 6 more$"):
        check_same({str(n): torch.zeros(1) for n in range(10)}, {}, "the models")
    with pytest.raises(ValueError, match="the weights and the task vector .* unexpected z"):
        moved(one, {"z": torch.zeros(1)}, 1.0)


def test_a_checkpoint_is_compared_without_reading_a_tensor(tmp_path, monkeypatch):
    checkpoints.save(tmp_path / "x", weights(), {"model": "small"})
    found = checkpoints.Checkpoint(tmp_path / "x")
    monkeypatch.setattr(checkpoints.Checkpoint, "__getitem__", lambda *_: pytest.fail("a tensor was read"))
    assert shapes(found) == {"a": (3, 4), "b": (), "steps": ()} == shapes(weights())
    check_same(weights(), found, "the two")


@pytest.mark.parametrize("zeros", [0.0, 0.4, 0.9])
def test_places_have_what_sorting_brings_there(zeros):
    generator = np.random.default_rng(0)
    values = np.where(generator.random(1001) < zeros, 0, generator.standard_normal(1001)).astype(np.float32)
    ordered, places = np.sort(values), [10, 500, 990]
    put_in_place(values, places)
    assert (values[places] == ordered[places]).all() and (np.sort(values) == ordered).all()
