"""`main.py --multirun` through Hydra's submitit launcher, in its local mode: what Slurm would be given."""

import json
import os
import subprocess
import sys
import time

import pytest

from src import checkpoints, store
from src.runtime import results
from src.runtime.paths import ROOT

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")


def test_jobs_of_a_multirun_run_in_processes_of_their_own(make_run, tmp_path):
    run = make_run("--tasks=digits")
    store.write_pretrained(run)
    path = run.paths.checkpoint("digits", "standard")
    header = dict(model=run.model, task="digits", mode="standard", seed=0)
    checkpoints.save(path, dict(store.pretrained(run)), header)  # moved nowhere
    for mode in ("none", "standard"):
        results.write(run.paths.single_task(mode), {"digits": 0.5, "digitsVal": 0.5}, run.config(), time.time())
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "main.py"), "--multirun", "hydra/launcher=submitit_local"),
            *(f"hydra.sweep.dir={tmp_path}/jobs", "hydra.launcher.timeout_min=10", "hydra.launcher.cpus_per_task=1"),
            *("method=zeroshot,average", "tasks=[digits]", "seed=0", "device=cpu", "jobs=1"),
            *(f"save={run.places.save}", f"results={run.places.results}", f"cache_dir={run.places.cache}"),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,  # where the jobs find the project: they start in the same folder
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    folder = run.paths.results
    made = {path.stem: json.loads(path.read_text()) for path in folder.rglob("merging/**/*.json")}
    assert {"zeroshot", "average"} <= made.keys()
    assert made["zeroshot"]["test"]["accuracy"] == made["average"]["test"]["accuracy"]
    logs = [file.read_text() for file in (tmp_path / "jobs").rglob("*_log.out")]
    assert len(logs) == 2 and all("% absolute" in log for log in logs)
