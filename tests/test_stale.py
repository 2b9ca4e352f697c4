"""Nothing stale: what was made of other weights, settings or files than those of now is told, never mixed in."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_checkpoints import draw_checkpoints
from few_images import few_images

import eval_single_task
import eval_task_addition
import eval_task_negation
import main
import reproduce
from src import checkpoints, store
from src.evaluation import Denominators
from src.experiments import merging
from src.experiments.base import carry_out
from src.experiments.registry import EXPERIMENTS as REGISTRY
from src.experiments.registry import SINGLE_TASK
from src.merging.names import tasks_name
from src.merging.registry import label
from src.merging.task_arithmetic import Sum
from src.run import Run
from src.runtime import results
from src.runtime.messages import CheckpointError, UsageError
from src.runtime.results import ResultError
from src.training import finetune

TASKS = ("digits", "signs")


@pytest.fixture
def few_pixels() -> Iterator[None]:
    with few_images(8):
        yield


@pytest.fixture
def made(make_run, few_pixels) -> Run:
    """Checkpoints near θ0, made-up single-task results, 8 images a split."""
    run = make_run("--tasks", *TASKS)
    draw_checkpoints(run)
    return run


def flags(run: Run) -> list[str]:
    places = [f"--save={run.places.save}", f"--results={run.places.results}", f"--cache-dir={run.places.cache}"]
    return ["--seed=0", "--jobs=1", "--device=cpu", f"--tasks={','.join(run.tasks)}", *places]


def merge(run: Run, *more: str) -> None:
    pairs = [flag.removeprefix("--").split("=", 1) for flag in flags(run) if not flag.startswith("--tasks")]
    given = [f"{name.replace('-', '_')}={value}" for name, value in pairs]
    main.main([f"DATASETS=[{','.join(run.tasks)}]", *given, *more])


def retrain(run: Run, task: str) -> None:
    """Other weights in the place of a task's, as after finetune.py --overwrite."""
    path = run.paths.checkpoint(task, "standard")
    file = checkpoints.Checkpoint(path)
    moved = {name: tensor * 1.02 for name, tensor in file.items()}
    checkpoints.save(path, moved, file.header)


# Experiments: the script, its flags, and the name of its result.
EXPERIMENTS = [
    (eval_single_task, ["--finetuning-mode=standard"], "ft_accuracies"),
    (eval_task_addition, ["--n-eval-points=2"], "addition_standard"),
    (eval_task_negation, ["--n-eval-points=2"], "negation_standard"),
    (main, ["method=average"], "merging/{tasks}/standard-visual/average"),
]


