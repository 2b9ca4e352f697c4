"""Heads go with the checkpoints that were fine-tuned against them, and accuracies with the published ones."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import vision_files as files

from src import checkpoints, heads, store
from src.datasets import loading, registry
from src.datasets.classnames import CLASSNAMES
from src.datasets.fusion_bench import NAMES
from src.datasets.prepare import prepare
from src.datasets.vision import FACTS
from src.experiments import single_task
from src.experiments.leaks import leaks_record
from src.experiments.published_accuracy import doubts, expected
from src.merging.problem import Source, read_problem
from src.reporting import tables
from src.run import Run
from src.runtime.paths import Places


def test_fusion_bench_names_seven_sets_otherwise():
    assert set(NAMES) == {"CIFAR100", "FashionMNIST", "FER2013", "Flowers102", "Food101", "KMNIST", "OxfordIIITPet"}
    differing = {name: [i for i, c in enumerate(CLASSNAMES[name]) if c != NAMES[name][i]] for name in NAMES}
    assert differing["CIFAR100"] == [26] and differing["Flowers102"] == [15, 59, 92] and len(differing["KMNIST"]) == 10
    assert NAMES["KMNIST"] == ("お", "き", "す", "つ", "な", "は", "ま", "や", "れ", "を")
    assert NAMES["FER2013"][4:] == ("neutral", "sad", "surprised")
    # It takes the mirror's raw labels, whose order of these two is not its own: it learned them swapped.
    assert CLASSNAMES["Food101"][16:18] == ("cheese_plate", "cheesecake")
    assert NAMES["Food101"][16:18] == ("cheesecake", "cheese plate") and NAMES["Food101"][1] == "baby back ribs"
    for name, names in NAMES.items():
        assert len(names) == len(CLASSNAMES[name])
        assert registry.get(name).names("fusion_bench") == names
        assert registry.get(name).names("tall") == registry.get(name).names(None) == CLASSNAMES[name]


@pytest.fixture
def renamed(monkeypatch):
    """A task of mini whose classes a publisher calls otherwise."""
    row = registry.get("signs")
    other = tuple(f"the {name}" for name in row.classnames)
    monkeypatch.setitem(registry.ROWS, "signs", registry.Dataset(**vars(row) | {"names_of": {"fusion_bench": other}}))


def published_checkpoint(run, task, publisher, path=None):
    start = dict(store.pretrained(run))
    header = dict(model=run.model, task=task, mode="standard", seed=run.seed)
    header |= {"provenance": {"publisher": publisher}} if publisher else {}
    checkpoints.save(path or run.paths.checkpoint(task, "standard"), start, header)


def test_a_head_has_the_names_of_its_checkpoints_publisher(make_run, renamed):
    run = make_run("--tasks", "signs", "land")
    ours = heads.get_classification_head(run, "signs").weight
    published_checkpoint(run, "land", "fusion_bench")  # what has no checkpoint of its own goes with the others
    theirs = heads.get_classification_head(run, "signs").weight
    assert not torch.equal(ours, theirs)
    header = checkpoints.header(run.paths.head("signs"))
    assert header["classnames"] == [f"the {name}" for name in registry.get("signs").classnames]
    published_checkpoint(run, "signs", None)
    torch.testing.assert_close(heads.get_classification_head(run, "signs").weight, ours, rtol=0, atol=0)


def test_a_checkpoint_of_another_head_is_not_merged(make_run, renamed, tmp_path):
    run = make_run("--tasks", "signs", "land")
    for task in run.tasks:
        published_checkpoint(run, task, None)
    foreign = tmp_path / "signs.safetensors"
    published_checkpoint(run, "signs", "fusion_bench", foreign)
    with pytest.raises(checkpoints.CheckpointError, match="found one of fusion_bench, whose class names are others"):
        read_problem(run, Source(encoders=(("signs", str(foreign)),)))
    published_checkpoint(run, "land", "fusion_bench", foreign)  # of the same names
    read_problem(run, Source(encoders=(("land", str(foreign)),)))


@pytest.mark.parametrize("told", [True, False])
def test_a_checkpoint_of_another_start_is_not_merged(make_run, tmp_path, told):
    """By its header where that says where it began, else by its weights."""
    run = make_run("--tasks", "signs")
    foreign, start = tmp_path / "foreign.safetensors", dict(store.pretrained(run))
    header = dict(model=run.model, task="signs", mode="standard", provenance={"file": "theirs.pt"})
    header |= {"began_at": "0" * 16} if told else {}
    other = {name: torch.randn_like(w) if name.startswith("model.visual.") else w for name, w in start.items()}
    checkpoints.save(foreign, other, header)
    reason = "began at other weights .*; give the weights that it began at" if told else "weights near those of the pre"
    with pytest.raises(checkpoints.CheckpointError, match=f"{foreign}: .*{reason}"):
        read_problem(run, Source(encoders=(("signs", str(foreign)),)))
    checkpoints.save(foreign, start, header | {"began_at": None})
    read_problem(run, Source(encoders=(("signs", str(foreign)),)))


def test_a_head_of_another_number_of_classes_is_refused(make_run):
    run = make_run("--tasks", "signs")
    heads.get_classification_head(run, "signs")
    path = run.paths.head("signs")
    header = checkpoints.header(path)
    weight = checkpoints.load(path, kind="head")["weight"]
    checkpoints.save(path, {"weight": weight[1:]}, header, kind="head")
    with pytest.raises(checkpoints.CheckpointError, match="expected a head of the .* classes of signs, found one of"):
        heads.get_classification_head(run, "signs")


@pytest.fixture
def vision(tmp_path):
    def make(model="ViT-B-32", **fields):
        return Run("vision", model, 1, ("MNIST",), Places(save=tmp_path / "save"), **fields)

    return make


def publish(run, task, publisher):
    header = {"model": run.model, "task": task, "mode": "standard", "provenance": {"publisher": publisher}}
    checkpoints.save(run.paths.checkpoint(task, "standard"), {"w": torch.zeros(1)}, header)


def record(dataset, accuracy, n):
    return {dataset: accuracy, "n": {dataset: n}}


def test_zero_shot_accuracies_are_held_against_the_published_ones(vision):
    run = vision()
    assert doubts(run, "none", record("MNIST", 0.4826, 10000)) == []
    assert doubts(run, "none", record("MNIST", 0.4826 - 0.0149, 10000)) == []
    (told,) = doubts(run, "none", record("MNIST", 0.10, 10000))
    assert "MNIST: expected the published accuracy of 48.3 % within 1.5 points, found 10.0 %" in told
    assert "labels of another order" in told and "python -m src.datasets check MNIST" in told
    assert doubts(run, "none", record("EuroSAT", 0.4300, 2700)) == []  # another split: 4 points
    assert len(doubts(run, "none", record("EuroSAT", 0.4200, 2700))) == 1
    assert len(doubts(run, "none", record("ImageNet", 0.60, 50000))) == 1  # 63.35 published
    assert doubts(run, "none", record("MNIST", 0.10, 20)) == []  # a part of it: told when it was prepared
    # What was published is not for these: another model, a random tower, the embedded suite.
    for other in ("ViT-B-32__init__", "ViT-B-32__pretrained__laion2b_e16", "ViT-Mini", "ViT-S-32-alt"):
        assert doubts(vision(other), "none", record("MNIST", 0.10, 10000)) == []


def test_the_evaluation_tells_what_is_doubtful(make_run, monkeypatch, capsys):
    run = make_run("--tasks", "signs")
    monkeypatch.setattr(single_task, "carry_out", lambda *_: {"signs": 0.1})
    monkeypatch.setattr(
        single_task, "doubts", lambda run, mode, record: [f"signs: expected more than {record['signs']}"]
    )
    single_task.evaluate_single_tasks(run, "none", control="never")
    assert "warning: signs: expected more than 0.1" in capsys.readouterr().err
    foreign = dict(encoder=Path("x.safetensors"), name="mine", control="never")  # no published number is of it
    single_task.evaluate_single_tasks(run, "standard", **foreign)
    assert "warning" not in capsys.readouterr().err


def test_fine_tuned_accuracies_are_held_against_their_publishers(vision):
    run = vision()
    assert doubts(run, "standard", record("MNIST", 0.5, 10000)) == []  # fine-tuned here
    publish(run, "MNIST", "fusion_bench")
    assert expected(run, "standard", "MNIST") == 99.58 and expected(run, "none", "MNIST") == 48.26
    assert expected(run, "none", "OxfordIIITPet") == 83.32  # 87.49 with the papers' names
    assert len(doubts(run, "standard", record("MNIST", 0.98, 10000))) == 1
    publish(run, "DTD", "tall")
    assert expected(run, "standard", "DTD") is None  # which has seen test images


def test_results_say_where_validation_may_hold_training_images(make_run, monkeypatch, tmp_path):
    run = make_run("--tasks", "signs", "land", "digits")
    monkeypatch.setattr(loading, "other_validation", lambda run, task: "" if task == "digits" else "another order")
    published_checkpoint(run, "signs", "tall")
    published_checkpoint(run, "land", None)  # fine-tuned here, on this very split
    published_checkpoint(run, "digits", "tall")
    told = {"signs": "validation may hold training images: another order"}
    assert leaks_record(run, "standard") == leaks_record(run, "posthoc") == {"leaks": told}
    assert leaks_record(run, "none") == leaks_record(run, "linear") == {}
    foreign = tmp_path / "land.safetensors"
    published_checkpoint(run, "land", "tall", foreign)
    assert set(leaks_record(run, "standard", {"land": str(foreign)})["leaks"]) == {"signs", "land"}


def test_tables_carry_the_mark():
    def runs(*records):
        return SimpleNamespace(read=[SimpleNamespace(record=record) for record in records])

    assert tables.leaks(runs({}, {"tasks": []})) == ()
    (note,) = tables.leaks(runs({"leaks": {"DTD": "why"}}, {"leaks": {"DTD": "why", "STL10": "order"}}))
    assert note.startswith("Not clean") and "DTD: why; STL10: order." in note


def test_a_run_that_reads_a_record_tells_its_validation(tmp_path):
    files.OFFICIAL["MNIST"](tmp_path)
    prepare(FACTS["MNIST"], tmp_path, "official", as_is=True)
    run = Run("vision", "ViT-B-32", 1, ("MNIST",), Places(data=tmp_path))
    assert "published images" in loading.other_validation(run, "MNIST") and loading.other_validation(run, "DTD") == ""
