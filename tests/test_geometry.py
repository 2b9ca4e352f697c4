"""Spectral geometry: closed forms of ranks, interference and alignment, and the experiment on tiny checkpoints."""

import math

import merging_problems
import pytest
import synthetic_results
import torch

from src.analysis import spectra
from src.experiments import geometry
from src.merging.matrices import SVD
from src.merging.registry import METHODS
from src.records import checked
from src.reporting.comparison.geometry import Spectral, correlations, points
from src.reporting.runs import Runs


def svd(u: torch.Tensor, s: list[float], v: torch.Tensor) -> SVD:
    return SVD(u.double(), torch.tensor(s, dtype=torch.float64), v.double().T)


def test_ranks_of_equal_and_of_one_singular_value():
    assert spectra.stable_rank(torch.ones(5)) == pytest.approx(5) == spectra.effective_rank(torch.ones(5))
    assert spectra.stable_rank(torch.tensor([2.0, 0, 0])) == 1 == spectra.effective_rank(torch.tensor([2.0, 0, 0]))
    two = torch.tensor([3.0, 1.0])
    assert spectra.stable_rank(two) == pytest.approx(10 / 9)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert spectra.effective_rank(two) == pytest.approx(math.exp(entropy))
    assert spectra.energy(two, 1) == pytest.approx(0.9) and spectra.leading(two) == 2
    assert spectra.leading(torch.tensor([10.0, 1.0, 1.0])) == 1  # √energy .99 and no more needed


def test_interference_of_orthogonal_and_of_equal_spaces():
    eye = torch.eye(6)
    apart = [svd(eye[:, :2], [2, 1], eye[:, :2]), svd(eye[:, 2:4], [3, 1], eye[:, 2:4])]
    assert spectra.interference(apart) == 0 == spectra.interference(apart[:1])
    same = [apart[0], svd(eye[:, :2], [3, 1], eye[:, :2])]
    # UᵀU − I and VᵀV − I swap the two tasks: entry (i, j) of the product is the other task's σ, on the diagonal
    assert spectra.interference(same) == pytest.approx((2 + 1 + 3 + 1) / 7)
    one_side = [apart[0], svd(eye[:, :2], [3, 1], eye[:, 2:4])]
    assert spectra.interference(one_side) == 0, "spaces that meet on one side alone do not interfere"


def test_interference_is_the_papers_formula_and_free_of_scale():
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(3)]
    parts = [SVD.of(matrix).top(2) for matrix in matrices]
    u, v = (torch.cat(p, 1) for p in ([s.u for s in parts], [s.vh.T for s in parts]))
    s = torch.cat([part.s for part in parts])
    eye = torch.eye(6, dtype=torch.float64)
    expected = ((u.T @ u - eye) @ torch.diag(s) @ (v.T @ v - eye)).abs().sum() / s.sum()
    assert spectra.interference(parts) == pytest.approx(float(expected))
    scaled = [SVD.of(7 * matrix).top(2) for matrix in matrices]
    assert spectra.interference(scaled) == pytest.approx(spectra.interference(parts))


def test_alignment_of_every_task_is_with_the_merged_space():
    eye = torch.eye(4, dtype=torch.float64)
    merged = SVD.of(eye[:, :1] @ eye[:1])
    inside, outside, half = eye[:, :1] @ eye[2:3], eye[:, 1:2] @ eye[:1], (eye[:, :1] + eye[:, 1:2]) @ eye[:1]
    assert spectra.alignment(merged, inside) == pytest.approx(1)
    assert spectra.alignment(merged, outside) == pytest.approx(0)
    assert spectra.alignment(merged, half) == pytest.approx(math.sqrt(0.5))


@pytest.fixture(scope="module")
def record():
    return geometry.measure(merging_problems.draw())


def test_the_record_has_its_schema_and_every_method_that_makes_one_model_of_weights(record):
    checked(record, geometry.Record, "here")
    assert {"average", "sum", "ties", "tsv_m", "iso_c"} <= record["alignment"].keys()
    assert not {"tall_mask", "emr", "regmean", "zeroshot", "consensus"} & record["alignment"].keys()
    assert len(record["interference"]) == len(record["matrices"]) > 1
    for of_method in record["alignment"].values():
        assert all(0 <= value <= 1 + 1e-6 for value in of_method.values())
    assert record["alignment"]["sum"] == pytest.approx(record["alignment"]["average"]), "a scale turns no space"
    names = {number.metric for number in geometry.numbers(record, "mini")}
    assert {"effective_rank", "stable_rank", "energy", "interference", "alignment_ties"} <= names


def test_alignment_is_of_the_vector_that_the_method_makes(record):
    given = merging_problems.draw()
    made = METHODS["ties"]().merge(given)
    key, task = record["matrices"][0], given.tasks[0]
    vector = made.vector(task, made.settings[0]).vector
    by_hand = []
    for key in record["matrices"]:
        u, s, _ = torch.linalg.svd(vector[key].double())
        u = u[:, : spectra.leading(s)]
        delta = given.tensor(task, key).double()
        by_hand.append(float((u @ u.T @ delta).norm() / delta.norm()))
    assert record["alignment"]["ties"][task] == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-4)


def test_gain_and_its_correlation_are_of_the_results(tmp_path):
    runs = Runs("mini", "ViT-Mini", synthetic_results.write(tmp_path, seeds=(1, 2)))
    found = points(runs, "standard", 1, synthetic_results.geometry("standard", 1))
    merged = synthetic_results.merged("ties", synthetic_results.TASKS, "standard", 1, 0.75)
    task = synthetic_results.TASKS[0]
    nai = next(p[3] for p in found if p[0] == "TIES" and p[1] == task)
    low, high = merged["zeroshot"]["accuracy"][task], merged["test"]["accuracy"][task]
    assert nai == pytest.approx((high - low) / (merged["denominators"]["test"][task] - low))
    by_seed = correlations(runs, "standard")
    assert list(by_seed.index) == [1, 2] and by_seed.between(-1, 1).all()
    first, second = (Spectral("interference", "standard", half).values(runs) for half in (0, 1))
    assert (first - second).to_dict() == pytest.approx({1: 1.0, 2: 1.0}), "proj is in no block"
    assert Spectral("effective_rank", "linear").commands(runs) == []
