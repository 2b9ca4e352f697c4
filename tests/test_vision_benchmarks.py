"""8, 14 and 20 tasks in true file formats, checkpoints like TALL's and FusionBench's, both scopes, without ImageNet."""

import dataclasses
import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import vision_files as files
from published_files import published_vector, random_masks
from safetensors.torch import save_file
from test_architectures import run as tiny_run  # noqa: F401 (a fixture)

import eval_single_task
import eval_task_addition
import main as merging
import make_tables
from src import checkpoints, store
from src.checkpoints import VISUAL
from src.datasets import loading, registry
from src.datasets.prepare import prepare
from src.datasets.registry import BENCHMARKS
from src.datasets.vision import FACTS, TASKS
from src.experiments.merging import Options, merge, result_name
from src.merging.base import Method
from src.merging.problem import Source
from src.merging.tall_mask import TallMask
from src.merging.ties import Ties
from src.modes import SCOPES
from src.published.download import Published, Request, install
from src.published.towers import PROJECTION, to_hugging_face
from src.run import Run
from src.runtime.paths import Places

# Every benchmark, and of the largest one both scopes.
ON_EACH = [*((count, SCOPES[0]) for count in BENCHMARKS), (BENCHMARKS[-1], SCOPES[1])]
FUSION_BENCH = (*TASKS[:-2], "EMNIST_letters", "KMNIST")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Every set prepared from official files."""
    pytest.importorskip("h5py")
    folder = tmp_path_factory.mktemp("data")
    for name in {*TASKS, *FUSION_BENCH}:
        files.OFFICIAL[name](folder)
        prepare(FACTS[name], folder, "official", as_is=True)
    return folder


@pytest.fixture
def place(data, tmp_path, tiny_run, monkeypatch):  # noqa: F811
    """The sets, and a random tiny CLIP; one prompt for each class."""
    given = tiny_run("vit-quickgelu")
    for name in {*TASKS, *FUSION_BENCH}:
        one = dataclasses.replace(registry.ROWS[name], templates=registry.ROWS[name].templates[:1])
        monkeypatch.setitem(registry.ROWS, name, one)
    yield dataclasses.replace(
        given, tasks=TASKS, places=Places(*(tmp_path / p for p in ("save", "results", "cache")), data)
    )
    for cached in (store.encoder, loading.examples, loading._decoded):
        cached.cache_clear()


def published_files(run: Run, publisher: str, folder: Path) -> list[Published]:
    """Fine-tuned checkpoints near θ0 in the publisher's format: TALL's state dicts, FusionBench's CLIPVisionModels."""
    start, made = dict(store.pretrained(run)), []
    for number, task in enumerate(run.tasks):
        generator = torch.Generator().manual_seed(number)
        moved = {
            n: w + 0.01 * torch.randn(w.shape, generator=generator) if n.startswith(VISUAL) else w
            for n, w in start.items()
        }
        place = folder / publisher / f"{task}Val"
        place.mkdir(parents=True)
        if publisher == "tall":  # with the text side, which is θ0's
            torch.save(OrderedDict(moved), place / "nonlinear_finetuned.pt")
            made.append(Published(str(place / "nonlinear_finetuned.pt"), "encoder", task, "tests"))
        else:  # without it, and without the projection
            tower = {n: w for n, w in moved.items() if n.startswith(VISUAL) and n != PROJECTION}
            save_file(to_hugging_face(tower), place / "model.safetensors")
            made.append(Published(str(place / "model.safetensors"), "encoder", task, "tests"))
    return made


def publish(run: Run, publisher: str, folder: Path) -> None:
    """What download_checkpoints.py makes of the publisher's files."""
    request = Request(run.model, "checkpoints", run.tasks, publisher)
    start = dict(store.pretrained(run))
    for file in published_files(run, publisher, folder):
        install(request, file, Path(file.path), run.paths.checkpoint(file.name, "standard"), run.seed, start)


