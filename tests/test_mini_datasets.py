"""The embedded suite: pinned bytes, disjoint splits, complete rows, a cache that two processes can build at once."""

import contextlib
import hashlib
import json
import subprocess
from pathlib import Path

import forked
import numpy as np
import pytest

from src import args as arguments
from src.datasets import registry
from src.datasets.base import validation_indices
from src.datasets.mini import draw
from src.datasets.mini.canvas import PIXELS, reduce
from src.experiments import commands
from src.experiments.stages import STAGES
from src.runtime.messages import UsageError
from src.runtime.paths import ROOT
from src.vit_mini import clip, mixture

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
    "house_letters": "c9986a1166d41b50",
    "symbols": "68136886ac6a4131",
    "toys": "c3d64777c1c63c21",
    "garden": "1bb6d2c57a021535",
    "chess": "bc4c5bf53701f533",
    "tissue": "43d12bcef78a887f",
    "faces": "ae37df70005173b2",
    "characters": "e4dfb84474f87ba7",
    "thumbnails": "fe9439633f393b83",
    "biscuits": "cf29375f37c1d6b2",
    "silhouettes": "e5ec432a331514e8",
    "headlines": "c435447a4951c0b3",
    "script": "f8fa26250039880b",
}
UNTRAINED = ("control", "house_letters")
# What each of the larger benchmarks' tasks shares: another set and how many of its classes bear the same name.
SHARED = {
    "symbols": {},
    "toys": {"vehicles": 2, "symbols": 3},
    "garden": {"control": 12},
    "chess": {"symbols": 6},
    "tissue": {"textures": 2},
    "faces": {"symbols": 4},
    "characters": {"digits": 10, "letters": 23, "house_numbers": 10},
    "thumbnails": {"vehicles": 3, "symbols": 2, "toys": 9},
    "biscuits": {"control": 52, "garden": 8},
    "silhouettes": {"vehicles": 16, "toys": 2, "thumbnails": 3},
    "headlines": {},
    "script": {"symbols": 10},
}


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


def picture_hashes(name: str, split: str, cache) -> set[bytes]:
    return {image.tobytes() for image in draw.load(name, split, cache, seed=0).pixels}


def first_pictures(name: str, seed: int = 0) -> np.ndarray:
    if draw.FAMILIES[name].pictures:
        return draw._dealt(name, seed)["test_x"][:8]
    return draw._draw_chunk((name, "test", seed, 0))[3][:8]


@pytest.mark.parametrize("name", draw.FAMILIES)
def test_bytes_are_pinned(name):
    found = draw.library_versions()
    if found != VERSIONS:
        pytest.skip(f"hashes are pinned for {VERSIONS}; these are {found}")
    assert digest(first_pictures(name)) == HASHES[name]


@pytest.mark.parametrize("name", ["vehicles", "digits"])
def test_same_seed_same_bytes_other_seed_other_bytes(name):
    assert digest(first_pictures(name)) == digest(first_pictures(name))
    assert digest(first_pictures(name)) != digest(first_pictures(name, seed=1))


def test_no_picture_is_in_two_splits_or_two_sets(mini_cache):
    seen: dict[bytes, str] = {}
    for name, family in draw.FAMILIES.items():
        for split in family.sizes:
            for picture in picture_hashes(name, split, mini_cache):
                assert seen.setdefault(picture, f"{name} {split}") == f"{name} {split}"


@pytest.mark.parametrize("name", draw.FAMILIES)
def test_rows_are_complete(name, mini_cache):
    row = registry.get(name)
    assert row.suite == "mini" and len(row.templates) == 3 and all(t.count("{}") == 1 for t in row.templates)
    assert len(set(row.classnames)) == len(row.classnames)
    for split in draw.FAMILIES[name].sizes:
        examples = row.load(split, mini_cache, 0)
        assert set(examples.labels) == set(range(len(row.classnames)))


