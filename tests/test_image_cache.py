"""The image cache: decoded once, shared, never stale, and harmless where it cannot be."""

import errno
import json
import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.datasets import cache
from src.datasets.base import Pixels
from src.datasets.cache import OnDemand, cached
from src.datasets.examples import Arrays, DataError, Files, Subset
from src.datasets.loading import centre_crop

ROOT = Path(__file__).resolve().parent.parent
SIDE = 12


@pytest.fixture
def images(tmp_path) -> Files:
    """Nine PNG files of different sizes, in a data folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(9):
        pixels = random.integers(0, 256, (14 + index, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return Files.of((folder / f"{index}.png", index % 3) for index in range(9))


class Counting:
    """A crop that counts the images it is given."""

    def __init__(self, side: int = SIDE):
        self.side, self.calls = side, 0

    def __call__(self, image):
        self.calls += 1
        return centre_crop(image, self.side)


def read(examples, folder, crop=None, transform="centre crop 12", dataset="Cars", split="test", **options) -> Pixels:
    return cached(examples, crop or Counting(), transform, folder / "cache", dataset, split, **options)


def plain(examples, side: int = SIDE) -> np.ndarray:
    return np.stack([centre_crop(examples[index], side) for index in range(len(examples))])


def test_images_are_decoded_once(images, tmp_path):
    crop = Counting()
    first = read(images, tmp_path, crop)
    assert crop.calls == 9
    second = read(images, tmp_path, crop)
    assert crop.calls == 9
    assert isinstance(second.pixels, np.memmap) and second.pixels.dtype == np.uint8
    assert np.array_equal(first.pixels, plain(images)) and np.array_equal(second.pixels, first.pixels)
    assert np.array_equal(second.labels, images.labels)
    assert np.array_equal(np.asarray(second[3]), first.pixels[3])


def test_subsets_have_their_own(images, tmp_path):
    for indices in ([1, 5], [5, 1]):
        subset = Subset(images, np.array(indices))
        found = read(subset, tmp_path, split="val")
        assert np.array_equal(found.pixels, plain(subset)) and np.array_equal(found.labels, images.labels[indices])
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 2


def test_a_subset_asks_for_no_file_but_its_own(images, monkeypatch):
    part, other = (Subset(images, np.array(indices)) for indices in ([5, 1], [1, 5]))
    asked, stat = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **how: asked.append(os.fspath(path)) or stat(path, **how))
    identity = part.identity()
    assert asked == [images.paths[5], images.paths[1]] and identity != other.identity()
    os.utime(images.paths[0], ns=(1, 1))
    assert part.identity() == identity
    os.utime(images.paths[1], ns=(1, 1))
    assert part.identity() != identity


def test_a_stale_cache_is_not_read(images, tmp_path):
    """Whatever the pixels depend on, a change of it builds anew."""
    crop = Counting()
    read(images, tmp_path, crop)
    for change in (
        lambda: read(images, tmp_path, crop, transform="centre crop 11"),
        lambda: read(images, tmp_path, crop, split="val"),
        lambda: read(images, tmp_path, crop, dataset="DTD"),
        lambda: read(Files(images.paths, (images.labels + 1) % 3), tmp_path, crop),
        lambda: read(Files(images.paths[::-1], images.labels), tmp_path, crop),
    ):
        calls = crop.calls
        change()
        assert crop.calls == calls + 9
    Image.new("RGB", (20, 20), "red").save(images.paths[2])
    assert np.array_equal(read(images, tmp_path, crop).pixels[2], np.full((SIDE, SIDE, 3), (255, 0, 0)))


def test_other_library_versions_build_anew(images, tmp_path, monkeypatch):
    crop = Counting()
    read(images, tmp_path, crop)
    monkeypatch.setattr(cache.metadata, "version", lambda name: "99")
    read(images, tmp_path, crop)
    assert crop.calls == 18


def test_arrays_are_known_by_their_files(tmp_path):
    file = tmp_path / "batch"
    file.write_bytes(b"one")
    pixels = np.zeros((4, 16, 16, 3), np.uint8)
    crop = Counting()
    read(Arrays(pixels, np.arange(4), (file,)), tmp_path, crop)
    file.write_bytes(b"other")
    read(Arrays(pixels + 1, np.arange(4), (file,)), tmp_path, crop)
    assert crop.calls == 8


DESCRIBED = {
    "broken description": lambda text: text[:-20],
    "another key": lambda text: json.dumps(json.loads(text) | {"key": {}}),
    "a list": lambda text: f"[{text}]",
    "nested": lambda text: "[" * 100_000,
    "no UTF-8": lambda text: "\udce9",
    "shape of text": lambda text: json.dumps(json.loads(text) | {"shape": "wide"}),
    "no list of corrupt images": lambda text: json.dumps(json.loads(text) | {"corrupt": 7}),
    "a corrupt image without a number": lambda text: json.dumps(json.loads(text) | {"corrupt": {"x": "a"}}),
    "a corrupt image too many": lambda text: json.dumps(json.loads(text) | {"corrupt": {"3": "a"}}),
}


@pytest.mark.parametrize("damage", ["cut", "no description", *DESCRIBED])
def test_half_a_cache_is_built_again(damage, images, tmp_path):
    read(images, tmp_path)
    (pixels,) = (tmp_path / "cache").glob("*.pixels")
    description = pixels.with_suffix(".json")
    if damage == "cut":
        pixels.write_bytes(pixels.read_bytes()[:-1])
    elif damage == "no description":
        description.unlink()
    else:
        description.write_text(DESCRIBED[damage](description.read_text()), errors="surrogateescape")
    crop = Counting()
    assert np.array_equal(read(images, tmp_path, crop).pixels, plain(images)) and crop.calls == 9


def test_what_a_killed_builder_left_is_removed(images, tmp_path):
    read(images, tmp_path)
    (pixels,) = (tmp_path / "cache").glob("*.pixels")
    left = pixels.with_name(f".{pixels.name}.0123456789ab.tmp")
    left.mkdir()
    pixels.rename(left / "new")
    assert np.array_equal(read(images, tmp_path).pixels, plain(images))
    assert not left.exists()


BUILDER = """
import sys, time
from functools import partial
from pathlib import Path
import numpy as np
from src.datasets.cache import cached
from src.datasets.examples import Files

