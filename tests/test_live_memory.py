"""What is in memory at once, counted by the tensors that are alive: no timing, and no reading of the process's size."""

import weakref
from collections.abc import Iterator, Mapping

import pytest
import torch

from src import checkpoints
from src.checkpoints import PackedMask
from src.merging import tall_mask
from src.merging.base import Problem
from src.merging.mag_masking import MagnitudeMasking
from src.merging.masked import load_masks
from src.merging.problem import export
from src.merging.tall_mask import TallMask, tall_masks
from src.merging.task_arithmetic import Sum
from src.task_vectors import Mask
from src.tensors import moved, moved_over

NAMES = [f"model.visual.weight{number}" for number in range(5)]
SHAPE, TASKS = (7, 9), ("one", "two", "three")
BITS = -(-63 // 8)  # bytes of one packed tensor


def drawn(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(SHAPE, generator=generator) for name in NAMES}


class Watched(Mapping):
    """θ0 that counts, whenever one of its tensors is read, how many of the watched tensors are alive."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        self.weights, self.watched, self.alive = weights, [], []

    def watch(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.watched = [weakref.ref(tensor) for tensor in tensors.values()]

    def __getitem__(self, name: str) -> torch.Tensor:
        self.alive.append(sum(reference() is not None for reference in self.watched))
        return self.weights[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.weights.items()}


def problem(tmp_path, start: Mapping[str, torch.Tensor]) -> Problem:
    finetuned = {task: drawn(seed) for seed, task in enumerate(TASKS, 1)}
    return Problem(start, finetuned, model="tiny", mask_path=lambda name: tmp_path / f"{name}.safetensors")


def test_a_merged_model_takes_the_place_of_its_vector():
    start, tau = Watched(drawn(0)), drawn(1)
    expected = moved(start.weights, tau, 1.0)
    start.watch(tau)
    found = moved_over(start, tau)
    assert start.alive == [5, 4, 3, 2, 1] and not tau
    assert list(found) == NAMES and all(torch.equal(found[name], expected[name]) for name in NAMES)


@pytest.mark.parametrize("tau", [{"other": torch.zeros(SHAPE)}, {NAMES[0]: torch.zeros(2)}])
def test_a_vector_of_other_tensors_is_refused_whole(tau):
    names = set(tau)
    with pytest.raises(ValueError, match="the weights and the task vector"):
        moved_over(drawn(0), tau)
    assert set(tau) == names


def test_an_export_holds_no_scaled_vector_beside_the_merged_model(tmp_path, monkeypatch):
    start = Watched(drawn(0))
    given = problem(tmp_path, start)
    merge = Sum().merge(given)
    expected = moved(start.weights, (0.3 * merge.tau).vector, 1.0)
    vector = type(merge).vector

    def watched(self, task, setting):
        made = vector(self, task, setting)
        start.watch(made.vector)
        start.alive.clear()
        return made

    monkeypatch.setattr(type(merge), "vector", watched)
    (path,) = export(given, merge, dict.fromkeys(TASKS, 0.3), tmp_path / "merged.safetensors")
    assert start.alive[-5:] == [5, 4, 3, 2, 1]
    written = checkpoints.load(path)
    assert all(torch.equal(written[name], expected[name]) for name in NAMES)


@pytest.mark.parametrize("method", [TallMask(), MagnitudeMasking()])
def test_chosen_masks_are_packed_one_by_one(method, tmp_path, monkeypatch):
    given = problem(tmp_path, drawn(0))
    merge = method.merge(given)
    plain = {task: merge.mask(task, merge.settings[0]) for task in TASKS}
    mask, alive, earlier, kept = type(merge).mask, [], [], {}
    if isinstance(method, TallMask):
        merge.last = ("", {})

    def watched(self, task, setting):
        made = mask(self, task, setting)
        alive.append(sum(reference() is not None for reference in earlier))
        earlier[:] = [weakref.ref(bits) for bits in made.bits.values()]
        return made

    monkeypatch.setattr(type(merge), "mask", watched)
    monkeypatch.setattr(type(merge), "keep", lambda self, masks, chosen: kept.update(masks) or {})
    merge.finish(dict.fromkeys(TASKS, merge.settings[0]))
    assert alive == [0, 0, 0]  # the bools of the task before are gone when those of the next are there
    assert all(tensor.nbytes == BITS for task in TASKS for tensor in kept[task].packed.values())
    assert all(Mask(kept[task]) == plain[task] for task in TASKS)


def test_no_mask_of_the_chosen_setting_is_made_twice(tmp_path, monkeypatch):
    """Validation asks for all λ of a task; test, the result and the file take one mask, which is kept as bits."""
    made = []

    def counted(problem, task, tau, lambdas):
        made.append((task, len(lambdas)))
        return tall_masks(problem, task, tau, lambdas)

    monkeypatch.setattr(tall_mask, "tall_masks", counted)
    merge = TallMask().merge(problem(tmp_path, drawn(0)))
    validation = {task: [merge.vector(task, setting) for setting in merge.settings] for task in TASKS}
    assert made == [(task, len(merge.settings)) for task in TASKS]
    chosen = dict(zip(TASKS, (1, 3, 2)))
    of_test = {task: merge.vector(task, merge.settings[index]) for task, index in chosen.items()}
    assert all(of_test[task].vector[n].equal(validation[task][chosen[task]].vector[n]) for task in TASKS for n in NAMES)
    merge.finish({task: merge.settings[index] for task, index in chosen.items()})
    assert made[len(TASKS) :] == [("one", 1), ("two", 1)]  # of "three" all were there still
    assert [tensor.nbytes for mask in merge.chosen.values() for tensor in mask.packed.values()] == [BITS] * 10


def test_masks_on_disk_are_packed_in_memory_too(tmp_path, monkeypatch):
    given = problem(tmp_path, drawn(0))
    merge = TallMask().merge(given)
    merge.finish(dict.fromkeys(TASKS, merge.settings[0]))
    opened, read = [], checkpoints.Checkpoint.read
    monkeypatch.setattr(checkpoints.Checkpoint, "read", lambda file, keys: opened.append(keys) or read(file, keys))
    masks, _ = load_masks(given, "tall_mask", "command")
    assert len(opened) == 1  # whatever the number of tensors
    kept = [tensor for task in TASKS for tensor in masks[task].packed.values()]
    assert [tensor.nbytes for tensor in kept] == [BITS] * len(TASKS) * len(NAMES)
    assert all(Mask(masks[task]) == merge.mask(task, merge.settings[0]) for task in TASKS)


def test_a_packed_mask_is_the_mask():
    bits = {"a": torch.rand(3, 5) > 0.5, "scalar": torch.tensor(True), "b": torch.zeros(16, dtype=torch.bool)}
    packed = PackedMask.of(bits)
    assert packed == bits and PackedMask.of(packed) is packed
    assert packed.only(["b", "none"]) == {"b": bits["b"]} and packed.shapes["a"] == (3, 5)
    assert packed != {"a": bits["a"]} and packed != bits | {"a": ~bits["a"]}
    with pytest.raises(TypeError, match="expected a bool mask"):
        PackedMask.of({"a": torch.zeros(2)})
