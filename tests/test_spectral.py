"""TSV-M, TSV-C, Iso-C, Iso-CTS and CART against the released functions, and against closed forms in float64.

tests/golden/spectral.npz holds inputs (θ0 and θ_t in float32, flat, in the sorted order of their names; draws of NumPy,
the text side equal to θ0's) of one and of three tasks, and what the released functions give for them in float64,
recorded once on torch 2.14: of arXiv:2412.00081 (commit a6c9718) `compute_and_sum_svd_mem_reduction` and `compress_tv`,
of arXiv:2502.04959 (d34010a) `iso_c` and `iso_cts` with a common space of one half, of arXiv:2412.12153 (964cfd7) the
merge with λ 1.7 and rank .4; and, for test_wrapped.py, of arXiv:2410.17146 (43a7bdd) `LiNeS_scaling` with β .7, of the
sum and of every second of its weights, and of FusionBench (54c9e8c) SVC of θ0 + .3 times the sum with a clip of .1.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_checkpoints import draw_checkpoints
from merging_problems import (
    BLOCK_MATRICES,
    CONV1,
    MATRICES,
    POSITIONS,
    PROJ,
    QKV,
    SHAPES,
    VISUAL,
    Counted,
    assert_equal,
    cut,
    draw,
    one_matrix,
    problem_of,
    random,
    truncated,
)

from src.merging import matrices
from src.merging.base import Method, Problem
from src.merging.matrices import Deltas, Layout, Matrix, NoDecomposition, share
from src.merging.problem import Source, read_problem
from src.merging.search import Searched
from src.merging.spectral import TSVC, TSVM, Cart, IsoC, IsoCTS, iso_c, iso_cts, iso_spaces, tsv_m
from src.merging.task_arithmetic import Average, multi_task_vector

GOLDEN = Path(__file__).parent / "golden" / "spectral.npz"
CASES = ("one", "three")
AS_RELEASED = {
    "tsv_m": TSVM(),
    "iso_c": IsoC(),
    "iso_cts": IsoCTS(common_space_fraction=0.5, transpose_proj=False),
    "cart": Cart(rank=0.4, lambdas=[1.7]),
}
W = f"{VISUAL}w"


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(array).double() for name, array in arrays.items()}


def released_problem(golden, case: str, **fields) -> Problem:
    ends = {f"task{t}": cut(theta) for t, theta in enumerate(golden[f"{case}/theta"])}
    return Problem(cut(golden[f"{case}/theta0"]), ends, **fields)


def merged(method: Method, problem: Problem, setting=None, task: str = "task0") -> dict[str, torch.Tensor]:
    merge = method.merge(problem)
    if setting is None:
        setting = merge.settings[0] if len(merge.settings) == 1 else 1.0
    return merge.vector(task, setting).vector


def deltas_of(*deltas: torch.Tensor) -> Deltas:
    return Deltas(one_matrix(*deltas), Matrix(W))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", AS_RELEASED)
@pytest.mark.parametrize("scope", ["visual", "published"])
def test_merges_are_the_released_ones(golden, case, name, scope):
    ours = merged(AS_RELEASED[name], released_problem(golden, case, scope=scope))
    for key, expected in cut(golden[f"{case}/{name}"]).items():
        if key in ours:
            assert_equal(ours[key], expected)
        else:
            assert scope == "visual" and not expected.any()


@pytest.mark.parametrize("case", CASES)
def test_compressed_vectors_are_the_released_ones(golden, case):
    problem = released_problem(golden, case)
    for task, released in zip(problem.tasks, golden[f"{case}/tsv_c"], strict=True):
        ours, expected = merged(TSVC(), problem, task=task), cut(released)
        for key, tensor in ours.items():
            assert_equal(tensor, expected[key])


def test_iso_cts_takes_proj_as_a_map_to_its_outputs(golden):
    """The released code projects the inputs of visual.proj away, which is [in, out]; all else is equal."""
    problem, released = released_problem(golden, "three"), cut(golden["three/iso_cts"])
    ours = merged(IsoCTS(common_space_fraction=0.5), problem)
    assert all(torch.allclose(tensor, released[key]) for key, tensor in ours.items() if key != PROJ)
    assert not torch.allclose(ours[PROJ], released[PROJ], rtol=0.1)
    transposed = one_matrix(*(problem.tensor(task, PROJ).T for task in problem.tasks))
    assert_equal(ours[PROJ], iso_cts(Deltas(transposed, Matrix(W)), 0.5).T)


def orthogonal(size: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(random(size, size, seed=seed))[0]


def test_tsv_m_is_the_sum_of_truncations_of_tasks_in_orthogonal_spaces():
    left, right = orthogonal(9, 1), orthogonal(7, 2)
    spaces = [slice(0, 2), slice(2, 4), slice(4, 7)]
    sizes = [space.stop - space.start for space in spaces]
    deltas = [left[:, space] @ random(size, size, seed=size) @ right[:, space].T for space, size in zip(spaces, sizes)]
    expected = sum(truncated(delta, 7 // 3) for delta in deltas)
    assert_equal(tsv_m(deltas_of(*deltas), 7 // 3), expected)


@pytest.mark.parametrize("function", [lambda deltas: tsv_m(deltas, 2), iso_c], ids=["tsv_m", "iso_c"])
def test_tsv_m_and_iso_c_do_not_depend_on_the_orientation(function):
    deltas = [random(8, 6, seed=seed) for seed in range(3)]
    assert_equal(function(deltas_of(*(delta.T for delta in deltas))), function(deltas_of(*deltas)).T)


def test_iso_cts_depends_on_the_orientation():
    deltas = [random(8, 6, seed=seed) for seed in range(3)]
    one, other = iso_cts(deltas_of(*deltas), 0.5), iso_cts(deltas_of(*(delta.T for delta in deltas)), 0.5).T
    assert (one - other).norm() > 0.1 * one.norm()


@pytest.mark.parametrize("method", [TSVM(), TSVC(), Cart()])
def test_one_task_comes_back(method):
    problem = draw(1)
    for key, tensor in merged(method, problem).items():
        assert_equal(tensor, problem.tensor("task0", key))


def test_iso_cts_of_one_task_is_iso_c():
    for matrix in (random(8, 6), truncated(random(8, 6), 2)):  # its rest is zero but for rounding
        assert_equal(iso_cts(deltas_of(matrix), 0.8), iso_c(deltas_of(matrix)))


def test_iso_cts_without_spaces_of_the_tasks_is_iso_c():
    problem = draw(3)
    for key, tensor in merged(IsoCTS(common_space_fraction=1.0), problem).items():
        assert_equal(tensor, merged(IsoC(), problem)[key])


def test_singular_values_of_iso_c_are_equal():
    problem = draw(3)
    ours, total = merged(IsoC(), problem), multi_task_vector(problem).vector
    for key in MATRICES:
        s = torch.linalg.svdvals(ours[key])
        assert_equal(s, torch.linalg.svdvals(total[key]).mean().expand_as(s))


def test_iso_c_adds_no_direction_to_a_sum_that_lacks_rank():
    delta = truncated(random(8, 6), 2)
    s = torch.linalg.svdvals(iso_c(deltas_of(delta)))
    mean = torch.linalg.svdvals(delta).sum() / 6
    assert_equal(s, torch.tensor([1.0, 1, 0, 0, 0, 0], dtype=s.dtype) * mean)


def test_singular_values_of_iso_cts_are_those_of_the_two_kinds_of_space():
    """They are not equal where polar factors of left and right differ in their spaces; their mean is kept."""
    deltas = [random(8, 6, seed=seed) for seed in range(2)]
    k, s = iso_spaces(6, 2, 0.5)
    assert (k, s) == (2, 2)
    u, sigma, vh = torch.linalg.svd(sum(deltas), full_matrices=False)
    own = [torch.linalg.svd(d - u[:, :k] @ u[:, :k].T @ d, full_matrices=False) for d in deltas]
    mean = (sigma[:k].sum() + sum(values[:s].sum() for _, values, _ in own)) / 6
    assert_equal(torch.linalg.svdvals(iso_cts(deltas_of(*deltas), 0.5)), mean.expand(6))


@pytest.mark.parametrize(
    "r, tasks, fraction, k, s",
    [
        (768, 8, 0.8, 616, 19),
        (128, 8, 0.8, 104, 3),
        (50, 20, 0.8, 50, 0),
        (7, 2, 0.8, 5, 1),
        (6, 4, 0.0, 2, 1),
        (7, 4, 0.0, 3, 1),
    ],
)
def test_spaces_of_iso_cts(r, tasks, fraction, k, s):
    """c r is rounded down: 5.6 of 7 to 5. The released k of the last is 7 − 4 round(7/4) = -1, where its code stops."""
    assert iso_spaces(r, tasks, fraction) == (k, s)


def test_cart_with_full_rank_is_the_average_at_every_coefficient():
    problem = draw(3)
    merge = Cart(rank=1.0).merge(problem)
    average = merged(Average(), problem)
    for coefficient in (0.0, 1.0, 2.5):
        for key, tensor in merge.vector("task0", coefficient).vector.items():
            assert_equal(tensor, average[key])


def test_cart_is_the_average_and_truncated_residuals_of_the_blocks():
    problem = draw(3)
    ours, average = merged(Cart(rank=0.34), problem, 2.0), merged(Average(), problem)
    for key, tensor in ours.items():
        expected = average[key]
        if key in BLOCK_MATRICES:
            expected = expected + 2 * sum(truncated(tau - average[key], 2) for tau in problem.tensors(key))
        assert_equal(tensor, expected)


def test_the_rank_is_r_over_t_rounded_down():
    """Five tasks share six directions: one each. Seven share none, and nothing is merged."""
    deltas = [random(8, 6, seed=seed) for seed in range(7)]
    five = merged(TSVM(rest="zero"), one_matrix(*deltas[:5]))[W]
    assert torch.linalg.matrix_rank(five) == 5
    assert_equal(five, tsv_m(deltas_of(*deltas[:5]), 1))
    seven = TSVM().merge(one_matrix(*deltas))
    assert not seven.vector("task0", 1.0).vector[W].any()
    assert seven.info["without_rank"] == [W]
    compressed = TSVC(rank=0.5).merge(one_matrix(*deltas))
    assert_equal(compressed.vector("task3", 1.0).vector[W], truncated(deltas[3], 3))
    with pytest.raises(ValueError, match="rank: expected a share .* above 0 and at most 1; got 0.0"):
        TSVM(rank=0.0).merge(one_matrix(*deltas))


def test_a_share_of_the_rank_is_rounded_down_to_one_at_least():
    assert [share(rank, 6) for rank in (0.3, 0.34, 0.5, 0.99, 1.0)] == [1, 2, 3, 5, 6]
    assert share(0.01, 6) == 1


@pytest.mark.parametrize("method", [TSVM(), TSVC(rank=0.5), IsoC(), IsoCTS(), Cart()])
def test_a_merge_has_the_scale_of_its_vectors(method):
    """However short they are: what counts as 0 is measured by the largest singular value."""
    problem = draw(3)
    short = problem_of([{key: 1e-9 * tau for key, tau in ends.items()} for ends in problem.finetuned.values()])
    for key, tensor in merged(method, short).items():
        assert_equal(1e9 * tensor, merged(method, problem)[key])


def test_decompositions_of_the_tasks_and_of_their_residuals_are_kept_apart():
    expected, problem = merged(Cart(rank=0.34), draw(3), 1.7), draw(3)
    merged(TSVC(rank=1.0), problem)
    assert problem.memo
    for key, tensor in merged(Cart(rank=0.34), problem, 1.7).items():
        assert torch.equal(tensor, expected[key])


def test_more_triplets_than_are_kept_are_decomposed_anew():
    expected, problem = merged(TSVC(rank=1.0), draw(3)), draw(3)
    merged(TSVC(rank=0.34), problem)
    for key, tensor in merged(TSVC(rank=1.0), problem).items():
        assert torch.equal(tensor, expected[key])


def test_more_directions_than_there_is_room_for():
    """rank=1 is the released lossless variant: polar factors of [m, T r] matrices have orthonormal rows."""
    deltas = [random(8, 6, seed=seed) for seed in range(2)]
    parts = [torch.linalg.svd(delta, full_matrices=False) for delta in deltas]

    def polar(matrix: torch.Tensor) -> torch.Tensor:
        p, _, qt = torch.linalg.svd(matrix, full_matrices=False)
        return p @ qt

    u, s, vh = polar(torch.cat([p[0] for p in parts], 1)), torch.cat([p[1] for p in parts]), [p[2] for p in parts]
    assert_equal(merged(TSVM(rank=1.0), one_matrix(*deltas))[W], (u * s) @ polar(torch.cat(vh)))


@pytest.mark.parametrize("method", [TSVM(), IsoC(), IsoCTS()])
def test_the_order_of_the_tasks_does_not_matter(method):
    problem = draw(3)
    turned = Problem(problem.pretrained, dict(reversed(problem.finetuned.items())))
    for key, tensor in merged(method, problem).items():
        assert_equal(merged(method, turned)[key], tensor)


def test_a_task_without_a_direction_of_its_own_changes_nothing_at_random():
    """The released polar factor is filled up there by what the library finds: it differs from this by its own norm."""
    delta = random(8, 6)
    for second in (delta, torch.zeros_like(delta), truncated(delta, 2)):
        assert_equal(tsv_m(deltas_of(delta, second), 3), truncated(delta, 3))


def test_split_qkv_merges_three_matrices():
    problem = draw(3)
    whole, split = merged(TSVM(), problem), merged(TSVM(split_qkv=True), problem)
    assert (whole[QKV] - split[QKV]).norm() > 0.1 * whole[QKV].norm()
    for rows in (slice(0, 6), slice(6, 12), slice(12, 18)):
        alone = one_matrix(*(tau[rows] for tau in problem.tensors(QKV)))
        assert_equal(split[QKV][rows], merged(TSVM(), alone)[W])
    assert all(torch.equal(whole[key], split[key]) for key in whole if "in_proj_weight" not in key)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, MATRICES),
        ({"matrices": "linear"}, [*BLOCK_MATRICES, PROJ]),
        ({"matrices": "blocks"}, BLOCK_MATRICES),
        ({"matrices": "linear", "conv1": True}, [*BLOCK_MATRICES, PROJ, CONV1]),
    ],
)
def test_all_but_matrices_is_rest(options, expected):
    problem = draw(3, scope="published")
    tau, total = merged(IsoC(rest="sum", **options), problem), multi_task_vector(problem).vector
    changed = [key for key in tau if not torch.allclose(tau[key], total[key])]
    assert sorted(changed) == sorted(expected)
    flat = merged(IsoC(), one_matrix(*(t.flatten(1) for t in problem.tensors(CONV1))))[W]
    if options.get("conv1"):
        assert_equal(tau[CONV1].flatten(1), flat)


def test_the_convolutions_of_a_stem_are_matrices_too():
    keys = [f"{VISUAL}conv1.{layer}.weight" for layer in (0, 2)]
    taus = [{key: random(4, 2, 3, 3, seed=seed) for key in keys} for seed in range(2)]
    ours = merged(IsoC(conv1=True), problem_of(taus))
    for key in keys:
        s = torch.linalg.svdvals(ours[key].flatten(1))
        assert_equal(s, s[:1].expand(4))


@pytest.mark.parametrize("rest, factor", [("mean", 1 / 3), ("sum", 1.0), ("zero", 0.0)])
@pytest.mark.parametrize("method", [TSVM, IsoC, IsoCTS])
def test_the_rest_is_the_mean_the_sum_or_zero(method, rest, factor):
    problem = draw(3)
    ours, total = merged(method(rest=rest), problem), multi_task_vector(problem).vector
    for key in ours:
        if key not in MATRICES:
            assert_equal(ours[key], factor * total[key])


@pytest.mark.parametrize(
    "made, named",
    [
        (lambda: TSVM(rest="half"), "rest: .* mean, sum, zero"),
        (lambda: TSVC(matrices="some"), "matrices: .* all, linear, blocks"),
        (lambda: IsoCTS(common_space_fraction=1.1), "common_space_fraction"),
        (lambda: Cart(rank=2.0), "rank"),
    ],
)
def test_options_that_make_no_sense_are_told(made, named):
    with pytest.raises(ValueError, match=named):
        made().merge(draw(2))


@pytest.fixture
def decomposed(monkeypatch) -> list[torch.Size]:
    """The shapes of all matrices that are decomposed from now on."""
    shapes, original = [], torch.linalg.svd

    def counted(matrix, **options):
        shapes.append(matrix.shape)
        return original(matrix, **options)

    monkeypatch.setattr(torch.linalg, "svd", counted)
    return shapes


def test_each_task_is_decomposed_once_for_all_methods_and_options_of_a_problem(decomposed):
    problem = draw(3)
    first = merged(TSVM(), problem)
    assert len(decomposed) == (3 + 2) * len(MATRICES)  # and two polar factors
    again = merged(TSVM(), problem)
    assert len(decomposed) == (3 + 2 + 2) * len(MATRICES)
    assert all(torch.equal(first[key], again[key]) for key in first)
    del decomposed[:]
    merged(TSVC(), problem)
    assert not decomposed
    merged(IsoC(), problem)
    merged(IsoC(rest="zero"), problem)
    assert len(decomposed) == len(MATRICES)
    del decomposed[:]
    Searched.over(Cart(), {"rank": [0.5, 0.34, 0.12]}, problem)  # each less than the one before
    assert len(decomposed) == 3 * len(BLOCK_MATRICES)


def test_a_full_memo_keeps_nothing_more_and_changes_nothing(monkeypatch, decomposed):
    expected, kept = merged(TSVM(), draw(3)), draw(3)
    monkeypatch.setattr(matrices, "BUDGET", 2000)
    for _ in range(2):
        for key, tensor in merged(TSVM(), kept).items():
            assert torch.equal(tensor, expected[key])
    svds = list(kept.memo.values())
    assert 0 < sum(svd.nbytes for svd in svds) <= 2000
    assert all(part.untyped_storage().nbytes() == part.nbytes for svd in svds for part in (svd.u, svd.s, svd.vh))


def test_tensors_that_no_task_moved_are_not_decomposed(decomposed):
    merged(TSVC(), draw(2, scope="published"))
    assert (7, 4) not in decomposed and (18, 6) in decomposed


@pytest.mark.parametrize("method", [TSVM(), TSVC(), IsoC(), IsoCTS(), Cart()])
def test_weights_are_read_one_at_a_time(method):
    problem = draw(6)
    Counted.alive = Counted.most = 0
    counted = Problem(Counted(problem.pretrained), {task: Counted(ends) for task, ends in problem.finetuned.items()})
    merged(method, counted)
    assert 0 < Counted.most <= 3


def test_a_decomposition_that_does_not_converge_is_made_in_float64(monkeypatch):
    problem, original = draw(3, dtype=torch.float32), torch.linalg.svd
    expected = merged(TSVM(), draw(3, dtype=torch.float32))

    def stubborn(matrix, **options):
        if matrix.dtype != torch.float64:
            raise torch.linalg.LinAlgError("linalg.svd: The algorithm failed to converge")
        return original(matrix, **options)

    monkeypatch.setattr(torch.linalg, "svd", stubborn)
    for key, tensor in merged(TSVM(), problem).items():
        assert tensor.dtype == torch.float32
        assert (tensor - expected[key]).norm() < 1e-4 * expected[key].norm()


@pytest.mark.parametrize("method", [TSVM(), TSVC(), IsoC(), IsoCTS(), Cart()])
def test_a_damaged_checkpoint_is_named_with_the_command_that_mends_it(method):
    problem = draw(3, model="tiny")
    problem.finetuned["task1"][QKV][0, 0] = torch.nan
    with pytest.raises(NoDecomposition) as told:
        method.merge(problem)
    for words in (QKV, "task1", "18 x 6", "python finetune.py --model=tiny --tasks", "--finetuning-mode=standard"):
        assert words in str(told.value)


def test_storage_of_compressed_vectors():
    """θ0 with its frozen part, k (m + n + 1) numbers of every matrix and task, and every task's rest."""
    problem = draw(2)
    merge = TSVC().merge(problem)
    rest = sum(torch.Size(shape).numel() for key, shape in SHAPES.items() if key not in MATRICES and VISUAL in key)
    triplets = sum(min(SHAPES[key]) // 2 * (sum(SHAPES[key]) + 1) for key in MATRICES)
    assert merge.storage_bits == 32 * (problem.num_parameters_total + 2 * (rest + triplets))
    assert merge.per_task and list(merge.settings) == [1.0]
    split = TSVC(split_qkv=True).merge(problem)
    assert split.storage_bits - merge.storage_bits == 32 * 2 * 3 * (3 * 3 * (6 + 6 + 1) - 3 * (18 + 6 + 1))
    published = TSVC().merge(draw(2, scope="published"))
    assert published.storage_bits - merge.storage_bits == 0  # what no task moved is θ0's


def test_positions_are_a_matrix_as_released():
    assert Layout().of(POSITIONS, torch.Size((5, 6))) == [Matrix(POSITIONS)]
    assert Layout(matrices="linear").of(POSITIONS, torch.Size((5, 6))) == []
    assert Layout(transpose=True).of(PROJ, torch.Size((6, 4))) == [Matrix(PROJ, transposed=True)]


def test_neither_the_text_side_nor_what_else_a_block_has_is_a_matrix():
    """Even where a fine-tuning has moved it: TSV and Iso leave text_projection out, CART all but attention and MLPs."""
    square = torch.Size((6, 6))
    assert Layout().of("model.text_projection", square) == []
    other = BLOCK_MATRICES[0].replace("attn.in_proj_weight", "adapter.weight")
    assert Layout(matrices="blocks").of(other, square) == [] and Layout().of(other, square) == [Matrix(other)]


def test_what_one_merge_has_worked_out_serves_the_next_of_the_same_files(make_run):
    run, source = make_run("--tasks", "digits,signs"), Source()
    draw_checkpoints(run)
    first = read_problem(run, source)
    merged = TSVM().merge(first)
    assert first.memo and read_problem(run, source).memo is first.memo
    again = TSVM().merge(read_problem(run, source)).vector("", 1.0).vector
    assert all(torch.equal(tensor, again[key]) for key, tensor in merged.vector("", 1.0).vector.items())
    draw_checkpoints(run)
    assert not read_problem(run, source).memo, "the files are others now"
