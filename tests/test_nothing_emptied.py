"""Nothing shipped is emptied: reports over what is not there end with status 2, and write nothing."""

from pathlib import Path

import pytest
import synthetic_results

import make_figures
import make_tables

KEPT = "made before"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A seed's results, and tables, figures and claims that were made before."""
    synthetic_results.write(tmp_path, seeds=(1,))
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
