"""EMR, sparsifiers, PCB, MetaGPT, Model Stock and Fisher merging against released functions and closed forms.

tests/golden/sparse.npz holds what these released functions return for the inputs of tests/golden/tall_masks.npz (see
test_merging_methods.py), recorded once on torch 2.14, float32, and for random Fishers that it holds too:
`emr_merge` of EMR_Merging@cc225ec (main_emr_merging.py and main_emr_30_vits.py); the three programs of
pcb-merging@5897888, with λ = 1; of fusion_bench@54c9e8c `_magmax_select`, `merging_with_fisher_weights` and Model Stock
of the first two tasks; `magnitude_outliers` of mergekit@a6e4028 on the flat vector and `TaskVectorMiddleKeep` of
rezazzr/breadcrumbs on each tensor, both with density .3 and γ .1; the probabilities of `rank_magnitude` of
declare-lab/della for density .7 and ε .07.
"""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from src.linearize import LinearizedModel
from src.merging import fisher as fisher_module
from src.merging.base import Drawn, Problem, Unlabelled
from src.merging.emr import Emr, elected_vector, rescalers
from src.merging.fisher import Fisher
from src.merging.mag_masking import MagnitudePruning, magnitude_mask
from src.merging.metagpt import MetaGPT, coefficients
from src.merging.model_stock import ModelStock, interpolation, mean_cosine
from src.merging.pcb import Pcb
from src.merging.registry import METHODS, label, load_methods
from src.merging.sparsify import (
    Breadcrumbs,
    Dare,
    Della,
    MagMax,
    Sparse,
    dropped,
    keep_probabilities,
    largest,
    magnitude_dropped,
    middle,
)
from src.merging.task_arithmetic import Average, Sum, multi_task_vector
from src.merging.ties import ties_vector
from src.runtime.messages import UsageError
from src.runtime.seeds import event_seed
from src.task_vectors import TaskVector

FOLDER = Path(__file__).parent / "golden"
CASES = ("random", "one", "twenty", "dyadic", "zero", "cancel")
CUTS = {"model.visual.a": (50,), "model.visual.b": (1,), "model.visual.c": (4, 19)}
NEW = ("emr", "dare", "breadcrumbs", "della", "magmax", "pcb", "metagpt", "model_stock", "mag_prune", "fisher")


@pytest.fixture(scope="module")
def golden():
    arrays = {}
    for name in ("tall_masks", "sparse"):
        with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
            arrays |= dict(file)
    return arrays


def cut(flat: np.ndarray | torch.Tensor) -> dict[str, torch.Tensor]:
    pieces = torch.as_tensor(flat).split([int(np.prod(shape)) for shape in CUTS.values()])
    return {key: piece.clone().view(shape) for (key, shape), piece in zip(CUTS.items(), pieces, strict=True)}


def flat(named) -> torch.Tensor:
    named = named.vector if isinstance(named, TaskVector) else named
    return torch.cat([named[key].flatten() for key in sorted(named)])


def problem_of(golden, case: str, tasks: int | None = None) -> Problem:
    theta = golden[f"{case}/theta"][:tasks]
    return Problem(cut(golden[f"{case}/theta0"]), {f"task{t}": cut(row) for t, row in enumerate(theta)})


def from_vectors(*taus: dict[str, torch.Tensor], **fields) -> Problem:
    """The problem with these task vectors, at θ0 = 0."""
    start = {key: torch.zeros_like(tau) for key, tau in taus[0].items()}
    return Problem(start, {f"task{t}": tau for t, tau in enumerate(taus)}, **fields)


def draw(tasks: int = 3, seed: int = 0, dtype=torch.float64, **fields) -> Problem:
    """Small encoders with a frozen text-side tensor, a buffer, and tensors of 0, 1, 2 and 4 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv1.weight": (4, 3, 2, 2), "scale": (), "proj": (7, 5), "ln.bias": (6,)}

    def weights(scale: float) -> dict[str, torch.Tensor]:
        drawn = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
        return {f"model.visual.{name}": scale * tensor for name, tensor in drawn.items()}

    frozen = {"model.text_projection": torch.ones(3, 2, dtype=dtype), "model.position_ids": torch.arange(3)}
    start = weights(1.0)
    ends = {f"task{t}": {k: start[k] + tau for k, tau in weights(0.1 * (t + 1)).items()} for t in range(tasks)}
    return Problem(start | frozen, {task: end | frozen for task, end in ends.items()}, **fields)


def stacked(problem: Problem) -> torch.Tensor:
    """Task vectors, (tasks, weights)."""
    return torch.stack([flat(problem.vector(task)) for task in problem.tasks])


def merged(method, problem: Problem, task: str = "task0") -> torch.Tensor:
    merge = method.merge(problem)
    return flat(merge.vector(task, merge.settings[0]))


def assert_as_released(case: str, ours: torch.Tensor, released: np.ndarray) -> None:
    """Bit for bit; but the released sum over 20 tasks is torch's, which adds 16 and then 4 of them."""
    if case == "twenty":
        torch.testing.assert_close(ours, torch.from_numpy(released), rtol=2e-6, atol=1e-7)
    else:
        assert torch.equal(ours, torch.from_numpy(released))


