"""Layer-wise interference, representations, calibration and plateaus against closed forms and independent code."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import synthetic_results
import torch
from open_clip.transformer import VisionTransformer
from torch import nn
from torch.func import functional_call

import eval_layerwise
import eval_merged_models
import main
from src.analysis import calibration, layerwise
from src.analysis.representations import Blocks, bias, representations
from src.checkpoints import VISUAL
from src.experiments import commands, studies
from src.experiments import layerwise as layered
from src.experiments.ntk import spread_examples
from src.experiments.registry import LAYERWISE, MERGED_MODELS
from src.experiments.stages import NAMES
from src.merging import surgery
from src.merging.names import folder
from src.reporting.comparison.plateau import plateau_of
from src.reporting.comparison.storage import bits, keeping
from src.reporting.comparison.studies import OnSubsets, Studied, study_runs
from src.reporting.comparison.studies import studies as table_of_studies
from src.reporting.methods import Group, variant_row
from src.reporting.runs import Runs
from src.run import Run
from src.runtime import results
from src.runtime.messages import UsageError
from src.runtime.paths import ROOT
from src.task_vectors import TaskVector


class Encoder(nn.Module):
    """A vision transformer of two blocks in float64 with a text-side tensor, named as ours are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Module()
        self.model.visual = VisionTransformer(8, 4, 16, layers=2, heads=2, mlp_ratio=2.0, output_dim=4)
        self.model.logit_scale = nn.Parameter(torch.zeros(()))
        self.double().eval().requires_grad_(False)

    def forward(self, images):
        return self.model.visual(images)


def vector(encoder: nn.Module, seed: int, size: float = 0.1) -> TaskVector:
    generator = torch.Generator().manual_seed(seed)
    return TaskVector(
        vector={
            name: size * torch.randn(p.shape, generator=generator, dtype=p.dtype)
            for name, p in encoder.named_parameters()
            if name.startswith(VISUAL)
        }
    )


def images(count: int = 5) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


# ---- layer-wise interference


def test_parts_are_every_tensor_once_in_the_order_of_the_network():
    keys = [name for name, _ in Encoder().named_parameters() if name.startswith(VISUAL)]
    parts = layerwise.parts_of(keys)
    assert list(parts) == ["stem", "0 attention", "0 MLP", "1 attention", "1 MLP", "projection"]
    assert sorted(key for of_part in parts.values() for key in of_part) == sorted(keys)
    block = f"{VISUAL}transformer.resblocks.1."
    assert layerwise.part_of(f"{block}ln_1.bias") == "1 attention" and layerwise.part_of(f"{block}ln_2.bias") == "1 MLP"
    assert layerwise.part_of(f"{VISUAL}ln_pre.weight") == "stem"


def test_of_a_tangent_model_it_is_made_of_dense_jacobians_and_its_signed_parts_add_up():
    encoder, x = Encoder(), images()
    vectors = [vector(encoder, seed) for seed in range(3)]
    parts = layerwise.parts_of(vectors[0].keys())
    found = layered.measured(encoder, x.split(2), vectors, parts, own=1, tangent=True)

    def change(tau: TaskVector, keys) -> torch.Tensor:
        """By a dense Jacobian of every weight in the part."""
        start = {key: dict(encoder.named_parameters())[key] for key in keys}
        jacobian = torch.func.jacrev(lambda p: functional_call(encoder, p, (x,)))(start)
        return sum(torch.tensordot(jacobian[key], tau[key], tau[key].ndim) for key in keys)

    everything = [key for keys in parts.values() for key in keys]
    whole = change(vectors[1], everything)
    for part in ("stem", "0 attention", "1 MLP", "projection"):
        e = [change(tau, parts[part]) for tau in vectors]
        own = e[1].square().sum()
        expected = [float(one.square().sum() / own) for one in e]
        assert found[part].others == pytest.approx(expected, rel=1e-7) and expected[1] == 1
        assert found[part].together == pytest.approx(float((e[0] + e[2]).square().sum() / own), rel=1e-7)
        signed = [float((one * whole).sum() / whole.square().sum()) for one in e]
        assert found[part].signed == pytest.approx(signed, rel=1e-7)
    totals = np.sum([one.signed for one in found.values()], axis=0)
    other = change(vectors[0], everything)
    assert totals[1] == pytest.approx(1) and totals[0] == pytest.approx(
        float((other * whole).sum() / whole.square().sum())
    )


