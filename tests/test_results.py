"""Results: plain numbers with provenance, written whole; a damaged or missing one says how it is made."""

import json
import re
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.datasets.mini import draw
from src.experiments import durations
from src.reporting import tables
from src.reporting.runs import Runs
from src.reporting.table import markdown
from src.runtime import results
from src.runtime.paths import ROOT
from src.runtime.results import MissingResult, ResultError

ARGS = dict(model="ViT-Mini", save=ROOT / "checkpoints", device="cpu", seeds=(1, 2), lr=1e-5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mini" / "addition.json"


def test_a_record_comes_back_with_its_provenance(path):
    record = {"MNIST": {"test": 0.1 + 0.2, "n": 300}, "curve": [0.0, 1 / 3], "note": "α", "ok": True, "none": None}
    results.write(path, record, ARGS, started=time.time() - 5)
    found = results.read(path)
    provenance = found.pop("provenance")
    assert found == record  # floats to the last bit
    assert provenance["config"] == {
        "model": "ViT-Mini",
        "save": "checkpoints",  # relative: a result names no folder of one machine
        "device": "cpu",
        "seeds": [1, 2],
        "lr": 1e-5,
    }
    assert provenance["versions"]["numpy"] == np.__version__
    assert provenance["versions"] | draw.library_versions() == provenance["versions"]  # what decides the drawn pixels
    assert 5 <= provenance["seconds"] < 60 and provenance["device"].endswith("threads")
    assert provenance["date"].endswith("+00:00") and provenance["command"].startswith("python ")


def test_numpy_and_torch_values_become_numbers(path):
    @dataclass
    class Score:
        correct: int
        loss: float

    record = {
        "numpy": [np.float64(0.1), np.float32(0.5), np.int64(3), np.bool_(True), np.arange(2)],
        "torch": [torch.tensor(2.5), torch.tensor([[1, 2]]), torch.ones(1, requires_grad=True)],
        "score": Score(3, np.float32(0.25)),
        0.1: "a float key",
    }
    results.write(path, record, {"lr": np.float64(0.1)}, started=time.time())
    found = json.loads(path.read_text())
    assert found["numpy"] == [0.1, 0.5, 3, True, [0, 1]]
    assert found["torch"] == [2.5, [[1, 2]], [1.0]]
    assert found["score"] == {"correct": 3, "loss": 0.25} and found["0.1"] == "a float key"
    assert found["provenance"]["config"] == {"lr": 0.1}


LAYOUT = """{
 "tasks": ["land", "signs"],
 "grid": [[0.1, 1e-05], [null, 1]],
 "empty": {},
 "none": [],
 "phases": [
  {
   "steps": [1, 2]
  },
  {
   "name": "\\u03bb"
  }
 ],
 "commands": [
  "%s"
 ]
}
"""


def test_numbers_share_a_line_and_dictionaries_do_not():
    phases = [{"steps": [1, 2]}, {"name": "λ"}]
    document = {"tasks": ["land", "signs"], "grid": [[0.1, 1e-5], [None, 1]], "empty": {}, "none": [], "phases": phases}
    long = "python " * 20
    assert results.encode(document | {"commands": [long]}) == LAYOUT % long


numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=200),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(document=st.dictionaries(st.text(), values))
def test_an_encoded_document_has_the_same_values_in_the_same_order(document):
    text = results.encode(document)
    decoded = json.loads(text)
    assert json.dumps(decoded) == json.dumps(document)  # as text: 1 is not 1.0, 0.0 is not -0.0, and order counts
    assert results.encode(decoded) == text


def test_the_results_of_the_repository_are_in_this_layout():
    files = sorted(file for file in (ROOT / "results").rglob("*.json") if file.name != durations.NAME)
    assert files
    other = [file for file in files if results.encode(results.read(file)) != file.read_text(encoding="utf-8")]
    assert not other, f"{len(other)} results are laid out otherwise: {other[:3]}"


def test_the_numbers_of_the_repository_are_read_as_readme_says_without_a_warning():
    assert '`pandas.read_csv("results/mini/accuracies.csv")`' in (ROOT / "README.md").read_text(encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbers = pd.read_csv(ROOT / "results/mini/accuracies.csv")
    clean = numbers[numbers["severity"] == 0]
    assert len(numbers) > len(clean) > 0 and set(clean["corruption"]) == {"clean"}


def test_the_tables_of_the_repository_are_those_of_its_results():
    runs = Runs("mini", "ViT-Mini", ROOT / "results")
    made = {table.name: markdown(table) for table in tables.make(runs)}
    folder = ROOT / "results/mini/tables"
    assert made == {file.stem: file.read_text(encoding="utf-8") for file in folder.glob("*.md")}


def test_the_page_of_mini_tells_the_correlations_of_the_prediction():
    page = (ROOT / "docs/mini.md").read_text(encoding="utf-8")
    table = (ROOT / "results/mini/tables/prediction.md").read_text(encoding="utf-8")
    for count, words in (
        (14, "correlation is {} over all methods of every table"),
        (20, "On 20 it is {}, for one method"),
    ):
        rows = re.findall(rf"^\| .*, {count} tasks.*? \| \d+ \| (\S+) \(", table, re.MULTILINE)
        assert len(rows) >= 6 and words.format(f"{min(rows)} to {max(rows)}") in page, rows


def test_the_pages_of_the_repository_have_the_ledgers_verdicts():
    folder = ROOT / "results/mini"
    ledger = (folder / "claims.md").read_text(encoding="utf-8")
    plain, differences, corrected = re.search(
        r"ViT-Mini: (\d+ claims: .*?)\. (\d+ differences are tested at once); .*? method: (.*?)\.", ledger
    ).groups()
    index, page = ((folder / name).read_text(encoding="utf-8") for name in ("README.md", "report.html"))
    assert f" {plain.replace('claims:', 'claims of the papers:')}." in index
    assert differences in page and f"{corrected}." in page and f"tests {plain.split()[0]} of them" in page
    everything = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert plain in everything
    shown = re.findall(r"!\[(\w+)\]\(\.\./results/mini/figures/\1\.png\)", everything)
    assert {*shown} == {file.stem for file in (folder / "figures").glob("*.png")}
    assert all(table.read_text(encoding="utf-8").strip() in everything for table in (folder / "tables").glob("*.md"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), np.float32("nan"), torch.tensor([1.0, float("nan")])])
