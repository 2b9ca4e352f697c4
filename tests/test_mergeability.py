"""Measures of pairs in closed form, correlations by hand, and a run against models built anew and against main.py."""

import math

import merging_problems
import numpy as np
import pytest
import synthetic_results
import torch
from adapting_problems import result_name, result_of
from matplotlib import pyplot as plt
from torch.func import functional_call

import eval_mergeability
import main
from src import store
from src.analysis import pairs
from src.datasets import loading
from src.experiments import commands
from src.experiments import mergeability as paired
from src.experiments.registry import MERGEABILITY
from src.heads import get_classification_head
from src.merging.matrices import SVD
from src.modeling import ImageEncoder
from src.reporting.claim import examine
from src.reporting.comparison.claims import CLAIMS
from src.reporting.comparison.mergeability import Foretelling, largest, mergeability, mergeability_figure
from src.reporting.runs import Runs
from src.reporting.verdict import HOLDS
from src.runtime import results
from src.runtime.messages import UsageError

EYE = torch.eye(4, dtype=torch.float64)

SPACES = ("top_left", "top_right", "bottom_left", "bottom_right")


def test_signs_and_norms():
    one = {"a": torch.tensor([1.0, -2.0, 3.0, 0.0]), "b": torch.tensor([[2.0]])}
    other = {"a": torch.tensor([5.0, 1.0, -1.0, 7.0]), "b": torch.tensor([[1.0]])}
    assert pairs.sign_agreement(one, other) == pytest.approx(2 / 4), "of the weights that both move"
    assert (
        pairs.sign_agreement(one, one) == 1 and pairs.sign_agreement({"a": torch.zeros(2)}, {"a": torch.ones(2)}) == 0
    )
    long = {key: -3 * tensor for key, tensor in one.items()}
    assert pairs.norm_ratio(one, long) == pytest.approx(1 / 3) == pairs.norm_ratio(long, one)


def test_overlaps_are_squared_cosines_of_principal_angles():
    angle = 0.3
    turned = torch.stack([math.cos(angle) * EYE[0] + math.sin(angle) * EYE[2], EYE[3]], 1)
    assert pairs.overlap(EYE[:, :2], EYE[:, :2]) == 1 and pairs.overlap(EYE[:, :2], EYE[:, 2:]) == 0
    assert pairs.overlap(EYE[:, :2], turned) == pytest.approx(math.cos(angle) ** 2 / 2)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    found = pairs.spaces(SVD.of(a), SVD.of(b), 2)
    assert tuple(found) == SPACES
    for name, pick in (("top", slice(0, 2)), ("bottom", slice(2, 4))):
        (u, _, v), (w, _, x) = (np.linalg.svd(m.numpy(), full_matrices=False) for m in (a, b))
        projectors = [m[:, pick] @ m[:, pick].T for m in (u, w, v.T, x.T)]
        assert found[f"{name}_left"] == pytest.approx(np.trace(projectors[0] @ projectors[1]) / 2)
        assert found[f"{name}_right"] == pytest.approx(np.trace(projectors[2] @ projectors[3]) / 2)


def test_spaces_have_no_vectors_of_singular_values_that_are_zero():
    low = torch.diag(torch.tensor([3.0, 2.0, 0.0, 0.0], dtype=torch.float64))
    full = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64))
    assert pairs.spaces(SVD.of(low), SVD.of(full), 1)["bottom_left"] == 0, "e_2 against e_4"
    assert pairs.spaces(SVD.of(low), SVD.of(low), 3) == dict.fromkeys(SPACES, 1.0), "two there are"
    assert pairs.spaces(SVD.of(0 * low), SVD.of(full), 1) == {}


