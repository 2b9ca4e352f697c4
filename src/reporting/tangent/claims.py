"""Claims of the tangent paper."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from src.experiments.registry import ADDITION, DISENTANGLEMENT, NEGATION, NTK, SINGLE_TASK, Experiment
from src.modes import EVALUATED, MODES, usual
from src.reporting.claim import Claim, Key, Measured, Quantity, Threshold
from src.reporting.result import chosen
from src.reporting.runs import Runs

POINTS = 5.0  # of accuracy: less than this above the untrained network counts as no task arithmetic
USUAL_RANK = 10  # eigenfunctions of the tangent kernel
MAIN = "8 tasks"  # the paper's benchmark


@dataclass(frozen=True)
class OverPairs(Quantity):
    """The mean over pairs of tasks of a number of an experiment's results.

    percent: of a number in [0, 1]. geometric: the geometric mean, of ratios. init: without pre-training.
    """

    name: str
    experiment: Experiment
    choice: str
    metric: str
    geometric: bool = False
    init: bool = False
    digits: int = 1
    of_images: bool = False

    @property
    def title(self) -> str:
        return self.name

    def _model(self, runs: Runs) -> Runs:
        return runs.random_init if self.init else runs

    def values(self, runs: Runs) -> pd.Series:
        model = self._model(runs)
        what = {**chosen(self.experiment, self.choice), "metric": self.metric}
        if self.experiment == NTK:
            what["setting"] = _usual_setting(model, self.choice)
        means = model.mean_over(None, geometric=self.geometric, **what)
        return means if self.geometric else 100 * means

    @property
    def in_points(self) -> bool:
        return not self.geometric

    def commands(self, runs: Runs) -> list[str]:
        return self._model(runs).missing(self.experiment, [self.choice])


def usual_rank(ranks: Sequence[float | int]) -> int:
    """The index of the number of eigenfunctions that figures and claims take: USUAL_RANK, or else the middle one."""
    return ranks.index(USUAL_RANK) if USUAL_RANK in ranks else len(ranks) // 2


def _usual_setting(runs: Runs, reduction: str) -> float | int:
    pairs = (pair for record in runs.of(NTK, reduction).values() for pair in record["pairs"])
    return next((pair["ranks"][usual_rank(pair["ranks"])] for pair in pairs), USUAL_RANK)


def _key(table: str, mode: str, metric: str) -> Key:
    return Key("tangent", table, MODES[mode].published, MAIN, metric)


def _single(mode: str, theirs: Key) -> Measured:
    """Mean single-task accuracy over the tasks of the addition benchmark."""
    return Measured(MODES[mode].short, SINGLE_TASK, mode, main_tasks=True, theirs=theirs)


def _alone(mode: str) -> Measured:
    return _single(mode, Key("atlas", "single-task", MODES[mode].published, "mean of 8 tasks", "accuracy"))


def _added(mode: str, normalised: bool = False) -> Measured:
    """Mode "none" is what doing nothing scores."""
    metric = "normalised" if normalised else "accuracy"
    theirs = _key("Table 1", mode, "normalised" if normalised else "absolute")
    name = MODES[mode].short
    if mode == "none":
        return Measured(name, ADDITION, "standard", f"zeroshot_{metric}", theirs=theirs)
    return Measured(name, ADDITION, mode, metric, theirs=theirs)


def _doing_nothing(mode: str) -> Measured:
    """Zero-shot accuracy over the denominators of a mode."""
    return Measured("zero-shot", ADDITION, mode, "zeroshot_normalised")


def _gain(mode: str, init: bool = False) -> Measured:
    """What addition adds to θ0, in points."""
    after, before = _key("Table 1", mode, "absolute"), _key("Table 1", "none", "absolute")
    if init:
        after, before = _key("Table 3", mode, "multi"), Key("tangent", "Table 3", "Random init", MAIN, "single")
    name = f"gain of {MODES[mode].short}{', random init' if init else ''}"
    return Measured(name, ADDITION, mode, less="zeroshot_accuracy", init=init, theirs=after, less_theirs=before)


def _negated(mode: str) -> Measured:
    theirs = _key("Table 2", mode, "target")
    if mode == "none":
        return _single(mode, theirs)
    return Measured(MODES[mode].short, NEGATION, mode, "target_accuracy", theirs=theirs)


def _control_kept(mode: str) -> Measured:
    """Control accuracy after negation over the pre-trained one, on test."""
    theirs, over_theirs = (_key("Table 2", row, "control") for row in (mode, "none"))
    metric, over = "control_accuracy", "pretrained_control_accuracy"
    return Measured(MODES[mode].short, NEGATION, mode, metric, over=over, theirs=theirs, over_theirs=over_theirs)


def _error(mode: str, outside: bool = False) -> OverPairs:
    """ξ in the search space, or on the rest of the grid."""
    metric = "error_outside_box" if outside else "error_in_box"
    name = f"ξ {MODES[mode].short}{' outside' if outside else ''}"
    return OverPairs(name, DISENTANGLEMENT, mode, metric)


def _energy_ratio(reduction: str, init: bool = False) -> OverPairs:
    """Mean local energy on held-out images of the task over the control's."""
    name = f"task over control{', random init' if init else ''}"
    return OverPairs(name, NTK, reduction, "energy_ratio", geometric=True, init=init, digits=2)


