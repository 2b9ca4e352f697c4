"""The table program on made-up results: every table as a golden file, and what it does where results are missing.

`python tests/test_tables.py` writes the golden files anew; read the difference before it is kept.
"""

import csv
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import forked
import synthetic_results

import make_figures
import make_tables
from src.datasets import registry
from src.merging.base import Method, Variant
from src.merging.registry import METHODS, register
from src.reporting import table as writing
from src.reporting import tables
from src.reporting.published import published, published_model, unseen_table
from src.reporting.runs import Runs
from src.runtime.paths import PUBLISHED, ROOT
from src.runtime.results import ResultError

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
    assert portable(written, made) == (GOLDEN / name).read_text()


def portable(file: Path, results: Path) -> str:
    """Its text, whose commands name the folder of the results."""
    return file.read_text().replace(str(results.parent), "FOLDER")


def test_every_table_has_a_golden_file(made):
    assert {path.stem for path in (made / "tables").iterdir()} == {Path(name).stem for name in golden_files()} - {
        "claims"
    }


def test_the_larger_benchmarks_come_in_with_their_scores(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1,))
    suite = registry.suite("mini")
    assert Runs("mini", "ViT-Mini", tmp_path).tasks == suite.default
    file = tmp_path / "mini" / "ViT-Mini" / "seed_1" / "zeroshot_accuracies.json"
    scores = json.loads(file.read_text())
    scores |= {task + suffix: 0.4 for task in suite.tasks[:14] for suffix in ("", "Val")}
    file.write_text(json.dumps(scores))
    runs = Runs("mini", "ViT-Mini", tmp_path)
    assert len(runs.tasks) == 14 and runs.benchmarks == [8, 14] and len(runs.main_tasks) == 8
    assert row(table(runs, "single_task"), "mean of 14")[1] == "40.0 [57.2]"


def table(runs: Runs, name: str) -> writing.Table:
    return next(table for table in tables.one_by_one(runs) if table.name == name)


def row(made: writing.Table, name: str) -> list[str]:
    return next(texts for texts in made.texts() if texts[0] == name)


def names(made: writing.Table) -> list[str]:
    return [texts[0] for texts in made.texts()]


def test_nothing_run_gives_empty_cells_beside_the_published_and_the_commands(tmp_path):
    found = table(Runs("mini", "ViT-Mini", tmp_path), "table1_addition")
    assert row(found, "linear fine-tuning")[1:3] == ["[76.5]", "[85.4]"]
    shared = f"--model=ViT-Mini --seed=1 --results={tmp_path}"
    assert f"python eval_task_addition.py --finetuning-mode=linear {shared}" in found.missing
    assert found.full_caption.endswith("No results yet.")
    text = writing.markdown(table(Runs("mini", "ViT-Mini", tmp_path), "merging"))
    assert f"python main.py model=ViT-Mini seed=1 results={tmp_path} method=tall_mask method.use_ties=True" in text


def test_a_result_missing_for_one_seed_is_said_and_named(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1, 2), merges=False)
    (tmp_path / "mini/ViT-Mini/seed_2/addition_standard.json").unlink()
    found = table(Runs("mini", "ViT-Mini", tmp_path), "table1_addition")
    assert row(found, "non-linear fine-tuning")[1].endswith("(n = 1) [71.4]")
    flags = f"--finetuning-mode=standard --model=ViT-Mini --seed=2 --results={tmp_path}"
    assert found.missing == (f"python eval_task_addition.py {flags}",)


def test_numbers_of_a_row_are_over_the_same_seeds_and_say_how_many(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1, 2), merges=False)
    (tmp_path / "mini/ViT-Mini/seed_2/ft_accuracies.json").unlink()
    made = table(Runs("mini", "ViT-Mini", tmp_path), "single_task")
    for cells in made.texts():
        assert all("(n = 1)" in cell for cell in cells[1:]), cells
    first = synthetic_results.single_task("linear", 1)["signs"]
    assert row(made, "signs")[4] == f"{100 * first:.1f} (n = 1)"
    numbers = next(line for line in writing.comma_separated(made).splitlines() if line.startswith("signs"))
    assert f",{round(100 * first, 6)},,1," in numbers