def test_of_other_models_it_is_the_difference_of_two_models_and_the_tangent_model_its_limit():
    encoder, x = Encoder(), images()
    vectors = [vector(encoder, seed) for seed in range(2)]
    parts = layerwise.parts_of(vectors[0].keys())
    finite = layered.measured(encoder, [x], vectors, parts, own=0, tangent=False)
    start = dict(encoder.named_parameters())
    e = []
    for tau in vectors:
        there = {key: start[key] + tau[key] for key in parts["0 MLP"]}
        e.append(functional_call(encoder, there, (x,)) - encoder(x))
    assert finite["0 MLP"].others[1] == pytest.approx(float(e[1].square().sum() / e[0].square().sum()), rel=1e-9)
    tangent = layered.measured(encoder, [x], vectors, parts, own=0, tangent=True)
    small = layered.measured(encoder, [x], [1e-5 * tau for tau in vectors], parts, own=0, tangent=False)
    for part in parts:
        assert small[part].others == pytest.approx(tangent[part].others, rel=1e-3)
        assert small[part].together == pytest.approx(tangent[part].together, rel=1e-3)


def test_cosines_of_a_part():
    one, other = ({"a": torch.tensor(a), "b": torch.tensor([b])} for a, b in (([1.0, 2.0], 2.0), ([2.0, 0.0], 1.0)))
    assert layerwise.cosine(one, other) == pytest.approx(4 / (3 * math.sqrt(5)))
    assert layerwise.cosine(one, one) == pytest.approx(1)


# ---- representations


@pytest.mark.parametrize("tangent", [False, True])
def test_representations_of_blocks_are_those_of_the_model_or_of_its_linearization(tangent):
    encoder, x = Encoder(), images()
    tau, start = vector(encoder, 3), dict(Encoder().named_parameters())
    blocks = Blocks(encoder)
    assert len(blocks) == 2
    found = representations(blocks, start, tau.vector, x, tangent)

    def by_hand(weights) -> list[torch.Tensor]:
        moved = Encoder()
        moved.load_state_dict({**moved.state_dict(), **weights})
        outputs = []
        for block in moved.model.visual.transformer.resblocks:
            block.register_forward_hook(lambda module, given, out: outputs.append(out))
        features = moved(x)
        return [*outputs, features]

    def at(step: float) -> list[torch.Tensor]:
        return by_hand({key: start[key] + step * tensor for key, tensor in tau.vector.items()})

    if tangent:
        h = 1e-5
        expected = [zero + (up - down) / (2 * h) for zero, up, down in zip(at(0), at(h), at(-h))]
    else:
        expected = at(1)
    assert len(found) == 3
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_bias_of_equal_and_of_doubled_features():
    f = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
    assert bias(f, f)[0] == 0
    assert bias(2 * f, f) == (6.0, 6.0)


# ---- calibration


def logits_of(p: float) -> torch.Tensor:
    """Of two classes, the first with probability p."""
    return torch.tensor([math.log(p / (1 - p)), 0.0], dtype=torch.float64)


def test_calibration_error_of_one_confidence_is_its_distance_from_the_accuracy():
    logits = logits_of(0.8).repeat(10, 1)
    for right in (8, 5, 10):
        labels = torch.tensor([0] * right + [1] * (10 - right))
        assert calibration.calibration_error(logits, labels) == pytest.approx(abs(right / 10 - 0.8), abs=1e-12)


