"""Every script once, with tiny numbers: as a process, as a user calls it, or by its `main`, where the numbers count."""

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest

from src.datasets import loading
from src.runtime import results
from src.runtime.paths import ROOT

SMALL = ("--model=ViT-Mini", "--seed=0", "--device=cpu", "--jobs=1", "--tasks", "digits,signs")
TRAINING = ("--steps=4", "--batch-size=16")
IMAGES = 50  # of each split in `small_cache`


class Workplace:
    """A folder of checkpoints and results that the scripts of this file share, in the order in which they run."""

    def __init__(self, folder: Path, cache: Path):
        self.folder = folder
        self.places = (f"--save={folder}/checkpoints", f"--results={folder}/results", f"--cache-dir={cache}")

    def start(self, script: str, *flags: str) -> None:
        """A process of its own, from another folder."""
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / script), *flags, *self.places]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.folder, timeout=500)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr

    def fork(self, script: str, *flags: str, ok: bool = True) -> subprocess.CompletedProcess:
        """The same without what the interpreter does before the script."""
        done = forked.run(script, *flags, *self.places, cwd=self.folder)
        assert (done.returncode == 0) == ok and "Traceback" not in done.stderr, done.stdout + done.stderr
        return done

    def run(self, script: str, *flags: str) -> str:
        """What the script prints that is run here: torch and open_clip take a process longer than the work does."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            importlib.import_module(script).main([*flags, *self.places])
        return printed.getvalue()

    def result(self, name: str) -> dict:
        return json.loads((self.folder / f"results/mini/ViT-Mini/seed_0/{name}.json").read_text())


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, small_cache):
    place = Workplace(tmp_path_factory.mktemp("scripts"), small_cache)
    place.start("finetune.py", *SMALL, *TRAINING, "--finetuning-mode=standard")
    place.run("finetune", *SMALL, *TRAINING, "--finetuning-mode=linear")
    place.fork("src/eval_single_task.py", *SMALL, "--finetuning-mode=none")
    for mode in ("standard", "linear", "posthoc"):
        place.run("eval_single_task", *SMALL, f"--finetuning-mode={mode}")
    return place


HEAVY = ("torch", "open_clip", "pandas", "sklearn")
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
FORWARDED = ("finetune.py", "eval_single_task.py", "eval_task_addition.py", "eval_task_negation.py")  # as published
HELP_OF_EACH = f"""
import contextlib, io, json, os, runpy, sys
sys.modules |= dict.fromkeys({HEAVY})
helps = {{}}
for path in sys.argv[1:]:
    sys.argv, sys.path[0] = [path, "--help"], os.path.dirname(path)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as ended:
            assert not ended.code, path
    helps[os.path.relpath(path, {str(ROOT)!r})] = printed.getvalue()
