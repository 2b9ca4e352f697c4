"""Corruptions of test images: what they do to pixels, whose images they reach, and where results on them lie."""

from dataclasses import replace

import numpy as np
import pytest
import vision_files as files
from drawn_checkpoints import draw_checkpoints
from PIL import Image

import eval_disentanglement
import eval_ntk_localization
import eval_single_task
import eval_task_negation
from src.args import base_parser, parse
from src.datasets import corruptions
from src.datasets import loading as data
from src.datasets.corruptions import CORRUPTIONS, SEVERITIES, CorruptedPixels, corrupt, corrupt_file
from src.datasets.prepare import prepare
from src.datasets.vision import FACTS
from src.evaluation import Denominators
from src.reporting.result import read_results
from src.run import Corruption
from src.runtime import results
from src.runtime.messages import UsageError

NAMES = list(CORRUPTIONS)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """uint8 (24, 32, 32, 3): smooth shades with an edge, none near black or white."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32] / 31
    slopes, edges = rng.uniform(-60, 60, (24, 2, 1, 1, 3)), rng.uniform(0.2, 0.8, (24, 1, 1, 1))
    shades = 128 + slopes[:, 0] * x[..., None] + slopes[:, 1] * np.sin(9 * y)[..., None]
    return np.clip(shades + 50 * (x[None, ..., None] > edges), 20, 235).astype(np.uint8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [32, 224])
def test_shape_type_and_determinism(images, name, side):
    pixels = images[:2].repeat(side // 32, 1).repeat(side // 32, 2)
    before = pixels.copy()
    first = corrupt(pixels, name, 3, [1, 2])
    assert first.shape == pixels.shape and first.dtype == np.uint8
    assert (first != pixels).any((1, 2, 3)).all() and (pixels == before).all()
    assert (corrupt(pixels[::-1], name, 3, [2, 1])[::-1] == first).all()


@pytest.mark.parametrize("name", NAMES)
def test_severity_moves_images_away(images, name):
    clean = images.astype(float)
    severities = [corrupt(images, name, severity, range(24)).astype(float) for severity in SEVERITIES]
    distance = [np.abs(found - clean).mean() for found in severities]
    steps = np.diff(distance)
    if name == "spatter":  # the fourth severity is the first of mud
        steps = np.delete(steps, 2)
    # Severities 3 and 4 of motion blur differ beyond six standard deviations alone, in CIFAR-10-C too.
    assert (steps > (-0.01 if name == "motion_blur" else 0)).all() and distance[-1] > distance[0] > 0.2, distance


def test_closed_forms(images):
    flat = np.full((1, 32, 32, 3), 100, np.uint8)
    for name in ("motion_blur", "pixelate", "contrast"):
        assert np.abs(corrupt(flat, name, 5, [0]).astype(int) - 100).max() <= 1, name
    noise = corrupt(flat.repeat(64, 0), "gaussian_noise", 5, range(64)).astype(float)
    assert noise.mean() == pytest.approx(99.5, abs=0.3) and noise.std() == pytest.approx(25.5, abs=0.3)
    salted = corrupt(flat.repeat(64, 0), "impulse_noise", 5, range(64))
    assert [(salted == value).mean() for value in (0, 255)] == pytest.approx([0.035, 0.035], abs=0.002)
    contrasts = corrupt(images, "contrast", 5, range(24)).astype(float)
    assert np.ptp(contrasts, (1, 2)) == pytest.approx(0.15 * np.ptp(images.astype(float), (1, 2)), abs=1.01)


def test_an_array_of_corrupted_images_reads_the_same_in_any_order(images):
    found = CorruptedPixels(images, "signs", "gaussian_noise", 2)
    whole, order = found[:], np.random.default_rng(1).permutation(24)
    assert found.shape == whole.shape == images.shape
    assert (found[order] == whole[order]).all() and (found[5:9] == whole[5:9]).all()
    assert (found[-1] == whole[-1]).all()
    assert (CorruptedPixels(images, "land", "gaussian_noise", 2)[:] != whole).any()


def test_test_images_alone_are_corrupted_and_only_when_asked(make_run):
    clean, shifted = make_run(), make_run("--corruption=contrast", "--severity=4")
    for split, same in (("test", False), ("val", True), ("train", True)):
        one, two = (data.evaluation_pixels(run, "digits", split, 32) for run in (clean, shifted))
        assert (one.pixels[:] == two.pixels[:]).all() == same
        assert (one.labels == two.labels).all()
    milder = data.evaluation_pixels(make_run("--corruption=contrast", "--severity=1"), "digits", "test", 32)
    shifted = data.evaluation_pixels(shifted, "digits", "test", 32)
    assert milder.pixels[:].std() > shifted.pixels[:].std()


def test_images_on_disk_are_corrupted_once_into_the_image_cache(make_run, tmp_path, monkeypatch):
    run = make_run("--corruption=jpeg_compression", "--severity=5")
    made, corrupt = [], corruptions.corrupt
    monkeypatch.setattr(corruptions, "corrupt", lambda images, *a: made.append(len(images)) or corrupt(images, *a))
    clean = data.evaluation_pixels(make_run(), "digits", "test", 32)
    stored = np.memmap(tmp_path / "pixels", np.uint8, "w+", shape=clean.pixels.shape)
    stored[:] = clean.pixels
    data._corrupted.cache_clear()
    in_memory = data.evaluation_pixels(run, "digits", "test", 32)
    run = replace(run, places=replace(run.places, cache=tmp_path))
    monkeypatch.setattr(data, "_decoded", lambda *which: data.Pixels(stored, clean.labels))
    for _ in range(2):
        data._corrupted.cache_clear()  # as in another process
        on_disk = data.evaluation_pixels(run, "digits", "test", 32)
        assert isinstance(on_disk.pixels, np.memmap) and (on_disk.labels == in_memory.labels).all()
        assert (on_disk.pixels[:] == in_memory.pixels).all()
    assert sum(made) == 2 * len(in_memory)  # in memory, and on disk
    milder = replace(run, corruption=replace(run.corruption, severity=2))
    data._corrupted.cache_clear()
    assert (data.evaluation_pixels(milder, "digits", "test", 32).pixels[:] != on_disk.pixels[:]).any()
    data._corrupted.cache_clear()


@pytest.mark.parametrize("name", NAMES)
def test_fusion_benchs_protocol_corrupts_files_in_their_own_size(name):
    """CIFAR-10-C's constants, whatever the size; the noise is that of the data set and the image."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(20, 235, (6, 9, 3), np.uint8)).resize((300, 200), Image.Resampling.BICUBIC)
    found = corrupt_file(smooth, "Cars", f"fusion_bench_{name}", 2)
    again = corrupt_file(smooth, "Cars", f"fusion_bench_{name}", 2)
    assert found.size == ((32, 32) if name == "pixelate" else (300, 200)) and found.mode == "RGB"
    assert (np.asarray(found) == np.asarray(again)).all()
    if name == "contrast":
        pixels = np.asarray(smooth).astype(float)
        mean = pixels.mean((0, 1))
        assert np.abs(np.asarray(found) - (mean + 0.5 * (pixels - mean))).max() <= 1
    if name == "gaussian_noise":
        assert 0.05 < (np.asarray(found) / 255 - np.asarray(smooth) / 255).std() < 0.065
        other = corrupt_file(smooth, "EuroSAT", f"fusion_bench_{name}", 2)
        assert (np.asarray(found) != np.asarray(other)).any()
    if name == "pixelate":
        coarse = smooth.resize((28, 28), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
        assert (np.asarray(found) == np.asarray(coarse)).all()


def test_files_are_corrupted_before_they_are_cropped(make_run, tmp_path):
    """On disk into the image cache; on mini in memory. Validation stays clean."""
    files.class_folders("EuroSAT", tmp_path / "data/eurosat", {"2750": 20}, files.EUROSAT)
    prepare(FACTS["EuroSAT"], tmp_path / "data", as_is=True)
    flags = ("--suite=vision", "--tasks=EuroSAT", f"--data-location={tmp_path / 'data'}")
    clean = make_run(*flags)
    run = make_run(*flags, "--corruption=fusion_bench_contrast", "--severity=2")
    image = data.examples(clean, "EuroSAT", "test")[3]
    expected = data.centre_crop(corrupt_file(image, "EuroSAT", "fusion_bench_contrast", 2), 32)
    found = data.evaluation_pixels(run, "EuroSAT", "test", 32)
    assert (found.pixels[3] == expected).all() and isinstance(found.pixels, np.memmap)
    assert (found.labels == data.evaluation_pixels(clean, "EuroSAT", "test", 32).labels).all()
    for split in ("val", "test"):
        same = (
            data.evaluation_pixels(run, "EuroSAT", split, 32).pixels[:]
            == data.evaluation_pixels(clean, "EuroSAT", split, 32).pixels[:]
        ).all()
        assert same == (split == "val")
    drawn = make_run("--corruption=fusion_bench_pixelate", "--tasks=digits")
    assert data.evaluation_pixels(drawn, "digits", "test", 32).pixels.shape[1:] == (32, 32, 3)


def test_results_and_states_lie_apart(make_run):
    places = [make_run(*flags).paths for flags in ((), ("--corruption=contrast",), ("--corruption=pixelate",))]
    for name in ("result", "masks", "adaptation_state"):
        assert len({getattr(paths, name)("merging/8task/standard-visual/sum") for paths in places}) == 3
    assert places[0].result("sum").parent == places[1].result("sum").parent.parent.parent
    assert places[1].result("sum").parent.name == "contrast_5"
    assert len({paths.checkpoint("signs", "standard") for paths in places}) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--corruption=motion_blurr"], "did you mean motion_blur? Known: motion_blur, impulse_noise, gaussian_noise"),
        (["--corruption=fusion_bench_contras"], "did you mean fusion_bench_contrast?"),
    ],
)
def test_wrong_names_and_severities_say_what_exists(make_run, flags, message):
    with pytest.raises(UsageError) as error:
        make_run(*flags)
    assert message in str(error.value)
    with pytest.raises(UsageError, match="--severity: expected a whole number of at least 1 and at most 5; got 6"):
        Corruption("contrast", 6)


