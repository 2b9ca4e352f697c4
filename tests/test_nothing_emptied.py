"""Nothing shipped is emptied: reports over what is not there end with status 2, and write nothing."""

import json
from pathlib import Path

import pytest
import synthetic_results

import make_figures
import make_tables
from src.experiments.registry import ADDITION
from src.reporting.runs import Runs
from src.runtime import results

KEPT = "made before"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A seed's results, and tables, figures and claims that were made before."""
    synthetic_results.write(tmp_path, seeds=(1,), merges=False)
    for name in ("tables/merging.md", "figures/addition.png", "claims.md", "accuracies.csv"):
        (tmp_path / "mini" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "mini" / name).write_text(KEPT)
    return tmp_path


@pytest.mark.parametrize("script", [make_tables, make_figures], ids=lambda script: script.__name__)
@pytest.mark.parametrize(
    "kind", ["seeds", "seed among others", "model", "suite", "no folder", "empty folder", "empty seed"]
)
def test_a_report_over_nothing_writes_nothing(script, kind, folder, capsys):
    flags = {
        "seeds": ["--seeds=7"],
        "seed among others": ["--seeds=1,7"],
        "model": ["--model=ViT-B-16", "--suite=mini"],
        "suite": ["--suite=vision"],
    }.get(kind, [])
    results = folder
    if kind in ("no folder", "empty folder", "empty seed"):
        results = folder / "other"
        if kind != "no folder":
            (results / ("mini/ViT-Mini/seed_1" if kind == "empty seed" else "")).mkdir(parents=True)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as ended:
        script.main([f"--results={results}", *flags])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.startswith("error: ") and "expected" in told and told.count("\n") == 1
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def changed(path: Path, **config) -> None:
    """A result as it would be with these entries of its configuration, and of their tasks alone."""
    record = json.loads(path.read_text())
    record["provenance"]["config"] |= config
    if "tasks" in config:
        record["tasks"] = (
            config["tasks"]
            if isinstance(record["tasks"], list)
            else {task: record["tasks"][task] for task in config["tasks"]}
        )
    path.write_text(results.encode(record))


def test_a_result_of_other_tasks_is_left_out_and_told(folder, capsys):
    """A quick look at two tasks would stand beside rows of eight, as if it were of eight."""

    def row() -> str:
        text = (folder / "mini/tables/table1_addition.md").read_text()
        return next(line for line in text.splitlines() if line.startswith("| non-linear"))

    make_tables.main([f"--results={folder}"])
    before = row()
    for name in ("addition_standard", "negation_standard"):
        changed(folder / f"mini/ViT-Mini/seed_1/{name}.json", tasks=["signs", "letters"])
    capsys.readouterr()
    make_tables.main([f"--results={folder}"])
    told = capsys.readouterr().err
    assert "addition_standard.json: left out, for it is of signs, letters" in told and "--overwrite" in told
    assert "negation_standard.json: left out" in told and told.count("left out") == 2
    assert before.count("|") == row().count("|") and before != row() and "±" not in row()
    assert not Runs("mini", "ViT-Mini", folder).of(ADDITION, "standard")


@pytest.mark.parametrize("points, left_out", [((41, 2, 41), 2), ((2, 41, 41), 1), ((41, 41, 41), None)])
def test_a_seed_that_was_made_with_other_options_is_left_out_and_told(points, left_out, folder, capsys):
    """A mean over different options is one of nothing; how many jobs there were decides no number."""
    synthetic_results.write(folder, seeds=(1, 2, 3))
    for seed, count in enumerate(points, 1):
        changed(folder / f"mini/ViT-Mini/seed_{seed}/addition_standard.json", n_eval_points=count, jobs=seed)
    runs = Runs("mini", "ViT-Mini", folder)
    runs.check()
    told = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert {*runs.of(ADDITION, "standard")} == {1, 2, 3} - {left_out}
    assert len(told) == (left_out is not None)
    for line in told:
        assert f"seed_{left_out}/addition_standard.json: left out, for it was made with n_eval_points = 2" in line
        assert (
            "(others: 41)" in line
            and f"eval_task_addition.py --finetuning-mode=standard --model=ViT-Mini --seed={left_out}" in line
        )


def test_a_page_that_is_not_there_is_told_before_the_tables(folder, capsys):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as ended:
        make_tables.main([f"--results={folder}", "--readme", str(folder / "absent.md")])
    assert ended.value.code == 2 and "--readme: expected a page" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