CLAIMS = (
    Claim(
        "Figures 2, 5",
        "Single tasks: non-linear fine-tuning is better than linear fine-tuning, and that than post-hoc linearization.",
        (_alone("standard"), _alone("linear"), _alone("posthoc")),
    ),
    Claim(
        "Table 1",
        "Addition, absolute: linear fine-tuning > non-linear > post-hoc > doing nothing.",
        (_added("linear"), _added("standard"), _added("posthoc"), _added("none")),
    ),
    Claim(
        "Table 1",
        "Addition, normalised: linear fine-tuning > post-hoc > non-linear.",
        (_added("linear", True), _added("posthoc", True), _added("standard", True)),
    ),
    *(
        Claim(
            "Table 1",
            f"Addition, normalised, {MODES[mode].short}: better than doing nothing by the same denominators.",
            (_added(mode, True), _doing_nothing(mode)),
        )
        for mode in usual(EVALUATED)
    ),
    Claim(
        "Table 2",
        "Negation forgets the target most with linear fine-tuning: pre-trained > non-linear > post-hoc > linear.",
        (_negated("none"), _negated("standard"), _negated("posthoc"), _negated("linear")),
    ),
    *(
        Claim(
            "Table 2",
            f"Negation, {MODES[mode].short}: the control keeps 95 % of its accuracy on test too (within one percent).",
            (_control_kept(mode), Threshold(95.0, "95 %")),
            margin=1.0,
        )
        for mode in usual(EVALUATED)
    ),
    Claim(
        "Figure 3",
        "Post-hoc linear models are more disentangled than non-linear ones.",
        (_error("standard"), _error("posthoc")),
    ),
    Claim(
        "Figure 10",
        "Linearly fine-tuned models are more disentangled than non-linear ones.",
        (_error("standard"), _error("linear")),
    ),
    Claim(
        "Figure 3",
        "Near θ0 the disentanglement error is small: smaller in the search space than on the rest of the grid.",
        (_error("standard", outside=True), _error("standard")),
    ),
    *(
        Claim(
            "Figures 6, 14",
            f"Eigenfunctions of the tangent kernel ({reduction}) are localized: more energy on task than control.",
            (_energy_ratio(reduction), Threshold(1.0, "1")),
        )
        for reduction in NTK.choices
    ),
    Claim(
        "Figures 6, 15",
        "Pre-training localizes them: more than at random initialization (trace).",
        (_energy_ratio("trace"), _energy_ratio("trace", init=True)),
    ),
    *(
        Claim(
            "Table 3",
            f"No task arithmetic from random initialization, {MODES[mode].short}: it gains less than {POINTS:g} "
            "points.",
            (Threshold(POINTS, f"{POINTS:g} points"), _gain(mode, init=True)),
        )
        for mode in ("standard", "linear")
    ),
    *(
        Claim(
            "Tables 1, 3",
            f"Pre-training is what makes addition work, {MODES[mode].short}: it gains more than from random "
            "initialization.",
            (_gain(mode), _gain(mode, init=True)),
        )
        for mode in ("standard", "linear")
    ),
)
