"""demo.py runs from nothing to its picture; main.py --help explains itself."""

from functools import partial

import pytest
from few_images import few_images

import demo
import main
from src import run
from src.experiments import demonstration
from src.merging.registry import registered
from src.runtime.paths import Places


def test_two_tasks_become_one_picture(tmp_path, mini_cache, monkeypatch, capsys):
    monkeypatch.setattr(demonstration, "SEED", 0)  # whose images the tests have drawn
    monkeypatch.setattr(demonstration, "Places", partial(Places, cache=mini_cache))
    monkeypatch.setattr(run, "cores", lambda: 1)  # this process scores, few images
    with few_images(50):
        demo.main(["--steps", "3", "--folder", str(tmp_path / "a demo")])
    out = capsys.readouterr().out
    assert (tmp_path / "a demo" / "demo.png").exists() and (tmp_path / "a demo" / "demo.pdf").exists()
    assert [line.split()[2] for line in out.splitlines() if line.startswith("$ ")] == [
        "finetune.py", "eval_single_task.py", "eval_single_task.py", "eval_task_addition.py",
    ]  # fmt: skip
    assert "its own model" in out and "one model for both tasks" in out


def test_other_than_two_tasks_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        demo.main(["--tasks", "signs", "--folder", str(tmp_path)])
    assert "--tasks: expected two tasks" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_help_of_main_names_every_method_and_explains_keys(capsys):
    main.main(["--help"])
    out = capsys.readouterr().out
    assert "Exit status: 0" in out and "+search.k=" in out
    listed = [line.split()[0] for line in out.partition("has their options):")[2].splitlines() if line]
    assert listed == [cls.name for cls in registered()]
    assert all(f"  {cls.title}{f' (arXiv:{cls.paper})' if cls.paper else ''}\n" in out for cls in registered())
