"""Numbers of results as formulas of which test images were right; see statistics.py. Results hold that as bits."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from src.experiments.numbers import MEAN
from src.experiments.registry import ADDITION, NEGATION, SINGLE_TASK
from src.reporting.result import MERGING
from src.reporting.runs import Runs
from src.reporting.statistics import Accuracy, BySeed, Formula, combined, mean_of


def formulas(runs: Runs, metric: str, task: str = MEAN, **columns: Any) -> dict[int, Formula]:
    """For each seed the number that Runs.values finds, in [0, 1]; without those whose results hold no bits for it.

    columns: as for Runs.values, each with one value. A metric that is no accuracy has no formula.
    """
    formula = METRICS.get((columns["experiment"], metric))
    if formula is None:
        return {}
    by_seed: dict[int, Formula] = {}
    single_task = cache(partial(runs.of, SINGLE_TASK))
    for seed, record in runs.find(**{"unseen": (), **columns}).items():
        try:
            by_seed[seed] = formula(_Bits(record, seed, single_task), task)
        except KeyError:
            continue  # an older result
    return by_seed


def mean_over(runs: Runs, tasks: Iterable[str], **columns: Any) -> dict[int, Formula]:
    """The same of a mean over tasks."""
    by_task = [formulas(runs, task=task, **columns) for task in tasks]
    return combined(mean_of, *by_task)


def percent(by_seed: BySeed) -> dict[int, Formula]:
    return {seed: 100 * formula for seed, formula in by_seed.items()}


@dataclass(frozen=True)
class _Bits:
    """Of a record. A KeyError stands for what an older result lacks.

    single_task: mode -> seed -> the single-task record.
    """

    record: Mapping[str, Any]
    seed: int
    single_task: Callable[[str], Mapping[int, Mapping[str, Any]]]

    @property
    def tasks(self) -> list[str]:
        return list(self.record["tasks"])

    def single(self, mode: str, task: str) -> Accuracy:
        record = self.single_task(mode)[self.seed]
        return Accuracy(task, record["correct"][task], record["n"][task])

    def accuracy(self, bits: str, task: str) -> Accuracy:
        """By bits that stand in the record."""
        counts = self.record["n"].get("test", {})
        return Accuracy(task, bits, counts[task] if task in counts else self.single_task("none")[self.seed]["n"][task])

    def finetuned(self, task: str) -> Accuracy:
        return self.single(self.record["finetuning_mode"], task)


OfTask = Callable[["_Bits", str], Formula]
FIXED = ("untuned", "one")  # settings; see records.Addition


def _single_task(bits: _Bits, task: str) -> Formula:
    return Accuracy(task, bits.record["correct"][task], bits.record["n"][task])


def _finetuned(bits: _Bits, task: str) -> Formula:
    return bits.finetuned(task)


def _own(bits: _Bits, task: str) -> Formula:
    return bits.accuracy(bits.record["test"]["correct"][task], task)


def _fixed(name: str) -> OfTask:
    """At a setting that nobody chose."""
    return lambda bits, task: bits.accuracy(bits.record["fixed"][name]["correct"][task], task)


def _unseen(bits: _Bits, task: str) -> Formula:
    return bits.accuracy(bits.record["unseen"]["correct"][task], task)


def _zeroshot(bits: _Bits, task: str) -> Formula:
    return bits.single("none", task)


def _target(bits: _Bits, task: str) -> Formula:
    return bits.accuracy(bits.record["tasks"][task]["test"]["correct"]["target"], task)


def _control(bits: _Bits, task: str) -> Formula:
    return bits.accuracy(bits.record["tasks"][task]["test"]["correct"]["control"], bits.record["control"])


def _pretrained_control(bits: _Bits, task: str) -> Formula:
    return bits.accuracy(bits.record["control_correct"], bits.record["control"])


def _over_finetuned(of_task: OfTask) -> OfTask:
    return lambda bits, task: of_task(bits, task) / bits.finetuned(task)


def _with_mean(of_task: OfTask, of_unseen: bool = False) -> OfTask:
    """Also of the mean over the tasks of the record."""

    def formula(bits: _Bits, task: str) -> Formula:
        if task != MEAN:
            return of_task(bits, task)
        tasks = bits.record["unseen"]["tasks"] if of_unseen else bits.tasks
        return mean_of(*(of_task(bits, each) for each in tasks))

    return formula


MERGED: dict[str, OfTask] = {
    "accuracy": _with_mean(_own),
    "normalised": _with_mean(_over_finetuned(_own)),
    "zeroshot_accuracy": _with_mean(_zeroshot),
    "zeroshot_normalised": _with_mean(_over_finetuned(_zeroshot)),
    "finetuned_accuracy": _with_mean(_finetuned),
    "unseen_accuracy": _with_mean(_unseen, of_unseen=True),
    **{f"{name}_accuracy": _with_mean(_fixed(name)) for name in FIXED},
    **{f"{name}_normalised": _with_mean(_over_finetuned(_fixed(name))) for name in FIXED},
}
METRICS: dict[tuple[str, str], OfTask] = {
    **{(experiment, name): metric for experiment in (ADDITION.name, MERGING) for name, metric in MERGED.items()},
    (SINGLE_TASK.name, "accuracy"): _single_task,
    (NEGATION.name, "target_accuracy"): _with_mean(_target),
    (NEGATION.name, "control_accuracy"): _with_mean(_control),
    (NEGATION.name, "pretrained_control_accuracy"): _pretrained_control,
}
