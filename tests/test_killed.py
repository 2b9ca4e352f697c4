"""SIGKILL at each moment in which a file is put in its place: the same work again ends as if nothing had been."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import synthetic_results
from drawn_checkpoints import draw_checkpoints
from few_images import few_images
from PIL import Image

import eval_single_task
import main
from src.datasets import cache
from src.datasets.examples import Files
from src.datasets.loading import centre_crop
from src.datasets.mini import draw
from src.reporting.runs import Runs
from src.reporting.tables import make_tables
from src.runtime.distributed import World
from src.training import finetune_together

# Which of the files that are put in their places; work that writes fewer ends before the later ones.
MOMENTS = {
    "fine-tuning": (1, 2, 3, 4, 5),
    "evaluation": (1, 2, 3),
    "merging": (1, 6, 7, 8, 9),
    "adaptation": (1, 7, 9, 11),
    "drawing": (1,),
    "cache": (1, 2),
    "tables": (2,),
}

Work = Callable[[Path], None]  # what writes into a folder


@pytest.fixture
def works(make_run, make_training, mini_cache, tmp_path, monkeypatch) -> Iterator[dict[str, Work]]:
    monkeypatch.setattr(draw, "cores", lambda: 1)
    sources = tmp_path / "sources"
    sources.mkdir()
    for number in range(3):
        pixels = np.full((9 + number, 9, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(sources / f"{number}.png")

    def places(folder: Path) -> list[str]:
        return [f"--save={folder}/c", f"--results={folder}/r", f"--cache-dir={mini_cache}", "--seed=0", "--device=cpu"]

    def fine_tune(folder: Path) -> None:
        run, training = make_training(
            "--steps=3", "--tasks=signs", "--batch-size=2", "--checkpoint-every=1", *places(folder)
        )
        finetune_together(run, training, World())

    def evaluate(folder: Path) -> None:
        eval_single_task.main([*places(folder), "--finetuning-mode=none", "--tasks=signs", "--jobs=1"])

    def merge(method: str, *more: str) -> Work:
        def work(folder: Path) -> None:
            run = make_run("--tasks=digits,signs", *places(folder))
            if not run.paths.single_task("standard").is_file():
                draw_checkpoints(run)
            given = [flag.removeprefix("--").replace("cache-dir", "cache_dir") for flag in places(folder)]
            main.main(["DATASETS=[digits,signs]", "jobs=1", f"method={method}", *given, *more])

        return work

    def images(folder: Path) -> None:
        examples = Files.of((path, 0) for path in sorted(sources.iterdir()))
        crop = lambda image: centre_crop(image, 8)  # noqa: E731
        cache.cached(examples, crop, "8", folder, "Cars", "test")

    def tables(folder: Path) -> None:
        if not (folder / "mini").exists():
            synthetic_results.write(folder, seeds=(1,), merges=False)
        make_tables(Runs("mini", "ViT-Mini", folder))

    adapting = ("method.steps=3", "method.batch_size=2", "save_every=1", "eval_every=1")
    made = {
        "fine-tuning": fine_tune,
        "evaluation": evaluate,
        "merging": merge("tall_mask", "method.tall_mask_lambda=[0.4]"),
        "adaptation": merge("adamerging", *adapting),
        "drawing": lambda folder: draw.cached(folder, 0, ("digits",)) and None,
        "cache": images,
        "tables": tables,
    }
    with few_images(4):
        yield made


def killed(work: Work, folder: Path, moment: int) -> bool:
    """Do the work in another process, and kill it before its `moment`-th file is put in its place; whether it was."""
    if (child := os.fork()) == 0:
        replace, rename, count = os.replace, Path.rename, 0

        def dying(function):
            def called(*which):
                nonlocal count
                count += 1
                if count == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*which)

            return called

        os.replace, Path.rename = dying(replace), dying(rename)
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                work(folder)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def contents(folder: Path) -> dict[str, object]:
    """Every file; of results what does not tell of time."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix == ".lock":
            continue
        name = str(path.relative_to(folder))
        if path.suffix == ".json" and b"provenance" in (data := path.read_bytes()):
            record = {key: value for key, value in json.loads(data).items() if key not in ("provenance", "cost")}
            found[name] = json.dumps(record).replace(str(folder), "")
        else:
            found[name] = path.read_bytes().replace(str(folder).encode(), b"")
    return found


@pytest.mark.parametrize("kind", MOMENTS)
def test_work_that_was_killed_ends_as_if_it_had_not_been(kind, works, tmp_path):
    work = works[kind]
    work(tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    for moment in MOMENTS[kind]:
        folder = tmp_path / f"killed{moment}"
        was_killed = killed(work, folder, moment)
        assert was_killed or moment != MOMENTS[kind][0]
        work(folder)
        assert contents(folder) == expected, f"killed before file {moment}"
