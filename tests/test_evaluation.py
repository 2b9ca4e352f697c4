"""Many settings in one pass give what each gives by itself; selection reads validation alone."""

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from src import evaluation, store
from src.correctness import pack, unpack
from src.datasets import loading as data
from src.evaluation import ORIGIN, Curve, Denominators, Line, score, select, select_negation
from src.experiments import merging
from src.experiments.merging import fixed_settings
from src.experiments.single_task import evaluate_single_tasks
from src.heads import get_classification_head
from src.linearize import LinearizedImageEncoder
from src.merging import evaluate
from src.merging.base import Affine, Drawn, Merge, Method, Problem, Scaled
from src.merging.evaluate import evaluate_merge
from src.merging.search import Searched
from src.modeling import ImageEncoder
from src.runtime import memory, results
from src.runtime.cost import Cost, measured
from src.runtime.messages import UsageError
from src.task_vectors import TaskVector

COEFS = (0.0, 0.15, 0.5, 1.0)


def small_vector(run, seed: int = 0) -> TaskVector:
    generator = torch.Generator().manual_seed(seed)
    theta0 = store.encoder(run).named_parameters()
    return TaskVector(
        vector={
            name: 0.05 * p.std() * torch.randn(p.shape, generator=generator) if p.numel() > 1 else torch.zeros_like(p)
            for name, p in theta0
            if name.startswith("model.visual.")
        }
    )


def one_by_one(run, dataset: str, split: str, tau: TaskVector, alpha: float, tangent: bool) -> tuple[float, float]:
    """Accuracy and loss of θ0 + α·τ as a model of its own, by a plain loop."""
    encoder = ImageEncoder(run).eval()
    if tangent:
        encoder = LinearizedImageEncoder(run, image_encoder=encoder)
    moved = encoder.state_dict()
    encoder.load_state_dict({k: w + alpha * tau.vector[k] if k in tau.vector else w for k, w in moved.items()})
    head = get_classification_head(run, dataset)
    right = loss = n = 0
    with torch.no_grad():
        for images, labels in data.evaluation_batches(run, store.encoder(run), dataset, split):
            logits = head(encoder(images))
            right += (logits.argmax(1) == labels).sum().item()
            loss += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            n += len(labels)
    return right / n, loss / n


@pytest.mark.parametrize("tangent", [False, True])
def test_a_line_gives_what_each_coefficient_gives(make_run, tangent):
    run = make_run()
    tau = small_vector(run)
    curve = score(run, "digits", "val", Line(tau.vector, COEFS), tangent)
    assert curve.n == 200
    for alpha, accuracy, loss in zip(COEFS, curve.accuracy, curve.loss, strict=True):
        expected_accuracy, expected_loss = one_by_one(run, "digits", "val", tau, alpha, tangent)
        assert accuracy == pytest.approx(expected_accuracy, abs=0.0051)  # one image in 200 may lie on a boundary
        assert loss == pytest.approx(expected_loss, rel=1e-4)
    right = [unpack(bits, curve.n) for bits in curve.correct]
    assert [bits.mean() for bits in right] == list(curve.accuracy)
    origin = unpack(score(run, "digits", "val", ORIGIN, tangent).correct[0], curve.n)
    encoder, head = store.encoder(run), get_classification_head(run, "digits")
    with torch.no_grad():
        batches = data.evaluation_batches(run, encoder, "digits", "val")
        expected = [head(encoder(images)).argmax(1) == labels for images, labels in batches]
    assert origin.tolist() == torch.cat(expected).tolist()


@pytest.mark.parametrize("n", [1, 7, 8, 9, 1000])
def test_packed_bits_come_back(n):
    correct = np.random.default_rng(n).random(n) < 0.7
    assert unpack(pack(correct), n).tolist() == correct.tolist()
    with pytest.raises(ValueError, match=f"expected the bits of {n + 8} images"):
        unpack(pack(correct), n + 8)
    with pytest.raises(ValueError, match="in base64"):
        unpack("no base64!", n)


@pytest.mark.parametrize("tangent", [False, True])
def test_a_line_beside_the_origin_gives_what_its_sums_give(make_run, tangent):
    run = make_run()
    offset, direction = small_vector(run), 0.5 * small_vector(run, seed=1)
    curve = score(run, "digits", "val", Line(direction.vector, COEFS, offset.vector), tangent)
    for alpha, loss in zip(COEFS, curve.loss, strict=True):
        summed = score(run, "digits", "val", Line((offset + alpha * direction).vector), tangent)
        assert loss == pytest.approx(summed.loss[0], rel=1e-4)


