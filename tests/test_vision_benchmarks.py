"""8, 14 and 20 tasks in true file formats, both scopes, checkpoints like TALL's and FusionBench's, without ImageNet."""

import dataclasses
import json

import pytest
import torch
import vision_files as files
from published_files import published_vector, random_masks
from test_architectures import run as tiny_run  # noqa: F401 (a fixture)

import eval_single_task
import eval_task_addition
import main as merging
import make_tables
from src import checkpoints, store
from src.datasets import loading, registry
from src.datasets.prepare import prepare
from src.datasets.vision import FACTS, TASKS
from src.run import Run
from src.runtime.paths import Places

FUSION_BENCH = (*TASKS[:-2], "EMNIST_letters", "KMNIST")


@pytest.fixture
def place(tmp_path, tiny_run, monkeypatch):  # noqa: F811
    """Every set prepared from official files, and a random tiny CLIP; one prompt for each class."""
    pytest.importorskip("h5py")
    given = tiny_run("vit-quickgelu")
    for name in {*TASKS, *FUSION_BENCH}:
        files.OFFICIAL[name](tmp_path / "data")
    for name in {*TASKS, *FUSION_BENCH}:
        prepare(FACTS[name], tmp_path / "data", "official", as_is=True)
        one = dataclasses.replace(registry.ROWS[name], templates=registry.ROWS[name].templates[:1])
        monkeypatch.setitem(registry.ROWS, name, one)
    yield dataclasses.replace(
        given, tasks=TASKS, places=Places(*(tmp_path / p for p in ("save", "results", "cache", "data")))
    )
    for cached in (store.encoder, loading.examples, loading._decoded):
        cached.cache_clear()


def publish(run: Run, publisher: str) -> None:
    """Checkpoints near θ0, as download_checkpoints.py leaves them."""
    start = dict(store.pretrained(run))
    for number, task in enumerate(run.tasks):
        generator = torch.Generator().manual_seed(number)
        moved = {
            n: w + 0.01 * torch.randn(w.shape, generator=generator) if n.startswith("model.visual") else w
            for n, w in start.items()
        }
        header = dict(model=run.model, task=task, mode="standard", seed=1, provenance={"publisher": publisher})
        checkpoints.save(run.paths.checkpoint(task, "standard"), moved, header)


def told(run: Run) -> list[str]:
    folders = {"save": run.places.save, "results": run.places.results, "cache_dir": run.places.cache}
    folders["data_location"] = run.places.data
    named = {"model": run.model, "pretrained_path": run.pretrained_path, "device": "cpu", "jobs": 1, **folders}
    return [f"{name}={value}" for name, value in named.items()]


def flags(run: Run) -> list[str]:
    return [
        f"--{word.replace('_', '-', 1) if word.startswith(('cache', 'data', 'pre')) else word}" for word in told(run)
    ]


def result(run: Run, name: str) -> dict:
    return json.loads(run.paths.result(name).read_text())


def divisible(run: Run) -> None:
    """A random network may have every image of a tiny set wrong, and nothing is divided by 0."""
    path = run.paths.single_task("standard")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({name: 0.5 if isinstance(v, float) else v for name, v in record.items()}))


def test_talls_checkpoints_and_masks_on_every_benchmark(place):
    publish(place, "tall")
    for mode in ("none", "standard"):
        eval_single_task.main([*flags(place), f"--finetuning-mode={mode}", "--tasks=20"])
    divisible(place)
    single = result(place, "ft_accuracies")
    assert {*TASKS} <= single.keys() and single["no_control"] == "not prepared"
    assert {"MNIST", "EuroSAT"} <= single["leaks"].keys()  # parts of sets: their validation is not the published one
    eval_task_addition.main([*flags(place), "--finetuning-mode=standard", "--n-eval-points=2"])
    assert result(place, "addition_standard")["tasks"] == list(TASKS[:8])
    for count in (8, 14, 20):
        masks = random_masks({n: t.shape for n, t in store.pretrained(place).items()}, tasks=TASKS[:count])
        assert published_vector(masks["Cars"]).ndim == 1
        header = dict(model=place.model, mode="standard", scope="published")
        checkpoints.save_masks(place.paths.published_masks(count), masks, header)
        for scope in ("visual", "published") if count == 8 else ("published",):
            merging.main(
                [*told(place), "method=tall_mask", "method.load_mask=True", f"num_tasks={count}", f"scope={scope}"]
            )
    folder = "merging/8task/standard"
    same = [result(place, f"{folder}-{scope}/tall_mask_load_mask=True")["test"] for scope in ("visual", "published")]
    assert same[0] == same[1]  # the frozen rest does not move, masked or not
    merging.main([*told(place), "method=sum", "method.alphas=[0.3]", "num_tasks=14"])
    make_tables.main(["--suite=vision", f"--model={place.model}", f"--results={place.places.results}"])
    tables = place.places.results / "vision/tables"
    text = next(tables.glob("single_task*.md")).read_text()
    assert "Not clean" in text


def test_fusion_benchs_twenty_tasks_with_its_own_heads(place):
    run = dataclasses.replace(place, tasks=FUSION_BENCH)
    publish(run, "fusion_bench")
    names = ",".join(FUSION_BENCH)
    for mode in ("none", "standard"):
        eval_single_task.main([*flags(run), f"--finetuning-mode={mode}", f"--tasks={names}"])
    divisible(run)
    assert {*FUSION_BENCH} <= result(run, "ft_accuracies").keys()
    assert checkpoints.header(run.paths.head("KMNIST"))["classnames"][0] == "お"
    assert checkpoints.header(run.paths.head("MNIST"))["classnames"] == list(registry.get("MNIST").classnames)
    merging.main([*told(run), "method=ties", "method.alphas=[1.0]", f"DATASETS=[{names}]", "scope=published"])
