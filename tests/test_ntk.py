"""The tangent kernel against dense Jacobians and closed forms, in float64; localisation against loops."""

import math

import numpy as np
import pytest
import torch
from open_clip.transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from src.analysis.ntk import REDUCTIONS, kernel, localize, localize_jointly, tangent_kernel

torch.set_num_threads(1)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


class Head(nn.Linear):
    """As ClassificationHead: the feature is normalised, then multiplied."""

    def __init__(self, features, classes):
        super().__init__(features, classes, bias=False)

    def forward(self, features):
        return super().forward(F.normalize(features, dim=-1))


def clip_tower(width=16, embed=8, layers=2, stem=False):
    """open_clip's image tower: convolution, class and positional embeddings, attention, projection."""
    tower = VisionTransformer(
        image_size=16, patch_size=8, width=width, layers=layers, heads=2, mlp_ratio=2.0, output_dim=embed
    )
    if stem:
        tower.conv1 = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.GELU(), nn.Conv2d(6, width, 4, 4))
    return tower


class Tokens(nn.Module):
    """Pools a sequence model that wants (tokens, samples, width)."""

    def __init__(self, body, samples_first=False):
        super().__init__()
        self.body, self.samples_first = body, samples_first

    def forward(self, images):
        x = images.flatten(2).transpose(1, 2)  # (samples, tokens, 3)
        x = self.body(x) if self.samples_first else self.body(x.transpose(0, 1)).transpose(0, 1)
        return x.mean(1)


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x)[0]


class CrossAttention(nn.MultiheadAttention):
    """Query and keys differ, so the projection is cut in pieces inside."""

    def forward(self, x):
        return super().forward(x, x.tanh(), x.sin())[0]


class Tied(nn.Module):
    """One matrix as three layers, once transposed; one bias in two places; a scale."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(12, 12)
        self.two = nn.Linear(12, 12)
        self.two.weight, self.two.bias = self.one.weight, self.one.bias
        self.scale = nn.Parameter(torch.randn(12))

    def forward(self, images):
        x = images.flatten(1)[:, :12]
        x = self.two(torch.tanh(self.one(x))).relu()
        return self.scale * (x @ self.one.weight) + self.one.bias


class Odd(nn.Module):
    """Groups, BatchNorm, parameters used twice or through other operations, and one that nothing uses."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, groups=3)
        self.norm = nn.BatchNorm2d(6)
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.both = nn.Parameter(torch.randn(6, 6))
        self.low, self.rank = nn.Parameter(torch.randn(6, 1)), nn.Parameter(torch.randn(1, 6))
        self.base = nn.Parameter(torch.randn(6, 6))
        self.dead = nn.Linear(6, 6)
        self.unused = nn.Parameter(torch.randn(2))

    def forward(self, images):
        x = F.relu(self.norm(self.conv(images)), inplace=True).mean((2, 3))
        x = x + self.dead(x).exp().neg().relu()
        x = F.linear(x, self.base + self.low @ self.rank)
        return F.linear(x, self.weight**2) + F.linear(x, self.both) * self.both.norm()


