"""The commands under tables and in the ledger: they parse, go on where the run is, and name nothing that is there."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic_results
from hydra.core.override_parser.overrides_parser import OverridesParser
from matplotlib import pyplot as plt

from src import args
from src.experiments.registry import ADDITION, CONNECTIVITY, EXPERIMENTS
from src.reporting import tables
from src.reporting.claim import examine_all
from src.reporting.methods import Group, missing_command, variant_row
from src.reporting.papers import offered
from src.reporting.runs import Runs
from src.run import Run
from src.runtime.paths import Places
from src.runtime.results import MissingResult

PLACES = {"save": "my checkpoints", "cache": "elsewhere/cache", "data": "/mnt/data"}
FLAGS = {"save": "my checkpoints", "cache_dir": "elsewhere/cache", "data_location": "/mnt/data"}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A little of seed 1, made with places of its own, and nothing else."""
    results = tmp_path / "my results"
    synthetic_results.write(results, seeds=(1,))
    for file in [*results.rglob("*.json")]:
        record = json.loads(file.read_text())
        if file.stem in ("zeroshot_accuracies", "sum", "tall_mask", "addition_linear") and "__init__" not in str(file):
            file.write_text(json.dumps(record | {"provenance": {"command": "", "config": PLACES}}))
        else:
            file.unlink()
    return results


def commands(runs: Runs) -> Iterator[str]:
    """Everything that tables, claims and figures name."""
    for table in tables.make(runs):
        yield from table.missing
    for of_paper in examine_all(runs).values():
        for finding in of_paper:
            yield from finding.missing
    for drawing in offered("figures"):
        try:
            plt.close(drawing(runs))
        except MissingResult as missing:
            yield str(missing).partition("make it with: ")[2] or str(missing).partition("make them with: ")[2]


def flags_of(command: str) -> tuple[str, dict[str, str]]:
    """The script, and its flags or overrides by name."""
    python, script, *words = shlex.split(command)
    assert python == "python"
    if script == "main.py":
        overrides = OverridesParser.create().parse_overrides([word for word in words if word != "--multirun"])
        return script, {override.key_or_group: str(override.get_value_string()) for override in overrides}
    return script, {
        name.replace("-", "_"): v for name, _, v in (word.removeprefix("--").partition("=") for word in words)
    }


def test_each_parses_and_goes_on_where_the_run_is(folder):
    found = dict.fromkeys(commands(Runs("mini", "ViT-Mini", folder)))
    scripts = {row.script: row for row in EXPERIMENTS.values()}
    for command in found:
        script, flags = flags_of(command)
        if script == "reproduce.py":
            continue
        assert {name: flags.pop(name) for name in FLAGS} == FLAGS, command
        assert flags.pop("results") == str(folder), command
        assert flags["seed"] == "1" and flags["model"] in ("ViT-Mini", "ViT-Mini__init__"), command
        if script != "main.py":
            experiment = scripts[script.removesuffix(".py")]
            parser = args.base_parser("", experiment.choices if experiment.flag == "--finetuning-mode" else None)
            words = [word for word in shlex.split(command)[2:] if not word.startswith("--reduction")]
            run, _ = args.parse(parser, words)
            assert run.places == Places(**{name: Path(place) for name, place in PLACES.items()}, results=folder)
    assert len({flags_of(command)[0] for command in found}) >= 6


def test_none_names_what_is_there(folder):
    """But for what lies beside it and is made anew with it."""
    runs = Runs("mini", "ViT-Mini", folder)
    for command in commands(runs):
        script, flags = flags_of(command)
        if script == "main.py" and flags["method"] in ("sum", "tall_mask") and "method.use_ties" not in flags:
            tasks = flags.get("DATASETS", "").strip("[]").split(",") if "DATASETS" in flags else ()
            count = len(tasks) or int(flags.get("num_tasks", 8))
            there = any(
                len(json.loads(file.read_text())["tasks"]) == count
                for file in folder.rglob(f"{flags['method']}.json")
                if flags.get("finetuning_mode", "standard") + "-visual" in str(file) and "corrupted" not in str(file)
            )
            assert not there or {"unseen", "corruption", "overwrite"} & {*flags}, command
        elif flags["model"] == "ViT-Mini" and script == "eval_single_task.py":
            assert flags["finetuning_mode"] != "none", command
        elif flags["model"] == "ViT-Mini" and script == "eval_task_addition.py":
            assert flags["finetuning_mode"] != "linear", command


def test_on_larger_suites_the_first_benchmark_is_named(tmp_path):
    runs = Runs("vision", "ViT-B-32", tmp_path)
    eight = f"--tasks={','.join(runs.main_tasks)}"
    missing = [command for table in tables.make(runs) for command in table.missing]
    for script, told in (("eval_task_addition", True), ("eval_task_negation", True), ("eval_disentanglement", False)):
        of_script = [command for command in missing if f"{script}.py" in command]
        assert of_script and all((eight in command) == told for command in of_script)


def test_a_run_says_all_that_is_not_the_default():
    places = Places(save=Path("a b"), results=Path("r"), cache=Path("c"), data=Path("d"))
    run = replace(Run.of(seed=2, device="cpu", places=places), pretrained_path="w.pt")
    assert run.flags() == (
        "--model=ViT-Mini --seed=2 '--save=a b' --results=r --cache-dir=c --data-location=d --pretrained-path=w.pt"
    )
    assert Run.of(device="cpu").flags() == "--model=ViT-Mini --seed=1"


def test_seeds_that_never_ran_an_extended_stage_are_not_asked_for_it(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1, 2, 3))
    for file in (tmp_path / "mini/ViT-Mini/seed_3").rglob("*.json"):
        if file.stem not in ("zeroshot_accuracies", "ft_accuracies", "addition_standard"):
            file.unlink()
    (tmp_path / "mini/ViT-Mini/seed_2/connectivity_linear.json").unlink()
    (tmp_path / "mini/ViT-Mini/seed_2/addition_linear.json").unlink()
    runs = Runs("mini", "ViT-Mini", tmp_path)
    assert runs.seeds == (1, 2, 3) and runs.extended_seeds == (1, 2)
    seeds = {script: [] for script in ("eval_task_addition.py", "eval_connectivity.py")}
    for script, flags in map(flags_of, (*runs.missing(ADDITION, ["linear"]), *runs.missing(CONNECTIVITY, ["linear"]))):
        seeds[script].append(flags["seed"])
    assert seeds == {"eval_task_addition.py": ["2", "3"], "eval_connectivity.py": ["2"]}
    eight, twenty = Group(runs.main_tasks), Group(runs.suite_tasks[:20])
    asked = {"usual": (eight, "sum"), "more tasks": (twenty, "sum"), "later method": (eight, "model_stock")}
    for what, (group, method) in asked.items():
        _, flags = flags_of(missing_command(runs, group, variant_row(method))[0])
        assert flags["seed"] == ("3" if what == "usual" else "1,2"), what
