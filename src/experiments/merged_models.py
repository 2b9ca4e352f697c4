"""Merged models seen closely: do they predict as the fine-tuned ones, how do their features differ, how sure are they.

Of each method that main.py has results of, the model is merged again at the setting that validation chose there;
random methods are at their first draw. Beside it, of the vectors that are added, each task's own model at the same
coefficient: what is lost by scaling, before any other task interferes.

    disagreement    of task t: E 1[argmax f(x; θ_m) ≠ argmax f(x; θ_t)], x ~ D_t: one term of the error ξ of
                    arXiv:2305.12827 for all tasks, with the fine-tuned model in the place of the one at α_t τ_t
    bias            by block; see analysis/representations.py
    loss, calibration_error, temperature    see analysis/calibration.py; scaled_*: at the task's temperature, which is
                    that of validation images
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean as mean
from typing import Any, cast

import torch
from torch import Tensor
from typing_extensions import TypedDict

from src import store
from src.analysis import calibration
from src.analysis.representations import Blocks, bias, representations
from src.datasets import loading
from src.evaluation import FeatureMap, Line, features, score_all
from src.experiments.base import carry_out
from src.experiments.merging import variant_result
from src.experiments.ntk import spread_images
from src.experiments.numbers import Number
from src.experiments.registry import MERGED_MODELS, MERGED_SAMPLES
from src.heads import get_classification_head
from src.merging.base import Drawn, Variant
from src.merging.problem import Source, read_problem
from src.merging.registry import METHODS, variant_label, variants
from src.modes import MODES
from src.ranges import check
from src.records import Corrupted
from src.run import Run, as_overrides
from src.runtime import results
from src.runtime.distributed import warn
from src.runtime.messages import UsageError, few, nearest
from src.runtime.parallel import map_tasks
from src.runtime.precision import matmul_precision
from src.task_vectors import TaskVector

# Names of results of main.py; further ones by --methods.
USUAL = (
    "zeroshot", "average", "sum", "ties", "consensus", "pcb", "lines", "svc_base=sum", "tsv_m", "iso_c", "iso_cts",
    "wudi", "fisher", "regmean", "regmean_plusplus", "adamerging", "surgery", "mag_masking", "tall_mask", "emr",
    "tsv_c",
)  # fmt: skip
ByTask = Mapping[str, float]


class Confidence(TypedDict):
    """Of a model for each task, on test images."""

    accuracy: ByTask
    loss: ByTask
    calibration_error: ByTask
    temperature: ByTask
    scaled_loss: ByTask
    scaled_calibration_error: ByTask


class Seen(Confidence):
    """bias: task -> of each of the record's `layers`."""

    disagreement: ByTask
    bias: Mapping[str, Sequence[float]]


class Scaled(TypedDict):
    """Each task's own vector alone, at the coefficient of a method."""

    coefficient: float
    accuracy: ByTask


class Record(Corrupted):
    """methods, scaled: by the name of the method's results. layers: blocks in order, then the features."""

    finetuning_mode: str
    tasks: Sequence[str]
    num_samples: int
    layers: Sequence[str]
    finetuned: Confidence
    methods: Mapping[str, Seen]
    scaled: Mapping[str, Scaled]


MEASURES = tuple(Confidence.__annotations__)


def numbers(record: Record, suite: str) -> Iterator[Number]:
    """Means over tasks; the name of a method's results is in the metric."""
    for label, seen in (("finetuned", record["finetuned"]), *record["methods"].items()):
        of_label = cast(Mapping[str, ByTask], seen)
        for measure in MEASURES:
            yield Number(f"{measure}_{label}", mean(of_label[measure].values()))
    for label, merged in record["methods"].items():
        yield Number(f"disagreement_{label}", mean(merged["disagreement"].values()))
        yield Number(f"bias_{label}", mean(of_task[-1] for of_task in merged["bias"].values()))
    for label, scaled in record["scaled"].items():
        yield Number(f"own_accuracy_{label}", mean(scaled["accuracy"].values()))


@dataclass(frozen=True)
class Chosen:
    """A method with results, and what validation chose there, by task."""

    variant: Variant
    settings: Mapping[str, Any]

    @property
    def label(self) -> str:
        return variant_label(self.variant)

    @property
    def adds(self) -> bool:
        """Whether its vector is a multiple of Σ τ_t."""
        return METHODS[self.variant.method].adds and not self.variant.options


