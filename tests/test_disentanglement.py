"""ξ against a double loop over the grid, image by image, in float64."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import vision_files as files
from drawn_checkpoints import draw_checkpoints
from torch import nn
from torch.nn import functional as F

from src.analysis import disentanglement
from src.analysis.disentanglement import Disentanglement, Term, WeightPlane, linear_term, nonlinear_term, two_tangents
from src.datasets import loading
from src.datasets.prepare import prepare
from src.datasets.vision import FACTS
from src.experiments import disentanglement as experiment
from src.experiments.disentanglement import some_images
from src.runtime import memory

torch.set_num_threads(1)
WITH_ZERO, WITHOUT_ZERO = np.linspace(-3, 3, 5), np.linspace(-3, 3, 4)


class Head(nn.Linear):
    """As ClassificationHead."""

    def __init__(self, features, classes):
        super().__init__(features, classes, bias=False)

    def forward(self, features):
        return super().forward(F.normalize(features, dim=-1))


@pytest.fixture
def problem():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 10), nn.GELU(), nn.Linear(10, 6)).double().eval()
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    vectors = [{name: 0.3 * torch.randn_like(tensor) for name, tensor in weights.items()} for _ in range(2)]
    heads = [Head(6, 5).double(), Head(6, 7).double()]
    data = [torch.randn(23, 3, 2, 2).double(), torch.randn(17, 3, 2, 2).double()]
    return module, weights, vectors, heads, data


def batches(images, size=8):
    return [(part, torch.zeros(len(part), dtype=torch.long)) for part in images.split(size)]


def nonlinear_features(module, weights, vectors):
    """One image at given coefficients: the weights are loaded into a copy of the model's forward pass by hand."""

    def features(image, alpha1, alpha2):
        w = {name: weights[name] + alpha1 * vectors[0][name] + alpha2 * vectors[1][name] for name in weights}
        hidden = F.gelu(w["1.weight"] @ image.flatten() + w["1.bias"])
        return w["3.weight"] @ hidden + w["3.bias"]

    return features


def linear_features(module, weights, vectors):
    """The first-order expansion by the dense Jacobian of every parameter, made once for an image."""
    made = {}

    def features(image, alpha1, alpha2):
        def forward(*values):
            return torch.func.functional_call(module, dict(zip(weights, values)), (image[None],))[0]

        values = tuple(weights.values())
        if image.data_ptr() not in made:
            made[image.data_ptr()] = forward(*values), torch.autograd.functional.jacobian(forward, values)
        out, jacobians = made[image.data_ptr()]
        for name, jacobian in zip(weights, jacobians):
            step = alpha1 * vectors[0][name] + alpha2 * vectors[1][name]
            out = out + (jacobian * step).flatten(1).sum(1)
        return out

    return features


def brute_force(features, heads, data, alphas):
    """(2, n, n): both terms, from the definition."""
    terms = np.zeros((2, len(alphas), len(alphas)))
    for t in range(2):
        for i, alpha1 in enumerate(alphas):
            for j, alpha2 in enumerate(alphas):
                for image in data[t]:
                    alone = features(image, alpha1, 0) if t == 0 else features(image, 0, alpha2)
                    both = features(image, alpha1, alpha2)
                    logits = [heads[t].weight @ (f / f.norm()) for f in (alone, both)]
                    terms[t, i, j] += (logits[0].argmax() != logits[1].argmax()).item() / len(data[t])
    return terms


def jvp_features(module, weights):
    """As forward_and_jvp of src.linearize at θ0."""

    def jvp(images, direction):
        return torch.func.jvp(lambda w: torch.func.functional_call(module, w, (images,)), (weights,), (direction,))

    return jvp


