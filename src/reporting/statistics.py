"""How sure a number is: Student's interval over seeds, an interval over test images and seeds, Holm's correction.

A number of a seed is a `Formula` of single test images, such as the mean over tasks of right answers over those of the
fine-tuned model. The hierarchical bootstrap draws seeds with replacement, and within each drawn seed and data set test
images, the same ones for every model: what two models have in common cancels in their difference. Where all seeds are
scored on the same images, those are drawn once for all seeds.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean as mean

import numpy as np
import pandas as pd
from scipy.special import ndtr, stdtr, stdtrit

from src.correctness import unpack

LEVEL = 0.95
REPEATS = 2000


class Formula(ABC):
    """A number made of accuracies by + − × ÷ and maxima."""

    @property
    @abstractmethod
    def accuracies(self) -> frozenset["Accuracy"]:
        """Those that it is made of."""

    @abstractmethod
    def at(self, accuracies: Mapping["Accuracy", np.ndarray]) -> np.ndarray:
        """Its value at values of the accuracies, all of one shape."""

    def __add__(self, other: "Formula") -> "Formula":
        return Combined(operator.add, (self, other))

    def __sub__(self, other: "Formula") -> "Formula":
        return Combined(operator.sub, (self, other))

    def __mul__(self, factor: float) -> "Formula":
        return Combined(operator.mul, (self, Constant(factor)))

    def __truediv__(self, other: "Formula") -> "Formula":
        return Combined(operator.truediv, (self, other))

    __rmul__ = __mul__

    @property
    def exact(self) -> float:
        """On the images as they are."""
        return float(self.at({accuracy: accuracy.correct.mean() for accuracy in self.accuracies}))


@dataclass(frozen=True)
class Accuracy(Formula):
    """A model's on n test images of a data set. bits: which are right; see correctness.py."""

    dataset: str
    bits: str
    n: int

    @property
    def correct(self) -> np.ndarray:
        """(n,) bool."""
        return unpack(self.bits, self.n)

    @property
    def accuracies(self) -> frozenset["Accuracy"]:
        return frozenset({self})

    def at(self, accuracies: Mapping["Accuracy", np.ndarray]) -> np.ndarray:
        return accuracies[self]


@dataclass(frozen=True)
class Constant(Formula):
    value: float

    @property
    def accuracies(self) -> frozenset[Accuracy]:
        return frozenset()

    def at(self, accuracies: Mapping[Accuracy, np.ndarray]) -> np.ndarray:
        return np.array(self.value)


@dataclass(frozen=True)
class Combined(Formula):
    function: Callable[..., np.ndarray]
    parts: tuple[Formula, ...]

    @property
    def accuracies(self) -> frozenset[Accuracy]:
        return frozenset().union(*(part.accuracies for part in self.parts))

    def at(self, accuracies: Mapping[Accuracy, np.ndarray]) -> np.ndarray:
        return self.function(*(part.at(accuracies) for part in self.parts))


def mean_of(*formulas: Formula) -> Formula:
    return Combined(_mean, formulas)


def max_of(*formulas: Formula) -> Formula:
    return Combined(_max, formulas)


def _mean(*values: np.ndarray) -> np.ndarray:
    return sum(values[1:], values[0]) / len(values)


def _max(*values: np.ndarray) -> np.ndarray:
    return np.max(np.broadcast_arrays(*values), axis=0)


BySeed = Mapping[int, Formula]


def combined(function: Callable[..., Formula], *operands: BySeed) -> dict[int, Formula]:
    """`function` of the operands' formulas, for each seed that all of them have."""
    seeds = [seed for seed in operands[0] if all(seed in operand for operand in operands)]
    return {seed: function(*(operand[seed] for operand in operands)) for seed in seeds}


def resampled_means(formulas: BySeed, shared_images: bool = False, repeats: int = REPEATS) -> np.ndarray:
    """(repeats,) means over seeds, of the hierarchical bootstrap; the same at every call.

    shared_images: whether the test images of all seeds are the same, in the same order.
    """
    rng = np.random.default_rng(0)
    seeds = sorted(formulas)
    drawn = rng.integers(len(seeds), size=(repeats, len(seeds)))  # which seed; (repeats, draws)
    if shared_images:
        accuracies = _resampled(frozenset().union(*(formulas[s].accuracies for s in seeds)), repeats, rng)
        values = np.stack([np.broadcast_to(formulas[s].at(accuracies), repeats) for s in seeds], axis=1)
        return np.take_along_axis(values, drawn, axis=1).mean(1)
    values = np.empty(drawn.shape)
    for index, seed in enumerate(seeds):
        mask = drawn == index
        values[mask] = formulas[seed].at(_resampled(formulas[seed].accuracies, int(mask.sum()), rng))
    return values.mean(1)


