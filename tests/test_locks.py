"""Two runs at once: one works, the other says so and waits; a lock ends with the process that holds it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import synthetic_results
import torch
from drawn_checkpoints import draw_checkpoints

from src import checkpoints, training
from src.merging import names
from src.merging.adamerging import AdaMerging
from src.merging.registry import label
from src.reporting import tables
from src.runtime import results
from src.runtime.distributed import World
from src.runtime.files import StorageError
from src.runtime.locks import only_one
from src.runtime.paths import ROOT

HOLDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from src.runtime.locks import only_one

path = Path(sys.argv[1])
with only_one(path):
    Path(sys.argv[2]).touch()
    time.sleep(float(sys.argv[3]))
    path.write_text("made by the first")
"""
AT_WORK = "another run is at work on it; waiting for its end"


@pytest.fixture
def holder(tmp_path):
    """holder(seconds) -> a process that holds the lock of `made`, or of a path, and makes it at its end."""
    started = []

    def start(seconds: float, path: Path = tmp_path / "made") -> subprocess.Popen:
        program = [sys.executable, "-c", HOLDER.format(root=str(ROOT))]
        process = subprocess.Popen([*program, str(path), str(tmp_path / "begun"), str(seconds)])
        started.append(process)
        while not (tmp_path / "begun").exists():  # pytest's own limit ends what is in vain
            assert process.poll() is None
            time.sleep(0.05)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_the_second_waits_and_says_so(holder, tmp_path, capfd):
    process = holder(1)
    with only_one(tmp_path / "made"):
        assert (tmp_path / "made").read_text() == "made by the first"
    assert process.wait() == 0
    assert capfd.readouterr().err.splitlines() == [f"{tmp_path / 'made'}: {AT_WORK}"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["begun", "made"]


READERS = {
    "drawing": (
        "mini",
        """
from dataclasses import replace
from src.datasets.mini import draw
draw.FAMILIES["toys"] = replace(draw.FAMILIES["toys"], sizes={"val": 2})
draw.cached(folder, 0, ("toys",))
""",
    ),
    "decoding": (
        "made",
        """
from src.datasets import cache
cache._build = lambda path, *which: path.write_text("decoded")
cache._build_once(folder / "made", {}, [], None)
""",
    ),
}


@pytest.mark.parametrize("kind", READERS)
def test_who_waits_for_images_says_so(kind, tmp_path):
    name, code = READERS[kind]
    head = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\nfolder = Path({str(tmp_path)!r})"
    with only_one(tmp_path / name):
        second = started("-c", head + code)
        assert second.stderr.readline() == f"{tmp_path / name}: {AT_WORK}\n"
        assert [path.name for path in tmp_path.iterdir()] == [f".{name}.lock"]
    ended([second])
    assert len(list(tmp_path.iterdir())) == 1


def test_the_lock_of_a_killed_process_is_none(holder, tmp_path, capfd):
    process = holder(500)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with only_one(tmp_path / "made"):
        pass
    assert capfd.readouterr().err == "" and [path.name for path in tmp_path.iterdir()] == ["begun"]


def test_a_lock_leaves_no_folder_where_nothing_was_made(tmp_path):
    with pytest.raises(ValueError), only_one(tmp_path / "a/b/made"):
        raise ValueError
    assert not list(tmp_path.iterdir())
    with pytest.raises(StorageError, match="made: expected room in /sys and the right"), only_one(Path("/sys/a/made")):
        pytest.fail("locked")


def started(*command: str, **places) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **places
    )


def ended(processes: list[subprocess.Popen]) -> list[str]:
    """What each printed; all must have succeeded."""
    told = []
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0 and "Traceback" not in err, err
        told.append(out + err)
    return told


def at_once(command: tuple[str, ...], number: int) -> None:
    """The same command in several processes: one does the work, the others find it done."""
    with contextlib.ExitStack() as stack:
        ended = [
            process.completed() for process in [stack.enter_context(forked.start(*command)) for _ in range(number)]
        ]
    for done in ended:
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert sum("skipped" in done.stdout for done in ended) == number - 1


MAKERS = ("finetune.py", "eval_single_task.py", "main.py", "make_tables.py")


