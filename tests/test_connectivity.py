"""Barriers in closed form; the lines of a run are those of the models that stand at their ends."""

import numpy as np
import pytest
import synthetic_results
import torch
import torch.nn.functional as F

import eval_connectivity
from src import store
from src.datasets import loading
from src.experiments import connectivity as connected
from src.experiments.registry import CONNECTIVITY
from src.heads import get_classification_head
from src.linearize import LinearizedImageEncoder
from src.reporting.comparison.connectivity import Barrier, connectivity
from src.reporting.runs import Runs
from src.runtime import results

FOLDERS = {"save": "save", "results": "results", "cache-dir": "cache"}


def test_a_barrier_is_the_height_above_the_line_between_the_ends():
    points = [0.0, 0.25, 0.5, 1.0]
    assert connected.barrier([1.0, 1.5, 2.0, 3.0], points) == 0  # straight
    assert connected.barrier([1.0, 0.2, 0.1, 3.0], points) == 0  # a valley
    assert connected.barrier([1.0, 2.5, 2.2, 3.0], points) == pytest.approx(2.5 - 1.5)
    parabola = [4 * s * (1 - s) + 2 * s for s in points]
    assert connected.barrier(parabola, points) == pytest.approx(1)


def test_the_barrier_on_both_tasks_is_of_their_mean_loss():
    record = synthetic_results.connectivity("standard", 1)
    found = {(n.metric, n.task): n.value for n in connected.numbers(record, "mini")}
    pair = "-".join(synthetic_results.TASKS[:2])
    assert found["barrier_joint", pair] == pytest.approx(0.3) == found["barrier_single", "mean"]
    course = {"accuracy": {}, "loss": {"a": [0.0, 1.0, 2.0], "b": [2.0, 1.0, 0.0]}}
    assert connected.joint(course) == [1.0, 1.0, 1.0]


def _loss(run, encoder, dataset: str) -> float:
    head, total, n = get_classification_head(run, dataset), 0.0, 0
    for images, labels in loading.evaluation_batches(run, store.encoder(run), dataset, "test"):
        total += float(F.cross_entropy(head(encoder(images)), labels, reduction="sum"))
        n += len(labels)
    return total / n


@torch.no_grad()
def test_lines_of_a_run_against_models_built_at_their_points(place, make_run):
    run = make_run("--tasks", "digits", "signs")
    folders = [f"--{flag}={getattr(run.places, name)}" for flag, name in FOLDERS.items()]
    flags = ["--finetuning-mode=posthoc", "--n-eval-points=3", "--seed=0", "--jobs=1", "--device=cpu", *folders]
    eval_connectivity.main([*flags, "--tasks", *run.tasks])
    record = results.read(run.paths.result(CONNECTIVITY.result("posthoc")))
    assert set(record["pairs"]) == {"digits-signs"} and record["points"] == [0, 0.5, 1]
    vectors = {task: store.task_vector(run, task, "posthoc") for task in run.tasks}
    encoder, start = LinearizedImageEncoder(run), dict(store.pretrained(run))
    for index, s in enumerate(record["points"]):
        tau = ((1 - s) * vectors["digits"] + s * vectors["signs"]).vector
        encoder.load_state_dict(start | {name: start[name] + tau[name] for name in tau})
        for task in run.tasks:
            loss = record["pairs"]["digits-signs"]["loss"][task][index]
            assert loss == pytest.approx(_loss(run, encoder, task), rel=1e-4)
    ends = record["from_pretrained"]["digits"]["loss"]["digits"][-1]
    assert ends == pytest.approx(record["pairs"]["digits-signs"]["loss"]["digits"][0], rel=1e-5)
    assert record["control"] == run.control
    assert set(record["from_pretrained"]["signs"]["accuracy"]) == {"signs", run.control}


def test_table_and_claim_of_barriers(tmp_path):
    runs = Runs("mini", "ViT-Mini", synthetic_results.write(tmp_path, seeds=(1, 2), merges=False))
    (table,) = connectivity(runs)
    assert [row[0] for row in table.rows] == ["non-linear fine-tuning", "post-hoc linearization", "linear fine-tuning"]
    joined = [float(np.mean(row[3].ours)) for row in table.rows]
    assert joined == [0, 0, 0] and float(table.rows[0][1].ours.mean()) == pytest.approx(0.3)
    half_way, at_the_model = (float(table.rows[0][column].ours.mean()) for column in (7, 8))
    assert half_way == pytest.approx(70, abs=1) and at_the_model == pytest.approx(60, abs=1)
    assert Barrier("standard").values(runs).tolist() == [pytest.approx(0.3)] * 2
