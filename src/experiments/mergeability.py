"""Which pairs of tasks merge well, and what foretells it.

Every two tasks are merged as main.py merges them, by weight averaging, by task arithmetic at validation's α, and by
TSV-M and Iso-C at α = 1; a pair's number is the mean normalised test accuracy of its two tasks. Beside it stand
measures of the pair, of the weights alone or of images of validation, and their correlations with it over the pairs.

Of the weights (see analysis/pairs.py), k = ⌊r/T⌋ singular vectors of a matrix as TSV keeps them for the T tasks of the
run, means over matrices: `cosine`, `sign_agreement`, `norm_ratio`, the four overlaps of singular subspaces, and
`singular_interference`, that of analysis/spectra.py for the pair. Of the features f_i(x) of the two fine-tuned models
on validation images of both tasks:

    feature_distance        E ‖f_i − f_j‖
    feature_dot             E ⟨f_i, f_j⟩
    cross_task_accuracy     the accuracy of encoder i with head j on images of j, and the other way round
    tangent_interference    E ‖J τ_j‖² / E ‖J τ_i‖² on images of i, J at θ0 (see analysis/layerwise.py); the geometric
                            mean of both directions

After Mergeability-Bench (arXiv:2601.22285), which has more measures, the pairs of 20 tasks, and its own merging
coefficients. Its best Pearson's r of a measure of weights is .32 (the overlap of the least right singular subspaces,
Iso-C), and of any .57 (the dot product of features, TSV). The 28 pairs of 8 tasks are not independent of each other.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from statistics import fmean as mean
from typing import Any, NamedTuple

import torch
from scipy.stats import pearsonr, spearmanr
from typing_extensions import TypedDict

from src import scores, store
from src.analysis import layerwise, pairs, spectra
from src.datasets import loading
from src.evaluation import Denominators, Line, features, select
from src.experiments.base import carry_out
from src.experiments.layerwise import measured
from src.experiments.ntk import spread_examples
from src.experiments.numbers import Number
from src.experiments.registry import LAYERWISE_SAMPLES, MERGEABILITY, MERGEABILITY_SAMPLES, MERGEABILITY_TASKS
from src.heads import get_classification_head
from src.merging.base import Merge, Problem, Setting
from src.merging.evaluate import score_merge
from src.merging.matrices import Layout, matrices_of
from src.merging.problem import Source, read_problem
from src.merging.registry import METHODS, load_methods
from src.modes import MODES
from src.ranges import check
from src.records import Corrupted, Grid
from src.run import Run
from src.runtime.messages import UsageError
from src.runtime.parallel import map_tasks
from src.runtime.precision import matmul_precision

MERGERS: dict[str, dict[str, Any]] = {"average": {}, "sum": {}, "tsv_m": {"alphas": [1.0]}, "iso_c": {"alphas": [1.0]}}


class Measure(NamedTuple):
    """title: in tables. of_weights: whether it needs nothing but the checkpoints."""

    title: str
    of_weights: bool


MEASURES = {
    "cosine": Measure("cosine of the task vectors", True),
    "sign_agreement": Measure("equal signs", True),
    "norm_ratio": Measure("ratio of norms", True),
    "top_left": Measure("overlap of leading left subspaces", True),
    "top_right": Measure("overlap of leading right subspaces", True),
    "bottom_left": Measure("overlap of least left subspaces", True),
    "bottom_right": Measure("overlap of least right subspaces", True),
    "singular_interference": Measure("singular task interference", True),
    "feature_distance": Measure("distance of features", False),
    "feature_dot": Measure("dot product of features", False),
    "cross_task_accuracy": Measure("cross-task accuracy", False),
    "tangent_interference": Measure("tangent interference", False),
}
Indices = tuple[int, int]  # of the tasks of a pair


class Merged(TypedDict):
    """Mean test accuracies of both tasks at a coefficient."""

    coefficient: float
    accuracy: float
    normalised: float


class Pair(TypedDict):
    """measures: of MEASURES, without those that the pair does not have. merged: by method."""

    measures: Mapping[str, float]
    merged: Mapping[str, Merged]


class Record(Corrupted):
    """num_samples: validation images of each task. pairs: "i-j" -> of tasks i and j."""

    finetuning_mode: str
    tasks: Sequence[str]
    num_samples: int
    pairs: Mapping[str, Pair]


class Correlations(NamedTuple):
    pearson: float
    spearman: float


def correlations(record: Record, measure: str, method: str) -> Correlations:
    """Over the pairs that have the measure; nan for fewer than three, and where either number is always the same."""
    points = [
        (pair["measures"][measure], pair["merged"][method]["normalised"])
        for pair in record["pairs"].values()
        if measure in pair["measures"]
    ]
    if len(points) < 3 or any(len({*values}) < 2 for values in zip(*points)):
        return Correlations(math.nan, math.nan)
    one, other = zip(*points)
    return Correlations(float(pearsonr(one, other).statistic), float(spearmanr(one, other).statistic))


def numbers(record: Record, suite: str) -> Iterator[Number]:
    """Of every pair, and correlations over pairs; the method and the measure are in the metric."""
    for name, pair in record["pairs"].items():
        for measure, value in pair["measures"].items():
            yield Number(measure, value, name)
        for method, merged in pair["merged"].items():
            yield Number(f"normalised_{method}", merged["normalised"], name)
    for method in MERGERS:
        yield Number(f"normalised_{method}", mean(p["merged"][method]["normalised"] for p in record["pairs"].values()))
        for measure in MEASURES:
            for name, value in correlations(record, measure, method)._asdict().items():
                yield Number(f"{name}_{measure}_{method}", None if math.isnan(value) else value)


def measure_mergeability(run: Run, mode: str, num_samples: int = MERGEABILITY_SAMPLES, overwrite: bool = False) -> None:
    """Write mergeability_<mode>.json. num_samples: validation images of each task that features are compared on.

    Raises UsageError for fewer than three tasks, MissingResult without single-task accuracies to normalise by.
    """
    check(num_samples=num_samples)
    run.require_mantissa("small differences of features")
    if len(run.tasks) < MERGEABILITY_TASKS:
        raise UsageError(
            f"--tasks: expected at least {MERGEABILITY_TASKS}, for correlations over pairs; found {len(run.tasks)}"
        )

    def made_of() -> dict[str, str]:
        return store.made_of(run, mode, run.tasks) | Denominators.made_of(run, mode, run.tasks)

    options = {"num_samples": num_samples}
    record = carry_out(MERGEABILITY, mode, run, options, lambda: _record(run, mode, num_samples), overwrite, made_of)
    if record is None:
        return
    foretold = ", ".join(f"{method} {largest(record, method):.2f}" for method in MERGERS)
    print(
        f"mergeability {mode}: largest |r| of a measure of weights: {foretold} -> "
        f"{run.paths.result(MERGEABILITY.result(mode))}"
    )


def largest(record: Record, method: str) -> float:
    """The largest |r| of Pearson's of the measures of weights alone; nan where there is none."""
    sizes = [abs(correlations(record, name, method).pearson) for name, row in MEASURES.items() if row.of_weights]
    return max((r for r in sizes if not math.isnan(r)), default=math.nan)