def publish_masks(run: Run, count: int, folder: Path) -> None:
    """TALL masks of the first tasks, from a file as published: bits over all tensors, in the sorted order of names."""
    start = dict(store.pretrained(run))
    masks = random_masks({name: tensor.shape for name, tensor in start.items()}, tasks=run.tasks[:count])
    source = folder / f"TALL_mask_{count}task.npy"
    np.save(source, {task: np.packbits(published_vector(named).numpy()) for task, named in masks.items()})
    request, file = Request(run.model, "tall_masks", run.tasks), Published(str(source), "masks", str(count), "tests")
    install(request, file, source, run.paths.published_masks(count), run.seed, start)


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


def merged(run: Run, method: Method, scope: str) -> dict:
    """The record of a merge of the run's tasks, in this process."""
    options = Options(source=Source(scope=scope))
    merge(run, method, options)
    return result(run, result_name(run, method, options))


def benchmark(run: Run, count: int) -> Run:
    return dataclasses.replace(run, tasks=run.tasks[:count])


def test_talls_checkpoints_and_masks_on_every_benchmark(place, tmp_path):
    publish(place, "tall", tmp_path)
    for mode in ("none", "standard"):
        eval_single_task.main([*flags(place), f"--finetuning-mode={mode}", "--tasks=20"])
    divisible(place)
    single = result(place, "ft_accuracies")
    assert {*TASKS} <= single.keys() and single["no_control"] == "not prepared"
    assert {"MNIST", "EuroSAT"} <= single["leaks"].keys()  # parts of sets: their validation is not the published one
    eval_task_addition.main([*flags(place), "--finetuning-mode=standard", "--n-eval-points=2"])
    assert result(place, "addition_standard")["tasks"] == list(TASKS[:8])
    tests = []
    for count, scope in ON_EACH:
        if scope == SCOPES[0]:
            publish_masks(place, count, tmp_path)
        record = merged(benchmark(place, count), TallMask(load_mask=True), scope)
        assert (record["tasks"], record["scope"]) == (list(TASKS[:count]), scope)
        tests.append(record["test"])
    assert tests[-2] == tests[-1]  # the frozen rest does not move, masked or not
    merging.main([*told(place), "method=sum", "method.alphas=[0.3]", "num_tasks=14"])  # as it is typed
    assert result(place, "merging/14task/standard-visual/sum_alphas=-0.3-")["tasks"] == list(TASKS[:14])
    make_tables.main(["--suite=vision", f"--model={place.model}", f"--results={place.places.results}"])
    tables = place.places.results / "vision/tables"
    text = next(tables.glob("single_task*.md")).read_text()
    assert "Not clean" in text


def test_fusion_benchs_checkpoints_on_every_benchmark_with_its_own_heads(place, tmp_path):
    run = dataclasses.replace(place, tasks=FUSION_BENCH)
    publish(run, "fusion_bench", tmp_path)
    names = ",".join(FUSION_BENCH)
    for mode in ("none", "standard"):
        eval_single_task.main([*flags(run), f"--finetuning-mode={mode}", f"--tasks={names}"])
    divisible(run)
    single = result(run, "ft_accuracies")
    assert {*FUSION_BENCH} <= single.keys() and single["no_control"] == "not prepared"
    assert checkpoints.header(run.paths.head("KMNIST"))["classnames"][0] == "お"
    assert checkpoints.header(run.paths.head("MNIST"))["classnames"] == list(registry.get("MNIST").classnames)
    sizes = []
    for count, scope in ON_EACH:
        some = benchmark(run, count)
        record = merged(some, Ties(k=20, alphas=[1.0]), scope)
        assert (record["tasks"], record["scope"]) == (list(some.tasks), scope)
        sizes.append(record["parameters"]["scope"])
    assert sizes[-2] < sizes[-1]  # of all tensors 20 % are kept, or of the tower's