@pytest.mark.parametrize("script, more, name", EXPERIMENTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_result_of_other_weights_is_told_and_made_anew_when_asked(made, script, more, name, capsys):
    name = name.format(tasks=tasks_name(made.suite, made.tasks))

    def call(*again: str) -> None:
        merge(made, *more, *again) if script is main else script.main([*flags(made), *more, *again])

    overwrite = "overwrite=true" if script is main else "--overwrite"
    call(overwrite)  # the single-task results of `made` are made up, and say nothing of weights
    path = made.paths.result(name)
    about = results.read(path)["provenance"]["made_of"]
    assert {"theta0", *TASKS} <= {pair.split(":")[0] for pair in about.split()} and len(about) < 200
    capsys.readouterr()
    call()
    assert "there already" in capsys.readouterr().out
    before = path.read_bytes()
    retrain(made, "signs")
    with pytest.raises(SystemExit) as ended:
        call()
    told = capsys.readouterr().err
    said = told or str(ended.value)
    assert ended.value.code in (1, said) and told.count("\n") <= 1
    assert "signs changed since" in said and "overwrite" in said and path.read_bytes() == before
    call(overwrite)
    assert path.read_bytes() != before
    capsys.readouterr()
    call()
    assert "there already" in capsys.readouterr().out


OF_FIXED_TASKS = [row for row in REGISTRY.values() if row != SINGLE_TASK]


@pytest.mark.parametrize("experiment", OF_FIXED_TASKS, ids=lambda row: row.name)
def test_a_result_of_other_tasks_is_told_by_every_experiment(experiment, make_run):
    """But by single-task evaluation, which adds those that are missing."""
    earlier, asked = make_run("--tasks=digits,signs"), make_run("--tasks=digits")
    choice = experiment.choices[0]
    results.write(asked.paths.result(experiment.result(choice)), {"a": 1}, earlier.config(), started=time.time())
    with pytest.raises(ResultError, match=r"expected a result of tasks = \['digits'\]; found .*'signs'.*--overwrite"):
        carry_out(experiment, choice, asked, {}, pytest.fail, overwrite=False)


def test_a_reproduction_asks_the_scripts_whether_what_is_there_is_what_is_meant(made, capsys):
    """It sees a file alone: a quick look at two tasks would stay where one asks for others."""
    eval_task_addition.main([*flags(made), "--n-eval-points=2"])
    places = [flag for flag in flags(made) if not flag.startswith(("--tasks", "--seed"))]
    with pytest.raises(SystemExit) as ended:
        reproduce.main([*places, "--seeds=0", "--only", "addition", "--tasks=digits"])
    told = capsys.readouterr().err
    assert ended.value.code == 1 and "addition_standard.json: expected a result of tasks = ['digits']" in told


def edited_number(path: Path) -> None:
    """The last number of the largest tensor: no evenly spaced sample of 64 has it."""
    file = checkpoints.Checkpoint(path, kind=checkpoints.header(path)["kind"])
    weights = {name: tensor.clone() for name, tensor in file.items()}
    largest = max(weights, key=lambda name: weights[name].numel())
    weights[largest].view(-1)[-1] += 1
    assert checkpoints.fingerprint(weights) == file.header["fingerprint"]
    checkpoints.save(path, weights, file.header, kind=file.header["kind"])


def edited_mask(path: Path) -> None:
    """One bit of the last task."""
    masks, header = checkpoints.load_masks(path), checkpoints.header(path)
    bits = {task: dict(mask) for task, mask in masks.items()}
    task = [*bits][-1]
    name = max(bits[task], key=lambda name: bits[task][name].numel())
    bits[task][name] = bits[task][name].clone()
    bits[task][name].view(-1)[-1] ^= True
    checkpoints.save_masks(path, bits, header)


EDITED = {
    "weights": (edited_number, lambda run: run.paths.checkpoint("signs", "standard"), "signs"),
    "θ0": (edited_number, lambda run: run.paths.pretrained(), "theta0"),
    "a row of a head": (edited_number, lambda run: run.paths.head("signs"), "signs"),
    "masks": (edited_mask, lambda run: next((run.paths.pretrained().parent / "masks").glob("tall_mask*")), "masks"),
}


@pytest.mark.parametrize(
    "kind, method",
    [*((kind, ["method=consensus"]) for kind in EDITED), ("masks", ["method=lines", "method.base=consensus"])],
)
def test_a_change_of_one_number_is_told(kind, method, made, capsys):
    change, path, name = EDITED[kind]
    merge(made, "method=tall_mask")
    merge(made, *method)
    capsys.readouterr()
    merge(made, *method)
    assert "there already" in capsys.readouterr().out
    change(path(made))
    with pytest.raises(SystemExit):
        merge(made, *method)
    assert f"{name} changed since" in capsys.readouterr().err


def test_a_change_of_published_masks_is_told(make_run, few_pixels, capsys):
    """They are read where no run kept masks of its own."""
    run = make_run("--tasks=2")  # the first of the suite: nobody publishes masks of others
    draw_checkpoints(run)
    merge(run, "method=tall_mask")
    (kept,) = (run.paths.pretrained().parent / "masks").glob("tall_mask*")
    published = kept.rename(run.paths.published_masks(2))
    for command in (["method=consensus"], ["method=tall_mask", "method.load_mask=true"]):
        merge(run, *command)
    capsys.readouterr()
    edited_mask(published)
    for command in (["method=consensus"], ["method=tall_mask", "method.load_mask=true"]):
        with pytest.raises(SystemExit):
            merge(run, *command)
        assert "masks changed since" in capsys.readouterr().err


def test_parts_of_hashes_that_either_side_does_not_tell_do_not_count():
    now = {"a": "1-2-3", "b": "1-2-", "c": "1--3"}
    assert results.changed({"a": "1", "b": "1-2-3", "c": "1-9-3"}, now) == []
    assert results.changed({"a": "1-9", "b": "8-2-3", "c": "1--4", "d": "5"}, now) == ["a", "b", "c"]


def test_results_without_fingerprints_are_unknown_not_stale(made, capsys):
    """As those that older versions wrote."""
    merge(made, "method=average")
    path = made.paths.result(f"merging/{tasks_name(made.suite, made.tasks)}/standard-visual/average")
    record = json.loads(path.read_text())
    del record["provenance"]["made_of"]
    path.write_text(results.encode(record))
    retrain(made, "signs")
    merge(made, "method=average")
    assert "there already" in capsys.readouterr().out


def test_accuracies_of_other_weights_are_no_denominators(made):
    eval_single_task.main([*flags(made), "--finetuning-mode=standard", "--overwrite"])
    Denominators.of(made, "standard", made.tasks)
    retrain(made, "signs")
    with pytest.raises(
        ResultError, match="found those of others: signs changed since; .*eval_single_task.*--overwrite"
    ):
        Denominators.of(made, "standard", made.tasks)
    Denominators.of(made, "standard", ("digits",))


def test_a_given_checkpoint_is_divided_by_its_own_accuracy(made):
    """And not by that of the run's own, which is made up here."""
    given = made.paths.checkpoint("signs", "standard").rename(made.paths.save / "mine.safetensors")
    finetuned = Denominators.of(made, "standard", TASKS, {"signs": str(given)}).finetuned
    for of_split in finetuned.values():
        assert of_split["digits"] == 0.5 != of_split["signs"]


def test_a_result_over_other_denominators_is_told(made, capsys):
    merge(made, "method=average")
    path = made.paths.single_task("standard")
    record = json.loads(path.read_text())
    path.write_text(results.encode(record | {"signs": 0.75}))
    with pytest.raises(SystemExit):
        merge(made, "method=average")
    assert "denominators changed since" in capsys.readouterr().err


@pytest.mark.parametrize(
    "module, name, told",
    [
        (Sum, "merge", "found another, which has come to this place since"),  # before the last of it is read
        (merging, "_write_vectors", "signs changed while the result was computed; nothing was written"),
    ],
    ids=["read", "used"],
)
def test_files_that_change_while_they_are_used_give_no_result(made, monkeypatch, capsys, module, name, told):
    function = getattr(module, name)

    def slow(*arguments):
        outcome = function(*arguments)
        retrain(made, "signs")
        return outcome

    monkeypatch.setattr(module, name, slow)
    with pytest.raises(SystemExit):
        merge(made, "method=sum")
    assert told in capsys.readouterr().err
    assert not list(made.paths.seed_results().rglob("sum.json"))


def test_masks_of_other_weights_are_refused(made, capsys):
    merge(made, "method=tall_mask")
    merge(made, "method=consensus")
    retrain(made, "signs")
    with pytest.raises(SystemExit):
        merge(made, "method=consensus", "overwrite=true")
    told = capsys.readouterr().err
    assert "expected masks of the checkpoints that are there, found those of others: signs changed since" in told
    assert "method=tall_mask" in told and "overwrite=True" in told


@pytest.mark.parametrize("method", ["ties", "tall_mask", "mag_masking", "sum", "ties +encoders.signs={}"])
def test_a_checkpoint_with_nan_is_named_before_work_and_leaves_no_result(made, method, capsys, monkeypatch):
    path = made.paths.checkpoint("signs", "standard")
    file = checkpoints.Checkpoint(path)
    weights, header = dict(file), dict(file.header)
    weights["model.visual.transformer.resblocks.0.mlp.c_fc.weight"][0, :5] = float("nan")
    with pytest.raises(CheckpointError, match="expected finite numbers, found NaN .*; nothing was written"):
        checkpoints.save(path, weights, header)
    del header["fingerprint"]
    with monkeypatch.context() as patch:  # as other programs, and older versions, wrote them
        patch.setattr(checkpoints, "WEIGHTS", ())
        checkpoints.save(path, weights, header)
    if "encoders" in method:  # given by name
        path = path.rename(made.paths.save / "mine.safetensors")
    with pytest.raises(SystemExit):
        merge(made, *f"method={method.format(path)}".split())
    assert f"{path}: expected finite numbers, found NaN" in capsys.readouterr().err
    assert not list((made.paths.seed_results() / "merging").rglob("*.json"))


def test_an_older_checkpoint_has_the_fingerprint_that_a_newer_says(made):
    path = made.paths.checkpoint("signs", "standard")
    file = checkpoints.Checkpoint(path)
    assert file.header["fingerprint"] == checkpoints.fingerprint(dict(file)) == checkpoints.known_fingerprint(file)


def test_a_short_fine_tuning_is_not_taken_for_a_whole_one(make_training, capsys):
    run, short = make_training("--steps=2", "--batch-size=2", "--tasks=signs")
    store.write_pretrained(run)
    finetune(run, "signs", short)
    finetune(run, "signs", short)
    assert "finished before" in capsys.readouterr().out
    for flag in ("--clip=1", "--epochs=1"):  # the usual number of steps, and another
        _, asked = make_training("--batch-size=2", "--tasks=signs", flag)
        with pytest.raises(CheckpointError, match=r"trained with .*steps 2 \(now \d+\)"):
            finetune(run, "signs", asked)


@pytest.mark.parametrize(
    "flag, word",
    [("overwrite", "no"), ("overwrite", "2"), ("skip_corrupt", "off"), ("wandb", "no"), ("tensorboard", "null")],
)
def test_what_is_neither_true_nor_false_is_refused(made, flag, word, capsys):
    merge(made, "method=average")
    files = {path: path.stat().st_mtime_ns for path in made.paths.seed_results().rglob("*")}
    with pytest.raises(SystemExit) as ended:
        merge(made, "method=average", f"{flag}={word}")
    assert ended.value.code == 2 and f"{flag}: expected true or false; got" in capsys.readouterr().err
    assert files == {path: path.stat().st_mtime_ns for path in made.paths.seed_results().rglob("*")}


def test_a_long_list_of_options_has_a_short_name_of_its_own(made, capsys):
    fine, finer = ([round(i / points, 4) for i in range(1, points)] for points in (61, 62))
    assert len(label(Sum(alphas=fine)).encode()) <= 160 and label(Sum(alphas=fine)) != label(Sum(alphas=finer))
    assert label(Sum(alphas=[0.5])) == "sum_alphas=-0.5-"
    for _ in range(2):
        merge(made, "method=sum", f"method.alphas={fine}".replace(" ", ""))
    assert "there already" in capsys.readouterr().out


def test_an_output_replaces_nothing_but_itself(made, tmp_path, capsys):
    output = tmp_path / "merged.safetensors"
    merge(made, "method=average", f"output={output}")
    merge(made, "method=average", f"output={output}")
    first = output.read_bytes()
    theirs = made.paths.checkpoint("signs", "standard")
    whole = theirs.read_bytes()
    for more in (["method=ties", f"output={output}"], ["method=average", f"output={theirs}", "overwrite=true"]):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            merge(made, *more)
        assert ended.value.code == 2 and "output: expected a name that is free" in capsys.readouterr().err
    assert output.read_bytes() == first and theirs.read_bytes() == whole
    assert checkpoints.header(output)["label"] == "average"


@pytest.mark.parametrize("name", ["../../x", "/x", ".x", "a/b", "", "a b"])
def test_a_result_stays_in_its_folder(made, name, capsys):
    output = made.paths.checkpoint("signs", "standard")
    with pytest.raises(SystemExit) as ended:
        eval_single_task.main([*flags(made), "--finetuning-mode=none", f"--encoder={output}", f"--name={name}"])
    assert ended.value.code == 2 and "--name" in capsys.readouterr().err


@pytest.mark.parametrize(
    "model, path, said",
    [
        ("ViT-B-32", "/nonexistent/mine.safetensors", "expected a file of weights, found none"),
        ("ViT-Mini", "/nonexistent/mine.safetensors", "has weights of its own"),
        ("ViT-Mini__pretrained__laion2b", None, "has one set of weights"),
    ],
)
def test_weights_that_were_named_are_loaded_or_refused(model, path, said):
    with pytest.raises(UsageError, match=said):
        Run.of(model, device="cpu", pretrained_path=path)


def test_hashes_are_of_the_numbers():
    weights = {"a": torch.from_numpy(np.arange(6.0))}
    assert checkpoints.fingerprint(weights) == checkpoints.fingerprint({"a": weights["a"].clone()})
