"""Everything downstream of fine-tuning, for real, in every further mode: two tasks, a few steps, ten images a split."""

import json
from dataclasses import fields

import numpy as np
import pytest
import torch
from few_images import few_images

import eval_connectivity
import eval_disentanglement
import eval_geometry
import eval_layerwise
import eval_single_task
import eval_task_addition
import eval_task_negation
import finetune
import main
from src import checkpoints
from src.datasets import loading, registry
from src.heads import get_classification_head
from src.linearize import LinearizedModel
from src.merging.registry import METHODS, load_methods, variants
from src.modeling import ImageEncoder
from src.modes import MODES, TRAINED
from src.reporting import tables
from src.reporting.papers import offered
from src.reporting.runs import Runs
from src.run import Run
from src.runtime.paths import Places

TASKS = registry.suite("mini").tasks[:2]
IMAGES = 10  # of each split
FURTHER = tuple(mode for mode in TRAINED if MODES[mode].extended)
FEWER = {"steps": 3, "mask_steps": 3, "images": 4, "iterations": "[1,2]"}  # of options that a method has


@pytest.fixture(scope="module")
def place(tmp_path_factory, mini_cache):
    """(run, flags of every script); all further modes are trained."""
    folder = tmp_path_factory.mktemp("modes")
    places = Places(folder / "checkpoints", folder / "results", mini_cache)
    flags = [f"--save={places.save}", f"--results={places.results}", f"--cache-dir={mini_cache}"]
    flags += ["--seed=0", "--device=cpu", "--jobs=1", "--tasks", *TASKS]
    with few_images(IMAGES):
        for mode in FURTHER:
            few = ["--steps=3", "--batch-size=16", "--lr=1e-3", "--warmup_length=1", "--keep-every=2"]
            finetune.main([*flags, f"--finetuning-mode={mode}", *few])
        eval_single_task.main([*flags, "--finetuning-mode=none"])
        for mode in FURTHER:
            eval_single_task.main([*flags, f"--finetuning-mode={mode}"])
        yield Run("mini", "ViT-Mini", 0, TASKS, places), flags


def record(run: Run, name: str) -> dict:
    return json.loads(run.paths.result(name).read_text())


@pytest.mark.parametrize("mode", FURTHER)
def test_every_experiment_runs(place, mode):
    run, flags = place
    own = [*flags, f"--finetuning-mode={mode}"]
    eval_task_addition.main([*own, "--n-eval-points=2"])
    eval_task_negation.main([*own, "--n-eval-points=2"])
    eval_disentanglement.main([*own, "--pairs", "-".join(TASKS), "--n-points=3", "--num-samples=4"])
    single, added = record(run, MODES[mode].single_task), record(run, f"addition_{mode}")
    assert added["denominators"]["test"] == {task: single[task] for task in TASKS}
    assert added["fixed"]["one"]["setting"] == 1.0
    assert {*record(run, f"negation_{mode}")["tasks"]} == {*TASKS}
    (pair,) = record(run, f"disentanglement_{mode}")["pairs"]
    assert pair["error"][1][1] == 0 and np.sum(pair["error"]) > 0