@pytest.mark.parametrize("alphas", [WITH_ZERO, WITHOUT_ZERO], ids=["with zero", "without zero"])
def test_nonlinear_equals_double_loop(problem, alphas):
    module, weights, vectors, heads, data = problem
    expected = brute_force(nonlinear_features(module, weights, vectors), heads, data, alphas)
    assert 0 < expected.mean() < 1
    plane = WeightPlane(module, weights, *vectors)
    for own in (0, 1):
        term = nonlinear_term(heads[own], batches(data[own]), plane, alphas, own, "task")
        np.testing.assert_allclose(term.disagreement, expected[own], atol=1e-12)
        assert term.samples == len(data[own])


@pytest.mark.parametrize("alphas", [WITH_ZERO, WITHOUT_ZERO], ids=["with zero", "without zero"])
def test_linear_equals_double_loop(problem, alphas, monkeypatch):
    module, weights, vectors, heads, data = problem
    expected = brute_force(linear_features(module, weights, vectors), heads, data, alphas)
    assert 0 < expected.mean() < 1
    tangents = two_tangents(jvp_features(module, weights), *vectors)
    for elements in (1, 150, 1 << 22):  # images of a batch: one by one, in parts, together
        monkeypatch.setattr(disentanglement, "GRID_ELEMENTS", elements)
        for own in (0, 1):
            term = linear_term(heads[own], batches(data[own]), tangents, alphas, own, "task")
            np.testing.assert_allclose(term.disagreement, expected[own], atol=1e-12)
            assert term.samples == len(data[own])


def test_linear_and_nonlinear_agree_for_an_affine_model(problem):
    _, _, _, heads, data = problem
    torch.manual_seed(1)
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 6)).double().eval()
    weights = dict(module.state_dict())
    vectors = [{name: torch.randn_like(tensor) for name, tensor in weights.items()} for _ in range(2)]
    for own in (0, 1):
        arguments = (WITHOUT_ZERO, own, "task")
        one = nonlinear_term(heads[own], batches(data[own]), WeightPlane(module, weights, *vectors), *arguments)
        tangents = two_tangents(jvp_features(module, weights), *vectors)
        two = linear_term(heads[own], batches(data[own]), tangents, *arguments)
        np.testing.assert_array_equal(one.disagreement, two.disagreement)


def test_the_other_coefficient_at_zero_changes_nothing(problem):
    module, weights, vectors, heads, data = problem
    alphas = np.linspace(-2, 2, 5)
    tangents, plane = two_tangents(jvp_features(module, weights), *vectors), WeightPlane(module, weights, *vectors)
    for own in (0, 1):
        for measure, features in ((linear_term, tangents), (nonlinear_term, plane)):
            term = measure(heads[own], batches(data[own]), features, alphas, own, "task")
            line = term.disagreement[2] if own else term.disagreement[:, 2]
            assert (line == 0).all()
            assert term.disagreement.max() > 0


def test_disentangled_vectors_have_no_error():
    """Each vector moves a block of features that only its own data excites: ξ = 0 everywhere."""
    torch.manual_seed(0)
    module = nn.Linear(8, 8, bias=False).double().eval()
    weights = {"weight": torch.eye(8, dtype=torch.float64)}
    vectors = [{"weight": torch.zeros(8, 8, dtype=torch.float64)} for _ in range(2)]
    vectors[0]["weight"][:, :4] = torch.randn(8, 4)
    vectors[1]["weight"][:, 4:] = torch.randn(8, 4)
    data = torch.zeros(10, 8, dtype=torch.float64)
    data[:, :4] = torch.randn(10, 4)  # of task 1
    head = Head(8, 5).double()
    plane = WeightPlane(module, weights, *vectors)
    assert not nonlinear_term(head, batches(data), plane, WITHOUT_ZERO, 0, "one").disagreement.any()
    # As data of task 2 the same images are moved by the foreign vector alone.
    assert nonlinear_term(head, batches(data), plane, WITHOUT_ZERO, 1, "two").disagreement.any()


