"""The contract around the methods: problems, storage, registration, masks on disk and their analysis."""

import ast
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from adapting_problems import head
from merging_problems import Counted, draw
from test_gram import problem as pictured
from test_gram import tiny
from test_gram import tower as picture_tower

from src import checkpoints
from src.experiments.stages import OF_METHODS
from src.merging import masked, registry
from src.merging.base import Drawn, Labelled, Merge, Method, Problem, Progress, part_of_state, scaled
from src.merging.consensus import Consensus
from src.merging.geometry import describe, vector_geometry
from src.merging.mag_masking import MagnitudeMasking
from src.merging.names import file_doc, own_doc
from src.merging.registry import METHODS, WEIGHTS, label, load_methods, register
from src.merging.search import Searched
from src.merging.tall_mask import TallMask
from src.merging.ties import Ties
from src.runtime.files import StorageError
from src.runtime.messages import UsageError
from src.runtime.paths import ROOT

W = "model.visual.w"

# Another value of an option than any default; METHOD.OPTION of one method alone. Flags and numbers need no entry.
OTHER = {
    "adapt_on": "val",
    "alphas": [0.7],
    "base": "ties",
    "base_options": {"k": 30.0},
    "batches": 3,
    "betas": [0.7],
    "alpha": 0.6,
    "by": "row",
    "clamp": False,
    "pcb.clamp": 0.2,
    "classes": "all",
    "clip": 0.4,
    "atlas.clip": 0.01,
    "atlas.coef": 0.2,
    "common_space_fraction": 0.4,
    "density": 0.4,
    "epsilon": 0.2,
    "estimator": "published",
    "final": "binary",
    "floor": 0.5,
    "floor_by": "sum",
    "gamma": 0.1,
    "granularity": "task",
    "init": "average",
    "initial_logit": 0.4,
    "initial_logits": 0.3,
    "inputs": "own",
    "regmean.inputs": "layer",
    "lot.inputs": "layer",
    "iterations": [3],
    "k": 5.0,
    "lambdas": [0.7],
    "loss": "expert",
    "lr": 0.1,
    "lr_unit": "absolute",
    "mask_lr": 0.2,
    "matrices": "linear",
    "actmat.matrices": "blocks",
    "regmean.matrices": "blocks",
    "lot.matrices": "blocks",
    "regmean_plusplus.matrices": "blocks",
    "metric": "gauss_newton",
    "mu": 0.2,
    "normalise": "frobenius",
    "featcal.normalise": "none",
    "fisher.normalise": False,
    "norms": "affine",
    "featcal.norms": "scale",
    "p": 0.3,
    "pass_size": 1,
    "precondition": "none",
    "prun_thre_k": 3,
    "rank": 0.7,
    "surgery.rank": 3,
    "ratio": 0.4,
    "reduce": "sum",
    "emr.rescale": "published",
    "della.rescale": "l1",
    "rest": "zero",
    "wudi.rest": "mean",
    "reuse_mask": True,
    "ridge": 0.3,
    "shrink": 0.6,
    "solver": "adam",
    "split": "val",
    "stale": False,
    "start": "cart",
    "tail": "deep",
    "regmean_plusplus.tail": "pretrained",
    "tall_mask_lambda": [0.3],
    "teacher": 0.4,
    "then": "ties",
    "della.then": "sum",
    "variant": "fusion_bench",
    "pcb.variant": "pcb",
    "vectors": "float64",
}
CONCRETE_ADAMERGING = ("concrete_task_wise_adamerging", "concrete_layer_wise_adamerging")
REGMEANS = ("regmean", "lot", "regmean_plusplus")
# Options that count where another is given.
ONLY_WITH = {
    "wudi.steps": {"solver": "adam"},
    "wudi.lr": {"solver": "adam"},
    "wudi.lr_unit": {"solver": "adam"},
    "dare.reduce": {"then": "ties"},
    "breadcrumbs.reduce": {"then": "ties"},
    **{f"{name}.clamp": {"coef": 1.5} for name in ("adamerging", "adamerging_pp", *CONCRETE_ADAMERGING)},
    **{f"{name}.draws": {"final": "mean"} for name in ("concrete_task_arithmetic", *CONCRETE_ADAMERGING)},
    **{f"{name}.split_qkv": {"last_tokens": 0.5} for name in REGMEANS},
    **{f"{name}.anchor": {"ridge": 0.3} for name in REGMEANS},
    **{f"{name}.teacher": {"inputs": "merged"} for name in REGMEANS},
}
# What there is few of, for every method that has it.
SHORT = {"steps": 2, "mask_steps": 2, "lr": 0.05, "images": 5, "batch_size": 2, "iterations": [1, 2]}
# Files; what counts for nearly singular inputs alone (see test_gram.py); and the only split with labels.
NOT_HERE = ("load_mask", "mask_file", "precision", "atlas.adapt_on")
load_methods()
OPTIONS = [
    f"{method.name}.{field.name}"
    for method in dict.fromkeys(METHODS.values())
    if method.__module__.startswith("src.")
    for field in fields(method)
    if not {field.name, f"{method.name}.{field.name}"} & {*NOT_HERE}
]


