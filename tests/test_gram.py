"""The Gram family and tangent matching against released functions, dense equations and closed forms in float64.

tests/golden/gram.npz holds what released functions gave for seeded inputs, recorded once on torch 2.14. For the case
"three" of tests/golden/spectral.npz (see test_spectral.py), its image tower with proj as [out, in], in float64: of
WUDI-Merging@dc3cd12 `decompose_task_vectors` and of fusion_bench@54c9e8c `wudi_merging`, 40 steps each; of
merge-and-rebase@345c570 the closed form of WUDI without ridge and ACTMat, of each linear map; of fusion_bench
`merging_with_regmean_weights` with .95 for Gram matrices of random inputs, which the file holds (inputs/<task>/<key>).
And of featcal@18c68b6 `featcal_merge_linear_weight`, `..._linear_bias` and `..._layernorm_affine`, in float32, for one
linear map (w, b) and one LayerNorm (g, h) with random inputs of a student and a teacher, every fifth row a class token.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from adapting_problems import Adam
from merging_problems import BLOCK_MATRICES, PROJ, QKV, VISUAL, assert_equal, cut, draw, one_matrix, random
from open_clip.transformer import VisionTransformer
from torch import nn
from torch.func import functional_call, jacrev

from src.linearize import LinearizedModel
from src.merging.base import Method, Problem, Unlabelled
from src.merging.gram import ActMat, NormalEquation, Wudi
from src.merging.inputs import Models, Moments, gather
from src.merging.matrices import NoDecomposition
from src.merging.registry import METHODS, load_methods
from src.merging.regmean import FeatCal, LinearFit, Lot, NormFit, RegMean, RegMeanPlusPlus, stage_of
from src.merging.tangent_matching import Products, TangentMatching
from src.runtime.messages import UsageError
from src.runtime.seeds import event_seed
from src.task_vectors import TaskVector
from src.vit_mini import clip as mini

FOLDER = Path(__file__).parent / "golden"
TASKS = ("a", "b", "c")
IMAGES = 24
PLAIN = dict(biases=False, norms="rest", last_tokens=1.0, split_qkv=False)
load_methods()
WITH_PRECISION = [method.name for method in dict.fromkeys(METHODS.values()) if hasattr(method, "precision")]


class Encoder(nn.Module):
    """An image tower with the names of open_clip's, and a text-side tensor."""

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.model = nn.Module()
        self.model.visual = visual
        self.model.logit_scale = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        return self.model.visual(images)


def tiny(layers: int = 2) -> VisionTransformer:
    return VisionTransformer(
        image_size=8, patch_size=4, width=8, layers=layers, heads=2, mlp_ratio=2.0, output_dim=5, patch_dropout=0.0
    )


def tower(build: Callable[[], nn.Module] = tiny) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = Encoder(build()).double().eval().requires_grad_(False)
        for name, parameter in encoder.named_parameters():
            if parameter.dim() == 1 and "ln_" in name:  # LayerNorms that are not the identity
                parameter.add_(0.3 * torch.randn_like(parameter))
    return encoder


def pictures(task: str, split: str, batch_size: int, number: int, side: int = 8) -> torch.Tensor:
    """A split of IMAGES images, as unlike those of other tasks as white noise of another mean."""
    generator = torch.Generator().manual_seed(event_seed(task, split))
    whole = torch.randn(IMAGES, 3, side, side, generator=generator, dtype=torch.float64) + len(task)
    return whole[number * batch_size : (number + 1) * batch_size]


def head(task: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(event_seed(task) % 2**31)
        return nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 3)).double()


def problem(scale: float = 0.3, tangent: bool = False, encoder: Encoder | None = None, **fields) -> Problem:
    """Three tasks; every tensor of the tower has moved."""
    encoder = encoder or tower()
    start = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    ends = {}
    for place, task in enumerate(TASKS):
        generator = torch.Generator().manual_seed(place + 1)
        ends[task] = {
            name: w + scale * torch.randn(w.shape, generator=generator, dtype=w.dtype) if VISUAL in name else w
            for name, w in start.items()
        }
    given = dict(images=Unlabelled(lambda: LinearizedModel(encoder) if tangent else encoder, pictures, head))
    return Problem(start, ends, mode="linear" if tangent else "standard", **given | fields)


def merged(method: Method, given: Problem, setting=None) -> dict[str, torch.Tensor]:
    merge = method.merge(given)
    return merge.vector(given.tasks[0], merge.settings[-1] if setting is None else setting).vector


def assert_same(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **tolerances) -> None:
    torch.testing.assert_close(dict(ours), dict(expected), **{"rtol": 1e-8, "atol": 1e-9} | tolerances)


def total(given: Problem) -> dict[str, torch.Tensor]:
    return sum(given.vector(task) for task in given.tasks).vector


# ---- inputs


