"""Every benchmark runs at a tiny size, and the ways that it compares agree, which it checks itself."""

import contextlib
import io
import json
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

import forked
import pytest
import torch
from few_images import few_images
from safetensors.torch import save_file

from benchmarks import measure, merge_files, merge_memory
from benchmarks.__main__ import TABLE, first_line, main, names
from src.modes import TRAINED
from src.runtime import results
from tests.conftest import ROOT

TOWER = ("--tasks=2", "--layers=1", "--width=64", "--rounds=1", "--repeats=1", "--batch-size=2")


def run(name: str, *flags: str) -> str:
    """What it prints that is run here: to import torch and open_clip takes a process longer than the work does."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main([name, *flags])
    return printed.getvalue()


@pytest.fixture
def in_this_process(monkeypatch) -> None:
    """What a benchmark measures in processes of their own; what it tells of memory then means nothing."""

    def measured(program: str, arguments: Sequence[str], what: str) -> dict:
        cost = json.loads(run(program.removeprefix("benchmarks."), *arguments))
        return cost | {"bytes": max(1, cost["bytes"])}  # a process that had as much before gains none

    monkeypatch.setattr(measure, "in_process", measured)


def read(file: Path) -> dict:
    """The JSON of a benchmark, with the machine's description in it and no path or host."""
    found = results.read(file)
    assert found["machine"]["cores"] > 0 and "processor" in found["machine"]
    assert not any("/" in str(value) for value in found["provenance"]["config"].values())
    assert "=/" not in found["provenance"]["command"]
    return found


def test_adaptation_step(tmp_path, in_this_process):
    file = tmp_path / "found.json"
    run("adaptation_step", *TOWER, "--methods=concrete", "--ways", "ours", "one graph", f"--output={file}")
    found = read(file)
    assert set(found["concrete"]) == {"ours", "one graph"} and found["provenance"]["config"]["tasks"] == 2
    assert all(row["seconds"] > 0 and row["bytes"] > 0 for row in found["concrete"].values())


def test_merge_memory(tmp_path):
    file = tmp_path / "found.json"
    flags = ("--tasks=2", "--scale=0.01", "--scope=visual", "--methods=consensus", "--rounds=1")
    run("merge_memory", *flags, f"--output={file}")
    found = read(file)
    assert set(found["consensus"]) == {"streaming", "published"} and found["provenance"]["config"]["scope"] == "visual"
    assert found["consensus"]["published"]["ratios"]["seconds"]["rounds"] == 1


def test_every_method_merges_as_the_published_way_does(in_this_process):
    told = run("merge_memory", "--tasks=2", "--scale=0.01", "--scope=visual", "--rounds=1")
    assert told.count("streaming / this") == len(merge_memory.METHODS)