def problem(tmp_path=None, tasks=("a", "b"), **fields) -> Problem:
    generator = torch.Generator().manual_seed(1)
    shapes = {W: (6, 5), "model.visual.b": (3,), "model.logit_scale": ()}
    start = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    ends = {task: {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in start.items()} for task in tasks}
    path = (lambda name: tmp_path / f"{name}.safetensors") if tmp_path else None
    return Problem(start, ends, **{"model": "tiny", "mask_path": path} | fields)


def test_foreign_checkpoints_are_refused_with_the_keys_or_shapes_that_differ():
    start = {W: torch.zeros(2, 3)}
    with pytest.raises(checkpoints.CheckpointError, match="other.visual.w"):
        Problem(start, {"t": {"other.visual.w": torch.zeros(2, 3)}})
    with pytest.raises(checkpoints.CheckpointError, match=rf"{W}: expected \(2, 3\), found \(3, 2\)"):
        Problem(start, {"t": {W: torch.zeros(3, 2)}})
    with pytest.raises(UsageError, match="at least one task"):
        Problem(start, {})
    with pytest.raises(UsageError, match="visual, published"):
        Problem(start, {"t": start}, scope="text")
    with pytest.raises(checkpoints.CheckpointError, match="model.visual"):
        Problem({"w": torch.zeros(2)}, {"t": {"w": torch.zeros(2)}}).vector("t")


STREAMING = ("sum", "average", "zeroshot", "ties", "mag_masking", "mag_prune", "tall_mask", "consensus", "emr")
STREAMING += ("dare", "breadcrumbs", "della", "magmax", "metagpt")


@pytest.mark.parametrize("name", STREAMING)
def test_weights_are_read_tensor_by_tensor(tmp_path, name):
    """No method has more than a few of the checkpoints' 10 x 30 tensors in memory."""
    load_methods()
    generator = torch.Generator().manual_seed(0)
    keys = [f"model.visual.{i}" for i in range(30)]
    start = {key: torch.randn(4, generator=generator) for key in keys}
    ends = {f"t{t}": {k: v + torch.randn(4, generator=generator) for k, v in start.items()} for t in range(10)}
    paths = dict(model="tiny", mask_path=lambda name: tmp_path / f"{name}.safetensors")
    TallMask().merge(Problem(start, ends, **paths)).finish(dict.fromkeys(ends, 0.4))  # the masks that consensus reads
    Counted.alive = Counted.most = 0
    counted = Problem(Counted(start), {task: Counted(weights) for task, weights in ends.items()}, **paths)
    merge = registry.METHODS[name]().merge(counted)
    merge.vector("t3", merge.settings[0])
    assert 0 < Counted.most <= 3


def test_all_differences_have_the_widest_type_of_the_weights_in_scope():
    """Methods stack and add tensors of several names, and take norms over all of them."""
    types = {W: torch.float16, "model.visual.b": torch.float64, "model.logit_scale": torch.float32}
    start = {key: torch.tensor([1.0, 0.1]).to(dtype) for key, dtype in types.items()}
    ends = {"t": {key: torch.tensor([1.5, 0.2]).to(dtype) for key, dtype in types.items()}}
    for scope in ("visual", "published"):
        found = Problem(start, ends, scope=scope)
        assert found.dtype == torch.float64
        for key in found.keys:
            expected = ends["t"][key].double() - start[key].double()
            for tau in (found.tensor("t", key), found.vector("t").vector[key], *found.tensors(key)):
                assert tau.dtype == torch.float64 and torch.equal(tau, expected)
    (half,) = Problem({W: start[W]}, {"t": {W: ends["t"][W]}}).tensors(W)
    assert half.dtype == torch.float32 and torch.equal(half, ends["t"][W].float() - start[W].float())