@pytest.mark.parametrize("own", [0, 1])
@pytest.mark.parametrize("alphas, passes", [(WITH_ZERO, 5 * 5), (WITHOUT_ZERO, 4 * 4 + 4)], ids=["zero", "no zero"])
def test_each_point_of_grid_and_line_is_evaluated_once(problem, own, alphas, passes, monkeypatch):
    """A grid without a zero does not contain the line of the task's vector alone."""
    module, weights, vectors, heads, data = problem
    plane = WeightPlane(module, weights, *vectors)
    made, calls, reads = [], [], []

    def model_at(alpha1, alpha2):
        made.append((alpha1, alpha2))
        model = plane(alpha1, alpha2)
        return lambda images: calls.append((alpha1, alpha2)) or model(images)

    def stream():
        for batch in batches(data[own], 10):
            reads.append(len(batch[0]))
            yield batch

    term = nonlinear_term(heads[own], stream(), model_at, alphas, own, "task")
    assert len(calls) == passes * len(reads) and len(set(calls)) == passes
    assert len(made) == passes  # weights are made once for all batches that are held together
    assert sum(reads) == len(data[own])
    monkeypatch.setattr(memory, "HELD", 1)  # batch by batch
    made.clear()
    apart = nonlinear_term(heads[own], stream(), model_at, alphas, own, "task")
    assert len(made) == passes * len(reads) / 2 and np.array_equal(apart.disagreement, term.disagreement)


def test_linear_grid_costs_two_jvps_per_batch(problem):
    module, weights, vectors, heads, data = problem
    jvp, calls = jvp_features(module, weights), []

    def counted(images, direction):
        calls.append(len(images))
        return jvp(images, direction)

    linear_term(heads[0], batches(data[0], 23), two_tangents(counted, *vectors), WITHOUT_ZERO, 0, "task")
    assert calls == [23, 23]


def test_error_box_and_record():
    alphas = np.linspace(-3, 3, 13)
    first, second = np.random.default_rng(0).random((2, 13, 13))
    found = Disentanglement(alphas, (Term("a", first, 10), Term("b", second, 20)))
    np.testing.assert_array_equal(found.error, first + second)
    inside = [(first + second)[i, j] for i in range(13) for j in range(13) if max(abs(alphas[[i, j]])) <= 1]
    assert len(inside) == 25 and found.box_mean() == pytest.approx(np.mean(inside))
    record = found.record()
    assert record["tasks"] == ["a", "b"] and record["samples"] == [10, 20]
    assert record["alphas"] == alphas.tolist()
    assert record["error"][3][4] == found.error[3, 4] and record["box_mean"] == found.box_mean()
    with pytest.raises(ValueError, match="inside"):
        Disentanglement([2, 3], (Term("a", np.zeros((2, 2)), 1),) * 2).box_mean()
    with pytest.raises(ValueError, match="b: a grid"):
        Disentanglement(alphas, (Term("a", first, 1), Term("b", second[:3], 1)))


def test_not_finite_features_name_task_and_coefficients(problem):
    module, weights, vectors, heads, data = problem

    def broken(alpha1, alpha2):
        value = np.nan if (alpha1, alpha2) == (-1.0, 1.0) else 1.0
        return lambda images: torch.full((len(images), 6), value, dtype=torch.float64)

    with pytest.raises(FloatingPointError, match=r"signs .*\(-1, 1\)"):
        nonlinear_term(heads[0], batches(data[0]), broken, WITHOUT_ZERO, 0, "signs")
    vectors[1]["1.weight"][0, 0] = np.inf
    with pytest.raises(FloatingPointError, match="signs .*α2"):
        tangents = two_tangents(jvp_features(module, weights), *vectors)
        linear_term(heads[0], batches(data[0]), tangents, WITHOUT_ZERO, 0, "signs")


