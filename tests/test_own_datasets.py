"""A data set of one's own, of one YAML file, becomes a task like any other."""

import pytest
import synthetic_results
import vision_files as files

from src.datasets import own, registry
from src.datasets.examples import DataError
from src.datasets.prepare import prepare
from src.merging import names
from src.reporting import tables
from src.reporting.runs import Runs
from src.run import Run, task_names
from src.runtime import results
from src.runtime.messages import UsageError
from src.runtime.paths import Places

CLASSES = ("big circle", "cross", "square")


@pytest.fixture
def shapes(tmp_path):
    """Folders of images, and the YAML that says where they are."""
    folders = [name.replace(" ", "_") for name in CLASSES]
    files.class_folders("shapes", tmp_path / "images", {"train": 20, "test": 4}, folders, "png")
    path = tmp_path / "config/shapes.yaml"
    files.put(path, f"train: {tmp_path}/images/train\ntest: {tmp_path}/images/test\nepochs: 3\n")
    return path


def test_class_folders(shapes, tmp_path):
    facts, row = own.read(shapes)
    assert row.classnames == CLASSES and row.templates == ("a photo of a {}.",) and row.epochs == 3
    record = prepare(facts, tmp_path / "data")
    assert record.published and not record.other_validation
    assert [record.size(split) for split in ("train", "val", "test")] == [54, 6, 12]
    for split in ("train", "val", "test"):
        examples = row.load(split, tmp_path / "data", 0)
        assert all(files.shown(examples[i]) == examples.labels[i] for i in range(len(examples)))


def test_class_folders_of_test_are_those_of_train(shapes, tmp_path):
    """As many, but others: by their places labels would be of other classes."""
    (tmp_path / "images/test/cross").rename(tmp_path / "images/test/a_cross")
    with pytest.raises(DataError, match="expected folders named as the classes: big_circle, .* 1 others: a_cross"):
        prepare(own.read(shapes)[0], tmp_path / "data")


def test_of_the_hub(tmp_path):
    files.put(tmp_path / "digits.yaml", "hub: somebody/digits\nlabel: cls\nclassnames: [zero, one]\n")
    facts, row = own.read(tmp_path / "digits.yaml")
    assert facts.mirror.repo == "somebody/digits" and facts.mirror.label == "cls" and row.classnames == ("zero", "one")


def test_it_is_a_task_of_the_vision_suite(shapes, monkeypatch):
    good, wrong = own.read_all(shapes.parent)
    assert not wrong
    monkeypatch.setitem(registry.ROWS, "shapes", good["shapes"][1])
    assert task_names("shapes,MNIST", registry.suite("vision")) == ("shapes", "MNIST")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train: [", "expected YAML, found"),
        ("[" * 2000, "expected YAML, found RecursionError"),
        ("- a\n", "expected keys such as train and test, found list"),
        ("train: a\n", "expected the folders train and test, or hub: owner/name; found train"),
        ("train: a\ntest: b\n", "expected a folder of images for each class in .*a, found none"),
        ("train: a\ntest: b\nclases: [x]\n", "expected keys among classnames, .* found clases"),
        ("hub: a/b\n", "expected classnames, in the order of the labels of a/b, found none"),
        ("hub: a/b\nclassnames: [x]\ntemplates: ['a photo']\n", "expected templates as texts with one {}"),
    ],
)
def test_a_file_that_makes_no_sense_is_told_when_its_set_is_asked_for(tmp_path, text, told, monkeypatch):
    files.put(tmp_path / "mine.yaml", text)
    good, wrong = own.read_all(tmp_path)
    assert not good
    monkeypatch.setattr(registry, "WRONG", wrong)
    registry.get("MNIST")  # the others work
    for ask in (lambda: registry.get("mine"), lambda: task_names("mine", registry.suite("vision"))):
        with pytest.raises(UsageError, match=f"mine.yaml: {told}"):
            ask()


def test_folders_that_are_gone_are_told(shapes, tmp_path):
    facts, _ = own.read(shapes)
    (tmp_path / "images").rename(tmp_path / "moved")
    with pytest.raises(DataError, match="shapes has no mirror: expected its images in .*images/train"):
        prepare(facts, tmp_path / "data")


def test_a_class_without_images_is_told(shapes, tmp_path):
    facts, _ = own.read(shapes)
    for image in (tmp_path / "images/test/cross").iterdir():
        image.unlink()
    with pytest.raises(DataError, match="test part|cross"):
        prepare(facts, tmp_path / "data")


def test_results_on_it_stand_in_tables(shapes, monkeypatch, tmp_path):
    """Merged with a task of the papers, in a table of their own, beside no published numbers."""
    row = own.read(shapes)[1]
    monkeypatch.setitem(registry.ROWS, "shapes", row)
    run = Run("vision", "ViT-B-32", 1, ("shapes", "MNIST"), Places(results=tmp_path))
    single = {"shapes": 0.9, "shapesVal": 0.9, "MNIST": 0.8, "MNISTVal": 0.8}
    about = {"losses": single, "n": dict.fromkeys(single, 10), "control_per_task": {}, "no_control": "not prepared"}
    for mode in ("none", "standard"):
        results.write(run.paths.single_task(mode), single | about, run.config(finetuning_mode=mode), 0.0)
    merged = synthetic_results.merged("sum", run.tasks, "standard", 1, 0.7)
    name = names.folder("vision", run.tasks, "standard", "visual")
    results.write(run.paths.result(f"{name}/sum"), merged, run.config(finetuning_mode="standard", scope="visual"), 0.0)
    made = {table.name: table for table in tables.make(Runs("vision", "ViT-B-32", tmp_path))}
    assert ["shapes", "90.0", "90.0"] in [row[:3] for row in made["single_task"].texts()]
    (of_own,) = [table for name, table in made.items() if name.startswith("merging_2_")]
    assert "Merging 2 tasks (shapes, MNIST)" in of_own.full_caption
    assert not any("[" in cell for row in of_own.texts() for cell in row)