def see_merged_models(
    run: Run,
    mode: str,
    methods: Sequence[str] | None = None,
    num_samples: int = MERGED_SAMPLES,
    overwrite: bool = False,
) -> None:
    """Write merged_models_<mode>.json.

    methods: names of results of main.py, by default USUAL; those without results are left out and told. num_samples:
    test images of each task on which features of all blocks are compared.
    Raises UsageError for an unknown name, MissingResult where no method has results.
    """
    check(num_samples=num_samples)
    run.require_mantissa("small differences of features")
    named = known_variants(methods or USUAL)
    labels = [variant_label(variant) for variant in named]
    options = {"methods": labels, "num_samples": num_samples}
    made_of = partial(_made_of, run, mode, named)
    work = partial(_record, run, mode, named, num_samples)
    record = carry_out(MERGED_MODELS, mode, run, options, work, overwrite, made_of)
    if record is None:
        return
    if absent := [label for label in labels if label not in record["methods"]]:
        warn(f"merged models {mode}: without results of main.py, and left out: {', '.join(absent)}")
    print(f"merged models {mode}: {len(record['methods'])} methods -> {run.paths.result(MERGED_MODELS.result(mode))}")


def known_variants(labels: Sequence[str]) -> list[Variant]:
    """The registered variants whose results have these names. Raises UsageError."""
    by_label = {variant_label(variant): variant for variant in variants()}
    for label in labels:
        if label not in by_label:
            raise UsageError(
                f"--methods: expected names of results of main.py; {label!r} does not exist"
                f"{nearest(label, list(by_label))} Known: {few(by_label, 80)}"
            )
    return [by_label[label] for label in dict.fromkeys(labels)]


def _made_of(run: Run, mode: str, named: Sequence[Variant]) -> dict[str, str]:
    """The checkpoints, and what was chosen."""
    settings = [(one.label, dict(one.settings)) for one in chosen(run, mode, named)]
    return store.made_of(run, mode, run.tasks) | {"chosen": hashlib.sha256(repr(settings).encode()).hexdigest()[:12]}


def chosen(run: Run, mode: str, named: Sequence[Variant]) -> list[Chosen]:
    """Those that have results. Raises ResultError for results of other checkpoints than those that are there."""
    merges, now = [], store.made_of(run, mode, run.tasks)
    for variant in named:
        path = run.paths.result(variant_result(run, variant, mode))
        if not results.exists(path):
            continue
        record = results.read(path)
        if stale := results.outdated(record["provenance"], now):
            raise results.ResultError(
                f"{path}: expected a result of the checkpoints that are there, found one of others: {few(stale)} "
                f"changed since; make it again with: {record['provenance']['command']} overwrite=True"
            )
        merges.append(Chosen(variant, record["chosen"]))
    return merges


def _record(run: Run, mode: str, named: Sequence[Variant], num_samples: int) -> Record:
    there = chosen(run, mode, named)
    if not there:
        raise results.MissingResult(
            f"expected results of main.py in {run.paths.result(variant_result(run, named[0], mode)).parent}, found "
            f"none of {few([variant_label(variant) for variant in named])}; make them with: "
            f"{run.reproduce('--only', 'merging', 'methods')}"
        )
    loading.examples(run, run.tasks[0], "test")  # mini's are drawn once, before the workers look for them
    look = partial(looked_at, run=run, mode=mode, num_samples=num_samples)
    alone = map_tasks(look, [Model(task) for task in run.tasks], run.jobs, f"fine-tuned {mode}", run.device)
    predictions = {task: of_task.predictions for task, of_task in zip(run.tasks, alone)}
    seen: dict[str, Seen] = {}
    for one in there:
        by_task = []
        for models in merged(run, mode, one):
            models = [replace(model, predictions=predictions[model.task]) for model in models]
            by_task += map_tasks(look, models, run.jobs, f"{one.label} {mode}", run.device)
        seen[one.label] = {
            **_confidence(run.tasks, by_task),
            "disagreement": {task: look.disagreement for task, look in zip(run.tasks, by_task)},
            "bias": {task: look.bias for task, look in zip(run.tasks, by_task)},
        }
    return {
        "finetuning_mode": mode,
        "tasks": list(run.tasks),
        "num_samples": num_samples,
        "layers": [*(f"block {block}" for block in range(len(Blocks(store.encoder(run))))), "features"],
        "finetuned": _confidence(run.tasks, alone),
        "methods": seen,
        "scaled": scaled(run, mode, there),
    }


@dataclass(frozen=True)
class Model:
    """What is scored on a task. vector: None for the task's own. predictions: of the task's own model; None for it."""

    task: str
    vector: TaskVector | None = None
    adapter: FeatureMap | None = None
    predictions: Tensor | None = None


@dataclass(frozen=True)
class Look:
    """At a model: its predictions, the measures of `Confidence`, and how it differs from the task's own model."""

    predictions: Tensor
    measures: dict[str, float]
    disagreement: float = 0.0
    bias: tuple[float, ...] = ()


def _confidence(tasks: Sequence[str], looks: Sequence[Look]) -> Confidence:
    by_measure = {name: {task: look.measures[name] for task, look in zip(tasks, looks)} for name in MEASURES}
    return cast(Confidence, by_measure)


