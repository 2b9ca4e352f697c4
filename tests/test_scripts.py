"""Every script once, with tiny numbers, as a user calls it: both spellings, another folder, and wrong on purpose."""

import json
import os
import subprocess
import sys

import pytest

from src.runtime.paths import ROOT

SMALL = ("--model=ViT-Mini", "--seed=0", "--device=cpu", "--tasks", "digits,signs")


class Workplace:
    """A folder of checkpoints and results that the scripts of this file share, in the order in which they run."""

    def __init__(self, folder, cache):
        self.folder = folder
        self.places = (f"--save={folder}/checkpoints", f"--results={folder}/results", f"--cache-dir={cache}")

    def run(self, script: str, *flags: str, ok: bool = True, places: bool = True) -> subprocess.CompletedProcess:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / script), *flags, *(self.places if places else ())]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.folder, timeout=500)
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done

    def result(self, name: str) -> dict:
        return json.loads((self.folder / f"results/mini/ViT-Mini/seed_0/{name}.json").read_text())


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, mini_cache):
    place = Workplace(tmp_path_factory.mktemp("scripts"), mini_cache)
    place.run("finetune.py", *SMALL, "--steps=12", "--finetuning-mode=standard", "--jobs=1")
    place.run("src/finetune.py", *SMALL, "--steps=12", "--finetuning-mode=linear", "--jobs=2")
    for mode, script in zip(("none", "standard", "linear", "posthoc"), ("", "src/") * 2):
        place.run(f"{script}eval_single_task.py", *SMALL, f"--finetuning-mode={mode}")
    return place


def test_finetuning_is_resumed_and_skipped(workplace):
    done = workplace.run("finetune.py", *SMALL, "--steps=12", "--jobs=1")
    assert done.stdout.count("finished before, skipped") == 2


def test_single_task_results_have_the_published_names(workplace):
    for name in ("zeroshot_accuracies", "ft_accuracies", "linear_ft_accuracies", "posthoc_ft_accuracies"):
        record = workplace.result(name)
        for field in ("digits", "digitsVal", "signs", "signsVal", "control", "controlVal"):
            assert 0 <= record[field] <= 1
        assert record["n"]["digits"] == 600 and record["n"]["controlVal"] == 504
        assert {"command", "config", "versions", "device", "seconds"} <= record["provenance"].keys()


@pytest.mark.parametrize("mode", ["standard", "linear", "posthoc"])
def test_addition_and_negation(workplace, mode):
    workplace.run("eval_task_addition.py", *SMALL, f"--finetuning-mode={mode}", "--n-eval-points=3")
    added = workplace.result(f"addition_{mode}")
    assert added["settings"] == [0.0, 0.5, 1.0] and added["chosen"]["signs"] in added["settings"]
    workplace.run("src/eval_task_negation.py", *SMALL, f"--finetuning-mode={mode}", "--n-eval-points=3", "--jobs=1")
    negated = workplace.result(f"negation_{mode}")
    kept = 0.95 * negated["pretrained_control"]["val"]
    for record in negated["tasks"].values():
        place = negated["coefs"].index(record["alpha"])
        assert record["control_kept"] and record["val"]["control"][place] >= kept


def test_negation_that_cannot_keep_the_control_says_so(workplace):
    flags = ("--finetuning-mode=standard", "--n-eval-points=2", "--control-threshold=1.9", "--overwrite")
    done = workplace.run("eval_task_negation.py", *SMALL, *flags)
    assert done.stdout.count("no coefficient keeps 190%") == 2
    assert {r["alpha"] for r in workplace.result("negation_standard")["tasks"].values()} == {0.0}


@pytest.mark.parametrize("mode", ["standard", "linear"])
def test_disentanglement(workplace, mode):
    flags = ("--pairs", "digits-signs", "--n-points=3", "--num-samples=20", f"--finetuning-mode={mode}")
    workplace.run("eval_disentanglement.py", *SMALL, *flags)
    pair = workplace.result(f"disentanglement_{mode}")["pairs"][0]
    assert pair["alphas"][0] == [-3.0, 0.0, 3.0] and pair["samples"] == [20, 20]
    assert pair["error"][1][1] == 0 == pair["box_mean"]  # of the 9 points, only (0, 0) is inside the box


def test_ntk_localization(workplace):
    flags = (
        "--model=ViT-Mini",
        "--seed=0",
        "--pairs",
        "digits-signs",
        "--num-samples=6",
        "--reduction=sum",
        "--ranks",
        "2",
    )
    workplace.run("eval_ntk_localization.py", *flags)
    pair = workplace.result("ntk_sum")["pairs"][0]
    assert len(pair["nystrom"]["energy"]["control"][0]) == 6 and pair["nystrom"]["counts"] == [2]


def test_reproduce_says_what_it_would_do(workplace):
    done = workplace.run("reproduce.py", "--dry-run", "--seeds=0", "--only", "single-task", "--tasks", "digits,signs")
    assert done.stdout.count("there already:") == 4 and "would run" not in done.stdout


@pytest.mark.parametrize(
    "script, flags, message",
    [
        ("finetune.py", ["--tasks", "sings"], "did you mean signs"),
        ("finetune.py", ["--model=ViT-Minni"], "did you mean ViT-Mini"),
        ("finetune.py", ["--finetuning-mode=linaer"], "did you mean linear"),
        ("finetune.py", ["--suite=min"], "Known: mini, vision"),
        ("finetune.py", ["--world-size=999", "--device=cpu"], "expected at most the"),
        ("eval_task_addition.py", ["--seed=77", "--tasks=digits"], "python finetune.py"),
        ("eval_disentanglement.py", ["--pairs", "digits"], "expected two tasks joined by '-'"),
    ],
)
def test_wrong_arguments_say_what_exists(workplace, script, flags, message):
    assert message in workplace.run(script, *flags, ok=False).stderr