def test_a_nan_is_refused_and_the_old_result_stays(path, bad):
    results.write(path, {"a": 1}, ARGS, started=time.time())
    before = path.read_bytes()
    with pytest.raises(ResultError, match=r"found addition.tasks\[1\].loss.* = (nan|inf); nothing was written"):
        results.write(path, {"tasks": [{"loss": 0.5}, {"loss": bad}]}, ARGS, started=time.time())
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_what_json_cannot_hold_is_refused_in_a_record_and_spelled_out_in_a_config(path):
    with pytest.raises(TypeError, match="addition.model is a Linear"):
        results.write(path, {"model": torch.nn.Linear(1, 1)}, ARGS, started=time.time())
    config = dict(device=torch.device("cpu"), tasks={"MNIST"})
    results.write(path, {}, config, started=time.time())
    assert results.read(path)["provenance"]["config"] == {"device": "cpu", "tasks": "{'MNIST'}"}


def test_a_missing_result_names_its_command(path):
    assert not results.exists(path)
    with pytest.raises(MissingResult, match="addition.json, found no file; make it with: python eval_task_addition.py"):
        results.require(path, "python eval_task_addition.py")
    with pytest.raises(FileNotFoundError, match="make it with: python reproduce.py"):
        results.read(path)


@pytest.mark.parametrize("end", [0, 20, -5])
def test_a_truncated_result_says_so_and_how_to_make_it_again(path, end):
    results.write(path, {"accuracy": [0.25] * 10}, ARGS, started=time.time())
    assert results.exists(path) and results.require(path, "x")["accuracy"]
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ResultError, match=r"damaged one of \d+ bytes .* make it again with: python main.py"):
        results.require(path, "python main.py")


@pytest.mark.parametrize("foreign", [b"[1, 2]", b'{"accuracy": 1}', b"\xff\xfe"])
def test_foreign_json_is_refused(path, foreign):
    path.parent.mkdir()
    path.write_bytes(foreign)
    with pytest.raises(ResultError, match="python reproduce.py"):
        results.read(path)


def test_the_commit_is_the_projects_own(tmp_path, monkeypatch):
    def git(*arguments, folder=tmp_path):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert results.commit() is None
    (tmp_path / "file").write_text("1")
    git("init")
    git("add", "file")
    git("commit", "-m", "first")
    clean = results.commit()
    assert len(clean) == 40
    (tmp_path / "file").write_text("2")
    assert results.commit() == f"{clean}-dirty"
    (tmp_path / "copy").mkdir()
    monkeypatch.setattr(results, "ROOT", tmp_path / "copy")
    assert results.commit() is None, "a copy inside somebody else's repository has no commit of its own"


def test_the_command_line_can_be_typed_again(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "main.py"), "model=ViT-Mini", "DATASETS=[MNIST, SVHN]"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert results.command_line() == "python main.py model=ViT-Mini 'DATASETS=[MNIST, SVHN]'"
    script = "from src.runtime import results; print(results.command_line())"
    done = subprocess.run([sys.executable, "-c", script, "a"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "python -c a"


def test_reading_results_does_not_import_torch():
    script = "import sys; from src.runtime import results; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_nothing_is_left_beside_a_result(path):
    results.write(path, {}, ARGS, started=time.time())
    assert list(Path(path.parent).iterdir()) == [path]


def test_the_same_result_is_skipped(path, capsys):
    config = {"tasks": ("digits", "signs"), "method": {"k": 20.0}, "jobs": 2}
    assert not results.skip_existing(path, config, ("tasks", "method"))
    results.write(path, {}, config, started=time.time())
    assert results.skip_existing(path, config | {"jobs": 4}, ("tasks", "method"))
    assert f"{path}: there already, skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    "asked, told",
    [
        ({"tasks": ("digits",)}, r"tasks = \['digits'\]; found one of tasks = \['digits', 'signs'\]"),
        ({"method": {"k": 10.0}}, r"method.k = 10.0; found one of method.k = 20.0"),
        ({"tasks": ("land",), "method": {"k": 5.0}}, r"tasks = .*; method.k = 5.0; found one of tasks = .*; method.k"),
    ],
)
def test_a_result_of_something_else_is_refused_and_stays(path, asked, told):
    config = {"tasks": ("digits", "signs"), "method": {"k": 20.0}}
    results.write(path, {}, config, started=time.time())
    before = path.read_bytes()
    with pytest.raises(results.ResultError, match=f"expected a result of {told}.*--overwrite.*--results="):
        results.skip_existing(path, config | asked, ("tasks", "method"))
    assert path.read_bytes() == before


def test_an_option_that_older_results_do_not_tell_does_not_count(path):
    results.write(path, {}, {"method": {"k": 20.0}}, started=time.time())
    assert results.skip_existing(path, {"method": {"k": 20.0, "reduce": "mean"}, "search": {}}, ("method", "search"))
