"""The page on a large study: its figures are those of the arithmetic, its commands are those of the scripts."""

import importlib
import json
import re
import shlex
import subprocess
from collections import Counter

import pytest
from test_published import Parsed, compose, stopping_after
from test_published import schemas as schemas

from benchmarks import scale
from src import args as arguments
from src import sweep
from src.datasets.vision import TASKS
from src.runtime.paths import ROOT

PAGE, BATCH = ROOT / "docs/scale.md", ROOT / "docs/scale.sbatch"
RECORDED = """
python() { printf '%s\\n' "$*" >>"$COMMANDS"; }
for SLURM_ARRAY_TASK_ID in $(seq 0 "$LAST"); do (. "$BATCH"); done
"""


def arrays() -> dict[str, int]:
    """The last number of every stage's array, as the head of the file starts them."""
    return {stage: int(last) for stage, last in re.findall(r"STAGE=(\w+) --array=0-(\d+)", BATCH.read_text())}


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> dict[str, list[list[str]]]:
    """What every job of every stage would run."""
    found = {}
    for stage, last in arrays().items():
        file = tmp_path_factory.mktemp("commands") / stage
        where = {"COMMANDS": str(file), "BATCH": str(BATCH), "LAST": str(last), "STAGE": stage, "PATH": "/usr/bin:/bin"}
        subprocess.run(["bash", "-c", RECORDED], env=where, check=True)
        found[stage] = [shlex.split(line) for line in file.read_text().splitlines()]
    return found


def test_the_page_has_the_figures_of_the_arithmetic():
    begin, tables, end = re.split("<!-- scale:(?:begin|end) -->\n", PAGE.read_text())
    assert tables == scale.tables()
    assert begin.count("\n") > 3 < end.count("\n")


def test_rates_that_are_said_to_be_measured_were():
    file = ROOT / "benchmarks/results/accelerator.json"
    if not file.exists():
        pytest.skip("no GPU's results")
    (large,) = [run["sections"]["large"] for run in json.loads(file.read_text())["runs"] if "large" in run["sections"]]
    for mode in ("standard", "linear"):
        row = large[f"{mode} tf32, batch 64"]
        assert scale.rate(f"fine-tuning, {mode}") == pytest.approx(64_000 / row["ms"], rel=0.01)
        assert scale.rate(f"fine-tuning, {mode}: memory") == pytest.approx(row["GB"], rel=0.01)
    for count in (32, 128):
        row = large[f"forward and backward over {count} images, tf32"]
        assert scale.rate(f"a pass of {count} images: memory") == pytest.approx(row["GB"], rel=0.01)
    assert scale.rate("forward and backward") == pytest.approx(128 / row["s"], rel=0.01)


def test_the_longest_job_and_the_mean_bound_the_hours():
    for stage in scale.stages():
        least = max(max(stage.hours), stage.total / scale.GPUS)
        assert least <= stage.on_all <= stage.total / scale.GPUS + max(stage.hours)


def test_the_file_is_a_shell_script():
    subprocess.run(["bash", "-n", str(BATCH)], check=True)


def test_every_job_is_another_and_together_they_are_the_study(commands):
    assert {stage: len(of_stage) for stage, of_stage in commands.items()} == {s: n + 1 for s, n in arrays().items()}
    assert all(max(Counter(map(tuple, of_stage)).values()) == 1 for of_stage in commands.values())
    jobs = {stage.name: len(stage.hours) for stage in scale.stages()}
    assert len(commands["finetune"]) == jobs["fine-tuning"] == len(TASKS) * len(scale.MODES) * scale.SEEDS
    assert len(commands["single"]) == jobs["single tasks and control"]
    assert len(commands["evaluate"]) == jobs["addition and negation"]
    assert len(commands["merge"]) == jobs["merging"] + jobs["methods that adapt"]
    methods = {word.partition("=")[2] for words in commands["merge"] for word in words if word.startswith("method=")}
    assert len(methods) == scale.METHODS and {*scale.ADAPTING} < methods
    modes = {word for words in commands["finetune"] for word in words if word.startswith("--finetuning-mode=")}
    assert modes == {f"--finetuning-mode={mode}" for mode in scale.MODES}
    named = {word.partition("=")[2] for words in commands["finetune"] for word in words if word.startswith("--tasks=")}
    assert named == {*TASKS}


def test_every_command_parses(commands, monkeypatch):
    for script, *flags in (words for stage in ("finetune", "single", "evaluate") for words in commands[stage]):
        module = importlib.import_module(script.removesuffix(".py"))
        with monkeypatch.context() as patched, pytest.raises(Parsed):
            patched.setattr(module, "parse", stopping_after(arguments.parse))
            module.main(flags)
    first_of_method = {words[2]: words for words in reversed(commands["merge"])}
    for script, *flags in first_of_method.values():
        assert script == "main.py" and compose(flags) == {"vision"}
    assert len(first_of_method) == scale.METHODS


@pytest.mark.parametrize("command", re.findall(r"^python -m src\.sweep (.*)$", PAGE.read_text(), re.MULTILINE))
def test_the_sweeps_of_the_page_parse(command, monkeypatch):
    started = []
    monkeypatch.setattr(sweep.hydra, "main", lambda **_: lambda job: lambda: started.append(job))
    sweep.main(shlex.split(command))
    assert started == [sweep.job]