def restated(visual: VisionTransformer, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The forward pass in plain operations; the input of every weight on the way, (images, tokens, in)."""
    inputs = {}

    def normalised(name: str, x: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        inputs[name] = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        return inputs[name] * norm.weight + norm.bias

    x = visual.conv1(images).flatten(2).mT
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
    x = normalised("ln_pre.weight", x, visual.ln_pre)
    for number, block in enumerate(visual.transformer.resblocks):
        at = f"transformer.resblocks.{number}."
        y = inputs[f"{at}attn.in_proj_weight"] = normalised(f"{at}ln_1.weight", x, block.ln_1)
        heads = block.attn.num_heads
        q, k, v = (y @ block.attn.in_proj_weight.mT + block.attn.in_proj_bias).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        y = inputs[f"{at}attn.out_proj.weight"] = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + y @ block.attn.out_proj.weight.mT + block.attn.out_proj.bias
        y = inputs[f"{at}mlp.c_fc.weight"] = normalised(f"{at}ln_2.weight", x, block.ln_2)
        y = inputs[f"{at}mlp.c_proj.weight"] = block.mlp.gelu(block.mlp.c_fc(y))
        x = x + block.mlp.c_proj(y)
    x = normalised("ln_post.weight", x, visual.ln_post)[:, 0]
    inputs["proj"] = x
    inputs["features"] = x @ visual.proj
    return inputs


@pytest.mark.parametrize("build, side", [(tiny, 8), (lambda: mini.load()[0].visual, 32)])
def test_inputs_are_those_of_the_network_written_out(build, side):
    encoder = tower(build)
    given = problem(0.05, encoder=encoder)
    images = pictures("a", "train", 3, 0, side)
    shifted = tower(build)
    shifted.load_state_dict(dict(given.finetuned["b"]))
    expected = {VISUAL + name: x for name, x in restated(shifted.model.visual, images).items()}
    torch.testing.assert_close(expected.pop(f"{VISUAL}features"), shifted(images))
    seen = {}
    Models(given, given.images).observe(given.vector("b").vector, images, expected.keys(), seen.__setitem__)
    assert_same(seen, expected, rtol=1e-6)


def test_inputs_of_convolutions_are_patches_that_the_weight_as_a_matrix_multiplies():
    encoder = tower(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), nn.Flatten()))
    given, images, seen = problem(encoder=encoder), pictures("a", "train", 5, 0), {}
    key = f"{VISUAL}0.weight"
    Models(given, given.images).observe({}, images, [key], seen.__setitem__)
    torch.testing.assert_close(
        (seen[key] @ encoder.model.visual[0].weight.flatten(1).mT).mT.flatten(1), encoder(images)
    )


def test_inputs_of_tangent_models_are_at_theta0_and_their_tangents_are_derivatives():
    given, images, epsilon = problem(tangent=True), pictures("a", "train", 3, 0), 1e-5
    tangent, standard = Models(given, given.images), Models(problem(), problem().images)
    tau = given.vector("a")
    keys = [key for key in given.keys if given.shapes[key] and key != f"{VISUAL}positional_embedding"]
    keys = [key for key in keys if len(given.shapes[key]) == 2 or key.endswith("ln_2.weight")]
    here, ahead, behind, slopes = {}, {}, {}, {}
    tangent.observe(tau.vector, images, keys, here.__setitem__)
    assert_same(here, {VISUAL + k: x for k, x in restated(tower().model.visual, images).items() if VISUAL + k in keys})
    standard.observe((epsilon * tau).vector, images, keys, ahead.__setitem__)
    standard.observe((-epsilon * tau).vector, images, keys, behind.__setitem__)
    tangent.observe_tangents(tau.vector, images, keys, slopes.__setitem__)
    expected = {key: (ahead[key] - behind[key]) / (2 * epsilon) for key in keys}
    assert_same(slopes, expected, rtol=1e-5, atol=1e-6)


def test_a_forward_pass_ends_with_the_last_wanted_weight():
    encoder, reached = tower(), []
    encoder.model.visual.transformer.resblocks[1].register_forward_hook(lambda *_: reached.append(1))
    given = problem(encoder=encoder)
    models, images = Models(given, given.images), pictures("a", "train", 2, 0)
    models.observe({}, images, [BLOCK_MATRICES[0]], lambda key, x: None)
    assert not reached
    models.observe({}, images, [PROJ], lambda key, x: None)
    assert reached


def test_running_moments_are_those_of_all_rows():
    x, d, weights = random(7, 3, 4), random(7, 3, 4, seed=1), random(7, 3, seed=2).abs()
    running, diagonal = Moments(), Moments(diagonal=True)
    for rows in torch.arange(7).split(3):
        running.add(x[rows], d[rows], weights[rows])
        diagonal.add(x[rows], None, weights[rows])
    w = weights.flatten() / weights.sum()
    x, d = x.flatten(0, 1), d.flatten(0, 1)
    assert_equal(running.mean("xx"), torch.einsum("r,ri,rj->ij", w, x, x))
    assert_equal(running.mean("dx"), torch.einsum("r,ri,rj->ij", w, d, x))
    assert_equal(running.mean("x"), w @ x)
    assert_equal(running.mean("d"), w @ d)
    assert_equal(diagonal.mean("xx"), w @ x.square())


# ---- the normal equation


def inputs_of(given: Problem, task: str, key: str, tau: dict[str, torch.Tensor]) -> torch.Tensor:
    seen = {}
    Models(given, given.images).observe(tau, pictures(task, "train", IMAGES, 0), [key], seen.__setitem__)
    return seen[key].flatten(0, -2)


@pytest.mark.parametrize("shrink", [1.0, 0.6])
@pytest.mark.parametrize("key", [QKV, QKV.replace("in_proj_weight", "out_proj.weight"), PROJ])
def test_regmean_minimises_its_objective(key, shrink):
    given = problem()
    delta = merged(RegMean(shrink=shrink), given)[key].requires_grad_()
    loss = 0.0
    for task in given.tasks:
        x = inputs_of(given, task, key, given.vector(task).vector)
        away = delta - given.tensor(task, key)
        away = away.T if key == PROJ else away
        shrunk = (x @ away.T).square().sum(1).mean() * shrink
        loss = loss + shrunk + (1 - shrink) * (x.square().mean(0) * away.square()).sum()
    assert torch.autograd.grad(loss, delta)[0].abs().max() < 1e-9 * float(loss.detach())


def test_lot_is_regmean_without_shrinkage_but_for_the_scales_of_layernorms():
    given = problem()
    lot = merged(Lot(norms="rest", precision="float64"), given)
    assert_same(merged(RegMean(shrink=1.0), given), lot)
    scaled = merged(Lot(precision="float64"), given)
    changed = {key for key in lot if not torch.equal(lot[key], scaled[key])}
    assert changed == {key for key in given.keys if "ln_" in key and key.endswith(".weight")}
    for key in changed:
        energies = [inputs_of(given, t, key, given.vector(t).vector).square().mean(0) for t in given.tasks]
        gammas = list(given.tensors(key))
        assert_equal(scaled[key], sum(e * g for e, g in zip(energies, gammas)) / sum(energies))


@pytest.mark.parametrize("rest, factor", [("mean", 1 / 3), ("sum", 1.0), ("zero", 0.0)])
def test_the_rest_of_regmean_is_the_mean_the_sum_or_zero(rest, factor):
    given = problem()
    ours, expected = merged(RegMean(rest=rest, images=2), given), total(given)
    rest = [key for key in ours if "embedding" in key or "bias" in key]
    assert rest and all(torch.allclose(ours[key], factor * expected[key]) for key in rest)


def test_regmean_plusplus_runs_each_block_of_a_task_on_the_merged_models_inputs():
    given, shrink = problem(), 0.95
    ours = merged(RegMeanPlusPlus(), given)
    vector = {key: tensor / 3 for key, tensor in total(given).items()}
    for stage in sorted({stage_of(key) for key in given.keys}):
        keys = [key for key in given.keys if stage_of(key) == stage]
        fitted = {}
        for key in keys:
            if len(given.shapes[key]) != 2 or "embedding" in key:
                continue
            flip = (lambda m: m.T) if key == PROJ else (lambda m: m)
            left, right = 0.0, 0.0
            for task in given.tasks:
                own = given.vector(task).vector
                x = inputs_of(given, task, key, vector | {k: own[k] for k in keys})
                gram = x.T @ x / len(x)
                gram = shrink * gram + (1 - shrink) * gram.diagonal().diag()
                left, right = left + gram, right + flip(own[key]) @ gram
            fitted[key] = flip(torch.linalg.solve(left, right, left=False))
        vector |= fitted
    assert_same(ours, vector)


def test_the_released_regmean_plusplus_leaves_what_follows_the_blocks():
    given = problem()
    ours, released = merged(RegMeanPlusPlus(), given), merged(RegMeanPlusPlus(tail="pretrained"), given)
    tail = {PROJ, f"{VISUAL}ln_post.weight", f"{VISUAL}ln_post.bias"}
    assert {key for key in ours if not torch.equal(ours[key], released[key])} == tail
    assert not any(released[key].any() for key in tail)


@pytest.mark.parametrize("tangent", [False, True])
def test_featcal_at_its_corner_is_normalised_regmean_plusplus(tangent):
    given = problem(tangent=tangent)
    corner = FeatCal(teacher=0.0, ridge=0.0, alpha=1 / 3, **PLAIN)
    other = RegMeanPlusPlus(inputs="merged", normalise="frobenius", shrink=1.0, matrices="blocks")
    assert_same(merged(corner, given), merged(other, given))
    for changed in (replace(corner, teacher=0.2), replace(corner, ridge=0.05), replace(corner, normalise="none")):
        away = merged(changed, given)
        assert any((away[key] - tensor).norm() > 1e-3 * tensor.norm() for key, tensor in merged(other, given).items())


@pytest.mark.parametrize("tangent", [False, True])
def test_featcal_calibrates_block_by_block_what_its_base_gives_to_the_inputs_of_each_teacher(tangent):
    """The student has the blocks before calibrated, and this one as its base has it; the teacher is θ_t on its own."""
    given = problem(tangent=tangent)
    method = FeatCal(teacher=0.4, ridge=0.1, anchor=1.5, alpha=0.5, **PLAIN)  # none of them is the default
    base = {key: method.alpha * tensor for key, tensor in total(given).items()}
    vector = dict(base)
    for block in (0, 1):
        fitted = {}
        for key in [key for key in given.keys if f"resblocks.{block}." in key and len(given.shapes[key]) == 2]:
            left = method.ridge * torch.eye(given.shapes[key][1]).double()
            right = method.ridge * method.anchor * base[key]
            for task in given.tasks:
                own, w = given.vector(task).vector, given.pretrained[key]
                x = inputs_of(given, task, key, vector)
                if tangent:
                    away = {name: own[name] - vector[name] for name in given.keys}
                    seen = {}
                    images = pictures(task, "train", IMAGES, 0)
                    Models(given, given.images).observe_tangents(away, images, [key], seen.__setitem__)
                    d = seen[key].flatten(0, -2)
                else:
                    d, w = inputs_of(given, task, key, own) - x, w + own[key]
                c = 1 / (x.T @ x).norm()
                left, right = left + c * x.T @ x, right + c * (own[key] @ x.T + method.teacher * w @ d.T) @ x
            fitted[key] = torch.linalg.solve(left, right, left=False)
        vector |= fitted
    assert_same(merged(method, given), vector)


def test_regmean_plusplus_of_tangent_models_is_regmean():
    given = problem(tangent=True)
    assert_same(merged(RegMeanPlusPlus(), given), merged(RegMean(), given))
    assert (merged(RegMeanPlusPlus(), problem())[QKV] - merged(RegMean(), problem())[QKV]).norm() > 1e-3


@pytest.mark.parametrize("method", [RegMean(), FeatCal(), Lot(matrices="blocks")])
def test_merges_of_tangent_models_are_the_first_order_of_those_of_standard_ones(method):
    epsilon = 1e-6
    ours = merged(method, problem(tangent=True))
    small = merged(method, problem(0.3 * epsilon))
    assert_same({key: tensor / epsilon for key, tensor in small.items()}, ours, rtol=1e-3, atol=1e-3)


def fit_problem(fields: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Problem:
    """θ0 and three θ_t of tensors of a block."""
    start = {key: start for key, (start, _) in fields.items()}
    return Problem(start, {t: {k: ends[i] for k, (_, ends) in fields.items()} for i, t in enumerate(TASKS)})


BLOCK = f"{VISUAL}transformer.resblocks.0."
FC, FC_BIAS, LN, LN_BIAS = (
    f"{BLOCK}{name}" for name in ("mlp.c_fc.weight", "mlp.c_fc.bias", "ln_2.weight", "ln_2.bias")
)


def solve_fits(method: FeatCal, given: Problem, x: torch.Tensor, e: torch.Tensor) -> dict[str, torch.Tensor]:
    """x, e: the student's and the teacher's inputs, (tasks, images, tokens, in), of both layers."""
    start = TaskVector(vector={key: method.alpha * tensor for key, tensor in total(given).items()})
    vector = {key: tensor.clone() for key, tensor in start.vector.items()}
    for fit in [fit for key in (FC, LN) for fit in method.fits(given, key)]:
        assert isinstance(fit, LinearFit | NormFit)
        for task, own, teacher in zip(given.tasks, x, e):
            fit.moments = Moments(diagonal=isinstance(fit, NormFit))
            z = F.layer_norm(own, own.shape[-1:])
            fit.see(*((z, None) if isinstance(fit, NormFit) else (own, teacher - own)))
            fit.add(given, task, tangent=False)
        fit.solve(vector, start)
    return {key: given.pretrained[key].to(tensor) + tensor for key, tensor in vector.items()}


def test_featcal_minimises_its_objectives():
    """With the bias fitted after the weight, and each regulariser towards θ0 + ρ (θ_M − θ0)."""
    shapes = {FC: (5, 4), FC_BIAS: (5,), LN: (4,), LN_BIAS: (4,)}
    given = fit_problem({k: (random(*s, seed=1), random(3, *s, seed=2)) for k, s in shapes.items()})
    x, e = random(3, 6, 5, 4, seed=3), random(3, 6, 5, 4, seed=4)
    method = FeatCal(teacher=0.4, ridge=0.1, anchor=1.5, alpha=0.5, last_tokens=0.1)  # none of them is the default
    theta = {key: tensor.requires_grad_() for key, tensor in solve_fits(method, given, x, e).items()}
    anchor = {k: given.pretrained[k] + method.anchor * method.alpha * tensor for k, tensor in total(given).items()}
    weights = torch.tensor([1.0, *4 * [method.last_tokens]], dtype=torch.float64).expand(6, 5).flatten()
    weights = weights / weights.sum()
    of_weight, of_bias, of_norm = 0.0, 0.0, 0.0
    for task, own, teacher in zip(given.tasks, x.flatten(1, 2), e.flatten(1, 2)):
        end = given.finetuned[task]
        c = 1 / (own.T @ (weights[:, None] * own)).norm()
        mixed = own + method.teacher * (teacher - own)
        of_weight = of_weight + c * (weights @ (own @ theta[FC].T - mixed @ end[FC].T).square()).sum()
        y, target = own @ theta[FC].detach().T + theta[FC_BIAS], mixed @ end[FC].T + end[FC_BIAS]
        of_bias = of_bias + c * (weights @ (y - target).square()).sum()
        z = F.layer_norm(own, (4,))
        of_norm = of_norm + (weights @ (z * (theta[LN] - end[LN]) + theta[LN_BIAS] - end[LN_BIAS]).square()).sum()
    for loss, keys in ((of_weight, [FC]), (of_bias, [FC_BIAS]), (of_norm, [LN, LN_BIAS])):
        loss = loss + method.ridge * sum((theta[key] - anchor[key]).square().sum() for key in keys)
        for gradient in torch.autograd.grad(loss, [theta[key] for key in keys]):
            assert gradient.abs().max() < 1e-10 * float(loss.detach())


def test_patch_tokens_of_the_last_block_count_less_but_as_keys_and_values():
    given = problem()
    plain, weighed = FeatCal(last_tokens=1.0), FeatCal()
    all_alike, ours = merged(plain, given), merged(weighed, given)
    first, last = (f"{VISUAL}transformer.resblocks.{n}." for n in (0, 1))
    assert all(torch.equal(ours[k], all_alike[k]) for k in given.keys if k.startswith(first))
    queries, keys_and_values = ours[f"{last}attn.in_proj_weight"].split([8, 16])
    assert torch.equal(keys_and_values, all_alike[f"{last}attn.in_proj_weight"][8:])
    assert not torch.allclose(queries, all_alike[f"{last}attn.in_proj_weight"][:8])
    assert not torch.allclose(ours[f"{last}mlp.c_fc.weight"], all_alike[f"{last}mlp.c_fc.weight"])


def test_featcal_of_the_blocks_leaves_what_lies_outside_to_its_base():
    given = problem()
    base = {key: 0.3 * tensor for key, tensor in total(given).items()}
    blocks, linear = merged(FeatCal(), given), merged(FeatCal(matrices="linear"), given)
    outside = {key for key in given.keys if "resblocks" not in key}
    assert all(torch.equal(blocks[key], base[key]) for key in outside)
    assert {key for key in given.keys if torch.equal(blocks[key], base[key])} == outside
    fitted = {f"{VISUAL}{name}" for name in ("ln_pre.weight", "ln_pre.bias", "ln_post.weight", "ln_post.bias", "proj")}
    assert {key for key in outside if not torch.equal(linear[key], base[key])} == fitted


@pytest.mark.parametrize("precision, rank", [("float32", 3), ("float64", 4)])
@pytest.mark.parametrize("name", WITH_PRECISION)
def test_the_precision_of_a_method_is_that_of_its_solution(name, precision, rank):
    """Of four inputs one is so small that its energy is 1e-10 of the others', between 4 eps of either type."""
    encoder = tower(lambda: nn.Linear(4, 5, bias=False))
    images = torch.tensor([1.0, 1.0, 1.0, 1e-5]).double().diag()
    given = problem(encoder=encoder, images=Unlabelled(lambda: encoder, lambda *which: images, head))
    options = dict(matrices="linear", precision=precision, shrink=1.0, ridge=0.0, teacher=0.0)
    merge, key = METHODS[name](**options).merge(given), f"{VISUAL}weight"
    mean = total(given)[key] / 3
    expected = torch.cat([mean[:, :rank], torch.zeros(5, 4 - rank).double()], 1)
    assert_equal(merge.vector("a", 1.0).vector[key], expected)
    assert merge.info["without_rank"] == ([key] if rank == 3 else [])


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_an_eigenvalue_counts_above_the_rounding_of_as_many_terms(precision):
    """Of 4 inputs: 4 eps of the largest. What is below has no direction: there the solution is 0."""
    for share, rank in ((3.0, 3), (5.0, 4)):
        equation, eps = NormalEquation((2, 4), "none"), torch.finfo(precision).eps
        equation.add(torch.tensor([1.0, 2.0, 1.0, share * eps * 2]).double().diag(), torch.ones(2, 4).double())
        delta, found = equation.solve("w", precision=precision)
        assert found == rank and bool(delta[0, 3] == 0) is (rank == 3)


# ---- data-free


def wudi_loss(delta: torch.Tensor, deltas: list[torch.Tensor]) -> torch.Tensor:
    return sum(((delta - d) @ d.T).square().sum() / d.square().sum() for d in deltas)


def test_wudi_closed_form_has_no_gradient_and_adam_goes_towards_it():
    deltas = [random(5, 4, seed=t) * (1 + t) for t in range(3)]
    given, key = one_matrix(*deltas), f"{VISUAL}w"
    options = dict(matrices="all", ridge=0.0)
    closed = merged(Wudi(**options), given)[key]
    at = closed.clone().requires_grad_()
    assert torch.autograd.grad(wudi_loss(at, deltas), at)[0].abs().max() < 1e-12
    losses, distances = [], []
    for steps in (0, 30, 100, 300, 3000):
        delta = merged(Wudi(solver="adam", steps=steps, **options), given)[key]
        losses.append(float(wudi_loss(delta, deltas)))
        distances.append(float((delta - closed).norm()))
    assert losses == sorted(losses, reverse=True) and losses[-1] == pytest.approx(float(wudi_loss(closed, deltas)))
    assert distances == sorted(distances, reverse=True) and distances[-1] < 1e-3 * distances[0]


def test_wudis_descent_is_the_loop_written_by_hand():
    """Long enough for squares of gradients to fall; its rate is in units of the root mean square of the sum."""
    deltas = [random(5, 4, seed=t) * (1 + t) for t in range(3)]
    delta = sum(deltas)
    adam = Adam(0.015 * float(delta.square().sum() / 20) ** 0.5)
    for _ in range(150):
        at = delta.clone().requires_grad_()
        delta = adam.step(delta, torch.autograd.grad(wudi_loss(at, deltas), at)[0])
    found = merged(Wudi(matrices="all", solver="adam", steps=150), one_matrix(*deltas))[f"{VISUAL}w"]
    torch.testing.assert_close(found, delta, rtol=1e-6, atol=1e-9)


def test_wudis_ridge_is_a_share_of_the_mean_diagonal_and_draws_to_the_sum():
    """tr Δ_tᵀ Δ_t / ‖Δ_t‖² is 1, so the mean diagonal of three tasks' left side is 3/4 for [5, 4] matrices."""
    deltas = [random(5, 4, seed=t) * (1 + t) for t in range(3)]
    at = merged(Wudi(matrices="all", ridge=0.2), one_matrix(*deltas))[f"{VISUAL}w"].requires_grad_()
    loss = wudi_loss(at, deltas) + 0.2 * 3 / 4 * (at - sum(deltas)).square().sum()
    assert torch.autograd.grad(loss, at)[0].abs().max() < 1e-12


def test_wudis_ridge_and_rate_know_no_scale():
    deltas = [random(5, 4, seed=t) for t in range(3)]
    for method in (Wudi(matrices="all", ridge=0.1), Wudi(matrices="all", solver="adam")):
        one, other = (merged(method, one_matrix(*(s * d for d in deltas)))[f"{VISUAL}w"] for s in (1.0, 1e-3))
        torch.testing.assert_close(other * 1e3, one, rtol=1e-4, atol=1e-5)
    absolute = Wudi(matrices="all", solver="adam", steps=3, lr_unit="absolute")
    one, other = (merged(absolute, one_matrix(*(s * d for d in deltas)))[f"{VISUAL}w"] for s in (1.0, 1e-3))
    assert not torch.allclose(other * 1e3, one, rtol=0.1)


def test_wudi_with_much_ridge_is_the_sum_and_actmat_is_not_normalised():
    deltas = [random(5, 4, seed=t) * 5**t for t in range(2)]
    given, key = one_matrix(*deltas), f"{VISUAL}w"
    torch.testing.assert_close(merged(Wudi(matrices="all", ridge=1e9), given)[key], sum(deltas))
    grams = [d.T @ d for d in deltas]
    expected = sum(d @ g for d, g in zip(deltas, grams)) @ torch.linalg.inv(sum(grams))
    assert_equal(merged(ActMat(), given)[key], expected)
    grams = [g / g.trace() for g in grams]
    expected = sum(d @ g for d, g in zip(deltas, grams)) @ torch.linalg.inv(sum(grams))
    assert_equal(merged(Wudi(matrices="all", ridge=0.0), given)[key], expected)


@pytest.mark.parametrize("method", [Wudi(matrices="all", ridge=0.0), ActMat(matrices="all"), Wudi(matrices="all")])
def test_a_task_that_does_not_move_a_matrix_does_not_count(method):
    delta = random(5, 4)
    ours = merged(method, one_matrix(delta, torch.zeros_like(delta)))[f"{VISUAL}w"]
    assert_equal(ours, delta)


def test_the_two_released_wudis_merge_other_tensors():
    given = draw()
    own, fusionbench = merged(Wudi(), given), merged(Wudi(matrices="all", rest="mean"), given)
    assert {key for key, tensor in own.items() if tensor.any()} == set(BLOCK_MATRICES)
    assert all(tensor.any() for tensor in fusionbench.values())
    assert_equal(fusionbench[f"{VISUAL}class_embedding"], sum(given.tensors(f"{VISUAL}class_embedding")) / 3)
    assert all(torch.equal(own[key], fusionbench[key]) for key in BLOCK_MATRICES)


def test_q_k_and_v_apart_matter_without_images_alone():
    given = problem()
    assert_same(merged(RegMean(split_qkv=True), given), merged(RegMean(), given))
    assert not torch.allclose(merged(Wudi(split_qkv=True), given)[QKV], merged(Wudi(), given)[QKV])
    last = QKV.replace(".0.", ".1.")  # where FeatCal weighs tokens
    assert not torch.allclose(merged(FeatCal(split_qkv=False), given)[last], merged(FeatCal(), given)[last])


# ---- what they have in common


def disjoint(tangent: bool = False) -> Problem:
    """A linear tower; each task has inputs in coordinates of its own, and has changed those columns."""
    encoder = tower(lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False)))
    start = dict(encoder.state_dict())
    key = f"{VISUAL}1.weight"
    columns = {task: torch.arange(12) % 3 == place for place, task in enumerate(TASKS)}
    ends = {t: start | {key: start[key] + random(5, 12, seed=i) * columns[t]} for i, t in enumerate(TASKS)}

    def batch(task: str, split: str, batch_size: int, number: int) -> torch.Tensor:
        return pictures(task, split, batch_size, number, side=2) * columns[task].view(3, 2, 2)

    model = LinearizedModel(encoder) if tangent else encoder
    return Problem(start, ends, images=Unlabelled(lambda: model, batch, head), mode="linear" if tangent else "standard")