def test_errors_of_different_bins_do_not_cancel_and_those_of_one_bin_do():
    sure, unsure = logits_of(0.9).repeat(10, 1), logits_of(0.6).repeat(10, 1)
    labels = torch.tensor([0] * 8 + [1] * 2 + [0] * 7 + [1] * 3)  # 0.1 too sure, and 0.1 too little
    both = torch.cat([sure, unsure])
    assert calibration.calibration_error(both, labels) == pytest.approx(0.1)
    assert calibration.calibration_error(both, labels, bins=1) == pytest.approx(0, abs=1e-12)


def test_calibration_error_and_loss_are_those_of_independent_code():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(500, 7)) * 3, rng.integers(7, size=500)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confidence, right = p.max(1), p.argmax(1) == labels
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    given = torch.tensor(logits), torch.tensor(labels)
    assert calibration.calibration_error(*given) == pytest.approx(error, rel=1e-9)
    assert calibration.log_loss(*given) == pytest.approx(-np.log(p[np.arange(500), labels]).mean(), rel=1e-9)
    assert calibration.log_loss(given[0].float(), given[1]) == pytest.approx(calibration.log_loss(*given), rel=1e-5)


@pytest.mark.parametrize(("p", "right"), [(0.95, 80), (0.6, 80), (0.8, 80)])
def test_the_temperature_of_one_confidence_has_a_closed_form(p, right):
    """All logits (z, 0), the first right in a share q: softmax(z / T) = q at T = z / log(q / (1 − q))."""
    labels = torch.tensor([0] * right + [1] * (100 - right))
    logits = logits_of(p).repeat(100, 1)
    q = right / 100
    expected = float(logits[0, 0]) / math.log(q / (1 - q))
    found = calibration.temperature(logits, labels)
    assert found == pytest.approx(expected, rel=1e-4)
    assert calibration.calibration_error(logits / found, labels) < 1e-4
    assert (found > 1) == (p > q) or p == q


def test_the_temperature_scales_with_the_logits_and_ends_where_nothing_is_wrong():
    rng = np.random.default_rng(1)
    logits, labels = torch.tensor(rng.normal(size=(300, 4))), torch.tensor(rng.integers(4, size=300))
    logits[torch.arange(300), labels] += 1
    once = calibration.temperature(logits, labels)
    assert calibration.temperature(5 * logits, labels) == pytest.approx(5 * once, rel=1e-3)
    for factor in (0.97, 1.03):
        near = calibration.log_loss(logits / (factor * once), labels)
        assert near > calibration.log_loss(logits / once, labels)
    perfect = 10 * nn.functional.one_hot(labels, 4).double()
    assert calibration.temperature(perfect, labels) < 0.5


# ---- plateaus


def test_a_plateau_ends_where_the_line_between_points_falls_below():
    found = plateau_of([0.1, 0.2, 0.3, 0.4, 0.5], [70.0, 74.0, 74.5, 72.5, 60.0], points=1.0)
    assert (found.low, found.best, found.high) == pytest.approx((0.2 - 0.1 * 0.5 / 4, 0.3, 0.3 + 0.1 * 1 / 2))
    assert not found.open_low and not found.open_high
    assert found.decades == pytest.approx(math.log10(found.high / found.low))


def test_a_plateau_is_free_of_the_scale_of_the_vector_and_of_the_order_of_the_grid():
    settings, accuracy = [0.5, 1.0, 2.0, 4.0], [60.0, 80.0, 79.5, 50.0]
    once, twice = plateau_of(settings, accuracy), plateau_of([2 * s for s in settings], accuracy)
    assert once.decades == pytest.approx(twice.decades)
    assert plateau_of(settings[::-1], accuracy[::-1]) == once


def test_a_plateau_goes_to_the_ends_of_the_grid_and_does_not_jump_over_a_valley():
    assert plateau_of([1.0, 2.0, 3.0], [80.0, 80.5, 80.2]) == replace(
        plateau_of([1.0, 2.0, 3.0], [80.0, 80.5, 80.2]), low=1.0, high=3.0, open_low=True, open_high=True
    )
    valley = plateau_of([1.0, 2.0, 3.0, 4.0], [80.0, 70.0, 80.5, 70.0])
    assert valley.low > 2 and valley.best == 3
    assert plateau_of([0.0, 1.0], [80.0, 80.5]).decades == math.inf


