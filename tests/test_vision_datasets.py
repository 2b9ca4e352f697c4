"""The 20 vision data sets and the control: rows, official formats, mirrors, splits, and what goes wrong with them."""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import socket
import threading
import urllib.error
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import vision_files as files
from PIL import Image

from src import checkpoints, store
from src.datasets import __main__ as command
from src.datasets import arrow, hub, loading, mirrored, official
from src.datasets.base import validation_indices
from src.datasets.download import Download
from src.datasets.examples import BadFile, CorruptImage, DataError, Subset, digest
from src.datasets.prepare import prepare
from src.datasets.record import Record, load
from src.datasets.splits import cut
from src.datasets.status import state
from src.datasets.templates import TEMPLATES
from src.datasets.vision import CONTROL, FACTS, ROWS, TASKS
from src.run import Run
from src.runtime import results
from src.runtime.files import file_hash
from src.runtime.paths import Places

ROW = {row.name: row for row in ROWS}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing here may reach out: a connection fails as it does without a network."""

    def refuse(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def prepared(name: str, root: Path, source: str = "official"):
    (files.OFFICIAL[name] if source == "official" else lambda root: files.hub(name, root))(root)
    return prepare(FACTS[name], root, source, as_is=True)


def check_images(name: str, root: Path) -> dict[str, np.ndarray]:
    """Load the three splits through the row; every image must show its label. Returns the labels."""
    found = {}
    for split in ("train", "val", "test"):
        examples = ROW[name].load(split, root, 0)
        found[split] = examples.labels
        assert len(examples) == len(found[split]) > 0
        assert found[split].dtype == np.int64
        for index in range(min(len(examples), 60)):
            image = examples[index]
            assert image.mode == "RGB"
            assert files.shown(image, name in files.GREY) == found[split][index]
    return found


# Rows


def test_tasks_stand_in_the_published_order():
    assert TASKS == tuple(
        "Cars DTD EuroSAT GTSRB MNIST RESISC45 SVHN SUN397 STL10 OxfordIIITPet Flowers102 CIFAR100 PCAM FER2013 "
        "CIFAR10 Food101 FashionMNIST RenderedSST2 EMNIST KMNIST".split()
    )
    assert [row.name for row in ROWS] == [*TASKS, CONTROL, "EMNIST_letters", "FER2013_corrected"]


def test_rows_are_complete():
    classes = (196, 47, 10, 43, 10, 45, 10, 397, 10, 37, 102, 100, 2, 7, 10, 101, 10, 2, 10, 10, 1000, 26, 7)
    epochs = (35, 76, 12, 11, 5, 15, 4, 14, 60, 82, 147, 6, 1, 10, 6, 4, 5, 39, 2, 5, None, 2, 10)
    assert tuple(len(row.classnames) for row in ROWS) == classes
    assert tuple(row.epochs for row in ROWS) == epochs
    for row in ROWS:
        assert row.suite == "vision" and row.about["licence"] and row.about["source"].startswith("http")
        assert row.templates and all(template.count("{}") == 1 for template in row.templates)
        assert FACTS[row.name].mirror and FACTS[row.name].layouts
        assert FACTS[row.name].downloads or FACTS[row.name].by_hand
        for count in FACTS[row.name].counts.values():
            assert isinstance(count, int) or len(count) == len(row.classnames)


def test_published_sizes():
    sizes = {
        name: [count if isinstance(count, int) else sum(count) for count in facts.counts.values()]
        for name, facts in FACTS.items()
    }
    assert sizes["DTD"] == [3760, 1880] and sizes["EuroSAT"] == [21600, 2700, 2700, 27000]
    assert sizes["MNIST"] == [60000, 10000] and sizes["SVHN"] == [73257, 26032] and sizes["GTSRB"] == [26640, 12630]
    assert sizes["SUN397"] == [19850, 19850] and sizes["RESISC45"] == [18900, 6300] and sizes["Cars"] == [8144, 8041]
    assert sizes["FER2013"] == [28709, 7178] and sizes["RenderedSST2"] == [6920, 1821]
    assert sizes["EMNIST"] == [240000, 40000] and sizes["EMNIST_letters"] == [124800, 20800]
    assert sizes["Food101"] == [75750, 25250] and sizes["PCAM"] == [262144, 32768]


def test_imagenet_speaks_as_open_clip_does():
    from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

    assert ROW["ImageNet"].classnames == tuple(IMAGENET_CLASSNAMES)
    assert sorted(TEMPLATES["ImageNet"]) == sorted(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


def test_rows_travel_to_other_processes():
    assert all(pickle.dumps(row) for row in ROWS)


# Formats


@pytest.mark.parametrize("name", FACTS)
def test_official_files(name, tmp_path):
    if name == "PCAM":
        pytest.importorskip("h5py")
    record = prepared(name, tmp_path)
    assert record.source == "official" and not record.published
    found = check_images(name, tmp_path)
    assert [len(labels) for labels in found.values()] == [record.size(split) for split in found]
    if name not in ("EuroSAT", "DTD"):
        assert len(found["val"]) == (len(found["train"]) + len(found["val"])) // 10


@pytest.mark.parametrize("name", FACTS)
def test_mirrors(name, tmp_path):
    record = prepared(name, tmp_path, "hub")
    assert record.origin == f"{FACTS[name].mirror.repo}@0123456789abcdef"
    found = check_images(name, tmp_path)
    labels = files.labels_of(name, 24)
    assert sorted(np.concatenate([found["train"], found["val"]])) == sorted(labels)


def folder_names(name: str) -> list[str]:
    """What the published code calls the folders of the classes, in the order of the labels."""
    if name == "EuroSAT":
        return list(files.EUROSAT)
    if name == "ImageNet":
        return files.synsets()
    return [(f"{c[0]}_{c}" if name == "SUN397" else c).replace(" ", "_") for c in files.CLASSNAMES[name]]


IN_FOLDERS = [
    ("DTD", "dtd", {"train": 2, "val": 1}),
    ("SUN397", "sun397", {"train": 1, "val": 1}),
    ("EuroSAT", "EuroSAT_splits", {"train": 2, "val": 1, "test": 1}),
    ("ImageNet", "imagenet", {"train": 1, "val_in_folder": 1}),
]


@pytest.mark.parametrize(("name", "folder", "parts"), IN_FOLDERS)
def test_class_folders_of_other_names_are_refused(name, folder, parts, tmp_path):
    """By place in the alphabet 0, 1, 10, 11, 2, ... would give nearly every class another's name."""
    numbered = [str(label) for label in range(len(files.CLASSNAMES[name]))]
    files.class_folders(name, tmp_path / folder, parts, numbered)
    with pytest.raises(DataError, match="expected folders named as the classes: .*, found .* others: 0, 1, "):
        prepare(FACTS[name], tmp_path, "official", as_is=True)


