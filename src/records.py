"""The schema of results: what the experiments write into JSON, and what tables, figures and claims read out of it.

Here are the schemas of merging and addition, and shared parts; each other experiment has its `Record` in its
own file in experiments/. Every record also gets `provenance` when it is written (see runtime/results.py), and
`corruption` where test images were corrupted. Accuracies are in [0, 1]. A test that writes a record and the code that
reads it name the same class.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NotRequired, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # Python's own does not serve pydantic before 3.12

from src.runtime.results import ResultError

Grid = Sequence[Sequence[float]]
Bits = str  # which test images are right; see correctness.py


class Corruption(TypedDict):
    """splits: those whose images were corrupted."""

    name: str
    severity: int
    splits: Sequence[str]


class Corrupted(TypedDict):
    """What every record may hold.

    leaks: task -> why its checkpoint, which was fine-tuned elsewhere, may have seen the images it is scored on.
    """

    corruption: NotRequired[Corruption]
    leaks: NotRequired[Mapping[str, str]]


class Summary(TypedDict):
    """Test accuracies of one model by task, and their means. normalised: over the fine-tuned models' accuracies."""

    accuracy: Mapping[str, float]
    normalised: Mapping[str, float]
    mean_accuracy: float
    mean_normalised: float


class Scores(Summary):
    """loss: mean cross-entropy by task. correct: which test images are right, by task."""

    loss: Mapping[str, float]
    correct: NotRequired[Mapping[str, Bits]]


class FixedScores(Scores):
    """At a setting that nobody chose."""

    setting: Any


class Curves(TypedDict):
    """Validation accuracies at each setting, by task and averaged."""

    accuracy: Mapping[str, Sequence[float]]
    mean_accuracy: Sequence[float]
    mean_normalised: Sequence[float]


class Draws(TypedDict):
    """Test accuracies of `n` draws of a random model, and their standard deviations (n − 1)."""

    n: int
    accuracy: Mapping[str, Sequence[float]]
    mean_accuracy: Sequence[float]
    sd: float
    sd_per_task: Mapping[str, float]


class Masks(TypedDict):
    """Of one mask for each task, as shares of all weights; see merging/geometry.py."""

    density: Mapping[str, float]
    usage: Sequence[float]
    catastrophic: float
    selfish: float
    universal: float
    iou: Grid


class Info(TypedDict, total=False):
    """What a method tells of itself, beside whatever else it tells.

    masks: where each task has one. density: of the only mask. search: option -> the values that validation tried.
    """

    masks: Masks
    density: float
    search: Mapping[str, Sequence[Any]]


class Addition(Corrupted):
    """A model chosen on validation and scored on test once: of eval_task_addition.py, and a part of `Merging`.

    settings: what validation chose among; chosen: the choice, by task. denominators: split -> task -> accuracy of the
    fine-tuned model of the same mode. zeroshot: of θ0 on the same images, by the same denominators.
    fixed: "untuned" at the published default of the coefficient, "one" at α = 1, for methods that scale one vector.
    """

    tasks: Sequence[str]
    finetuning_mode: str
    settings: Sequence[Any]
    chosen_per_task: bool
    chosen: Mapping[str, Any]
    at_edge: bool
    val: Curves
    test: Scores
    zeroshot: Summary
    denominators: Mapping[str, Mapping[str, float]]
    n: Mapping[str, Mapping[str, int]]
    info: Info
    draws: NotRequired[Draws]
    fixed: NotRequired[Mapping[str, FixedScores]]


class Phase(TypedDict):
    name: str
    steps: int


# Numbers after some of the steps: by task what is minimised (entropy, or another loss) and λ; density of a mask.
# A dictionary, for `lambda` is no name in Python.
StepCurves = TypedDict(
    "StepCurves",
    {
        "step": Sequence[int],
        "entropy": NotRequired[Mapping[str, Sequence[float]]],
        "loss": NotRequired[Mapping[str, Sequence[float]]],
        "lambda": NotRequired[Mapping[str, Sequence[float]]],
        "density": NotRequired[Sequence[float]],
    },
)