# ---- storage


def test_bits_of_one_model_and_of_masks(tmp_path):
    runs = Runs("mini", "ViT-Mini", synthetic_results.write(tmp_path, seeds=(1,)))
    group = Group(runs.main_tasks)
    assert bits(runs, group, variant_row("sum")).to_dict() == {1: pytest.approx(32 / 8)}
    assert bits(runs, group, variant_row("tall_mask")).to_dict() == {1: pytest.approx((64 + 8) / 8)}
    methods = {row.method for row in keeping(runs, group)}
    assert {"tall_mask", "mag_masking"} <= methods and "sum" not in methods


# ---- studies


def test_a_study_trains_what_it_says_and_lies_apart():
    run = Run.of(seed=3, device="cpu")
    by_name = studies.BY_NAME
    assert len(by_name) == len(studies.STUDIES)
    odd = studies.odd_one(run)
    trainings = dict(by_name["longer"].trainings(run))
    assert trainings[odd,] == ("--steps=750",) and trainings[tuple(t for t in run.tasks if t != odd)] == ()
    assert dict(by_name["smoothing"].trainings(run)) == {run.tasks: ("--ls=0.1",)}
    assert dict(by_name["quarter"].trainings(run)) == {run.tasks: ("--steps=62",)}
    own = by_name["double"].run(run)
    assert own.places.save == run.places.save / "robust" / "double" and own.places.cache == run.places.cache
    assert own.paths.results == by_name["double"].results(run.paths.results)
    assert {odd} != {studies.odd_one(replace(run, seed=seed)) for seed in range(5)}, "drawn by the seed"
    vision = Run.of(model="ViT-B-32", device="cpu", tasks="8")
    flags = {flag for _, flags in by_name["double"].trainings(vision) for flag in flags}
    assert "--epochs=70" in flags or all(flag.startswith("--epochs=") for flag in flags)


def test_stages_of_studies_name_every_study_and_every_number_of_tasks():
    run = Run.of(seed=1, device="cpu")
    stages = {name: commands.COMMANDS[name](run) for name in NAMES}
    assert {study.stage for study in studies.STUDIES} <= {*stages}
    for study in studies.STUDIES:
        asked = [str(command) for command in stages[study.stage] if study.name in str(command)]
        assert any("finetune.py" in c for c in asked) and sum("main.py" in c for c in asked) == len(studies.compared())
    sizes = {len(command.outputs) for command in stages["robust-tasks"]}
    assert sizes == {1} and len(stages["robust-tasks"]) == 6 * len(studies.compared())
    assert NAMES.index("merged-models") > NAMES.index("methods-adapting") > NAMES.index("layerwise")


def test_a_table_and_claims_of_studies_are_of_their_own_folders(tmp_path):
    runs = Runs("mini", "ViT-Mini", synthetic_results.write(tmp_path, seeds=(1, 2)))
    assert list(table_of_studies(runs)) == []
    for seed in (1, 2):
        record = synthetic_results.merged("sum", synthetic_results.TASKS, "standard", seed, 0.6)
        where = study_runs(runs, "smoothing").paths_of(seed)
        synthetic_results.dump(
            where.result(f"{folder('mini', synthetic_results.TASKS, 'standard', 'visual')}/sum"), record
        )
    runs = Runs("mini", "ViT-Mini", tmp_path)
    (table,) = table_of_studies(runs)
    assert list(table.header) == ["method", "as usual", "label smoothing 0.1"]
    assert Studied("sum", "smoothing").values(runs).mean() == pytest.approx(60, abs=3)
    assert Studied("sum").values(runs).mean() == pytest.approx(74, abs=3)
    (command,) = Studied("emr", "smoothing").commands(runs)
    assert command.startswith("python reproduce.py --only robust-confidence --seeds 1,2 --model=ViT-Mini")
    assert OnSubsets("sum", 2).values(runs).index.tolist() == [1, 2]


