"""TensorBoard and Weights & Biases, without a network; nothing without a flag."""

import os
import sys
from pathlib import Path

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from src import sweep
from src.runtime import loggers
from src.runtime.loggers import Logger, Loggers
from src.runtime.messages import UsageError

POINTS = {0: 1.5, 1: 0.25}


def log(asked: Loggers, folder: Path) -> None:
    logger = Logger(asked, "ViT-Mini-signs-standard", folder, {"lr": 1e-5})
    for step, loss in POINTS.items():
        logger.log({"loss": loss}, step)
    logger.close()


def test_nobody_is_told_without_a_flag(tmp_path):
    log(Loggers(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_tensorboard_reads_what_was_logged(tmp_path):
    log(Loggers(tensorboard=True), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard/ViT-Mini-signs-standard"))
    events.Reload()
    assert {event.step: event.value for event in events.Scalars("loss")} == POINTS


def test_wandb_offline_keeps_the_run_here(tmp_path, monkeypatch):
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    log(Loggers(wandb=True), tmp_path)
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (file,) = run.glob("run-*.wandb")
    assert os.path.getsize(file) > 0


def test_runs_of_a_sweep_are_a_group(tmp_path, monkeypatch):
    loggers.begin_group()
    name = os.environ[loggers.GROUP]
    loggers.begin_group()  # of a job of the sweep
    assert os.environ[loggers.GROUP] == name and name.startswith("sweep-")
    log(Loggers(tensorboard=True), tmp_path)
    assert [*(tmp_path / "tensorboard" / name / "ViT-Mini-signs-standard").iterdir()]
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = Logger(Loggers(wandb=True), "ViT-Mini-signs-standard", tmp_path, {})
    assert wandb.run is not None and wandb.run.group == name
    logger.close()


@pytest.mark.parametrize("words", [["main.py", "--multirun", "method=sum,ties"], ["sweep.py", "finetune.py", "--lr=1"]])
def test_a_sweep_begins_a_group(words, monkeypatch):
    class Begun(Exception):
        pass

    def begin():
        raise Begun

    script = {"main.py": main, "sweep.py": sweep}[words[0]]
    monkeypatch.setattr(script, "begin_group", begin)
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(Begun):
        script.main()


def test_a_package_that_is_not_there_names_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers.importlib, "import_module", _absent)
    with pytest.raises(UsageError, match="--wandb: .* pip install wandb"):
        log(Loggers(wandb=True), tmp_path)


def _absent(name):
    raise ImportError(name)


def test_wandb_without_a_login_says_what_mends_it(tmp_path, monkeypatch):
    def refused(**named):
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refused)
    with pytest.raises(UsageError, match="--wandb: expected a login, found: No API key.*wandb login, or WANDB_MODE="):
        log(Loggers(wandb=True), tmp_path)
