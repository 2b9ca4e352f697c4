"""Task vectors are a vector space over named tensors; the papers' snippets run; what must not mix does not."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from src import checkpoints
from src.linearize import LinearizedModel, forward_and_jvp
from src.task_vectors import LinearizedTaskVector, Mask, NonLinearTaskVector, TaskVector

torch.set_num_threads(1)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).flatten(1))


def network(seed=0):
    torch.manual_seed(seed)
    return Network().eval()


def vector(seed=0, dtype=torch.float64, kind=TaskVector):
    """Multiples of 1/8 below 4, so that sums are exact in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return kind(
        vector={
            name: (torch.randint(-31, 32, shape, generator=generator) / 8).to(dtype)
            for name, shape in {"a": (3, 4), "b": (5,), "c": ()}.items()
        }
    )


def assert_equal(found, expected):
    assert type(found) is type(expected) and found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]), name


def assert_close(found, expected, tolerance):
    assert type(found) is type(expected) and found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [TaskVector, NonLinearTaskVector, LinearizedTaskVector])
def test_is_a_vector_space(dtype, kind):
    u, v, w = (vector(seed, dtype, kind) for seed in range(3))
    zero = u - u
    assert zero.norm() == 0
    assert_equal((u + v) + w, u + (v + w))
    assert_equal(u + v, v + u)
    assert_equal(u + zero, u)
    assert_equal(u + (-u), zero)
    assert_equal(-u, -1 * u)
    assert_equal(1 * u, u)
    assert_equal(u - v, u + (-v))
    assert_equal(0.5 * (u + v), 0.5 * u + 0.5 * v)
    assert_equal((0.5 + 0.25) * u, u * 0.5 + u * 0.25)
    assert_equal(0.5 * (0.5 * u), 0.25 * u)
    assert_equal(u / 4, 0.25 * u)
    assert_close(0.3 * u + 0.7 * v, v * 0.7 + u * 0.3, CLOSE[dtype])
    assert_equal(sum([u, v, w]), u + v + w)
    assert_equal(0 - u, -u)
    assert_equal(abs(-u), u.abs())


@pytest.mark.parametrize("scalar", [2, 2.0, np.float32(2), np.float64(2), np.int64(2), torch.tensor(2.0)])
def test_scalars_of_every_library_from_both_sides(scalar):
    u = vector(dtype=torch.float16)
    assert_equal(scalar * u, u + u)
    assert_equal(u * scalar, u + u)
    assert_equal(u / scalar, 0.5 * u)


def test_a_power_is_of_each_weight():
    tau = TaskVector(vector={"w": torch.tensor([1.0, -2.0, 3.0]), "s": torch.tensor(-2.0)})
    assert torch.equal((tau**2)["w"], torch.tensor([1.0, 4.0, 9.0])) and (tau**2)["s"] == 4
    assert (NonLinearTaskVector(vector=tau.vector) ** 3).linear is False
    with pytest.raises(TypeError):
        tau**tau


@pytest.mark.parametrize("kind", [TaskVector, NonLinearTaskVector, LinearizedTaskVector])
def test_a_saved_vector_is_the_same_and_of_the_same_kind(kind, tmp_path):
    tau = kind(vector={"w": torch.randn(3, 2), "s": torch.tensor(-2.0, dtype=torch.float64)})
    tau.save(tmp_path / "tau.safetensors", "small", task="land")
    for reader in {TaskVector, kind}:
        found = reader.load(tmp_path / "tau.safetensors", model="small", task="land")
        assert type(found) is kind and all(torch.equal(found[name], tau[name]) for name in tau)
    with pytest.raises(checkpoints.CheckpointError, match="expected kind 'weights'"):
        checkpoints.Checkpoint(tmp_path / "tau.safetensors")
    with pytest.raises(checkpoints.CheckpointError, match="expected model 'large'"):
        kind.load(tmp_path / "tau.safetensors", model="large")


def test_a_vector_of_the_other_kind_or_of_no_numbers_is_refused(tmp_path):
    LinearizedTaskVector(vector={"w": torch.ones(2)}).save(tmp_path / "tau.safetensors", "small")
    with pytest.raises(TypeError, match="expected a NonLinearTaskVector, found a LinearizedTaskVector"):
        NonLinearTaskVector.load(tmp_path / "tau.safetensors")
    with pytest.raises(checkpoints.CheckpointError, match="nothing was written"):
        TaskVector(vector={"w": torch.tensor([torch.nan])}).save(tmp_path / "nan.safetensors", "small")
    assert not (tmp_path / "nan.safetensors").exists()


