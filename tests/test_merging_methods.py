"""Every merging method against the published functions' outputs, and against closed forms written here in float64.

tests/golden/tall_masks.npz holds inputs (θ0 and θ_t, flat, in the sorted order of their names) and what the functions
published with arXiv:2405.07813 return for them, recorded once on torch 2.15. Cases: `random`, `one` task, `twenty`
tasks; and on multiples of 1/256, where float32 arithmetic is exact and magnitudes coincide: `dyadic`, `zero` (one task
vector is all zeros), `cancel` (two task vectors that add up to zero).
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from src.checkpoints import PackedMask
from src.merging.base import Problem
from src.merging.consensus import Consensus, consensus_mask
from src.merging.mag_masking import MagnitudeMasking, magnitude_mask
from src.merging.tall_mask import LAMBDAS, TallMask, tall_masks, tau_mtl
from src.merging.task_arithmetic import Average, Sum, ZeroShot, multi_task_vector
from src.merging.ties import Ties, magnitude_threshold, ties_vector
from src.task_vectors import TaskVector

GOLDEN = Path(__file__).parent / "golden" / "tall_masks.npz"
CASES = ("random", "one", "twenty", "dyadic", "zero", "cancel")
SIZE = 127
CUTS = {"model.visual.a": (50,), "model.visual.b": (1,), "model.visual.c": (4, 19)}  # sizes add up to SIZE


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return dict(arrays)


def cut(flat: np.ndarray) -> dict[str, torch.Tensor]:
    pieces = torch.from_numpy(flat).split([int(np.prod(shape)) for shape in CUTS.values()])
    return {key: piece.clone().view(shape) for (key, shape), piece in zip(CUTS.items(), pieces, strict=True)}


def flat(named) -> torch.Tensor:
    return torch.cat([named[key].flatten() for key in sorted(named)])


def problem_of(golden, case: str) -> Problem:
    theta = golden[f"{case}/theta"]
    return Problem(cut(golden[f"{case}/theta0"]), {f"task{t}": cut(row) for t, row in enumerate(theta)})


def unpack(bits: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.unpackbits(bits, axis=-1, count=SIZE).astype(bool))


def assert_as_published(case: str, ours: torch.Tensor, published: torch.Tensor) -> None:
    """Bit for bit; but the published sum over 20 tasks is torch's, which adds 16 and then 4 of them."""
    if case == "twenty":
        torch.testing.assert_close(ours, published, rtol=2e-7, atol=2e-8)
    else:
        assert torch.equal(ours, published)


@pytest.mark.parametrize("case", CASES)
def test_sum_is_the_published_one(golden, case):
    total = multi_task_vector(problem_of(golden, case))
    assert_as_published(case, flat(total.vector), torch.from_numpy(golden[f"{case}/sum"]))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_ties_is_the_published_one(golden, case, reduce):
    published = torch.from_numpy(golden[f"{case}/ties"][:, ["mean", "sum"].index(reduce)])
    for k, expected in zip((1, 20, 55, 100), published, strict=True):
        assert_as_published(case, flat(ties_vector(problem_of(golden, case), k, reduce).vector), expected)