class LayerCurves(TypedDict):
    """values: (tasks, layers) at each of the steps."""

    step: Sequence[int]
    values: Sequence[Grid]


class Coefficients(TypedDict):
    """λ, (tasks, layers); one column and no layers where a task has one coefficient."""

    tasks: Sequence[str]
    layers: Sequence[str] | None
    values: Grid


class LearnedMask(TypedDict):
    """The mask that all tasks share. final: how it was made of its logits. density: its mean; by_tensor: of each."""

    final: str
    density: float
    probability: float
    by_tensor: Mapping[str, float]


class Watched(TypedDict):
    """Accuracies in the course of an adaptation, by task, at some of its steps."""

    split: str
    step: Sequence[int]
    phase: Sequence[str]
    accuracy: Mapping[str, Sequence[float]]


# The course of an adaptation.
Adaptation = TypedDict(
    "Adaptation",
    {
        "adapt_on": str,
        "variant": str | None,
        "settings": Mapping[str, Any],
        "phases": Sequence[Phase],
        "curves": StepCurves,
        "lambda": Coefficients | None,
        "lambda_layers_curve": LayerCurves | None,
        "mask": LearnedMask | None,
        "watched": Watched | None,
    },
)


class Unseen(Scores):
    """Of the merged model on tasks that were not merged. zeroshot: of θ0. denominators: of their fine-tuned models."""

    tasks: Sequence[str]
    zeroshot: Summary
    denominators: Mapping[str, float]


class Storage(TypedDict):
    """Bits: of this merge, of one model, of every fine-tuned one, of masks, and of the files as they are."""

    this: float
    merged: float
    finetuned: float
    masked: float
    files: NotRequired[Mapping[str, float]]


class MergingCost(TypedDict):
    """Of making the chosen models, not of scoring them: seconds, and bytes at the peak beyond those before, if told."""

    seconds: float
    peak_memory: int | None


class Merging(Addition):
    """Of main.py. options: of the method, all of them. encoders: foreign checkpoints by task.

    divided_by: whose single-task accuracies normalise; earlier results with `encoders` divided by those of others.
    """

    method: str
    label: str
    options: Mapping[str, Any]
    scope: str
    encoders: Mapping[str, str]
    divided_by: NotRequired[str]
    parameters: Mapping[str, int]
    storage: Storage
    cost: NotRequired[MergingCost]
    adaptation: NotRequired[Adaptation]
    unseen: NotRequired[Unseen]
    output: NotRequired[Sequence[str | Path]]


class Vectors(TypedDict):
    """Beside the results of main.py: norms of the task vectors, and cosines between them, (tasks, tasks)."""

    finetuning_mode: str
    scope: str
    tasks: Sequence[str]
    norm: Sequence[float]
    cosine: Grid


SUFFIXES = {"test": "", "val": "Val"}  # split -> what a data set's name gets in the published single-task files

Record = TypeVar("Record")


def checked(record: Mapping[str, Any], schema: type[Record], source: Path | str) -> Record:
    """`record`, which has the schema. Raises results.ResultError that names the source and the first wrong key."""
    try:
        _adapter(cast(Any, schema)).validate_python(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        command = record.get("provenance", {}).get("command")
        again = f"; make it again with: {command}" if command else ""
        raise ResultError(
            f"{source}: expected a result of the schema {schema.__name__} of src/records.py, found {key}: "
            f"{first['msg'].lower()}{again}"
        ) from None
    return record  # type: ignore[return-value]


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def single_task_accuracies(record: Mapping[str, Any], datasets: Sequence[str]) -> dict[str, dict[str, float]]:
    """split -> data set -> accuracy, of those of `datasets` that a single-task record names."""
    return {
        split: {dataset: record[dataset + suffix] for dataset in datasets if dataset + suffix in record}
        for split, suffix in SUFFIXES.items()
    }
