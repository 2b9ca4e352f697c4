"""Properties that hold for any input: the algebra of task vectors and masks, bits of masks and of images, selection."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src import checkpoints
from src.correctness import pack, unpack
from src.evaluation import mean_normalised, select, select_negation
from src.runtime import results
from src.task_vectors import Mask, NonLinearTaskVector, TaskVector
from src.tensors import moved

SHAPES = {"a": (3,), "b": (2, 2), "c": ()}
numbers = st.floats(-1e3, 1e3, allow_nan=False, width=32)
accuracies = st.integers(0, 100).map(lambda right: right / 100)


def weights() -> st.SearchStrategy[dict[str, torch.Tensor]]:
    def tensor(shape: tuple[int, ...]) -> st.SearchStrategy[torch.Tensor]:
        count = int(np.prod(shape))
        cells = st.lists(numbers, min_size=count, max_size=count)
        return cells.map(lambda values: torch.tensor(values, dtype=torch.float64).reshape(shape))

    return st.fixed_dictionaries({name: tensor(shape) for name, shape in SHAPES.items()})


vectors = weights().map(lambda tensors: TaskVector(vector=tensors))
masks = st.fixed_dictionaries(
    {
        name: st.lists(st.booleans(), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))).map(
            lambda bits, shape=shape: torch.tensor(bits).reshape(shape)
        )
        for name, shape in SHAPES.items()
    }
).map(Mask)


def assert_close(one: TaskVector, other: TaskVector) -> None:
    torch.testing.assert_close(dict(one.vector), dict(other.vector), rtol=1e-12, atol=1e-9)


@given(vectors, vectors, vectors, numbers, numbers)
def test_task_vectors_are_a_vector_space(a, b, c, k, m):
    assert_close(a + b, b + a)
    assert_close((a + b) + c, a + (b + c))
    assert_close(a + (-a), 0 * a)
    assert_close(k * (a + b), k * a + k * b)
    assert_close((k + m) * a, k * a + m * a)
    assert_close(0 * a - (0 * a - a), a)
    assert_close(sum([a, b, c]), a + b + c)
    assert_close(a - b, a + (-1) * b)
    if k:
        assert_close(a / k, (1 / k) * a)


@given(weights(), weights(), numbers)
def test_a_vector_leads_from_the_start_to_the_end_and_back(start, end, alpha):
    tau = NonLinearTaskVector(start, end)
    torch.testing.assert_close(moved(start, tau.vector, 1.0), end, rtol=1e-12, atol=1e-9)
    there = moved(start, tau.vector, alpha)
    torch.testing.assert_close(moved(there, tau.vector, -alpha), start, rtol=1e-9, atol=1e-6)


@given(masks, masks, vectors)
def test_masks_are_a_boolean_algebra_that_cuts_vectors(m, n, tau):
    assert ~(m & n) == (~m | ~n) and ~~m == m and (m ^ n) == ((m | n) & ~(m & n))
    assert_close(m * (n * tau), (m & n) * tau)
    assert_close(m * tau + ~m * tau, tau)


@settings(max_examples=30)
@given(st.lists(masks, min_size=1, max_size=4))
def test_masks_come_back_from_their_file_bit_by_bit(several):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "masks.safetensors"
        written = {f"task{i}": dict(mask.bits) for i, mask in enumerate(several)}
        checkpoints.save_masks(path, written, {"model": "any"})
        for task, bits in checkpoints.load_masks(path).items():
            assert all(torch.equal(bits[name], written[task][name]) for name in SHAPES)


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_bits_of_images_come_back(correct):
    assert unpack(pack(np.array(correct)), len(correct)).tolist() == correct
    with pytest.raises(ValueError, match="bits"):
        unpack(pack(np.array(correct)), len(correct) + 8)


@st.composite
def validation(draw):
    """Accuracies of 1 to 4 tasks at 1 to 8 settings, and the accuracies that they are divided by."""
    count = draw(st.integers(1, 8))
    tasks = [f"task{i}" for i in range(draw(st.integers(1, 4)))]
    curves = {task: draw(st.lists(accuracies, min_size=count, max_size=count)) for task in tasks}
    return curves, {task: draw(st.integers(1, 100)) / 100 for task in tasks}


@given(validation())
def test_selection_takes_the_earliest_best_and_nothing_of_scale(drawn):
    curves, denominators = drawn
    means = mean_normalised(curves, denominators)
    (index,) = set(select(curves, denominators, per_task=False).values())
    assert means[index] == max(means) and max(means) not in means[:index]
    for task, own in select(curves, denominators, per_task=True).items():
        assert curves[task][own] == max(curves[task]) and max(curves[task]) not in curves[task][:own]
    alone = {task: curves[task] for task in list(curves)[:1]}
    assert select(alone, denominators, False) == select(alone, denominators, True), "one task: nothing is shared"


@given(st.lists(st.tuples(accuracies, accuracies), min_size=1, max_size=8), accuracies)
def test_negation_keeps_the_control_or_says_that_nothing_does(points, floor):
    coefs = [i / 10 for i in range(len(points))]
    target, control = zip(*points)
    index = select_negation(coefs, target, control, floor)
    allowed = [i for i in range(len(points)) if control[i] >= floor]
    assert (index is None) == (not allowed)
    if index is not None:
        assert index in allowed and target[index] == min(target[i] for i in allowed)


documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=8), documents, max_size=5))
def test_the_text_of_a_result_is_its_json(document):
    assert json.loads(results.encode(document)) == document