def test_measures_of_weights_are_those_of_the_matrices():
    problem = merging_problems.draw(tasks=3)
    found = paired.of_weights(problem)
    assert set(found) == {(0, 1), (0, 2), (1, 2)}
    weights = {name for name, row in paired.MEASURES.items() if row.of_weights}
    assert all({*of_pair} == weights for of_pair in found.values())
    one, other = (torch.cat([t.flatten() for t in problem.vector(task).vector.values()]) for task in problem.tasks[:2])
    assert found[0, 1]["cosine"] == pytest.approx(float(one @ other / one.norm() / other.norm()))
    assert found[0, 1]["sign_agreement"] == pytest.approx(float((one * other > 0).double().mean()))
    top, bottom = [], []
    for key in merging_problems.MATRICES:
        (u, *_), (w, *_) = (
            np.linalg.svd(problem.tensor(t, key).numpy(), full_matrices=False) for t in problem.tasks[:2]
        )
        k = min(problem.shapes[key]) // 3
        top.append((np.linalg.norm(u[:, :k].T @ w[:, :k]) ** 2) / k)
        bottom.append((np.linalg.norm(u[:, -k:].T @ w[:, -k:]) ** 2) / k)
    assert found[0, 1]["top_left"] == pytest.approx(np.mean(top))
    assert found[0, 1]["bottom_left"] == pytest.approx(np.mean(bottom))


def made_up(measures: list[float | None], accuracy: list[float]) -> paired.Record:
    merged = [{m: {"coefficient": 1.0, "accuracy": a, "normalised": a} for m in paired.MERGERS} for a in accuracy]
    of_pairs = [{} if value is None else {"cosine": value, "top_left": 0.5, "feature_dot": value} for value in measures]
    found = {f"a-{i}": {"measures": m, "merged": a} for i, (m, a) in enumerate(zip(of_pairs, merged, strict=True))}
    return {"finetuning_mode": "standard", "tasks": ["a", "b"], "num_samples": 1, "pairs": found}


def test_correlations_over_pairs():
    x, y = [1.0, 2.0, 3.0, 10.0], [0.5, 0.4, 0.8, 0.9]
    found = paired.correlations(made_up(x, y), "cosine", "sum")
    assert found.pearson == pytest.approx(np.corrcoef(x, y)[0, 1])
    ranks = np.array([1, 2, 3, 4]) - np.array([2, 1, 3, 4])
    assert found.spearman == pytest.approx(1 - 6 * (ranks**2).sum() / (4 * 15))
    without = paired.correlations(made_up([*x, None], [*y, 0.1]), "cosine", "sum")
    assert without == pytest.approx(found), "a pair without the measure says nothing"
    for few in (made_up(x[:2], y[:2]), made_up(x, [0.5] * 4)):
        assert all(math.isnan(value) for value in paired.correlations(few, "cosine", "sum"))
    assert math.isnan(paired.correlations(made_up(x, y), "top_left", "sum").pearson)
    falling = made_up(x, [-value for value in y])
    assert paired.largest(falling, "sum") == pytest.approx(found.pearson), "its size; features are no weights"
    by_metric = {(n.metric, n.task): n.value for n in paired.numbers(falling, "mini")}
    assert by_metric["pearson_cosine_sum", "mean"] == pytest.approx(-found.pearson)
    assert by_metric["spearman_top_left_sum", "mean"] is None and by_metric["cosine", "a-3"] == 10