def test_images_are_read_once_whatever_the_number_of_coefficients(make_run, monkeypatch):
    run = make_run()
    seen = []
    make = data.batch_of
    monkeypatch.setattr(data, "batch_of", lambda pixels, *rest: seen.append(len(pixels)) or make(pixels, *rest))
    curve = score(run, "digits", "val", Line(small_vector(run).vector, COEFS), tangent=False)
    assert sum(seen) == 200 and len(curve.accuracy) == len(curve.loss) == 4


def test_weights_are_made_once_a_coefficient_and_scores_do_not_depend_on_it(make_run, monkeypatch):
    run, made, move = make_run(), [], evaluation.moved
    line = Line(small_vector(run).vector, COEFS)
    monkeypatch.setattr(evaluation, "moved", lambda *a: made.append(a[2]) or move(*a))
    together = score(run, "digits", "val", line, tangent=False)
    assert made == [1.0, *COEFS]  # 1.0: of the offset, which is none
    monkeypatch.setattr(memory, "HELD", 1)
    assert score(run, "digits", "val", line, tangent=False) == together
    assert len(made) == 3 * len([1.0, *COEFS])  # two batches of 100, one after the other


def test_a_tangent_line_costs_one_jvp_per_batch(make_run, monkeypatch):
    run = make_run()
    calls = []
    jvp = evaluation.forward_and_jvp
    monkeypatch.setattr(evaluation, "forward_and_jvp", lambda *a: calls.append(1) or jvp(*a))
    score(run, "digits", "val", Line(small_vector(run).vector, tuple(i / 20 for i in range(21))), tangent=True)
    assert len(calls) == 2  # 200 images, two batches


def test_features_that_are_no_numbers_stop_with_the_task_and_coefficient(make_run):
    run = make_run()
    tau = small_vector(run)
    tau.vector["model.visual.proj"] *= float("inf")
    with pytest.raises(evaluation.NonFiniteFeatures, match=r"digits \(val\): .* coefficient 0.5"):
        score(run, "digits", "val", Line(tau.vector, (0.5, 1.0)), tangent=True)


def test_selection_shared_and_per_task():
    curves = {"a": [0.2, 0.6, 0.6], "b": [0.9, 0.5, 0.5]}
    assert select(curves, {"a": 1.0, "b": 1.0}, per_task=False) == {"a": 0, "b": 0}  # the earliest of a draw
    assert select(curves, {"a": 0.5, "b": 1.0}, per_task=False) == {"a": 1, "b": 1}
    assert select(curves, {"a": 1.0, "b": 1.0}, per_task=True) == {"a": 1, "b": 0}


def test_selection_of_negation_keeps_the_control():
    coefs = (0.0, 0.5, 1.0)
    assert select_negation(coefs, [0.6, 0.4, 0.1], [0.9, 0.87, 0.5], floor=0.855) == 1
    assert select_negation(coefs, [0.6, 0.4, 0.4], [0.9, 0.9, 0.9], floor=0.5) == 1  # the smallest of a draw
    assert select_negation(coefs, [0.6, 0.4, 0.1], [0.9, 0.8, 0.5], floor=0.95) is None


def write_single_task(run, mode: str, accuracy: float):
    record = {t + suffix: accuracy for t in run.tasks for suffix in ("", "Val")}
    results.write(run.paths.single_task(mode), record, run.config(), time.time())


def test_a_merge_is_chosen_on_validation_and_reported_on_test(make_run, monkeypatch):
    """Test accuracies are made to prefer another coefficient: the choice must not see them."""
    run = make_run("--tasks", "signs", "digits")
    write_single_task(run, "standard", 0.8)
    write_single_task(run, "none", 0.4)
    table = {"val": {0.0: 0.3, 0.5: 0.6, 1.0: 0.5}, "test": {0.0: 0.3, 0.5: 0.4, 1.0: 0.7}}
    asked = []

    def fake(run, mode, lines, split, desc):
        asked.extend((split, line.coefs) for _, line in lines.values())
        return {key: curve_of(tuple(table[split][c] for c in line.coefs), split) for key, (_, line) in lines.items()}

    monkeypatch.setattr(evaluate, "score_all", fake)
    merge = Scaled(tau=TaskVector(vector={}), settings=(0.0, 0.5, 1.0), storage_bits=0)
    record = evaluate_merge(run, merge, run.tasks, "standard")
    assert record["chosen"] == {"signs": 0.5, "digits": 0.5}
    assert record["test"]["mean_accuracy"] == pytest.approx(0.4)
    assert record["test"]["mean_normalised"] == pytest.approx(0.5) == record["zeroshot"]["mean_normalised"]
    assert [coefs for split, coefs in asked if split == "test"] == [(0.5,), (0.5,)]
    assert record["test"]["correct"] == {"signs": "test 0.4", "digits": "test 0.4"}
    json.dumps(record)


