"""Files of any damage: every reader answers with an error that names the file, and takes no memory without bound."""

import gzip
import io
import json
import re
import resource
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import vision_files as files
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from src import checkpoints, state_files
from src.datasets import hub, mirrored, official
from src.datasets.examples import DataError
from src.datasets.mini import draw
from src.datasets.mini.drawn import load as load_drawn
from src.datasets.prepare import prepare
from src.datasets.record import Record
from src.datasets.status import state
from src.datasets.vision import FACTS, ROWS
from src.evaluation import Denominators
from src.finetuning.states import resume
from src.merging.watch import Watch
from src.published.convert import convert
from src.published.download import Published, verify
from src.run import Run
from src.runtime import results
from src.runtime.files import parse_json
from src.runtime.messages import CheckpointError
from src.runtime.paths import Places
from src.runtime.results import ResultError

ERRORS = (CheckpointError, DataError, ResultError)
MORE_MEMORY = 1 << 30
ROW = {row.name: row for row in ROWS}
WEIGHTS = {"model.visual.proj": torch.ones(4, 3), "model.visual.bias": torch.zeros(3)}
HEADER = {"model": "small", "task": "digits", "mode": "standard", "seed": 1, "settings": {}, "step": 3}


@contextmanager
def little_memory() -> Iterator[None]:
    """As much address space as there is in use, and a gigabyte: none for a library that is imported within."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# Readers: what makes a whole file, and what reads it.


def write_weights(path: Path) -> None:
    checkpoints.save(path, WEIGHTS, HEADER)


def write_masks(path: Path) -> None:
    masks = {task: {name: w > 0 for name, w in WEIGHTS.items()} for task in ("digits", "signs")}
    checkpoints.save_masks(path, masks, {"model": "small"})


def optimizer() -> torch.optim.Optimizer:
    parameters = [torch.nn.Parameter(weight.clone()) for weight in WEIGHTS.values()]
    made = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    made.step()
    return made


def write_state(path: Path) -> None:
    state_files.save(path, {"model": WEIGHTS}, {"optimizer": optimizer()}, HEADER, kind="training state")


def read_state(path: Path) -> None:
    """As fine-tuning goes on."""
    encoder = torch.nn.Module()
    encoder.model = torch.nn.Module()
    encoder.model.visual = torch.nn.Module()
    for name, weight in WEIGHTS.items():
        encoder.model.visual.register_parameter(name.rpartition(".")[2], torch.nn.Parameter(weight.clone()))
    resume(path, encoder, optimizer(), HEADER)


def write_result(path: Path) -> None:
    accuracies = {"digits": 0.5, "digitsVal": 0.5}
    for name in ("ft_accuracies", "zeroshot_accuracies"):
        results.write(path.with_name(f"{name}.json"), accuracies, {"device": "cpu"}, time.time())


def read_denominators(path: Path) -> None:
    run = Run("mini", "ViT-Mini", 1, ("digits",), Places(results=path.parents[3]))
    Denominators.of(run, "standard", run.tasks)


def write_watched(path: Path) -> None:
    path.write_text(json.dumps([{"step": 0, "phase": "a", "accuracy": {"digits": 0.5}}]))


def read_watched(path: Path) -> None:
    run = Run("mini", "ViT-Mini", 1, ("digits",))
    Watch(run, "standard", 5, path, lambda *which: None).record()


def write_record(path: Path) -> None:
    files.OFFICIAL["MNIST"](path.parents[1])
    prepare(FACTS["MNIST"], path.parents[1], "official", as_is=True)


def read_record(path: Path) -> None:
    assert state(FACTS["MNIST"], path.parents[1])["state"].startswith(("as is", "damaged", "absent"))
    ROW["MNIST"].load("val", path.parents[1], 0)


def write_snapshot(path: Path) -> None:
    files.hub("MNIST", path.parents[2])


def read_mirror(path: Path) -> None:
    mirror = FACTS["MNIST"].mirror
    state(FACTS["MNIST"], path.parents[2] if path.name == "snapshot.json" else path.parents[3])
    root = next(parent.parent for parent in path.parents if parent.name == "hub")
    mirrored.read(mirror, root, "train", FACTS["MNIST"].classnames).raw(0)


def read_mnist(path: Path) -> None:
    official.idx(path.parent, "train", 10, prefix={"train": "train", "test": "t10k"})


def write_mat(path: Path) -> None:
    savemat(path, {"X": np.zeros((32, 32, 3, 5), np.uint8), "y": np.ones((5, 1))}, do_compression=True)


def read_of(name: str, part: str = "train") -> Callable[[Path], None]:
    def read(path: Path) -> None:
        root = next(parent for parent in path.parents if (parent / ".root").exists())
        facts = FACTS[name]
        facts.read("official", root, part)

    return read


def write_of(name: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        root = next(parent for parent in path.parents if (parent / ".root").exists())
        files.OFFICIAL[name](root)

    return write


def write_npy(path: Path) -> None:
    bits = {"digits": np.packbits(np.ones(15, bool)), "signs": np.packbits(np.zeros(15, bool))}
    np.save(path, bits, allow_pickle=True)


def read_published(path: Path) -> None:
    convert(path, path.with_suffix(".out.safetensors"), model="small", task="digits", pretrained=WEIGHTS)


def write_torch(path: Path) -> None:
    torch.save(dict(WEIGHTS), path)


def write_drawn(path: Path) -> None:
    """A split of a mini set, all black, beside folders of the others."""
    for name, folder in drawn_folders(path.parents[2]).items():
        folder.mkdir(parents=True, exist_ok=True)
        if name == DRAWN:
            n = draw.FAMILIES[name].sizes["val"]
            np.save(folder / "val_x.npy", np.zeros((n, draw.PIXELS, draw.PIXELS, 3), np.uint8))
            np.save(folder / "val_y.npy", np.zeros(n, np.int64))


def drawn_folders(cache: Path) -> dict[str, Path]:
    return {name: cache / f"mini_seed0/{name}_{draw.stamp(name)}" for name in draw.TOGETHER}


def write_verified(path: Path) -> None:
    path.write_text(json.dumps({"a": {"size": 1, "sha256": "0"}}))


def read_verified(path: Path) -> None:
    file = path.with_name("fetched")
    file.write_bytes(b"whole")
    verify(Published("b", "head", "digits", "here"), file, path)


DRAWN = "digits"
SEED = "mini/ViT-Mini/seed_1"
FOLDER = FACTS["MNIST"].mirror.folder(Path("hub_root")).relative_to("hub_root")
READERS: dict[str, tuple[str, Callable[[Path], None], Callable[[Path], object]]] = {
    "weights": ("w.safetensors", write_weights, lambda path: checkpoints.load(path, like=WEIGHTS, model="small")),
    "masks": ("m.safetensors", write_masks, lambda path: checkpoints.load_masks(path, model="small")),
    "state": ("s.state", write_state, read_state),
    "result": (f"{SEED}/ft_accuracies.json", write_result, lambda path: results.read(path)),
    "denominators": (f"{SEED}/ft_accuracies.json", write_result, read_denominators),
    "watched": ("w.watched.state", write_watched, read_watched),
    "record": ("prepared/MNIST.json", write_record, read_record),
    "snapshot": (f"{FOLDER}/snapshot.json", write_snapshot, read_mirror),
    "drawn": (
        f"{drawn_folders(Path('cache'))[DRAWN]}/val_x.npy", write_drawn,
        lambda path: load_drawn(DRAWN, "val", path.parents[2], 0),
    ),
    "drawn labels": (
        f"{drawn_folders(Path('cache'))[DRAWN]}/val_y.npy", write_drawn,
        lambda path: load_drawn(DRAWN, "val", path.parents[2], 0),
    ),
    "verified": ("verified.json", write_verified, read_verified),
    "idx": ("train-images-idx3-ubyte", lambda path: write_idx(path), read_mnist),
    "idx.gz": ("train-images-idx3-ubyte.gz", lambda path: write_idx(path), read_mnist),
    "mat": ("train_32x32.mat", write_mat, lambda path: official.svhn(path.parent, "train", 10)),
    "npy": ("TALL_mask_2task.npy", write_npy, read_published),
    "torch": ("nonlinear_finetuned.pt", write_torch, read_published),
    "csv": ("fer2013/fer2013.csv", write_of("FER2013"), read_of("FER2013")),
    "cifar": ("cifar-10-batches-py/data_batch_1", write_of("CIFAR10"), read_of("CIFAR10")),
    "stl10": ("stl10/stl10_binary/train_X.bin", write_of("STL10"), read_of("STL10")),
    "cars": ("stanford_cars/devkit/cars_train_annos.mat", write_of("Cars"), read_of("Cars")),
    "flowers": ("flowers102/flowers-102/setid.mat", write_of("Flowers102"), read_of("Flowers102")),
    "pets": (
        "OxfordIIITPet/oxford-iiit-pet/annotations/trainval.txt",
        write_of("OxfordIIITPet"),
        read_of("OxfordIIITPet"),
    ),
    "pcam": ("PCAM/pcam/camelyonpatch_level_2_split_train_x.h5", write_of("PCAM"), read_of("PCAM")),
}  # fmt: skip


def write_idx(path: Path) -> None:
    opened = gzip.open if path.suffix == ".gz" else open
    ending = ".gz" if path.suffix == ".gz" else ""
    arrays = {"train-images-idx3-ubyte": np.zeros((5, 28, 28), np.uint8), "train-labels-idx1-ubyte": np.arange(5)}
    for name, values in arrays.items():
        with opened(path.with_name(name + ending), "wb") as file:
            file.write(files.idx_bytes(values.astype(np.uint8)))


# Damages: of the bytes of a whole file.

DEEP = 100_000
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "first half": lambda whole: whole[: len(whole) // 2],
    "all but the end": lambda whole: whole[:-3],
    "one byte": lambda whole: whole[:1],
    "zeros": lambda whole: bytes(len(whole)),
    "a web page": lambda whole: b"<html>404 not found</html>",
    "other bytes": lambda whole: np.random.default_rng(0).bytes(len(whole)),
    "nested": lambda whole: b"[" * DEEP + b"]" * DEEP,
    "nested header": lambda whole: struct.pack("<Q", 6 * DEEP + 2) + b'{"a":' * DEEP + b"{}" + b"}" * DEEP,
    "header of 2**60": lambda whole: struct.pack("<Q", 1 << 60) + b"{" + whole[9:],
    "a zip": lambda whole: b"PK\3\4" + whole,
    "a pickle": lambda whole: b"\x80\4cos\nsystem\n(S'touch marker'\ntR.",
}
BEGINNINGS = {"first half", "all but the end"}
SAME_SIZE = {"zeros", "other bytes", "header of 2**60"}
# What such a reader cannot know of; `prepare` compares the numbers of images with the published ones.
HARMLESS = {
    "csv": BEGINNINGS,  # fewer rows
    "pets": BEGINNINGS | {"header of 2**60", "a zip"},  # another name of a file, which will not be there
    "stl10": SAME_SIZE,  # nothing but pixels
    "mat": {"all but the end"},
    "cars": {"all but the end"},
    "flowers": {"all but the end"},
    "pcam": {"all but the end"},
}


def refused(read: Callable[[Path], object], path: Path, damage: str) -> str:
    """The message of the error that a reader raises, which names the file or its folder."""
    try:
        read(path)
    except ERRORS as error:
        told = str(error)
    else:
        pytest.fail(f"{damage}: {path} was read")
    assert path.name in told or str(path.parent) in told or f"/{path.parts[-3]}" in told, (damage, told)
    assert not re.search("MemoryError|alloc|Traceback", told), (damage, told)
    return told


@pytest.fixture
def place(tmp_path):
    (tmp_path / ".root").touch()
    return tmp_path


@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_file_is_named_and_stays(reader, place, monkeypatch):
    name, write, read = READERS[reader]
    monkeypatch.chdir(place)
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    read(path)
    whole = path.read_bytes()
    with little_memory():
        for damage, change in DAMAGES.items():
            if damage in HARMLESS.get(reader, ()):
                continue
            path.write_bytes(damaged := change(whole))
            refused(read, path, damage)
            assert path.read_bytes() == damaged and not Path("marker").exists()
    path.write_bytes(whole)
    read(path)


def header(change: Callable[[dict, dict], None]) -> Callable[[bytes], bytes]:
    """A change of safetensors' specifications and of the project's header."""

    def damage(whole: bytes) -> bytes:
        length = struct.unpack("<Q", whole[:8])[0]
        specs = json.loads(whole[8 : 8 + length])
        ours = json.loads(specs["__metadata__"]["header"])
        change(specs, ours)
        specs["__metadata__"]["header"] = json.dumps(ours)
        text = json.dumps(specs).encode()
        return struct.pack("<Q", len(text)) + text + whole[8 + length :]

    return damage


def spec(name: str, **fields) -> Callable[[bytes], bytes]:
    return header(lambda specs, ours: specs[name].update(fields))


def renamed(name: str, other: str) -> Callable[[bytes], bytes]:
    return header(lambda specs, ours: specs.update({other: specs.pop(name)}))


def ours(**fields) -> Callable[[bytes], bytes]:
    return header(lambda specs, ours: ours.update(fields))


def entry(*keys, to) -> Callable[[bytes], bytes]:
    """A change of one entry of a JSON file."""

    def damage(whole: bytes) -> bytes:
        document = json.loads(whole)
        inner = document
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to
        return json.dumps(document).encode()

    return damage


def without(*keys) -> Callable[[bytes], bytes]:
    def damage(whole: bytes) -> bytes:
        document = json.loads(whole)
        inner = document
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        return json.dumps(document).encode()

    return damage


def idx_header(*sizes: int) -> Callable[[bytes], bytes]:
    return lambda whole: bytes((0, 0, 8, 3)) + struct.pack(">3I", *sizes) + bytes(100)


def npy(array: np.ndarray) -> Callable[[bytes], bytes]:
    file = io.BytesIO()
    np.save(file, array)
    return lambda whole: file.getvalue()


MAT_BOMB = zlib.compress(bytes(1 << 24))
PROJ = "model.visual.proj"
SPECIFIC: dict[str, dict[str, Callable[[bytes], bytes]]] = {
    "weights": {
        "bool": spec(PROJ, dtype="BOOL", shape=[48]),
        "unknown dtype": spec(PROJ, dtype="F7"),
        "dtype of no name": spec(PROJ, dtype=7),
        "negative shape": spec(PROJ, shape=[-4, -3]),
        "shape of 2**60": spec(PROJ, shape=[1 << 60, 3]),
        "shape of text": spec(PROJ, shape="wide"),
        "other shape": spec(PROJ, shape=[3, 4]),
        "offsets turned": spec(PROJ, data_offsets=[48, 0]),
        "offsets beyond": spec(PROJ, data_offsets=[0, 1 << 50]),
        "one offset": spec(PROJ, data_offsets=[0]),
        "no model": header(lambda specs, ours: ours.pop("model")),
        "model of a list": ours(model=["small"]),
        "fingerprints of a list": ours(fingerprints=["x"]),
        "settings of text": ours(settings="none"),
        "seed of text": ours(seed="one"),
        "other format": ours(format=2),
        "another name": renamed(PROJ, "other"),
    },
    "masks": {
        "no tasks": header(lambda specs, ours: ours.pop("tasks")),
        "no shapes": header(lambda specs, ours: ours.pop("shapes")),
        "shapes of text": ours(shapes="wide"),
        "shape of 2**60": ours(shapes={PROJ: [1 << 60], "model.visual.bias": [3]}),
        "negative shape": ours(shapes={PROJ: [-12], "model.visual.bias": [3]}),
        "other shape": ours(shapes={PROJ: [400, 3], "model.visual.bias": [3]}),
        "another task": ours(tasks=["digits", "../x"]),
        "floats": spec(f"digits/{PROJ}", dtype="F16", shape=[1]),
        "tasks of numbers": ours(tasks=[1, 2]),
    },
    "state": {
        "no step": ours(step=None),
        "step of text": ours(step="three"),
        "negative step": ours(step=-1),
        "no settings": header(lambda specs, ours: ours.pop("settings")),
        "no weights": renamed(f"model/{PROJ}", "other/x"),
        "moment of nobody": renamed("optimizer/0/exp_avg", "optimizer/9/exp_avg"),
        "moment of no number": renamed("optimizer/0/exp_avg", "optimizer/x"),
        "moment of another shape": spec("optimizer/0/exp_avg", shape=[12]),
    },
    "result": {
        "no provenance": without("provenance"),
        "provenance of text": entry("provenance", to="mine"),
        "no config": without("provenance", "config"),
        "nan": entry("digits", to=float("nan")),
        "huge number": lambda whole: whole.replace(b"0.5", b"1" * 5001, 1),
        "other encoding": lambda whole: whole.decode().encode("utf-16"),
    },
    "denominators": {
        "text": entry("digits", to="0.5"),
        "above one": entry("digitsVal", to=50.0),
        "negative": entry("digits", to=-0.5),
        "zero": entry("digits", to=0),
        "a list": entry("digits", to=[0.5]),
        "true": entry("digits", to=True),
    },
    "watched": {
        "no step": without(0, "step"),
        "a number": lambda whole: b"7",
        "other tasks": entry(0, "accuracy", to={}),
    },
    "record": {
        "index beyond": entry("splits", "val", "indices", to=[1_000_000]),
        "index of 2**70": entry("splits", "val", "indices", to=[1 << 70]),
        "negative index": entry("splits", "val", "indices", to=[-1]),
        "index of text": entry("splits", "val", "indices", to=["a"]),
        "nested index": entry("splits", "val", "indices", to=[[1]]),
        "no index": entry("splits", "val", "indices", to=[]),
        "index twice": entry("splits", "val", "indices", to=[1, 1]),
        "all of train": entry("splits", "val", "indices", to=None),
        "another part": entry("splits", "val", "part", to="../x"),
        "no split": without("splits", "train"),
        "no counts": without("counts", "train"),
        "counts of text": entry("counts", "train", to="many"),
        "fewer classes": entry("counts", "train", to=[3]),
        "another source": entry("source", to="elsewhere"),
        "another format": entry("format", to=99),
    },
    "drawn": {
        "other shape": npy(np.zeros(3, np.uint8)),
        "floats": npy(np.zeros((2, 3))),
        "none": npy(np.zeros((0, 32, 32, 3), np.uint8)),
        "header of 2**70": lambda whole: whole.replace(b"(200, ", f"({1 << 70}, ".encode()),
        "header of brackets": lambda whole: whole[:10] + b"(" * (len(whole) - 10),
        "header of signs": lambda whole: whole[:10] + b"-" * (len(whole) - 10),
    },
    "drawn labels": {"fewer": npy(np.zeros(3, np.int64)), "bytes": npy(np.zeros(3, np.uint8))},
    "verified": {"a list": lambda whole: b"[1]", "facts of text": entry("a", to="1")},
    "snapshot": {
        "a file outside": entry("files", to={"../../x": {"size": 1, "sha256": None}}),
        "an absolute file": entry("files", to={"/etc/passwd": {"size": 1, "sha256": None}}),
        "size of text": entry("files", to={"x": {"size": "big", "sha256": None}}),
        "no size": entry("files", to={"x": {}}),
        "files of a list": entry("files", to=["x"]),
        "no file": entry("files", to={}),
    },
    "idx": {"header of 2**96": idx_header(*[(1 << 32) - 1] * 3), "more": lambda whole: whole + b"0"},
    "idx.gz": {
        "a bomb": lambda whole: (
            gzip.compress(bytes((0, 0, 8, 3)) + struct.pack(">3I", 5, 28, 28)) + gzip.compress(bytes(1 << 26)) * 40
        ),
        "header of 2**96": lambda whole: gzip.compress(idx_header(*[(1 << 32) - 1] * 3)(whole)),
        "damaged blocks": lambda whole: whole[:12] + bytes(20) + whole[32:],
        "wrong checksum": lambda whole: whole[:-8] + b"12345678",
    },
    "csv": {
        "a long field": lambda whole: whole + b'0,"' + b"1 " * 200_000 + b'",Training\n',
        "zero bytes": lambda whole: whole.replace(b" ", b"\0"),
        "latin 1": lambda whole: b"\xe8" + whole,
        "other columns": lambda whole: whole.replace(b"emotion", b"feeling"),
    },
}  # fmt: skip


@pytest.mark.parametrize("reader", SPECIFIC)
def test_a_file_that_lies_is_named(reader, place, monkeypatch):
    name, write, read = READERS[reader]
    monkeypatch.chdir(place)
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    read(path)
    whole = path.read_bytes()
    with little_memory():
        for damage, change in SPECIFIC[reader].items():
            path.write_bytes(damaged := change(whole))
            assert damaged != whole, damage
            refused(read, path, damage)


def test_a_mat_file_of_arrays_that_no_memory_holds_is_refused(tmp_path):
    path = tmp_path / "train_32x32.mat"
    savemat(path, {"X": np.zeros((2, 3), np.uint8)}, do_compression=False)
    data, told, promised = (
        path.read_bytes(),
        *(np.array(shape, "<i4").tobytes() for shape in ((2, 3), (1 << 20, 1 << 15))),
    )
    assert data.count(told) == 1
    path.write_bytes(data.replace(told, promised))
    with pytest.raises(DataError, match=r"train_32x32.mat: expected at most \d+ numbers in 'X', found a header of"):
        official._check_mat(path)


def test_tensors_that_are_no_numbers_are_no_weights(tmp_path):
    """Of the right names and shapes, but with nothing to subtract."""
    path = tmp_path / "w.safetensors"
    checkpoints.save(path, {name: weight > 0 for name, weight in WEIGHTS.items()}, HEADER)
    refused(lambda path: checkpoints.load(path, like=WEIGHTS, model="small"), path, "bool")


def test_a_torch_file_that_swells_is_refused(tmp_path):
    bomb = tmp_path / "bomb.pt"
    torch.save({"model.visual.proj": torch.zeros(1).expand(1 << 40)}, bomb)
    with little_memory(), pytest.raises(CheckpointError, match="bomb.pt: expected a tensor with its own numbers"):
        read_published(bomb)


@pytest.mark.parametrize("kind", ["a folder", "none"])
def test_what_is_no_file_is_no_published_file(kind, tmp_path):
    path = tmp_path / "weights"
    if kind == "a folder":
        path.mkdir()
    with pytest.raises(CheckpointError, match=f"weights: expected a published file, found {kind}"):
        read_published(path)


def test_a_parquet_file_of_any_damage_is_named(place, monkeypatch):
    files.hub("MNIST", place)
    folder = place / FOLDER
    (path, *_) = sorted(folder.rglob("*train*.parquet"))
    whole, snapshot = path.read_bytes(), hub.Snapshot.read(folder)
    for damage, change in DAMAGES.items():
        path.write_bytes(damaged := change(whole))
        sizes = {str(path.relative_to(folder)): {"size": len(damaged), "sha256": None}}
        hub.Snapshot(snapshot.repo, snapshot.revision, snapshot.files | sizes).write(folder)
        with pytest.raises(DataError) as caught:
            mirrored.read(FACTS["MNIST"].mirror, place, "train", FACTS["MNIST"].classnames)
        assert path.name in str(caught.value), (damage, str(caught.value))


@pytest.mark.parametrize("which", ["*.arrow", "dataset_info.json"])
def test_an_arrow_copy_of_any_damage_is_named(which, place):
    """And not the files that it is a copy of, which are whole."""
    files.hub("MNIST", place)
    read = partial(mirrored.read, FACTS["MNIST"].mirror, place, "train", FACTS["MNIST"].classnames)
    read()
    ((path, *_),) = (sorted(copy.glob(which)) for copy in (place / "hub/.arrow").glob("*-train-*") if copy.is_dir())
    whole = path.read_bytes()
    for damage, change in DAMAGES.items():
        path.unlink()  # it may be mapped
        path.write_bytes(change(whole))
        with pytest.raises(DataError, match=f"{path.parent}: expected .*; remove it, and it is made anew"):
            read()
            pytest.fail(damage)


def test_a_record_is_never_overwritten_by_its_reader(place):
    write_record(path := place / "prepared/MNIST.json")
    path.write_bytes(b"damaged")
    with pytest.raises(DataError, match="is damaged .* prepare MNIST"):
        Record.read(FACTS["MNIST"], place)
    assert path.read_bytes() == b"damaged"


@pytest.mark.parametrize("text", [b"", b"{", b"NaN", b"-Infinity", b"\xff", b"1" * 5001, b"[" * DEEP, b"{}{}"])
def test_json_that_is_none_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize("reader", ["weights", "masks", "state", "result", "record", "idx.gz", "npy", "torch", "cifar"])
def test_bytes_that_change_give_the_file_or_one_of_our_errors(reader, tmp_path_factory):
    """A small corpus of damaged files, drawn by hypothesis: whatever it draws, there is no other error."""
    place = tmp_path_factory.mktemp("corpus")
    (place / ".root").touch()
    name, write, read = READERS[reader]
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    whole = path.read_bytes()

    @settings(max_examples=40)
    @given(data=st.data())
    def check(data) -> None:
        damaged = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 4))):
            start = data.draw(st.integers(0, min(len(damaged), 2000)))
            stop = start + data.draw(st.integers(0, 8))
            damaged[start:stop] = data.draw(st.binary(max_size=8))
        path.write_bytes(damaged)
        try:
            read(path)
        except (*ERRORS, FileNotFoundError):
            pass

    check()
