"""AdaMerging and Concrete subspace learning against loops written here, on a tower of 100 weights in float64."""

import json
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from adapting_problems import (
    PAIR,
    TASKS,
    Adam,
    Killed,
    flat,
    head,
    images,
    problem,
    result_name,
    result_of,
    small,
    tower,
    with_batches,
)
from torch.func import functional_call, jvp

import main
from src import checkpoints
from src.datasets import loading, registry
from src.datasets.base import Pixels
from src.experiments import merging
from src.linearize import LinearizedModel
from src.merging import adaptation, steps, watch
from src.merging.adamerging import AdaMerging, AdaMergingPP, elected
from src.merging.adaptation import MergedModel, NonFiniteLoss, entropy
from src.merging.atlas import Atlas
from src.merging.base import Labelled, Problem, Progress
from src.merging.concrete import ConcreteTaskArithmetic, LayerWiseConcreteAdaMerging, TaskWiseConcreteAdaMerging
from src.merging.problem import unlabelled
from src.merging.registry import METHODS, load_methods
from src.merging.surgery import Surgery
from src.merging.ties import ties_vector
from src.runtime.messages import UsageError
from src.runtime.seeds import event_seed

# Of a Concrete mask and of λ at its start, neither of which is the default.
T, COEF = 0.8, 0.4


# ---- the objective and its gradient


def written_out(given: Problem, lam, masks, numbers, clamp: bool = False) -> torch.Tensor:
    """Σ_t Σ_batches mean entropy as one graph over λ (tasks, layers or 1) and the rescaled masks {name: m}."""
    model, loss = given.images.encoder(), 0.0
    columns = lam.clamp(0, 1) if clamp else lam
    theta = {}
    for place, name in enumerate(given.keys):
        theta[name] = given.pretrained[name]
        for t, task in enumerate(given.tasks):
            column = columns[t, place if lam.shape[1] > 1 else 0]
            theta[name] = theta[name] + column * masks.get(name, 1.0) * given.tensor(task, name)
    for task in given.tasks:
        for number in numbers:
            features = functional_call(model, theta, (images(task, "test", 5, number),))
            p = torch.softmax(given.images.head(task)(features), 1)
            loss = loss - (p * p.log()).sum(1).mean()
    return loss


def test_entropy_and_its_gradient_are_the_explicit_formula():
    logits = torch.randn(7, 4).double().requires_grad_()
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    expected = -(p * torch.log(p)).sum() / 7
    torch.testing.assert_close(entropy(logits), expected)
    ours, theirs = (torch.autograd.grad(loss, logits)[0] for loss in (entropy(logits), expected))
    torch.testing.assert_close(ours, theirs)
    by_hand = -p * (p.log() + (-(p * p.log()).sum(1, keepdim=True))) / 7
    torch.testing.assert_close(ours, by_hand)


@pytest.mark.parametrize("granularity", ["task", "layer"])
@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("pass_size", [1, 10, 1000])
def test_the_gradient_in_two_steps_is_that_of_the_whole_graph(granularity, clamp, pass_size):
    given = problem()
    model = MergedModel(given, small(AdaMerging, pass_size=pass_size), clamp)
    beyond = torch.tensor([[-0.4], [0.6], [1.5]]).double()  # [0, 1], on either side: the clamp lets no gradient pass
    lam = beyond.expand_as(model.coefficients(granularity)).clone().requires_grad_()
    x = {name: torch.randn(shape).double().requires_grad_() for name, shape in given.shapes.items()}
    found = model.backward(lam, [0, 1], lambda name: x[name].sigmoid())
    loss = written_out(given, lam, {name: v.sigmoid() for name, v in x.items()}, [0, 1], clamp)
    assert sum(found.values()) * 2 == pytest.approx(loss.item())
    expected = torch.autograd.grad(loss, [lam, *x.values()])
    torch.testing.assert_close(lam.grad, expected[0])
    for value, gradient in zip(x.values(), expected[1:]):
        torch.testing.assert_close(value.grad, gradient)


def test_task_wise_is_layer_wise_with_tied_coefficients():
    given = problem()
    model = MergedModel(given, small(AdaMerging))
    task, layer = (model.coefficients(word).requires_grad_() for word in ("task", "layer"))
    assert model.backward(task, [0]) == pytest.approx(model.backward(layer, [0]))
    torch.testing.assert_close(task.grad, layer.grad.sum(1, keepdim=True))


def test_on_a_tangent_model_it_is_the_entropy_of_the_linear_features():
    given = problem(mode="linear", encoder=lambda: LinearizedModel(tower()))
    model = MergedModel(given, small(AdaMerging))
    lam = model.coefficients("layer").requires_grad_()
    found = model.backward(lam, [0])
    start = {name: given.pretrained[name] for name in given.keys}

    def loss(lam):
        total, towered = 0.0, tower()
        update = {
            name: sum(lam[t, place] * given.tensor(task, name) for t, task in enumerate(TASKS))
            for place, name in enumerate(given.keys)
        }
        for task in TASKS:
            batch = images(task, "test", 5, 0)
            f0, slope = jvp(lambda p, x=batch: functional_call(towered, p, (x,)), (start,), (update,))
            total = total + entropy(head(task)(f0 + slope))
        return total

    explicit = lam.detach().clone().requires_grad_()
    expected = loss(explicit)
    assert sum(found.values()) == pytest.approx(expected.item())
    torch.testing.assert_close(lam.grad, torch.autograd.grad(expected, explicit)[0])


# ---- steps written by hand


def drawn(x: dict[str, torch.Tensor], draw) -> dict[str, torch.Tensor]:
    """Rescaled masks by the seed's formula, of the uniform numbers that this draw means."""
    masks = {}
    for name, logits in x.items():
        generator = torch.Generator().manual_seed(event_seed(3, "mask", draw, name))
        u = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
        sigma = 1 / (1 + torch.exp(-logits))
        m = 1 / (1 + torch.exp(-(torch.log(u / (1 - u)) + torch.log(sigma / (1 - sigma))) / T))
        masks[name] = m / m.mean()
    return masks