def curve_of(accuracy: tuple[float, ...], split: str = "") -> Curve:
    """Accuracies of settings whose bits name them, and losses that are twice as much."""
    return Curve(accuracy, tuple(2 * value for value in accuracy), 10, tuple(f"{split} {value}" for value in accuracy))


def counting_scores(asked):
    """Instead of score_all: each model's accuracy is its one weight, and what was asked together is noted."""

    def fake(run, mode, lines, split, desc):
        values = {key: tuple(float(line.direction["x"]) * c for c in line.coefs) for key, (_, line) in lines.items()}
        asked.append(list(values.values()))
        return {key: curve_of(of_line) for key, of_line in values.items()}

    return fake


def one_weight(value: float, alphas=(1.0,)) -> Scaled:
    return Scaled(tau=TaskVector(vector={"x": torch.tensor(float(value))}), settings=alphas, storage_bits=0)


def test_draws_are_made_and_scored_one_at_a_time(monkeypatch, make_run):
    asked = []
    monkeypatch.setattr(evaluate, "score_all", counting_scores(asked))
    merge = Drawn(draw=lambda number: one_weight(number), draws=3, settings=(1.0,), storage_bits=0)
    curves = evaluate.score_merge(make_run(), merge, "standard", "test", {"a": [1.0], "b": [1.0]})
    assert asked == [[(0.0,), (0.0,)], [(1.0,), (1.0,)], [(2.0,), (2.0,)]]
    assert curves["b"].accuracy == (1.0,) and curves["b"].draws == ((0.0,), (1.0,), (2.0,))
    assert curves["b"].loss == (2.0,)


def test_the_spread_of_draws_is_the_deviation_of_a_sample():
    found = evaluate.spread({"a": [0.1, 0.2, 0.6], "b": [0.3, 0.2, 0.2]})
    assert found["n"] == 3 and found["mean_accuracy"] == pytest.approx([0.2, 0.2, 0.4])
    assert found["sd"] == pytest.approx(0.2 / 3**0.5)
    assert found["sd_per_task"] == pytest.approx({"a": 0.07**0.5, "b": 0.1 / 3**0.5})


def test_each_split_is_normalised_by_its_own_denominators(monkeypatch):
    """By those of test the other setting would be the best on validation."""
    table = {"signs": {0.5: 0.4, 1.0: 0.2}, "digits": {0.5: 0.4, 1.0: 0.7}}

    def fake(run, mode, lines, split, desc):
        return {key: curve_of(tuple(table[task][c] for c in line.coefs)) for key, (task, line) in lines.items()}

    monkeypatch.setattr(evaluate, "score_all", fake)
    finetuned = {"val": {"signs": 0.5, "digits": 1.0}, "test": {"signs": 1.0, "digits": 0.5}}
    denominators = Denominators(finetuned, zeroshot=finetuned)
    record = evaluate_merge(
        SimpleNamespace(), one_weight(1.0, (0.5, 1.0)), ["signs", "digits"], "standard", denominators=denominators
    )
    assert record["chosen"] == {"signs": 0.5, "digits": 0.5} and record["denominators"] == finetuned
    assert record["val"]["mean_normalised"] == pytest.approx([(0.4 / 0.5 + 0.4) / 2, (0.2 / 0.5 + 0.7) / 2])
    assert record["test"]["normalised"] == pytest.approx({"signs": 0.4, "digits": 0.4 / 0.5})


@pytest.mark.parametrize("per_task", [False, True])
def test_only_one_setting_for_all_tasks_can_lie_at_the_edge(per_task, monkeypatch):
    monkeypatch.setattr(evaluate, "score_all", counting_scores([]))
    merge = replace(one_weight(0.5, (0.5, 1.0)), per_task=per_task)
    ones = dict.fromkeys(("val", "test"), {"a": 1.0, "b": 1.0})
    record = evaluate_merge(
        SimpleNamespace(jobs=1), merge, ["a", "b"], "standard", denominators=Denominators(ones, zeroshot=ones)
    )
    assert record["chosen"] == {"a": 1.0, "b": 1.0} and record["chosen_per_task"] is per_task
    assert record["at_edge"] is not per_task