@pytest.mark.parametrize("script", MAKERS)
def test_a_script_waits_for_another_run_that_is_at_its_file(script, holder, make_run, tmp_path, monkeypatch):
    run = make_run("--tasks=digits,signs")
    draw_checkpoints(run)
    places = {"save": run.places.save, "results": run.places.results, "cache_dir": run.places.cache}
    flags = [f"--{name.replace('_', '-')}={place}" for name, place in places.items()]
    flags += ["--seed=0", "--jobs=1", "--device=cpu", "--tasks=digits,signs"]
    if script == "finetune.py":
        path, flags = run.paths.checkpoint("digits", "standard"), [*flags, "--steps=1", "--overwrite"]
    elif script == "eval_single_task.py":
        path, flags = run.paths.single_task("none"), [*flags, "--finetuning-mode=none", "--overwrite"]
    elif script == "main.py":
        folder = names.folder(run.suite, run.tasks, "standard", "visual")
        path = run.paths.result(f"{folder}/{label(AdaMerging(steps=2))}")
        flags = ["method=adamerging", "method.steps=2", "eval_every=0", "DATASETS=[digits,signs]", "seed=0", "jobs=1"]
        flags += ["device=cpu", *(f"{name}={place}" for name, place in places.items())]
    else:
        synthetic_results.write(tmp_path / "made up", seeds=(1,), merges=False)
        path, flags = tmp_path / "made up/mini/claims.md", [f"--results={tmp_path / 'made up'}"]
        monkeypatch.setattr(tables, "make", lambda runs: [])  # which take half a minute
        monkeypatch.setattr(tables, "examine_all", lambda runs: {})
    holder(500, path)
    with forked.start(script, *flags) as second:
        while AT_WORK not in second.stderr and second.poll() is None:  # pytest's own limit ends what is in vain
            time.sleep(0.05)
        assert second.stderr.endswith(f"{path}: {AT_WORK}\n") and second.poll() is None


def test_two_fine_tunings_at_once_make_what_one_makes(make_training, tmp_path):
    flags = ("--steps=12", "--tasks=signs", "--batch-size=8", "--checkpoint-every=1")
    alone, settings = make_training(*flags)
    training.finetune_together(alone, settings, World())
    run, _ = make_training(*flags, f"--save={tmp_path}/shared")
    places = [f"--save={tmp_path}/shared", f"--cache-dir={run.places.cache}", "--seed=0", "--jobs=1", "--device=cpu"]
    at_once(("finetune.py", *flags, *places), 2)
    whole, shared = (checkpoints.load(one.paths.checkpoint("signs", "standard")) for one in (alone, run))
    assert all(torch.equal(whole[name], shared[name]) for name in whole)
    left = sorted(path.name for path in run.paths.checkpoint("signs", "standard").parent.iterdir())
    assert left == ["standard.safetensors"]


def test_two_adaptations_at_once_make_what_one_makes(make_run, tmp_path, small_cache):
    """Each would save over the other's state, and go on from it."""
    run = make_run("--tasks=digits,signs")
    draw_checkpoints(run)
    shared = [f"save={run.places.save}", f"cache_dir={small_cache}", "seed=0", "jobs=1", "device=cpu"]
    method = ["method=adamerging", "method.steps=6", "method.batch_size=2", "save_every=1", "eval_every=0"]
    call = ["main.py", "DATASETS=[digits,signs]", *shared, *method]
    at_once((*call, f"results={run.places.results}"), 2)
    (path,) = run.paths.seed_results().rglob("adamerging*.json")
    record = results.read(path)
    alone = tmp_path / "alone"
    (alone / "mini/ViT-Mini").mkdir(parents=True)
    for name in ("zeroshot_accuracies", "ft_accuracies"):
        source = run.paths.seed_results() / f"{name}.json"
        target = alone / source.relative_to(run.paths.results)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(source.read_bytes())
    at_once((*call, f"results={alone}"), 1)
    (single,) = alone.rglob("adamerging*.json")
    expected = results.read(single)
    for key in ("val", "test", "chosen", "adaptation"):
        assert record[key] == expected[key]
    hidden = [path for path in run.paths.results.rglob(".*") if path.is_file()]
    assert not hidden and not list(run.paths.save.rglob("*.state*"))


def test_ids_of_processes_are_no_part_of_a_lock(tmp_path):
    """After a reboot another process has the id; the file alone locks nothing."""
    (tmp_path / ".made.lock").write_text(str(os.getpid()))
    with only_one(tmp_path / "made"):
        pass
    assert not list(tmp_path.iterdir())