def _record(run: Run, mode: str, num_samples: int) -> Record:
    denominators = Denominators.of(run, mode, run.tasks)  # missing ones are told before long work
    loading.examples(run, run.tasks[0], "test")  # mini's are drawn once, before the workers look for them
    load_methods()
    weights = of_weights(read_problem(run, Source(mode)))
    look = partial(on_task, run=run, mode=mode, num_samples=num_samples)
    images = of_images(map_tasks(look, run.tasks, run.jobs, f"mergeability {mode}", run.device))
    by_name: dict[str, Pair] = {}
    with scores.shared():  # averaging is one of the coefficients of task arithmetic
        for one, other in combinations(range(len(run.tasks)), 2):
            part = replace(run, tasks=(run.tasks[one], run.tasks[other]))
            by_name["-".join(part.tasks)] = {
                "measures": weights[one, other] | images[one, other],
                "merged": merged_pair(part, mode, denominators),
            }
    return {"finetuning_mode": mode, "tasks": list(run.tasks), "num_samples": num_samples, "pairs": by_name}


def merged_pair(run: Run, mode: str, denominators: Denominators) -> dict[str, Merged]:
    """By method, of the run's two tasks."""
    problem = read_problem(run, Source(mode))
    by_method: dict[str, Merged] = {}
    for method, options in MERGERS.items():
        made = METHODS[method](**options).merge(problem)
        setting = chosen(run, mode, made, denominators)
        curves = score_merge(run, made, mode, "test", dict.fromkeys(run.tasks, [setting]))
        summary = denominators.summary({task: curve.accuracy[0] for task, curve in curves.items()})
        by_method[method] = {
            "coefficient": float(setting),
            "accuracy": summary["mean_accuracy"],
            "normalised": summary["mean_normalised"],
        }
    return by_method