def merged(run: Run, mode: str, one: Chosen) -> Iterator[list[Model]]:
    """The method's models, of as many tasks as are scored at once; a model for all tasks is made once.

    Raises ResultError where a chosen setting is none of the method's today.
    """
    torch.manual_seed(run.seed)
    made = METHODS[one.variant.method](**one.variant.options).merge(read_problem(run, Source(mode), one.label))
    made = made.draw(0) if isinstance(made, Drawn) else made
    for task, setting in one.settings.items():
        if setting not in made.settings:
            raise results.ResultError(
                f"{run.paths.result(variant_result(run, one.variant, mode))}: expected a setting of {one.label} as it "
                f"is today, found {setting!r} chosen for {task}; make it again with: python main.py "
                f"{as_overrides(run.named())} DATASETS=[{','.join(run.tasks)}] finetuning_mode={mode} "
                f"{' '.join(one.variant.overrides)} overwrite=True"
            )
    tasks, settings = run.tasks, one.settings
    shared = None if made.per_task else made.vector(tasks[0], settings[tasks[0]])
    at_once = max(1, run.jobs) if made.per_task else len(tasks)
    for first in range(0, len(tasks), at_once):
        yield [
            Model(
                task,
                made.vector(task, settings[task]) if shared is None else shared,
                made.adapter(task, settings[task]),
            )
            for task in tasks[first : first + at_once]
        ]


def looked_at(model: Model, run: Run, mode: str, num_samples: int) -> Look:
    with matmul_precision(run.precision):
        return _looked_at(model, run, mode, num_samples)


def _looked_at(model: Model, run: Run, mode: str, num_samples: int) -> Look:
    tangent = MODES[mode].tangent
    own = store.task_vector(run, model.task, mode)
    vector = own if model.vector is None else model.vector
    of_val, labels_val = logits(run, model, vector, "val", tangent)
    of_test, labels = logits(run, model, vector, "test", tangent)
    temperature = calibration.temperature(of_val, labels_val)
    predictions = of_test.argmax(1)
    measures = {
        "accuracy": float((predictions == labels).double().mean()),
        "loss": calibration.log_loss(of_test, labels),
        "calibration_error": calibration.calibration_error(of_test, labels),
        "temperature": temperature,
        "scaled_loss": calibration.log_loss(of_test / temperature, labels),
        "scaled_calibration_error": calibration.calibration_error(of_test / temperature, labels),
    }
    if model.predictions is None:
        return Look(predictions, measures)
    differing = float((predictions != model.predictions).double().mean())
    return Look(predictions, measures, differing, biases(run, model, (vector, own), num_samples, tangent))


@torch.no_grad()
def logits(run: Run, model: Model, vector: TaskVector, split: str, tangent: bool) -> tuple[Tensor, Tensor]:
    """(images, classes) and (images,), on the CPU."""
    encoder = store.encoder(run)
    head = get_classification_head(run, model.task).to(run.device)
    line = Line(store.to_device(vector.vector, run.device))
    logits, right = [], []
    for images, labels in loading.evaluation_batches(run, encoder, model.task, split):
        ((_, _, at_end),) = features(encoder, [images], line, tangent)
        logits.append(head(model.adapter(at_end) if model.adapter else at_end).cpu())
        right.append(labels.cpu())
    return torch.cat(logits), torch.cat(right)


def biases(
    run: Run, model: Model, vectors: tuple[TaskVector, TaskVector], num_samples: int, tangent: bool
) -> tuple[float, ...]:
    """Of each block and of the features behind the adapter. vectors: of the model, and the task's own."""
    encoder = store.encoder(run)
    count = min(num_samples, len(loading.evaluation_pixels(run, model.task, "test", encoder.image_size)))
    ours, own = (store.to_device(vector.vector, run.device) for vector in vectors)
    blocks, start = Blocks(encoder), store.start_of(encoder, ours, own)
    sums = [(0.0, 0.0)] * (len(blocks) + 1)
    for images in spread_images(run, model.task, "test", count).split(run.batch_size):
        of_model, of_own = (representations(blocks, start, vector, images, tangent) for vector in (ours, own))
        if model.adapter:
            of_model[-1] = model.adapter(of_model[-1])
        biases = [bias(one, other) for one, other in zip(of_model, of_own, strict=True)]
        sums = [(a + c, b + d) for (a, b), (c, d) in zip(sums, biases, strict=True)]
    return tuple(difference / size for difference, size in sums)


def scaled(run: Run, mode: str, there: Sequence[Chosen]) -> dict[str, Scaled]:
    """Accuracy of θ0 + α τ_t on its own task, at the α of each method that adds Σ τ_t up."""
    coefficients = {one.label: float(one.settings[run.tasks[0]]) for one in there if one.adds}
    if not coefficients:
        return {}
    alphas = tuple(coefficients.values())
    lines = {task: (task, Line(store.stored_vector(run, task, mode), alphas)) for task in run.tasks}
    curves = score_all(run, mode, lines, "test", f"own vectors scaled {mode}")
    return {
        label: {"coefficient": alpha, "accuracy": {task: curves[task].accuracy[index] for task in run.tasks}}
        for index, (label, alpha) in enumerate(coefficients.items())
    }
