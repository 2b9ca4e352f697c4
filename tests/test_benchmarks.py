"""Every benchmark runs at a tiny size, and the ways that it compares agree, which it checks itself."""

import json
import os
import re
import subprocess
import sys

from src.modes import TRAINED
from src.runtime import results
from tests.conftest import ROOT

TOWER = ("--tasks=2", "--layers=1", "--width=64", "--rounds=1", "--batch-size=2")


def run(script: str, *flags: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_adaptation_step(tmp_path):
    file = tmp_path / "found.json"
    run("adaptation_step.py", *TOWER, "--methods=concrete", "--ways", "ours", "one graph", f"--output={file}")
    found = results.read(file)
    assert set(found["concrete"]) == {"ours", "one graph"} and found["provenance"]["config"]["tasks"] == 2
    assert all(row["seconds"] > 0 and row["bytes"] > 0 for row in found["concrete"].values())


def test_merge_memory(tmp_path):
    file = tmp_path / "found.json"
    run("merge_memory.py", "--tasks=2", "--scale=0.01", "--scope=visual", "--methods=consensus", f"--output={file}")
    found = results.read(file)
    assert set(found["consensus"]) == {"streaming", "published"} and found["provenance"]["config"]["scope"] == "visual"


def test_coefficient_sweep(tmp_path, mini_cache):
    places = (f"--save={tmp_path}", f"--cache-dir={mini_cache}")
    told = run("coefficient_sweep.py", "--n-eval-points=2", "--rounds=1", "--seed=0", *places)
    assert told.count("differ from the loop's by") == 2 and "linear: 2 coefficients cost" in told


def test_linear_step(tmp_path):
    told = run("linear_step.py", "--batch-size=2", "--rounds=1", f"--save={tmp_path}")
    difference = float(re.search(r"differ by (\S+) of their norm", told).group(1))
    assert told.count("ms of CPU time per step") == 3 and difference < 1e-4


def test_mode_steps(tmp_path, mini_cache):
    places = (f"--save={tmp_path}", f"--cache-dir={mini_cache}", "--seed=0")
    told = run("mode_steps.py", "--batch-size=2", "--rounds=1", *places)
    assert [line.split()[0] for line in told.splitlines()] == list(TRAINED)


def test_image_cache():
    told = run("image_cache.py", "--images=5", "--side=32", "--height=64", "--rounds=1")
    assert "with the cache" in told and "over 5 images" in told


def test_accelerator(tmp_path):
    """Every section that needs no further process, on a toy tower; the others are `ranks` and `compiled`."""
    file = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.accelerator", "--tiny", f"--out={file}"]
    command += ["--without", "ranks", "compiled", "mini"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    sections = json.loads(file.read_text())["sections"]
    assert {name: found for name, found in sections.items() if {"error", "stopped", "skipped"} & set(found)} == {}
    assert len(sections) == 11 and all(sections.values())
    distances = [value for name, value in sections["agreement"].items() if "float64" not in name]
    assert max(distances) < 1e-4  # a toy tower here and here; float32 everywhere