# ---- every new method


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("scope", ["visual", "published"])
@pytest.mark.parametrize("tasks", [1, 3])
def test_a_method_takes_any_problem(name, scope, tasks):
    """One task or more, frozen tensors in the vector or not: finite, of the problem's names, shapes and type."""
    load_methods()
    given = replace(tower_problem(scope=scope), seed=1)
    given = replace(given, finetuned=dict(list(given.finetuned.items())[:tasks]))
    method = METHODS[name]()
    merge = method.merge(given)
    for task in given.tasks:
        for setting in (merge.settings[0], merge.settings[-1]):
            vector = merge.vector(task, setting).vector
            assert {key: tensor.shape for key, tensor in vector.items()} == given.shapes
            assert all(tensor.dtype == given.dtype and tensor.isfinite().all() for tensor in vector.values())
            assert not any(tensor.any() for key, tensor in vector.items() if "visual" not in key)
    assert merge.per_task == (name in ("emr", "mag_prune"))
    merge.finish({task: merge.settings[0] for task in given.tasks})


@pytest.mark.parametrize("name", NEW)
def test_a_vector_of_zeros_among_the_tasks_gives_no_nan(name):
    given = tower_problem()
    given = replace(given, finetuned={**given.finetuned, "still": dict(given.pretrained)})
    merge = METHODS[name]().merge(given)
    for task in given.tasks:
        assert flat(merge.vector(task, merge.settings[0])).isfinite().all()


@pytest.mark.parametrize(
    "made, named",
    [
        (lambda: Emr(rescale="layer"), "global, published"),
        (lambda: Dare(p=1.0), "share of the weights"),
        (lambda: Dare(then="mean"), "sum, ties"),
        (lambda: Dare(draws=1), "at least 2"),
        (lambda: Breadcrumbs(density=0), "share of the weights"),
        (lambda: Breadcrumbs(gamma=1), "share of the weights"),
        (lambda: Breadcrumbs(by="layer"), "tensor, row"),
        (lambda: Della(density=0.95, epsilon=0.08), "above 0 and density . epsilon at most 1; got 0.95, 0.08$"),
        (lambda: Della(rescale="l2"), "inverse, l1, none"),
        (lambda: Pcb(variant="paper"), "pcb_ES, pcb, pcb-merging"),
        (lambda: Pcb(clamp=0.5), "share of the weights"),
        (lambda: Pcb(ratio=0), "share of the weights"),
        (lambda: Fisher(estimator="empirical"), "diagonal, published"),
        (lambda: Fisher(classes="one"), "sampled, all"),
        (lambda: Fisher(split="training"), "train, val, test"),
        (lambda: Fisher(floor_by="add"), "max, sum"),
        (lambda: Fisher(floor=0.0), "above 0"),
        (lambda: Fisher(images=0), "at least 1"),
        (lambda: MagnitudePruning(k=0), "percent"),
        (lambda: Sum(k=101), "percent"),
    ],
)
def test_a_wrong_option_is_told(made, named):
    with pytest.raises(UsageError, match=named):
        made().merge(tower_problem())


# ---- EMR


@pytest.mark.parametrize("case", CASES)
def test_emr_is_the_released_one(golden, case):
    problem = problem_of(golden, case)
    unified = elected_vector(problem)
    assert_as_released(case, flat(unified), golden[f"{case}/emr_unified"])
    merge = Emr().merge(problem)
    bits = torch.from_numpy(np.unpackbits(golden[f"{case}/emr_masks"], axis=-1, count=127).astype(bool))
    assert torch.equal(torch.stack([flat(merge.mask(task, 1.0).bits) for task in problem.tasks]), bits)
    for rule in ("global", "published"):
        released = golden[f"{case}/emr_rescale_{rule}"]
        ours = np.array(list(rescalers(problem, unified, rule).values()))
        still = np.isnan(released)  # 0/0 of a vector of zeros
        np.testing.assert_allclose(ours[~still], released[~still], rtol=2e-6)
        assert (ours[still] == 1).all() and still.sum() == (case == "zero")


@pytest.mark.parametrize("rule", ["global", "published"])
def test_emr_of_one_task_is_its_model(rule):
    problem = draw(1)
    merge = Emr(rescale=rule).merge(problem)
    assert merge.info["rescale"] == {"task0": 1.0}
    assert torch.equal(flat(merge.vector("task0", 1.0)), stacked(problem)[0])


def test_emr_restores_the_length_of_every_task_vector():
    """Σ|λ_t m_t ∘ τ_uni| = Σ|τ_t|, over all weights or as a sum of the tensors' means; the two λ_t differ."""
    problem = draw(4)
    found = {rule: Emr(rescale=rule).merge(problem) for rule in ("global", "published")}
    for task in problem.tasks:
        tau = problem.vector(task).vector
        kept = found["global"].vector(task, 1.0).vector
        torch.testing.assert_close(flat(kept).abs().sum(), flat(tau).abs().sum())
        kept = found["published"].vector(task, 1.0).vector
        means = [sum(tensor.abs().mean() for tensor in named.values()) for named in (kept, tau)]
        torch.testing.assert_close(*means)
        assert found["global"].scales[task] != pytest.approx(found["published"].scales[task], rel=1e-3)