@pytest.mark.parametrize("case", CASES)
def test_magnitude_masks_are_the_published_ones(golden, case):
    problem = problem_of(golden, case)
    for k, expected in zip((1, 10, 100), unpack(golden[f"{case}/mag_masking"]), strict=True):
        ours = [flat(magnitude_mask(problem, task, k).bits) for task in problem.tasks]
        assert torch.equal(torch.stack(ours), expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("use_ties", [False, True])
def test_tall_and_consensus_masks_are_the_published_ones(golden, case, use_ties):
    """Equal even where the published code rounds differently: no weight of these cases sits on the boundary."""
    problem = problem_of(golden, case)
    merged = tau_mtl(problem, use_ties)
    masks = {task: tall_masks(problem, task, merged, LAMBDAS) for task in problem.tasks}
    tall = unpack(golden[f"{case}/tall"])[int(use_ties)]  # (λ, tasks, weights)
    for place in range(len(LAMBDAS)):
        assert torch.equal(torch.stack([flat(masks[task][place].bits) for task in problem.tasks]), tall[place])
    at_04 = {task: PackedMask.of(masks[task][2].bits) for task in problem.tasks}
    for k, expected in enumerate(unpack(golden[f"{case}/consensus"])[int(use_ties)]):
        assert torch.equal(flat(consensus_mask(at_04, k).bits), expected)


# ---- closed forms


def draw(tasks: int = 3, seed: int = 0, dtype=torch.float32, **scope) -> Problem:
    """Small encoders with a frozen text-side tensor, an integer buffer and a 0-dimensional weight."""
    generator = torch.Generator().manual_seed(seed)

    def weights(scale: float) -> dict[str, torch.Tensor]:
        return {
            "model.visual.conv1.weight": scale * torch.randn(4, 3, 2, 2, generator=generator).to(dtype),
            "model.visual.scale": scale * torch.randn((), generator=generator).to(dtype),
            "model.visual.proj": scale * torch.randn(7, 5, generator=generator).to(dtype),
            "model.token_embedding.weight": torch.zeros(9, 4, dtype=dtype),
            "model.position_ids": torch.zeros(3, dtype=torch.int64),
        }

    start = weights(1.0)
    finetuned = {f"task{t}": {key: start[key] + tau for key, tau in weights(0.1).items()} for t in range(tasks)}
    return Problem(start, finetuned, **scope)


def stacked(problem: Problem) -> torch.Tensor:
    """Task vectors, (tasks, weights), float64."""
    return torch.stack([flat(problem.vector(task).vector).double() for task in problem.tasks])


def naive_ties(tau: torch.Tensor, k: float, reduce: str) -> torch.Tensor:
    kept = tau.shape[1] - int(tau.shape[1] * (k / 100))
    threshold = tau.abs().sort(dim=1).values[:, kept - 1 : kept] if kept else torch.zeros(len(tau), 1)
    tau = tau * (tau.abs() >= threshold)
    gamma = tau.sum(0).sign()
    gamma[gamma == 0] = gamma.sum().sign()
    agree = torch.where(gamma > 0, tau > 0, tau < 0)
    total = (tau * agree).sum(0)
    return total / agree.sum(0).clamp(min=1) if reduce == "mean" else total


@pytest.mark.parametrize("scope", ["visual", "published"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_ties_equals_its_definition(scope, dtype):
    problem = draw(5, dtype=dtype, scope=scope)
    assert problem.num_parameters == (84 + 36 if scope == "published" else 84)
    for k in (1, 3, 20, 99.9, 100):
        for reduce in ("mean", "sum"):
            ours = ties_vector(problem, k, reduce)
            assert all(tensor.dtype == problem.dtype for tensor in ours.vector.values())
            expected = naive_ties(stacked(problem), k, reduce).to(problem.dtype)
            torch.testing.assert_close(flat(ours.vector), expected, rtol=1e-6, atol=1e-7)


def test_threshold_keeps_equal_magnitudes_and_at_least_one():
    start = {"model.visual.w": torch.zeros(8)}
    problem = Problem(start, {"t": {"model.visual.w": torch.tensor([3.0, -3, 3, 1, 0, 0, 0, 0])}})
    assert magnitude_threshold(problem, "t", 1) == 3
    assert magnitude_mask(problem, "t", 1).count() == 3
    assert magnitude_threshold(problem, "t", 50) == 0  # the fifth of eight: more than half are zeros
    for k in (0, -1, 0.2, 100.5):
        with pytest.raises(ValueError, match="percent"):
            magnitude_threshold(problem, "t", k)


def test_half_precision_differences_are_taken_in_float32():
    start = {"model.visual.w": torch.tensor([1.0, 2.0], dtype=torch.float16)}
    end = {"model.visual.w": torch.tensor([1.001, 2.002], dtype=torch.float16)}
    vector = Problem(start, {"t": end}).vector("t").vector["model.visual.w"]
    assert vector.dtype == torch.float32
    assert torch.equal(vector, end["model.visual.w"].float() - start["model.visual.w"].float())


def test_integers_and_what_is_out_of_scope_are_left_out():
    assert draw().keys == ("model.visual.conv1.weight", "model.visual.proj", "model.visual.scale")
    assert "model.token_embedding.weight" in draw(scope="published").keys
    assert "model.position_ids" not in draw(scope="published").keys


@pytest.mark.parametrize("use_ties", [False, True])
def test_tall_mask_reconstructs_a_single_task(use_ties):
    """With one task τ_MTL = τ_1, so the mask is 1 wherever τ_1 is not 0, at every λ (TIES has trimmed it to 20 %)."""
    problem = draw(1)
    merge = TallMask(use_ties=use_ties).merge(problem)
    tau = flat(problem.vector("task0").vector)
    for setting in merge.settings:
        got = flat(merge.vector("task0", setting).vector)
        assert torch.equal(got, flat(tau_mtl(problem, use_ties).vector))
        if not use_ties:
            assert torch.equal(got, tau)


def test_consensus_limits(tmp_path):
    """k = 0 is τ_MTL itself, k = T + 1 is zero-shot; masks come from the file that tall_mask kept."""
    problem = draw(3, mask_path=lambda name: tmp_path / f"{name}.safetensors", model="tiny")
    tall = TallMask().merge(problem)
    tall.finish({task: 0.4 for task in problem.tasks})
    total = flat(multi_task_vector(problem).vector)
    assert torch.equal(flat(Consensus(prun_thre_k=0).merge(problem).vector("task0", 1.0).vector), total)
    assert not flat(Consensus(prun_thre_k=4).merge(problem).vector("task0", 1.0).vector).any()
    at_04 = [tall_masks(problem, task, tau_mtl(problem, False), [0.4])[0] for task in problem.tasks]
    masks = torch.stack([flat(mask.bits) for mask in at_04])
    two = Consensus(prun_thre_k=2).merge(problem)
    assert torch.equal(flat(two.vector("task1", 0.5).vector), 0.5 * total * (masks.sum(0) >= 2))
    assert two.info["density"] == pytest.approx(float((masks.sum(0) >= 2).float().mean()))
    with pytest.raises(ValueError, match="prun_thre_k"):
        Consensus(prun_thre_k=-1).merge(problem)


@pytest.mark.parametrize("method", [Sum(), Average(), ZeroShot(), Ties()])
def test_shared_methods_are_one_line_through_the_origin(method):
    problem = draw(4)
    merge = method.merge(problem)
    assert not merge.per_task
    (line,) = merge.lines("task1", merge.settings)
    assert line.coefs == merge.settings
    for setting in merge.settings:
        along = flat((setting * TaskVector(vector=line.direction)).vector)
        assert torch.equal(flat(merge.vector("task0", setting).vector), along)
    assert merge.storage_bits == problem.storage_merged()


def test_settings_are_the_papers():
    problem = draw(4)
    tenths = tuple(round(0.1 * i, 1) for i in range(1, 11))
    assert Sum().merge(problem).settings == Ties().merge(problem).settings == tenths
    assert Average().merge(problem).settings == (0.25,)
    assert ZeroShot().merge(problem).settings == (0.0,)
    assert TallMask(tall_mask_lambda=[0.6, 0.2]).merge(problem).settings == (0.2, 0.6)  # a draw goes to the smallest
    assert MagnitudeMasking().merge(problem).settings == (1.0,)


def test_magnitude_masking_cuts_the_sum_of_the_whole_vectors():
    problem = draw(3)
    total, merge = flat(multi_task_vector(problem).vector), MagnitudeMasking(k=25).merge(problem)
    for task in problem.tasks:
        mask = flat(magnitude_mask(problem, task, 25).bits)
        assert torch.equal(flat(merge.vector(task, 1.0).vector), total * mask)


def test_consensus_of_ties_masks_cuts_the_vector_of_ties(tmp_path):
    problem = draw(3, mask_path=lambda name: tmp_path / f"{name}.safetensors", model="tiny")
    TallMask(use_ties=True).merge(problem).finish(dict.fromkeys(problem.tasks, 0.4))
    tau = tau_mtl(problem, True)
    masks = [flat(tall_masks(problem, task, tau, [0.4])[0].bits) for task in problem.tasks]
    two = Consensus(use_ties=True).merge(problem).vector("task0", 1.0)
    assert torch.equal(flat(two.vector), flat(tau.vector) * (torch.stack(masks).sum(0) >= 2))


def test_average_is_the_mean_of_the_weights():
    problem = draw(4)
    merge = Average().merge(problem)
    mean = torch.stack([flat({k: w[k] for k in problem.keys}) for w in problem.finetuned.values()]).mean(0)
    start = flat({k: problem.pretrained[k] for k in problem.keys})
    torch.testing.assert_close(start + flat(merge.vector("task0", 0.25).vector), mean)


@pytest.mark.parametrize("method", [MagnitudeMasking(), TallMask(), TallMask(use_ties=True)])
def test_masking_methods_make_a_model_per_task(method):
    problem = draw(3)
    merge = method.merge(problem)
    lines = merge.lines("task0", merge.settings)
    assert merge.per_task and [line.coefs for line in lines] == [(1.0,)] * len(merge.settings)
    for setting, line in zip(merge.settings, lines, strict=True):
        assert torch.equal(flat(line.direction), flat(merge.vector("task0", setting).vector))
    assert merge.storage_bits == problem.storage_masked()
    first, second = (flat(merge.vector(task, merge.settings[0]).vector) for task in problem.tasks[:2])
    assert not torch.equal(first, second)