def test_methods_beside_each_other_are_over_the_seeds_that_most_of_them_have(tmp_path):
    """As where the papers' stages ran with more seeds than the extended ones. A paper's table has them all."""
    synthetic_results.write(tmp_path, seeds=(1, 2, 3))
    for file in (tmp_path / "mini/ViT-Mini/seed_3/merging/8task").rglob("*.json"):
        if file.stem not in ("sum", "average"):
            file.unlink()
    runs = Runs("mini", "ViT-Mini", tmp_path)
    accuracies = table(runs, "methods_accuracy")
    assert "over 2 seeds (1, 2)." in accuracies.full_caption and "n = " not in writing.markdown(accuracies)
    assert row(accuracies, "task arithmetic")[1] != row(table(runs, "merging"), "task arithmetic")[1]
    assert "over 3 seeds (1, 2, 3)." in table(runs, "merging").full_caption
    assert "(n = 2)" in row(table(runs, "merging"), "TIES")[1]
    assert "(n = " not in row(table(runs, "merging"), "task arithmetic")[1]


def test_rows_are_cut_to_no_single_seed_and_ties_go_to_more_seeds():
    def over(*rows: tuple[int, ...]) -> tuple[list[int], str]:
        cells = [["a method", writing.Cell(pd.Series(1.0, index=list(seeds)))] for seeds in rows]
        made = writing.Table("t", "T.", ["method", "accuracy"], cells, (1, 2, 3), same_seeds=True)
        return [len(cell.ours) for _, cell in made.paired_rows], made.full_caption

    assert over((1,), (1,), (1, 2, 3))[0] == [1, 1, 3]
    assert over((1, 2), (1, 2, 3))[0] == [2, 3] == over((1, 2, 3), (1, 2))[0][::-1]
    assert over((1, 2), (1, 2), (1, 2, 3)) == ([2, 2, 2], "T. Mean ± sd over 2 seeds (1, 2).")
    assert over((1,), (1,)) == ([1, 1], "T. One seed (1).")


@pytest.mark.parametrize(
    "seeds, said", [([1, 2, 3], "1, 2, 3"), ([1, 2, 3, 4], "1 to 4"), ([1, 2, 4, 5], "1, 2, 4, 5"), ([], "")]
)
def test_many_seeds_in_a_row_are_told_by_the_first_and_the_last(seeds, said):
    assert writing.listed(seeds) == said


def test_a_row_without_a_common_seed_says_how_many_each_number_is_of(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1, 2), merges=False)
    for seed, name in enumerate(("ft_accuracies", "linear_ft_accuracies"), 1):
        (tmp_path / f"mini/ViT-Mini/seed_{seed}/{name}.json").unlink()
    cells = row(table(Runs("mini", "ViT-Mini", tmp_path), "single_task"), "signs")
    assert cells[2].endswith("(n = 1)") and cells[4].endswith("(n = 1)")


def test_one_seed_has_no_sd_and_the_design_seed_is_left_out(tmp_path):
    synthetic_results.write(tmp_path, seeds=(0, 3), merges=False)
    runs = Runs("mini", "ViT-Mini", tmp_path)
    assert runs.seeds == (3,)
    assert "±" not in "".join(row(table(runs, "single_task"), "mean of 8"))
    assert Runs("mini", "ViT-Mini", tmp_path, (0, 3)).seeds == (0, 3)


@pytest.fixture
def mine():
    """A method that is registered here, with a variant."""

    @register("mine", title="My method", paper="2401.00001", variants=(Variant("My second", {"twice": True}),))
    @dataclass
    class Mine(Method):
        k: int = 10
        twice: bool = False

        def merge(self, problem):
            raise NotImplementedError

    yield Mine
    del METHODS["mine"]


def write_merged(folder: Path, method: str, level: float, seed: int = 1, **fields) -> dict:
    """A result of main.py on the eight tasks, with these fields changed; gives its record."""
    record = {**synthetic_results.merged("sum", synthetic_results.TASKS, "standard", seed, level), "method": method}
    place = folder / f"mini/ViT-Mini/seed_{seed}/merging/8task/standard-visual"
    name = f"{method}_{len(list(place.glob('*')))}"
    synthetic_results.dump(place / f"{name}.json", record | fields)
    return record | fields


def test_a_new_merging_method_stands_in_its_place_under_its_title(tmp_path, mine):
    record = write_merged(tmp_path, "mine", 0.9, options={"k": 10, "twice": False})
    write_merged(tmp_path, "mine", 0.8, options={"k": 10, "twice": True})
    made = table(Runs("mini", "ViT-Mini", tmp_path), "merging")
    assert row(made, "My method")[1] == f"{100 * record['test']['mean_accuracy']:.1f}"
    order = names(made)
    assert order[order.index("TIES") : order.index("consensus TA") + 1] == [
        "TIES", "My method", "My second", "consensus TA",
    ]  # fmt: skip