print(json.dumps(helps))
"""


@pytest.fixture(scope="module")
def helps(tmp_path_factory):
    """What --help of every script prints, by both of its names, in a process that cannot import heavy packages."""
    paths = [str(ROOT / name) for name in (*SCRIPTS, *(f"src/{name}" for name in FORWARDED))]
    command = [sys.executable, "-c", HELP_OF_EACH, *paths]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path_factory.mktemp("elsewhere"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_there_by_both_names_and_does_not_wait_for_heavy_packages(script, helps):
    """The published commands name the scripts in src/."""
    assert helps[script].count("Exit status: 0 when") == 1
    if script in FORWARDED:
        assert helps[script].startswith(f"usage: {script} ") and helps[f"src/{script}"] == helps[script]


def test_finetuning_is_resumed_and_skipped(workplace):
    assert workplace.run("finetune", *SMALL, *TRAINING).count("finished before, skipped") == 2


def test_single_task_results_have_the_published_names(workplace):
    for name in ("zeroshot_accuracies", "ft_accuracies", "linear_ft_accuracies", "posthoc_ft_accuracies"):
        record = workplace.result(name)
        for field in ("digits", "digitsVal", "signs", "signsVal", "control", "controlVal"):
            assert 0 <= record[field] <= 1
        assert record["n"]["digits"] == record["n"]["controlVal"] == IMAGES
        assert {"command", "config", "versions", "device", "seconds"} <= record["provenance"].keys()


@pytest.mark.parametrize("script", ["eval_single_task", "eval_task_addition", "eval_task_negation"])
def test_a_missing_checkpoint_is_told_before_images_are_drawn(workplace, script, monkeypatch):
    monkeypatch.setattr(loading, "examples", pytest.fail)
    with pytest.raises(SystemExit, match="python finetune.py"):
        workplace.run(script, "--seed=77", "--tasks=digits", "--device=cpu")


@pytest.mark.parametrize("mode", ["standard", "linear", "posthoc"])
def test_addition_and_negation(workplace, mode):
    workplace.run("eval_task_addition", *SMALL, f"--finetuning-mode={mode}", "--n-eval-points=3")
    added = workplace.result(f"addition_{mode}")
    assert added["settings"] == [0.0, 0.5, 1.0] and added["chosen"]["signs"] in added["settings"]
    workplace.run("eval_task_negation", *SMALL, f"--finetuning-mode={mode}", "--n-eval-points=3")
    negated = workplace.result(f"negation_{mode}")
    kept = 0.95 * negated["pretrained_control"]["val"]
    for record in negated["tasks"].values():
        place = negated["coefs"].index(record["alpha"])
        assert record["control_kept"] and record["val"]["control"][place] >= kept


def test_negation_that_cannot_keep_the_control_says_so(workplace):
    flags = ("--finetuning-mode=standard", "--n-eval-points=2", "--control-threshold=1.9", "--overwrite")
    assert workplace.run("eval_task_negation", *SMALL, *flags).count("no coefficient keeps 190%") == 2
    assert {r["alpha"] for r in workplace.result("negation_standard")["tasks"].values()} == {0.0}


@pytest.mark.parametrize("mode", ["standard", "linear"])
def test_disentanglement(workplace, mode):
    flags = ("--pairs", "digits-signs", "--n-points=3", "--num-samples=20", f"--finetuning-mode={mode}")
    workplace.run("eval_disentanglement", *SMALL, *flags)
    pair = workplace.result(f"disentanglement_{mode}")["pairs"][0]
    assert pair["alphas"] == [-3.0, 0.0, 3.0] and pair["samples"] == [20, 20]
    assert pair["error"][1][1] == 0 == pair["box_mean"]  # of the 9 points, only (0, 0) is inside the box


def test_ntk_localization(workplace):
    flags = (
        "--model=ViT-Mini",
        "--seed=0",
        "--jobs=1",
        "--pairs",
        "digits-signs",
        "--num-samples=6",
        "--reduction=sum",
        "--ranks",
        "2",
    )
    workplace.run("eval_ntk_localization", *flags)
    pair = workplace.result("ntk_sum")["pairs"][0]
    assert len(pair["nystrom"]["energy"]["control"][0]) == 6 and pair["nystrom"]["counts"] == [2]


def test_reproduce_says_what_it_would_do(workplace):
    told = workplace.run("reproduce", "--dry-run", "--seeds=0", "--only", "single-task", "--tasks", "digits,signs")
    assert told.count("there already:") == 4 and "would run:" not in told


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
def test_wrong_arguments_say_what_exists(workplace, script, flags, message, capsys):
    with pytest.raises(SystemExit) as ended:
        workplace.run(script.removesuffix(".py"), *flags)
    assert ended.value.code and message in f"{ended.value} {capsys.readouterr().err}"


@pytest.mark.parametrize(
    "script, flags, message",
    [
        ("finetune", ["--finetuning-mode=liner"], "did you mean linear? Known: "),
        ("reproduce", ["--only", "mergin"], "did you mean merging? Known: "),
        ("reproduce", ["--only", "xyzzy"], "'xyzzy' does not exist. Known: "),
        ("make_tables", ["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        ("merge_checkpoints", [], "required: pretrained, FILE, --output"),
        ("demo", ["--steps=many"], "expected "),
    ],
)
def test_a_wrong_flag_is_told_in_a_line_without_the_usage(workplace, script, flags, message, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(script).main(flags)
    told = capsys.readouterr().err
    assert ended.value.code == 2 and message in told
    assert told.startswith("error: ") and told.endswith("(--help lists the flags)\n") and told.count("\n") == 1


MODULES = ("environment", "reporting.catalogue", "datasets", "published.convert", "sweep", "vit_mini.pretrain")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_is_run_has_a_help_and_takes_no_unknown_flag(name, monkeypatch, capsys):
    """Without doing what it does: the catalogue wrote its pages whatever it was given."""
    module = importlib.import_module(f"src.{name}" + ".__main__" * (name == "datasets"))
    monkeypatch.setattr(results, "versions", pytest.fail)
    if name == "reporting.catalogue":
        monkeypatch.setattr(module, "write_text", pytest.fail)
    with contextlib.suppress(SystemExit):  # of status 0, by argparse
        module.main(["--help"])
    assert capsys.readouterr().out.count("Exit status: 0 when") == 1
    with pytest.raises(SystemExit) as ended:
        module.main(["--no-such-flag"])
    assert ended.value.code == 2 and "error: " in capsys.readouterr().err


def test_a_wrong_argument_ends_a_process_with_a_line(workplace):
    error = workplace.fork("finetune.py", "--tasks", "sings", ok=False).stderr
    assert "did you mean signs" in error and "Traceback" not in error