@dataclass
class Searchable(Method):
    """A method of two options, whose model is their product."""

    p: float = 1.0
    q: float = 1.0
    name = "searchable"

    def merge(self, problem):
        return one_weight(self.p * self.q, (0.5, 1.0))


def test_validation_chooses_among_options_and_settings_together(monkeypatch, make_run):
    asked = []
    monkeypatch.setattr(evaluate, "score_all", counting_scores(asked))
    merge = Searched.over(Searchable(q=0.1), {"p": [1.0, 2.0, 3.0]}, Problem({}, {"signs": {}}))
    assert merge.settings[:3] == [{"p": 1.0, "setting": 0.5}, {"p": 1.0, "setting": 1.0}, {"p": 2.0, "setting": 0.5}]
    run = make_run("--tasks", "signs", "digits")
    write_single_task(run, "standard", 0.8)
    write_single_task(run, "none", 0.4)
    record = evaluate_merge(run, merge, run.tasks, "standard")
    assert record["val"]["accuracy"]["signs"] == pytest.approx([0.05, 0.1, 0.1, 0.2, 0.15, 0.3])
    assert record["chosen"]["signs"] == {"p": 3.0, "setting": 1.0}
    assert asked[-1] == [pytest.approx((0.3,))] * 2, "test is read once, at the chosen options"
    assert record["info"]["search"] == {"p": [1.0, 2.0, 3.0]}
    json.dumps(record)


@dataclass
class RandomSearchable(Searchable):
    """Draw n has the model p·q·(n + 1)."""

    name = "random searchable"

    def merge(self, problem):
        return Drawn(
            draw=lambda number: one_weight(self.p * self.q * (number + 1), (0.5, 1.0)),
            draws=2,
            settings=(0.5, 1.0),
            storage_bits=0,
        )


def test_a_search_over_a_random_method_compares_means_over_draws_and_reads_test_for_those_of_one(monkeypatch, make_run):
    asked = []
    monkeypatch.setattr(evaluate, "score_all", counting_scores(asked))
    merge = Searched.over(RandomSearchable(q=0.1), {"p": [1.0, 3.0, 2.0]}, Problem({}, {"signs": {}}))
    run = make_run("--tasks", "signs", "digits")
    write_single_task(run, "standard", 0.8)
    write_single_task(run, "none", 0.4)
    record = evaluate_merge(run, merge, run.tasks, "standard")
    assert record["val"]["accuracy"]["signs"] == pytest.approx([0.075, 0.15, 0.225, 0.45, 0.15, 0.3])
    assert record["chosen"]["signs"] == {"p": 3.0, "setting": 1.0} and record["at_edge"]
    assert [len(lines) for lines in asked] == [2] * 8, "three searched and one chosen, at two draws each"
    assert asked[-2:] == [[pytest.approx((0.3,))] * 2, [pytest.approx((0.6,))] * 2]
    assert record["test"]["accuracy"]["digits"] == pytest.approx(0.45)
    assert record["draws"]["accuracy"]["digits"] == pytest.approx([0.3, 0.6]) and record["draws"]["n"] == 2
    json.dumps(record)


def test_the_edge_of_a_search_is_that_of_the_chosen_options():
    merge = Searched.over(Searchable(), {"p": [1.0, 2.0]}, Problem({}, {"signs": {}}))
    assert [merge.at_edge(setting) for setting in merge.settings] == [False, True, False, True]
    assert not one_weight(1.0, (1.0,)).at_edge(1.0), "one setting has no edge"


@pytest.mark.parametrize(
    "search, told",
    [({"p": [1.0, "much"]}, "search.p: input should be a valid number"), ({"k": [1]}, "no option k; it has p, q")],
)
def test_a_value_that_an_option_cannot_have_is_refused(search, told):
    with pytest.raises(UsageError, match=told):
        Searched.over(Searchable(), search, Problem({}, {"signs": {}}))


def test_an_option_that_the_method_does_not_have_is_refused():
    with pytest.raises(UsageError, match="search: searchable has no option k; it has p, q"):
        Searched.over(Searchable(), {"k": [1]}, None)


def test_missing_denominators_name_their_command(make_run):
    run = make_run("--tasks", "signs")
    with pytest.raises(results.MissingResult, match="eval_single_task.py --finetuning-mode=linear"):
        evaluate_merge(run, SimpleNamespace(settings=(1.0,)), run.tasks, "linear")


def test_a_missing_checkpoint_names_its_command(make_run):
    with pytest.raises(FileNotFoundError, match="finetune.py .*--tasks=signs"):
        store.task_vector(make_run("--tasks=signs"), "signs", "posthoc")


