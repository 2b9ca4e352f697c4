"""The whole vision path without a network: true file formats, an open_clip model, every script, tables."""

import dataclasses
import json
from pathlib import Path

import open_clip
import pytest
import torch
import vision_files as files

import eval_single_task
import eval_task_addition
import eval_task_negation
import finetune
import main as merging
import make_tables
from src import checkpoints, model_names, store
from src.datasets import loading as data
from src.datasets import registry
from src.datasets.prepare import prepare
from src.datasets.vision import FACTS

MODEL = "ViT-Fake"
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TASKS = ("EuroSAT", "PCAM", "FER2013")  # class folders, parquet files and tar shards
MODES = ("standard", "linear", "posthoc")


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def place(tmp_path_factory, patch):
    """A folder with prepared data sets, the weights of a random CLIP, and what fine-tuning in both modes leaves."""
    place = tmp_path_factory.mktemp("vision")
    files.class_folders("EuroSAT", place / "data/eurosat", {"2750": 20}, files.EUROSAT)
    files.hub("PCAM", place / "data", train=160, test=33)
    files.hub("FER2013", place / "data", train=160, test=33)
    files.imagenet(place / "data")
    for name in (*TASKS, "ImageNet"):
        prepare(FACTS[name], place / "data", as_is=True)
    # One of its 80 prompts: with all, the control's head alone would take longer than everything else.
    few = dataclasses.replace(registry.ROWS["ImageNet"], templates=registry.ROWS["ImageNet"].templates[:1])
    patch.setitem(registry.ROWS, "ImageNet", few)

    known = open_clip.factory
    patch.setattr(known, "_MODEL_CONFIGS", dict(known._MODEL_CONFIGS))
    patch.setattr(known, "_MODEL_CONFIG_PATHS", list(known._MODEL_CONFIG_PATHS))
    (place / f"{MODEL}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(place / f"{MODEL}.json")
    model_names.open_clip_names.cache_clear()
    torch.manual_seed(0)
    torch.save(open_clip.create_model(MODEL, pretrained=None).state_dict(), place / "weights.pt")

    protocol = ("--epochs=2", "--batch-size=16", "--lr=3e-3", "--warmup_length=2", "--workers=0")
    for mode in ("standard", "linear"):
        run(finetune, place, f"--finetuning-mode={mode}", *protocol)
    for mode in ("none", *MODES):
        run(eval_single_task, place, f"--finetuning-mode={mode}")
    yield place
    model_names.open_clip_names.cache_clear()
    for cached in (store.encoder, data.examples, data._decodable, data._decoded):
        cached.cache_clear()


def flags(place) -> list[str]:
    folders = {"save": "checkpoints", "results": "results", "cache-dir": "cache", "data-location": "data"}
    return [
        *(f"--{flag}={place / folder}" for flag, folder in folders.items()),
        *(f"--model={MODEL}", f"--pretrained-path={place / 'weights.pt'}", f"--tasks={','.join(TASKS)}"),
        *("--device=cpu", "--jobs=1"),
    ]


def run(script, place, *more: str) -> None:
    script.main([*flags(place), *more])


def merge(place, *more: str) -> None:
    spelled = [flag.removeprefix("--").split("=", 1) for flag in flags(place)]
    given = [(name.replace("-", "_"), f"[{value}]" if name == "tasks" else value) for name, value in spelled]
    merging.main([*(f"{name}={value}" for name, value in given), *more])


def result(place, name: str) -> dict:
    return json.loads((place / f"results/vision/{MODEL}/seed_1/{name}.json").read_text())


def test_fine_tuning_and_single_task(place):
    chance = result(place, "zeroshot_accuracies")
    assert chance["n"] == {
        **{"EuroSAT": 20, "EuroSATVal": 20, "PCAM": 33, "PCAMVal": 16, "FER2013": 33, "FER2013Val": 16},
        **{"ImageNet": 1000, "ImageNetVal": 100},
    }
    for mode, name in (("standard", "ft_accuracies"), ("linear", "linear_ft_accuracies")):
        header = checkpoints.header(place / f"checkpoints/vision/{MODEL}/seed_1/EuroSAT/{mode}.safetensors")
        assert header["step"] == 2 * 10  # 160 images, batches of 16
        assert result(place, name).keys() == result(place, "posthoc_ft_accuracies").keys()
        assert result(place, name)["losses"]["EuroSAT"] < chance["losses"]["EuroSAT"]


def test_a_corrupt_training_image_is_named_and_counted_or_left_out(place, capsys):
    image = Path(registry.get("EuroSAT").load("train", place / "data", 0).name(7))
    whole, flag = image.read_bytes(), f"--save={place / 'corrupt'}"
    again = ("--tasks=EuroSAT", "--epochs=1", "--batch-size=160", "--workers=1", flag)
    try:
        image.write_bytes(b"no image")
        data._decodable.cache_clear()
        with pytest.raises(SystemExit, match=f"(?s)EuroSAT train: 1 of 160 images .*{image.name}.*--skip-corrupt"):
            run(finetune, place, *again)
        with pytest.warns(UserWarning, match="1 of 160 images"):
            run(finetune, place, *again, "--skip-corrupt")
        assert "EuroSAT standard: 1 steps" in capsys.readouterr().out
    finally:
        image.write_bytes(whole)


@pytest.mark.parametrize("mode", MODES)
def test_addition_and_negation(place, mode):
    run(eval_task_addition, place, f"--finetuning-mode={mode}", "--n-eval-points=3")
    added = result(place, f"addition_{mode}")
    assert added["tasks"] == list(TASKS) and added["n"]["test"]["PCAM"] == 33
    run(eval_task_negation, place, f"--finetuning-mode={mode}", "--n-eval-points=3")
    negated = result(place, f"negation_{mode}")
    assert negated["control"] == "ImageNet" and negated["tasks"].keys() == set(TASKS)


def test_nothing_but_negation_needs_the_control(place, capsys):
    """Without ImageNet: single tasks, addition, merging and tables work, and the record says why there is none."""
    record, apart = place / "data/prepared/ImageNet.json", f"--results={place / 'without'}"
    record.rename(record.with_suffix(".away"))
    data.examples.cache_clear()
    try:
        for mode in ("none", "standard"):
            run(eval_single_task, place, f"--finetuning-mode={mode}", apart)
        assert "control: not prepared" in capsys.readouterr().out
        run(eval_task_addition, place, "--finetuning-mode=standard", "--n-eval-points=3", apart)
        merge(place, "method=sum", f"results={place / 'without'}")
        make_tables.main(["--suite=vision", f"--model={MODEL}", apart])
        written = json.loads((place / f"without/vision/{MODEL}/seed_1/ft_accuracies.json").read_text())
        assert written["no_control"] == "not prepared" and "ImageNet" not in written and not written["control_per_task"]
        with pytest.raises(SystemExit, match="ImageNet is not prepared"):
            run(eval_task_negation, place, "--finetuning-mode=standard", apart)
        with pytest.raises(SystemExit, match="ImageNet is not prepared"):
            run(eval_single_task, place, "--finetuning-mode=none", "--control=always", apart)
    finally:
        record.with_suffix(".away").rename(record)
    run(eval_single_task, place, "--finetuning-mode=none", "--control=always", apart)
    assert "ImageNet" in json.loads((place / f"without/vision/{MODEL}/seed_1/zeroshot_accuracies.json").read_text())
    run(eval_single_task, place, "--finetuning-mode=none", "--control=never", f"--results={place / 'never'}")
    path = place / f"never/vision/{MODEL}/seed_1/zeroshot_accuracies.json"
    assert json.loads(path.read_text())["no_control"] == "not asked for"


def test_merging_and_tables(place):
    folder = f"merging/{len(TASKS)}task_"
    merge(place, "method=tall_mask")
    merge(place, "method=consensus")
    made = {path.stem: path for path in (place / f"results/vision/{MODEL}/seed_1").rglob(f"{folder}*/**/*.json")}
    assert made.keys() >= {"tall_mask", "consensus"}
    assert json.loads(made["tall_mask"].read_text())["chosen"].keys() == set(TASKS)
    make_tables.main(["--suite=vision", f"--model={MODEL}", f"--results={place / 'results'}"])
    tables = place / "results/vision/tables"
    assert "EuroSAT" in next(tables.glob("*single*.md")).read_text()