def merged(given: Problem, lam: torch.Tensor, masks, clamp: bool = False) -> torch.Tensor:
    columns = lam.clamp(0, 1) if clamp else lam
    update = {
        name: masks.get(name, 1.0)
        * sum(columns[t, place if lam.shape[1] > 1 else 0] * given.tensor(task, name) for t, task in enumerate(TASKS))
        for place, name in enumerate(given.keys)
    }
    return flat(update)


def test_concrete_task_arithmetic_is_the_loop_written_by_hand():
    given, adam = problem(), {name: Adam(0.1) for name in problem().keys}
    lam = torch.full((3, 1), COEF).double()
    x = {name: torch.full(shape, 0.2).double() for name, shape in given.shapes.items()}
    for step in range(3):
        x = {name: value.requires_grad_() for name, value in x.items()}
        loss = written_out(given, lam, drawn(x, step), [step])
        gradients = torch.autograd.grad(loss, list(x.values()))
        x = {name: adam[name].step(x[name], g) for name, g in zip(x, gradients)}
    options = dict(temperature=T, coef=COEF, initial_logits=0.2)
    method = small(ConcreteTaskArithmetic, mask_steps=3, mask_lr=0.1, **options)
    found = method.merge(given)
    expected = merged(given, lam, drawn(x, ("final", 0)))
    torch.testing.assert_close(flat(found.vector("a", 1.0).vector), expected)
    assert found.settings == (1.0,) and not found.per_task