def chosen(run: Run, mode: str, made: Merge, denominators: Denominators) -> Setting:
    """The only setting, or validation's choice among several."""
    if len(made.settings) == 1:
        return made.settings[0]
    curves = score_merge(run, made, mode, "val", dict.fromkeys(run.tasks, made.settings))
    accuracy = {task: curve.accuracy for task, curve in curves.items()}
    return made.settings[select(accuracy, denominators.finetuned["val"], per_task=False)[run.tasks[0]]]


def of_weights(problem: Problem) -> dict[Indices, dict[str, float]]:
    """The measures of weights, by pair."""
    count = len(problem.tasks)
    vectors = [problem.vector(task).vector for task in problem.tasks]
    by_matrix: dict[Indices, dict[str, list[float]]] = {pair: {} for pair in combinations(range(count), 2)}
    for _, matrices in matrices_of(problem, Layout()):
        for deltas in matrices:
            k, svds = max(1, deltas.r // count), deltas.svds(deltas.r)
            for (one, other), values in by_matrix.items():
                of_pair = pairs.spaces(svds[one], svds[other], k)
                if of_pair:
                    tops = [svds[index].top(k) for index in (one, other)]
                    of_pair["singular_interference"] = spectra.interference(tops)
                for measure, value in of_pair.items():
                    values.setdefault(measure, []).append(value)
    return {
        (one, other): {
            "cosine": layerwise.cosine(vectors[one], vectors[other]),
            "sign_agreement": pairs.sign_agreement(vectors[one], vectors[other]),
            "norm_ratio": pairs.norm_ratio(vectors[one], vectors[other]),
            **{measure: mean(of_measure) for measure, of_measure in values.items()},
        }
        for (one, other), values in by_matrix.items()
    }


class OnTask(NamedTuple):
    """On a task's validation images: distance and dot product of the features of every two models, (tasks, tasks).

    accuracy: of every encoder with the task's head. interference: of every task's vector, over the task's own.
    """

    distance: Grid
    dot: Grid
    accuracy: Sequence[float]
    interference: Sequence[float]


def of_images(by_task: Sequence[OnTask]) -> dict[Indices, dict[str, float]]:
    """The measures of images, by pair: means of both tasks. by_task: in the order of the tasks."""
    by_pair = {}
    for one, other in combinations(range(len(by_task)), 2):
        on_one, on_other = by_task[one], by_task[other]
        by_pair[one, other] = {
            "feature_distance": mean(on.distance[one][other] for on in (on_one, on_other)),
            "feature_dot": mean(on.dot[one][other] for on in (on_one, on_other)),
            "cross_task_accuracy": mean((on_one.accuracy[other], on_other.accuracy[one])),
            "tangent_interference": math.sqrt(on_one.interference[other] * on_other.interference[one]),
        }
    return by_pair


def on_task(task: str, run: Run, mode: str, num_samples: int) -> OnTask:
    """num_samples: at most so many images; of tangent interference at most LAYERWISE_SAMPLES."""
    encoder = store.encoder(run)
    count = min(num_samples, len(loading.evaluation_pixels(run, task, "val", encoder.image_size)))
    images, labels = spread_examples(run, task, "val", count)
    vectors = [store.task_vector(run, other, mode) for other in run.tasks]
    head, tangent = get_classification_head(run, task).to(run.device), MODES[mode].tangent
    with matmul_precision(run.precision), torch.no_grad():
        of_models = []
        for vector in vectors:
            line = Line(store.to_device(vector.vector, run.device))
            parts = features(encoder, images.split(run.batch_size), line, tangent)
            of_models.append(torch.cat([f for _, _, f in parts]))
        whole = {"all": list(vectors[0].vector)}
        batches = images[:LAYERWISE_SAMPLES].split(run.batch_size)
        interference = measured(encoder, batches, vectors, whole, run.tasks.index(task), tangent=True)["all"]
        accuracy = [float((head(f).argmax(1) == labels).double().mean()) for f in of_models]
    f = torch.stack(of_models).double()  # (tasks, images, D)
    return OnTask(
        distance=[[float((a - b).norm(dim=1).mean()) for b in f] for a in f],
        dot=[[float((a * b).sum(1).mean()) for b in f] for a in f],
        accuracy=accuracy,
        interference=interference.others,
    )