@pytest.mark.parametrize("name", ["digits", "silhouettes"])  # dealt, and drawn in many chunks
def test_a_set_is_drawn_whole_and_no_picture_twice(name, tmp_path):
    seen: set[bytes] = set()
    with forked.workers():
        drawn = draw.cached(tmp_path, 0, (name,))[name]
    for split, size in draw.FAMILIES[name].sizes.items():
        pixels, labels = np.load(drawn / f"{split}_x.npy"), np.load(drawn / f"{split}_y.npy")
        assert pixels.shape == (size, PIXELS, PIXELS, 3) and pixels.dtype == np.uint8
        assert labels.shape == (size,) and labels.dtype == np.int64
        seen |= {image.tobytes() for image in pixels}
    assert len(seen) == sum(draw.FAMILIES[name].sizes.values())


@pytest.mark.parametrize("family", draw.FAMILIES.values(), ids=draw.FAMILIES)
def test_every_class_is_drawn_in_every_look(family):
    rng = np.random.default_rng(5)
    for look in filter(None, (family.draw, family.web)):
        for label, name in enumerate(family.names):
            picture = look(label, rng)
            assert picture.size == (64, 64) and picture.mode == "RGB"
            assert reduce(picture, rng, 0).std() > 2, f"{name} is blank"


def test_the_order_is_that_of_the_numbers_which_are_distinct():
    assert [family.number for family in draw.FAMILIES.values()] == list(range(22))
    assert draw.TASKS == tuple(name for name in HASHES if name not in UNTRAINED) and draw.FIRST == draw.TASKS[:8]


def bare(family) -> set[str]:
    """Class names, as the sets of letters or digits alone have them."""
    return {name.removeprefix("letter ").removeprefix("number ") for name in family.names}


@pytest.mark.parametrize("name", SHARED)
def test_classes_are_shared_with_earlier_sets(name):
    earlier = {n: f for n, f in draw.FAMILIES.items() if f.number < draw.FAMILIES[name].number}
    counts = {other: len(bare(family) & bare(draw.FAMILIES[name])) for other, family in earlier.items()}
    assert {other: count for other, count in counts.items() if count} == SHARED[name]


def test_a_new_task_says_nothing_that_the_shipped_model_cannot_read():
    _, tokenizer = clip.load()
    for family in draw.FAMILIES.values():
        texts = [template.format(name) for template in family.templates for name in family.names]
        assert {word for text in texts for word in text.lower().split()} <= set(tokenizer.words)
        assert max(len(text.split()) for text in texts) <= tokenizer.context_length - 2
        assert len({tuple(row.tolist()) for row in tokenizer(texts)}) == len(set(texts))


def test_tasks_by_name_and_by_number():
    def tasks(*words):
        return arguments.parse(arguments.base_parser(""), [*(("--tasks", *words) if words else ())])[0].tasks

    assert tasks() == draw.TASKS[:8]
    assert tasks("symbols,script") == tasks("symbols", "script") == ("symbols", "script")
    assert [tasks(str(n)) for n in (8, 14, 20)] == [draw.TASKS[:n] for n in (8, 14, 20)]
    with pytest.raises(UsageError, match="a number from 1 to 20"):
        tasks("21")


def test_a_reproduction_is_of_the_default_tasks_and_of_every_benchmark_when_asked():
    def sizes(*flags):
        run, _ = arguments.parse(arguments.base_parser("", modes=None), flags)
        stages = {stage.name: commands.COMMANDS[stage.name](run) for stage in STAGES}
        asked = [*stages["fine-tuning"], *stages["addition"], *stages["merging"]]
        named = {flag for command in asked for flag in command.flags if "tasks" in flag or "DATASETS" in flag}
        return named, len(stages["fine-tuning"][0].outputs)

    assert sizes() == (set(), 8)
    assert sizes("--tasks=20") == ({f"--tasks={','.join(draw.TASKS)}", "num_tasks=14", "num_tasks=20"}, 20)
    assert sizes("--tasks=toys,script")[0] == {"--tasks=toys,script", "DATASETS=[toys,script]"}


def test_methods_that_take_weights_alone_run_on_every_benchmark_that_a_run_has():
    def of(*flags, count: int) -> list[str]:
        run, _ = arguments.parse(arguments.base_parser("", modes=None), flags)
        words = [command.flags for command in commands.COMMANDS["methods"](run)]
        return [method for method, *rest in words if (f"num_tasks={count}" in rest) == (count > 8)]

    assert of("--tasks=20", count=14) == of("--tasks=20", count=20)
    assert {"method=tsv_m", "method=iso_cts", "method=cart"} <= {*of("--tasks=20", count=14)}
    assert "method=regmean" in of(count=8) and "method=regmean" not in of("--tasks=20", count=14)
    assert of(count=14) == []


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