def test_a_method_of_each_file_merges_vectors_of_low_rank_that_are_zero_in_most_tensors(place):
    (run, flags), mode = place, "l_lora"
    load_methods()
    shared = dict(flag.removeprefix("--").split("=") for flag in flags if "=" in flag)
    overrides = [f"{name.replace('-', '_')}={value}" for name, value in shared.items()]
    overrides += [f"DATASETS=[{','.join(TASKS)}]", f"finetuning_mode={mode}"]
    every = [*variants("merging"), *variants("methods")]
    by_file = {METHODS[variant.method].__module__: variant for variant in reversed(every)}  # the first of each
    for variant in sorted(by_file.values(), key=lambda variant: METHODS[variant.method].after is not None):
        options = {field.name for field in fields(METHODS[variant.method])} - variant.options.keys()
        fewer = [f"method.{name}={value}" for name, value in FEWER.items() if name in options]
        fewer += ["method.draws=2"] if variant.method in ("dare", "della") else []
        main.main([*overrides, *variant.overrides, *fewer])
    main.main([*overrides, "method=adamerging", "method.steps=2"])
    made = [json.loads(path.read_text()) for path in run.paths.seed_results().rglob(f"{mode}-visual/*.json")]
    own = [*flags, f"--finetuning-mode={mode}"]
    eval_geometry.main(own)
    eval_layerwise.main([*own, "--num-samples=4"])
    eval_connectivity.main([*own, "--n-eval-points=3"])
    geometry, layers, lines = (record(run, f"{name}_{mode}") for name in ("geometry", "layerwise", "connectivity"))
    assert layers["parts"] and np.isfinite(layers["interference"]).all() and len(lines["pairs"]) == 1
    assert [name.rpartition("attn.")[2] for name in geometry["matrices"]] == ["in_proj_weight", "out_proj.weight"] * 4
    scored = [found for found in made if "test" in found]
    assert len(scored) == len(by_file) + 1 > 15
    assert all(np.isfinite(found["test"]["mean_accuracy"]) for found in scored)


@pytest.mark.parametrize("mode", FURTHER)
def test_a_checkpoint_is_scored_as_it_was_trained(place, mode):
    """eval_single_task.py on the dense τ: the features of the trained encoder, linear where the mode is."""
    run, _ = place
    start, end = (checkpoints.load(path) for path in (run.paths.pretrained(), run.paths.checkpoint(TASKS[1], mode)))
    encoder = ImageEncoder(run)
    encoder.load_state_dict(start)
    if MODES[mode].tangent:
        encoder = LinearizedModel(encoder)
    encoder.load_state_dict(end)
    head, pixels = get_classification_head(run, TASKS[1]), loading.evaluation_pixels(run, TASKS[1], "test", 32)
    with torch.no_grad():
        logits = head(encoder(loading.batch_of(pixels.pixels, ImageEncoder(run), "cpu")))
    expected = float((logits.argmax(1).numpy() == pixels.labels).mean())
    assert record(run, MODES[mode].single_task)[TASKS[1]] == pytest.approx(expected)


def test_encoders_are_scored_as_they_were_on_the_way(place, capsys):
    run, flags = place
    own = [*flags, "--finetuning-mode=attention", "--control=never"]
    eval_single_task.main([*own, "--at=2"])
    early, late = (record(run, f"attention_ft_accuracies{end}") for end in ("_at_2", ""))
    assert early["provenance"]["config"]["at"] == 2 and early["losses"] != late["losses"]
    eval_single_task.main([*own, "--at=2"])
    assert "skipped" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="after step 1, found none; .*--finetuning-mode=attention .*--keep-every=1"):
        eval_single_task.main([*own, "--at=1"])
    with pytest.raises(SystemExit):
        eval_single_task.main([*flags, "--finetuning-mode=none", "--at=2"])
    assert "--at: expected a mode that is fine-tuned" in capsys.readouterr().err


def test_tables_and_figures_have_every_mode_that_has_results(place, monkeypatch):
    run, _ = place
    monkeypatch.setattr(registry, "BENCHMARKS", (len(TASKS),))
    runs = Runs("mini", "ViT-Mini", run.paths.results)
    made = {table.name: [*table.texts(), [*table.header]] for table in tables.make(runs)}
    for name in ("single_task", "table1_addition", "table2_negation", "disentanglement"):
        cells = {cell for row in made[name] for cell in row}
        assert {MODES[mode].title for mode in FURTHER} <= cells, name
    by_title = {row[0]: row for row in made["modes"]}
    assert all(all(by_title[MODES[mode].title]) for mode in FURTHER)
    for drawing in offered("figures"):
        if drawing.name in ("addition", "negation", "alignment", "interference", "layer_interference", "connectivity"):
            drawing(runs).canvas.draw()