@pytest.mark.parametrize("tasks, finetuned, masked", [(8, 23.3, 7.1), (14, 40.2, 7.7), (20, 57.0, 8.2)])
def test_storage_is_that_of_the_papers_table(tasks, finetuned, masked):
    """ViT-B/32 in gigabits: 87.85M trained weights of 113.45M."""
    sizes = {W: 87_849_216, "model.token_embedding.weight": 25_599_489}
    start = {key: torch.empty(size, device="meta") for key, size in sizes.items()}
    found = Problem(start, {str(task): start for task in range(tasks)})
    assert (found.num_parameters, found.num_parameters_total) == (87_849_216, 113_448_705)
    assert round(found.storage_merged() / 1e9, 1) == 3.6
    assert round(found.storage_finetuned() / 1e9, 1) == finetuned
    assert round(found.storage_masked() / 1e9, 1) == masked
    published = Problem(start, {str(task): start for task in range(tasks)}, scope="published")
    assert published.storage_finetuned() == 32 * tasks * 113_448_705


def test_register_refuses_what_is_no_method_and_names_that_are_taken():
    load_methods()
    with pytest.raises(TypeError, match="dataclass"):
        register("plain")(type("Plain", (), {}))

    @dataclass
    class Other(Method):
        def merge(self, problem) -> Merge: ...

    with pytest.raises(ValueError, match="two merging methods"):
        register("ties")(Other)
    assert registry.METHODS["ties"].name == "ties"
    with pytest.raises(ValueError, match="two merging methods have the title 'TIES'"):
        register("other", title="TIES")(Other)
    with pytest.raises(ValueError, match="stage 'mergin' does not exist; did you mean merging?"):
        register("other", stage="mergin")(Other)
    assert "other" not in registry.METHODS


def test_a_class_of_another_file_does_not_take_a_name():
    load_methods()
    namesake = dataclass(
        type("Ties", (Method,), {"merge": lambda self, problem: None, "__module__": "src.merging.mine"})
    )
    with pytest.raises(ValueError, match="two merging methods"):
        register("ties")(namesake)
    assert registry.METHODS["ties"] is Ties


@pytest.mark.parametrize("use_ties", [False, True])
def test_masks_are_kept_as_bits_and_reloaded(tmp_path, use_ties):
    found = problem(tmp_path)
    made = TallMask(use_ties=use_ties).merge(found)
    facts = made.finish({"a": 0.2, "b": 0.5})
    header = checkpoints.header(facts["mask_file"])
    assert header["tall_mask_lambda"] == {"a": 0.2, "b": 0.5} and header["scope"] == "visual"
    loaded = TallMask(use_ties=use_ties, load_mask=True).merge(found)
    for task, setting in {"a": 0.2, "b": 0.5}.items():
        again = loaded.vector(task, 1.0).vector
        assert all(torch.equal(again[key], tensor) for key, tensor in made.vector(task, setting).vector.items())
    assert loaded.finish({"a": 1.0, "b": 1.0})["masks"] == facts["masks"]
    for reading in (TallMask(use_ties=use_ties, load_mask=True), Consensus(use_ties=use_ties)):
        assert reading.reads(found.masks_at) == facts["mask_file"]


@pytest.mark.parametrize("use_ties", [False, True])
def test_a_place_where_masks_cannot_be_kept_is_told_before_the_work(tmp_path, use_ties):
    found, name = problem(tmp_path), "tall_mask_ties" if use_ties else "tall_mask"
    found.masks_at(name).mkdir()
    with pytest.raises(StorageError, match=rf"{name}\.safetensors.*Is a directory"):
        TallMask(use_ties=use_ties).merge(found)
    TallMask(use_ties=not use_ties).merge(found)


def test_masks_take_one_bit_per_weight(tmp_path):
    start = {W: torch.zeros(1000, 100)}
    ends = {str(t): {W: torch.randn(1000, 100)} for t in range(4)}
    found = Problem(start, ends, model="tiny", mask_path=lambda name: tmp_path / name)
    bits = TallMask().merge(found).finish(dict.fromkeys(ends, 0.4))["mask_file_bits"]
    assert 4e5 <= bits < 4e5 + 8 * 4096  # and a header


