"""What several test files share: the mini suite's drawn images, and arguments as the scripts parse them."""

import functools
import gc
import operator
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # of torch here, and of the processes that tests start: these share the cores

import numpy as np
import pytest
import torch
from few_images import few_images
from hydra.core.config_store import ConfigStore
from hypothesis import settings
from traces import pytest_sessionfinish as pytest_sessionfinish
from traces import pytest_sessionstart as pytest_sessionstart

from src import args as arguments
from src import checkpoints, store
from src.datasets.mini import draw
from src.finetuning.settings import Training
from src.run import Run
from src.runtime import loggers, results

if "PYTEST_XDIST_WORKER" in os.environ:
    gc.disable()  # until all tests are collected: what they import stays
ROOT = Path(__file__).resolve().parent.parent
settings.register_profile("suite", deadline=None)  # no test depends on how busy the machine is
settings.load_profile("suite")
# Hydra copies its store of all methods for every composition. What it takes from a store it copies once more, so that
# one serves all.
ConfigStore.__deepcopy__ = lambda store, memo: store

# Files that start many processes or train take longest. They go first, so that all workers of xdist end together.
LONG = (
    "test_processes.py",
    "test_distributed.py",
    "test_merging_main.py",
    "test_training.py",
    "test_modes_end_to_end.py",
    "test_scripts.py",
    "test_reporting_end_to_end.py",
    "test_mini_datasets.py",
    "test_benchmarks.py",
    "test_submitit.py",
    "test_parallel.py",
    "test_tables.py",
    "test_adaptation.py",
)