def test_other_options_make_a_row_of_their_own(tmp_path, mine):
    for options in ({"k": 5, "twice": False}, {"k": 5, "twice": True}):
        write_merged(tmp_path, "mine", 0.9, options=options)
    made = table(Runs("mini", "ViT-Mini", tmp_path), "merging")
    assert names(made)[-3:] == ["My method, k=5", "My second, k=5", "fine-tuned, one each"]
    assert "My method" not in names(made)


def test_a_changed_default_does_not_change_what_an_old_result_means(tmp_path, mine):
    write_merged(tmp_path, "mine", 0.9, options={"k": 10})  # of a time when there was no `twice`
    assert "My method" in names(table(Runs("mini", "ViT-Mini", tmp_path), "merging"))
    mine.__dataclass_fields__["k"].default = 20
    made = names(table(Runs("mini", "ViT-Mini", tmp_path), "merging"))
    assert "My method, k=10" in made and "My method" not in made


def test_a_method_that_is_no_longer_registered_keeps_its_row(tmp_path):
    write_merged(tmp_path, "gone", 0.9, options={"power": 2})
    assert "gone, power=2" in names(table(Runs("mini", "ViT-Mini", tmp_path), "merging"))


def test_values_that_a_search_tried_are_in_the_name(tmp_path):
    write_merged(tmp_path, "sum", 0.7)
    write_merged(tmp_path, "ties", 0.9, options=METHODS["ties"].defaults(), info={"search": {"k": [10, 20]}})
    made = table(Runs("mini", "ViT-Mini", tmp_path), "merging")
    assert "TIES, k=10|20" in names(made) and row(made, "TIES")[1] == "[75.1]"


def test_foreign_checkpoints_never_stand_for_the_suites_own(tmp_path):
    own = write_merged(tmp_path, "sum", 0.7)
    foreign = write_merged(tmp_path, "sum", 0.9, encoders={"signs": "elsewhere/merged.safetensors"})
    foreign["denominators"]["test"]["signs"] = 0.1
    made = table(Runs("mini", "ViT-Mini", tmp_path), "merging")
    assert row(made, "task arithmetic")[1] == f"{100 * own['test']['mean_accuracy']:.1f} [70.8]"
    marked = row(made, "task arithmetic, other checkpoints of signs (merged.safetensors)")
    assert marked[1:3] == [f"{100 * foreign['test']['mean_accuracy']:.1f}", ""]
    assert any("by their own single-task accuracies, where these were measured" in note for note in made.notes)
    alone = own["denominators"]["test"].values()
    assert row(made, "fine-tuned, one each")[1].startswith(f"{100 * sum(alone) / 8:.1f}")


def test_two_results_of_the_same_thing_are_refused(tmp_path):
    write_merged(tmp_path, "sum", 0.7)
    write_merged(tmp_path, "sum", 0.9)
    with pytest.raises(ResultError, match="sum_0.json.*same thing"):
        tables.make(Runs("mini", "ViT-Mini", tmp_path))


def test_a_key_that_is_missing_is_an_error_and_no_empty_cell(tmp_path):
    record = write_merged(tmp_path, "sum", 0.7)
    file = next(tmp_path.rglob("sum_0.json"))
    del record["test"]["mean_normalised"]
    file.write_text(json.dumps({**record, "provenance": {"command": "python main.py method=sum", "config": {}}}))
    with pytest.raises(ResultError, match="sum_0.json.*test.mean_normalised.*make it again with: python main.py"):
        tables.make(Runs("mini", "ViT-Mini", tmp_path))


def test_a_task_that_is_missing_is_an_error_and_no_empty_cell(tmp_path):
    record = write_merged(tmp_path, "sum", 0.7)
    del record["test"]["accuracy"]["signs"]
    synthetic_results.dump(next(tmp_path.rglob("sum_0.json")), record)
    with pytest.raises(ResultError, match="sum_0.json: expected the key 'signs'"):
        tables.make(Runs("mini", "ViT-Mini", tmp_path))


def test_other_models_have_files_of_their_own(tmp_path):
    found = {table.name for table in tables.make(Runs("vision", "ViT-L-14", tmp_path))}
    assert "table1_addition_ViT-L-14" in found
    assert row(table(Runs("vision", "ViT-L-14", tmp_path), "single_task_ViT-L-14"), "DTD")[1].startswith("[")


