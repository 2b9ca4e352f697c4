"""Task negation: θ0 − α τ_t forgets task t while the control set is kept (Table 2 of arXiv:2305.12827)."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NotRequired

from typing_extensions import TypedDict

from src import store
from src.datasets import loading
from src.evaluation import ORIGIN, Line, mean, score_all, select_negation
from src.experiments.addition import coefficients
from src.experiments.base import carry_out
from src.experiments.numbers import Number
from src.experiments.registry import NEGATION, NEGATION_POINTS
from src.ranges import check
from src.records import Bits, Corrupted
from src.run import Run


class NegatedCurves(TypedDict):
    """Accuracy on the target and on the control set at each coefficient."""

    target: Sequence[float]
    control: Sequence[float]


class NegatedBits(TypedDict):
    target: Bits
    control: Bits


class NegatedScores(TypedDict):
    target: float
    control: float
    correct: NotRequired[NegatedBits]


class NegatedTask(TypedDict):
    """alpha: chosen on validation, 0 where `control_kept` is false."""

    alpha: float
    control_kept: bool
    val: NegatedCurves
    test: NegatedScores


class Record(Corrupted):
    """control_threshold: the share of the control's accuracy to keep."""

    finetuning_mode: str
    control: str
    control_threshold: float
    coefs: Sequence[float]
    pretrained_control: Mapping[str, float]  # by split
    control_correct: NotRequired[Bits]
    tasks: Mapping[str, NegatedTask]
    mean_target: float
    mean_control: float
    n: Mapping[str, Mapping[str, int]]


def numbers(record: Record, suite: str) -> Iterator[Number]:
    for task, scores in record["tasks"].items():
        yield Number("target_accuracy", scores["test"]["target"], task)
        yield Number("control_accuracy", scores["test"]["control"], task)
        yield Number("chosen", scores["alpha"], task)
        yield Number("control_kept", scores["control_kept"], task)
    yield Number("target_accuracy", record["mean_target"])
    yield Number("control_accuracy", record["mean_control"])
    yield Number("control_threshold", record["control_threshold"])
    for split, accuracy in record["pretrained_control"].items():
        yield Number("pretrained_control_accuracy", accuracy, split=split)


def negate(
    run: Run, mode: str, n_eval_points: int | None = None, control_threshold: float = 0.95, overwrite: bool = False
) -> None:
    """Write negation_<mode>.json. control_threshold: the share of the control's accuracy to keep."""
    check(n_eval_points=n_eval_points, control_threshold=control_threshold)
    points = NEGATION_POINTS if n_eval_points is None else n_eval_points
    options = {"n_eval_points": points, "control_threshold": control_threshold}
    made_of = partial(store.made_of, run, mode, (*run.tasks, run.control))
    record = carry_out(
        NEGATION,
        mode,
        run,
        options,
        lambda: _record(run, mode, coefficients(points), control_threshold),
        overwrite,
        made_of,
    )
    if record is None:
        return
    for task, scores in record["tasks"].items():
        if not scores["control_kept"]:
            print(f"{task}: no coefficient keeps {control_threshold:.0%} of the control's accuracy; alpha = 0")
    print(
        f"negation {mode}: target {100 * record['mean_target']:.1f} %, control {100 * record['mean_control']:.1f} % "
        f"(pre-trained {100 * record['pretrained_control']['test']:.1f} %) "
        f"-> {run.paths.result(NEGATION.result(mode))}"
    )


def negative(coefs: Sequence[float]) -> tuple[float, ...]:
    return tuple(-alpha if alpha else 0.0 for alpha in coefs)


def _record(run: Run, mode: str, coefs: tuple[float, ...], threshold: float) -> Record:
    control = run.control
    # θ0 − α τ as the line of τ at −α: its tangents are known where the single tasks were scored just before.
    taus = {task: store.stored_vector(run, task, mode) for task in run.tasks}
    loading.examples(run, control, "test")  # mini's are drawn once, before the workers look for them
    pairs = [(task, dataset) for task in run.tasks for dataset in (task, control)]
    lines = {(task, dataset): (dataset, Line(taus[task], negative(coefs))) for task, dataset in pairs}
    val = score_all(run, mode, {"pretrained": (control, ORIGIN)} | lines, "val", f"negation {mode}, validation")
    floor = threshold * val["pretrained"].accuracy[0]
    index = {
        task: select_negation(coefs, val[task, task].accuracy, val[task, control].accuracy, floor) for task in run.tasks
    }
    alpha = {task: 0.0 if i is None else coefs[i] for task, i in index.items()}
    lines = {(task, dataset): (dataset, Line(taus[task], negative([alpha[task]]))) for task, dataset in pairs}
    test = score_all(run, mode, {"pretrained": (control, ORIGIN)} | lines, "test", f"negation {mode}, test")
    tasks: dict[str, Any] = {
        task: {
            "alpha": alpha[task],
            "control_kept": index[task] is not None,
            "val": {"target": val[task, task].accuracy, "control": val[task, control].accuracy},
            "test": {
                "target": test[task, task].accuracy[0],
                "control": test[task, control].accuracy[0],
                "correct": {"target": test[task, task].correct[0], "control": test[task, control].correct[0]},
            },
        }
        for task in run.tasks
    }
    return {
        "finetuning_mode": mode,
        "control": control,
        "control_threshold": threshold,
        "coefs": coefs,
        "pretrained_control": {"val": val["pretrained"].accuracy[0], "test": test["pretrained"].accuracy[0]},
        "control_correct": test["pretrained"].correct[0],
        "tasks": tasks,
        "mean_target": mean(scores["test"]["target"] for scores in tasks.values()),
        "mean_control": mean(scores["test"]["control"] for scores in tasks.values()),
        "n": {
            split: {control: scores["pretrained"].n} | {task: scores[task, task].n for task in run.tasks}
            for split, scores in (("val", val), ("test", test))
        },
    }