def test_a_learned_coefficient_gets_its_gradient():
    coefficient, u = torch.tensor(0.3, requires_grad=True), vector()
    sum(t.sum() for t in (coefficient * u).vector.values()).backward()
    assert coefficient.grad.item() == pytest.approx(sum(t.sum().item() for t in u.vector.values()))


def test_what_has_no_meaning_is_refused():
    u = vector()
    for wrong in (lambda: u + 1, lambda: 1 + u, lambda: u - 1, lambda: 2 - u, lambda: u * u, lambda: u / u):
        with pytest.raises(TypeError):
            wrong()
    for wrong in (lambda: u * torch.ones(2), lambda: u > "1", lambda: Mask({}) & 1, lambda: 2 * (u > 0)):
        with pytest.raises(TypeError):
            wrong()
    for arguments in ({}, {"pretrained": {}}, {"finetuned": {}}, {"pretrained": {}, "finetuned": {}, "vector": {}}):
        with pytest.raises(TypeError, match="a pre-trained and a fine-tuned checkpoint, or a vector"):
            TaskVector(**arguments)


def test_names_and_shapes_that_differ_are_named():
    u = vector()
    fewer = TaskVector(vector={name: u[name] for name in ("a", "b")})
    other = TaskVector(vector=u.vector | {"b": torch.zeros(6, dtype=torch.float64)})
    mask = Mask({name: torch.ones(t.shape, dtype=torch.bool) for name, t in fewer.vector.items()})
    uses = [lambda x: u + x, lambda x: u - x, lambda x: x > u, lambda x: u.dot(x), lambda x: u.cosine(x)]
    uses += [lambda x: TaskVector(u.vector, x.vector)]
    for use in uses:
        with pytest.raises(ValueError, match="(missing|unexpected) c"):
            use(fewer)
        with pytest.raises(ValueError, match=r"b: expected \((5|6),\), found \((6|5),\)"):
            use(other)
    for use in (lambda: u * mask, lambda: mask & (u > 0)):
        with pytest.raises(ValueError, match="(missing|unexpected) c"):
            use()
    with pytest.raises(ValueError, match="(missing|unexpected) c"):
        u.apply_to(fewer.vector)
    with pytest.raises(ValueError, match=r"b: expected \(6,\), found \(5,\)"):
        u.apply_to(other.vector)


def test_lengths_and_angles():
    u, v = vector(1), vector(2)
    flat = [torch.cat([t.flatten() for t in x.vector.values()]) for x in (u, v)]
    assert u.dot(v) == pytest.approx(torch.dot(*flat).item())
    assert u.norm() == pytest.approx(flat[0].norm().item())
    assert u.cosine(v) == pytest.approx(torch.cosine_similarity(*flat, dim=0).item())
    assert u.cosine(-u) == pytest.approx(-1) and u.cosine(u - u) == 0
    assert u.num_parameters() == 18 and list(u) == u.keys() == ["a", "b", "c"]
    large = TaskVector(vector={"a": torch.full((1000,), 200.0, dtype=torch.float16)})  # its squares overflow a half
    assert large.norm() == pytest.approx(200 * 1000**0.5)


def test_counters_are_left_out_and_kept_in_weights():
    start, end = network(0), network(1)
    end.norm.num_batches_tracked += 7
    tau = TaskVector(start, end)
    assert "norm.num_batches_tracked" not in tau and "norm.running_mean" in tau
    assert TaskVector(vector=start.state_dict()).keys() == tau.keys()
    edited = tau.apply_to(start)
    assert edited.norm.num_batches_tracked == 0
    for name, tensor in end.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(edited.state_dict()[name], tensor)


