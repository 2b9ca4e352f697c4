"""The embedded suite: pinned bytes, disjoint splits, complete rows, a cache that two processes can build at once."""

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from src.datasets import registry
from src.datasets.base import validation_indices
from src.datasets.mini import draw
from src.datasets.mini.canvas import PIXELS, reduce
from src.vit_mini import mixture

# sha256 (first 16 digits) of the first eight test pictures of each set at seed 0, for these versions.
VERSIONS = {"numpy": "2.4.6", "pillow": "13.0.0", "matplotlib": "3.11.2", "scikit-learn": "1.9.1"}
HASHES = {
    "vehicles": "170311c1a1de7399",
    "textures": "6081da5e54b1a892",
    "land": "ba7a9fb874b7b65a",
    "signs": "9715ac5fbadbbd7e",
    "digits": "ded29e6667f6af43",
    "letters": "889e44b2c6cee854",
    "scenes": "ea56ee1d2ffee41c",
    "house_numbers": "7418f4223c949e8e",
    "control": "edb2f5f9b718254d",
}


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


def picture_hashes(name: str, split: str, cache) -> set[bytes]:
    return {image.tobytes() for image in draw.load(name, split, cache, seed=0).pixels}


def first_pictures(name: str) -> np.ndarray:
    if name == "digits":
        return draw._digits(seed=0)["test"][0][:8]
    return draw._draw_chunk((name, "test", 0, 0))[3][:8]


@pytest.mark.parametrize("name", draw.FAMILIES)
def test_bytes_are_pinned(name):
    found = draw.library_versions()
    if found != VERSIONS:
        pytest.skip(f"hashes are pinned for {VERSIONS}; these are {found}")
    assert digest(first_pictures(name)) == HASHES[name]


@pytest.mark.parametrize("name", ["vehicles", "digits"])
def test_same_seed_same_bytes_other_seed_other_bytes(name):
    assert digest(first_pictures(name)) == digest(first_pictures(name))
    if name != "digits":
        other = draw._draw_chunk((name, "test", 1, 0))[3][:8]
        assert digest(other) != digest(first_pictures(name))


def test_no_picture_is_in_two_splits_or_two_sets(mini_cache):
    seen: dict[bytes, str] = {}
    for name, sizes in draw.SIZES.items():
        for split in sizes:
            for picture in picture_hashes(name, split, mini_cache):
                assert seen.setdefault(picture, f"{name} {split}") == f"{name} {split}"


@pytest.mark.parametrize("name", draw.FAMILIES)
def test_rows_are_complete(name, mini_cache):
    row = registry.get(name)
    assert row.suite == "mini" and len(row.templates) == 3 and all(t.count("{}") == 1 for t in row.templates)
    assert len(set(row.classnames)) == len(row.classnames)
    for split, size in draw.SIZES[name].items():
        examples = row.load(split, mini_cache, 0)
        assert examples.pixels.shape == (size, PIXELS, PIXELS, 3) and examples.pixels.dtype == np.uint8
        assert set(examples.labels) == set(range(len(row.classnames)))


@pytest.mark.parametrize("family", mixture.FAMILIES, ids=lambda f: f.__name__.rpartition(".")[2])
def test_every_class_is_drawn_in_both_looks(family):
    rng = np.random.default_rng(5)
    for label in range(len(family.NAMES)):
        for web in (True, False):
            picture = family.draw(label, rng, web)
            assert picture.size == (64, 64) and picture.mode == "RGB"
            assert reduce(picture, rng, 0).std() > 2, f"{family.NAMES[label]} is blank"


def test_captions_of_the_mixture():
    rng = np.random.default_rng(0)
    pairs = [mixture.sample(rng) for _ in range(60)]
    assert all(image.shape == (PIXELS, PIXELS, 3) and caption for image, caption in pairs)
    assert len({caption for _, caption in pairs}) > 30


def test_published_validation_split_is_pinned():
    train, validation = validation_indices(60_000)
    assert train[0] == 36044 and len(train) == 55_000 and len(validation) == 5_000
    assert not set(train) & set(validation)
    assert len(validation_indices(3_760)[1]) == 376


def test_two_processes_that_start_at_once_build_one_cache(tmp_path):
    """Each draws, one wins the rename; both then read the same whole files."""
    code = (
        "import sys; from pathlib import Path; from src.datasets.mini import draw\n"
        "draw.SIZES = {'signs': dict(val=40), 'digits': draw.SIZES['digits']}\n"
        "if __name__ == '__main__': print(draw.cached(Path(sys.argv[1]), 0))\n"
    )
    program = tmp_path / "program.py"
    program.write_text(f"import sys; sys.path.insert(0, {str(registry.__file__.rpartition('/src/')[0])!r})\n{code}")
    run = [sys.executable, str(program), str(tmp_path / "cache")]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: subprocess.run(run, capture_output=True, text=True), range(2)))
    assert [p.returncode for p in done] == [0, 0], done[0].stderr + done[1].stderr
    assert done[0].stdout == done[1].stdout
    assert [f.name for f in (tmp_path / "cache").iterdir()] == [done[0].stdout.strip().rpartition("/")[2]]


def test_unknown_names_say_the_nearest():
    with pytest.raises(ValueError, match="did you mean signs"):
        registry.get("sings")
    with pytest.raises(ValueError, match="Known: mini, vision"):
        registry.suite("large")
