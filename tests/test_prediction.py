"""Rank correlations with published tables: against SciPy's, and orders whose answer is known."""

import numpy as np
import pytest
import synthetic_results
from scipy.stats import kendalltau, spearmanr

from src.reporting.comparison import prediction
from src.reporting.comparison.prediction import Order, interval, kendall, orders, spearman
from src.reporting.runs import Runs


def order(theirs, ours, kinds=None) -> Order:
    names = tuple("abcdefgh"[: len(theirs)])
    return Order("t", names, kinds or ("single",) * len(theirs), np.array(theirs, float), np.array(ours, float))


@pytest.mark.parametrize("seed", range(5))
def test_correlations_are_scipys_also_with_ties(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(5, size=(2, 30, 9))
    assert np.allclose(spearman(x, y), [spearmanr(a, b).statistic for a, b in zip(x, y)])
    assert np.allclose(kendall(x, y), [kendalltau(a, b).statistic for a, b in zip(x, y)])


def test_equal_numbers_have_no_order():
    assert np.isnan(spearman(np.ones(4), np.arange(4.0))) and np.isnan(kendall(np.ones(4), np.arange(4.0)))


def test_one_order_in_every_seed_is_certain_and_noise_is_not():
    theirs, shift = np.arange(8.0), np.arange(3)
    same = order(theirs, 10 * theirs[:, None] + shift)
    assert interval(same, spearman) == interval(same, kendall) == (1.0, 1.0)
    noisy = order(theirs, np.random.default_rng(0).normal(size=(8, 3)))
    low, high = interval(noisy, spearman)
    assert low < spearman(noisy.theirs, noisy.ours.mean(1)) < high and high - low > 0.5


def test_seeds_that_disagree_widen_the_interval():
    theirs = np.arange(8.0)
    agreeing = np.stack([theirs, theirs, theirs], 1)
    torn = np.stack([theirs, theirs, -1.5 * theirs], 1)
    assert interval(order(theirs, torn), spearman)[0] < -0.9 < 0.9 < interval(order(theirs, agreeing), spearman)[0]


def test_places_are_counted_from_the_published_ones():
    swapped = order([1, 2, 3, 4], [[1], [2], [4], [3]])
    assert list(swapped.misplaced) == [0, 0, 1, -1]
    assert prediction._misplaced(swapped) == ["c +1", "d −1"]


def test_single_models_are_taken_apart():
    mixed = order([1, 2, 3, 4, 5], np.arange(5)[:, None], ("single", "adapting", "single", "several", "single"))
    assert mixed.single().names == ("a", "c", "e") and list(mixed.single().theirs) == [1, 3, 5]
    assert mixed.enough and not mixed.single().enough


def test_a_table_holds_the_methods_that_both_have_over_the_seeds_of_all(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1, 2))
    made = {order.title: order for order in orders(Runs("mini", "ViT-Mini", tmp_path))}
    tall = made["tall, 8 tasks (TALL)"]
    assert {"task arithmetic", "TIES", "TALL mask + TA", "consensus TA"} <= {*tall.names}
    assert tall.ours.shape == (len(tall.names), 2) and tall.theirs[tall.names.index("task arithmetic")] == 70.8
    assert tall.kinds[tall.names.index("TALL mask + TA")] == "several"
    merge = tmp_path / "mini/ViT-Mini/seed_2/merging/8task/standard-visual/ties.json"
    merge.unlink()
    fewer = {order.title: order for order in orders(Runs("mini", "ViT-Mini", tmp_path))}["tall, 8 tasks (TALL)"]
    assert fewer.ours.shape == (len(tall.names), 1)


def test_nothing_run_makes_no_table(tmp_path):
    assert not list(prediction.prediction(Runs("mini", "ViT-Mini", tmp_path)))


def test_what_trimmed_vectors_keep_is_told_by_share(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1, 2))
    assert not [*prediction.redundancy(Runs("mini", "ViT-Mini", tmp_path))]
    tasks = synthetic_results.TASKS
    for seed in (1, 2):
        for options, level in (({"k": 40.0}, 0.95), ({}, 0.8), ({"k": 5.0}, 0.7)):
            name = synthetic_results.place("mag_prune", tasks, **options)
            record = synthetic_results.merged("mag_prune", tasks, "standard", seed, level, **options)
            synthetic_results.dump(tmp_path / f"mini/ViT-Mini/seed_{seed}/{name}.json", record)
    (table,) = prediction.redundancy(Runs("mini", "ViT-Mini", tmp_path))
    shares, cells = zip(*table.rows)
    assert shares == ("5 %", "10 %", "40 %") and [cell.published for cell in cells] == [None, 98.4, None]
    means = [cell.ours.mean() for cell in cells]
    assert means == sorted(means) and all(len(cell.ours) == 2 for cell in cells)