def test_type_and_device_stay():
    start = network().half().state_dict()
    tau = TaskVector(vector=start)
    assert {t.dtype for t in (2 * tau).vector.values()} == {torch.float16}
    assert {t.dtype for t in tau.to(torch.float32).vector.values()} == {torch.float32}
    single = {name: t.float() if t.is_floating_point() else t for name, t in start.items()}
    assert (single + tau)["conv.weight"].dtype == torch.float32
    meta = (tau.to("meta") * 0.5 + tau.to("meta")).abs()
    assert {(t.device.type, t.dtype) for t in meta.vector.values()} == {("meta", torch.float16)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_differences_are_in_float32_at_least(dtype):
    start, end = (network(seed).to(dtype).state_dict() for seed in (0, 1))
    tau = TaskVector(start, end)
    wide = torch.promote_types(dtype, torch.float32)
    for name in tau:
        assert tau[name].dtype == wide and torch.equal(tau[name], end[name].to(wide) - start[name].to(wide))
    # No rounding of τ stands between θ0 and θ, so half precision gets θ back; float32 to its own last bit.
    assert_close({name: (start + tau)[name] for name in tau}, {name: end[name] for name in tau}, CLOSE[dtype] / 100)


def test_parameters_that_require_grad_give_plain_differences():
    start, end = (dict(network(seed).named_parameters()) for seed in (0, 1))
    assert not any(t.requires_grad for t in TaskVector(start, end).vector.values())


# ---- weights


@pytest.fixture
def sources(tmp_path):
    """The same two models as modules, as state dicts and as checkpoints: {form: (pre-trained, fine-tuned)}."""
    modules = network(0), network(1)
    weights = tuple(module.state_dict() for module in modules)
    paths = tmp_path / "zeroshot.safetensors", tmp_path / "standard.safetensors"
    for path, state, mode in zip(paths, weights, ("none", "standard")):
        checkpoints.save(path, state, {"model": "small", "mode": mode})
    return {"module": modules, "state dict": weights, "path": paths, "str": tuple(map(str, paths))}


@pytest.mark.parametrize("form", ["module", "state dict", "path", "str"])
def test_weights_in_every_form(sources, form):
    zeroshot_checkpoint, finetuned_checkpoint = sources[form]
    start, end = sources["state dict"]
    before = copy.deepcopy(start)
    tau = NonLinearTaskVector(zeroshot_checkpoint, finetuned_checkpoint)
    for edited, coefficient in (
        (tau.apply_to(zeroshot_checkpoint, scaling_coef=0.8), 0.8),
        (tau.apply_to_nonlinear(zeroshot_checkpoint), 1.0),
        (zeroshot_checkpoint + tau, 1.0),
        (tau + zeroshot_checkpoint, 1.0),
        (zeroshot_checkpoint - 0.5 * tau, -0.5),
    ):
        if form == "module":
            assert type(edited) is Network and edited is not zeroshot_checkpoint
            edited = edited.state_dict()
        for name in tau:
            torch.testing.assert_close(edited[name], start[name] + coefficient * (end[name] - start[name]))
    for name, tensor in before.items():
        assert torch.equal(tensor, start[name])  # what was given is untouched


def test_a_vector_of_part_of_the_weights_leaves_the_others(sources):
    start, end = sources["state dict"]
    tau = TaskVector(vector={"head.weight": end["head.weight"] - start["head.weight"]})
    edited = start + tau
    assert torch.equal(edited["head.weight"], start["head.weight"] + tau["head.weight"])
    assert all(torch.equal(edited[name], start[name]) for name in start if name != "head.weight")


# ---- the two kinds


@pytest.fixture
def linear_models():
    start = network(0)
    return tuple(LinearizedModel(copy.deepcopy(end), start) for end in (start, network(1)))


def test_kinds_share_names_and_do_not_add_up_without_a_cast(sources, linear_models):
    nonlinear = NonLinearTaskVector(*sources["module"])
    tangent = LinearizedTaskVector(*linear_models)
    assert tangent.keys() == nonlinear.keys()
    for use in (lambda: nonlinear + tangent, lambda: tangent - nonlinear):
        with pytest.raises(TypeError, match=r"to_linear\(\) or to_nonlinear\(\)"):
            use()
    assert type(nonlinear.to_linear() + tangent) is LinearizedTaskVector
    assert type(nonlinear + tangent.to_nonlinear()) is NonLinearTaskVector
    assert type(nonlinear + TaskVector(vector=tangent.vector)) is NonLinearTaskVector
    assert_equal(nonlinear.to_linear().to_nonlinear(), nonlinear)


def test_kinds_are_applied_to_their_own_models_or_by_name(sources, linear_models):
    pretrained_encoder, linear_pretrained_encoder = sources["module"][0], linear_models[0]
    nonlinear_task_vector, linear_task_vector = (
        NonLinearTaskVector(*sources["module"]),
        LinearizedTaskVector(*linear_models),
    )
    linear_edited_encoder = nonlinear_task_vector.apply_to_linear(linear_pretrained_encoder, scaling_coef=0.8)
    assert type(linear_edited_encoder) is LinearizedModel
    x = torch.randn(2, 3, 4, 4)
    f0, slope = forward_and_jvp(sources["module"][0].eval(), {}, nonlinear_task_vector, x)
    torch.testing.assert_close(linear_edited_encoder(x).detach(), f0 + 0.8 * slope)
    torch.testing.assert_close(linear_pretrained_encoder(x).detach(), f0)
    assert type(linear_task_vector.apply_to(linear_pretrained_encoder)) is LinearizedModel
    assert type(linear_task_vector.apply_to_nonlinear(pretrained_encoder)) is Network
    assert type(TaskVector(vector=linear_task_vector.vector).apply_to(pretrained_encoder)) is Network

    for use in (
        lambda: nonlinear_task_vector.apply_to(linear_pretrained_encoder),
        lambda: linear_pretrained_encoder + nonlinear_task_vector,
        lambda: linear_task_vector.apply_to_nonlinear(linear_pretrained_encoder),
        lambda: NonLinearTaskVector(*linear_models),
    ):
        with pytest.raises(TypeError, match="expected an ordinary model, .*apply_to_linear"):
            use()
    for use in (
        lambda: linear_task_vector.apply_to(pretrained_encoder),
        lambda: nonlinear_task_vector.apply_to_linear(pretrained_encoder),
        lambda: LinearizedTaskVector(*sources["module"]),
        lambda: LinearizedTaskVector(*sources["path"]),  # whose header says: standard
    ):
        with pytest.raises(TypeError, match="expected a linearized model, .*apply_to_nonlinear"):
            use()


# ---- masks


def test_a_tall_mask_keeps_what_its_task_owns():
    pretrained_checkpoint = {"w": torch.zeros(4), "steps": torch.tensor(3)}
    finetuned_checkpoint_A = {"w": torch.tensor([1.0, 1.0, 0.0, 0.5]), "steps": torch.tensor(9)}
    finetuned_checkpoint_B = {"w": torch.tensor([0.0, 2.0, 1.0, -0.5]), "steps": torch.tensor(9)}
    task_vector_A = TaskVector(pretrained_checkpoint, finetuned_checkpoint_A)
    task_vector_B = TaskVector(pretrained_checkpoint, finetuned_checkpoint_B)
    multi_task_vector = task_vector_A + task_vector_B
    tall_mask_A = task_vector_A.abs() > (multi_task_vector - task_vector_A).abs() * 0.5
    assert tall_mask_A.bits["w"].tolist() == [True, False, False, True]  # 1 > 2 * 0.5 does not hold: strict
    reconstructed = pretrained_checkpoint + multi_task_vector * tall_mask_A
    assert reconstructed["w"].tolist() == [1.0, 0.0, 0.0, 0.0] and reconstructed["steps"] == 3
    assert_equal(tall_mask_A * multi_task_vector, multi_task_vector * tall_mask_A)


def test_masks_are_a_boolean_algebra():
    u, v = vector(1), vector(2)
    p, q = u > v, u > 0
    assert ~(p & q) == (~p | ~q) and (p ^ q) == ((p & ~q) | (~p & q)) and ~~p == p
    assert p == (v < u) and ~p == (u <= v) and (u >= v) == ~(u < v)
    assert (p & ~p).count() == 0 and (p | ~p).density() == 1.0
    assert p.count() == sum(int((u[n] > v[n]).sum()) for n in u) == round(p.density() * p.num_parameters())
    assert p != q and p != "p"
    with pytest.raises(TypeError, match="a"):
        Mask({"a": torch.ones(2)})


def test_a_mask_removes_what_is_not_finite():
    broken = TaskVector(vector={"a": torch.tensor([1.0, float("inf"), float("nan")], dtype=torch.float16)})
    kept = broken * Mask({"a": torch.tensor([True, False, False])})
    assert kept["a"].tolist() == [1.0, 0.0, 0.0] and kept["a"].dtype == torch.float16


def test_masks_keep_one_bit_per_weight_on_disk(tmp_path):
    p = TaskVector(vector={"a": torch.randn(64, 125), "b": torch.randn(3)}) > 0
    checkpoints.save_masks(tmp_path / "masks.safetensors", {"t": p.bits}, {"model": "small"})
    assert Mask(checkpoints.load_masks(tmp_path / "masks.safetensors")["t"]) == p
    assert (tmp_path / "masks.safetensors").stat().st_size < 1001 + 1024  # and a header
