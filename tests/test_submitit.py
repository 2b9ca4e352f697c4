"""Jobs through Hydra's submitit launcher, in its local mode: what Slurm would be given.

The job of src.sweep is started by the interpreter, in which it finds what it needs; those of main.py are forked.
"""

import json
import sys
import time

import forked
import pytest

from src import checkpoints, store, sweep
from src.runtime import results

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
# Jobs start in the folder of the program that submits them, the project's, where they find its modules.
LAUNCHER = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10", "hydra.launcher.cpus_per_task=1")


def test_jobs_of_a_multirun_run_in_processes_of_their_own(make_run, tmp_path, small_cache):
    run = make_run("--tasks=digits")
    store.write_pretrained(run)
    path = run.paths.checkpoint("digits", "standard")
    header = dict(model=run.model, task="digits", mode="standard", seed=0)
    checkpoints.save(path, dict(store.pretrained(run)), header)  # moved nowhere
    for mode in ("none", "standard"):
        results.write(run.paths.single_task(mode), {"digits": 0.5, "digitsVal": 0.5}, run.config(), time.time())
    with forked.jobs():
        done = forked.run(
            *("main.py", "--multirun", *LAUNCHER, f"hydra.sweep.dir={tmp_path}/jobs"),
            *("method=zeroshot,average", "tasks=[digits]", "seed=0", "device=cpu", "jobs=1"),
            *(f"save={run.places.save}", f"results={run.places.results}", f"cache_dir={small_cache}"),
        )
    assert done.returncode == 0, done.stderr
    folder = run.paths.results
    made = {path.stem: json.loads(path.read_text()) for path in folder.rglob("merging/**/*.json")}
    assert {"zeroshot", "average"} <= made.keys()
    assert made["zeroshot"]["test"]["accuracy"] == made["average"]["test"]["accuracy"]
    logs = [file.read_text() for file in (tmp_path / "jobs").rglob("*_log.out")]
    assert len(logs) == 2 and all("% absolute" in log for log in logs)


SWEPT = ("--finetuning-mode=none", "--tasks=digits", "--control=never", "--seed=0", "--device=cpu", "--jobs=1")


@pytest.mark.parametrize(
    ("models", "launcher"),
    [(("ViT-Mini", "ViT-Mini__init__"), ()), (("ViT-Mini",), LAUNCHER)],
    ids=["combinations", "processes"],
)
def test_combinations_of_flags_are_jobs(models, launcher, make_run, tmp_path, small_cache):
    """One after another by Hydra's own launcher; and in a process of its own."""
    places = make_run().places
    flags = [*SWEPT, f"--save={places.save}", f"--results={places.results}", f"--cache-dir={small_cache}"]
    words = ["eval_single_task.py", f"--model={','.join(models)}", *flags, "--skip-corrupt"]
    done = forked.run("-m", "src.sweep", *words, *launcher, f"hydra.sweep.dir={tmp_path}/jobs")
    assert done.returncode == 0, done.stderr
    made = {path.parts[-3]: json.loads(path.read_text()) for path in places.results.rglob("zeroshot_*.json")}
    assert {*made} == {*models}
    for model, record in made.items():
        command, *words = record["provenance"]["command"].split()
        assert [command, words[0]] == ["python", "eval_single_task.py"]
        assert {*words[1:]} == {f"--model={model}", *flags, "--skip-corrupt"}
    assert len([*(tmp_path / "jobs").rglob("*_log.out")]) == (len(models) if launcher else 0)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["finetune.py", "--finetuning-mode=standard,linaer"], "'linaer' does not exist; did you mean linear"),
        (["eval_task_addition.py", "--n-eval-points=3,0"], "got '0'"),
        (["main.py", "--seed=1"], "expected one of finetune.py, eval_"),
        (["finetune.py", "seed=1"], "expected flags as --name=value"),
    ],
)
def test_wrong_flags_are_told_before_any_job_starts(words, told, monkeypatch, capsys):
    monkeypatch.setattr(sweep.hydra, "main", None)
    with pytest.raises(SystemExit) as ended:
        sweep.main(words)
    assert ended.value.code == 2 and told in capsys.readouterr().err


def test_a_job_that_fails_says_so(tmp_path, monkeypatch):
    flags = ["--tasks=digits", "--device=cpu", f"--results={tmp_path}", f"--save={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["sweep"])
    with pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patched:
        patched.setenv("HYDRA_FULL_ERROR", "0")
        sweep.main(["eval_task_addition.py", *flags, f"hydra.sweep.dir={tmp_path}/jobs"])
    assert not [*tmp_path.rglob("addition_*.json")] and sys.argv == ["sweep"]