def test_emr_elects_masks_and_rescales_by_its_definition():
    problem = draw(5)
    tau = stacked(problem)
    gamma = torch.where(tau.sum(0) > 0, 1.0, -1.0).double()
    agree = tau * gamma > 0
    unified = gamma * (tau.abs() * agree).amax(0)
    merge = Emr().merge(problem)
    for t, task in enumerate(problem.tasks):
        lam = tau[t].abs().sum() / (agree[t] * unified).abs().sum()
        torch.testing.assert_close(flat(merge.vector(task, 1.0)), lam * agree[t] * unified)
    assert merge.storage_bits == problem.storage_masked() + 5 * 32


def test_emr_of_a_task_that_lost_every_weight_is_theta0():
    one, two = {"model.visual.w": torch.tensor([3.0, 4.0])}, {"model.visual.w": torch.tensor([-1.0, -2.0])}
    merge = Emr().merge(from_vectors(one, two))
    assert merge.info["rescale"] == {"task0": 1.0, "task1": 1.0}
    assert not flat(merge.vector("task1", 1.0)).any()


def test_emr_amplifies_a_task_that_lost_its_large_weight():
    one, two = {"model.visual.w": torch.tensor([11.0, 1.0])}, {"model.visual.w": torch.tensor([-10.0, 1.0])}
    scales = Emr().merge(from_vectors(one, two)).scales
    assert scales == {"task0": 1.0, "task1": 11.0}


# ---- MagMax


@pytest.mark.parametrize("case", CASES)
def test_magmax_is_the_released_one(golden, case):
    assert_as_released("", flat(largest(problem_of(golden, case))), golden[f"{case}/magmax"])


def test_magmax_is_emr_without_the_election():
    """The larger of what either sign would elect; τ_uni itself where the largest entry has the elected sign."""
    problem = draw(5)
    tau, magmax, unified = stacked(problem), flat(largest(problem)), flat(elected_vector(problem))
    both = torch.stack([tau.clamp(min=0).amax(0), tau.clamp(max=0).amin(0)])
    assert torch.equal(magmax, both.gather(0, both.abs().argmax(0, keepdim=True))[0])
    same = magmax.sign() == unified.sign()
    assert torch.equal(magmax[same], unified[same]) and 0 < same.sum() < len(same)
    positive = from_vectors(*({k: t.abs() for k, t in problem.vector(task).vector.items()} for task in problem.tasks))
    assert torch.equal(flat(largest(positive)), flat(elected_vector(positive)))


def test_of_equal_magnitudes_magmax_takes_the_later_task():
    one, two = {"model.visual.w": torch.tensor([1.0, -2.0])}, {"model.visual.w": torch.tensor([-1.0, 1.0])}
    assert merged(MagMax(alphas=[1.0]), from_vectors(one, two)).tolist() == [-1, -2]


# ---- DARE


def test_dare_keeps_the_mean():
    tau, p, draws = torch.randn(40, dtype=torch.float64), 0.7, 4000
    found = torch.stack([dropped(tau, p, True, torch.Generator().manual_seed(n)) for n in range(draws)])
    assert set(torch.unique((found != 0) == torch.isclose(found, tau / (1 - p))).tolist()) == {True}
    error = (found.mean(0) / tau - 1).abs()  # sd of one draw: √(p / (1 − p))
    assert float(error.max()) < 5 * (p / (1 - p) / draws) ** 0.5
    assert float((found != 0).double().mean()) == pytest.approx(1 - p, abs=0.005)


def test_dare_without_rescaling_keeps_what_it_keeps():
    tau = torch.randn(1000)
    kept = dropped(tau, 0.4, False, torch.Generator().manual_seed(0))
    assert torch.equal(kept, tau.where(kept != 0, 0.0))


def test_dare_that_drops_nothing_is_its_base_method():
    problem = draw(3)
    assert torch.equal(merged(Dare(p=0.0, alphas=[1.0]), problem), flat(multi_task_vector(problem)))
    ties = flat(ties_vector(problem, 20, "mean"))
    assert torch.equal(merged(Dare(p=0.0, then="ties", k=20, alphas=[1.0]), problem), ties)


