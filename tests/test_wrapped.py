"""LiNeS and SVC around other methods: released functions (see test_spectral.py), closed forms, and what is refused."""

from dataclasses import dataclass
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from hydra.core.config_store import ConfigStore
from merging_problems import (
    BLOCK_MATRICES,
    MATRICES,
    PROJ,
    QKV,
    VISUAL,
    assert_equal,
    cut,
    draw,
    one_matrix,
    problem_of,
    random,
)
from omegaconf import OmegaConf

from src.args import shared_flags
from src.merging import registry
from src.merging.base import Affine, Drawn, Merge, Method, Problem, Scaled, scaled
from src.merging.consensus import Consensus
from src.merging.lines import BETAS, Lines, depths
from src.merging.matrices import Deltas, Matrix
from src.merging.registry import load_methods, register
from src.merging.svc import SingularValueCalibration, responses
from src.merging.task_arithmetic import Average, multi_task_vector
from src.merging.ties import Ties, ties_vector
from src.task_vectors import TaskVector

GOLDEN = Path(__file__).parent / "golden" / "spectral.npz"
CASES = ("one", "three")
W, REST = f"{VISUAL}w", f"{VISUAL}ln_pre.weight"
SVC = SingularValueCalibration


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(array).double() for name, array in arrays.items()}


def released_problem(golden, case: str, **fields) -> Problem:
    ends = {f"task{t}": cut(theta) for t, theta in enumerate(golden[f"{case}/theta"])}
    return Problem(cut(golden[f"{case}/theta0"]), ends, **fields)


def assert_same(ours: TaskVector, expected) -> None:
    for key, tensor in ours.vector.items():
        assert_equal(tensor, expected[key])


def every_second(total: TaskVector) -> TaskVector:
    """A vector whose norm is not the sum's: the weights at odd places of each tensor."""
    return total.map(lambda tensor: (tensor.flatten() * (torch.arange(tensor.numel()) % 2)).view(tensor.shape))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scope", ["visual", "published"])
def test_lines_is_the_released_one(golden, case, scope):
    problem = released_problem(golden, case, scope=scope)
    assert_same(Lines().merge(problem).vector("", 0.7), cut(golden[f"{case}/lines_sum"]))
    half = Lines().wrapped(problem, every_second(multi_task_vector(problem)), (1.0,))
    assert_same(half.vector("", 0.7), cut(golden[f"{case}/lines_half"]))


def test_lines_without_a_slope_is_the_average():
    problem = draw(3)
    average = Average().merge(problem).vector("", 1 / 3).vector
    for method in (Lines(), Lines(base="average"), Lines(base="svc", base_options={"base": "sum", "alpha": 1.0})):
        merge = method.merge(problem)
        assert merge.info["lines_alpha"] > 0
        if method.base != "svc":
            assert_same(merge.vector("", 0.0), average)


def test_lines_has_the_l1_norm_of_the_average_before_its_slope():
    problem = draw(4)
    ours = Lines(base="ties", base_options={"k": 10}).merge(problem)
    norms = [
        sum(tensor.abs().sum() for tensor in vector.vector.values())
        for vector in (ours.vector("", 0.0), multi_task_vector(problem))
    ]
    assert_equal(norms[0], norms[1] / 4)
    tau = ties_vector(problem, 10, "mean")
    alpha = ours.info["lines_alpha"]
    for key, tensor in ours.vector("", 0.6).vector.items():
        depth = int(key.split("resblocks.")[1][0]) / 2 if "resblocks" in key else 0
        assert_equal(tensor, (alpha + 0.6 * depth) * tau.vector[key])


def test_what_comes_after_the_blocks_is_shallow_as_released_or_deep():
    names = [f"{VISUAL}{name}" for name in ("conv1.2.weight", "positional_embedding", "ln_post.bias", "proj")]
    names += [f"{VISUAL}transformer.resblocks.{block}.ln_1.bias" for block in range(4)]
    names += ["model.transformer.resblocks.11.ln_1.bias", "model.text_projection"]
    shallow, deep = depths(names), depths(names, "deep")
    assert list(shallow.values()) == pytest.approx([0, 0, 0, 0, 0, 1 / 3, 2 / 3, 1, 0, 0])
    assert list(deep.values()) == pytest.approx([0, 0, 1, 1, 0, 1 / 3, 2 / 3, 1, 0, 0])


def test_the_released_blocks_are_also_convolutions_of_a_stem():
    """ ".2." in a name is block 2 to the released code."""
    key = f"{VISUAL}conv1.2.weight"
    names = [key, *(f"{VISUAL}transformer.resblocks.{block}.ln_1.bias" for block in range(4))]
    released = {name: next((layer / 3 for layer in range(4) if f".{layer}." in name), 0) for name in names}
    assert released.pop(key) == pytest.approx(2 / 3)
    assert depths(names) == pytest.approx({key: 0} | released)