def crop(image):
    time.sleep(0.05)
    with open(sys.argv[2], "a") as log:
        log.write("decoded\\n")
    return np.asarray(image.resize((12, 12)))

folder = Path(sys.argv[1])
examples = Files.of((path, 0) for path in sorted(folder.glob("*.png")))
Path(sys.argv[3]).touch()
while not all(Path(sys.argv[2]).with_name(name).exists() for name in ("ready-1", "ready-2")):
    time.sleep(0.01)
print(cached(examples, crop, "slow", folder / "cache", "Cars", "test").pixels.sum())
"""


def test_processes_that_start_at_once_build_it_once(images, tmp_path):
    log = tmp_path / "log"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(tmp_path / "data"), str(log), str(tmp_path / f"ready-{number}")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (1, 2)
    ]
    answers = [process.communicate(timeout=300)[0] for process in processes]
    assert answers[0] == answers[1] and int(answers[0]) > 0
    assert log.read_text().count("decoded") == 9


def corrupt(images: Files) -> Files:
    Path(images.paths[4]).write_bytes(b"no image")
    data = Path(images.paths[7]).read_bytes()
    Path(images.paths[7]).write_bytes(data[: len(data) // 2])
    return images


def test_corrupt_images_are_named_and_counted(images, tmp_path):
    corrupt(images)
    crop = Counting()
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            read(images, tmp_path, crop)
        text = str(caught.value)
        assert "Cars test: 2 of 9 images cannot be decoded" in text and "--skip-corrupt" in text
        assert "4.png" in text and "7.png" in text
    assert crop.calls == 7  # the second time nothing is decoded to say so


def test_corrupt_images_are_skipped_with_their_labels(images, tmp_path):
    corrupt(images)
    kept = [0, 1, 2, 3, 5, 6, 8]
    with pytest.warns(UserWarning, match="2 of 9 images cannot be decoded"):
        found = read(images, tmp_path, skip_corrupt=True)
    assert np.array_equal(found.pixels, plain(Subset(images, np.array(kept))))
    assert np.array_equal(found.labels, images.labels[kept])


def test_training_leaves_corrupt_images_out_or_counts_them(images, tmp_path):
    assert cache.without_corrupt(images, "Cars", "train", False) is images
    corrupt(images)
    with pytest.raises(DataError, match="Cars train: 2 of 9 images cannot be decoded(?s:.)*4.png(?s:.)*--skip-corrupt"):
        cache.without_corrupt(images, "Cars", "train", False)
    with pytest.warns(UserWarning, match="2 of 9 images"):
        left = cache.without_corrupt(images, "Cars", "train", True)
    assert left.indices.tolist() == [0, 1, 2, 3, 5, 6, 8]


def test_nothing_but_corrupt_images(images, tmp_path):
    for path in images.paths:
        Path(path).write_bytes(b"")
    with pytest.raises(DataError, match="9 of 9 images cannot be decoded"):
        read(images, tmp_path, skip_corrupt=True)
    with pytest.raises(DataError, match="expected images, found none"):
        read(Subset(images, np.array([], dtype=int)), tmp_path)


def test_a_file_that_cannot_be_read_is_no_full_disk(images, tmp_path):
    class Container(Files):
        def __getitem__(self, index):
            raise OSError("unable to open the container")

    with pytest.raises(DataError, match="(?s)9 of 9 images.*0.png: unable to open the container"):
        read(Container(images.paths, images.labels), tmp_path)


@pytest.mark.parametrize("how", ["too little room", "full while writing", "no folder"])
def test_a_full_disk_falls_back(how, images, tmp_path, monkeypatch):
    if how == "too little room":
        monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: cache.shutil._ntuple_diskusage(10, 10, 0))
    elif how == "full while writing":

        def full(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(cache, "replacing", full)
    else:
        (tmp_path / "cache").write_text("a file where the folder should be")
    crop = Counting()
    with pytest.warns(UserWarning, match="no image cache in .*every pass decodes Cars again"):
        found = read(images, tmp_path, crop)
    assert isinstance(found.pixels, OnDemand) and found.pixels.shape == (9, SIDE, SIDE, 3) and len(found) == 9
    expected = plain(images)
    assert np.array_equal(found.pixels[np.array([3, 1])], expected[[3, 1]])
    assert np.array_equal(found.pixels[2:5], expected[2:5]) and np.array_equal(found.pixels[8], expected[8])
    assert found.pixels[9:].shape == (0, SIDE, SIDE, 3) and np.array_equal(found.labels, images.labels)
    assert not list(tmp_path.glob("cache/*.pixels")) and not list(tmp_path.glob("cache/.*.tmp"))


def test_without_room_corrupt_images_are_skipped_too(images, tmp_path):
    corrupt(images)
    (tmp_path / "cache").write_text("")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read(images, tmp_path, skip_corrupt=True)
    assert len(caught) == 2 and len(found) == 7
    assert np.array_equal(found.pixels[:], plain(Subset(images, np.array([0, 1, 2, 3, 5, 6, 8]))))


def test_a_cache_that_may_only_be_read_is_read(images, tmp_path):
    read(images, tmp_path)
    assert not list((tmp_path / "cache").glob("*.lock"))
    crop = Counting()
    assert np.array_equal(read(images, tmp_path, crop).pixels, plain(images))
    assert not crop.calls and not list((tmp_path / "cache").glob("*.lock"))


def test_crops_of_different_shapes_are_refused(images, tmp_path):
    with pytest.raises(ValueError, match="expected uint8 crops of shape"):
        read(images, tmp_path, np.asarray)
    with pytest.raises(ValueError, match="found float64"):
        read(images, tmp_path, lambda image: centre_crop(image, SIDE) / 255)


def test_the_suites_own_crop(images, tmp_path):
    found = read(images, tmp_path, partial(centre_crop, side=SIDE))
    assert np.array_equal(found.pixels, plain(images))