def test_bad_input(problem):
    module, weights, vectors, heads, data = problem
    plane = WeightPlane(module, weights, *vectors)
    with pytest.raises(ValueError, match="index"):
        nonlinear_term(heads[0], batches(data[0]), plane, WITHOUT_ZERO, 2, "signs")
    with pytest.raises(ValueError, match="no image of signs"):
        nonlinear_term(heads[0], [], plane, WITHOUT_ZERO, 0, "signs")
    with pytest.raises(ValueError, match="the pre-trained model and the task vector differ .*unexpected text"):
        WeightPlane(module, weights, {**vectors[0], "text": torch.zeros(1)}, vectors[1])
    with pytest.raises(ValueError, match=r"1\.bias"):
        WeightPlane(module, weights, {"1.bias": torch.zeros(3)}, vectors[1])
    tangents = two_tangents(jvp_features(module, weights), *vectors)
    with pytest.raises(ValueError, match="bias"):
        linear_term(nn.Linear(6, 5).double(), batches(data[0]), tangents, [0], 0, "signs")


def test_plane_leaves_the_module_alone(problem):
    module, weights, vectors, _, data = problem
    zero = WeightPlane(module, weights, {}, {})
    partial = WeightPlane(module, weights, {"1.bias": vectors[0]["1.bias"]}, {})
    torch.testing.assert_close(zero(2.0, 2.0)(data[0]), module(data[0]))
    assert not torch.equal(partial(2.0, 0.0)(data[0]), module(data[0]))
    assert all(torch.equal(weights[name], tensor) for name, tensor in module.state_dict().items())


def test_a_part_of_a_set_that_lies_by_class_is_of_many_classes(make_run, tmp_path):
    """EuroSAT's 20 test images lie two by two: the first six are of three classes."""
    files.class_folders("EuroSAT", tmp_path / "data/eurosat", {"2750": 20}, files.EUROSAT)
    prepare(FACTS["EuroSAT"], tmp_path / "data", as_is=True)
    flags = ("--suite=vision", "--model=ViT-Mini", "--tasks=EuroSAT", "--eval-batch-size=4")
    run = make_run(*flags, f"--data-location={tmp_path / 'data'}")
    labels = [torch.cat([y for _, y in some_images(run, "EuroSAT", "test", count)]).tolist() for count in (6, 6, None)]
    assert len(labels[0]) == 6 and len({*labels[0]}) > 3 and labels[0] == labels[1]
    assert labels[2] == [label for label in range(10) for _ in range(2)]


@pytest.mark.parametrize("mode", ["standard", "posthoc"])
def test_parts_of_a_task_are_dealt_where_there_are_more_processes_than_pairs(make_run, tmp_path, monkeypatch, mode):
    run = make_run("--tasks", "digits", "signs", f"--save={tmp_path}", "--jobs=1", "--eval-batch-size=10")
    draw_checkpoints(run)
    dealt = []

    def here(work, jobs, *rest):
        dealt.append([share for _, _, share in jobs])
        return [work(job) for job in jobs]

    monkeypatch.setattr(experiment, "map_tasks", here)
    alone, five = (
        experiment._record(replace(run, jobs=jobs), mode, [("digits", "signs")], (-3.0, 3.0), 3, 23) for jobs in (1, 5)
    )
    thirds = [(0, 3), (1, 3), (2, 3)]  # 23 images are three batches
    assert dealt == [[(0, 1)] * 2, thirds * 2] and five == alone
    sizes = itertools.cycle((7, 10, 3))  # as many at once as each process has memory for
    monkeypatch.setattr(loading, "images_at_once", lambda *which: next(sizes))
    pairs = [("digits", "signs")]
    (pair,) = experiment._record(replace(run, jobs=5), mode, pairs, (-3.0, 3.0), 3, 23)["pairs"]
    assert pair["samples"] == [23, 23]
    np.testing.assert_allclose(pair["error"], alone["pairs"][0]["error"], atol=1.01 / 23)  # another order of sums
    assert alone["pairs"][0]["samples"] == [23, 23] and np.max(alone["pairs"][0]["error"]) > 0