def test_a_stage_finds_methods_that_nothing_has_loaded_yet():
    command = [sys.executable, "reproduce.py", "--only", "merging-sweeps", "storage", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "method=tsv_c method.rank=0.25" in done.stdout, done.stderr


# ---- the experiments on drawn checkpoints near θ0


def test_more_images_than_there_are_are_refused(make_run):
    with pytest.raises(
        UsageError, match=r"--num-samples: expected at most the 200 images of digits \(test\), found 5000"
    ):
        spread_examples(make_run(), "digits", "test", 5000)


def test_layerwise_interference_of_a_run(place, make_run):
    run = make_run("--tasks", "digits", "signs", "letters")
    flags = ["--tasks", *run.tasks, "--num-samples=4", *_flags(run)]
    eval_layerwise.main(["--finetuning-mode=posthoc", *flags])
    record = results.read(run.paths.result(LAYERWISE.result("posthoc")))
    assert record["parts"][0] == "stem" and record["parts"][-1] == "projection"
    for grid in record["interference"]:
        assert np.shape(grid) == (3, 3) and np.diag(grid) == pytest.approx(1)
    assert np.sum([np.diag(grid) for grid in record["signed"]], axis=0) == pytest.approx(1, rel=1e-3)
    by_name = {number.metric for number in layered.numbers(record, "mini")}
    assert {"interference_stem", "interference_together_3_MLP"} <= by_name


def test_merged_models_are_those_of_the_results(place, make_run, capsys, monkeypatch):
    monkeypatch.setattr(surgery, "STEPS", 60)  # which the suite shortens to 3
    run = make_run("--tasks", "digits", "signs", "letters")
    methods = ("sum", "emr", "dare", "surgery")  # one model, one each, a random one, one with adapters
    named = ["--tasks", *run.tasks, "--num-samples=4", "--methods", *methods, "svc_base=sum", *_flags(run)]
    with pytest.raises(SystemExit, match="reproduce.py --only merging methods"):
        eval_merged_models.main(named)
    for method in methods:
        main.main([f"method={method}", "DATASETS=[digits,signs,letters]", "eval_every=0", *place])
    eval_merged_models.main(named)
    assert "left out: svc_base=sum" in capsys.readouterr().err
    record = results.read(run.paths.result(MERGED_MODELS.result("standard")))
    assert set(record["methods"]) == {*methods} and record["layers"][-1] == "features"
    for label, seen in record["methods"].items():
        there = results.read(run.paths.result(f"{folder('mini', run.tasks, 'standard', 'visual')}/{label}"))
        if "draws" in there:
            assert seen["accuracy"] == {task: pytest.approx(a[0]) for task, a in there["draws"]["accuracy"].items()}
        else:
            assert seen["accuracy"] == pytest.approx(there["test"]["accuracy"])
            assert seen["loss"] == pytest.approx(there["test"]["loss"], rel=1e-4)
        assert all(0 <= value <= 1 for value in seen["disagreement"].values())
    assert (
        record["scaled"]["sum"]["coefficient"]
        == results.read(run.paths.result(f"{folder('mini', run.tasks, 'standard', 'visual')}/sum"))["chosen"]["digits"]
    )
    eval_merged_models.main(named)
    assert "skip" in capsys.readouterr().out.lower()
    with pytest.raises(SystemExit):
        eval_merged_models.main(["--methods", "tsvm", *_flags(run)])
    assert "'tsvm' does not exist; did you mean tsv_m?" in capsys.readouterr().err


def _flags(run: Run) -> list[str]:
    places = run.places
    return [
        "--seed=0", "--jobs=1", "--device=cpu", f"--save={places.save}", f"--results={places.results}",
        f"--cache-dir={places.cache}",
    ]  # fmt: skip
