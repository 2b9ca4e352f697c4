"""Many settings in one pass give what each gives by itself; selection reads validation alone."""

import json
import time
from types import SimpleNamespace

import pytest
import torch

from src import evaluation, store
from src.datasets import loading as data
from src.evaluation import ORIGIN, Line, evaluate_merge, score, select, select_negation
from src.heads import get_classification_head
from src.linearize import LinearizedImageEncoder
from src.merging.base import Merge
from src.modeling import ImageEncoder
from src.runtime import results
from src.runtime.paths import Paths
from src.task_vectors import TaskVector

COEFS = (0.0, 0.15, 0.5, 1.0)


def small_vector(args, seed: int = 0) -> TaskVector:
    generator = torch.Generator().manual_seed(seed)
    theta0 = store.encoder(args).named_parameters()
    return TaskVector(
        vector={
            name: 0.05 * p.std() * torch.randn(p.shape, generator=generator) if p.numel() > 1 else torch.zeros_like(p)
            for name, p in theta0
            if name.startswith("model.visual.")
        }
    )


def one_by_one(args, dataset: str, split: str, tau: TaskVector, alpha: float, tangent: bool) -> tuple[float, float]:
    """Accuracy and loss of θ0 + α·τ as a model of its own, by a plain loop."""
    encoder = ImageEncoder(args).eval()
    if tangent:
        encoder = LinearizedImageEncoder(args, image_encoder=encoder)
    moved = encoder.state_dict()
    encoder.load_state_dict({k: w + alpha * tau.vector[k] if k in tau.vector else w for k, w in moved.items()})
    head = get_classification_head(args, dataset)
    right = loss = n = 0
    with torch.no_grad():
        for images, labels in data.evaluation_batches(args, store.encoder(args), dataset, split):
            logits = head(encoder(images))
            right += (logits.argmax(1) == labels).sum().item()
            loss += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            n += len(labels)
    return right / n, loss / n


@pytest.mark.parametrize("tangent", [False, True])
def test_a_line_gives_what_each_coefficient_gives(parsed, tangent):
    args = parsed()
    tau = small_vector(args)
    found = score(args, "digits", "val", [Line(tau.vector, COEFS)], tangent)[0]
    for alpha, s in zip(COEFS, found):
        accuracy, loss = one_by_one(args, "digits", "val", tau, alpha, tangent)
        assert s.n == 200
        assert s.accuracy == pytest.approx(accuracy, abs=0.0051)  # one image in 200 may lie on a boundary
        assert s.loss == pytest.approx(loss, rel=1e-4)


def test_images_are_read_once_whatever_the_number_of_coefficients(parsed, monkeypatch):
    args = parsed()
    seen = []
    make = data.batch_of
    monkeypatch.setattr(data, "batch_of", lambda pixels, *rest: seen.append(len(pixels)) or make(pixels, *rest))
    lines = [Line(small_vector(args).vector, COEFS), Line(small_vector(args, 1).vector, (1.0,)), ORIGIN]
    found = score(args, "digits", "val", lines, tangent=False)
    assert sum(seen) == 200 and [len(line) for line in found] == [4, 1, 1]


def test_a_tangent_line_costs_one_jvp_per_batch(parsed, monkeypatch):
    args = parsed()
    calls = []
    jvp = evaluation.forward_and_jvp
    monkeypatch.setattr(evaluation, "forward_and_jvp", lambda *a: calls.append(1) or jvp(*a))
    score(args, "digits", "val", [Line(small_vector(args).vector, tuple(i / 20 for i in range(21)))], tangent=True)
    assert len(calls) == 2  # 200 images, two batches


def test_features_that_are_no_numbers_stop_with_the_task_and_coefficient(parsed):
    args = parsed()
    tau = small_vector(args)
    tau.vector["model.visual.proj"] *= float("inf")
    with pytest.raises(evaluation.NonFiniteFeatures, match=r"digits \(val\): .* coefficient 0.5"):
        score(args, "digits", "val", [Line(tau.vector, (0.5, 1.0))], tangent=True)


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


def write_single_task(args, mode: str, accuracy: float):
    record = {t + suffix: accuracy for t in args.tasks for suffix in ("", "Val")}
    results.write(Paths.of(args).single_task(mode), record, args, started=time.time())


def test_a_merge_is_chosen_on_validation_and_reported_on_test(parsed, monkeypatch):
    """Test accuracies are made to prefer another coefficient: the choice must not see them."""
    args = parsed("--tasks", "signs", "digits")
    write_single_task(args, "standard", 0.8)
    write_single_task(args, "none", 0.4)
    table = {"val": {0.0: 0.3, 0.5: 0.6, 1.0: 0.5}, "test": {0.0: 0.3, 0.5: 0.4, 1.0: 0.7}}
    asked = []

    def fake(args, jobs, tangent, desc):
        asked.extend((split, line.coefs) for _, split, lines in jobs for line in lines)
        return [[[evaluation.Score(table[s][c], 1.0, 10) for c in line.coefs] for line in ls] for _, s, ls in jobs]

    monkeypatch.setattr(evaluation, "score_all", fake)
    record = evaluate_merge(args, evaluation.along(TaskVector(vector={}), (0.0, 0.5, 1.0)), args.tasks, "standard")
    assert record["chosen"] == {"signs": 0.5, "digits": 0.5}
    assert record["test"]["mean_accuracy"] == pytest.approx(0.4)
    assert record["test"]["mean_normalised"] == pytest.approx(0.5) == record["zeroshot"]["mean_normalised"]
    assert [coefs for split, coefs in asked if split == "test"] == [(0.5,), (0.5,)]
    json.dumps(record)


def test_draws_are_made_and_scored_one_at_a_time(monkeypatch):
    asked = []

    def fake(args, jobs, tangent, desc):
        asked.append([line.direction["draw"].item() for _, _, lines in jobs for line in lines])
        return [[[evaluation.Score(line.direction["draw"].item(), 1.0, 10)] for line in lines] for _, _, lines in jobs]

    monkeypatch.setattr(evaluation, "score_all", fake)
    merge = Merge(
        lambda task, draw: TaskVector(vector={"draw": torch.tensor(float(draw))}), range(3), storage_bits=0, draws=3
    )
    found = evaluation.score_merge(None, merge, ("a", "b"), "test", lambda task: merge.settings, False)
    assert asked == [[0, 0], [1, 1], [2, 2]]
    assert [score.accuracy for score in found["b"]] == [0, 1, 2]


def test_missing_denominators_name_their_command(parsed):
    args = parsed("--tasks", "signs")
    with pytest.raises(results.MissingResult, match="eval_single_task.py --finetuning-mode=linear"):
        evaluate_merge(args, SimpleNamespace(settings=(1.0,)), args.tasks, "linear")


def test_a_missing_checkpoint_names_its_command(parsed):
    with pytest.raises(FileNotFoundError, match="finetune.py .*--tasks=signs"):
        store.task_vector(parsed(), "signs", "posthoc")