@pytest.mark.parametrize("blocks", [0, 1])
def test_a_slope_takes_two_blocks(blocks):
    names = [PROJ, *(f"{VISUAL}transformer.resblocks.{block}.ln_1.bias" for block in range(blocks))]
    with pytest.raises(ValueError, match="two blocks or more"):
        Lines().merge(problem_of([{name: torch.ones(3, 2) for name in names}]))


def test_the_slopes_are_the_settings():
    merge = Lines().merge(draw(3))
    assert isinstance(merge, Affine) and merge.settings == BETAS and BETAS[0] == 0.1 and BETAS[-1] == 3.0
    (line,) = merge.lines("", merge.settings)
    for beta in (0.1, 1.5):
        along = TaskVector(vector=line.offset) + beta * TaskVector(vector=line.direction)
        assert_same(merge.vector("", beta), along.vector)


@pytest.mark.parametrize("case", CASES)
def test_svc_is_the_released_one(golden, case):
    """On θ0 + .3 Σ_t τ_t with clip .1; FusionBench's function takes each matrix as it lies."""
    problem = released_problem(golden, case)
    merge = SVC(base="sum", alpha=0.3, clip=0.1, transpose_proj=False).merge(problem)
    assert merge.settings == (0.3,)
    assert_same(merge.vector("", 0.3), cut(golden[f"{case}/svc"]))


def svc_by_definition(merged: torch.Tensor, deltas: list[torch.Tensor], clip: float) -> torch.Tensor:
    u, sigma, vh = torch.linalg.svd(merged, full_matrices=False)
    gamma = []
    for r in range(len(sigma)):
        s = [float((u[:, r] @ merged) @ (u[:, r] @ d) / (u[:, r] @ d).square().sum()) for d in deltas]
        gamma.append(len(deltas) / sum(max(clip, one) for one in s))
    return (u * torch.tensor(gamma, dtype=sigma.dtype) * sigma) @ vh


def test_svc_is_its_definition_on_every_matrix_and_leaves_the_rest():
    problem = draw(3)
    alpha, clip = 0.7, 0.4
    merge = SVC(base="sum", clip=clip).merge(problem)
    assert merge.settings == tuple(tenth / 10 for tenth in range(1, 11))
    total, ours = multi_task_vector(problem).vector, merge.vector("", alpha).vector
    for key, tensor in ours.items():
        taus = list(problem.tensors(key))
        if key == PROJ:
            assert_equal(tensor, svc_by_definition(alpha * total[key].T, [tau.T for tau in taus], clip).T)
        elif key in MATRICES:
            assert_equal(tensor, svc_by_definition(alpha * total[key], taus, clip))
        else:
            assert_equal(tensor, alpha * total[key])


def aligned(tasks: int = 3) -> Problem:
    """Tasks that agree, so that no s is below a small clip."""
    common = random(8, 6)
    return one_matrix(*(common + 0.1 * random(8, 6, seed=1 + seed) for seed in range(tasks)))


def test_svc_does_not_depend_on_the_scale_of_a_merge_that_it_does_not_clip():
    merge = SVC(base="sum", clip=1e-3).merge(aligned())
    first = merge.vector("", 1.0).vector[W]
    for alpha in (0.1, 0.3, 7.0):
        assert merge.finish({"task0": alpha}) == {"clipped": 0.0}
        assert_equal(merge.vector("", alpha).vector[W], first)


def test_svc_has_the_scale_of_its_vectors():
    """However short they are: what counts as nothing along a direction is measured by the task's own norm."""
    deltas = [random(8, 6, seed=seed) for seed in range(3)]
    long, short = (SVC().merge(one_matrix(*(c * delta for delta in deltas))).vector("", 1 / 3) for c in (1.0, 1e-9))
    assert_equal(1e9 * short.vector[W], long.vector[W])


def test_svc_depends_on_the_clip_relative_to_the_scale():
    problem = draw(3)
    one = SVC(base="sum", clip=0.5).merge(problem).vector("", 1.0).vector
    other = SVC(base="sum", clip=0.15).merge(problem).vector("", 0.3).vector
    wider = SVC(base="sum", clip=0.5).merge(problem).vector("", 0.3).vector
    for key in MATRICES:
        assert_equal(one[key], other[key])
        assert (one[key] - wider[key]).norm() > 0.01 * one[key].norm()
    assert_equal(other[REST], 0.3 * one[REST])