@pytest.mark.parametrize("method", [TallMask(load_mask=True), Consensus(), Consensus(use_ties=True)])
def test_missing_masks_name_the_command_that_makes_them(tmp_path, method):
    with pytest.raises(FileNotFoundError, match=f"method=tall_mask method.use_ties={method.use_ties}"):
        method.merge(problem(tmp_path))


@pytest.mark.parametrize(
    "other, named",
    [
        (dict(model="large"), ("large", "tiny")),
        (dict(scope="published"), ("published", "visual")),
        (dict(mode="linear"), ("linear", "standard")),
        (dict(tasks=("a", "c")), ("'c'", "'b'")),
    ],
)
def test_masks_of_another_problem_are_refused_with_both_names(tmp_path, other, named):
    kept = TallMask().merge(problem(tmp_path)).finish({"a": 0.2, "b": 0.5})["mask_file"]
    for method in (TallMask(mask_file=str(kept)), Consensus(mask_file=str(kept))):
        with pytest.raises(checkpoints.CheckpointError) as refused:
            method.merge(problem(tmp_path, **other))
        assert all(name in str(refused.value) for name in named)


def test_masks_of_other_tensors_are_refused(tmp_path, monkeypatch):
    """Also those which do not tell, as older ones, of which checkpoints they were made."""
    monkeypatch.setattr(masked.results, "changed", lambda *made_of: [])
    start, ends = {W: torch.zeros(3, 2)}, {task: {W: torch.randn(3, 2)} for task in "ab"}
    kept = TallMask().merge(Problem(start, ends, model="tiny", mask_path=lambda name: tmp_path / name))
    file = str(kept.finish({"a": 0.2, "b": 0.5})["mask_file"])
    more = {f"{W}.more": torch.randn(4)}
    wider = Problem(start | more, {task: end | more for task, end in ends.items()}, model="tiny")
    for method in (TallMask(mask_file=file), Consensus(mask_file=file)):
        with pytest.raises(checkpoints.CheckpointError, match="the task vectors and the masks"):
            method.merge(wider)


def test_published_mask_files_serve_both_scopes(tmp_path):
    found = problem(scope="published")
    size = found.num_parameters
    bits = {task: np.random.default_rng(i).integers(0, 2, size).astype(bool) for i, task in enumerate(found.tasks)}
    np.save(tmp_path / "TALL_mask_2task.npy", {task: np.packbits(row) for task, row in bits.items()}, allow_pickle=True)
    file = str(tmp_path / "TALL_mask_2task.npy")
    merge = TallMask(load_mask=True, mask_file=file).merge(found)
    total = sum(found.vector(task) for task in found.tasks).vector
    ours = torch.cat([merge.vector("b", 1.0).vector[key].flatten() for key in sorted(total)])
    expected = torch.cat([total[key].flatten() for key in sorted(total)]) * torch.from_numpy(bits["b"])
    assert torch.equal(ours, expected)
    of_tower = TallMask(mask_file=file).merge(problem())  # the frozen rest does not move, masked or not
    assert of_tower.vector("b", 1.0).vector.keys() == set(problem().keys)
    assert all(
        torch.equal(of_tower.vector("b", 1.0).vector[key], merge.vector("b", 1.0).vector[key]) for key in problem().keys
    )
    with pytest.raises(checkpoints.CheckpointError, match="'c'"):
        TallMask(mask_file=file).merge(problem(scope="published", tasks=("a", "c")))