def test_a_script_scores_corrupted_images_and_others_ask_for_it(make_run, tmp_path, small_cache):
    shared = ["--finetuning-mode=none", "--seed=0", "--tasks=digits", "--device=cpu", "--jobs=1"]
    shared += [f"--save={tmp_path}/checkpoints", f"--results={tmp_path}/results", f"--cache-dir={small_cache}"]
    shifted = ["--corruption=gaussian_noise", "--severity=5"]
    run = make_run("--tasks=digits", *shifted)
    eval_single_task.main(shared)
    with pytest.raises(results.MissingResult, match=" ".join(shifted)):  # clean accuracies do not stand in
        Denominators.of(run, "none", run.tasks)
    eval_single_task.main([*shared, *shifted])

    folder = tmp_path / "results/mini/ViT-Mini/seed_0"
    clean = results.read(folder / "zeroshot_accuracies.json")
    noisy = results.read(folder / "corrupted/gaussian_noise_5/zeroshot_accuracies.json")
    assert noisy["corruption"] == {"name": "gaussian_noise", "severity": 5, "splits": ["test"]}
    assert "corruption" not in clean
    assert noisy["digitsVal"] == clean["digitsVal"] and noisy["digits"] != clean["digits"]
    assert Denominators.of(run, "none", run.tasks).zeroshot["test"] == {"digits": noisy["digits"]}