@pytest.mark.parametrize("method", [Dare(alphas=[1.0]), Della(then="sum", alphas=[1.0])])
def test_draws_differ_and_can_be_made_again(method):
    problem = draw(3, seed=2)
    merge = method.merge(problem)
    assert isinstance(merge, Drawn) and merge.draws == 5 and replace(method, draws=3).merge(problem).draws == 3
    first, again, second = (flat(merge.draw(n).vector("task0", 1.0)) for n in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert torch.equal(first, flat(merge.vector("task2", 1.0)))
    other = method.merge(replace(problem, seed=7))
    assert not torch.equal(first, flat(other.draw(0).vector("task0", 1.0)))


def test_tasks_lose_different_weights():
    tau = {"model.visual.w": torch.ones(1000)}
    total = merged(Dare(p=0.5, alphas=[1.0]), from_vectors(tau, tau))
    assert set(total.tolist()) == {0.0, 2.0, 4.0}


WIDE = dict(density=0.5, epsilon=0.3)


@pytest.mark.parametrize(
    "method, of_tensor",
    [
        (Dare(p=0.4, rescale=False), partial(dropped, p=0.4, rescale=False)),
        (Dare(p=0.4), partial(dropped, p=0.4, rescale=True)),
        (Della(then="sum", density=0.5, epsilon=0.3, rescale="l1"), partial(magnitude_dropped, rescale="l1", **WIDE)),
        (
            Della(then="sum", density=0.5, epsilon=0.3, rescale="none"),
            partial(magnitude_dropped, rescale="none", **WIDE),
        ),
        (Breadcrumbs(density=0.4, gamma=0.2, by="row"), lambda tau, generator: middle(tau, 0.4, 0.2, "row")),
        (Breadcrumbs(density=0.3, gamma=0.1), lambda tau, generator: middle(tau, 0.3, 0.1, "tensor")),
    ],
)
def test_the_options_of_a_method_are_those_of_each_tensor(method, of_tensor):
    load_methods()
    problem = draw(3, seed=2)
    expected = 0.0
    for task in problem.tasks:
        seeds = {key: event_seed(0, method.name, 0, task, key) for key in problem.keys}
        generators = {key: torch.Generator().manual_seed(seed) for key, seed in seeds.items()}
        tau = {key: of_tensor(problem.tensor(task, key), generator=generators[key]) for key in problem.keys}
        expected = expected + flat(tau)
    torch.testing.assert_close(flat(method.merge(problem).vector("task0", 1.0)), expected)


@pytest.mark.parametrize("k, reduce", [(100, "mean"), (20, "sum")])
def test_sparse_vectors_are_merged_as_if_they_lay_on_disk(k, reduce):
    """TIES reads a tensor twice, for the threshold and for the sum, and must meet the same draw."""
    problem = draw(4)

    def sparsify(task, key, tau):
        return dropped(tau, 0.5, True, torch.Generator().manual_seed(event_seed(0, "dare", 0, task, key)))

    sparse = Sparse.of(problem, sparsify)
    solid = from_vectors(*(sparse.vector(task).vector for task in problem.tasks))
    expected = flat(ties_vector(solid, k, reduce))
    assert torch.equal(merged(Dare(then="ties", k=k, reduce=reduce, alphas=[1.0]), problem), expected)
    top = merged(Dare(then="sum", k=k, alphas=[1.0]), problem)
    assert torch.equal(top, flat(multi_task_vector(solid, k)))


@pytest.mark.parametrize("then", ["sum", "ties"])
@pytest.mark.parametrize("method", [Dare, Breadcrumbs, Della])
def test_sparse_merges_have_the_coefficients_that_are_asked_for(method, then):
    merge = method(then=then, alphas=[0.3, 0.7]).merge(draw(2))
    assert merge.settings == (0.3, 0.7)
    assert not isinstance(merge, Drawn) or merge.draw(1).settings == (0.3, 0.7)


# ---- Breadcrumbs


@pytest.mark.parametrize("case", CASES)
def test_breadcrumbs_are_the_released_ones(golden, case):
    """Where magnitudes coincide the released codes do not say which of them goes, but how many stay."""
    problem = problem_of(golden, case)
    for t, task in enumerate(problem.tasks):
        tau = problem.vector(task).vector
        row = flat({key: middle(tensor, 0.3, 0.1, "row") for key, tensor in tau.items()})
        tensor = middle(flat(tau), 0.3, 0.1, "tensor")
        for ours, rule in ((row, "row"), (tensor, "tensor")):
            released = torch.from_numpy(golden[f"{case}/breadcrumbs_{rule}"][t])
            if case in ("dyadic", "zero", "cancel"):
                torch.testing.assert_close(ours.abs().sort().values, released.abs().sort().values)
            else:
                assert torch.equal(ours, released)


def test_breadcrumbs_keep_their_density_and_leave_the_largest_out():
    tau = torch.randn(30, 40)
    for density, gamma in ((0.15, 0.006), (0.9, 0.01), (0.5, 0.0), (0.95, 0.2)):
        kept = middle(tau, density, gamma, "tensor")
        assert kept.count_nonzero() == int(density * 1200)
        gone = min(int(gamma * 1200), 1200 - int(density * 1200))  # no room for more
        order = tau.abs().flatten().sort(descending=True).values
        assert float(kept.abs().max()) == float(order[gone])
        assert (middle(tau, density, gamma, "row") != 0).sum(1).unique().tolist() == [int(density * 40)]


def test_small_tensors_are_not_dropped_as_in_mergekit():
    """With γn below 1 mergekit's slice [n_bot:-0] is empty; the paper's rule keeps density·n."""
    bias = torch.randn(50)
    assert middle(bias, 0.15, 0.01, "tensor").count_nonzero() == 7


def test_rows_shorter_than_one_over_density_are_dropped_whole_as_released():
    kernel = torch.randn(8, 3, 4, 4)
    assert not middle(kernel, 0.15, 0.006, "row").any()
    assert middle(kernel, 0.15, 0.006, "tensor").count_nonzero() == int(0.15 * kernel.numel())


# ---- DELLA


@pytest.mark.parametrize("case", ["random", "one", "twenty"])
def test_probabilities_of_della_are_the_released_ones(golden, case):
    tau = problem_of(golden, case).tensor("task0", "model.visual.c")
    torch.testing.assert_close(keep_probabilities(tau, 0.7, 0.07), torch.from_numpy(golden[f"{case}/della"]))


def test_della_keeps_the_mean_and_its_density():
    tau, draws = torch.randn(5, 9, dtype=torch.float64), 4000
    q = keep_probabilities(tau, 0.6, 0.3)
    torch.testing.assert_close(q.mean(1), torch.full((5,), 0.6, dtype=torch.float64))
    assert torch.equal(q.argsort(1), tau.abs().argsort(1)) and float(q.min()) == pytest.approx(0.3)
    seeds = range(draws)
    found = torch.stack([magnitude_dropped(tau, 0.6, 0.3, "inverse", torch.Generator().manual_seed(n)) for n in seeds])
    error = (found.mean(0) / tau - 1).abs()
    assert bool((error < 5 * ((1 - q) / q / draws).sqrt()).all())
    assert float((found != 0).double().mean()) == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("rescale", ["inverse", "l1", "none"])
def test_dellas_rescaling(rescale):
    tau = torch.randn(20, 30, dtype=torch.float64)
    found = magnitude_dropped(tau, 0.5, 0.2, rescale, torch.Generator().manual_seed(0))
    factor = (found / tau)[found != 0]
    if rescale == "inverse":
        torch.testing.assert_close(factor, 1 / keep_probabilities(tau, 0.5, 0.2)[found != 0])
    elif rescale == "l1":
        torch.testing.assert_close(found.abs().sum(), tau.abs().sum())
        torch.testing.assert_close(factor, factor[:1].expand(factor.shape))
    else:
        torch.testing.assert_close(factor, torch.ones_like(factor))


def test_a_convolution_has_a_row_for_each_output():
    q = keep_probabilities(torch.randn(4, 3, 2, 2), 0.5, 0.2).flatten(1)
    torch.testing.assert_close(q.amin(1), torch.full((4,), 0.3))
    torch.testing.assert_close(q.amax(1), torch.full((4,), 0.7))
    assert all(len(row.unique()) == 12 for row in q)
    assert keep_probabilities(torch.tensor(3.0), 0.5, 0.2) == 0.5


# ---- PCB


@pytest.mark.parametrize("case", [case for case in CASES if case != "zero"])
@pytest.mark.parametrize("variant", ["pcb_ES", "pcb", "pcb-merging"])
def test_pcb_is_the_released_one(golden, case, variant):
    """But for the order of sums over tasks, and where every score of a task is equal, which they divide 0 by 0 for."""
    ours = merged(Pcb(variant=variant, alphas=[1.0]), problem_of(golden, case))
    released = torch.from_numpy(golden[f"{case}/{variant}"])
    if case == "cancel":
        assert released.isnan().all() and not ours.any()
        return
    torch.testing.assert_close(ours, released, rtol=1e-4, atol=1e-6)


def test_the_three_programs_differ(golden):
    found = [
        merged(Pcb(variant=v, alphas=[1.0]), problem_of(golden, "random")) for v in ("pcb_ES", "pcb", "pcb-merging")
    ]
    lengths = [float((one - two).norm() / one.norm()) for one, two in zip(found, found[1:] + found[:1])]
    assert min(lengths) > 0.1


@pytest.mark.parametrize("variant", ["pcb_ES", "pcb", "pcb-merging"])
def test_pcb_does_not_depend_on_the_order_of_tasks(variant):
    problem = draw(4)
    turned = replace(problem, finetuned=dict(reversed(problem.finetuned.items())))
    method = Pcb(variant=variant, alphas=[1.0])
    torch.testing.assert_close(merged(method, problem), merged(method, turned))


def test_pcb_of_one_task_is_the_top_of_its_vector():
    problem = draw(1, seed=4)
    tau = stacked(problem)[0]
    found = merged(Pcb(clamp=0.0, ratio=0.25, alphas=[1.0]), problem)
    kept = found != 0
    torch.testing.assert_close(found[kept], tau[kept])
    assert kept.sum() == len(tau) - int(len(tau) * 0.75) - 1  # the smallest of the top has score 0
    assert float(tau[kept].abs().min()) > float(tau[~kept].abs().max())


# ---- MetaGPT, Model Stock


def test_metagpt_minimises_its_bound_whatever_the_angles():
    problem = draw(4)
    tau = stacked(problem)
    lam = torch.tensor(coefficients(problem), dtype=torch.float64, requires_grad=True)
    squares = tau.square().sum(1)
    bound = (squares * ((lam @ tau) - tau).square().sum(1)).sum()
    (gradient,) = torch.autograd.grad(bound, lam)
    assert float(gradient.abs().max()) < 1e-12 * bound.item()
    away = sum(squares[t] * ((lam.detach() + 0.01) @ tau - tau[t]).square().sum() for t in range(4))
    assert float(away) > bound.item()
    torch.testing.assert_close(merged(MetaGPT(), problem), (squares / squares.sum()) @ tau)


def test_metagpt_of_equal_lengths_is_the_average():
    tau = torch.randn(3, 60, dtype=torch.float64)
    tau /= tau.norm(dim=1, keepdim=True)
    problem = from_vectors(*({"model.visual.w": row} for row in tau))
    torch.testing.assert_close(merged(MetaGPT(), problem), tau.mean(0))
    assert coefficients(from_vectors({"model.visual.w": torch.zeros(2)})) == [1.0]


def test_model_stock_of_orthogonal_vectors_is_theta0():
    tau, _ = torch.linalg.qr(torch.randn(50, 4, dtype=torch.float64))
    problem = from_vectors(*({"model.visual.w": row} for row in tau.T))
    assert float(merged(ModelStock(), problem).norm()) < 1e-12
    assert float(merged(Average(), problem).norm()) == pytest.approx(0.5)


def test_model_stock_of_equal_vectors_is_their_model():
    tau = {"model.visual.w": torch.randn(50, dtype=torch.float64)}
    for tasks in (1, 2, 5):
        torch.testing.assert_close(merged(ModelStock(), from_vectors(*[tau] * tasks)), tau["model.visual.w"])


@pytest.mark.parametrize("case", ["random", "twenty", "dyadic"])
def test_model_stock_of_two_is_the_released_one(golden, case):
    """But for the tensor of one weight: there the cosine is 1 or −1, and −1 is the pole of the formula."""
    problem = problem_of(golden, case, tasks=2)
    ours = ModelStock(clamp=False).merge(problem).vector("task0", 1.0).vector
    released = cut(golden[f"{case}/model_stock_two"])
    for key in ("model.visual.a", "model.visual.c"):
        torch.testing.assert_close(problem.pretrained[key] + ours[key], released[key], rtol=1e-5, atol=1e-6)


def test_model_stock_stays_between_theta0_and_the_mean():
    rows = torch.tensor([[1.0, 0.0], [-0.6, 0.8]])
    cosine = mean_cosine(rows)
    assert cosine == pytest.approx(-0.6)
    assert interpolation(cosine, 2, clamp=True) == 0
    assert interpolation(cosine, 2, clamp=False) == pytest.approx(-3)
    assert interpolation(0.5, 4, True) == pytest.approx(0.8)  # 4 · .5 / (3 · .5 + 1)
    assert mean_cosine(torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]])) == pytest.approx(1 / 3)
    assert all(0 <= interpolation(c, 8, True) <= 1 for c in torch.linspace(-1, 1, 21).tolist())