def test_published_masks_that_were_fetched_are_found(tmp_path):
    """By load_mask and by consensus, as the published commands have it; masks of one's own come first."""
    fetched = tmp_path / "published_tall_mask_2task.safetensors"
    found = replace(problem(tmp_path), published_masks=fetched)
    for method in (TallMask(load_mask=True), Consensus()):
        with pytest.raises(
            FileNotFoundError, match="or fetch .*download_checkpoints.py --model=tiny --kind=tall_masks"
        ):
            method.merge(found)
    generator = torch.Generator().manual_seed(0)
    shapes = problem(scope="published").shapes
    bits = {t: {k: torch.rand(s, generator=generator) < 0.5 for k, s in shapes.items()} for t in found.tasks}
    checkpoints.save_masks(fetched, bits, dict(model="tiny", mode="standard", scope="published"))
    masked = TallMask(load_mask=True).merge(found)
    assert masked.finish(dict.fromkeys(found.tasks, 1.0))["mask_file"] == fetched
    shared = Consensus(prun_thre_k=2).merge(found)
    assert shared.info["mask_file"] == fetched
    total = sum(found.vector(task) for task in found.tasks).vector
    for key in found.keys:
        assert torch.equal(masked.vector("b", 1.0).vector[key], total[key] * bits["b"][key])
        assert torch.equal(shared.tau.vector[key], total[key] * (bits["a"][key] & bits["b"][key]))
    with pytest.raises(FileNotFoundError, match="method.use_ties=True"):  # none of TIES were published
        Consensus(use_ties=True).merge(found)
    own = TallMask().merge(found).finish({"a": 0.2, "b": 0.5})["mask_file"]
    assert TallMask(load_mask=True).merge(found).file == own
    assert "mask_file" not in Consensus().merge(found).info


@pytest.mark.parametrize("method", [MagnitudeMasking(), TallMask()])
def test_a_searched_mask_is_that_of_its_options(tmp_path, method):
    found = problem(tmp_path)
    search = {"k": [20.0, 60.0]} if "k" in method.defaults() else {"use_ties": [False, True]}
    (option, values) = next(iter(search.items()))
    merge = Searched.over(method, search, found)
    own = merge.settings[-1]["setting"]
    chosen = {"a": {option: values[0], "setting": own}, "b": {option: values[1], "setting": own}}
    alone = [replace(method, **{option: value}).merge(found) for value in values]
    for (task, setting), one in zip(chosen.items(), alone):
        vector, expected = merge.vector(task, setting).vector, one.vector(task, own).vector
        assert all(torch.equal(vector[key], expected[key]) for key in expected)

    assert merge.per_task and merge.storage_bits == alone[0].storage_bits == found.storage_masked()
    facts = merge.finish(chosen)["by_options"]
    assert [(part["options"], part["tasks"]) for part in facts] == [({option: v}, [t]) for v, t in zip(values, "ab")]
    for part, one, task in zip(facts, alone, "ab"):
        assert part["masks"]["density"] == {task: pytest.approx(one.mask(task, own).density())}
    assert not list(tmp_path.iterdir()), "masks of some of the tasks are of no use to consensus"
    same = {task: {option: values[1], "setting": own} for task in "ab"}
    told = merge.finish(same)
    assert told == alone[1].finish(dict.fromkeys("ab", own)) and set(told["masks"]["density"]) == {"a", "b"}
    assert bool(list(tmp_path.iterdir())) == ("mask_file" in told) == isinstance(method, TallMask)


def test_a_mask_that_is_asked_for_after_the_search_is_that_of_its_lambda():
    found = problem()
    merge = TallMask().merge(found)
    for task in found.tasks:  # as validation asks
        for setting in merge.settings:
            merge.mask(task, setting)
    total, tau = sum(found.vector(task) for task in found.tasks).vector[W], found.tensor("a", W)
    for setting in merge.settings:
        assert torch.equal(merge.mask("a", setting).bits[W].bool(), tau.abs() > setting * (total - tau).abs())
    assert merge.mask("a", 0.2).density() > merge.mask("a", 0.6).density()


def test_the_edge_of_a_searched_merge_is_that_of_its_own_settings():
    merge = Searched.over(Ties(), {"alphas": [[0.1, 0.2], [0.2, 0.3]]}, problem())
    assert [setting["setting"] for setting in merge.settings] == [0.1, 0.2, 0.2, 0.3]
    assert [merge.at_edge(setting) for setting in merge.settings] == [False, True, False, True]


def test_every_merge_of_a_search_has_a_state_of_its_own_and_no_watcher(tmp_path):
    parts = []

    @dataclass
    class Remembering(Ties):
        def merge(self, problem: Problem) -> Merge:
            parts.append(problem.progress)
            return super().merge(problem)

    state, log = tmp_path / "ties.state", lambda values, step: None
    given = problem(progress=Progress(lambda *which: None, log, state, save_every=5))
    Searched.over(Remembering(), {"k": [10.0, 20.0], "reduce": ["mean", "sum"]}, given)
    assert parts == [Progress(None, log, part_of_state(state, number), 5) for number in range(4)]
    assert len({part.state for part in parts} | {state}) == 5