def _resampled(accuracies: Iterable[Accuracy], size: int, rng: np.random.Generator) -> dict[Accuracy, np.ndarray]:
    """Accuracies on `size` samples of test images, (size,) each; those on the same images are on the same samples.

    Images on which all models agree alike need not be told apart: how many a sample has of each such pattern of right
    and wrong is multinomial.
    """
    groups: dict[tuple[str, int], list[Accuracy]] = {}
    for accuracy in sorted(accuracies, key=lambda a: (a.dataset, a.n, a.bits)):
        groups.setdefault((accuracy.dataset, accuracy.n), []).append(accuracy)
    values: dict[Accuracy, np.ndarray] = {}
    for (_, n), group in groups.items():
        patterns, counts = _patterns(np.stack([accuracy.correct for accuracy in group]))
        samples = rng.multinomial(n, counts / n, size=size)
        values |= zip(group, patterns @ samples.T / n)
    return values


def _patterns(correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different columns of (models, images) bool, and how many images have each."""
    packed = np.packbits(correct, axis=0)
    keys = np.ascontiguousarray(packed.T).view(np.dtype((np.void, len(packed)))).ravel()
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    return correct[:, first].astype(float), counts


def interval(values: pd.Series, level: float = LEVEL) -> tuple[float, float]:
    """Student's interval of the mean, for two seeds or more."""
    half = stdtrit(len(values) - 1, (1 + level) / 2) * values.sem()
    return mean(values) - half, mean(values) + half


@dataclass(frozen=True)
class Difference:
    """Of two numbers, paired by seed.

    values: for each seed. resampled: its means over seeds on samples of test images and seeds, centred on the mean of
    `values`; None where results hold no bits, or the numbers are no accuracies.
    """

    values: pd.Series
    resampled: np.ndarray | None = None

    @property
    def estimate(self) -> float:
        return mean(self.values)

    @property
    def over_seeds(self) -> tuple[float, float] | None:
        """Student's interval; None for one seed."""
        return interval(self.values) if len(self.values) > 1 else None

    @property
    def over_images(self) -> tuple[float, float] | None:
        """The interval over test images and seeds together: percentiles of the hierarchical bootstrap."""
        if self.resampled is None:
            return None
        tail = 50 * (1 - LEVEL)
        low, high = np.percentile(self.resampled, [tail, 100 - tail])
        return float(low), float(high)

    @property
    def deciding(self) -> tuple[float, float] | None:
        """The interval that a verdict goes by: over seeds where there are several, else over test images."""
        return self.over_seeds or self.over_images

    @property
    def told_apart(self) -> bool:
        """Whether neither of the intervals contains zero, and there is one."""
        intervals = [ends for ends in (self.over_seeds, self.over_images) if ends]
        return bool(intervals) and all(low > 0 or high < 0 for low, high in intervals)

    def p_difference(self, against: float = 0.0) -> float:
        """Two-sided p-value of the true difference being `against`; nan where no interval decides."""
        return 2 * self._tail(abs(self.estimate - against))

    def p_equal(self, margin: float) -> float:
        """p-value of the true difference being at least `margin` in size; twice that of the larger one-sided test."""
        return min(1.0, 2 * self._tail(margin - abs(self.estimate)))

    def _tail(self, distance: float) -> float:
        """Probability that the mean lies as far above the truth: Student's, or of the normal law for one seed."""
        if len(self.values) > 1:
            error, law = self.values.sem(), lambda t: stdtr(len(self.values) - 1, t)
        elif self.resampled is not None:
            error, law = self.resampled.std(), ndtr
        else:
            return np.nan
        if error == 0:
            return 0.0 if distance > 0 else 0.5 if distance == 0 else 1.0
        return float(law(-distance / error))


def difference(
    one: pd.Series, other: pd.Series, formulas: tuple[BySeed, BySeed] = ({}, {}), shared_images: bool = False
) -> Difference:
    """one − other over the seeds that have both.

    formulas: of the two; where a seed has none, there is no interval over images. They may differ from the values by a
    constant, as the first draw of a random merge does from the mean of its draws.
    """
    values = (one - other).dropna()
    of_pairs = combined(operator.sub, *formulas)
    if values.empty or not all(seed in of_pairs for seed in values.index):
        return Difference(values)
    of_pairs = {seed: of_pairs[seed] for seed in values.index}
    if not any(formula.accuracies for formula in of_pairs.values()):
        return Difference(values)
    centre = mean(formula.exact for formula in of_pairs.values())
    return Difference(values, resampled_means(of_pairs, shared_images) - centre + mean(values))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: those that may all be held against the level at once, whatever their dependence.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).
    """
    adjusted = np.empty(len(p_values))
    highest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted.tolist()
