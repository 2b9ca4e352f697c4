"""Results: plain numbers with provenance, written whole; a damaged or missing one says how it is made."""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from src.runtime import results
from src.runtime.paths import ROOT
from src.runtime.results import MissingResult, ResultError

ARGS = argparse.Namespace(model="ViT-Mini", save=ROOT / "checkpoints", device="cpu", seeds=(1, 2), lr=1e-5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mini" / "addition.json"


def test_a_record_comes_back_with_its_provenance(path):
    record = {"MNIST": {"test": 0.1 + 0.2, "n": 300}, "curve": [0.0, 1 / 3], "note": "α", "ok": True, "none": None}
    results.write(path, record, ARGS, started=time.time() - 5)
    found = results.read(path)
    provenance = found.pop("provenance")
    assert found == record  # floats to the last bit
    assert provenance["config"] == {
        "model": "ViT-Mini",
        "save": "checkpoints",  # relative: a result names no folder of one machine
        "device": "cpu",
        "seeds": [1, 2],
        "lr": 1e-5,
    }
    assert set(provenance["versions"]) == {"python", "torch", "open_clip", "numpy"}
    assert provenance["versions"]["numpy"] == np.__version__
    assert 5 <= provenance["seconds"] < 60 and provenance["device"].endswith("threads")
    assert provenance["date"].endswith("+00:00") and provenance["command"].startswith("python ")


def test_numpy_and_torch_values_become_numbers(path):
    @dataclass
    class Score:
        correct: int
        loss: float

    record = {
        "numpy": [np.float64(0.1), np.float32(0.5), np.int64(3), np.bool_(True), np.arange(2)],
        "torch": [torch.tensor(2.5), torch.tensor([[1, 2]]), torch.ones(1, requires_grad=True)],
        "score": Score(3, np.float32(0.25)),
        0.1: "a float key",
    }
    results.write(path, record, {"lr": np.float64(0.1)})
    found = json.loads(path.read_text())
    assert found["numpy"] == [0.1, 0.5, 3, True, [0, 1]]
    assert found["torch"] == [2.5, [[1, 2]], [1.0]]
    assert found["score"] == {"correct": 3, "loss": 0.25} and found["0.1"] == "a float key"
    assert found["provenance"]["config"] == {"lr": 0.1}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), np.float32("nan"), torch.tensor([1.0, float("nan")])])
def test_a_nan_is_refused_and_the_old_result_stays(path, bad):
    results.write(path, {"a": 1}, ARGS)
    before = path.read_bytes()
    with pytest.raises(ResultError, match=r"found addition.tasks\[1\].loss.* = (nan|inf); nothing was written"):
        results.write(path, {"tasks": [{"loss": 0.5}, {"loss": bad}]}, ARGS)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_what_json_cannot_hold_is_refused_in_a_record_and_spelled_out_in_a_config(path):
    with pytest.raises(TypeError, match="addition.model is a Linear"):
        results.write(path, {"model": torch.nn.Linear(1, 1)}, ARGS)
    results.write(path, {}, argparse.Namespace(device=torch.device("cpu"), tasks={"MNIST"}))
    assert results.read(path)["provenance"]["config"] == {"device": "cpu", "tasks": "{'MNIST'}"}


def test_a_missing_result_names_its_command(path):
    assert not results.exists(path)
    with pytest.raises(MissingResult, match="addition.json, found no file; make it with: python eval_task_addition.py"):
        results.require(path, "python eval_task_addition.py")
    with pytest.raises(FileNotFoundError, match="make it with: python reproduce.py"):
        results.read(path)


@pytest.mark.parametrize("kept", [0, 20, -5])
def test_a_truncated_result_says_so_and_how_to_make_it_again(path, kept):
    results.write(path, {"accuracy": [0.25] * 10}, ARGS)
    assert results.exists(path) and results.require(path, "x")["accuracy"]
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ResultError, match=r"damaged one of \d+ bytes .* make it again with: python main.py"):
        results.require(path, "python main.py")


@pytest.mark.parametrize("foreign", [b"[1, 2]", b'{"accuracy": 1}', b"\xff\xfe"])
def test_foreign_json_is_refused(path, foreign):
    path.parent.mkdir()
    path.write_bytes(foreign)
    with pytest.raises(ResultError, match="python reproduce.py"):
        results.read(path)


def test_the_commit_is_the_projects_own(tmp_path, monkeypatch):
    def git(*arguments, folder=tmp_path):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert results.commit() is None
    (tmp_path / "file").write_text("1")
    git("init")
    git("add", "file")
    git("commit", "-m", "first")
    clean = results.commit()
    assert len(clean) == 40
    (tmp_path / "file").write_text("2")
    assert results.commit() == f"{clean}-dirty"
    (tmp_path / "copy").mkdir()
    monkeypatch.setattr(results, "ROOT", tmp_path / "copy")
    assert results.commit() is None, "a copy inside somebody else's repository has no commit of its own"


def test_the_command_line_can_be_typed_again(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "main.py"), "model=ViT-Mini", "DATASETS=[MNIST, SVHN]"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert results.command_line() == "python main.py model=ViT-Mini 'DATASETS=[MNIST, SVHN]'"
    script = "from src.runtime import results; print(results.command_line())"
    done = subprocess.run([sys.executable, "-c", script, "a"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "python -c a"


def test_reading_results_does_not_import_torch():
    script = "import sys; from src.runtime import results; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_nothing_is_left_beside_a_result(path):
    results.write(path, {}, ARGS)
    assert list(Path(path.parent).iterdir()) == [path]


def test_a_result_of_other_tasks_is_kept_and_says_so(path, capsys):
    asked = argparse.Namespace(overwrite=False, tasks=("digits", "signs"))
    assert not results.kept(path, asked)
    results.write(path, {}, asked)
    assert results.kept(path, asked) and "though" not in capsys.readouterr().out
    other = argparse.Namespace(overwrite=False, tasks=("digits",))
    assert results.kept(path, other)
    assert "though it is of tasks digits, signs, not digits (--overwrite computes" in capsys.readouterr().out
    assert not results.kept(path, argparse.Namespace(overwrite=True, tasks=("digits",)))
    results.write(path, {}, argparse.Namespace(pairs=[("a", "b"), ("c", "d")]))
    assert results.kept(path, argparse.Namespace(overwrite=False, tasks=("digits",), pairs=[("a", "b")]))
    assert "though it is of pairs a-b, c-d, not a-b (" in capsys.readouterr().out
