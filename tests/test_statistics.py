"""Intervals over seeds and test images, p-values and Holm's correction, against known truths and closed forms."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from src.correctness import pack
from src.reporting.statistics import (
    Accuracy,
    Constant,
    Difference,
    combined,
    difference,
    holm,
    interval,
    max_of,
    mean_of,
    resampled_means,
)  # fmt: skip

TASKS = ("signs", "digits", "land")


def drawn(rng: np.random.Generator, probability: np.ndarray | float, task: str, n: int = 200) -> Accuracy:
    return Accuracy(task, pack(rng.random(n) < probability), n)


def exact(by_seed: dict) -> pd.Series:
    return pd.Series({seed: formula.exact for seed, formula in by_seed.items()})


def two_models(rng: np.random.Generator, seeds: int, gain: float, spread: float, n: int = 200) -> tuple[dict, dict]:
    """Mean accuracies of two models on the same images of three tasks; the gain of the first varies with the seed."""
    first, second = {}, {}
    for seed in range(seeds):
        shift = gain + spread * rng.standard_normal()
        pairs = []
        for task in TASKS:
            easiness = rng.random(n)  # of an image, which both models share
            pairs.append([Accuracy(task, pack(easiness < p), n) for p in (0.7 + shift, 0.7)])
        first[seed], second[seed] = (mean_of(*parts) for parts in zip(*pairs))
    return first, second


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.0), (10, 0.0), (10, 0.02)])
def test_the_interval_over_images_and_seeds_covers_the_truth(seeds, spread):
    """At a nominal 95 % of 120 simulations; the binomial law puts less than 88 % at one in a thousand."""
    rng, covered, truth = np.random.default_rng(1), 0, 0.03
    for _ in range(120):
        first, second = two_models(rng, seeds, truth, spread)
        low, high = difference(exact(first), exact(second), (first, second)).over_images
        covered += low <= truth <= high
    assert covered >= 0.88 * 120


def test_what_two_models_share_cancels_in_their_difference():
    rng = np.random.default_rng(2)
    first, second = two_models(rng, 1, 0.03, 0.0)
    _, unpaired = two_models(rng, 1, 0.03, 0.0)

    def width(one, other):
        low, high = difference(exact(one), exact(other), (one, other)).over_images
        return high - low

    assert width(first, second) < 0.5 * width(first, unpaired_images(unpaired))
    same = difference(exact(first), exact(first), (first, first))
    assert same.over_images == (0.0, 0.0)


def unpaired_images(by_seed: dict) -> dict:
    """The same accuracies as if they were on other images."""
    return {
        seed: mean_of(
            *(Accuracy(f"other {a.dataset}", a.bits, a.n) for a in sorted(f.accuracies, key=lambda a: a.dataset))
        )
        for seed, f in by_seed.items()
    }


def test_the_spread_of_one_accuracy_is_the_binomial_laws():
    accuracy = drawn(np.random.default_rng(3), 0.8, "signs", n=1000)
    share = accuracy.exact
    sampled = resampled_means({1: accuracy}, repeats=20_000)
    assert sampled.mean() == pytest.approx(share, abs=1e-3)
    assert sampled.std() == pytest.approx(np.sqrt(share * (1 - share) / 1000), rel=0.03)


def test_patterns_of_answers_give_what_sampling_image_by_image_gives():
    rng = np.random.default_rng(4)
    one, other, over = (drawn(rng, p, "signs", n=60) for p in (0.6, 0.7, 0.9))
    formula = (one - other) / over
    sampled = resampled_means({1: formula}, repeats=20_000)
    images = rng.integers(60, size=(20_000, 60))
    means = {accuracy: accuracy.correct[images].mean(1) for accuracy in (one, other, over)}
    direct = formula.at(means)
    assert np.percentile(sampled, [2.5, 25, 50, 75, 97.5]) == pytest.approx(
        np.percentile(direct, [2.5, 25, 50, 75, 97.5]), abs=0.008
    )


def test_normalised_accuracies_divide_by_the_denominators_of_the_same_sample():
    """A model that is right exactly where the fine-tuned one is has a ratio of 1 on every sample."""
    finetuned = drawn(np.random.default_rng(5), 0.9, "signs")
    assert set(resampled_means({1: finetuned / finetuned})) == {1.0}


def test_seeds_that_share_their_images_vary_together():
    """Ten seeds of one model on the same images know no more than one; on images of their own they do."""
    accuracy = drawn(np.random.default_rng(6), 0.7, "signs", n=400)
    ten = dict.fromkeys(range(10), accuracy)
    alone = resampled_means({1: accuracy}).std()
    assert resampled_means(ten, shared_images=True).std() == pytest.approx(alone, rel=0.1)
    assert resampled_means(ten).std() == pytest.approx(alone / np.sqrt(10), rel=0.1)


def test_it_is_the_same_at_every_call_and_for_every_order_of_seeds():
    first, _ = two_models(np.random.default_rng(7), 4, 0.0, 0.01)
    backwards = dict(reversed(first.items()))
    assert (resampled_means(first) == resampled_means(first)).all()
    assert (resampled_means(first) == resampled_means(backwards)).all()


def test_it_is_centred_on_the_numbers_of_the_results():
    """A random merge's number is the mean of its draws, and its bits are the first draw's."""
    first, second = two_models(np.random.default_rng(8), 3, 0.0, 0.0)
    values = exact(first) + 0.2
    found = difference(values, exact(second), (first, second))
    assert found.resampled.mean() == pytest.approx(found.estimate, abs=2e-3)


def test_without_all_bits_there_is_no_interval_over_images():
    first, second = two_models(np.random.default_rng(9), 3, 0.0, 0.0)
    values = exact(first), exact(second)
    del second[1]
    assert difference(*values, (first, second)).over_images is None
    thresholds = dict.fromkeys(first, Constant(0.5))
    assert difference(values[0], values[1], (thresholds, thresholds)).over_images is None
    assert difference(values[0], exact(thresholds), (first, thresholds)).over_images is not None


def test_the_best_of_several_is_the_best_of_each_sample():
    rng = np.random.default_rng(10)
    parts = [drawn(rng, 0.5, "signs", n=50) for _ in range(3)]
    best = combined(max_of, *({1: part} for part in parts))
    assert best[1].exact == max(part.exact for part in parts)
    assert resampled_means(best).mean() > best[1].exact  # the maximum of noisy numbers


def test_p_values_are_those_of_the_paired_t_test():
    one, other = pd.Series([1.0, 2.0, 4.0, 3.5]), pd.Series([0.5, 1.8, 3.0, 3.9])
    found = difference(one, other)
    assert found.p_difference() == pytest.approx(stats.ttest_rel(one, other).pvalue)
    assert found.p_difference(-0.2) == pytest.approx(stats.ttest_1samp(one - other, -0.2).pvalue)
    above, below = (
        stats.ttest_1samp(one - other, end, alternative=way).pvalue for end, way in ((-2, "greater"), (2, "less"))
    )
    assert found.p_equal(2) == pytest.approx(2 * max(above, below))


@pytest.mark.parametrize("margin", [0.9, 1.4])
def test_a_p_value_is_below_five_percent_where_the_interval_says_so(margin):
    found = Difference(pd.Series([1.0, 0.2, 0.6, 0.4]))
    low, high = interval(found.values)
    assert (found.p_difference() < 0.05) == (low > 0)
    assert (found.p_equal(margin) < 0.05) == (-margin < low and high < margin)


def test_numbers_that_do_not_vary_are_certain():
    found = Difference(pd.Series([0.5, 0.5]))
    assert (found.p_difference(), found.p_difference(0.5), found.p_equal(1.0), found.p_equal(0.1)) == (0, 1, 0, 1)
    assert np.isnan(Difference(pd.Series([0.5])).p_difference())


def test_holm_by_hand():
    """Ordered 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1, and never below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_holm_keeps_the_errors_of_the_family():
    """Of 20 true hypotheses one is rejected in about 5 % of 400 families."""
    p_values = np.random.default_rng(11).random((400, 20))
    rejected = sum(min(holm(family)) <= 0.05 for family in p_values.tolist())
    assert 5 <= rejected <= 36