def test_untuned_svc_has_one_setting_and_its_matrices_are_those_of_the_sum():
    problem = draw(3)
    merge = SVC().merge(problem)
    assert merge.settings == (1 / 3,)
    ours = merge.vector("", 1 / 3).vector
    total = SVC(base="sum", clip=0.3).merge(problem).vector("", 1.0).vector
    assert all(torch.allclose(ours[key], total[key]) for key in MATRICES)
    assert_equal(ours[REST], total[REST] / 3)
    assert 0 < merge.finish(dict.fromkeys(problem.tasks, 1 / 3))["clipped"] < 1


def test_clipped_is_the_share_of_responses_below_the_clip_at_the_chosen_coefficient():
    """Three orthogonal tasks: along each of six directions one has s = α and the others 0."""
    space, sizes = torch.linalg.qr(random(6, 6))[0], torch.arange(1.0, 7.0, dtype=torch.float64)
    deltas = [space[:, r] * sizes[r] @ space[:, r].T for r in (slice(0, 2), slice(2, 4), slice(4, 6))]
    merge = SVC(base="sum", clip=0.5).merge(one_matrix(*deltas))
    for alpha, share in ((1.0, 2 / 3), (0.4, 1.0)):
        assert merge.finish({"task0": alpha}) == {"clipped": pytest.approx(share)}


def test_a_wrapped_merge_tells_what_its_base_tells():
    problem = one_matrix(*(random(8, 6, seed=seed) for seed in range(7)))  # seven tasks share six directions
    assert SVC(base="cart", base_options={"lambdas": [1.0]}).merge(problem).info == {}
    assert SVC(base="tsv_m", alpha=1.0).merge(problem).info == {"without_rank": [W]}


def test_a_base_that_is_one_model_is_scaled_once():
    """What the base chose, 1/T or its α, is in its vector already."""
    problem = draw(3)
    for options in ({}, {"base": "sum", "alpha": 0.3}):
        base = SVC(**options).merge(problem)
        ours = SVC(base="svc", base_options=options).merge(problem)
        assert ours.settings == (1.0,)
        assert_equal(ours.vector("", 1.0).vector[REST], base.vector("", base.settings[0]).vector[REST])


def test_svc_depends_on_the_orientation():
    deltas = [random(8, 6, seed=seed) for seed in range(3)]
    one = SVC().merge(one_matrix(*deltas)).vector("", 1 / 3).vector[W]
    other = SVC().merge(one_matrix(*(delta.T for delta in deltas))).vector("", 1 / 3).vector[W].T
    assert (one - other).norm() > 0.05 * one.norm()


def test_svc_takes_proj_as_a_map_to_its_outputs():
    problem = draw(3)
    ours, as_it_lies = (SVC(transpose_proj=t).merge(problem).vector("", 1 / 3).vector[PROJ] for t in (True, False))
    transposed = one_matrix(*(tau.T for tau in problem.tensors(PROJ)))
    assert_equal(ours, SVC().merge(transposed).vector("", 1 / 3).vector[W].T)
    assert (ours - as_it_lies).norm() > 0.05 * ours.norm()


def test_svc_of_one_task_gives_it_back():
    problem = draw(1)
    merge = SVC(base="sum").merge(problem)
    for alpha in (0.2, 1.0):
        for key in MATRICES:
            assert_equal(merge.vector("", alpha).vector[key], problem.tensor("task0", key))


def test_tasks_in_orthogonal_spaces_are_added():
    """s = 1 for the task that has a direction; the others have nothing along it, and count as `clip`."""
    left, right = (torch.linalg.qr(random(6, 6, seed=seed))[0] for seed in (1, 2))
    spaces = [(slice(0, 3), [1.0, 2, 3]), (slice(3, 6), [4.0, 5, 6])]
    deltas = [left[:, rows] * torch.tensor(values, dtype=left.dtype) @ right[:, rows].T for rows, values in spaces]
    problem = one_matrix(*deltas)
    both = Deltas(problem, Matrix(W))
    s = responses(both.svd(sum(deltas)), both)
    assert_equal(s.sort(dim=0).values, torch.tensor([[0.0], [1.0]], dtype=s.dtype).expand(2, 6))
    assert_equal(SVC(base="sum", clip=1.0).merge(problem).vector("", 1.0).vector[W], sum(deltas))


def test_a_task_that_does_not_move_a_matrix_counts_as_clipped():
    delta = random(8, 6)
    problem = one_matrix(delta, torch.zeros_like(delta))
    ours = SVC(base="sum", alpha=1.0, clip=0.5).merge(problem).vector("", 1.0).vector[W]
    assert_equal(ours, 2 / 1.5 * delta)