VARIANTS = {  # clamp, one mask for both steps, inner gradient at the λ of the step before
    "original": (True, False, True),
    "fusion_bench": (False, True, True),
    "fresh": (True, False, False),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", [TaskWiseConcreteAdaMerging, LayerWiseConcreteAdaMerging])
def test_concrete_adamerging_is_the_loop_written_by_hand(method, variant):
    given, (clamp, one_mask, stale) = problem(), VARIANTS[variant]
    layers = len(given.keys) if method.granularity == "layer" else 1
    start = torch.full((3, layers), COEF).double()
    lam, x = start.clone(), {name: torch.full(shape, 0.2).double() for name, shape in given.shapes.items()}
    inner, outer, last = Adam(0.7), {name: Adam(0.1) for name in x}, Adam(0.05)
    for step in range(3):
        fixed = drawn(x, ("outer" if one_mask else "inner", step))
        point = (lam if stale else start).clone().requires_grad_()
        loss = written_out(given, point, fixed, [2 * step], clamp)
        point.data = start.clone()  # as published: after the merge, before backward, whose clamp then sees 0.3
        (gradient,) = torch.autograd.grad(loss, point)
        assert gradient.abs().min() > 0
        lam = inner.step(start, gradient)
        x = {name: value.requires_grad_() for name, value in x.items()}
        loss = written_out(given, lam, drawn(x, ("outer", step)), [2 * step + 1], clamp)
        gradients = torch.autograd.grad(loss, list(x.values()))
        x = {name: outer[name].step(x[name], g) for name, g in zip(x, gradients)}
    frozen, lam = drawn(x, ("final", 0)), start.clone()
    for step in range(2):
        lam.requires_grad_()
        (gradient,) = torch.autograd.grad(written_out(given, lam, frozen, [6 + step], clamp), lam)
        lam = last.step(lam, gradient)
    options = dict(temperature=T, coef=COEF, initial_logits=0.2, inner_lr=0.7, variant=variant)
    options |= dict(mask_steps=3, mask_lr=0.1, steps=2, lr=0.05)
    found = small(method, **options).merge(given)
    torch.testing.assert_close(flat(found.vector("a", 1.0).vector), merged(given, lam, frozen, clamp))
    assert found.adaptation["phases"] == [{"name": "meta", "steps": 3}, {"name": "lambda", "steps": 2}]
    values = torch.tensor(found.adaptation["lambda"]["values"]).double()
    torch.testing.assert_close(values, lam.clamp(0, 1) if clamp else lam, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("final", ["binary", "threshold", "expected"])
@pytest.mark.parametrize("method", [ConcreteTaskArithmetic, LayerWiseConcreteAdaMerging])
def test_the_final_mask_is_of_the_kind_that_is_asked_for_and_lambda_is_adapted_under_it(method, final):
    watched, learns = [], method is LayerWiseConcreteAdaMerging
    given = problem(progress=Progress(lambda step, phase, model: watched.append(flat(model().vector))))
    options = dict(steps=2, lr=0.05) if learns else {}
    found = small(method, mask_steps=3, mask_lr=0.1, final=final, **options).merge(given)
    masks, means, adam = {}, {}, Adam(0.05)
    for name, logits in found.logits.mask.logits.items():
        generator, x = torch.Generator().manual_seed(event_seed(3, "mask", ("final", 0), name)), logits.detach()
        u = torch.rand(x.shape, generator=generator, dtype=torch.float64)
        kinds = {"binary": u > torch.sigmoid(-x), "threshold": x > 0, "expected": torch.sigmoid(x)}
        means[name] = float(kinds[final].double().mean())
        masks[name] = kinds[final].double() / means[name]
    lam = torch.full((3, len(given.keys) if learns else 1), 0.3).double()
    for step in range(2 if learns else 0):
        lam.requires_grad_()
        lam = adam.step(lam, torch.autograd.grad(written_out(given, lam, masks, [6 + step], learns), lam)[0])
    torch.testing.assert_close(flat(found.vector("a", 1.0).vector), merged(given, lam, masks, learns))
    torch.testing.assert_close(watched[-1], merged(given, lam, masks, learns))
    about, sizes = found.adaptation["mask"], {name: shape.numel() for name, shape in given.shapes.items()}
    assert about["final"] == final and about["by_tensor"] == pytest.approx(means)
    assert about["density"] == pytest.approx(sum(means[n] * sizes[n] for n in means) / sum(sizes[n] for n in means))


@pytest.mark.parametrize("variant, batches, clamp", [("original", 2, True), ("fusion_bench", 1, False)])
@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_adamerging_is_the_loop_written_by_hand(variant, batches, clamp, granularity):
    given, adam, path = problem(), Adam(0.2), []
    lam = torch.full((3, len(given.keys) if granularity == "layer" else 1), COEF).double()
    for step in range(4):
        lam.requires_grad_()
        numbers = range(step * batches, (step + 1) * batches)
        lam = adam.step(lam, torch.autograd.grad(written_out(given, lam, {}, numbers, clamp), lam)[0])
        path.append(lam.clamp(0, 1) if clamp else lam.clone())
    assert lam.min() < 0, "the clamp cuts"
    found = small(AdaMerging, variant=variant, granularity=granularity, coef=COEF, steps=4, lr=0.2).merge(given)
    torch.testing.assert_close(flat(found.vector("a", 1.0).vector), merged(given, lam, {}, clamp))
    assert found.settings == (1.0,) and not found.per_task
    curves = found.adaptation["curves"]
    assert curves["step"] == [0, 1, 2, 3] and set(curves["entropy"]) == set(TASKS)
    for place, task in enumerate(TASKS):
        assert curves["lambda"][task] == pytest.approx([float(point[place].mean()) for point in path])
    torch.testing.assert_close(
        torch.tensor(found.adaptation["lambda"]["values"]).double(), path[-1], rtol=1e-6, atol=1e-7
    )


def test_the_plus_plus_vectors_are_what_ties_merges():
    given = problem()
    for k in (20.0, 55.0, 100.0):
        found = dict(AdaMergingPP(k=k).task_vectors(given))
        torch.testing.assert_close(
            flat({name: tau.sum(0) for name, tau in found.items()}), flat(ties_vector(given, k, "sum").vector)
        )


def test_a_weight_whose_sum_is_zero_has_the_sign_of_most():
    one = {"w": torch.tensor([[1.0, 2.0], [-1.0, 3.0]])}
    assert elected({"w": one["w"].clone()}, [0.0, 0.0])["w"].tolist() == [[1, 2], [0, 3]]
    assert elected({"w": -one["w"]}, [0.0, 0.0])["w"].tolist() == [[-1, -2], [0, -3]]
    assert elected({"w": one["w"].clone()}, [1.5, 0.0])["w"].tolist() == [[0, 2], [-1, 3]]


def test_most_are_counted_among_the_signs_of_sums_over_all_tensors_and_of_as_many_the_negative_are_taken():
    few = {"w": torch.tensor([[1.0, 5.0], [-1.0, -1.0], [0.0, -1.0]])}  # γ = 0, +; two of the three entries are below 0
    assert elected(few, 3 * [0.0])["w"].tolist() == [[1, 5], [0, 0], [0, 0]]
    assert elected({"w": torch.tensor([[1.0], [-1.0]])}, 2 * [0.0])["w"].tolist() == [[0], [-1]]
    two = {"v": torch.ones(2, 2), "w": torch.tensor([[1.0, -1.0], [-1.0, 0.0]])}  # γ = +, +; 0, −
    assert elected(two, 2 * [0.0])["w"].tolist() == [[1, -1], [0, 0]]


@pytest.mark.parametrize("method", [AdaMerging, AdaMergingPP])
def test_the_parts_of_a_task_have_the_norm_of_the_vector_that_is_merged(method, tmp_path):
    """The state of an adaptation tells by it whose vectors it is of."""
    given = problem()
    made = small(method)
    taus = dict(made.task_vectors(given))
    model = MergedModel(given, made, taus=taus.items())
    squares = [sum(float(tau[index].square().sum()) for tau in taus.values()) for index in range(len(TASKS))]
    assert [sum(float(part.square().sum()) for part in model.parts(index)) for index in range(3)] == pytest.approx(
        squares
    )
    kept = problem(progress=Progress(state=tmp_path / "kept.state", save_every=1))
    replace(made, steps=1).merge(kept)
    told = checkpoints.header(kept.progress.state)["settings"]["norms of the task vectors"]
    assert told == {task: f"{square**0.5:.6g}" for task, square in zip(TASKS, squares)}


# ---- options


def test_variants_have_the_published_settings_and_options_override_them():
    load_methods()
    steps = {"adamerging": {"lambda": 500}, "concrete_task_arithmetic": {"mask": 2000}}
    steps["concrete_layer_wise_adamerging"] = {"meta": 2000, "lambda": 1000}
    fusion_bench = {"adamerging": 1000, "concrete_layer_wise_adamerging": 1000}
    tiny = problem(batch=lambda task, split, batch_size, number: images(task, split, 1, number))
    for name, phases in steps.items():
        stopped = problem(batch=lambda *a: torch.full((1, 4), float("nan")).double())
        with pytest.raises(NonFiniteLoss, match=f"step 0 of {next(iter(phases.values()))} "):
            small(METHODS[name]).merge(stopped)
        if name in fusion_bench:
            with pytest.raises(NonFiniteLoss, match=f"step 0 of {fusion_bench[name]} "):
                small(METHODS[name], variant="fusion_bench").merge(stopped)
    with pytest.raises(NonFiniteLoss, match="step 0 of 2000 "):
        small(LayerWiseConcreteAdaMerging, variant="fresh").merge(stopped)
    found = small(AdaMerging, steps=1, clamp=False).merge(tiny).adaptation["settings"]
    assert (found["batches"], found["clamp"], found["lr"], found["coef"]) == (2, False, 1e-3, 0.3)
    shorter = small(AdaMerging, batch_size=1).merge(replace(tiny, suite=registry.suite("mini"))).adaptation["settings"]
    assert (shorter["steps"], shorter["lr"]) == (25, 0.02)


def test_on_mini_a_rate_grows_only_where_its_own_steps_shrink():
    mini = problem(suite=registry.suite("mini"))
    found = small(AdaMerging, steps=3).merge(mini).adaptation["settings"]
    assert (found["steps"], found["lr"]) == (3, 1e-3)
    found = small(TaskWiseConcreteAdaMerging, mask_steps=2).merge(mini).adaptation["settings"]
    assert (found["mask_steps"], found["mask_lr"], found["steps"], found["lr"]) == (2, 1e-3, 25, 0.04)
    found = small(ConcreteTaskArithmetic, mask_steps=1).merge(mini).adaptation["settings"]
    assert (found["mask_steps"], found["mask_lr"]) == (1, 1e-3)
    labelled = replace(mini, validation=Labelled(lambda task, batch_size, number: torch.arange(batch_size) % 3))
    for method in (Atlas, Surgery):
        found = method(batch_size=5, steps=1).merge(labelled).adaptation["settings"]
        assert (found["steps"], found["lr"]) == (1, 1e-3)


def test_spellings_of_a_method_are_one_method():
    load_methods()
    for word in ("task_arithmetic", "task_wise_adamerging", "layer_wise_adamerging"):
        method = METHODS[f"concrete_{word}"]
        assert METHODS[f"concrete_subspace/clip_concrete_{word}"] is method
        assert METHODS[f"clip_concrete_{word}"] is method
        assert method.name == f"concrete_{word}"
    assert METHODS["adamerging++"].name == "adamerging_pp"


@pytest.mark.parametrize("vectors", ["float16", "bfloat16"])
def test_vectors_in_half_precision_give_nearly_the_same(vectors):
    given = problem()
    whole, half = (
        small(AdaMerging, steps=2, lr=0.01, vectors=v).merge(given).vector("a", 1.0) for v in ("float64", vectors)
    )
    assert (whole - half).norm() < 0.01 * whole.norm()


def test_what_is_not_trained_is_merged_without_a_mask():
    given = problem(scope="published")
    assert "model.logit_scale" in given.keys and "model.position_ids" not in given.keys
    moved = {task: dict(weights) for task, weights in given.finetuned.items()}
    for weights in moved.values():
        weights["model.logit_scale"] = torch.ones(()).double()
    found = small(ConcreteTaskArithmetic, mask_steps=2, initial_logits=-1.0).merge(replace(given, finetuned=moved))
    assert float(found.vector("a", 1.0)["model.logit_scale"]) == pytest.approx(0.9)
    assert "model.logit_scale" not in found.adaptation["mask"]["by_tensor"]


def test_the_mean_over_draws_is_one_vector_for_each_draw():
    given = problem()
    found = small(ConcreteTaskArithmetic, mask_steps=1, final="mean", draws=3).merge(given)
    one = small(ConcreteTaskArithmetic, mask_steps=1).merge(given)
    assert found.draws == 3 and found.settings == (1.0,)
    vectors = [flat(found.draw(number).vector("a", 1.0).vector) for number in range(3)]
    assert torch.equal(vectors[0], flat(one.vector("a", 1.0).vector))
    assert torch.equal(vectors[0], flat(found.vector("a", 1.0).vector)), "the first is the one that is exported"
    assert not torch.equal(vectors[1], vectors[2])


def test_kept_logits_take_the_place_of_learning(tmp_path):
    given = problem(mask_path=lambda name: tmp_path / f"{name}.safetensors", label="concrete")
    made = small(ConcreteTaskArithmetic, mask_steps=3, mask_lr=0.1).merge(given)
    file = made.finish({})["mask_file"]
    again = small(ConcreteTaskArithmetic, mask_file=str(file)).merge(given)
    assert torch.equal(flat(again.vector("a", 1.0).vector), flat(made.vector("a", 1.0).vector))
    assert again.adaptation["phases"] == [{"name": "mask", "steps": 0}]
    (kept,) = tmp_path.iterdir()
    kept.rename(tmp_path / "moved")
    assert again.finish({}) == {} and not kept.exists(), "what was only read is not kept again"
    (tmp_path / "moved").rename(kept)
    adapted = small(TaskWiseConcreteAdaMerging, mask_file=str(file), steps=1).merge(given)
    assert adapted.adaptation["phases"] == [{"name": "meta", "steps": 0}, {"name": "lambda", "steps": 1}]
    for method, options in ((ConcreteTaskArithmetic, {}), (TaskWiseConcreteAdaMerging, {"steps": 0})):
        further = small(method, mask_file=str(file), mask_steps=1, mask_lr=0.1, **options).merge(given)
        assert further.adaptation["phases"][0]["steps"] == 1, "steps that are asked for are done beside"
    with pytest.raises(checkpoints.CheckpointError, match="large"):
        small(ConcreteTaskArithmetic, mask_file=str(file)).merge(replace(given, model="large"))


def test_kept_logits_of_another_protocol_are_refused_and_those_of_other_tasks_recorded(tmp_path):
    mini = registry.suite("mini")
    given = problem(mask_path=lambda name: tmp_path / f"{name}.safetensors", label="concrete", suite=mini)
    file = str(small(ConcreteTaskArithmetic, mask_steps=1).merge(given).finish({})["mask_file"])
    method = small(ConcreteTaskArithmetic, mask_file=file)
    for changed, other, told in (
        (replace(method, adapt_on="val"), given, "expected mask logits of adapt_on val, found those of adapt_on test"),
        (method, replace(given, mode="posthoc"), "of mode posthoc, found those of mode standard"),
        (method, replace(given, seed=4), "of seed 4, found those of seed 3"),
    ):
        with pytest.raises(checkpoints.CheckpointError, match=told):
            changed.merge(other)
    method.merge(replace(given, suite=registry.suite("vision"), seed=4))
    fewer = replace(given, finetuned={task: given.finetuned[task] for task in "ba"})
    learned_on = method.merge(fewer).adaptation["mask"]["learned_on"]
    assert learned_on == {"tasks": ["a", "b", "c"], "adapt_on": "test"}


@pytest.mark.parametrize(
    "method, options, message",
    [
        (AdaMerging, dict(granularity="layers"), "granularity: expected one of task, layer; got 'layers'"),
        (AdaMerging, dict(variant="fresh"), "variant: expected one of original, fusion_bench"),
        (AdaMerging, dict(adapt_on="train"), "adapt_on: expected one of test, val; got 'train'"),
        (AdaMerging, dict(batch_size=0), "batch_size: expected a whole number of at least 1; got 0"),
        (AdaMerging, dict(batches=0), "batches: expected a whole number of at least 1; got 0"),
        (AdaMerging, dict(steps=-1), "steps: expected a whole number of at least 0; got -1"),
        (AdaMerging, dict(lr=-1.0), "lr: expected a number of at least 0; got -1.0"),
        (TaskWiseConcreteAdaMerging, dict(inner_lr=-1.0), "inner_lr: expected a number of at least 0; got -1.0"),
        (ConcreteTaskArithmetic, dict(mask_lr=-0.1), "mask_lr: expected a number of at least 0; got -0.1"),
        (ConcreteTaskArithmetic, dict(mask_steps=-1), "mask_steps: expected a whole number of at least 0; got -1"),
        (TaskWiseConcreteAdaMerging, dict(steps=-2), "steps: expected a whole number of at least 0; got -2"),
        (ConcreteTaskArithmetic, dict(temperature=0.0), "temperature: expected a number above 0; got 0.0"),
        (ConcreteTaskArithmetic, dict(final="best"), "final: expected one of seeded"),
        (ConcreteTaskArithmetic, dict(final="mean", draws=1), "draws: expected at least 2 for final=mean; got 1$"),
        (TaskWiseConcreteAdaMerging, dict(variant="newer"), "original, fusion_bench, fresh"),
    ],
)
def test_wrong_options_say_what_exists(method, options, message):
    with pytest.raises(UsageError, match=message):
        small(method, **options).merge(problem())


@pytest.mark.parametrize("method", [AdaMerging, ConcreteTaskArithmetic])
def test_a_problem_without_images_is_refused_by_name(method):
    with pytest.raises(UsageError, match=f"{method.name} needs unlabelled images; the problem comes without them"):
        small(method).merge(problem(images=None))


# ---- protocol, resuming, watching

ADAPTING = [
    small(ConcreteTaskArithmetic, mask_steps=6, mask_lr=0.1),
    small(LayerWiseConcreteAdaMerging, mask_steps=4, steps=4, mask_lr=0.1, lr=0.1),
    small(AdaMerging, steps=7, lr=0.1),
]


@pytest.mark.parametrize("adapt_on", ["test", "val"])
def test_only_the_named_split_is_asked_for(adapt_on):
    asked = set()

    def remembered(task, split, batch_size, number):
        asked.add(split)
        return images(task, split, batch_size, number)

    for method in ADAPTING:
        found = replace(method, adapt_on=adapt_on).merge(problem(batch=remembered))
        assert found.adaptation["adapt_on"] == adapt_on
    assert asked == {adapt_on}


@pytest.mark.parametrize("method", ADAPTING, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("killed_at", [1, 3, 5])
def test_a_killed_run_goes_on_and_ends_bit_for_bit_the_same(tmp_path, method, killed_at):
    watched = []

    def watching(step, phase, vector):
        watched.append((step, phase, flat(vector().vector)))

    whole = method.merge(problem(progress=Progress(watching)))
    uninterrupted, watched = watched, []
    steps = []

    def log(values, step):
        if step == killed_at and step not in steps:
            steps.append(step)
            raise Killed
        steps.append(step)

    kept = problem(progress=Progress(watching, log, tmp_path / "kept.state", save_every=2))
    with pytest.raises(Killed):
        method.merge(kept)
    assert kept.progress.state.is_file() == (killed_at > 2)
    again = method.merge(kept)
    assert torch.equal(flat(again.vector("a", 1.0).vector), flat(whole.vector("a", 1.0).vector))
    assert again.adaptation == whole.adaptation
    seen = {(step, phase): vector for step, phase, vector in watched}
    assert all(torch.equal(seen[step, phase], vector) for step, phase, vector in uninterrupted)
    assert kept.progress.state.is_file(), "the state is removed by the framework, when the result is written"
    finished = method.merge(kept)  # killed between the last step and the result
    assert finished.adaptation == whole.adaptation
    json.dumps(whole.adaptation)


def test_the_state_of_another_run_is_refused_with_what_differs(tmp_path):
    kept = problem(progress=Progress(state=tmp_path / "kept.state", save_every=1))
    small(AdaMerging, steps=2, lr=0.1).merge(kept)
    with pytest.raises(checkpoints.CheckpointError, match=r"lr 0.1 \(now 0.2\).* start anew with overwrite=True"):
        small(AdaMerging, steps=2, lr=0.2).merge(kept)
    with pytest.raises(checkpoints.CheckpointError, match=r"phases {'lambda': 2} \(now {'lambda': 3}\)"):
        small(AdaMerging, steps=3, lr=0.1).merge(kept)
    moved = {
        task: {n: 2 * w if w.is_floating_point() else w for n, w in ws.items()} for task, ws in kept.finetuned.items()
    }
    with pytest.raises(checkpoints.CheckpointError, match="norms of the task vectors"):
        small(AdaMerging, steps=2, lr=0.1).merge(replace(kept, finetuned=moved))
    turned = {task: kept.finetuned[task] for task in "cab"}  # the same result, but λ is kept by place
    with pytest.raises(checkpoints.CheckpointError, match=r"tasks \['a', 'b', 'c'\] \(now \['c', 'a', 'b'\]\)"):
        small(AdaMerging, steps=2, lr=0.1).merge(replace(kept, finetuned=turned))


@pytest.mark.parametrize(
    "method, number, step",
    [
        (small(AdaMerging, steps=8, batches=1, lr=0.1), 5, 5),
        (small(ConcreteTaskArithmetic, mask_steps=8), 5, 5),
        (small(LayerWiseConcreteAdaMerging, mask_steps=5, steps=2), 6, 3),  # in the inner step
        (small(LayerWiseConcreteAdaMerging, mask_steps=5, steps=2), 7, 3),  # in the outer one
    ],
)
def test_an_entropy_that_is_no_number_stops_and_keeps_the_last_good_state(tmp_path, method, number, step):
    def broken(task, split, batch_size, place):
        return images(task, split, batch_size, place) * (float("nan") if place == number else 1)

    given = problem(progress=Progress(state=tmp_path / "kept.state", save_every=20))
    with pytest.raises(NonFiniteLoss) as stopped:
        method.merge(with_batches(given, broken))
    told = f"step {step} of .*; the last good state is kept in .*kept.state .step {step}.; the same command would stop"
    assert re.search(told, str(stopped.value))
    assert re.search(r"smaller rate \(method\..*lr=\.\.\.\): .* overwrite=True$", str(stopped.value))
    assert checkpoints.header(given.progress.state)["step"] == step
    mended, whole = method.merge(given), method.merge(problem())
    assert torch.equal(flat(mended.vector("a", 1.0).vector), flat(whole.vector("a", 1.0).vector))
    assert mended.adaptation == whole.adaptation


def test_states_are_kept_by_the_clock(tmp_path, monkeypatch):
    """Where so many seconds have passed, and at the end."""
    now, kept = [0.0], []
    monkeypatch.setattr(steps.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(steps.Steps, "_save", lambda self: kept.append(self.done))

    def log(values, step):
        now[0] += 10

    for seconds, expected in ((25, [3, 6, 8]), (0, [])):
        progress = Progress(log=log, state=tmp_path / "kept.state", save_seconds=seconds)
        small(AdaMerging, steps=8).merge(problem(progress=progress))
        assert kept == expected
        kept.clear()


@pytest.mark.parametrize("free, together", [(None, 4), (10**12, 4), (3500, 2), (1, 1)])
def test_a_pass_takes_as_many_batches_as_memory_holds(monkeypatch, free, together):
    """Of 4 x 5 images that would be together; one batch at least, and the same gradient."""
    monkeypatch.setattr(adaptation, "free_memory", lambda device: free)
    monkeypatch.setattr(adaptation, "bytes_of_pass", lambda encoder, tangent: 100.0)
    monkeypatch.setattr(adaptation, "bytes_of", lambda tensors: 300)
    seen, grads = [], []
    features_at = adaptation.features_at
    monkeypatch.setattr(adaptation, "features_at", lambda *which: seen.append(len(which[2])) or features_at(*which))
    for size in (20, 5):
        model = MergedModel(problem(), small(AdaMerging, pass_size=size, batch_size=5))
        lam = model.coefficients("task").requires_grad_()
        model.backward(lam, [0, 1])
        grads.append(lam.grad)
        assert model.together == (min(together, size // 5))
    assert max(seen) == 5 * together
    torch.testing.assert_close(*grads)


def test_without_a_state_a_stop_promises_none(tmp_path):
    progress = Progress(state=tmp_path / "kept.state", save_every=1)
    broken = problem(batch=lambda *which: images(*which) * float("nan"), progress=progress)
    for given in (broken, replace(broken, progress=replace(progress, state=None))):
        with pytest.raises(NonFiniteLoss, match=r"; no state was kept\. Start anew with a smaller rate"):
            small(AdaMerging, steps=2).merge(given)
    assert not progress.state.is_file()


def test_a_long_course_is_recorded_in_a_limited_number_of_points(monkeypatch):
    monkeypatch.setattr(steps, "KEPT", 20)
    course = small(AdaMerging, steps=41, batches=1, granularity="task").merge(problem()).adaptation
    assert course["curves"]["step"] == list(range(0, 41, 3))
    assert len(course["curves"]["entropy"]["b"]) == len(course["curves"]["lambda"]["b"]) == 14
    assert course["lambda"]["layers"] is None and len(course["lambda"]["values"]) == 3
    assert course["lambda_layers_curve"] is None and "density" not in course["curves"]


def test_lambda_is_waited_for_only_where_it_is_recorded(monkeypatch):
    monkeypatch.setattr(steps, "KEPT", 2)
    logged = []
    given = problem(progress=Progress(log=lambda values, step: logged.append(values["lambda/b"])))
    course = small(AdaMerging, steps=4, batches=1, granularity="task").merge(given).adaptation
    assert [type(value) for value in logged] == [float, torch.Tensor, float, torch.Tensor]
    assert course["curves"]["lambda"]["b"] == logged[::2] and float(logged[3]) != logged[2]


def test_the_course_of_the_mask_and_of_every_layer_is_recorded_and_logged():
    logged = {}
    given = problem(progress=Progress(log=lambda values, step: logged.update({step: values})))
    method = small(LayerWiseConcreteAdaMerging, mask_steps=28, steps=4, mask_lr=0.1)
    course = method.merge(given).adaptation
    density = course["curves"]["density"]
    assert course["curves"]["step"] == list(range(32))
    assert density == [logged[step]["density"] for step in range(32)]
    assert density[0] != density[27]
    assert density[28:] == [course["mask"]["probability"]] * 4, "the mask is frozen"
    layers = course["lambda_layers_curve"]
    assert layers["step"] == list(range(0, 32, 2))
    assert {(len(point), len(point[0])) for point in layers["values"]} == {(3, len(given.keys))}


def test_the_mask_is_recorded_by_tensor():
    found = small(ConcreteTaskArithmetic, mask_steps=1, final="expected", initial_logits=1.0).merge(problem())
    about = found.adaptation["mask"]
    assert about["final"] == "expected" and set(about["by_tensor"]) == set(problem().keys)
    assert about["density"] == pytest.approx(about["probability"]) == pytest.approx(0.731, abs=0.001)


# ---- the framework's side: images, watching, draws, unseen tasks, the command line


def test_batches_are_functions_of_their_number_and_cover_every_image_without_its_label(make_run, monkeypatch):
    run = make_run("--tasks", *PAIR)

    class WithoutLabels:
        pixels = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)

    monkeypatch.setattr(loading, "evaluation_pixels", lambda *which: WithoutLabels)
    first = [unlabelled(run, "digits", "test", 4, number) for number in range(6)]
    assert [len(batch) for batch in first] == [4, 4, 2, 4, 4, 2]
    for epoch in (first[:3], first[3:]):
        values = torch.cat(epoch)[:, 0, 0, 0]
        assert len(set(values.tolist())) == 10
    assert torch.equal(unlabelled(run, "digits", "test", 4, 4), first[4])
    assert not torch.equal(first[0], first[3])
    assert not torch.equal(first[0], unlabelled(run, "digits", "val", 4, 0))


def test_a_killed_command_goes_on_and_writes_the_same_result(place, monkeypatch):
    options = ["tasks=[digits,signs]", "method=concrete_layer_wise_adamerging", "method.mask_steps=2", "method.steps=2"]
    command = [*place, *options, "method.batch_size=4", "save_every=1", "eval_every=2"]
    name = result_name("concrete_layer_wise_adamerging_batch_size=4_mask_steps=2_steps=2")
    main.main(command)
    whole = result_of(place, name)
    state = Path(command[3].removeprefix("save=")) / f"mini/ViT-Mini/seed_0/adaptation/{name}.state"
    assert not list(state.parent.glob("*")), "the state goes when the result is there"

    make, count = loading.batch_of, []

    def killing(*which):
        count.append(1)
        if len(count) == 17:  # in the last step
            raise Killed
        return make(*which)

    monkeypatch.setattr(loading, "batch_of", killing)
    with pytest.raises(Killed):
        main.main([*command, "overwrite=True"])
    assert state.is_file()
    monkeypatch.setattr(loading, "batch_of", make)
    main.main(command)  # the old result is there, but so is a state: it goes on
    again = result_of(place, name)
    for record in (whole, again):
        del record["provenance"], record["cost"]
    assert again == whole
    assert not state.is_file()
    watched = whole["adaptation"]["watched"]
    assert watched["split"] == "val" and watched["step"] == [0, 2, 2, 4]
    assert watched["phase"] == ["meta", "meta", "lambda", "lambda"]
    assert watched["accuracy"]["digits"][-1] == whole["val"]["accuracy"]["digits"][0]
    assert set(whole["test"]["loss"]) == set(whole["tasks"])
    assert Path(whole["info"]["mask_file"]).is_file()


def test_a_command_killed_while_it_watches_records_the_same_points(place, monkeypatch):
    options = ["tasks=[digits,signs]", "method=adamerging", "method.steps=4", "method.batch_size=2"]
    command, name = [*place, *options, "save_every=2", "eval_every=2"], result_name("adamerging_batch_size=2_steps=4")
    main.main(command)
    whole, score_all, count = result_of(place, name), watch.score_all, []

    def killing(*which):
        count.append(which)
        if len(count) == 2:  # at step 2, where the state is due too
            raise Killed
        return score_all(*which)

    monkeypatch.setattr(watch, "score_all", killing)
    with pytest.raises(Killed):
        main.main([*command, "overwrite=True"])
    main.main([*command, "overwrite=True"])
    again = result_of(place, name)["adaptation"]["watched"]
    assert again == whole["adaptation"]["watched"] and again["step"] == [0, 2, 4]

    count.clear()
    with pytest.raises(Killed):
        main.main([*command, "overwrite=True"])
    main.main([*command, "eval_every=0", "overwrite=True"])
    assert result_of(place, name)["adaptation"]["watched"] is None, "the killed run's points are another run's"


def test_no_label_reaches_a_method(place, monkeypatch):
    """With every label wrong, what is learned and its entropies are the same, and the accuracies are not."""
    options = ["tasks=[digits,signs]", "method=concrete_task_wise_adamerging", "method.batch_size=4", "eval_every=1"]
    command = [*place, *options, "method.mask_steps=1", "method.steps=2", "overwrite=True"]
    name = result_name("concrete_task_wise_adamerging_batch_size=4_mask_steps=1_steps=2")
    true, pixels = [], loading.evaluation_pixels

    def permuted(*which):
        found = pixels(*which)
        return Pixels(found.pixels, (found.labels + 1) % 10)

    for labels in (pixels, permuted):
        monkeypatch.setattr(loading, "evaluation_pixels", labels)
        main.main(command)
        record = result_of(place, name)
        true.append((record, checkpoints.load(Path(record["info"]["mask_file"]), kind="mask logits")))
    (one, logits), (other, others) = true
    assert all(torch.equal(logits[key], others[key]) for key in logits)
    for key in ("curves", "lambda", "mask"):
        assert one["adaptation"][key] == other["adaptation"][key]
    for key in ("val", "test"):
        assert one[key]["accuracy"] != other[key]["accuracy"]
    assert one["adaptation"]["watched"]["accuracy"] != other["adaptation"]["watched"]["accuracy"]


def test_two_settings_keep_two_masks(place):
    options = ["tasks=[digits,signs]", "method=concrete_task_arithmetic", "method.mask_steps=0", "eval_every=0"]
    files = set()
    for more, named in (([], ""), (["method.initial_logits=1"], "_initial_logits=1")):
        main.main([*place, *options, *more])
        name = result_name(f"concrete_task_arithmetic{named}_mask_steps=0")
        files.add(result_of(place, name)["info"]["mask_file"])
    assert len(files) == 2 and all(Path(file).is_file() for file in files)
    main.main([*place, *options[:2], "eval_every=0", f"method.mask_file={min(files)}"])
    label = f"concrete_task_arithmetic_mask_file={Path(min(files)).stem}-{zlib.crc32(min(files).encode()):08x}"
    record = result_of(place, result_name(label))
    assert "mask_file" not in record["info"]
    assert record["adaptation"]["mask"]["learned_on"] == {"tasks": list(PAIR), "adapt_on": "test"}


def test_tangent_vectors_adapt_and_draws_are_averaged(place):
    options = ["tasks=[digits,signs]", "finetuning_mode=posthoc", "method=concrete_task_arithmetic", "eval_every=0"]
    options += ["method.mask_steps=1", "method.batch_size=4", "method.final=mean", "method.draws=2"]
    main.main([*place, *options])
    label = "concrete_task_arithmetic_batch_size=4_mask_steps=1_final=mean_draws=2"
    record = result_of(place, result_name(label, "posthoc"))
    draws = record["draws"]
    assert draws["n"] == 2 and record["adaptation"]["watched"] is None
    assert record["test"]["accuracy"]["signs"] == pytest.approx(sum(draws["accuracy"]["signs"]) / 2)
    assert draws["sd"] == pytest.approx(abs(draws["mean_accuracy"][0] - draws["mean_accuracy"][1]) / 2**0.5)
    assert len(record["val"]["accuracy"]["signs"]) == len(record["settings"]) == 1


def test_unseen_tasks_are_scored_with_the_merged_model(place):
    common = [*place, "tasks=[digits,signs]", "unseen=[letters]"]
    main.main([*common, "method=sum", "method.alphas=[0.5]"])
    record = result_of(place, result_name("sum_alphas=-0.5-_unseen=letters"))
    unseen = record["unseen"]
    assert unseen["tasks"] == ["letters"] and set(unseen["accuracy"]) == set(unseen["loss"]) == {"letters"}
    assert unseen["normalised"]["letters"] == pytest.approx(unseen["accuracy"]["letters"] / 0.5)
    assert unseen["zeroshot"]["accuracy"] == {"letters": 0.5} and set(record["test"]["accuracy"]) == set(PAIR)


def test_unseen_tasks_have_one_order_and_their_denominators_are_asked_for_first(place, make_run, capsys, monkeypatch):
    run = make_run("--tasks", "signs")
    one, other = (merging.unseen_tasks(run, named) for named in (["letters", "digits"], ["digits", "letters"]))
    assert one == other
    monkeypatch.setattr(AdaMerging, "merge", lambda *which: pytest.fail("it adapts before it looks"))
    with pytest.raises(SystemExit):
        main.main([*place, "tasks=[digits,signs]", "unseen=[land]", "method=adamerging"])
    assert "expected accuracies of land, landVal, found none" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (["tasks=[digits,land]", "method=adamerging"], "--tasks=land\n"),
        (["tasks=[digits]", "unseen=[letters]", "method=mag_masking"], "a model for each merged task, and none for"),
        (["tasks=[digits,signs]", "unseen=[digits]"], "digits is merged"),
        (["tasks=[digits,signs]", "unseen=[leters]"], "did you mean letters"),
        (
            ["tasks=[digits]", "method=concrete_task_arithmetic", "method.temperature=0"],
            "temperature: expected a number above 0",
        ),
        (
            ["tasks=[digits]", "method=sum", "eval_every=-1"],
            "--eval-every: expected steps (0: none), a whole number of at least 0; got -1",
        ),
        (
            ["tasks=[digits]", "method=sum", "save_every=often"],
            "--save-every: expected steps (0: none), a whole number of at least 0; got 'often'",
        ),
        (["tasks=[digits]", "method=adamerging", "method.adapt_on=train"], "adapt_on: expected one of test, val"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(place, capsys, options, message):
    with pytest.raises(SystemExit):
        main.main([*place, *options])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "spelling, name",
    [
        ("adamerging_pp", "adamerging_pp"),
        ("adamerging++", "adamerging_pp"),
        ("concrete_task_arithmetic", "concrete_task_arithmetic"),
        ("clip_concrete_task_arithmetic", "concrete_task_arithmetic"),
        ("concrete_subspace/clip_concrete_task_arithmetic", "concrete_task_arithmetic"),
        ("clip_concrete_task_wise_adamerging", "concrete_task_wise_adamerging"),
        ("concrete_subspace/clip_concrete_layer_wise_adamerging", "concrete_layer_wise_adamerging"),
    ],
)
def test_every_spelling_is_known_to_the_command_line(place, spelling, name, capsys):
    flags = ["method.adapt_on=val", "method.batch_size=2", "eval_every=0", "save_every=0"]
    steps = [f"method.{option}=1" for option in ("mask_steps", "steps") if option in METHODS[name].defaults()]
    main.main([*place, "tasks=[digits,signs]", f"method={spelling}", *flags, *steps])
    assert "% absolute" in capsys.readouterr().out
    folder = Path(next(flag.removeprefix("results=") for flag in place if flag.startswith("results=")))
    (path,) = (path for path in folder.rglob("merging/**/*.json") if path.stem != "vectors")
    assert path.stem.startswith(f"{name}_adapt_on=val") and path.parent.name == "standard-visual"
    assert json.loads(path.read_text())["method"] == name


def test_a_killed_search_over_a_random_method_goes_on_and_tells_of_the_chosen_options(place, monkeypatch):
    """Validation chooses the temperature of a mask that is drawn anew for each of two models."""
    options = ["tasks=[digits,signs]", "method=concrete_task_arithmetic", "method.final=mean", "method.draws=2"]
    options += ["method.mask_steps=2", "method.batch_size=4", "save_every=1", "eval_every=1"]
    command = [*place, *options, "+search.temperature=[0.5,5]"]
    label = "concrete_task_arithmetic_mask_steps=2_final=mean_draws=2_search_temperature=0.5+5"
    name = result_name(label.replace("_mask_steps", "_batch_size=4_mask_steps"))
    main.main(command)
    whole = result_of(place, name)
    assert whole["settings"] == [{"temperature": t, "setting": 1} for t in (0.5, 5)]
    chosen = whole["chosen"]["signs"]
    assert whole["chosen"]["digits"] == chosen
    assert chosen == whole["settings"][int(np.argmax(whole["val"]["mean_normalised"]))]
    assert whole["adaptation"]["settings"]["temperature"] == chosen["temperature"]
    assert whole["adaptation"]["watched"] is None and whole["draws"]["n"] == 2
    assert whole["info"]["search"] == {"temperature": [0.5, 5]}
    assert "search" in Path(whole["info"]["mask_file"]).name, "it is not the file of the method without a search"
    folder = Path(place[3].removeprefix("save=")) / "mini/ViT-Mini/seed_0/adaptation" / Path(name).parent
    assert not list(folder.iterdir()), "the states go when the result is there"

    backward, count = MergedModel.backward, []

    def killing(*which):
        count.append(1)
        if len(count) == 4:  # in the last step of the second adaptation
            raise Killed
        return backward(*which)

    monkeypatch.setattr(MergedModel, "backward", killing)
    with pytest.raises(Killed):
        main.main([*command, "overwrite=True"])
    assert len(list(folder.iterdir())) == 2
    main.main(command)  # the old result is there, but so are states: it goes on
    assert len(count) == 5, "one step was left"
    again = result_of(place, name)
    for record in (whole, again):
        del record["provenance"], record["cost"]
    assert again == whole and not list(folder.iterdir())