def test_numbered_folders_of_traffic_signs_have_five_digits(tmp_path):
    files.OFFICIAL["GTSRB"](tmp_path)
    for folder in sorted((tmp_path / "gtsrb/GTSRB/Training").iterdir()):
        folder.rename(folder.with_name(str(int(folder.name))))
    with pytest.raises(DataError, match="expected class folders 00000 to 00042, found others: 10, 11"):
        prepare(FACTS["GTSRB"], tmp_path, "official", as_is=True)


def test_class_folders_are_matched_by_name_not_by_place(tmp_path):
    """Case and separators may differ, and with them the order: "sea-lake" stands behind "annualcrop"."""
    spelt = [
        f"{name.lower()[:3]}-{name.upper()[3:]}" if number % 2 else name for number, name in enumerate(files.EUROSAT)
    ]
    files.class_folders("EuroSAT", tmp_path / "EuroSAT_splits", {"train": 2, "val": 1, "test": 1}, spelt)
    prepare(FACTS["EuroSAT"], tmp_path, "official", as_is=True)
    check_images("EuroSAT", tmp_path)
    assert sorted(spelt) != spelt


@pytest.mark.parametrize(("name", "folder", "parts"), IN_FOLDERS)
def test_folders_that_the_published_code_reads(name, folder, parts, tmp_path):
    files.class_folders(name, tmp_path / folder, parts, folder_names(name))
    prepare(FACTS[name], tmp_path, "official", as_is=True)
    found = check_images(name, tmp_path)
    if name == "EuroSAT":
        assert [len(labels) for labels in found.values()] == [20, 10, 10]


def test_kaggles_two_csv_files_agree(tmp_path):
    for file in files.FER_HEADERS:
        files.fer2013(tmp_path / file, file)
        prepare(FACTS["FER2013"], tmp_path / file, "official", as_is=True)
        check_images("FER2013", tmp_path / file)
    assert all(
        np.array_equal(
            load(FACTS["FER2013"], split, tmp_path / a).labels, load(FACTS["FER2013"], split, tmp_path / b).labels
        )
        for a, b in [files.FER_HEADERS]
        for split in ("train", "val", "test")
    )


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_cifar_batches_of_newer_pythons(protocol, tmp_path):
    files.OFFICIAL["CIFAR10"](tmp_path)
    files.put(tmp_path / "cifar-10-batches-py/test_batch", files.modern_batch([1, 2, 3], "labels", protocol))
    prepare(FACTS["CIFAR10"], tmp_path, "official", as_is=True)
    assert check_images("CIFAR10", tmp_path)["test"].tolist() == [1, 2, 3]


class Hostile:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def nested(value: int, depth: int) -> list:
    """10^depth values in a file of a few bytes: each list holds the one below ten times."""
    for _ in range(depth):
        value = [value] * 10
    return value


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ({"data": Hostile(), "labels": [0]}, "names .* take it for hostile"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [Hostile()]}, "names .* take it for hostile"),
        ({"data": np.zeros((10, 3072), np.uint8), "labels": nested(0, 12)}, "int.. argument"),
        ({"data": nested(0, 12), "labels": [0]}, "expected an array of bytes, found a list"),
        ({"data": np.zeros((1, 3072)), "labels": [0]}, "another type"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, r"\(2, 3072\) for 1 labels"),
        ({"data": np.zeros((1, 3072), np.uint8)}, "'labels'"),
        ([1, 2], "list indices"),
    ],
)
def test_a_hostile_or_odd_cifar_batch_is_set_aside_and_not_executed(tmp_path, monkeypatch, batch, reason):
    monkeypatch.chdir(tmp_path)
    files.OFFICIAL["CIFAR10"](tmp_path)
    path = tmp_path / "cifar-10-batches-py/data_batch_3"
    path.write_bytes(pickle.dumps(batch))
    expected = r"data_batch_3: expected a pickled CIFAR batch with 'data' and 'labels', found .*"
    with pytest.raises(DataError, match=rf"{expected}{reason}(?s:.)*Set aside as data_batch_3.bad"):
        prepare(FACTS["CIFAR10"], tmp_path, "official", as_is=True)
    assert not Path("executed").exists() and not path.exists() and path.with_name("data_batch_3.bad").exists()


def test_mirror_classes_in_another_order(tmp_path):
    files.hub("RenderedSST2", tmp_path, names=["positive", "negative"])
    prepare(FACTS["RenderedSST2"], tmp_path, "hub", as_is=True)
    check_images("RenderedSST2", tmp_path)


def test_mirror_classes_spelt_otherwise(tmp_path):
    more = [f"class_{number}" for number in range(8)]
    order = mirrored.class_order(
        ["T - shirt / top", "Trouser", *more, "Skirt"], ("Trouser", "T-shirt/top", *more, "Dress")
    )
    assert order.tolist() == [1, 0, *range(2, 11)]
    with pytest.raises(DataError, match="classes do not fit: expected 3.*found 2"):
        mirrored.class_order(["a", "b"], ("a", "b", "c"))
    with pytest.raises(DataError, match="classes do not fit"):
        mirrored.class_order(["b", *more, "c", "x"], ("a", *more, "b", "c"))
    for names in ([f"sign {n}" for n in range(43)], files.CLASSNAMES["CIFAR100"][:43]):  # foreign, though one to one
        with pytest.raises(DataError, match="0 are called the same. .* take --source official"):
            mirrored.class_order(list(names), files.CLASSNAMES["GTSRB"])


def test_mirror_classes_with_longer_names():
    ours = files.CLASSNAMES["ImageNet"]
    theirs = [f"{name}, Latin name" for name in ours]
    mirrored.check_longer_names(theirs, ours)
    mirrored.check_longer_names(["another word"] * 300 + theirs[300:], ours)
    for wrong in (theirs[1:] + theirs[:1], theirs[::-1], theirs[:-1]):
        with pytest.raises(DataError, match="classes do not fit: expected 1000 in the order of tench"):
            mirrored.check_longer_names(wrong, ours)
    assert not FACTS["KMNIST"].mirror.longer_names and FACTS["KMNIST"].mirror.classes[0] == "お"


# The published validation split