# ---- pruning, and the sum of the top k percent


def test_pruning_keeps_the_top_of_each_vector():
    problem = draw(3)
    tau = stacked(problem)
    merge = MagnitudePruning(k=25).merge(problem)
    kept = 0
    for t, task in enumerate(problem.tasks):
        found = flat(merge.vector(task, 1.0))
        mask = flat(magnitude_mask(problem, task, 25).bits)
        assert torch.equal(found, tau[t] * mask) and mask.sum() == found.count_nonzero()
        kept += int(mask.sum())
    assert merge.per_task and merge.storage_bits == 32 * (problem.num_parameters_total + kept) + 3 * tau.shape[1]
    whole = MagnitudePruning(k=100).merge(problem)
    assert torch.equal(flat(whole.vector("task1", 1.0)), tau[1])


@pytest.mark.parametrize("case", CASES)
def test_the_sum_of_the_top_k_percent_is_the_released_one(golden, case):
    problem = problem_of(golden, case)
    tau = torch.stack([flat(problem.vector(task)) for task in problem.tasks])
    masks = torch.from_numpy(np.unpackbits(golden[f"{case}/mag_masking"], axis=-1, count=127).astype(bool))
    for k, mask in zip((1, 10, 100), masks, strict=True):
        expected = (tau * mask).sum(0)
        assert_as_released(case, merged(Sum(k=k, alphas=[1.0]), problem), expected.numpy())
        torch.testing.assert_close(merged(Average(k=k), problem), expected / len(tau))