ALL = {
    "regmean": RegMean(),
    "lot": Lot(precision="float64"),
    "regmean_plusplus": RegMeanPlusPlus(),
    "featcal": FeatCal(teacher=0.0, ridge=0.0, matrices="linear"),
    "actmat": ActMat(),
    "wudi": Wudi(ridge=0.0, matrices="linear"),
    "tangent_matching": TangentMatching(),
    "tangent_matching gauss_newton": TangentMatching(metric="gauss_newton", alpha=1.0),
}


@pytest.mark.parametrize("tangent", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_vectors_that_do_not_interfere_are_summed(name, tangent):
    given = disjoint(tangent)
    assert_same(merged(ALL[name], given), total(given))


@pytest.mark.parametrize("tangent", [False, True])
@pytest.mark.parametrize("name", ["regmean", "regmean_plusplus", "featcal", "actmat", "wudi"])
def test_the_merge_of_one_task_is_its_own_model(name, tangent):
    three = problem(tangent=tangent)
    given = replace(three, finetuned={"a": three.finetuned["a"]})
    method = replace(ALL[name], rest="sum") if "featcal" not in name else replace(ALL[name], alpha=1.0)
    assert_same(merged(method, given), given.vector("a").vector, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", sorted(ALL))
def test_frozen_tensors_of_the_published_scope_stay(name):
    given = problem(scope="published")
    method = replace(ALL[name], iterations=[2]) if "tangent" in name else ALL[name]
    ours, visual = merged(method, given), merged(method, replace(given, scope="visual"))
    assert not ours.pop("model.logit_scale").any()
    assert_same(ours, visual)


def test_every_method_is_registered_with_what_it_needs():
    load_methods()
    images = {"regmean", "lot", "regmean_plusplus", "featcal", "tangent_matching"}
    for name in (*images, "actmat", "wudi"):
        assert METHODS[name].needs == ("unlabelled images" if name in images else "weights")
        assert METHODS[name].paper or name == "tangent_matching"


# ---- tangent matching


def dense(given: Problem, metric: str, mu: float, start: torch.Tensor) -> tuple[torch.Tensor, Callable]:
    """The solution of the normal equation with J in memory, and the sum that it minimises."""
    encoder = given.images.encoder()
    function = encoder.function if isinstance(encoder, LinearizedModel) else encoder
    theta0 = {key: given.pretrained[key] for key in given.keys}
    left, right, parts = mu * torch.eye(len(start)).double(), mu * start, []
    for task in given.tasks:
        images = given.images.batch(task, "train", IMAGES, 0)
        tau = torch.cat([tensor.flatten() for tensor in given.vector(task).vector.values()])
        by_key = jacrev(partial(functional_call, function))(theta0, (images,))
        jacobian = torch.cat([by_key[key].flatten(2) for key in given.keys], -1)  # (images, D, weights)
        features = functional_call(function, theta0, (images,)) + jacobian @ tau
        h = torch.eye(5).double().expand(len(images), 5, 5)
        if metric == "gauss_newton":
            slopes = torch.stack([jacrev(head(task))(f) for f in features]).detach()  # (images, classes, D)
            p = head(task)(features).softmax(-1).detach()
            h = slopes.mT @ (p.diag_embed() - p[:, :, None] * p[:, None]) @ slopes
        gram = torch.einsum("nda,nde,neb->ab", jacobian, h, jacobian) / len(images)
        left, right = left + gram, right + gram @ tau
        parts.append((gram, tau))

    def error(delta: torch.Tensor) -> float:
        parted = sum((delta - tau) @ gram @ (delta - tau) for gram, tau in parts)
        return float(parted + mu * (delta - start).square().sum())

    return torch.linalg.solve(left, right), error


def small(tangent: bool, *layers: nn.Module) -> Problem:
    """A tower of `layers`, or of 105 weights."""
    layers = layers or (nn.Flatten(), nn.Linear(12, 5), nn.GELU(), nn.Linear(5, 5), nn.LayerNorm(5))
    given = problem(tangent=tangent, encoder=tower(lambda: nn.Sequential(*layers)))
    return replace(given, images=replace(given.images, batch=lambda *which: pictures(*which, side=2)))


@pytest.mark.parametrize("tangent", [False, True])
@pytest.mark.parametrize("metric", ["features", "gauss_newton"])
@pytest.mark.parametrize(("init", "precondition"), [("sum", "kronecker"), ("average", "none")])
def test_tangent_matching_is_the_dense_normal_equation(tangent, metric, init, precondition):
    given, mu = small(tangent), 0.1 if precondition == "kronecker" else 1.0

    def flat(named: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([named[key].flatten() for key in given.keys])

    start = (0.3 if init == "sum" else 1 / 3) * flat(total(given))
    solution, error = dense(given, metric, mu, start)
    method = TangentMatching(
        metric=metric, init=init, mu=mu, precondition=precondition, iterations=[0, 1, 5, 200], batch_size=17
    )
    merge = method.merge(given)
    iterates = {k: flat(merge.vector("a", k).vector) for k in merge.settings}
    assert_equal(iterates[0], start)
    torch.testing.assert_close(iterates[merge.settings[-1]], solution, rtol=1e-6, atol=1e-7)
    for k, delta in iterates.items():
        assert merge.info["errors"][k] == pytest.approx(error(delta), rel=1e-6, abs=1e-9)
    assert merge.info["errors"][:20] == sorted(merge.info["errors"][:20], reverse=True)


def test_kronecker_factors_of_one_linear_map_leave_tangent_matching_five_iterations():
    """There G_t = E[x xᵀ] ⊗ I. M has the same first factor, and a second of five eigenvalues: so many iterations do.

    The cross-entropy's factors, which are nowhere exact, have tests of their own.
    """
    given = small(True, nn.Flatten(), nn.Linear(12, 5))
    start = torch.cat([0.3 * tensor.flatten() for tensor in total(given).values()])
    solution, error = dense(given, "features", 0.0, start)
    method = partial(TangentMatching, damping=1e-12, iterations=[5])
    left = {name: method(precondition=name).merge(given).info["errors"] for name in ("none", "kronecker")}
    assert left["kronecker"][0] == left["none"][0] == pytest.approx(error(start))
    assert left["kronecker"][5] == pytest.approx(error(solution), rel=1e-9)
    assert left["none"][5] > 1.001 * error(solution)


def test_factors_of_the_cross_entropy_are_of_its_derivatives_at_drawn_labels():
    """Each v is the derivative at one label, and which one is drawn by what the task's own model says."""
    given = small(tangent=True)
    products = Products(given, given.unlabelled(TangentMatching()), TangentMatching(metric="gauss_newton"))
    drawn = []
    for (_, v), f in zip(products.directed("a"), products.features["a"]):
        for own, feature in zip(v, f):
            slope = jacrev(head("a"))(feature).detach()  # (classes, D)
            p = head("a")(feature).softmax(-1).detach()
            distances = [float((own - slope.T @ (F.one_hot(torch.tensor(y), 3) - p)).norm()) for y in range(3)]
            assert min(distances) < 1e-9
            drawn.append((int(np.argmin(distances)), p))
    generator = torch.Generator().manual_seed(event_seed(given.seed or 0, "curvature", "a"))
    expected = torch.multinomial(torch.stack([p for _, p in drawn]), 1, generator=generator).flatten().tolist()
    assert [label for label, _ in drawn] == expected and {*expected} == {0, 1, 2}


def test_the_settings_of_tangent_matching_are_the_counts_that_were_asked_for():
    assert TangentMatching(iterations=[1, 3]).merge(small(tangent=True)).settings == (1, 3)


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_tangent_matching_stops_at_a_residual_relative_to_its_first(scale):
    """However bright the images are: squares of all residuals of the darkest are below those of the rounding."""
    given = disjoint(tangent=True)
    images = replace(given.images, batch=lambda *which: scale * given.images.batch(*which))
    assert_same(merged(TangentMatching(), replace(given, images=images)), total(given))


def test_tangent_matching_goes_on_until_a_residual_is_rounding():
    """Two curvatures that differ by 1e-9 leave as much after one iteration, and nothing but rounding after two."""
    encoder = tower(lambda: nn.Linear(2, 5, bias=False))
    batch = torch.tensor([1.0, 1.0 + 1e-9], dtype=torch.float64).diag()
    given = problem(encoder=encoder, images=Unlabelled(lambda: encoder, lambda *which: batch, head))
    assert TangentMatching(precondition="none", iterations=[1, 4]).merge(given).settings == (1, 2)


def test_a_tower_without_factors_is_refused_with_the_option_that_takes_it():
    """Which input a weight of a depthwise convolution multiplies is not told."""
    layers = nn.Conv2d(3, 3, 1, groups=3), nn.Flatten(), nn.Linear(12, 5)
    given = problem(tangent=True, encoder=tower(lambda: nn.Sequential(*layers)))
    given = replace(given, images=replace(given.images, batch=lambda *which: pictures(*which, side=2)))
    with pytest.raises(UsageError, match="precondition: no Kronecker factors; take method.precondition=none"):
        TangentMatching().merge(given)
    assert TangentMatching(precondition="none", iterations=[1]).merge(given).settings == (1,)


def test_directions_that_no_image_sees_stay_where_tangent_matching_began():
    given = disjoint(tangent=True)
    blind = replace(given, images=replace(given.images, batch=lambda *which: 0 * pictures(*which, side=2)))
    merge = TangentMatching(iterations=[1, 2]).merge(blind)
    assert_same(merge.vector("a", merge.settings[0]).vector, {k: 0.3 * v for k, v in total(given).items()})


# ---- released functions


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(FOLDER / "gram.npz", allow_pickle=False) as file:
        return {name: torch.from_numpy(array).double() for name, array in file.items()}


@pytest.fixture(scope="module")
def released() -> Problem:
    with np.load(FOLDER / "spectral.npz", allow_pickle=False) as file:
        theta0, theta = (torch.from_numpy(file[f"three/{name}"]).double() for name in ("theta0", "theta"))
    return Problem(cut(theta0), {task: cut(row) for task, row in zip(TASKS, theta)})


def as_released(given: Problem, flat: torch.Tensor, keys) -> dict[str, torch.Tensor]:
    sizes = [given.shapes[key].numel() for key in sorted(keys)]
    return {key: piece.view(given.shapes[key]) for key, piece in zip(sorted(keys), flat.split(sizes), strict=True)}


LINEAR = {*BLOCK_MATRICES, PROJ}
ADAM = dict(solver="adam", steps=40, lr=1e-5, lr_unit="absolute")


@pytest.mark.parametrize(
    "name, method",
    [
        ("wudi", Wudi(**ADAM)),
        ("wudi_fusionbench", Wudi(matrices="all", rest="mean", **ADAM)),
        ("wudi_closed", Wudi(matrices="linear", ridge=0.0)),
        ("actmat", ActMat()),
    ],
)
def test_data_free_merges_are_the_released_ones(golden, released, name, method):
    ours = merged(method, released)
    if name == "wudi_closed":
        ours = {key: ours[key] for key in LINEAR}
    assert_same(ours, as_released(released, golden[name], ours))


def test_regmean_is_the_released_one(golden, released):
    method = RegMean()
    start = TaskVector(vector={key: tensor / 3 for key, tensor in total(released).items()})
    vector = {key: tensor.clone() for key, tensor in start.vector.items()}
    fits = [fit for key in released.keys for fit in method.fits(released, key)]
    assert {fit.key for fit in fits} == LINEAR
    for fit in fits:
        for place, task in enumerate(released.tasks):
            fit.moments = Moments()
            fit.see(golden[f"inputs/{place}/{fit.key}"], None)
            fit.add(released, task, tangent=False)
        fit.solve(vector, start)
    assert_same(vector, as_released(released, golden["regmean"], vector), rtol=1e-6, atol=1e-7)


def test_featcal_is_the_released_one(golden):
    names = {"w": FC, "b": FC_BIAS, "g": LN, "h": LN_BIAS}
    given = fit_problem(
        {key: (golden[f"featcal/theta0/{n}"], golden[f"featcal/theta/{n}"]) for n, key in names.items()}
    )
    x, e = (golden[f"featcal/{who}"].unflatten(1, (6, 5)) for who in ("student", "teacher"))
    theta = solve_fits(FeatCal(), given, x, e)
    assert_same(theta, {key: golden[f"featcal/{n}"] for n, key in names.items()}, rtol=1e-4, atol=1e-5)
    other = solve_fits(FeatCal(anchor=2.0, teacher=0.3), given, x, e)  # the paper's settings
    assert all((other[key] - theta[key]).norm() > 1e-4 * theta[key].norm() for key in theta)


# ---- bad input


NEED_IMAGES = (RegMean(), Lot(), RegMeanPlusPlus(), FeatCal(), TangentMatching())


@pytest.mark.parametrize("method", NEED_IMAGES)
def test_a_problem_without_images_is_refused(method):
    with pytest.raises(UsageError, match=f"{type(method).name} needs unlabelled images"):
        method.merge(replace(problem(), images=None))


@pytest.mark.parametrize("method", NEED_IMAGES)
def test_a_split_without_images_is_refused(method):
    given = problem()
    empty = replace(given, images=replace(given.images, batch=lambda *which: torch.zeros(0, 3, 8, 8)))
    with pytest.raises(UsageError, match="a: expected unlabelled images of split train, found none"):
        method.merge(empty)


@pytest.mark.parametrize("method", NEED_IMAGES)
def test_too_few_images_are_all_taken_once_and_counted(method):
    given = problem()
    method = replace(method, iterations=[1]) if isinstance(method, TangentMatching) else method
    assert method.images > IMAGES
    assert method.merge(given).info["images"] == dict.fromkeys(TASKS, IMAGES)
    assert torch.equal(gather(given.images, "a", "train", 256), pictures("a", "train", IMAGES, 0))
    assert replace(method, images=4).merge(given).info["images"] == dict.fromkeys(TASKS, 4)


@pytest.mark.parametrize("method", NEED_IMAGES)
def test_only_images_of_the_named_split_are_asked_for(method):
    given, asked = problem(), set()
    method = replace(method, iterations=[1]) if isinstance(method, TangentMatching) else method

    def remembered(task: str, split: str, batch_size: int, number: int) -> torch.Tensor:
        asked.add(split)
        return pictures(task, split, batch_size, number)

    replace(method, split="val", images=4).merge(replace(given, images=replace(given.images, batch=remembered)))
    assert asked == {"val"}


@pytest.mark.parametrize("method", NEED_IMAGES)
def test_no_pass_is_of_more_images_than_a_batch(method):
    method = replace(method, iterations=[1]) if isinstance(method, TangentMatching) else method
    encoder, sizes = tower(partial(tiny, layers=1)), set()
    encoder.register_forward_pre_hook(lambda module, inputs: sizes.add(len(inputs[0])))
    replace(method, images=5, batch_size=3).merge(problem(encoder=encoder))
    assert sizes == {3, 2}


@pytest.mark.parametrize("tangent", [False, True])
def test_without_a_teacher_no_drift_is_asked_for(tangent, monkeypatch):
    """It would be multiplied by 0; and tangent models have the inputs of all blocks at once."""
    given, method = problem(tangent=tangent), RegMeanPlusPlus(images=4)
    monkeypatch.setattr(Models, "drift", lambda *which: pytest.fail("a drift was asked for"))
    method.merge(given)
    assert (len(method.stages(given, Models(given, given.images))) == 1) is tangent


@pytest.mark.parametrize("method", [RegMean(), Lot(), RegMeanPlusPlus(), FeatCal()])
def test_every_image_counts_however_many_are_in_a_pass(method):
    given = problem()
    assert_same(merged(replace(method, batch_size=7), given), merged(replace(method, batch_size=IMAGES), given))


def test_directions_without_inputs_stay_at_theta0_and_are_told():
    given = problem()
    merge = Lot(images=1, matrices="blocks", norms="rest", precision="float64").merge(given)  # 3 x 5 tokens, 16 wide
    key = f"{BLOCK}mlp.c_proj.weight"
    assert key in merge.info["without_rank"] and QKV not in merge.info["without_rank"]
    seen = torch.cat([one(given, t, key) for t in given.tasks])
    unseen = torch.linalg.svd(seen).Vh[len(seen) :]
    delta = merge.vector("a", 1.0).vector[key]
    assert len(unseen) == 1 and (delta @ unseen.T).abs().max() < 1e-9 < delta.norm()
    assert RegMean(images=1).merge(given).info["without_rank"] == []  # the diagonal fills it


def one(given: Problem, task: str, key: str) -> torch.Tensor:
    seen = {}
    tau = given.vector(task).vector
    Models(given, given.images).observe(tau, pictures(task, "train", 1, 0), [key], seen.__setitem__)
    return seen[key].flatten(0, -2)


@pytest.mark.parametrize(
    "made, named",
    [
        (lambda: RegMean(matrices="all"), "linear or blocks"),
        (lambda: RegMean(inputs="mine"), "own, layer, merged"),
        (lambda: RegMean(normalise="trance"), "none, frobenius, trace"),
        (lambda: RegMean(rest="some"), "mean, sum, zero"),
        (lambda: RegMean(images=0), "images: expected a whole number of at least 1"),
        (lambda: RegMean(split="training"), "train, val, test"),
        (lambda: RegMean(shrink=1.5), "shrink: expected a share"),
        (lambda: FeatCal(teacher=-1.0), "teacher: expected a share"),
        (lambda: FeatCal(ridge=-1.0), "ridge: expected a number of at least 0"),
        (lambda: FeatCal(base="featcall"), "did you mean featcal"),
        (lambda: FeatCal(base="emr"), "a model for each task"),
        (lambda: Lot(precision="half"), "float32, float64"),
        (lambda: Lot(norms="all"), "rest, scale, affine"),
        (lambda: RegMeanPlusPlus(tail="cut"), "merged, pretrained"),
        (lambda: Wudi(solver="sgd"), "closed, adam"),
        (lambda: Wudi(ridge=-1.0), "ridge: expected a number of at least 0"),
        (lambda: Wudi(lr_unit="relative"), "rms, absolute"),
        (lambda: TangentMatching(metric="logits"), "features, gauss_newton"),
        (lambda: TangentMatching(init="zero"), "sum, average"),
        (lambda: TangentMatching(iterations=[]), "at least one value"),
        (lambda: TangentMatching(iterations=[4, 2]), "in ascending order"),
        (lambda: TangentMatching(mu=-1.0), "mu: expected a number of at least 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(made, named):
    with pytest.raises(UsageError, match=named):
        made().merge(problem())


def test_weights_that_no_function_multiplies_are_named():
    encoder = tower()
    encoder.model.visual.unused = nn.Parameter(torch.ones(3, 3).double())
    with pytest.raises(UsageError, match=f"{VISUAL}unused.*no inputs.*method.matrices"):
        RegMean().merge(problem(encoder=encoder))
    assert RegMean(matrices="blocks").merge(problem(encoder=encoder)).settings == (1.0,)


def test_attention_that_is_no_plain_self_attention_is_refused():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, images):
            x = images.flatten(2)[..., :4]
            return self.attn(x, x, x, need_weights=True)[0].mean(1)

    with pytest.raises(UsageError, match="plain self-attention"):
        RegMean().merge(problem(encoder=tower(Masked)))


@pytest.mark.parametrize("method", [RegMean(), RegMeanPlusPlus(), FeatCal(), ActMat(), Wudi()])
def test_weights_that_are_no_numbers_are_told_of(method):
    given = problem()
    given.finetuned["b"][QKV][0, 0] = torch.nan
    with pytest.raises(NoDecomposition, match="expected inputs that are numbers.*eval_single_task"):
        method.merge(given)