def peer_of(folder: Path, share: float) -> Path:
    """A command that merges as mergekit's task arithmetic does, but for `share` of what it adds."""
    script = folder / "peer"
    script.write_text(
        f"#!{sys.executable}\n"
        "import sys, numpy, yaml\n"
        "from pathlib import Path\n"
        "from safetensors.numpy import load_file, save_file\n"
        "config, output = yaml.safe_load(open(sys.argv[1])), Path(sys.argv[2])\n"
        "start = load_file(config['base_model'])\n"
        "models = [load_file(row['model']) for row in config['models']]\n"
        f"weight = {share} * config['parameters']['lambda']\n"
        "output.mkdir(exist_ok=True)\n"
        "merged = {n: numpy.asarray(t + weight * sum(m[n] - t for m in models)) for n, t in start.items()}\n"
        "save_file(merged, output / 'model.safetensors')\n",
        encoding="utf-8",
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


def test_merge_files_beside_a_peer(tmp_path):
    file = tmp_path / "found.json"
    flags = ("--tasks=2", "--scale=0.01", "--methods=sum", "--rounds=1")
    told = run("merge_files", *flags, f"--peer={peer_of(tmp_path, 1.0)}", f"--output={file}")
    found = read(file)["sum"]
    assert found["largest difference"] < 1e-6 and "ours / this" in told
    assert set(found["mergekit-pytorch"]["ratios"]) == {"seconds", "bytes"}


def test_merge_files_refuses_a_ratio_between_different_numbers(tmp_path, monkeypatch):
    def spent(command: Sequence[str], folder: Path) -> dict[str, float]:
        """By what needs no torch where it is ours."""
        theirs = str(command[0]).endswith("peer")
        number = {"seconds": 1.0, "bytes": 1e6}
        target = Path(command[2]) / "model.safetensors" if theirs else folder / "sum.safetensors"
        target.parent.mkdir(exist_ok=True)
        save_file({"a": torch.full((2,), 0.9 if theirs else 1.0)}, target)
        return number

    monkeypatch.setattr(measure, "spent", spent)
    with pytest.raises(SystemExit, match="task arithmetic should agree"):
        merge_files.main(
            ["--tasks=1", "--scale=0.01", "--methods=sum", "--rounds=1", f"--peer={peer_of(tmp_path, 0.9)}"]
        )


def test_the_share_of_weights_that_differ(tmp_path):
    one, other = ({"a": torch.zeros(10)}, {"a": torch.tensor([0.5, *[0.0] * 9])})
    for name, weights in (("one", one), ("other", other)):
        save_file(weights, tmp_path / name)
    assert merge_files.largest_difference(tmp_path / "one", tmp_path / "other") == (0.5, 0.1)


def test_coefficient_sweep(tmp_path, mini_cache):
    file, places = tmp_path / "found.json", (f"--save={tmp_path}", f"--cache-dir={mini_cache}")
    with few_images(8):
        told = run("coefficient_sweep", "--n-eval-points=2", "--rounds=1", "--seed=0", *places, f"--output={file}")
    assert told.count("differ from the loop's by") == 2 and "linear: 2 coefficients / one" in told
    assert len(read(file)["ratios"]) == 3


def test_linear_step(tmp_path):
    file = tmp_path / "found.json"
    told = run("linear_step", "--batch-size=2", "--rounds=2", f"--save={tmp_path}", f"--output={file}")
    found = read(file)
    assert told.count("ms of CPU time per step") == 3 and found["gradients differ by"] < 1e-4
    assert found["steps"]["standard"]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0, "rounds": 2}


def test_class_token(tmp_path):
    file = tmp_path / "found.json"
    told = run("class_token", "--batch-size=2", "--rounds=1", f"--save={tmp_path}", f"--output={file}")
    found = read(file)["passes"]
    assert [line.partition(":")[0] for line in told.splitlines()] == [*found] and len(found) == 4
    assert all(row["differ by"] < 1e-4 for row in found.values())


def test_mode_steps(tmp_path, mini_cache):
    places = (f"--save={tmp_path}", f"--cache-dir={mini_cache}", "--seed=0")
    told = run("mode_steps", "--batch-size=2", "--rounds=1", "--tasks", "digits", "signs", *places)
    assert [line.split()[0] for line in told.splitlines()] == list(TRAINED)


def test_image_cache():
    told = run("image_cache", "--images=5", "--side=32", "--height=64", "--rounds=1")
    assert "with the cache" in told and "over 5 images" in told


def test_growth(tmp_path, mini_cache, in_this_process):
    file = tmp_path / "found.json"
    sizes = ("--tasks-of", "2", "3", "--coefficients", "1", "3", "--images", "8", "16", "--widths", "32", "64")
    small = ("--scale=0.01", "--rounds=1", "--batch-size=2", "--seed=0")
    with few_images(16):
        run("growth", *sizes, *small, f"--save={tmp_path}", f"--cache-dir={mini_cache}", f"--output={file}")
    found = read(file)
    assert found["width"]["sizes"] == [32, 64] and set(found["coefficients"]["slopes"]) == {
        "standard: s",
        "linear, by one jvp: s",
    }
    assert all(set(found[work]["slopes"]) == set(found[work]["costs"]) for work in ("merging", "images", "width"))


def test_accelerator(tmp_path):
    """Every section that needs no further process, on a toy tower; the others are `ranks` and `compiled`."""
    file = tmp_path / "found.json"
    flags = ("--tiny", f"--output={file}", "--without", "ranks", "compiled", "mini")
    done = forked.run("-m", "benchmarks", "accelerator", *flags)
    assert done.returncode == 0, done.stderr
    sections = json.loads(file.read_text())["sections"]
    assert {name: found for name, found in sections.items() if {"error", "stopped", "skipped"} & set(found)} == {}
    assert len(sections) == 11 and all(sections.values())
    distances = [value for name, value in sections["agreement"].items() if "float64" not in name]
    assert max(distances) < 1e-4  # a toy tower here and here; float32 everywhere