def test_the_sum_keeps_its_name():
    assert (label(Sum()), label(Average()), label(Sum(k=20))) == ("sum", "average", "sum_k=20")


# ---- Fisher


class Tower(nn.Module):
    """An image tower with attention, a text-side tensor and an integer buffer, named as open_clip's are."""

    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.visual = nn.ModuleDict(
            {"embed": nn.Linear(3, 8), "attn": nn.MultiheadAttention(8, 2, batch_first=True), "ln": nn.LayerNorm(8)}
        )
        self.model.logit_scale = nn.Parameter(torch.zeros(()))
        self.model.register_buffer("position_ids", torch.arange(3))

    def forward(self, images):
        x = self.model.visual["embed"](images)
        x = x + self.model.visual["attn"](x, x, x, need_weights=False)[0]
        return self.model.visual["ln"](x).mean(1)


def tower() -> Tower:
    torch.manual_seed(0)
    return Tower().double().eval().requires_grad_(False)


def head(task: str) -> nn.Module:
    torch.manual_seed(event_seed(task) % 2**31)
    return nn.Linear(8, 3).double().requires_grad_(False)


def images(task: str, split: str, batch_size: int, number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(event_seed(task, split, number))
    return torch.randn(batch_size, 4, 3, generator=generator).double()


def tower_problem(encoder=tower, batch=images, **fields) -> Problem:
    start = tower().state_dict()
    ends = {}
    for place, task in enumerate(("task0", "task1", "task2")):
        torch.manual_seed(place + 1)
        ends[task] = {n: w + 0.2 * torch.randn_like(w) if n.startswith("model.visual") else w for n, w in start.items()}
    return Problem(start, ends, images=Unlabelled(encoder, batch, head), seed=3, **fields)


def dense_fisher(problem: Problem, task: str, encoder: nn.Module, count: int) -> dict[str, torch.Tensor]:
    """1/n Σ_x Σ_y p(y|x) (∂ log p(y|x) / ∂θ)² from the whole Jacobian of every image."""
    theta = {key: problem.finetuned[task][key] for key in problem.keys}
    found = {key: torch.zeros_like(weight) for key, weight in theta.items()}
    classifier = head(task)
    for image in images(task, "train", count, 0):

        def log_p(theta, image=image):
            return classifier(functional_call(encoder, theta, (image[None],))).log_softmax(-1)[0]

        with sdpa_kernel(SDPBackend.MATH):
            p, jacobian = log_p(theta).exp(), jacrev(log_p)(theta)
        for key in found:
            found[key] += torch.einsum("c,c...->...", p, jacobian[key].square()) / count
    return found


ENCODERS = {"standard": tower, "linear": lambda: LinearizedModel(tower())}


@pytest.mark.parametrize("mode", ENCODERS)
@pytest.mark.parametrize("pass_size", [1, 4, 1000])
def test_the_diagonal_is_that_of_the_dense_fisher(mode, pass_size):
    problem = tower_problem(ENCODERS[mode])
    method = Fisher(classes="all", images=6, batch_size=6, pass_size=pass_size)
    encoder, passes = ENCODERS[mode](), []
    encoder.register_forward_hook(lambda *_: passes.append(1))
    found = method.information(problem, "task1", encoder)
    assert len(passes) == 1 + math.ceil(6 * 3 / pass_size), "one for p, and one for as many images and classes"
    expected = dense_fisher(problem, "task1", ENCODERS[mode](), 6)
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key])