def test_results_of_every_script_on_corrupted_images_say_so_and_lie_apart(tmp_path, small_cache):
    shared = ["--seed=0", "--device=cpu", "--jobs=1", "--corruption=contrast", "--severity=5"]
    shared += [f"--save={tmp_path}/checkpoints", f"--results={tmp_path}/results", f"--cache-dir={small_cache}"]
    pair = ["--pairs", "digits-signs", "--num-samples=6"]
    eval_ntk_localization.main([*shared, *pair, "--reduction=sum", "--ranks", "2"])
    run = parse(base_parser(""), [*shared, "--tasks=digits,signs"])[0]
    draw_checkpoints(run)
    eval_task_negation.main([*shared, "--tasks=digits", "--n-eval-points=2"])
    eval_disentanglement.main([*shared, *pair, "--n-points=3"])
    files = sorted((tmp_path / "results").rglob("*.json"))
    made = {file.stem: results.read(file) for file in files if file.stem.startswith(("ntk", "neg", "dis"))}
    assert len(made) == 3 and all("corrupted" in file.parts for file in files)
    assert {record["corruption"]["name"] for record in made.values()} == {"contrast"}

    for made_up in (tmp_path / "results").rglob("*accuracies.json"):
        made_up.unlink()
    moved = tmp_path / "results/mini/ViT-Mini/seed_0/ntk_sum.json"
    next((tmp_path / "results").rglob("corrupted/*/ntk_sum.json")).rename(moved)
    with pytest.raises(results.ResultError, match="found this one outside it"):
        list(read_results(run.paths))