def test_a_mirror_is_brought_into_the_official_order_by_its_file_names():
    mirror = FACTS["DTD"].mirror
    names = ["banded_0002.jpg", "blotchy_0001.jpg", "banded_0001.jpg"]
    rows, official = mirrored.official_order(mirror, names, np.array([0, 1, 0]), "train")
    assert rows.tolist() == [2, 0, 1] and official
    for unknown in (["banded_0002.jpg", "", "banded_0001.jpg"], ["a.jpg", "b.jpg", "c.jpg"], [], names[:1] * 3):
        rows, official = mirrored.official_order(mirror, unknown, np.array([0, 1, 0]), "train")
        assert rows.tolist() == [0, 1, 2] and not official
    cars = mirrored.official_order(
        FACTS["Cars"].mirror, ["00003.jpg", "00001.jpg", "00002.jpg"], np.array([0, 5, 3]), "train"
    )
    assert cars[0].tolist() == [1, 2, 0] and cars[1]  # by number alone: official annotations go round the classes
    imagenet = ["n01440764_18_n01440764.JPEG", "n01440764_180_n01440764.JPEG", "n01440764_2_n01440764.JPEG"]
    rows, official = mirrored.official_order(FACTS["ImageNet"].mirror, imagenet, np.array([0, 0, 0]), "train")
    assert official and [imagenet[i].split("_")[1] for i in rows] == ["18", "180", "2"]  # as n01440764_18.JPEG sorts


def test_a_mirror_in_the_official_order_is_known_by_its_first_labels():
    mirror = FACTS["CIFAR10"].mirror
    first = [6, 9, 9, 4, 1, 1, 2, 7, 8, 3, 7]
    assert mirrored.official_order(mirror, [], np.array(first), "train")[1]
    assert not mirrored.official_order(mirror, [], np.array(first[::-1]), "train")[1]


@pytest.mark.parametrize(
    ("name", "source", "reason"),
    [
        ("KMNIST", "official", ""),
        ("MNIST", "official", "its training images stand in another order than the official ones"),
        ("DTD", "official", ""),
        ("FER2013", "official", "Kaggle's csv"),
        ("EuroSAT", "official", "no official split"),
        ("STL10", "hub", "tanganke/stl10 are not known to stand in the official order"),
        ("FER2013", "hub", "wds_fer2013 are not known"),
    ],
)
def test_the_record_says_whether_validation_is_the_published_one(name, source, reason, tmp_path):
    (files.OFFICIAL[name] if source == "official" else lambda root: files.hub(name, root))(tmp_path)
    record = _prepare_counted(FACTS[name], tmp_path, source)
    assert reason in record.other_validation and bool(reason) == bool(record.other_validation)
    assert len(record.train_labels) == 64
    assert Record.read(FACTS[name], tmp_path) == record


@pytest.mark.parametrize("official", [True, False])
def test_a_mirror_is_held_to_the_hash_of_all_official_labels_where_that_is_known(tmp_path, official):
    """The first labels are the same; one further on is not."""
    files.hub("MNIST", tmp_path)
    labels = FACTS["MNIST"].read("hub", tmp_path, "train").labels.copy()
    if not official:
        labels[[-1, -2]] = labels[[-2, -1]]
    known = digest([labels.tobytes()])
    record = _prepare_counted(dataclasses.replace(FACTS["MNIST"], train_labels=known), tmp_path, "hub")
    assert (record.train_labels == known) == official
    assert bool(record.other_validation) != official
    assert official or "ylecun/mnist stand in another order than the official ones" in record.other_validation


def test_hashes_of_labels_are_known_of_four_sets():
    known = {name for name, facts in FACTS.items() if facts.train_labels}
    assert known == {"Cars", "MNIST", "FashionMNIST", "EMNIST_letters"}
    assert not any(FACTS[name].mirror.first_labels for name in known)  # of which the hash tells more


def test_part_of_a_set_has_no_published_validation(tmp_path):
    assert "does not hold the published images" in prepared("MNIST", tmp_path).other_validation


def stroke(monkeypatch, upright: bool) -> np.ndarray:
    """What every image of a mirror's files is then: a bar that stands, or lies."""
    bar = np.zeros((28, 28), np.uint8)
    bar[4:24, 13:15] = 255
    drawn = bar if upright else bar.T
    stream = io.BytesIO()
    Image.fromarray(drawn).save(stream, "PNG")
    monkeypatch.setattr(files, "encoded", lambda *_: stream.getvalue())
    return drawn


@pytest.mark.parametrize("upright", [True, False])
def test_digits_lie_on_their_side_whatever_a_mirror_does(tmp_path, upright, monkeypatch):
    """The published code leaves EMNIST's official images on their side; a mirror may have turned them upright."""
    drawn = stroke(monkeypatch, upright)
    files.hub("EMNIST", tmp_path)
    record = prepare(FACTS["EMNIST"], tmp_path, "hub", as_is=True)
    (remark,) = record.remarks
    assert ("upright; the official files have them on their side, and they are turned so" in remark) == upright
    shown = np.asarray(ROW["EMNIST"].load("test", tmp_path, 0)[0].convert("L"))
    assert np.array_equal(shown, drawn.T if upright else drawn)


@pytest.mark.parametrize("upright", [True, False])
def test_letters_stay_as_the_mirror_has_them(tmp_path, upright, monkeypatch):
    """The checkpoints of its publisher were fine-tuned on them; how they lie is told."""
    drawn = stroke(monkeypatch, upright)
    monkeypatch.setattr(files, "labels_of", lambda name, count: [8] * count)
    files.hub("EMNIST_letters", tmp_path)
    (remark,) = prepare(FACTS["EMNIST_letters"], tmp_path, "hub", as_is=True).remarks
    assert ("they stay as checkpoints were fine-tuned on them" in remark) == upright
    shown = np.asarray(ROW["EMNIST_letters"].load("test", tmp_path, 0)[0].convert("L"))
    assert np.array_equal(shown, drawn)


@pytest.mark.parametrize("name", ["EMNIST", "EMNIST_letters"])
def test_emnist_comes_file_by_file_and_else_in_the_archive(name, tmp_path, server, capsys):
    """540 MB for all six of its sets."""
    files.OFFICIAL[name](tmp_path / "theirs")
    part = "digits" if name == "EMNIST" else "letters"
    theirs = {path.name.removesuffix(".gz"): path for path in (tmp_path / "theirs").rglob(f"emnist-{part}-*")}
    loads = []
    for one in FACTS[name].downloads:
        path = theirs[one.path(tmp_path).name.removesuffix(".gz")]
        server[one.url] = path.read_bytes() if path.suffix == ".gz" else gzip.compress(path.read_bytes())
        loads.append(dataclasses.replace(one, digest=hashlib.sha256(server[one.url]).hexdigest()))
    with zipfile.ZipFile(tmp_path / "gzip.zip", "w") as archive:
        for one in loads:
            archive.writestr(f"gzip/{one.path(tmp_path).name}", server[one.url])
    (whole,) = FACTS[name].otherwise
    whole = dataclasses.replace(whole, digest=file_hash(tmp_path / "gzip.zip", "md5"))
    server[whole.url] = (tmp_path / "gzip.zip").read_bytes()
    facts = dataclasses.replace(FACTS[name], downloads=tuple(loads), otherwise=(whole,))
    prepare(facts, tmp_path / "one by one", "official", as_is=True)
    assert not list((tmp_path / "one by one").rglob("*.zip"))
    del server[loads[-1].url]
    prepare(facts, tmp_path / "in the archive", "official", as_is=True)
    assert f"{name}: taking {whole.url}" in capsys.readouterr().out
    for folder in ("one by one", "in the archive"):
        assert len(check_images(name, tmp_path / folder)["test"]) == 6
    del server[whole.url]
    with pytest.raises(DataError, match="cannot download .*gzip.zip"):
        prepare(facts, tmp_path / "nowhere", "official", as_is=True)