def run_at_once(folder, *programs: str) -> list[subprocess.CompletedProcess]:
    """Python programs that start together, with the names `draw` and `cache`, a folder, and two small sets to draw."""
    root = registry.__file__.rpartition("/src/")[0]
    head = (
        f"import sys; sys.path.insert(0, {root!r})\nfrom dataclasses import replace\nfrom pathlib import Path\n"
        "from src.datasets.mini import draw\n"
        "for name in ('signs', 'toys'):\n"
        "    draw.FAMILIES[name] = replace(draw.FAMILIES[name], sizes={'val': 40})\n"
        "drawer = draw.draw\n"
        "draw.draw = lambda names, seed: print('drawing', *names, file=sys.stderr) or drawer(names, seed)\n"
        f"cache = Path({str(folder / 'cache')!r})\n"
    )
    files = [folder / f"program_{number}.py" for number in range(len(programs))]
    for file, program in zip(files, programs):
        file.write_text(f"{head}if __name__ == '__main__':\n    {program}\n")
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(forked.start(file)) for file in files]
        done = [program.completed() for program in started]
    assert not any(program.returncode for program in done), [program.stderr for program in done]
    return done


def test_two_processes_that_start_at_once_build_one_cache(tmp_path):
    """One draws, the other waits; both read the same whole files, and nothing else stays."""
    program = "print(draw.cached(cache, 0, ('signs', 'digits'))['signs'])"
    first, second = run_at_once(tmp_path, program, program)
    assert first.stdout == second.stdout
    assert ("drawing" in first.stderr) != ("drawing" in second.stderr)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["mini_seed0"]
    drawn = sorted(folder.name.rpartition("_")[0] for folder in (tmp_path / "cache" / "mini_seed0").iterdir())
    assert drawn == ["digits", "signs"]


def test_a_set_is_drawn_when_it_is_needed(tmp_path):
    for name in ("signs", "toys"):
        (done,) = run_at_once(tmp_path, f"print(draw.cached(cache, 0, ({name!r},))[{name!r}])")
    assert len(list((tmp_path / "cache" / "mini_seed0").iterdir())) == 2
    assert [file.name for file in sorted(Path(done.stdout.strip()).iterdir())] == ["val_x.npy", "val_y.npy"]
    assert draw.TOGETHER == (*draw.FIRST, *UNTRAINED)


def test_the_stamp_of_a_set_is_of_what_it_draws_with():
    def names(family):
        return {file.stem for file in draw._sources(family)}

    assert names("signs") == {"signs", "canvas", "family"}
    assert names("thumbnails") == {
        *("thumbnails", "toys", "sprites", "control", "vehicles", "extras", "canvas", "family")
    }
    assert draw.stamp("signs") != draw.stamp("toys")


def test_unknown_names_say_the_nearest():
    with pytest.raises(ValueError, match="did you mean signs"):
        registry.get("sings")
    with pytest.raises(ValueError, match="Known: mini, vision"):
        registry.suite("large")


def test_the_table_of_the_design_seed_is_that_of_its_results():
    page = (ROOT / "docs/mini.md").read_text(encoding="utf-8")
    section = page.partition("## Seed 0")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:2] == "| "]
    folder = ROOT / "results/mini/ViT-Mini/seed_0"
    records = [json.loads((folder / f"{name}_accuracies.json").read_text()) for name in ("zeroshot", "ft", "linear_ft")]
    shown = {name: [float(numbers[i]) for i in (1, 3, 4)] for name, *numbers in rows[1:] if numbers[0][0] != "-"}
    assert len(shown) == 23
    for count in (8, 14, 20):
        means = [sum(record[task] for task in draw.TASKS[:count]) / count for record in records]
        assert shown.pop(f"mean of the first {count}") == [round(100 * value, 1) for value in means]
    assert shown == {
        task.replace("_", " "): [round(100 * record[task], 1) for record in records] for task in draw.TASKS
    }