# What `make check` runs: neither training nor processes, browsers or every figure.
FAST = (
    "test_checkpoints.py",
    "test_class_token.py",
    "test_compare.py",
    "test_concrete_mask.py",
    "test_dual_numbers.py",
    "test_frame.py",
    "test_loggers.py",
    "test_merging_contract.py",
    "test_merging_methods.py",
    "test_modeling.py",
    "test_ranges.py",
    "test_readme.py",
    "test_records.py",
    "test_results.py",
    "test_shipped.py",
    "test_statistics.py",
    "test_store.py",
    "test_task_vectors.py",
    "test_tensors.py",
    "test_unpickle.py",
)
NOT_FAST = (  # of those files: starts processes, makes every table
    "test_commands_that_need_nothing_of_each_other_run_at_once",
    "test_the_tables_of_the_repository_are_those_of_its_results",
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`make check` imports no other files: that takes longer than the fast tests do."""
    others = collection_path.name.startswith("test_") and collection_path.name not in FAST
    return True if config.option.markexpr == "fast" and others else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in FAST and item.name not in NOT_FAST:
            item.add_marker(pytest.mark.fast)
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Modules and tests are left alone when garbage is looked for: by this process, and by those forked from it."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def mini_cache() -> Path:
    """Sets of seed 0 as the cache keeps them, drawn in the first test run: of each split the first chunk, or of the
    larger benchmarks' sets one picture of a class.
    """
    import forked  # here: the tests of `make check` need none of what it imports

    folder = ROOT / "cache" / "tests"
    with pytest.MonkeyPatch.context() as patch, forked.workers():  # which have what is patched here
        for name, whole in list(draw.FAMILIES.items()):
            enough = max(draw.CHUNK if name in draw.TOGETHER else 0, len(whole.names))
            sizes = {split: min(size, enough) for split, size in whole.sizes.items()}
            patch.setitem(draw.FAMILIES, name, replace(whole, sizes=sizes))
        draw.cached(folder, 0, draw.FAMILIES)
    return folder


@pytest.fixture(scope="session", autouse=True)
def as_users_have_it(tmp_path_factory) -> Iterator[None]:
    """Processes that tests start find no `transformers`, which only tests need: open_clip would import it in each."""
    folder = tmp_path_factory.mktemp("absent")
    (folder / "transformers.py").write_text("raise ImportError('as for a user')\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session")
def small_cache(mini_cache, tmp_path_factory) -> Path:
    """The first 50 images of each split, for scripts in processes of their own, which `few_images` does not reach."""
    folder = tmp_path_factory.mktemp("small_cache")
    for drawn in draw.cached(mini_cache, seed=0).values():
        place = folder / drawn.relative_to(mini_cache)
        place.mkdir(parents=True)
        for file in drawn.iterdir():
            np.save(place / file.name, np.load(file, mmap_mode="r")[:50])
    return folder


@pytest.fixture(autouse=True)
def no_sweep() -> Iterator[None]:
    """A test that starts a sweep leaves the name of its group to no other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(loggers.GROUP, "")
        patch.delenv(loggers.GROUP)
        yield


_attributes: dict[str, dict[str, object]] = {}  # of each module of src, as it was when it was last looked at


@functools.lru_cache(maxsize=1)
def _of_src(loaded: int) -> list[str]:
    """The modules of src, while so many are loaded in all: looking through thousands takes longer than comparing."""
    return [name for name in sys.modules if name.startswith("src.")]


def _changed() -> list[tuple[str, dict[str, object]]]:
    """The modules of src that are not as they were when this was last called, with the attributes of then."""
    changed = []
    for name in _of_src(len(sys.modules)):
        before, now = _attributes.get(name, {}), vars(sys.modules[name])
        if len(before) != len(now) or not all(map(operator.is_, before.values(), now.values())):
            changed.append((name, before))
            _attributes[name] = dict(now)
    return changed


@pytest.fixture(autouse=True)
def nothing_stays_patched() -> Iterator[None]:
    """A function or class of src that a test replaced is back at its end, in whatever order fixtures are undone."""
    _changed()
    yield
    for name, attributes in _changed():
        module = vars(sys.modules[name])
        replaced = [key for key, value in attributes.items() if callable(value) and module.get(key) is not value]
        for key in replaced:  # or every later test of this process fails too
            module[key] = attributes[key]
        assert not replaced, f"{name} has others in the place of {', '.join(replaced)}"


@pytest.fixture
def make_run(tmp_path, mini_cache):
    """make_run("--tasks", "signs", ...) -> a run of mini on the CPU, seed 0, that writes under tmp_path."""

    def make(*flags: str) -> Run:
        return arguments.parse(arguments.base_parser(""), [*_places(tmp_path, mini_cache), *flags])[0]

    yield make
    store.encoder.cache_clear()


@pytest.fixture
def place(make_run) -> Iterator[list[str]]:
    """Checkpoints near θ0 of three tasks, accuracies that normalise, 12 images a split; returns main's overrides."""
    run = make_run("--tasks", "digits", "signs", "letters")
    start = dict(store.pretrained(run))
    for number, task in enumerate(run.tasks):
        torch.manual_seed(number)
        moved = {n: w + 0.02 * torch.randn_like(w) if n.startswith("model.visual") else w for n, w in start.items()}
        header = dict(model=run.model, task=task, mode="standard", seed=0)
        checkpoints.save(run.paths.checkpoint(task, "standard"), moved, header)
    for mode in ("none", "standard", "posthoc"):
        record = {task + suffix: 0.5 for task in run.tasks for suffix in ("", "Val")}
        results.write(run.paths.single_task(mode), record, run.config(), started=time.time())
    places = {"save": run.places.save, "results": run.places.results, "cache_dir": run.places.cache}
    with few_images(12):
        yield ["seed=0", "jobs=1", "device=cpu", *(f"{key}={value}" for key, value in places.items())]


@pytest.fixture
def make_training(tmp_path, mini_cache):
    """make_training("--steps=3", ...) -> (run, training), of the flags of finetune.py."""

    def make(*flags: str) -> tuple[Run, Training]:
        parser = arguments.finetuning_parser("")
        run, options = arguments.parse(parser, [*_places(tmp_path, mini_cache), *flags])
        for name in ("overwrite", "wandb", "tensorboard"):
            del options[name]
        return run, Training.of(run, **options)

    yield make
    store.encoder.cache_clear()


def _places(folder: Path, cache: Path) -> list[str]:
    flags = [f"--save={folder}/checkpoints", f"--results={folder}/results", f"--cache-dir={cache}"]
    return ["--seed=0", *flags, "--jobs=1", "--device=cpu"]