def test_orientation_that_cannot_be_told_is_said(tmp_path):
    (remark,) = prepared("EMNIST", tmp_path, "hub").remarks  # images of one colour
    assert "cannot be told" in remark
    check_images("EMNIST", tmp_path)


@pytest.mark.parametrize(("part", "refused"), [(0.005, False), (0.02, True)])
def test_a_few_leaks_are_told_and_more_are_refused(part, refused, tmp_path, monkeypatch):
    files.OFFICIAL["DTD"](tmp_path)
    monkeypatch.setattr("src.datasets.prepare.find_leaks", lambda *_: [("a", "b")] * round(part * 10000))
    monkeypatch.setattr("src.datasets.prepare.split_size", lambda *_: 10000)
    if refused:
        with pytest.raises(DataError, match="leaks: 200 images stand in two splits"):
            _prepare_counted(FACTS["DTD"], tmp_path, "official")
    else:
        record = _prepare_counted(FACTS["DTD"], tmp_path, "official")
        assert record.published and record.remarks == ["50 images stand in two splits"]


def test_a_record_survives_what_is_stopped_and_a_network_that_fails(tmp_path, fake_hub, monkeypatch):
    root = tmp_path / "data"
    before = prepare(FACTS["SVHN"], root, "hub", as_is=True)
    monkeypatch.setattr("src.datasets.prepare.fetch_files", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert prepare(FACTS["SVHN"], root, "hub", as_is=True) == before  # ready: nothing is fetched or hashed
    with pytest.raises(KeyboardInterrupt):
        prepare(FACTS["SVHN"], root, "hub", as_is=True, verify=True)
    assert Record.read(FACTS["SVHN"], root) == before


# Splits


def test_the_published_validation_split():
    train, validation = validation_indices(60000)
    assert train[0] == 36044 and len(validation) == 5000
    record = cut({"train": _Labels(60000), "test": _Labels(10)}, 10)
    assert record["train"]["indices"][0] == 36044 and record["test"] == {"part": "test", "indices": None}


class _Labels:
    def __init__(self, count: int, classes: int = 10):
        self.labels = np.arange(count) % classes

    def __len__(self) -> int:
        return len(self.labels)


def test_eurosat_is_cut_as_published():
    counts = FACTS["EuroSAT"].counts["all"]
    examples = _Labels(27000)
    examples.labels = np.repeat(np.arange(10), counts)
    splits = {split: where["indices"] for split, where in cut({"all": examples}, 10).items()}
    assert {split: len(indices) for split, indices in splits.items()} == {"train": 21600, "val": 2700, "test": 2700}
    assert sorted(sum(splits.values(), [])) == list(range(27000))
    assert splits == {split: where["indices"] for split, where in cut({"all": examples}, 10).items()}
    assert (splits["val"][:3], splits["test"][:3]) == ([0, 4, 15], [8, 13, 29])  # pinned


@pytest.mark.parametrize("name", ["Cars", "EuroSAT", "CIFAR10"])
def test_splits_are_written_disjoint_and_read_back(name, tmp_path):
    record = prepared(name, tmp_path)
    written = json.loads((tmp_path / "prepared" / f"{name}.json").read_text())
    assert written["splits"] == record.splits
    train, val = (set(written["splits"][split]["indices"]) for split in ("train", "val"))
    assert train and val and not train & val
    splits = {split: ROW[name].load(split, tmp_path, 0) for split in ("train", "val", "test")}
    assert isinstance(splits["val"], Subset) and splits["val"].indices.tolist() == record.splits["val"]["indices"]
    shown = [
        {image.tobytes() for image in map(examples.__getitem__, range(len(examples)))} for examples in splits.values()
    ]
    assert not shown[0] & shown[1] and not shown[0] & shown[2] and not shown[1] & shown[2]


@pytest.mark.parametrize(("name", "source"), [("DTD", "official"), ("EuroSAT", "official"), ("DTD", "hub")])
def test_an_image_in_two_splits_is_refused(name, source, tmp_path):
    if source == "hub":
        folder = files.hub(name, tmp_path)
        for shard in (0, 1):  # the test images are training images
            train, test = (folder / "data" / f"{part}-0000{shard}-of-00002.parquet" for part in ("train", "test"))
            test.write_bytes(train.read_bytes())
        files.describe(folder, FACTS[name].mirror.repo)
    else:
        files.OFFICIAL[name](tmp_path)
        images = sorted(path for path in tmp_path.rglob("*.jpg") if "test1" in path.name or "2750_" in path.name)
        twin = next(path for path in tmp_path.rglob("*.jpg") if "train1" in path.name or "2750_" in path.name)
        for image in images[:: len(images) // 10]:
            image.write_bytes(twin.read_bytes())
    with pytest.raises(DataError, match=r"leaks: \d+ images stand in two splits"):
        _prepare_counted(FACTS[name], tmp_path, source)
    assert not Record.path(tmp_path, name).exists()
    assert not prepare(FACTS[name], tmp_path, source, as_is=True).published


def _prepare_counted(facts, root, source):
    """prepare, with the counts of the tiny set in the place of the published ones."""
    labels = {part: facts.read(source, root, part).labels for part in facts.parts(source, root)}
    counts = {part: np.bincount(found, minlength=len(facts.classnames)).tolist() for part, found in labels.items()}
    return prepare(dataclasses.replace(facts, counts=counts), root, source)


def test_counted_sets_are_published(tmp_path):
    files.OFFICIAL["DTD"](tmp_path)
    assert _prepare_counted(FACTS["DTD"], tmp_path, "official").published


# What goes wrong


def test_a_set_that_is_not_prepared_names_the_command(tmp_path):
    with pytest.raises(
        DataError, match=r"Cars is not prepared in .*python -m src.datasets prepare Cars --data-location"
    ):
        ROW["Cars"].load("train", tmp_path, 0)
    with pytest.raises(ValueError, match="expected a split of train, val, test, found 'valid'"):
        ROW["Cars"].load("valid", tmp_path, 0)


def test_wrong_counts_are_refused_and_named(tmp_path):
    files.OFFICIAL["MNIST"](tmp_path)
    with pytest.raises(DataError) as caught:
        prepare(FACTS["MNIST"], tmp_path, "official")
    text = str(caught.value)
    assert "train: expected 60000 images, found 24; 10 classes differ (expected -> found): 0 5923 -> " in text
    assert "Set aside" in text and "--as-is" in text
    assert sorted(path.name for path in (tmp_path / "MNIST/raw").iterdir()) == [
        f"{part}-{kind}-ubyte.gz.bad" for part in ("t10k", "train") for kind in ("images-idx3", "labels-idx1")
    ]
    with pytest.raises(DataError, match="not prepared"):
        ROW["MNIST"].load("train", tmp_path, 0)


def test_another_copy_that_took_the_place_is_refused(tmp_path):
    files.OFFICIAL["DTD"](tmp_path)
    prepare(FACTS["DTD"], tmp_path, "official", as_is=True)
    files.OFFICIAL["SUN397"](tmp_path)
    prepare(FACTS["SUN397"], tmp_path, "official", as_is=True)
    keys = [f"{name[0]}_{name}".replace(" ", "_") for name in files.CLASSNAMES["SUN397"]]
    files.class_folders("SUN397", tmp_path / "sun397", {"train": 1, "val": 1}, keys)
    assert len(ROW["DTD"].load("test", tmp_path, 0)) == 47
    with pytest.raises(DataError, match="SUN397 was prepared from SUN397, but sun397 is there now. If that is meant"):
        ROW["SUN397"].load("test", tmp_path, 0)


def test_a_missing_class_folder_does_not_shift_the_labels(tmp_path):
    files.OFFICIAL["EuroSAT"](tmp_path)
    (tmp_path / "eurosat/2750/Forest").rename(tmp_path / "Forest")
    with pytest.raises(DataError, match="expected 10 class folders, found 9: AnnualCrop, Herb"):
        prepare(FACTS["EuroSAT"], tmp_path, "official", as_is=True)


def test_files_that_change_after_they_were_prepared(tmp_path):
    prepared("Cars", tmp_path)
    files.savemat(
        tmp_path / "stanford_cars/cars_test_annos_withlabels.mat",
        {"annotations": np.array([(5, "00001.jpg"), (6, "00002.jpg")], dtype=[("class", object), ("fname", object)])},
    )
    ROW["Cars"].load("train", tmp_path, 0)
    with pytest.raises(DataError, match="the test part changed since it was prepared: expected 6 images, found 2"):
        ROW["Cars"].load("test", tmp_path, 0)


@pytest.mark.parametrize(
    "name", ["MNIST", "SVHN", "STL10", "CIFAR10", "FER2013", "Flowers102", "Cars", "OxfordIIITPet"]
)
@pytest.mark.parametrize("damage", ["cut", "text"])
def test_damaged_files_are_named(name, damage, tmp_path):
    files.OFFICIAL[name](tmp_path)
    path = {
        "MNIST": "MNIST/raw/train-images-idx3-ubyte.gz",
        "SVHN": "svhn/train_32x32.mat",
        "STL10": "stl10/stl10_binary/train_X.bin",
        "CIFAR10": "cifar-10-batches-py/data_batch_1",
        "FER2013": "fer2013/fer2013.csv",
        "Flowers102": "flowers102/flowers-102/setid.mat",
        "Cars": "stanford_cars/devkit/cars_train_annos.mat",
        "OxfordIIITPet": "OxfordIIITPet/oxford-iiit-pet/annotations/trainval.txt",
    }[name]
    path = tmp_path / path
    path.write_bytes(
        path.read_bytes()[: path.stat().st_size // 2 + 1] if damage == "cut" else b"<html>not found</html>"
    )
    with pytest.raises(DataError) as caught:
        prepare(FACTS[name], tmp_path, "official", as_is=True)
    assert str(path) in str(caught.value) or str(path.parent.parent) in str(caught.value)


def test_a_corrupt_image_is_named_when_it_is_read(tmp_path):
    prepared("Cars", tmp_path)
    (tmp_path / "stanford_cars/cars_test/00002.jpg").write_bytes(b"no image")
    examples = ROW["Cars"].load("test", tmp_path, 0)
    assert examples[0].mode == "RGB"
    with pytest.raises(CorruptImage, match="corrupt image .*cars_test/00002.jpg"):
        examples[1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Cars", ["does not work: its server no longer has it", "tanganke/stanford_cars", "--source hub", "devkit/"]),
        ("SUN397", ["does not work", "prepare SUN397 --source hub", "Training_01.txt"]),
        ("FER2013", ["Kaggle asks for a login", "fer2013.csv"]),
        ("ImageNet", ["given on request", "ILSVRC/imagenet-1k"]),
    ],
)
def test_dead_downloads_say_so_and_name_the_mirror(name, words, tmp_path):
    with pytest.raises(DataError) as caught:
        prepare(FACTS[name], tmp_path, "official")
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("name", sorted(name for name, facts in FACTS.items() if facts.downloads))
def test_without_a_network_a_download_says_so_at_once(name, tmp_path):
    with pytest.raises(DataError) as caught:
        prepare(FACTS[name], tmp_path, "official")
    text = str(caught.value)
    assert "cannot download http" in text and "unreachable" in text
    assert f"python -m src.datasets prepare {name} --source hub" in text
    assert "Without a network: fetch that file elsewhere, put it at " in text


def test_without_a_network_the_mirror_says_so_at_once(tmp_path):
    with pytest.raises(
        DataError, match=r"cannot fetch tanganke/stanford_cars from the hub.*(?s:.)*copy its hub/tanganke--st"
    ):
        prepare(FACTS["Cars"], tmp_path, "hub")


# Downloads


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An official server that is a folder: url -> bytes."""
    answers: dict[str, bytes] = {}

    class Answer(io.BytesIO):
        headers: dict = {}
        status = 200

    def urlopen(request, timeout):
        if request.full_url not in answers:
            raise urllib.error.URLError("not found")
        return Answer(answers[request.full_url])

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return answers


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("src.datasets.download.WAITS", (0, 0))


def test_archives_are_verified_unpacked_and_not_fetched_twice(tmp_path, server):
    files.OFFICIAL["CIFAR10"](tmp_path / "elsewhere")
    archive = Path(shutil.make_archive(str(tmp_path / "cifar"), "gztar", tmp_path / "elsewhere"))
    download = Download("http://server/cifar.tar.gz", file_hash(archive, "md5"), "")
    root = tmp_path / "data"
    with pytest.raises(DataError, match="cannot download http://server/cifar.tar.gz: not found\nadvice"):
        download.fetch(root, "advice")
    server[download.url] = b"a page that says that the quota is used up"
    with pytest.raises(DataError, match=f"expected md5 {download.digest}, found .*set aside as .*cifar.tar.gz.bad"):
        download.fetch(root, "advice")
    assert [path.name for path in root.iterdir()] == ["cifar.tar.gz.bad"]
    server[download.url] = archive.read_bytes()
    download.fetch(root, "advice")
    server.clear()
    download.fetch(root, "advice")
    assert not download.interrupted(root)
    assert prepare(FACTS["CIFAR10"], root, "official", as_is=True).size("train") == 27


def test_a_file_put_there_by_hand_with_another_hash_is_set_aside(tmp_path, server, capsys):
    download = Download("http://server/labels.mat", "0" * 32, "flowers")
    files.put(download.path(tmp_path), "half a file")
    with pytest.raises(DataError, match="cannot download"):
        download.fetch(tmp_path, "advice")
    assert "expected md5 000" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "flowers").iterdir()] == ["labels.mat.bad"]


def test_an_interrupted_unpacking_is_not_taken_for_a_whole_set(tmp_path):
    files.OFFICIAL["CIFAR10"](tmp_path)
    assert FACTS["CIFAR10"].layout(tmp_path)
    (tmp_path / "cifar-10-python.tar.gz.unpacking").touch()
    assert FACTS["CIFAR10"].layout(tmp_path) is None


# The hub


class FakeHub:
    """A hub that serves {path: bytes} at one revision, and remembers what was asked of it."""

    def __init__(self, served: dict[str, bytes]):
        self.files, self.revision, self.listed, self.served = served, "a" * 40, 0, []

    def dataset_info(self, repo, revision=None, files_metadata=False, timeout=None):
        self.listed += 1
        siblings = [
            SimpleNamespace(
                rfilename=name,
                size=len(data),
                lfs=SimpleNamespace(sha256=hashlib.sha256(data).hexdigest()) if name.endswith("parquet") else None,
            )
            for name, data in self.files.items()
        ]
        return SimpleNamespace(sha=self.revision, siblings=siblings)

    def snapshot_download(self, repo, repo_type, revision, allow_patterns, local_dir):
        assert revision == self.revision
        for name in allow_patterns:
            self.served.append(name)
            files.put(Path(local_dir) / name, self.files[name])


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """SVHN's mirror, which also holds files that must not be fetched."""
    import huggingface_hub

    folder = files.hub("SVHN", tmp_path / "server")
    shards = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.parquet")}
    others = {name.replace("cropped_digits", "full_numbers"): data for name, data in shards.items()}
    others |= {"cropped_digits/extra-00000-of-00001.parquet": b"extra", "README.md": b"words"}
    server = FakeHub(shards | others)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: server)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", server.snapshot_download)
    return server


def test_a_mirror_is_fetched_once_and_read_offline_after(tmp_path, fake_hub):
    root = tmp_path / "data"
    prepare(FACTS["SVHN"], root, "hub", as_is=True)
    assert sorted(fake_hub.served) == [
        f"cropped_digits/{part}-0000{shard}-of-00002.parquet" for part in ("test", "train") for shard in (0, 1)
    ]
    record = json.loads((FACTS["SVHN"].mirror.folder(root) / "snapshot.json").read_text())
    assert record["revision"] == "a" * 40 and len(record["files"]) == 4
    fake_hub.revision, fake_hub.served = "b" * 40, []  # the repository moved on: what was fetched stays
    assert prepare(FACTS["SVHN"], root, "hub", as_is=True).origin.endswith("a" * 40)
    assert prepare(FACTS["SVHN"], root, "hub", as_is=True, verify=True).origin.endswith("a" * 40)
    assert fake_hub.listed == 1 and not fake_hub.served
    check_images("SVHN", root)


def test_an_older_arrow_copy_is_not_read(tmp_path):
    prepared("STL10", tmp_path, "hub")
    files.hub("STL10", tmp_path, train=30)
    with pytest.raises(DataError, match="changed since it was prepared: expected 24 images, found 30"):
        ROW["STL10"].load("train", tmp_path, 0)
    prepare(FACTS["STL10"], tmp_path, "hub", as_is=True)
    assert len(check_images("STL10", tmp_path)["train"]) == 27


def test_a_snapshot_is_repaired_at_its_revision(tmp_path, fake_hub, capsys):
    root = tmp_path / "data"
    prepare(FACTS["SVHN"], root, "hub", as_is=True)
    fake_hub.served = []
    shard = FACTS["SVHN"].mirror.folder(root) / "cropped_digits/train-00001-of-00002.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + b"?")
    prepare(FACTS["SVHN"], root, "hub", as_is=True)
    assert fake_hub.served == ["cropped_digits/train-00001-of-00002.parquet"] and shard.read_bytes() == whole
    assert shard.with_name(f"{shard.name}.bad").exists() and "set aside" in capsys.readouterr().out
    fake_hub.served, times = [], (shard.stat().st_atime_ns, shard.stat().st_mtime_ns)
    shard.write_bytes(whole[:-1] + b"?")
    os.utime(shard, ns=times)
    prepare(FACTS["SVHN"], root, "hub", as_is=True)  # looks ready: it is hashed again when that is asked for
    assert not fake_hub.served
    prepare(FACTS["SVHN"], root, "hub", as_is=True, verify=True)
    assert fake_hub.served and shard.read_bytes() == whole
    shard.unlink()
    with pytest.raises(DataError, match="1 files are missing or cut short: cropped_digits/train-00001"):
        ROW["SVHN"].load("train", root, 0)
    assert state(FACTS["SVHN"], root)["state"] == "prepared, but its files are gone"


def test_files_that_differ_from_the_hubs_hashes_are_refused(tmp_path, fake_hub, monkeypatch):
    import huggingface_hub

    def cut_short(repo, repo_type, revision, allow_patterns, local_dir):
        for name in allow_patterns:
            files.put(Path(local_dir) / name, fake_hub.files[name][:-10])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cut_short)
    with pytest.raises(DataError, match="4 files did not arrive as the hub describes them"):
        prepare(FACTS["SVHN"], tmp_path / "data", "hub", as_is=True)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            "GatedRepoError",
            "only to those who accepted its terms: accept them on its page, then log in with: hf auth log",
        ),
        (
            "RevisionNotFoundError",
            "expected the revision that .*snapshot.json names.*gone from the hub.*remove .*ufldl-st",
        ),
        (
            "RepositoryNotFoundError",
            "cannot fetch ufldl-stanford/svhn from the hub: RepositoryNotFoundError: .*copy its hub/ufldl",
        ),
    ],
)
def test_what_the_hub_refuses_is_told_with_what_mends_it(tmp_path, fake_hub, monkeypatch, error, told):
    import huggingface_hub

    answer = SimpleNamespace(headers={}, request=None, status_code=403)
    refusal = getattr(huggingface_hub.errors, error)("refused", response=answer)

    def refuse(*_, **__):
        raise refusal

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(DataError, match=f"(?s){told}"):
        prepare(FACTS["SVHN"], tmp_path / "data", "hub", as_is=True)