def test_a_sampled_class_gives_the_exact_mean():
    problem, encoder, classifier = tower_problem(), tower(), head("task0")
    exact = flat(Fisher(classes="all", images=1, batch_size=1).information(problem, "task0", encoder))
    theta = {key: problem.finetuned["task0"][key] for key in problem.keys}
    one = images("task0", "train", 1, 0).expand(1000, -1, -1)

    def logits(theta, images):
        return classifier(functional_call(encoder, theta, (images,)))

    generator = torch.Generator().manual_seed(0)
    total = fisher_module.diagonal(logits, theta, one, "sampled", 1000, generator)
    torch.testing.assert_close(flat(total) / 1000, exact, rtol=0.15, atol=0.15 * float(exact.max()))


@pytest.mark.parametrize("seed", [3, None])
def test_a_sampled_fisher_is_of_one_drawn_class_an_image(seed):
    """The mean of the squared gradients of log p(y|x), batch by batch from one generator; no seed counts as 0."""
    problem, encoder, total = replace(tower_problem(), seed=seed), tower(), 0.0
    found = Fisher(images=6, batch_size=4).information(problem, "task1", encoder)
    theta = {key: problem.finetuned["task1"][key].clone().requires_grad_() for key in problem.keys}
    generator = torch.Generator().manual_seed(event_seed(seed or 0, "fisher", "task1"))
    for batch in (images("task1", "train", 4, 0), images("task1", "train", 4, 1)[:2]):
        log_p = head("task1")(functional_call(encoder, theta, (batch,))).log_softmax(-1)
        for row, drawn in zip(log_p, torch.multinomial(log_p.detach().exp(), 1, generator=generator)):
            gradients = torch.autograd.grad(row[drawn], list(theta.values()), torch.ones(1).double(), retain_graph=True)
            total = total + torch.cat([gradient.flatten() for gradient in gradients]).square() / 6
    torch.testing.assert_close(torch.cat([found[key].flatten() for key in theta]), total)


def test_sampled_classes_are_functions_of_the_seed_and_the_task():
    same = tower().state_dict()
    given = Problem(same, {"task0": same, "task1": same}, seed=3)
    given = replace(
        given, images=Unlabelled(tower, lambda task, *which: images("one", *which), lambda task: head("one"))
    )
    method = Fisher(images=8, batch_size=8)
    first, again, other = (flat(method.information(given, task, tower())) for task in ("task0", "task0", "task1"))
    assert torch.equal(first, again) and not torch.allclose(first, other)
    assert not torch.allclose(first, flat(method.information(replace(given, seed=4), "task0", tower())))