def test_pages_get_the_tables_between_their_markers(tmp_path):
    """A page without names all that readers of README.md see; another those that it names."""
    readme, page = tmp_path / "README.md", tmp_path / "page.md"
    results = synthetic_results.write(tmp_path / "results", seeds=(1,), merges=False)
    readme.write_text(f"before\n{writing.BEGIN}\nold\n{writing.END}\nafter\n")
    begin = "<!-- tables:begin merging single_task -->"
    page.write_text(f"before\n{begin}\n{writing.END}\nafter\n")
    made = []
    for _ in range(2):
        make_tables.main(["--results", str(results), "--readme", str(readme), str(page)])
        made.append((readme.read_text(), page.read_text()))
    text, named = made[0]
    assert text.startswith(f"before\n{writing.BEGIN}\n**Single-task") and text.endswith(f"{writing.END}\nafter\n")
    assert "\nold\n" not in text and "| **holds** |" in text and "Task negation (Table 2)" in text
    assert named.startswith(f"before\n{begin}\n**Merging 8 tasks") and named.endswith(f"{writing.END}\nafter\n")
    assert named.count("\n**") == 2 and "Claims" not in named and "**holds**" not in named
    assert made[1] == made[0]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("no markers", "expected one block between"),
        (f"{writing.BEGIN}\n{writing.END}\n" * 2, "found 2"),
        (f"<!-- tables:begin table1_additoin -->\n{writing.END}\n", "did you mean table1_addition?"),
    ],
)
def test_a_page_without_its_markers_is_refused_and_nothing_is_written(tmp_path, capsys, page, message):
    results, readme = tmp_path / "results", tmp_path / "README.md"
    synthetic_results.write(results, seeds=(1,), merges=False)
    readme.write_text(page)
    with pytest.raises(SystemExit):
        make_tables.main(["--results", str(results), "--readme", str(readme)])
    assert message in capsys.readouterr().err and readme.read_text() == page
    assert not (results / "mini/tables").exists()


def test_errors_are_of_a_seed_or_of_the_mean(tmp_path, monkeypatch):
    cell = writing.Cell(pd.Series({1: 70.0, 2: 74.0, 3: 78.0, 4: 74.0}))  # variance 32 / 3
    table = writing.Table("t", "Caption.", ["method", "value"], [["a", cell]], (1, 2, 3, 4))
    synthetic_results.write(tmp_path, seeds=(1,))
    text = writing.markdown(table)
    assert "| a | 74.0 ± 3.3 |" in text and "Mean ± sd over 4" in text
    monkeypatch.setattr(tables, "make", lambda runs: [table])
    monkeypatch.setattr(tables, "write", lambda several, folder: written.extend(several))
    written: list[writing.Table] = []
    make_tables.main(["--results", str(tmp_path), "--errors", "se"])
    text = writing.markdown(written[0])
    assert "| a | 74.0 ± 1.6 |" in text and "Mean ± standard error over 4" in text
    assert r"74.0 $\pm$ 1.6" in writing.latex(written[0])


def test_the_script_runs_from_elsewhere_and_builds_no_model(tmp_path):
    results = synthetic_results.write(tmp_path / "results", seeds=(1, 2), merges=False)
    check = f"import runpy, sys; sys.argv = sys.argv[1:]; sys.path[0] = {str(ROOT)!r}; "
    check += "sys.modules |= {'open_clip': None, 'open_clip.model': None}; "
    check += "runpy.run_path(sys.argv[0], None, '__main__')"
    done = forked.run("-c", check, ROOT / "make_tables.py", "--results", results, "--seeds=2", cwd=tmp_path)
    assert done.returncode == 0 and "over seeds 2" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "ViT-B-16", "--suite=mini"], "there are ViT-Mini"),
        (["--seeds", "one"], "1,2,5-7"),
        (["--suite=big"], "mini"),
        (["--seeds=1,9"], "found none of 9; there are 1, 2, 3"),
        (["--suite=vision"], "python reproduce.py"),
    ],
)
@pytest.mark.parametrize("script", [make_tables, make_figures])
def test_wrong_flags_say_what_exists_and_write_nothing(made, capsys, script, flags, message):
    before = {path: path.stat().st_mtime_ns for path in made.parent.rglob("*")}
    with pytest.raises(SystemExit) as end:
        script.main(["--results", str(made.parent), *flags])
    assert message in capsys.readouterr().err and end.value.code == 2
    assert {path: path.stat().st_mtime_ns for path in made.parent.rglob("*")} == before