def test_a_mirror_without_our_files_says_what_it_has(tmp_path, fake_hub):
    fake_hub.files = {"README.md": b"moved"}
    with pytest.raises(DataError, match="expected parquet or tar files of 'train' and 'test', found README.md"):
        prepare(FACTS["SVHN"], tmp_path / "data", "hub")


def test_the_order_of_shards():
    mirror = hub.Mirror("a/b")
    paths = ["train/10.tar", "train/2.tar", "train/nshards.txt", "test/0.tar", "data/train-00000-of-00001.txt"]
    assert mirror.select(paths, "train") == ["train/2.tar", "train/10.tar"]
    assert mirror.select([*paths, "default/train/0000.parquet"], "train") == ["default/train/0000.parquet"]
    assert mirror.select(["data/test-00001-of-00002-3bfa.parquet", "data/contest-0.parquet"], "test") == [
        "data/test-00001-of-00002-3bfa.parquet"
    ]


# The command


def test_prepare_and_status(tmp_path, capsys):
    files.OFFICIAL["CIFAR10"](tmp_path)
    where = ["--data-location", str(tmp_path)]
    assert command.main(["prepare", "CIFAR10", "KMNIST", "--source", "official", *where, "--as-is"]) == 1
    out, err = capsys.readouterr()
    assert "CIFAR10: train 27, val 3, test 6 images of 10 classes from cifar-10-batches-py" in out
    assert "as is: train: expected 50000 images, found 30" in out
    assert "cannot download" in err and err.endswith("not prepared: KMNIST\n")
    assert command.main(["status", *where]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["name"].split() == ["name", "classes", "train", "val", "test", "source", "state"]
    assert len(lines) == 1 + len(FACTS)
    assert (
        lines["CIFAR10"].split()[1:6] == ["10", "27", "3", "6", "cifar-10-batches-py"] and "as is" in lines["CIFAR10"]
    )
    assert lines["Cars"].split() == ["Cars", "196", "absent"]


def test_sets_are_fetched_at_once_and_those_that_share_files_one_after_the_other(tmp_path, monkeypatch, capsys):
    """The first two wait for each other: one by one they would never come to an end."""
    both, order = threading.Barrier(2, timeout=20), []

    def fetch(facts, root, source):
        order.append(facts.name)
        if facts.name in ("CIFAR10", "KMNIST"):
            both.wait()
        if facts.name == "KMNIST":
            raise DataError("KMNIST: the server no longer has it")
        files.OFFICIAL[facts.name](root)

    monkeypatch.setattr("src.datasets.fetching.fetch_files", fetch)
    names = ["CIFAR10", "FER2013", "KMNIST", "FER2013_corrected"]
    where = ["--data-location", str(tmp_path), "--source=official", "--as-is"]
    assert command.main(["prepare", *names, *where]) == 1
    out, err = capsys.readouterr()
    assert sorted(order) == sorted(names) and order.index("FER2013") < order.index("FER2013_corrected")
    assert "KMNIST: the server no longer has it" in err and err.endswith("not prepared: KMNIST\n")
    assert [line.split(":")[0] for line in out.splitlines() if " classes from " in line] == [*names[:2], names[3]]


def test_an_unknown_name_gets_the_nearest(capsys):
    with pytest.raises(SystemExit):
        command.main(["prepare", "EuroSat"])
    assert "unknown data set 'EuroSat'; did you mean EuroSAT?" in capsys.readouterr().err


def test_truncated_gzip_and_foreign_bytes(tmp_path):
    labels = files.idx_bytes(np.zeros(5, np.uint8))
    for data, found in (
        (b"", "starts with"),
        (labels[:-1], "4"),
        (gzip.compress(labels)[:-5], "Compressed file ended"),
    ):
        path = tmp_path / ("x-labels.gz" if data[:2] == b"\x1f\x8b" else "x-labels")
        path.write_bytes(data)
        with pytest.raises(BadFile, match=found):
            official._idx(path, 1)


def test_check_tells_all_that_was_found_out(tmp_path, capsys):
    for name in ("MNIST", "EuroSAT"):
        prepared(name, tmp_path)
    for name in ("EMNIST", "CIFAR100"):
        prepared(name, tmp_path, "hub")
    where = [f"--data-location={tmp_path}", f"--results={tmp_path / 'results'}", f"--save={tmp_path / 'save'}"]
    assert command.main(["check", "MNIST", "EuroSAT", "EMNIST", "CIFAR100", "Cars", *where]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    lines = {line.split()[0]: line for line in rows}
    names = ["name", "state", "class names", "label order", "zero-shot", "checkpoint", "fine-tuned", "validation"]
    names += ["remarks"]
    assert re.split("  +", head) == names
    assert "[48.3]" in lines["MNIST"] and "no official split" in lines["EuroSAT"] and "as is" in lines["MNIST"]
    assert "no image stands in two splits" in lines["EuroSAT"] and "100 of 100 the same" in lines["CIFAR100"]
    assert "upright or on their side" in lines["EMNIST"] and "absent" in lines["Cars"]
    found = Record.read(FACTS["MNIST"], tmp_path).train_labels[:12]
    assert f"{found}, not as official" in lines["MNIST"] and ", not known" in lines["EuroSAT"]
    run = Run("vision", "ViT-B-32", 1, ("MNIST",), Places(tmp_path / "save", tmp_path / "results"))
    record = {"MNIST": 0.1, "EuroSAT": 0.45, "n": {"MNIST": 10000, "EuroSAT": 2700}}
    results.write(run.paths.single_task("none"), record, {}, 0.0)
    results.write(run.paths.single_task("standard"), {"MNIST": 0.9, "n": {"MNIST": 10000}}, {}, 0.0)
    weights = {"model.visual.w": torch.ones(2)}
    of_theta0 = store.fingerprints(weights)
    checkpoints.save(run.paths.pretrained(), weights, {"model": run.model, "mode": "none", "fingerprints": of_theta0})
    header = {"model": run.model, "mode": "standard", "provenance": {"publisher": "tall"}}
    for task, began in (("MNIST", of_theta0["image"]), ("EuroSAT", "0" * 16), ("Cars", None)):
        checkpoints.save(run.paths.checkpoint(task, "standard"), weights, header | {"task": task, "began_at": began})
    assert command.main(["check", "MNIST", "EuroSAT", "Cars", *where]) == 1
    out, err = capsys.readouterr()
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "10.0 % [48.3]" in lines["MNIST"] and "tall, of this θ0" in lines["MNIST"] and "90.0 % [" in lines["MNIST"]
    assert "tall, of another θ0" in lines["EuroSAT"] and "tall, θ0 not compared" in lines["Cars"]
    assert err.count("MNIST: expected the published accuracy of") == 2 and "EuroSAT" not in err


def test_decode_fills_the_cache_that_evaluation_reads(tmp_path):
    prepared("CIFAR10", tmp_path)
    where = [f"--data-location={tmp_path}", f"--cache-dir={tmp_path / 'cache'}"]
    assert command.main(["decode", "CIFAR10", "--side=32", *where]) == 0
    made = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "cache/images").glob("*.pixels")}
    assert made == {"CIFAR10-val", "CIFAR10-test"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache/images").iterdir()}
    run = Run("vision", "ViT-B-32", 1, ("CIFAR10",), Places(cache=tmp_path / "cache", data=tmp_path))
    assert len(loading.evaluation_pixels(run, "CIFAR10", "test", 32)) == 6
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache/images").iterdir()}
    with pytest.raises(SystemExit, match="KMNIST is not prepared"):
        command.main(["decode", "CIFAR10", "KMNIST", *where])


def test_clean_removes_what_nothing_reads(tmp_path, capsys):
    files.OFFICIAL["CIFAR10"](tmp_path)
    files.OFFICIAL["MNIST"](tmp_path)
    unread = ["cifar-10-python.tar.gz", "x.tar.gz.bad", "x.tar.gz.bad2", "MNIST/raw/a.gz.part"]
    for name in (*unread, "cifar-100-python.tar.gz"):  # the last is not unpacked
        files.put(tmp_path / name, "bytes")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert command.main(["clean", "--data-location", str(tmp_path)]) == 0
    assert before - {path for path in tmp_path.rglob("*") if path.is_file()} == {tmp_path / name for name in unread}
    assert "GB are free again" in capsys.readouterr().out


def test_a_forecast_asks_the_servers_and_fetches_nothing(tmp_path, fake_hub, capsys, monkeypatch):
    monkeypatch.setattr("src.datasets.fetching.remote_size", lambda url: 1_500_000_000)
    root = tmp_path / "data"
    assert command.main(["forecast", "SVHN", "--source=hub", "--data-location", str(root)]) == 0
    assert "SVHN: 0.00 GB" in capsys.readouterr().out and not fake_hub.served and not root.exists()
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert command.main(["forecast", "SVHN", "Cars", "--source=official", "--data-location", str(root)]) == 1
    out = capsys.readouterr().out
    assert "SVHN: 3.00 GB" in out and "Cars: not told" in out
    assert "about 6.0; free: 1.0; and what no server told of: Cars" in out
    with pytest.raises(DataError, match="expected room for the .* GB that are still to come"):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1))
        prepare(FACTS["SVHN"], root, "hub", as_is=True)
    assert not fake_hub.served


