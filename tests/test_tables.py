"""The table program on made-up results: every table as a golden file, and what it does where results are missing.

`python tests/test_tables.py` writes the golden files anew; read the difference before it is kept.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import synthetic_results

import make_tables
from src.reporting import tables
from src.reporting.runs import PerSeed, Runs, published, published_model
from src.runtime.paths import PUBLISHED, ROOT

GOLDEN = Path(__file__).resolve().parent / "golden" / "tables"
SUFFIXES = {"table1_addition": (".md", ".tex", ".csv"), "merging": (".md", ".csv")}  # the others as .md


def golden_files() -> list[str]:
    return sorted(file.name for file in GOLDEN.glob("*"))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """results/mini of three seeds, with its tables and claims."""
    return make(tmp_path_factory.mktemp("tables"))


def make(folder: Path) -> Path:
    synthetic_results.write(folder)
    make_tables.main(["--results", str(folder)])
    return folder / "mini"


@pytest.mark.parametrize("name", golden_files())
def test_golden(made, name):
    written = made / name if name == "claims.md" else made / "tables" / name
    assert written.read_text() == (GOLDEN / name).read_text()


def test_every_table_has_a_golden_file(made):
    assert {path.stem for path in (made / "tables").iterdir()} == {Path(name).stem for name in golden_files()} - {
        "claims"
    }


def test_the_larger_benchmarks_come_in_with_their_scores(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1,))
    assert Runs("mini", "ViT-Mini", tmp_path).tasks == synthetic_results.SUITE.default
    file = tmp_path / "mini" / "ViT-Mini" / "seed_1" / "zeroshot_accuracies.json"
    scores = json.loads(file.read_text())
    scores |= {task + suffix: 0.4 for task in synthetic_results.SUITE.tasks[:14] for suffix in ("", "Val")}
    file.write_text(json.dumps(scores))
    runs = Runs("mini", "ViT-Mini", tmp_path)
    assert len(runs.tasks) == 14 and tables.benchmarks(runs) == [8, 14] and len(runs.main_tasks) == 8
    assert row(table(runs, "single_task"), "mean of 14")[1] == "40.0 [57.2]"


def table(runs: Runs, name: str) -> tables.Table:
    return next(table for table in tables.make(runs) if table.name == name)


def row(found: tables.Table, name: str) -> list[str]:
    return next(texts for texts in found.texts() if texts[0] == name)


def test_nothing_run_gives_empty_cells_beside_the_published_and_the_commands(tmp_path):
    found = table(Runs("mini", "ViT-Mini", tmp_path), "table1_addition")
    assert row(found, "linear fine-tuning")[1:3] == ["[76.5]", "[85.4]"]
    assert "python eval_task_addition.py --finetuning-mode=linear --model=ViT-Mini --seed=1" in found.missing
    assert found.full_caption.endswith("No results yet.")
    text = tables.markdown(table(Runs("mini", "ViT-Mini", tmp_path), "merging"))
    assert "python main.py model=ViT-Mini seed=1 method=tall_mask method.use_ties=True" in text


def test_a_result_missing_for_one_seed_is_said_and_named(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1, 2), merges=False)
    (tmp_path / "mini/ViT-Mini/seed_2/addition_standard.json").unlink()
    found = table(Runs("mini", "ViT-Mini", tmp_path), "table1_addition")
    assert row(found, "non-linear fine-tuning")[1].endswith("(n = 1) [71.4]")
    assert found.missing == ("python eval_task_addition.py --finetuning-mode=standard --model=ViT-Mini --seed=2",)


def test_one_seed_has_no_sd_and_the_design_seed_is_left_out(tmp_path):
    synthetic_results.write(tmp_path, seeds=(0, 3), merges=False)
    runs = Runs("mini", "ViT-Mini", tmp_path)
    assert runs.seeds == (3,)
    assert "±" not in "".join(row(table(runs, "single_task"), "mean of 8"))
    assert Runs("mini", "ViT-Mini", tmp_path, (0, 3)).seeds == (0, 3)


def test_a_new_merging_method_appears_by_itself(tmp_path):
    record = synthetic_results.merged("sum", synthetic_results.TASKS, "standard", 1, 0.9)
    record |= {"method": "mine", "label": "mine_power=2", "provenance": {}}
    target = tmp_path / "mini/ViT-Mini/seed_1/merging/8task/standard-visual/mine_power=2.json"
    target.parent.mkdir(parents=True)
    target.write_text(json.dumps(record))
    found = row(table(Runs("mini", "ViT-Mini", tmp_path), "merging"), "mine_power=2")
    assert found[1] == f"{100 * record['test']['mean_accuracy']:.1f}"


def test_other_models_have_files_of_their_own(tmp_path):
    found = {table.name for table in tables.make(Runs("vision", "ViT-L-14", tmp_path))}
    assert "table1_addition_ViT-L-14" in found
    assert row(table(Runs("vision", "ViT-L-14", tmp_path), "single_task_ViT-L-14"), "DTD")[1].startswith("[")


def test_readme_gets_the_tables_between_its_markers(made, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    make_tables.main(["--results", str(made.parent), "--readme", str(readme)])
    text = readme.read_text()
    assert text.startswith(f"before\n{tables.BEGIN}\n**Single-task") and text.endswith(f"{tables.END}\nafter\n")
    assert "\nold\n" not in text and "| **holds** |" in text and "Task negation (Table 2)" in text
    make_tables.main(["--results", str(made.parent), "--readme", str(readme)])
    assert readme.read_text() == text
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="tables:begin"):
        tables.embed(readme, "")


def test_the_forwarder_runs_from_elsewhere_and_loads_no_model(made, tmp_path):
    check = f"import sys; sys.argv = sys.argv[1:]; sys.path[0] = {str(ROOT / 'src')!r}; import forward; "
    check += "forward.run('make_tables.py'); assert 'open_clip' not in sys.modules"
    command = [sys.executable, "-c", check, "make_tables.py", "--results", str(made.parent), "--seeds=2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "over seeds 2" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--model", "ViT-Mimi", "--suite=mini"], "ViT-Mini"), (["--seeds", "one"], "1,2,3"), (["--suite=big"], "mini")],
)
def test_wrong_flags_say_what_exists(made, capsys, flags, message):
    with pytest.raises(SystemExit):
        make_tables.main(["--results", str(made.parent), *flags])
    assert message in capsys.readouterr().err


def test_statistics_over_seeds():
    values = PerSeed({1: 1.0, 2: 2.0, 3: 3.0})
    assert (values.mean, values.sd) == (2.0, 1.0)
    low, high = values.interval()
    assert (low, high) == pytest.approx((2 - 2.4841377, 2 + 2.4841377))  # t = 4.3026527 with 2 degrees of freedom
    assert values - PerSeed({2: 0.5, 3: 1.0, 9: 7.0}) == {2: 1.5, 3: 2.0}


def test_published_numbers():
    assert published("ViT-Mini", "tangent", "Table 1", "Linear. FT", "8 tasks", "absolute") == 76.5
    assert published("ViT-L-14", "tangent", "Table 2", "Post-hoc lin.", "8 tasks", "target") == 12.1
    assert published("ViT-B-32", "tangent", "Table 3", "Non-lin. FT", "8 tasks", "multi") == 5.5
    assert published("ViT-B-32", "tall", "main table", "TALL Mask + TIES", "14 tasks", "normalised") == 100.0
    assert published("ViT-B-32", "tall", "main table", "no such method", "8 tasks", "absolute") is None
    assert published_model("ViT-Mini__init__") == "ViT-B-32" and published_model("ViT-L-14__init__") == "ViT-L-14"
    with open(PUBLISHED, newline="") as file:
        rows = list(csv.DictReader(file))
    keys = [tuple(list(row.values())[:6]) for row in rows]
    assert len(set(keys)) == len(keys) and all(row["source"] for row in rows)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        results = make(Path(folder))
        files = [path for path in (results / "tables").iterdir() if path.suffix in SUFFIXES.get(path.stem, (".md",))]
        GOLDEN.mkdir(parents=True, exist_ok=True)
        for file in (*files, results / "claims.md"):
            (GOLDEN / file.name).write_text(file.read_text())