def test_a_single_task_result_grows_by_the_tasks_that_it_lacks(make_run, small_cache, capsys):
    make = partial(make_run, f"--cache-dir={small_cache}", "--tasks")
    few, more = make("digits,signs"), make("textures,digits")
    evaluate_single_tasks(few, "none")
    first = results.read(few.paths.single_task("none"))
    evaluate_single_tasks(make("signs"), "none")
    assert "there already, skipped" in capsys.readouterr().out
    evaluate_single_tasks(more, "none")
    assert "lacks textures; it is made anew with all of 3 tasks" in capsys.readouterr().out
    grown = results.read(few.paths.single_task("none"))
    assert {"digits", "signs", "textures"} <= grown.keys() and "textures" not in first
    assert {task: grown["correct"][task] for task in few.tasks} == {t: first["correct"][t] for t in few.tasks}
    with pytest.raises(results.ResultError, match="expected a result of encoder"):
        evaluate_single_tasks(more, "none", encoder=few.paths.pretrained(), name="zeroshot_accuracies")


def test_denominators_that_lack_a_split_name_the_file_and_the_command(make_run):
    run = make_run("--tasks", "signs,digits")
    write_single_task(run, "standard", 0.8)
    record = {"signs": 0.5, "signsVal": 0.5, "digits": 0.5}
    results.write(run.paths.single_task("none"), record, run.config(), time.time())
    with pytest.raises(results.MissingResult, match="accuracies of digitsVal, found none; make it with: python eval_"):
        Denominators.of(run, "standard", run.tasks)


def test_fixed_settings_are_scored_beside_the_chosen_one(make_run, monkeypatch):
    run = make_run("--tasks", "signs")
    for mode, accuracy in (("standard", 0.8), ("none", 0.4)):
        write_single_task(run, mode, accuracy)
    monkeypatch.setattr(evaluate, "score_all", counting_scores([]))
    record = evaluate_merge(run, one_weight(0.5, (0.2, 0.4)), run.tasks, "standard", {"untuned": 0.3, "one": 1.0})
    assert record["chosen"] == {"signs": 0.4} and record["test"]["mean_accuracy"] == pytest.approx(0.2)
    assert {name: scores["setting"] for name, scores in record["fixed"].items()} == {"untuned": 0.3, "one": 1.0}
    assert [scores["mean_accuracy"] for scores in record["fixed"].values()] == pytest.approx([0.15, 0.5])


@dataclass
class Untuned(Method):
    untuned = 0.3

    def merge(self, problem: Problem) -> Scaled:
        raise NotImplementedError


def test_only_methods_with_a_coefficient_have_fixed_settings():
    scaled, one = one_weight(1.0, (0.1, 0.2)), one_weight(1.0)
    affine = Affine(offset=scaled.tau, tau=scaled.tau, settings=(0.1, 0.2), storage_bits=0)
    assert fixed_settings(Untuned(), scaled) == {"untuned": 0.3, "one": 1.0}
    assert fixed_settings(Untuned(), affine) == {"untuned": 0.3}
    assert fixed_settings(Untuned(), one) == {}


def test_models_that_are_made_as_they_are_scored_are_in_the_cost(make_run, monkeypatch):
    """A draw of a random merge, and the models of single tasks: made while the cost is measured."""
    measuring, made = [], []

    @contextmanager
    def watched(device):
        measuring.append(device)
        cost = Cost()
        yield cost
        cost.seconds, cost.peak_memory = 2.0, 30
        measuring.pop()

    @dataclass(kw_only=True)
    class Late(Merge):
        def vector(self, task, setting):
            made.append((task, setting, len(measuring)))
            return TaskVector(vector={})

    monkeypatch.setattr(merging, "measured", watched)
    run, shared = make_run("--tasks", "digits", "signs"), dict(settings=(1.0, 2.0), storage_bits=0)
    random = Drawn(draw=lambda number: made.append((number, len(measuring))), draws=2, **shared)
    for merge in (random, Late(**shared, per_task=True), Late(**shared)):
        assert merging.made_and_measured(run, lambda merge=merge: merge) == (merge, {"seconds": 2.0, "peak_memory": 30})
    assert made == [(0, 1), ("digits", 1.0, 1), ("signs", 1.0, 1)]


def test_a_cost_has_seconds_and_the_peak_above_the_start():
    with measured("cpu") as cost:
        weights = torch.ones(64_000_000)
        del weights
    assert cost.seconds > 0
    assert cost.peak_memory is None or cost.peak_memory > 200_000_000