def test_files_in_the_hubs_own_cache_are_taken(tmp_path, fake_hub, monkeypatch):
    """What a site has in HF_HOME already is not fetched again."""
    import huggingface_hub

    def kept(repo, name, revision, repo_type):
        assert (repo, revision, repo_type) == ("ufldl-stanford/svhn", fake_hub.revision, "dataset")
        path = tmp_path / "hf" / name
        files.put(path, fake_hub.files[name])
        return None if "test-00000" in name else str(path)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", kept)
    prepare(FACTS["SVHN"], tmp_path / "data", "hub", as_is=True)
    assert fake_hub.served == ["cropped_digits/test-00000-of-00002.parquet"]
    check_images("SVHN", tmp_path / "data")


def made_copies(monkeypatch) -> list[str]:
    """Fills with the folders of the Arrow copies that are made from now on."""
    from datasets.packaged_modules.parquet.parquet import Parquet

    made, make = [], Parquet.download_and_prepare
    monkeypatch.setattr(
        Parquet, "download_and_prepare", lambda self, folder: (made.append(folder), make(self, folder))[1]
    )
    return made


def test_a_data_folder_that_may_not_be_written_to_can_be_read(tmp_path, monkeypatch):
    prepared("SVHN", tmp_path, "hub")
    made = made_copies(monkeypatch)
    monkeypatch.setattr(arrow, "READ_ONLY", tmp_path / "elsewhere")
    writable = os.access
    monkeypatch.setattr(arrow.os, "access", lambda path, mode: path != tmp_path / "hub" and writable(path, mode))
    with refusing_writes(tmp_path / "hub"):
        check_images("SVHN", tmp_path)
    assert not made and not (tmp_path / "elsewhere").exists()  # the copies that are there are read
    shutil.rmtree(tmp_path / "hub/.arrow")
    check_images("SVHN", tmp_path)
    assert len(made) == 2 and all(Path(folder).parent == tmp_path / "elsewhere" for folder in made)
    assert not (tmp_path / "hub/.arrow").exists()