def test_published_numbers():
    assert published("ViT-Mini", "tangent", "Table 1", "Linear. FT", "8 tasks", "absolute") == 76.5
    assert published("ViT-L-14", "tangent", "Table 2", "Post-hoc lin.", "8 tasks", "target") == 12.1
    assert published("ViT-B-32", "tangent", "Table 3", "Non-lin. FT", "8 tasks", "multi") == 5.5
    assert published("ViT-B-32", "tall", "main table", "TALL Mask + TIES", "14 tasks", "normalised") == 100.0
    assert published("ViT-B-32", "tall", "main table", "no such method", "8 tasks", "absolute") is None
    with open(PUBLISHED, newline="") as file:
        rows = list(csv.DictReader(file))
    keys = [tuple(list(row.values())[:6]) for row in rows]
    assert len(set(keys)) == len(keys) and all(row["source"] for row in rows)


@pytest.mark.parametrize("unseen", [False, True])
def test_averages_of_the_concrete_paper_are_those_of_its_cells(unseen):
    """Its authors' page prints two of them wrongly: they would stand in brackets beside ours."""
    row = registry.suite("vision")
    seen = [task for task in row.tasks[:8] if (task in row.unseen) == unseen]
    for method in ("Concrete TA", "Concrete AM"):
        where = ("ViT-B-32", "concrete", "generalisation 1", method)
        cells = [published(*where, task, "accuracy") for task in seen]
        average = published(*where, "average of unseen" if unseen else "average", "accuracy")
        assert average == pytest.approx(sum(cells) / len(cells), abs=0.06)


@pytest.mark.parametrize(
    ("model", "theirs"),
    [
        ("ViT-Mini", "ViT-B-32"),
        ("ViT-Mini__init__", "ViT-B-32"),
        ("ViT-L-14__init__", "ViT-L-14"),
        ("ViT-L-14__pretrained__laion2b_s32b_b82k", None),
        ("ViT-H-14", None),
    ],
)
def test_the_model_whose_published_numbers_stand_beside_ours(model, theirs):
    assert published_model(model) == theirs


def test_no_brackets_beside_other_weights(tmp_path):
    for made in tables.make(Runs("vision", "ViT-B-32__pretrained__laion2b_e16", tmp_path)):
        assert "brackets" not in "".join((made.full_caption, *made.notes)) and not any(
            "[" in cell for texts in made.texts() for cell in texts[1:]
        )


def test_tables_of_the_papers_network_say_what_differs_by_construction(tmp_path):
    """Sources of brackets, rows that keep a share of other weights, and TIES by another rule; of no other network."""

    def notes(suite, model):
        return " ".join(" ".join(table.notes) for table in tables.make(Runs(suite, model, tmp_path)))

    told = notes("vision", "ViT-B-32")
    assert "fredzzhang/atlas" in told and "Concrete TA 77.6" in told and "disjoint sum at α = 0.3" in told
    of_scope = " ".join({note for note in re.findall(r"[^.]*: other than in the brackets by construction", told)})
    for title in ("TIES", "magnitude masking", "TALL mask + TIES", "consensus TIES"):
        assert title in of_scope
    assert "AdaMerging++" in of_scope and "task arithmetic" not in of_scope and "TALL mask + TA" not in of_scope
    for other in (("vision", "ViT-B-32__pretrained__laion2b_e16"), ("mini", "ViT-Mini")):
        assert "by construction" not in notes(*other) and "atlas" not in notes(*other)


def test_unseen_splits_of_the_concrete_paper():
    row = registry.suite("vision")
    eight = set(row.tasks[:8])
    assert unseen_table("vision", eight - {"MNIST", "EuroSAT"}, ("MNIST", "EuroSAT")) == "generalisation 1"
    assert unseen_table("vision", eight - {"RESISC45", "SVHN"}, ("SVHN", "RESISC45")) == "generalisation 2"
    assert unseen_table("vision", eight - {"DTD"}, ("DTD",)) is None
    assert unseen_table("vision", eight - {"MNIST", "EuroSAT", "DTD"}, ("MNIST", "EuroSAT")) is None
    assert unseen_table("mini", synthetic_results.SEEN, synthetic_results.UNSEEN) == "generalisation 1"


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        results = make(Path(folder))
        files = [path for path in (results / "tables").iterdir() if path.suffix in SUFFIXES.get(path.stem, (".md",))]
        GOLDEN.mkdir(parents=True, exist_ok=True)
        for file in (*files, results / "claims.md"):
            (GOLDEN / file.name).write_text(portable(file, results))