def test_labels_tell_options_and_searches_apart():
    methods = [Ties(), Ties(k=10), Ties(k=10.5), Ties(reduce="sum"), Ties(k=10, reduce="sum"), Ties(alphas=[1.0])]
    labels = [label(method) for method in methods]
    assert labels == [
        "ties",
        "ties_k=10",
        "ties_k=10.5",
        "ties_reduce=sum",
        "ties_k=10_reduce=sum",
        "ties_alphas=-1.0-",
    ]
    searches = [{"k": [10]}, {"k": [10, 20]}, {"k": [20, 10]}, {"k": [10.5, 20.0]}, {"k": [10], "reduce": ["sum"]}]
    labels += [label(Ties(), search) for search in searches]
    assert label(Ties(), {"k": [10.5, 20.0], "reduce": ["mean", "sum"]}) == "ties_search_k=10.5+20_reduce=mean+sum"
    files = [label(TallMask(mask_file=f"{folder}/a.safetensors")) for folder in ("x", "y")]
    labels += [*files, label(TallMask(), {"mask_file": ["x/a.safetensors", "y/a.safetensors"]})]
    assert len(set(labels)) == len(labels) and not any("/" in text or "[" in text for text in labels)
    assert files[0].removeprefix("tall_mask_mask_file=") in labels[-1]


def test_a_merge_without_settings_is_refused():
    with pytest.raises(UsageError, match="at least one coefficient"):
        scaled(problem(), Ties().merge(problem()).vector("a", 1.0), [])


def test_mask_analysis_counts_what_it_says():
    rows = torch.tensor([[1, 1, 0, 0, 1, 0, 0, 0, 1], [1, 0, 1, 0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 1, 0, 0, 0, 0]]).bool()
    masks = {t: {"x": row[:4].reshape(2, 2), "y": row[4:]} for t, row in zip("abc", rows, strict=True)}
    found = describe(masks)
    assert found["density"] == pytest.approx({"a": 4 / 9, "b": 3 / 9, "c": 2 / 9})
    assert found["usage"] == pytest.approx([4 / 9, 3 / 9, 0, 2 / 9])
    assert (found["catastrophic"], found["selfish"], found["universal"]) == pytest.approx((4 / 9, 3 / 9, 2 / 9))
    assert np.array(found["iou"]) == pytest.approx(np.array([[1, 2 / 5, 2 / 4], [2 / 5, 1, 2 / 3], [2 / 4, 2 / 3, 1]]))
    empty = describe({t: {"x": torch.zeros(5, dtype=torch.bool)} for t in "ab"})
    assert empty["iou"] == [[1, 1], [1, 1]] and empty["catastrophic"] == 1


def test_vector_geometry_equals_the_flat_vectors():
    found = problem(tasks=("a", "b", "c"))
    flat = torch.stack([torch.cat([found.tensor(t, k).flatten() for k in found.keys]) for t in found.tasks]).double()
    geometry = vector_geometry(found)
    unit = flat / flat.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(geometry["cosine"], unit @ unit.T, atol=1e-12)
    np.testing.assert_allclose(geometry["norm"], flat.norm(dim=1))
    start = {W: torch.zeros(3)}
    assert vector_geometry(Problem(start, {"a": start, "b": {W: torch.ones(3)}}))["cosine"] == [[0, 0], [0, 1]]


# Each chooses among the methods what no method says of itself: what to compute, to draw, or to claim.
CHOICES = {
    "src/experiments/commands.py": {"sum", "ties", "tall_mask"},  # on random subsets of the tasks
    "src/experiments/course.py": {"adamerging", "adarank"},  # whose steps are scored unless others are named
    "src/experiments/merged_models.py": {*"average sum ties tall_mask".split()},  # among those that are seen closely
    "src/reporting/comparison/merged_models.py": {"average", "sum", "ties", "tall_mask"},  # among those of a figure
    "src/reporting/comparison/storage.py": {"average", "sum", "tsv_m"},  # of one model, beside the others
    "src/reporting/tall/claims.py": {"ties", "sum", "average", "zeroshot"},
    "src/reporting/report/gallery.py": {"methods", "adaptation"},  # the words of something else, and in the next
    "src/reporting/tangent/tables.py": {"atlas", "lines"},
}