@contextlib.contextmanager
def refusing_writes(folder):
    """A folder of another user; root, whom no mode stops, meets an error where a lock would be made."""
    modes = {path: path.stat().st_mode for path in (folder, *folder.rglob("*")) if path.is_dir()}
    before = sorted(folder.rglob("*"))
    for path in modes:
        path.chmod(0o555)
    try:
        yield
        assert sorted(folder.rglob("*")) == before
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.mark.parametrize("how", ["renamed", "linked", "as another data folder"])
def test_an_arrow_copy_is_found_by_what_it_is_of(tmp_path, monkeypatch, how):
    """Not by the spelling of the path: each would be as large as the set."""
    prepared("SVHN", tmp_path / "data", "hub")
    made = made_copies(monkeypatch)
    if how == "linked":
        (tmp_path / "other").symlink_to(tmp_path / "data")
    elif how == "renamed":
        (tmp_path / "data").rename(tmp_path / "other")
    else:
        shutil.copytree(tmp_path / "data", tmp_path / "other")  # with the times of its files
    check_images("SVHN", tmp_path / "other")
    assert not made


def test_arrow_copies_that_nothing_reads_are_removed_by_clean(tmp_path, capsys):
    prepared("STL10", tmp_path, "hub")
    arrow = tmp_path / "hub/.arrow"
    before = {path.name for path in arrow.iterdir() if path.is_dir()}
    files.hub("STL10", tmp_path, train=30)
    prepare(FACTS["STL10"], tmp_path, "hub", as_is=True)
    (arrow / "parquet/default-0").mkdir(parents=True)
    command.main(["clean", "STL10", f"--data-location={tmp_path}"])
    after = {path.name for path in arrow.iterdir() if path.is_dir()}
    assert len(after) == 2 and before != after and "GB are free again" in capsys.readouterr().out
    check_images("STL10", tmp_path)


def test_a_damaged_arrow_copy_is_told(tmp_path):
    prepared("SVHN", tmp_path, "hub")
    (copy,) = (tmp_path / "hub/.arrow").glob("*-train-*/*.arrow")
    copy.unlink()
    with pytest.raises(DataError, match="remove it, and it is made anew"):
        ROW["SVHN"].load("train", tmp_path, 0)
