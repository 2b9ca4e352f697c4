"""The comparison of a reproduction with the results that ship."""

import json
import os

import forked
import pytest
import synthetic_results

from src import args
from src.experiments import commands, durations, reproduction
from src.experiments.stages import METHODS, NAMES, REPORT, STAGES
from src.merging.registry import variants
from src.reporting import shipped
from src.reporting.figures import FIGURES
from src.run import Run
from src.runtime.parallel import WorkerKilled
from src.runtime.paths import Places


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A shipped and a reproduced folder of seed 1, alike."""
    for module in (shipped, durations):
        monkeypatch.setattr(module, "from_root", lambda place: tmp_path / place)
    ours, theirs = (tmp_path / name for name in (Places.results, "reproduced"))
    for folder in (ours, theirs):
        synthetic_results.write(folder, seeds=(1,), merges=False)
    return ours, theirs


def test_equal_results_are_as_shipped(folders):
    ours, theirs = folders
    text = shipped.compared_with_shipped("mini", "ViT-Mini", theirs)
    count, _, total = text.partition(" of ")
    assert int(count) > 100 and total == f"{count} numbers as shipped"
    assert shipped.compared_with_shipped("mini", "ViT-Mini", ours) == ""


def test_the_furthest_number_is_named(folders):
    _, theirs = folders
    path = theirs / "mini/ViT-Mini/seed_1/addition_linear.json"
    record = json.loads(path.read_text())
    record["test"]["accuracy"]["signs"] += 0.02
    path.write_text(json.dumps(record))
    text = shipped.compared_with_shipped("mini", "ViT-Mini", theirs)
    told = (
        f"{100 * record['test']['accuracy']['signs']:.1f}, shipped {100 * record['test']['accuracy']['signs'] - 2:.1f}"
    )
    assert "furthest: accuracy of signs, addition linear, seed 1: " in text and text.endswith(told)


def test_other_seeds_and_other_models_have_nothing_to_compare_with(folders):
    ours, theirs = folders
    (theirs / "mini/ViT-Mini/seed_1").rename(theirs / "mini/ViT-Mini/seed_7")
    (theirs / "mini/ViT-Mini__init__/seed_1").rename(theirs / "mini/ViT-Mini__init__/seed_7")
    assert "no number" in shipped.compared_with_shipped("mini", "ViT-Mini", theirs)
    assert "nothing of ViT-B-32 ships" in shipped.compared_with_shipped("mini", "ViT-B-32", theirs)


def test_a_reproduction_writes_beside_the_shipped_results():
    run, _ = args.parse(args.reproduction_parser(None, NAMES), [])
    assert run.places.results.name == "reproduced"
    stages = [commands.COMMANDS[name](run) for name in NAMES]
    flags = [command.flags for of_stage in stages for command in of_stage]
    assert flags and all(any("results=reproduced" in flag for flag in of_command) for of_command in flags)


def test_every_stage_has_its_commands():
    assert {*commands.COMMANDS} == {*NAMES} and len({*NAMES}) == len(NAMES)


def test_a_dry_run_tells_the_minutes_of_the_shipped_results(folders, capsys):
    ours, theirs = folders
    path = ours / "mini/ViT-Mini/seed_1/addition_linear.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"provenance": {**record["provenance"], "seconds": 90.0}}))
    assert shipped.recorded_seconds([theirs / "mini/ViT-Mini/seed_1/addition_linear.json"], theirs) == 90.0
    assert shipped.recorded_seconds([theirs / "mini/ViT-Mini/seed_1/addition_posthoc.json"], theirs) is None
    flags = ["--only", "addition", "merging", "--dry-run", "--jobs=2", f"--results={theirs}/none"]

    def dry_run(*more: str) -> str:
        run, options = _parsed([*flags, *more])
        reproduction.reproduce(run, **options)
        return capsys.readouterr().out

    assert "about 0 minutes with 2 jobs; no time is known of seed 1, addition, seed 1, merging\n" in dry_run()
    for name in ("addition_posthoc", "addition_standard"):
        other = path.with_name(f"{name}.json")
        record = json.loads(other.read_text())
        other.write_text(json.dumps(record | {"provenance": {**record["provenance"], "seconds": 30.0}}))
    assert "seed 1, addition: about 2.5 min" in dry_run()  # result by result
    # Those of a whole run count before those of single results.
    durations.record(ours / "mini", "ViT-Mini", 4, "cpu", {"addition": 66.0, "merging": 120.0})
    durations.record(ours / "mini", "ViT-Mini", 4, "cpu", {"merging": 240.0})
    durations.record(ours / "mini", "ViT-Mini", 1, "cpu", {"addition": 60.0})
    out = dry_run()
    assert "seed 1, addition: about 2.2 min" in out and "seed 1, merging: about 8.0 min" in out
    assert "about 10 minutes with 2 jobs\n" in out and "addition: about 1.0 min" in dry_run("--jobs=1")
    assert "merging: no time is known" in dry_run("--tasks=2")  # they are of the usual tasks
    for damaged in ("{", "[]", '{"ViT-Mini": 3}', '{"ViT-Mini": [{"jobs": 2}]}'):
        (ours / "mini" / durations.NAME).write_text(damaged)
        assert "merging: no time is known" in dry_run()
    durations.record(ours / "mini", "ViT-Mini", 2, "cpu", {"merging": 60.0})
    assert "merging: about 1.0 min" in dry_run()


def test_a_reproduction_records_what_its_whole_stages_took(folders, monkeypatch):
    _, theirs = folders
    called = []
    monkeypatch.setattr(reproduction, "_call", lambda command, overwrite: called.append(command))
    monkeypatch.setattr(reproduction, "compared_with_shipped", lambda *which: "")
    run, options = _parsed(["--only", "addition", "tables", "--seeds=7,8", "--jobs=3", f"--results={theirs}/none"])
    reproduction.reproduce(run, **options)
    (entry,) = json.loads((theirs / "none/mini" / durations.NAME).read_text())["ViT-Mini"]
    assert len(called) == 7 and entry["jobs"] == 3 and {*entry["seconds"]} == {"addition", "tables"}
    (theirs / "none/mini" / durations.NAME).unlink()
    for command in called[:1]:  # of one seed a command is finished
        for output in command.outputs:
            output.parent.mkdir(parents=True)
            output.write_text("{}")
    monkeypatch.setattr(reproduction.time, "time", iter(range(0, 9000, 10)).__next__)
    reproduction.reproduce(run, **options)
    (entry,) = json.loads((theirs / "none/mini" / durations.NAME).read_text())["ViT-Mini"]
    assert entry["seconds"] == {"addition": 10.0, "tables": 10.0}  # of the other seed alone


def _parsed(flags: list[str]) -> tuple[Run, dict]:
    run, options = args.parse(args.reproduction_parser(None, NAMES), flags)
    return run, options


def test_commands_that_need_nothing_of_each_other_run_at_once(tmp_path, capfd):
    """In workers, which are forked here; what fails is told, with its reason, and the others run all the same."""
    outputs = (tmp_path / "never.json",)
    fine = [commands.Command("main", (flag,), outputs) for flag in ("--methods", "--help")]
    wrong = commands.Command("make_report", (f"--results={tmp_path}/none",), outputs)
    program = reproduction.Program(dry_run=False, overwrite=False, results=tmp_path, jobs=2)
    with forked.workers():
        assert program.run_all([fine[0], wrong, fine[1]], apart=True) == 3
    assert program.failed == [wrong]
    told = capfd.readouterr()
    assert "task arithmetic" in told.out and "Merge fine-tuned encoders" in told.out
    assert "error:" in told.err and "Traceback" not in told.err


def test_the_longest_of_them_start_first_and_those_that_read_of_others_last(tmp_path, monkeypatch):
    """So that one long command is not left in the end, and consensus finds the masks of its stage."""
    seconds = {"short": 1.0, "long": 9.0, "unknown": None, "reader": 99.0}
    made = {name: commands.Command(name, (), (tmp_path / f"{name}.json",), after=name == "reader") for name in seconds}
    calls = []
    monkeypatch.setattr(reproduction, "recorded_seconds", lambda outputs, results: seconds[outputs[0].stem])
    monkeypatch.setattr(
        reproduction, "map_tasks", lambda work, items, *_: calls.append([each.script for each in items]) or [False] * 9
    )
    reproduction.Program(dry_run=False, overwrite=False, results=tmp_path).run_all([*made.values()], apart=True)
    assert calls == [["long", "short", "unknown"], ["reader"]]


@pytest.mark.parametrize("kills", [1, 2])
def test_what_a_killed_worker_left_is_tried_once_more(kills, tmp_path, monkeypatch, capsys):
    """And fails then. A file from before is no sign that a command has run."""
    made = [commands.Command(name, (), (tmp_path / f"{name}.json",)) for name in ("done", "old", "left")]
    (tmp_path / "old.json").touch()
    os.utime(tmp_path / "old.json", (0, 0))
    calls = []

    def killed(work, items, *_):
        calls.append([command.script for command in items])
        (tmp_path / "done.json").touch()
        if len(calls) <= kills:
            raise WorkerKilled("a worker was killed")
        return [False for _ in items]

    monkeypatch.setattr(reproduction, "map_tasks", killed)
    program = reproduction.Program(dry_run=False, overwrite=True, results=tmp_path)
    program.run_all(made, apart=True)
    assert calls == [["done", "old", "left"], ["old", "left"]]
    assert program.failed == (made[1:] if kills == 2 else [])
    assert capsys.readouterr().err.count("error: a worker was killed") == kills


def test_a_damaged_result_is_made_anew_where_that_is_asked_for(tmp_path, monkeypatch):
    """The shipped one beside it tells how long it takes, unless it is damaged."""
    (file := tmp_path / "damaged.json").write_text("{")
    monkeypatch.setattr(shipped, "from_root", lambda place: tmp_path)
    monkeypatch.setattr(reproduction, "map_tasks", lambda work, items, *_: [False for _ in items])
    program = reproduction.Program(dry_run=False, overwrite=True, results=tmp_path)
    assert program.run_all([commands.Command("main", (), (file,))] * 2, apart=True) == 2 and not program.failed


def test_of_commands_that_run_at_once_each_has_its_share_of_the_minutes(tmp_path):
    program = reproduction.Program(dry_run=True, overwrite=False, results=tmp_path)
    for at_once, minutes in ((1, 4.0), (2, 2.0)):
        program.waiting = [60.0, 180.0]
        assert program.foresee("merging", None, 2, at_once) == {"merging": minutes}


def test_consensus_waits_for_the_masks_of_its_stage():
    run, _ = _parsed([])
    after = {command.after for command in commands.COMMANDS["merging-tangent"](run) if "consensus" in str(command)}
    others = {command.after for command in commands.COMMANDS["merging-tangent"](run) if "consensus" not in str(command)}
    assert after == {True} and others == {False}


def test_the_stages_of_methods_make_every_row_in_every_mode_once_and_first_one_a_method():
    run, _ = _parsed([])
    made = {name: commands.COMMANDS[name](run) for name in ("methods", "methods-adapting", "variants")}
    named = [
        tuple(flag for flag in command.flags if flag.startswith(("method", "finetuning_mode")))
        for of_stage in made.values()
        for command in of_stage
    ]
    rows = [row for stage in (METHODS, *commands.ADAPTING) for row in variants(stage.name)]
    modes = ((), ("finetuning_mode=linear",), ("finetuning_mode=posthoc",))
    assert len(rows) > 40
    assert sorted(named) == sorted((*row.overrides, *mode) for row in rows for mode in modes)
    for name in ("methods", "methods-adapting"):
        words = [command.flags[0] for command in made[name] if "finetuning_mode=linear" in command.flags]
        assert len(words) == len({*words}) and "method." not in str([*map(str, made[name])])


def test_networks_without_pre_training_are_scored_without_the_control():
    """Nobody negates them: no table has that number."""
    run, _ = _parsed([])
    scored = [command for command in commands.COMMANDS["random-init"](run) if command.script == "eval_single_task"]
    assert len(scored) == 3 and all("--control=never" in command.flags for command in scored)


@pytest.mark.parametrize("stage", [stage.name for stage in (*STAGES, *REPORT) if stage.apart])
def test_commands_of_such_stages_write_files_of_their_own(stage):
    run, _ = _parsed([])
    written = [command.outputs for command in commands.COMMANDS[stage](run)]
    assert len(written) > 1 and len({*written}) == len(written)


@pytest.mark.parametrize("jobs", [1, 2, 99])
def test_every_figure_is_drawn_by_one_of_as_many_commands_as_there_are_jobs(jobs):
    run, _ = _parsed([f"--jobs={jobs}"])
    *drawing, _, _ = commands.COMMANDS["figures"](run)  # the last two are pictures of images
    named = [word for command in drawing for word in command.flags if not word.startswith("-")]
    assert sorted(named) == (sorted(FIGURES) if jobs > 1 else []) and len(drawing) == min(jobs, len(FIGURES))