def test_a_run_against_main_and_models_built_anew(place, make_run):
    run = make_run("--tasks", "digits", "signs", "letters")
    folders = [f"--{flag}={getattr(run.places, name)}" for flag, name in
               {"save": "save", "results": "results", "cache-dir": "cache"}.items()]  # fmt: skip
    flags = ["--seed=0", "--jobs=1", "--device=cpu", *folders]
    eval_mergeability.main([*flags, "--num-samples=12", "--tasks", *run.tasks])
    record = results.read(run.paths.result(MERGEABILITY.result("standard")))
    assert list(record["pairs"]) == ["digits-signs", "digits-letters", "signs-letters"]
    pair = record["pairs"]["digits-signs"]

    for method, options in (("sum", []), ("tsv_m", ["alphas=[1.0]"])):
        main.main([*place, "tasks=[digits,signs]", f"method={method}", *(f"method.{option}" for option in options)])
        theirs = result_of(place, result_name("_".join([method, *options]).replace("[1.0]", "-1.0-")))
        assert pair["merged"][method]["normalised"] == pytest.approx(theirs["test"]["mean_normalised"])
        assert pair["merged"][method]["coefficient"] == theirs["chosen"]["digits"]

    encoder, vectors = ImageEncoder(run), {task: store.task_vector(run, task, "standard").vector for task in run.tasks}
    start = dict(store.pretrained(run))
    features, images, labels, changes = {}, {}, {}, {}
    for task in ("digits", "signs"):
        pixels = loading.evaluation_pixels(run, task, "val", encoder.image_size)
        chosen = np.random.default_rng(run.seed).choice(len(pixels), 12, replace=False)
        images[task] = loading.batch_of(pixels.pixels[chosen], encoder, "cpu")
        labels[task] = torch.from_numpy(pixels.labels[chosen])
        for expert in ("digits", "signs"):
            moved = {name: start[name] + tau for name, tau in vectors[expert].items()}
            with torch.no_grad():
                features[task, expert] = functional_call(encoder, moved, (images[task],))
                near = [
                    {name: start[name] + step * tau for name, tau in vectors[expert].items()} for step in (1e-2, -1e-2)
                ]
                up, down = (functional_call(encoder, weights, (images[task],)) for weights in near)
                changes[task, expert] = (up - down) / 2e-2
    a, b = (torch.cat([features[task, expert] for task in ("digits", "signs")]) for expert in ("digits", "signs"))
    measures = pair["measures"]
    assert measures["feature_distance"] == pytest.approx(float((a - b).norm(dim=1).mean()), rel=1e-4)
    assert measures["feature_dot"] == pytest.approx(float((a * b).sum(1).mean()), rel=1e-4)
    crossed = [(task, expert) for task in ("digits", "signs") for expert in ("digits", "signs") if task != expert]
    right = [get_classification_head(run, t)(features[t, e]).argmax(1) == labels[t] for t, e in crossed]
    assert measures["cross_task_accuracy"] == pytest.approx(float(torch.cat(right).double().mean()))
    energy = {key: float(change.double().square().sum()) for key, change in changes.items()}
    ratios = [energy[t, e] / energy[t, t] for t, e in crossed]
    assert measures["tangent_interference"] == pytest.approx(math.sqrt(ratios[0] * ratios[1]), rel=1e-2)


def test_two_tasks_are_too_few(make_run):
    with pytest.raises(UsageError, match="--tasks: expected at least 3"):
        paired.measure_mergeability(run := make_run("--tasks", "digits", "signs"), "standard")
    assert commands.COMMANDS["mergeability"](run) == []
    (command,) = commands.COMMANDS["mergeability"](make_run("--tasks", "digits", "signs", "land"))
    assert command.flags[0] == "--finetuning-mode=standard"


def test_table_figure_and_claim_of_mergeability(tmp_path):
    for seed in (1, 2, 3):
        file = tmp_path / f"mini/ViT-Mini/seed_{seed}/{MERGEABILITY.result('standard')}.json"
        synthetic_results.dump(file, synthetic_results.mergeability("standard", seed))
    runs = Runs("mini", "ViT-Mini", tmp_path)
    (table,) = mergeability(runs)
    assert table.name == "mergeability" and len({len(row) for row in table.rows} | {len(table.header)}) == 1
    by_title = {row[0]: row for row in table.rows}
    assert len(table.rows) == len(paired.MEASURES) + 2
    dot = by_title["dot product of features"]
    assert dot[1] == "images" and all(cell.ours.between(0.9, 1).all() for cell in dot[2:])
    record = synthetic_results.mergeability("standard", 1)
    x, y = zip(*((p["measures"]["cosine"], p["merged"]["tsv_m"]["normalised"]) for p in record["pairs"].values()))
    assert by_title["cosine of the task vectors"][4].ours[1] == pytest.approx(np.corrcoef(x, y)[0, 1])
    bench = by_title["normalised accuracy of a pair, %"]
    assert [cell.published for cell in bench[2:6]] == [None, None, 99.01, 86.66]
    claim = next(claim for claim in CLAIMS if isinstance(claim.quantities[1], Foretelling))
    finding = examine(claim, runs)
    assert finding.verdict == HOLDS and finding.values[1].equals(largest(runs, "standard", "sum"))
    assert finding.values[1][1] == pytest.approx(paired.largest(record, "sum"))
    figure = mergeability_figure(runs)
    assert len(figure.axes[0].containers) == len(paired.MERGERS)
    plt.close(figure)
    absent = examine(claim, Runs("mini", "ViT-Mini", tmp_path / "nothing", (1,)))
    assert absent.missing[0].startswith("python eval_mergeability.py --finetuning-mode=standard --model=ViT-Mini")