def test_the_published_estimator_squares_a_sum():
    """Its formula by an ordinary backward pass, batch by batch; and how little of it is the Fisher information."""
    problem, encoder = tower_problem(), tower()
    found = Fisher(estimator="published", images=6, batch_size=4).information(problem, "task1", encoder)
    theta = {key: problem.finetuned["task1"][key].clone().requires_grad_() for key in problem.keys}
    expected = dict.fromkeys(theta, 0.0)
    for batch in (images("task1", "train", 4, 0), images("task1", "train", 4, 1)[:2]):
        logits = head("task1")(functional_call(encoder, theta, (batch,)))
        p = logits.softmax(-1)
        objective = (p.detach().sqrt() * p.log()).sum()
        for key, gradient in zip(theta, torch.autograd.grad(objective, list(theta.values())), strict=True):
            expected[key] = expected[key] + gradient.square() / 6
    for key in theta:
        torch.testing.assert_close(found[key], expected[key])
    right = flat(Fisher(classes="all", images=6, batch_size=4).information(problem, "task1", encoder))
    ratio = flat(found) / right
    assert float(ratio.quantile(0.9) / ratio.quantile(0.1)) > 10


def test_equal_fishers_give_the_average(monkeypatch):
    problem = draw(3, images=tower_problem().images)
    one = {key: torch.rand(shape, dtype=torch.float64) + 0.1 for key, shape in problem.shapes.items()}
    monkeypatch.setattr(Fisher, "information", lambda self, problem, task, encoder: one)
    average = stacked(problem).mean(0)
    for method in (Fisher(), Fisher(normalise=False), Fisher(floor_by="sum")):
        torch.testing.assert_close(merged(method, problem), average)


def test_a_weight_that_no_task_depends_on_is_averaged():
    """The key's bias of attention adds the same to all logits of a softmax: its Fisher is 0."""
    problem = tower_problem()
    method = Fisher(normalise=False, images=8, floor=1e-12)
    found = method.merge(problem).vector("task0", 1.0).vector["model.visual.attn.in_proj_bias"][8:16]
    average = sum(problem.tensors("model.visual.attn.in_proj_bias"))[8:16] / 3
    torch.testing.assert_close(found, average)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("normalise", [True, False])
def test_fishers_are_merged_as_released(golden, case, normalise, monkeypatch):
    problem = replace(problem_of(golden, case), images=tower_problem().images)
    fishers = dict(zip(problem.tasks, map(cut, golden[f"{case}/fisher"]), strict=True))
    monkeypatch.setattr(Fisher, "information", lambda self, problem, task, encoder: fishers[task])
    ours = merged(Fisher(normalise=normalise, floor_by="sum"), problem)
    released = torch.from_numpy(golden[f"{case}/fisher_merged_{normalise}"]) - flat(problem.pretrained)
    torch.testing.assert_close(ours, released, rtol=1e-4, atol=1e-6)


def test_the_floor_of_the_authors_is_a_maximum(monkeypatch):
    tau = [{"model.visual.w": torch.tensor([1.0, 1.0])}, {"model.visual.w": torch.tensor([0.0, 0.0])}]
    fishers = {"task0": torch.tensor([3.0, 0.0]), "task1": torch.tensor([1.0, 0.0])}
    problem = replace(from_vectors(*tau), images=tower_problem().images)
    monkeypatch.setattr(Fisher, "information", lambda self, p, task, e: {"model.visual.w": fishers[task]})
    by = partial(Fisher, floor=2.0, normalise=False)  # (3, 2) and (2, 2); (5, 2) and (3, 2)
    torch.testing.assert_close(merged(by(floor_by="max"), problem), torch.tensor([3 / 5, 0.5]))
    torch.testing.assert_close(merged(by(floor_by="sum"), problem), torch.tensor([5 / 8, 0.5]))
    torch.testing.assert_close(merged(Fisher(floor=2.0), problem), torch.tensor([0.5, 0.4]))  # λ_t = 1/3 and 1/2
    weighted = merged(Fisher(floor=1e-6, floor_by="max"), problem)  # λ_t = 1/3 and 1
    torch.testing.assert_close(weighted, torch.tensor([0.5, 0.25]))


def test_the_norm_of_a_fisher_is_taken_in_float64(monkeypatch):
    """In float32 the squares of these entries, each of which it holds, are infinite."""
    tau = [{"model.visual.w": torch.ones(2)}, {"model.visual.w": torch.zeros(2)}]
    given = replace(from_vectors(*tau), images=tower_problem().images)
    fishers = {"task0": torch.tensor([3e20, 4e20]), "task1": torch.tensor([4e25, 3e25])}
    monkeypatch.setattr(Fisher, "information", lambda self, p, task, e: {"model.visual.w": fishers[task]})
    torch.testing.assert_close(merged(Fisher(), given), torch.tensor([3 / 7, 4 / 7]))


@pytest.mark.parametrize("asked, sizes", [(10, [4, 4, 2]), (3, [3]), (8, [4, 4])])
def test_as_many_images_as_asked_for(asked, sizes):
    seen = []

    def batch(task, split, batch_size, number):
        assert (split, batch_size) == ("val", 4)
        seen.append(number)
        return images(task, split, batch_size, number)

    method = Fisher(images=asked, batch_size=4, split="val")
    assert [len(part) for part in method.batches(tower_problem(batch=batch), "task0")] == sizes
    assert seen == list(range(len(sizes)))


def test_without_images_there_is_no_fisher():
    with pytest.raises(UsageError, match="fisher needs unlabelled images"):
        Fisher().merge(replace(tower_problem(), images=None))