class Inplace(nn.Module):
    """Writes over the outputs of its layers."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, images):
        x = images.flatten(1)[:, :6]
        y = self.two(F.relu_(self.one(x)))
        y += x
        return y.mul_(x)


MODULES = {
    "clip": (clip_tower, 8),
    "stem": (lambda: clip_tower(stem=True), 8),
    "tokens first": (lambda: Tokens(SelfAttention(3, 1)), 3),
    "samples first": (lambda: Tokens(SelfAttention(3, 1, batch_first=True), True), 3),
    "encoder layer": (lambda: Tokens(nn.TransformerEncoderLayer(3, 1, 7)), 3),
    "cross attention": (lambda: Tokens(CrossAttention(3, 1)), 3),
    "tied": (Tied, 12),
    "odd": (Odd, 6),
    "in place": (Inplace, 6),
}


def build(name, classes=3, size=16):
    torch.manual_seed(0)
    make, features = MODULES[name]
    module = make().double().eval()
    for parameter in module.parameters():  # open_clip starts biases at zero and norms at one
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module, Head(features, classes).double(), torch.randn(7, 3, size, size, dtype=torch.float64)


def dense_jacobian(module, head, images):
    """(samples, outputs, parameters), one backward pass for each entry of the first two, one sample at a time."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    jacobian = []
    for image in images:
        rows = []
        for output in head(module(image[None]))[0]:
            gradients = torch.autograd.grad(output, parameters, retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
        jacobian.append(torch.stack(rows))
    return torch.stack(jacobian)


def reduce(jacobian, reduction):
    if reduction == "trace":
        return torch.einsum("icp,jcp->ij", jacobian, jacobian)
    return jacobian.sum(1) @ jacobian.sum(1).T


@pytest.mark.parametrize("name", MODULES)
def test_equals_dense_jacobian(name):
    module, head, images = build(name, size=16 if name in ("clip", "stem") else 4)
    jacobian = dense_jacobian(module, head, images)
    for reduction in REDUCTIONS:
        expected = reduce(jacobian, reduction)
        for chunk_size in (None, 1, 3, 100):
            actual = tangent_kernel(module, head, images, reduction=reduction, chunk_size=chunk_size)
            torch.testing.assert_close(actual, expected, **CLOSE)


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_blocks_are_those_of_the_whole_kernel(chunk_size, monkeypatch):
    module, head, images = build("clip")
    whole = tangent_kernel(module, head, images)
    products: list[int] = []
    multiply = kernel._inner_products

    def counting(one, two):
        found = multiply(one, two)
        products.append(found.numel())
        return found

    monkeypatch.setattr(kernel, "_inner_products", counting)
    first, last = slice(0, 2), slice(5, 7)
    found = tangent_kernel(
        module, head, images, chunk_size=chunk_size, blocks=((slice(0, 7), first), (last, last)), reduction="sum"
    )
    of_blocks = sum(products)
    expected = tangent_kernel(module, head, images, reduction="sum")
    assert of_blocks <= 7 * 2 + 2 * 2 < sum(products) - of_blocks
    for rows, columns in ((slice(0, 7), first), (first, slice(0, 7)), (last, last)):
        torch.testing.assert_close(found[rows, columns], expected[rows, columns], **CLOSE)
    assert not found[2:5, 2:].any()
    parts = [tangent_kernel(module, head, images, chunk_size=chunk_size, part=(which, 4)) for which in range(4)]
    torch.testing.assert_close(sum(parts), whole, **CLOSE)
    assert not parts[3].any()  # there are three outputs


def test_equals_jacrev():
    module, head, images = build("clip")
    parameters = dict(module.named_parameters())

    def outputs(parameters):
        return head(torch.func.functional_call(module, parameters, (images,)))

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        jacobian = torch.func.jacrev(outputs)(parameters)
    jacobian = torch.cat([part.flatten(2) for part in jacobian.values()], 2)
    torch.testing.assert_close(tangent_kernel(module, head, images), reduce(jacobian, "trace"), **CLOSE)


def test_linear_model_in_closed_form():
    """f = W x + b: ∇W f_c = e_c xᵀ, so the trace is C (x·x' + 1), and so is the sum."""
    x = torch.randn(6, 9, dtype=torch.float64)
    model = nn.Linear(9, 5).double().eval()
    for reduction in REDUCTIONS:
        actual = tangent_kernel(model, nn.Identity(), x, reduction=reduction)
        torch.testing.assert_close(actual, 5 * (x @ x.T + 1), **CLOSE)


def test_frozen_parameters_are_constants():
    module, head, images = build("clip")
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("mlp" in name)
    expected = reduce(dense_jacobian(module, head, images), "trace")
    torch.testing.assert_close(tangent_kernel(module, head, images), expected, **CLOSE)


class MostAtOnce(TorchDispatchMode):
    """Counts the elements of the largest tensor with one row per sample."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_gradients_are_held_for_one_chunk_and_one_output(monkeypatch):
    module, head = nn.Linear(50, 40, bias=False).eval(), Head(40, 6)
    images = torch.randn(8, 50)

    def most(chunk_size=None):
        with MostAtOnce() as mode:
            tangent_kernel(module, head, images, chunk_size=chunk_size)
        return mode.elements

    gradient = 50 * 40
    assert [most(chunk_size) for chunk_size in (1, 2, 8)] == [gradient, 2 * gradient, 8 * gradient]
    monkeypatch.setattr(kernel, "GRADIENT_BYTES", 2 * 3 * gradient * 4 + 1)  # two chunks of three samples, float32
    assert most() == 3 * gradient
    monkeypatch.setattr(kernel, "GRADIENT_BYTES", 1)
    assert most() == gradient


def test_long_sums_are_added_up_in_double_precision():
    """Gradients of 2²² elements: their products, summed in single precision, would lose four of its seven digits."""
    model = nn.Linear(1 << 22, 1, bias=False).eval()
    x = torch.rand(3, 1 << 22)
    torch.testing.assert_close(tangent_kernel(model, nn.Identity(), x), x.double() @ x.double().T, rtol=1e-6, atol=0.0)


def test_leaves_the_model_as_it_was():
    module, head, images = build("tokens first")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    linear = F.linear
    tangent_kernel(module, head, images)
    assert F.linear is linear and torch.backends.mha.get_fastpath_enabled()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_works_under_no_grad_and_in_single_precision():
    module, head, images = build("clip")
    exact = tangent_kernel(module, head, images)
    with torch.no_grad():
        single = tangent_kernel(module.float(), head.float(), images.float(), chunk_size=4)
    assert single.dtype == torch.float64
    torch.testing.assert_close(single, exact, rtol=1e-4, atol=1e-4 * exact.max().item())


def test_bad_input():
    module, head, images = build("clip")
    with pytest.raises(ValueError, match="trace, sum"):
        tangent_kernel(module, head, images, reduction="mean")
    with pytest.raises(ValueError, match="chunk_size"):
        tangent_kernel(module, head, images, chunk_size=0)
    with pytest.raises(ValueError, match="at least one image"):
        tangent_kernel(module, head, images[:0])
    with pytest.raises(ValueError, match=r"\(samples, outputs\)"):
        tangent_kernel(module, lambda features: features.unsqueeze(1), images)
    with pytest.raises(ValueError, match="eval"):
        tangent_kernel(module.train(), head, images)
    images[5] = math.nan
    with pytest.raises(FloatingPointError, match="image 5 "):
        tangent_kernel(module.eval(), head, images, chunk_size=4)
    with pytest.raises(ValueError, match="requires a gradient"):
        tangent_kernel(module.requires_grad_(False), head, images)


def random_kernel(samples, rank, seed=0):
    features = np.random.default_rng(seed).normal(size=(samples, rank)) * 0.8 ** np.arange(rank)
    return features @ features.T


def test_nystrom_by_hand():
    kernel = random_kernel(9, 20)
    task, control = kernel[:6, :6], kernel[6:, :6]
    found = localize(task, {"control": control}, ranks=(2,))
    values, vectors = np.linalg.eigh(task)
    for point in range(3):
        energy = 0.0
        for rho in (-1, -2):
            phi = sum(control[point, nu] * vectors[nu, rho] * math.sqrt(6) for nu in range(6)) / values[rho]
            energy += phi**2
        assert found.energy["control"][0, point] == pytest.approx(energy)
    np.testing.assert_allclose(found.energy["task"][0], 6 * (vectors[:, -2:] ** 2).sum(1))
    np.testing.assert_allclose(found.eigenvalues, values[::-1])
    assert found.task_share is None and found.shuffled_ratio is None


def test_nystrom_on_the_points_themselves_is_the_eigenvectors():
    kernel = random_kernel(8, 20)
    found = localize(kernel, {"control": kernel}, ranks=(1, 3, 8))
    np.testing.assert_allclose(found.energy["control"], found.energy["task"], rtol=1e-6)
    np.testing.assert_allclose(found.energy["task"].mean(1), [1, 3, 8])  # the count, whatever the kernel
    np.testing.assert_allclose(found.energy["task"][2], 8)  # all of them: the same at every point
    np.testing.assert_allclose(found.ratio(), 1, rtol=1e-6)


def test_orthogonal_supports_are_localized():
    """A linear model on two supports with no coordinate in common: K = x·x' is zero between them."""
    images = torch.zeros(10, 8, dtype=torch.float64)
    images[:5, :4], images[5:, 4:] = torch.randn(5, 4).double(), torch.randn(5, 4).double()
    kernel = tangent_kernel(nn.Linear(8, 1, bias=False).double().eval(), nn.Identity(), images).numpy()
    found = localize(kernel[:5, :5], {"control": kernel[5:, :5]}, ranks=(1, 1.0))
    assert list(found.counts) == [1, 4]  # rank 4: the fifth eigenvalue is null
    np.testing.assert_allclose(found.energy["control"], 0, atol=1e-20)
    joint = localize_jointly(kernel, np.arange(10) < 5, ranks=(1.0,))
    assert list(joint.kept) == [4] and list(joint.counts) == [8]
    np.testing.assert_allclose(joint.energy["control"], 0, atol=1e-20)
    np.testing.assert_allclose(np.sort(joint.task_share), [0] * 4 + [1] * 4, atol=1e-12)


def test_zero_energy_gives_an_infinite_ratio():
    found = localize(np.eye(3), {"control": np.zeros((2, 3))})
    assert found.ratio() == [math.inf]


def test_scale_of_the_kernel_does_not_matter():
    kernel = random_kernel(12, 30)
    one = localize(kernel[:6, :6], {"control": kernel[6:, :6]}, ranks=(0.5, 0.9, 4))
    two = localize(7 * kernel[:6, :6], {"control": 7 * kernel[6:, :6]}, ranks=(0.5, 0.9, 4))
    np.testing.assert_allclose(one.ratio(), two.ratio())


def test_shares_and_counts():
    kernel = np.diag([50.0, 30.0, 15.0, 5.0, 1e-9])
    found = localize(kernel, {}, ranks=(0.4, 0.5, 0.8, 0.81, 1.0, 2, 100))
    assert list(found.counts) == [1, 1, 2, 3, 4, 2, 4]  # 1e-9 is null in single precision
    assert found.shares[1] == pytest.approx(0.5)
    assert list(localize(kernel, {}, ranks=(1.0,), tolerance=0.0).counts) == [5]
    for rank in (0, 0.0, 1.5, -1):
        with pytest.raises(ValueError, match="share|at least one"):
            localize(kernel, {}, ranks=(rank,))


def test_held_out_points_of_the_task_are_the_fair_comparison():
    """When control points come from the task itself, control and held-out agree, but D_t itself does not."""
    kernel = random_kernel(360, 40)
    fit, held_out, control = np.arange(120), np.arange(120, 240), np.arange(240, 360)
    cross = {"held out": kernel[np.ix_(held_out, fit)], "control": kernel[np.ix_(control, fit)]}
    found = localize(kernel[:120, :120], cross, ranks=(20, 40))
    np.testing.assert_allclose(found.ratio(group="held out"), 1, atol=0.1)
    assert found.ratio()[1] != pytest.approx(1, abs=0.1)


def test_joint_by_hand_and_for_shuffled_labels():
    kernel, task = random_kernel(14, 30), np.arange(14) % 2 == 0
    found = localize_jointly(kernel, task, ranks=(3, 14))
    vectors = np.linalg.eigh(kernel)[1]
    for row, count in enumerate((3, 14)):
        chosen = [v for v in vectors.T[::-1][:count] if (v[task] ** 2).sum() > 0.5]
        assert found.kept[row] == len(chosen)
        np.testing.assert_allclose(found.energy["task"][row], 14 * sum(v[task] ** 2 for v in chosen))
        np.testing.assert_allclose(found.energy["control"][row], 14 * sum(v[~task] ** 2 for v in chosen))
    np.testing.assert_allclose(14 * (vectors**2).sum(1), 14)  # of all: the reason why a choice is needed
    # The labels say nothing about this kernel: its ratio over all eigenfunctions is what shuffled labels give.
    assert found.ratio()[1] == pytest.approx(found.shuffled_ratio[1], rel=0.5)
    assert found.shuffled_ratio[1] > 1


def test_joint_keeps_none_where_all_live_on_the_control():
    found = localize_jointly(np.diag([1.0, 1.0, 9.0, 9.0]), np.arange(4) < 2, ranks=(2, 4))
    assert list(found.kept) == [0, 2]
    assert np.isnan(found.ratio()[0]) and found.ratio()[1] == math.inf


def test_bad_kernels():
    with pytest.raises(ValueError, match="square"):
        localize(np.ones((2, 3)), {})
    with pytest.raises(FloatingPointError, match="finite"):
        localize(np.full((2, 2), np.nan), {})
    with pytest.raises(ValueError, match="positive"):
        localize(np.zeros((2, 2)), {})
    with pytest.raises(ValueError, match=r"control.*\(points, 2\)"):
        localize(np.eye(2), {"control": np.eye(3)})
    with pytest.raises(ValueError, match="labels"):
        localize_jointly(np.eye(2), np.array([True, True]))