def test_facts_of_methods_and_names_of_stages_stand_where_they_are_registered():
    """No other file lists two of them: what a list would say of them, `register` and Stage take."""
    load_methods()
    lists: dict[str, list[list[str]]] = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        if path.parent.name == "merging" or path.name == "stages.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
                words = [e.value for e in node.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)]
                if any(len({*words} & known) > 1 for known in ({*registry.METHODS}, {*OF_METHODS})):
                    lists.setdefault(str(path.relative_to(ROOT)), []).append(words)
    assert {name: words for name, words in lists.items() if name not in CHOICES} == {}
    assert {name for name, words in lists.items() if len(words) > 1} == set()
    assert {name for name in CHOICES if not CHOICES[name] <= {*lists.get(name, [[]])[0]}} == set()


def test_every_method_says_in_one_line_what_it_does():
    """`main.py --methods` shows the first line of the class or its file: neither another method's nor an option's."""
    load_methods()
    ours = [cls for cls in registry.registered() if cls.__module__.startswith("src.merging.")]
    lines = {cls.name: (own_doc(cls) or file_doc(cls)).partition("\n")[0] for cls in ours}
    assert len(set(lines.values())) == len(lines)
    for cls in ours:
        assert lines[cls.name].endswith(".")
        assert not any(lines[cls.name].startswith(f"{option}:") for option in cls.defaults()), lines[cls.name]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_a_method_reaches_what_it_makes(option, tmp_path):
    method, _, name = option.partition(".")
    cls = METHODS[method]
    usual = cls(**{key: value for key, value in SHORT.items() if key in cls.defaults()} | ONLY_WITH.get(option, {}))
    value = OTHER.get(option, OTHER.get(name))
    if value is None:
        value = getattr(usual, name)
        assert isinstance(value, (bool, int, float)), f"give OTHER another value of {name}"
        value = not value if isinstance(value, bool) else value / 2 if isinstance(value, float) else value + 1
    other = replace(usual, **{name: value})
    assert getattr(other, name) != getattr(usual, name)
    if repr(usual) not in MADE:
        MADE[repr(usual)] = _made(usual, tmp_path / "usual")
        assert _made(usual, tmp_path / "again") == MADE[repr(usual)], "the same options make something else"
    before, after = MADE[repr(usual)], _made(other, tmp_path / "other")
    of_passes = name == "pass_size" or (name == "batch_size" and "images" in cls.defaults())
    same = before.passes == after.passes if of_passes else before.values == after.values
    assert not same, f"{option}={value} changes nothing"


@dataclass
class Made:
    """What a merge gives, as bytes by what it is of; and the number of images of each forward pass."""

    values: dict[object, bytes]
    passes: list[int]


MADE: dict[str, Made] = {}  # with the usual options


def _made(method: Method, folder: Path) -> Made:
    places = dict(model="tiny", mask_path=lambda name: folder / f"{name}.safetensors")
    passes: list[int] = []
    if method.needs == WEIGHTS:
        given = draw(**places)
    else:
        encoder = picture_tower(partial(tiny, layers=1))
        labels = Labelled(lambda task, size, number: torch.arange(size) % 3)
        given = pictured(encoder=encoder, validation=labels, **places)
        given = replace(given, images=replace(given.images, head=head))
        encoder.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    if method.after:
        for use_ties in (False, True):  # whose masks it reads
            made = METHODS[method.after](use_ties=use_ties).merge(given)
            made.finish(dict.fromkeys(given.tasks, made.settings[0]))
    merge = method.merge(given)
    values: dict[object, bytes] = {"settings": repr(merge.settings).encode()}
    if isinstance(merge, Drawn):
        values["draws"] = repr(merge.draws).encode()
    if merge.adaptation and merge.adaptation["mask"]:
        # A temperature shows here where no component changes sides.
        values["probability"] = repr(merge.adaptation["mask"]["probability"]).encode()
    for task in given.tasks:
        for setting in {merge.settings[0], merge.settings[-1]}:
            tensors = dict(merge.vector(task, setting).vector)
            if adapter := merge.adapter(task, setting):
                tensors |= vars(adapter)
            values |= {(task, setting, key): tensor.numpy().tobytes() for key, tensor in tensors.items()}
    return Made(values, passes)