def test_slopes_and_ratios():
    assert measure.slope([1, 2, 4], [3, 12, 48]) == 2
    ratio = measure.Ratio.of([1, 2, 3, 40], [1, 1, 1, 10])
    assert (ratio.median, ratio.low, ratio.high, ratio.rounds) == (2.5, 1.75, 3.25, 4)


def test_a_result_tells_no_folder():
    document = {"provenance": {"command": "python -m benchmarks x --save=/a/b --rounds 3 --folder /c --scale=0.5"}}
    measure.forget_places(document)
    assert document["provenance"]["command"] == "python -m benchmarks x --rounds 3 --scale=0.5"


def test_what_a_command_costs(tmp_path):
    work = "x = bytearray(300_000_000)\nfor _ in range(3_000_000): pass"
    big = measure.spent([sys.executable, "-c", work], tmp_path)
    small = measure.spent([sys.executable, "-c", ""], tmp_path)
    assert big["bytes"] - small["bytes"] > 250_000_000 and big["seconds"] > small["seconds"]
    with pytest.raises(SystemExit, match="expected a command that runs"):
        measure.spent([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)


def test_the_list_names_every_benchmark(capsys):
    main([])
    told = capsys.readouterr().out
    assert all(f"{name:18s} {first_line(name)}" in told for name in names()) and set(TABLE) < set(names())
    with pytest.raises(SystemExit, match="expected a benchmark, found 'liner_step'"):
        main(["liner_step"])
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert [name for name in names() if f"`{name}" not in page] == []


RESULTS = ROOT / "benchmarks" / "results"


def ratios(found, *path: str) -> str:
    """A median as the pages print it."""
    for name in path:
        found = found[name]
    return f"{found['median']:.2f}"


def test_the_pages_have_the_ratios_of_the_results():
    """Of the rows of docs/speed.md that are paired rounds of this machine, and of those in README."""
    named = ("linear_step", "class_token", "adaptation_step", "merge_memory", "coefficient_sweep", "mode_steps")
    read = {name: results.read(RESULTS / f"{name}.json") for name in named}
    steps, adapting, merging = read["linear_step"]["steps"], read["adaptation_step"], read["merge_memory"]
    speed, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/speed.md", "README.md"))
    linear, plain = (ratios(steps, way, "ratio") for way in ("linear", "linear, plain"))
    assert f"floor is 1.67) | {linear} (" in speed and f"the standard step | {plain} (" in speed
    short = {name: f"{row['ratio']['median']:.2f}" for name, row in read["class_token"]["passes"].items()}
    of_modes = [", ".join(short[f"{mode}, {what}"] for what in ("a pass", "a step")) for mode in ("standard", "linear")]
    assert f"| the whole block | {' / '.join(of_modes)} | `class_token` |" in speed
    graph, batch = (adapting["adamerging"][way]["ratios"] for way in ("one graph", "per batch"))
    for what in ("seconds", "bytes"):
        line = next(line for line in speed.splitlines() if f"| {ratios(graph, what)} (" in line)
        assert f" / {ratios(batch, what)} (" in line
    for what in ("seconds", "bytes"):
        methods = ("sum", "ties", "tall_mask", "consensus")
        assert " / ".join(ratios(merging, name, "published", "ratios", what) for name in methods) in speed
    assert f"a merge for each batch | {ratios(batch, 'seconds')} |" in readme
    for words, name in (("merging 8 models: sum", "sum"), ("TALL masks, 5 λ", "tall_mask")):
        assert (
            f"| {words} | stacking every vector | {ratios(merging, name, 'published', 'ratios', 'seconds')} |" in readme
        )
    modes = {mode: row for mode, row in read["mode_steps"]["steps"].items() if mode != "standard"}
    assert [*modes] == [mode for mode in TRAINED if mode != "standard"]
    times, memory = (
        [f"{value:.{digits}f}" for value in values]
        for values, digits in (
            ([row["ratio"]["median"] for row in modes.values()], 2),
            ([row["bytes"] / 1e6 for row in modes.values()], 0),
        )
    )
    for page, between in ((speed, " / "), (readme, " | ")):
        assert all(f"| {between.join(row)} |" in page for row in (times, memory))
    ours_over_plain = steps["linear"]["seconds"] / steps["linear, plain"]["seconds"]
    assert f"jvp, and backward through it | {ours_over_plain:.2f} |" in readme
    loop = read["coefficient_sweep"]["ratios"]["linear: published loop / ours"]["median"]
    assert f"a pass for each | {1 / loop:.3f} |" in readme
