"""The command that an error names does its work in the folders that were named, and on all that is missing."""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from drawn_checkpoints import draw_checkpoints

import eval_single_task
import eval_task_addition
import make_tables
from src import checkpoints, store
from src.args import base_parser, finetuning_parser, parse, reproduction_parser
from src.experiments.stages import NAMES
from src.merging.problem import Source, read_problem
from src.merging.tall_mask import load_tall_masks
from src.run import Run
from src.runtime import results
from src.runtime.messages import UserError
from src.runtime.paths import Places

TASKS = ("signs", "letters")


@pytest.fixture
def run(make_run, mini_cache, tmp_path) -> Run:
    """Of folders whose names a shell has to be told in quotes."""
    (tmp_path / "my cache").symlink_to(mini_cache)
    folders = {"save": "my save", "results": "my results", "data-location": "my data"}
    flags = [f"--{flag}={tmp_path / name}" for flag, name in folders.items()]
    return make_run("--tasks", *TASKS, *flags, f"--cache-dir={tmp_path / 'my cache'}")


@pytest.fixture
def flags(run) -> list[str]:
    return [*shlex.split(run.flags()), "--tasks", *run.tasks, "--device=cpu"]


def told(error: BaseException, start: str) -> Iterator[str]:
    """The words behind `start` of the command in an error."""
    text = str(error)
    assert start in text, text
    yield from shlex.split(text.partition(start)[2].split(" or fetch")[0].rstrip(","))


def same(words: list[str], parser, run: Run, tasks: tuple[str, ...] | None = None) -> None:
    """Hold what a command would work on against a run."""
    named, _ = parse(parser, words)
    assert (named.model, named.seed, named.places) == (run.model, run.seed, run.places)
    assert named.tasks == (tasks or run.tasks)


def test_missing_checkpoints_are_made_by_one_command_where_they_were_looked_for(run, flags):
    with pytest.raises(SystemExit) as ended:
        eval_task_addition.main(["--finetuning-mode=linear", *flags])
    same([*told(ended.value, "python finetune.py ")], finetuning_parser(""), run)
    draw_checkpoints(replace(run, tasks=TASKS[:1]))
    with pytest.raises(SystemExit) as ended:
        eval_single_task.main(flags)
    same([*told(ended.value, "python finetune.py ")], finetuning_parser(""), run, TASKS[1:])


def test_missing_accuracies_are_made_of_the_tasks_that_are_asked_for(run, flags):
    draw_checkpoints(run)
    run.paths.single_task("none").unlink()
    with pytest.raises(SystemExit) as ended:
        eval_task_addition.main(flags)
    same([*told(ended.value, "python eval_single_task.py ")], base_parser("", ("none",)), run)


def test_a_damaged_checkpoint_is_made_again_where_it_lies(run):
    draw_checkpoints(run)
    path = run.paths.checkpoint("signs", "standard")
    path.write_bytes(path.read_bytes()[:-1])
    only_save = Places(save=run.places.save)  # as the place of the file tells
    for read, places in (
        (checkpoints.Checkpoint, only_save),
        (checkpoints.header, only_save),
        (lambda path: store.finetuned(run, "signs", "standard"), run.places),
        (lambda path: store.made_of(run, "standard", ["signs"]), run.places),
    ):
        with pytest.raises(UserError, match="cut short") as refused:
            read(path)
        named, _ = parse(finetuning_parser(""), [*told(refused.value, "python finetune.py ")])
        assert (named.model, named.seed, named.places) == (run.model, run.seed, places)


def test_a_damaged_result_is_made_again_by_the_same_command_or_by_all_of_them(run, flags, monkeypatch):
    draw_checkpoints(run)
    path = run.paths.result("addition_standard")
    path.write_text("{")
    with pytest.raises(UserError) as refused:
        results.read(path)
    same_results = replace(run, places=Places(results=run.places.results))
    same(
        [*told(refused.value, "python reproduce.py ")],
        reproduction_parser("", NAMES),
        replace(same_results, places=replace(same_results.places, save=Places.save)),
        run.suite_row.default,
    )
    monkeypatch.setattr("sys.argv", ["eval_task_addition.py", *flags])
    with pytest.raises(SystemExit) as ended:
        eval_task_addition.main(flags)
    same([*told(ended.value, "python eval_task_addition.py ")], base_parser(""), run)


@pytest.mark.parametrize("folder", ["my results", None], ids=["another", "the usual"])
def test_results_of_no_model_are_made_in_the_folder_that_was_asked(folder, tmp_path, capsys):
    """Also in results/, where reproduce.py by itself writes none."""
    where = Path(tmp_path / folder) if folder else Places.results
    with pytest.raises(SystemExit):
        make_tables.main([f"--results={where}", "--suite=vision", "--model=ViT-B-16"])
    words = [*told(AssertionError(capsys.readouterr().err), "python reproduce.py ")]
    named, _ = parse(reproduction_parser("", NAMES), words)
    assert (named.model, named.places) == ("ViT-B-16", Places(results=where))


def test_masks_are_made_in_the_folders_of_the_run(run):
    draw_checkpoints(run)
    problem = read_problem(run, Source())
    with pytest.raises(UserError) as refused:
        load_tall_masks(replace(problem, published_masks=run.places.save / "fetched"), False, None)
    words = [*told(refused.value, "python main.py ")]
    assert {f"save={run.places.save}", f"results={run.places.results}", f"data_location={run.places.data}"} <= {*words}
    assert "seed=0" in words and "DATASETS=[signs,letters]" in words
    fetched = shlex.split(str(refused.value).partition(" or fetch the published ones with: ")[2])
    assert fetched[1] == "download_checkpoints.py" and f"--save={run.places.save}" in fetched
