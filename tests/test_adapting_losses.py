"""What AdaMerging can learn its coefficients from beside the entropy: labels of the experts, or of validation."""

import json
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
)
from torch.func import functional_call, jvp

import main
from src.datasets import loading, registry
from src.datasets.base import Pixels
from src.linearize import LinearizedModel
from src.merging.adamerging import AdaMerging
from src.merging.adaptation import MergedModel, NonFiniteLoss, entropy
from src.merging.adarank import AdaRank
from src.merging.atlas import Atlas
from src.merging.base import Labelled, Method, Problem, Progress
from src.merging.problem import labels, unlabelled
from src.merging.registry import METHODS, load_methods
from src.runtime.messages import UsageError
from src.runtime.seeds import event_seed

LABELLED = dict(adapt_on="val", loss="labels")


def labels_of(task: str, batch_size: int, number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(event_seed(task, number, "labels"))
    return torch.randint(3, (batch_size,), generator=generator)


def labelled(**fields) -> Problem:
    return problem(validation=Labelled(labels_of), **fields)


def target(given: Problem, loss: str, task: str, number: int, batch: torch.Tensor, logits: torch.Tensor):
    """q of the loss, (images, classes), by its definition."""
    expert = torch.softmax(head(task)(functional_call(given.images.encoder(), given.finetuned[task], (batch,))), 1)
    if loss == "expert":
        return expert
    classes = labels_of(task, len(batch), number) if loss == "labels" else expert.argmax(1)
    return torch.eye(3).double()[classes]


def written_out(given: Problem, lam: torch.Tensor, loss: str, split: str, number: int) -> dict[str, torch.Tensor]:
    """−Σ_c q_c log p_c of each task, over the images of a batch."""
    theta = {
        name: given.pretrained[name] + sum(lam[t, place] * given.tensor(task, name) for t, task in enumerate(TASKS))
        for place, name in enumerate(given.keys)
    }
    losses = {}
    for task in given.tasks:
        batch = images(task, split, 5, number)
        logits = head(task)(functional_call(given.images.encoder(), theta, (batch,)))
        log_p = logits - logits.exp().sum(1, keepdim=True).log()
        losses[task] = -(target(given, loss, task, number, batch, logits) * log_p).sum() / len(batch)
    return losses


@pytest.mark.parametrize("loss", ["expert", "expert_class", "labels"])
def test_the_loss_and_its_gradient_are_the_explicit_formula(loss):
    given, split = labelled(), "val" if loss == "labels" else "test"
    model = MergedModel(given, small(AdaMerging, adapt_on=split), loss=loss)
    lam = model.coefficients("layer").requires_grad_()
    found = model.backward(lam, [2])
    explicit = lam.detach().clone().requires_grad_()
    expected = written_out(given, explicit, loss, split, 2)
    assert found == pytest.approx({task: value.item() for task, value in expected.items()})
    torch.testing.assert_close(lam.grad, torch.autograd.grad(sum(expected.values()), explicit)[0])


def test_at_the_experts_own_weights_it_is_the_entropy_of_its_prediction_and_the_gradient_vanishes():
    given = problem()
    alone = replace(given, finetuned={"b": given.finetuned["b"]})
    model = MergedModel(alone, small(AdaMerging, coef=1.0), loss="expert")
    lam = model.coefficients("layer").requires_grad_()
    found = model.backward(lam, [0])
    logits = head("b")(functional_call(given.images.encoder(), given.finetuned["b"], (images("b", "test", 5, 0),)))
    assert found["b"] == pytest.approx(entropy(logits).item())
    torch.testing.assert_close(lam.grad, torch.zeros_like(lam), rtol=0, atol=1e-12)
    by_entropy = model.coefficients("layer").requires_grad_()
    MergedModel(alone, small(AdaMerging, coef=1.0)).backward(by_entropy, [0])
    assert by_entropy.grad.abs().max() > 1e-3, "the entropy leaves the expert"
    hard = model.coefficients("layer").requires_grad_()
    MergedModel(alone, small(AdaMerging, coef=1.0), loss="expert_class").backward(hard, [0])
    assert hard.grad.abs().max() > 1e-3, "so does the released code's target, the expert's likeliest class"


def test_the_expert_of_a_tangent_model_is_its_own_tangent_model():
    """Its target is softmax(head(f_lin(x; θ_t))), which f(x; θ_t) is not."""
    given = problem(mode="linear", encoder=lambda: LinearizedModel(tower()))
    model = MergedModel(given, small(AdaMerging, coef=0.0), loss="expert")
    found = model.backward(model.coefficients("task").requires_grad_(), [0])
    start, encoder = {name: given.pretrained[name] for name in given.keys}, tower()
    for task in TASKS:
        batch, tau = images(task, "test", 5, 0), dict(given.vector(task).vector)
        f0, slope = jvp(lambda p, x=batch: functional_call(encoder, p, (x,)), (start,), (tau,))
        q, log_p = head(task)(f0 + slope).softmax(1), head(task)(f0).log_softmax(1)
        assert found[task] == pytest.approx(float(-(q * log_p).sum(1).mean()))


def test_the_gap_between_the_losses_is_a_divergence_from_the_expert():
    """H(q, p) − H(q) = KL(q ‖ p) >= 0: no coefficients do better than the expert's own weights."""
    given = problem()
    alone = replace(given, finetuned={"b": given.finetuned["b"]})
    losses = []
    for coef in (0.0, 0.5, 1.0, 1.5):
        model = MergedModel(alone, small(AdaMerging, coef=coef), loss="expert")
        losses.append(model.backward(model.coefficients("task").requires_grad_(), [0])["b"])
    assert min(losses) == losses[2]


@pytest.mark.parametrize("method", [AdaMerging, AdaRank])
@pytest.mark.parametrize("loss", ["expert", "expert_class", "labels"])
def test_what_is_minimised_falls_and_is_recorded_by_its_name(method, loss):
    options = dict(steps=12, lr=0.05, adapt_on="val", loss=loss, **({"matrices": "all"} if method is AdaRank else {}))
    same = labelled(batch=lambda task, split, batch_size, number: images(task, split, batch_size, 0))
    same = replace(same, validation=Labelled(lambda task, batch_size, number: labels_of(task, batch_size, 0)))
    course = small(method, **options).merge(same).adaptation
    assert "entropy" not in course["curves"] and course["settings"]["loss"] == loss
    mean = np.mean([course["curves"]["loss"][task] for task in TASKS], 0)
    assert mean[-1] < mean[0]


def test_adamerging_with_expert_labels_is_the_loop_written_by_hand():
    given, adam = problem(), Adam(0.2)
    lam = torch.full((3, len(given.keys)), 0.3).double()
    for step in range(3):
        lam.requires_grad_()
        losses = written_out(given, lam, "expert", "test", step)
        lam = adam.step(lam, torch.autograd.grad(sum(losses.values()), lam)[0])
    found = small(AdaMerging, loss="expert", steps=3, batches=1, lr=0.2, clamp=False).merge(given)
    values = torch.tensor(found.adaptation["lambda"]["values"]).double()
    torch.testing.assert_close(values, lam, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("granularity", ["task", "layer"])
@pytest.mark.parametrize("clip", [0.01, 100.0])
def test_atlas_is_the_loop_written_by_hand(clip, granularity):
    """AdamW: the decay is λ ← λ − lr · 0.3 · λ beside Adam's step, on a gradient of at most this norm."""
    given, adam = labelled(), Adam(0.2)
    layers = len(given.keys)
    lam = torch.full((3, layers if granularity == "layer" else 1), 0.2).double()
    for step in range(4):
        lam.requires_grad_()
        losses = written_out(given, lam.expand(3, layers), "labels", "val", step)
        (gradient,) = torch.autograd.grad(sum(losses.values()), lam)
        gradient *= min(1.0, clip / (float(gradient.norm()) + 1e-6))
        lam = adam.step(lam.detach() * (1 - 0.2 * 0.3), gradient)
    options = dict(coef=0.2, granularity=granularity, weight_decay=0.3, clip=clip)
    found = small(Atlas, steps=4, lr=0.2, **options).merge(given)
    values = torch.tensor(found.adaptation["lambda"]["values"]).double()
    torch.testing.assert_close(values, lam, rtol=1e-6, atol=1e-7)
    assert found.adaptation["adapt_on"] == "val" and Atlas.needs == "labels of validation images"


def test_atlas_begins_at_the_pretrained_weights_with_the_published_settings():
    given = labelled(suite=registry.suite("vision"))
    found = small(Atlas, steps=0).merge(given)
    assert found.vector("a", 1.0).norm() == 0
    settings = small(Atlas, steps=1).merge(given).adaptation["settings"]
    assert (settings["weight_decay"], settings["clip"], settings["lr"], settings["coef"]) == (0.1, 1.0, 1e-3, 0.0)
    stopped = replace(labelled(batch=lambda *which: torch.full((5, 4), float("nan")).double()), suite=given.suite)
    with pytest.raises(NonFiniteLoss, match="step 0 of 480 "):
        small(Atlas).merge(stopped)


# ---- who sees labels


@pytest.mark.parametrize("method", [AdaMerging, AdaRank, Atlas])
def test_labels_of_test_images_are_refused(method):
    options = {} if method is Atlas else {"loss": "labels"}
    with pytest.raises(UsageError, match="never of test images; got adapt_on=test: add method.adapt_on=val"):
        small(method, adapt_on="test", **options).merge(labelled())


@pytest.mark.parametrize("method", [AdaMerging, Atlas])
def test_a_problem_without_labels_is_refused_by_name(method):
    options = {} if method is Atlas else LABELLED
    with pytest.raises(UsageError, match=f"{method.name} .*the problem comes without them: pass validation=Labelled"):
        small(method, **options).merge(problem())


@pytest.mark.parametrize("options", [dict(loss="entropy"), dict(loss="expert"), dict(loss="expert_class")])
def test_other_losses_ask_for_no_label(options):
    def told(*which):
        pytest.fail("a label was asked for")

    small(AdaMerging, steps=1, adapt_on="val", **options).merge(problem(validation=Labelled(told)))


def test_labels_belong_to_the_images_of_their_batch(make_run, monkeypatch):
    run = make_run("--tasks", *PAIR)
    asked, numbered = set(), np.arange(10, dtype=np.uint8)
    pixels = numbered[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)

    def few(run, task, split, side):
        asked.add(split)
        return Pixels(pixels, numbered.astype(np.int64))

    monkeypatch.setattr(loading, "evaluation_pixels", few)
    monkeypatch.setattr(loading, "batch_of", lambda pixels, encoder, device: torch.from_numpy(pixels[:, 0, 0, 0]))
    for number in range(5):
        expected = unlabelled(run, "digits", "val", 4, number)
        assert labels(run, "digits", 4, number).tolist() == expected.tolist()
    assert asked == {"val"}


def test_wrong_labels_change_what_learns_from_them_and_nothing_else(place, monkeypatch):
    pixels = loading.evaluation_pixels

    def permuted(*which):
        found = pixels(*which)
        return Pixels(found.pixels, (found.labels + 1) % 10)

    common = ["method.steps=2", "method.batch_size=4", "eval_every=0", "overwrite=True"]
    for options, same in (
        (["method=adamerging", "method.loss=expert", "method.lr=0.1"], True),
        (["method=atlas", "method.lr=0.1"], False),
    ):
        values = []
        for source in (pixels, permuted):
            monkeypatch.setattr(loading, "evaluation_pixels", source)
            main.main([*place, "tasks=[digits,signs]", *options, *common])
            label = (
                "adamerging_batch_size=4_steps=2_lr=0.1_loss=expert" if same else "atlas_batch_size=4_steps=2_lr=0.1"
            )
            values.append(result_of(place, result_name(label))["adaptation"]["lambda"]["values"])
        assert (values[0] == values[1]) is same


# ---- resuming, refusals


@pytest.mark.parametrize(
    "method",
    [
        small(AdaMerging, steps=6, lr=0.1, loss="expert"),
        small(AdaMerging, steps=6, lr=0.1, **LABELLED),
        small(Atlas, steps=6, lr=0.1),
    ],
    ids=["expert", "labels", "atlas"],
)
def test_a_killed_run_goes_on_and_ends_bit_for_bit_the_same(tmp_path, method):
    whole, steps = method.merge(labelled()), []

    def log(values, step):
        steps.append(step)
        assert "loss/a" in values
        if steps.count(3) == 1 and step == 3:
            raise Killed

    kept = labelled(progress=Progress(None, log, Path(tmp_path / "kept.state"), save_every=2))
    with pytest.raises(Killed):
        method.merge(kept)
    again = method.merge(kept)
    assert torch.equal(flat(again.vector("a", 1.0).vector), flat(whole.vector("a", 1.0).vector))
    assert again.adaptation == whole.adaptation
    json.dumps(whole.adaptation)


@pytest.mark.parametrize(
    "method, options, message",
    [
        (AdaMerging, dict(loss="accuracy"), "loss: expected one of entropy, expert, expert_class, labels; got"),
        (Atlas, dict(clip=-1.0), "clip: expected a number above 0; got -1.0"),
        (Atlas, dict(weight_decay=-1.0), "weight_decay: expected a number of at least 0; got -1.0"),
        (Atlas, dict(granularity="block"), "granularity: expected one of task, layer; got 'block'"),
    ],
)
def test_wrong_options_say_what_exists(method, options, message):
    with pytest.raises(UsageError, match=message):
        small(method, **options).merge(labelled())


def test_the_command_line_refuses_labels_of_test_images(place, capsys):
    with pytest.raises(SystemExit):
        main.main([*place, "tasks=[digits,signs]", "method=adamerging", "method.loss=labels"])
    assert "add method.adapt_on=val" in capsys.readouterr().err


RATES, COUNTS = ("lr", "mask_lr"), ("steps", "mask_steps")
SMALL = {"initial_logit": 1e-3, "batch_size": 5, "vectors": "float64", "matrices": "all", "solver": "adam"}


def learning() -> dict[str, type[Method]]:
    """Every registered method with rates of its own."""
    load_methods()
    return {name: cls for name, cls in METHODS.items() if {*RATES} & cls.defaults().keys()}


def learned(method: type[Method], steps: int, seed: int | None = 3, **rates: float) -> torch.Tensor:
    """What a task's model is made of after so many steps."""
    options = {name: value for name, value in SMALL.items() if name in method.defaults()}
    counts = {name: steps for name in COUNTS if name in method.defaults()}
    made = method(**options | counts | rates).merge(labelled(seed=seed))
    adapter = made.adapter(TASKS[0], made.settings[-1])
    return flat({**made.vector(TASKS[0], made.settings[-1]).vector, **(vars(adapter) if adapter else {})})


@pytest.mark.parametrize("name", sorted(learning()))
def test_a_rate_of_zero_learns_nothing(name):
    method = learning()[name]
    still = dict.fromkeys({*RATES} & method.defaults().keys(), 0.0)
    assert torch.equal(learned(method, 2, **still), learned(method, 0))
    assert not any(torch.equal(learned(method, 2, **{rate: 0.0}), learned(method, 2)) for rate in still)


@pytest.mark.parametrize("name", sorted(learning()))
def test_no_seed_is_seed_zero(name):
    of = {seed: learned(learning()[name], 1, seed=seed) for seed in (None, 0, 1)}
    draws = name == "surgery" or "concrete" in name
    assert torch.equal(of[None], of[0]) and torch.equal(of[0], of[1]) != draws