@dataclass
class Shaken(Method):
    """The sum, shaken at random: three draws."""

    size: float = 0.1
    name = "shaken"

    def draw(self, problem: Problem, number: int) -> Scaled:
        generator = torch.Generator().manual_seed(number)

        def shaken(tensor: torch.Tensor) -> torch.Tensor:
            return tensor * (1 + self.size * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))

        return scaled(problem, multi_task_vector(problem).map(shaken), (0.5, 1.0))

    def merge(self, problem: Problem) -> Merge:
        return Drawn(draw=lambda n: self.draw(problem, n), draws=3, settings=(0.5, 1.0), storage_bits=0, info={"of": 3})


@pytest.fixture
def shaken(monkeypatch):
    load_methods()
    monkeypatch.setattr(registry, "METHODS", dict(registry.METHODS))
    monkeypatch.setattr("src.merging.wrapped.METHODS", registry.METHODS)
    register("shaken")(Shaken)


@pytest.mark.parametrize("method", [Lines(base="shaken"), SVC(base="shaken")])
def test_a_random_merge_is_wrapped_draw_by_draw(shaken, method):
    problem = draw(2)
    merge = method.merge(problem)
    assert isinstance(merge, Drawn) and merge.draws == 3 and merge.info["of"] == 3
    setting = merge.settings[-1]
    for number in range(3):
        alone = method.wrapped(problem, Shaken().draw(problem, number).tau, (0.5, 1.0))
        assert merge.settings == alone.settings
        assert_same(merge.draw(number).vector("", setting), alone.vector("", setting).vector)
    first, second = (merge.draw(number).vector("", setting)[QKV] for number in (0, 1))
    assert not torch.allclose(first, second)


def test_a_base_goes_by_any_of_its_names_and_has_options():
    assert Lines(base="consensus_ties", base_options={"prun_thre_k": 3}).base_method() == Consensus(3, use_ties=True)
    asked = Lines(base="consensus_ties", base_options={"use_ties": False})
    assert asked.base_method() == Consensus(), "an option that is asked for goes before those of a spelling"
    problem = draw(3)
    ours = Lines(base="svc").merge(problem).vector("", 0.0).vector  # a base with one setting is a vector
    average, svc = Average().merge(problem).vector("", 1 / 3), SVC().merge(problem).vector("", 1 / 3)
    ratio = ours[QKV] / svc[QKV]
    assert_equal(ratio, ratio[0, 0].expand_as(ratio))
    norms = [sum(t.abs().sum() for t in v.values()) for v in (ours, average.vector)]
    assert_equal(*norms)


def test_options_of_a_base_are_given_on_the_command_line():
    for group, name, schema in ((None, "flags", shared_flags()), *registry.config_schemas()):
        ConfigStore.instance().store(group=group, name=name, node=schema)
    with hydra.initialize(config_path="../config", version_base="1.3"):
        overrides = ["method=lines", "method.base=ties", "+method.base_options.k=10"]
        method = OmegaConf.to_object(hydra.compose("config", overrides=overrides).method)
    assert method == Lines(base="ties", base_options={"k": 10})
    assert method.base_method() == Ties(k=10.0)
    assert registry.label(method) == "lines_base=ties_base_options=-k-10-"


@pytest.mark.parametrize("wrapper", [Lines, SVC])
@pytest.mark.parametrize(
    "options, told",
    [
        ({"base": "tie"}, r"no merging method is called 'tie'; did you mean ties\?"),
        ({"base": "adamerging"}, "cannot take adamerging: it adapts"),
        ({"base": "concrete_task_arithmetic"}, "cannot take concrete_task_arithmetic: it adapts"),
        ({"base": "tall_mask"}, "cannot take tall_mask: it makes a model for each task"),
        ({"base": "tsv_c"}, "cannot take tsv_c: it makes a model for each task"),
        ({"base": "cart"}, "cannot take cart: its models do not lie on one line through θ0"),
        ({"base": "ties", "base_options": {"q": 1}}, "base_options: ties has no option q"),
        ({"base": "ties", "base_options": {"k": "many"}}, "base_options.k: .*many"),
    ],
)
def test_bases_that_cannot_be_wrapped_are_told_with_the_reason(wrapper, options, told):
    with pytest.raises(ValueError, match=told):
        wrapper(**options).merge(draw(2))


def test_options_that_make_no_sense_are_told():
    with pytest.raises(ValueError, match="that of zeroshot is 0"):
        Lines(base="zeroshot").merge(draw(2))
    with pytest.raises(ValueError, match="tail: .* shallow, deep"):
        Lines(tail="flat").merge(draw(2))
    with pytest.raises(ValueError, match="clip: expected a number above 0; got 0.0"):
        SVC(clip=0.0).merge(draw(2))


def test_only_matrices_are_calibrated():
    problem = draw(3)
    ours = SVC(base="sum", matrices="blocks").merge(problem).vector("", 1.0).vector
    total = multi_task_vector(problem).vector
    assert [key for key in ours if not torch.allclose(ours[key], total[key])] == sorted(BLOCK_MATRICES)
