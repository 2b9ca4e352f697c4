"""Accuracies of many settings from one pass over the images, and `select`, the only reader of validation.

A model θ0 + α·τ is scored along a *line*: a direction τ and its coefficients. A non-linear model takes one forward pass
per coefficient, each image being decoded once. The linear model's features are affine in α,

    f_lin(x; θ0 + α·τ) = f(x; θ0) + α · J(x; θ0) τ,

so one jvp gives all of its coefficients. Source: https://arxiv.org/abs/2305.12827, equation (3).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch.func import functional_call

from . import data, parallel, results, store
from .heads import get_classification_head
from .linearize import forward_and_jvp
from .paths import Paths
from .task_vectors import TaskVector


@dataclass(frozen=True)
class Line:
    """θ0 + α·direction for every α of `coefs`; no direction stands for θ0 itself."""

    direction: Mapping[str, torch.Tensor]
    coefs: tuple[float, ...] = (1.0,)


ORIGIN = Line({}, (0.0,))


@dataclass(frozen=True)
class Score:
    """Top-1 accuracy in [0, 1], mean cross-entropy, number of images."""

    accuracy: float
    loss: float
    n: int


class NonFiniteFeatures(ArithmeticError):
    """An image feature is no number: the coefficient is too large, or a checkpoint is broken."""


def features(encoder, images: torch.Tensor, line: Line, tangent: bool) -> Iterator[torch.Tensor]:
    """Features (N, D) at each coefficient of the line, in order."""
    theta0 = dict(encoder.named_parameters())
    if tangent and line.direction:
        f0, slope = forward_and_jvp(encoder, theta0, line.direction, images)
        for alpha in line.coefs:
            yield f0 + alpha * slope
        return
    for alpha in line.coefs:
        moved = {name: theta0[name] + alpha * tau for name, tau in line.direction.items()}
        yield functional_call(encoder, moved, (images,))


@torch.no_grad()
def score(args, dataset: str, split: str, lines: Sequence[Line], tangent: bool) -> list[list[Score]]:
    """Scores of every line's every coefficient on a split, with one pass over its images.

    Raises NonFiniteFeatures, naming the data set and the coefficient.
    """
    encoder = store.encoder(args)
    head = get_classification_head(args, dataset).to(args.device)
    lines = [Line(store.to_device(line.direction, args.device), line.coefs) for line in lines]
    correct = [torch.zeros(len(line.coefs), dtype=torch.int64) for line in lines]
    loss = [torch.zeros(len(line.coefs), dtype=torch.float64) for line in lines]
    n = 0
    for images, labels in data.evaluation_batches(args, encoder, dataset, split):
        n += len(labels)
        for number, line in enumerate(lines):
            for place, found in enumerate(features(encoder, images, line, tangent)):
                if not torch.isfinite(found).all():
                    raise NonFiniteFeatures(
                        f"{dataset} ({split}): features are not finite at coefficient {line.coefs[place]}; "
                        "look for a damaged or diverged checkpoint, or search smaller coefficients"
                    )
                logits = head(found)
                correct[number][place] += (logits.argmax(1) == labels).sum().item()
                loss[number][place] += F.cross_entropy(logits, labels, reduction="sum").item()
    return [
        [Score(c.item() / n, total.item() / n, n) for c, total in zip(right, summed)]
        for right, summed in zip(correct, loss)
    ]


def select(curves: Mapping[str, Sequence[float]], denominators: Mapping[str, float], per_task: bool) -> dict[str, int]:
    """Index of the chosen setting for each task, from validation accuracies alone.

    curves[task][i]: validation accuracy of setting i. Shared: the setting with the best mean of accuracy / denominator.
    `per_task`: each task's own best. The earliest setting wins a draw.
    """

    def best(values: Sequence[float]) -> int:
        return max(range(len(values)), key=lambda i: (values[i], -i))

    if per_task:
        return {task: best(curve) for task, curve in curves.items()}
    chosen = best(mean_normalised(curves, denominators))
    return dict.fromkeys(curves, chosen)


def mean_normalised(curves: Mapping[str, Sequence[float]], denominators: Mapping[str, float]) -> list[float]:
    """Mean over tasks of accuracy / denominator, for each setting."""
    settings = len(next(iter(curves.values())))
    return [mean(curve[i] / denominators[task] for task, curve in curves.items()) for i in range(settings)]


def select_negation(
    coefs: Sequence[float], target: Sequence[float], control: Sequence[float], floor: float
) -> int | None:
    """Index of the coefficient with the lowest target validation accuracy among those that keep control >= floor.

    None where no coefficient keeps it. The smallest coefficient wins a draw.
    """
    kept = [i for i in range(len(coefs)) if control[i] >= floor]
    return min(kept, key=lambda i: (target[i], coefs[i]), default=None)


def mean(values) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


@dataclass(frozen=True)
class Denominators:
    """Single-task accuracies that normalise a merged model's, and what doing nothing scores."""

    finetuned: dict[str, dict[str, float]]  # split -> task -> accuracy of the fine-tuned model of the same mode
    zeroshot: dict[str, dict[str, float]]

    @classmethod
    def of(cls, args, mode: str, tasks: Sequence[str]) -> "Denominators":
        """From the single-task results. Raises results.MissingResult that names the command that makes them."""
        return cls(_single_task(args, mode, tasks), _single_task(args, "none", tasks))


def _single_task(args, mode: str, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    command = f"python eval_single_task.py --finetuning-mode={mode} --model={args.model} --seed={args.seed}"
    path = Paths.of(args).single_task(mode)
    found = results.require(path, command)
    missing = [task for task in tasks if task not in found]
    if missing:
        raise results.MissingResult(
            f"{path}: expected accuracies of {', '.join(missing)}, found none; make it with: {command} --overwrite"
        )
    return {"val": {t: found[f"{t}Val"] for t in tasks}, "test": {t: found[t] for t in tasks}}


Job = tuple[str, str, Sequence[Line]]  # data set, split, lines


def _score_job(job: Job, args, tangent: bool) -> list[list[Score]]:
    dataset, split, lines = job
    return score(args, dataset, split, lines, tangent)


def score_all(args, jobs: Sequence[Job], tangent: bool, desc: str) -> list[list[list[Score]]]:
    """`score` for every job, several at once: [job][line][coefficient]."""
    return parallel.each(partial(_score_job, args=args, tangent=tangent), jobs, args.jobs, desc)


def evaluate_merge(args, merge, tasks: Sequence[str], mode: str) -> dict:
    """Choose the setting on validation, read test once, and tell everything: the record of a merging result.

    merge: see merging.base.Merge. Accuracies are in [0, 1]; normalised ones are divided by the fine-tuned model's of
    the same mode and split.
    """
    settings = tuple(merge.settings)
    tangent = mode in store.TANGENT
    denominators = Denominators.of(args, mode, tasks)

    def lines(task: str, chosen: Sequence[float]) -> list[Line]:
        if merge.direction is not None:
            return [Line(merge.direction(task).vector, tuple(chosen))]
        return [Line(merge.vector(task, setting).vector) for setting in chosen]

    def scores(split: str, chosen: Callable[[str], Sequence[float]]) -> dict[str, list[Score]]:
        found = score_all(args, [(t, split, lines(t, chosen(t))) for t in tasks], tangent, f"{split} accuracy")
        return {task: [s for line in per_line for s in line] for task, per_line in zip(tasks, found)}

    validation = scores("val", lambda task: settings)
    curves = {task: [s.accuracy for s in found] for task, found in validation.items()}
    index = select(curves, denominators.finetuned["val"], merge.per_task)
    chosen = {task: settings[i] for task, i in index.items()}
    test = {task: found[0] for task, found in scores("test", lambda task: [chosen[task]]).items()}
    finished = merge.finish(chosen) if getattr(merge, "finish", None) else {}
    accuracy = {task: s.accuracy for task, s in test.items()}
    return {
        "tasks": list(tasks),
        "finetuning_mode": mode,
        "settings": list(settings),
        "chosen_per_task": merge.per_task,
        "chosen": chosen,
        "at_edge": len(settings) > 1 and not merge.per_task and index[tasks[0]] == len(settings) - 1,
        "val": {
            "accuracy": curves,
            "mean_accuracy": [mean(curve[i] for curve in curves.values()) for i in range(len(settings))],
            "mean_normalised": mean_normalised(curves, denominators.finetuned["val"]),
        },
        "test": summary(accuracy, denominators.finetuned["test"]) | {"loss": {t: s.loss for t, s in test.items()}},
        "zeroshot": summary(denominators.zeroshot["test"], denominators.finetuned["test"]),
        "denominators": denominators.finetuned,
        "n": {"val": {t: f[0].n for t, f in validation.items()}, "test": {t: s.n for t, s in test.items()}},
        "info": {**getattr(merge, "info", {}), **finished},
    }


def summary(accuracy: Mapping[str, float], denominators: Mapping[str, float]) -> dict:
    """Absolute and normalised accuracy, per task and averaged."""
    normalised = {task: value / denominators[task] for task, value in accuracy.items()}
    return {
        "accuracy": dict(accuracy),
        "normalised": normalised,
        "mean_accuracy": mean(accuracy.values()),
        "mean_normalised": mean(normalised.values()),
    }


def along(direction: TaskVector, coefs: Sequence[float]):
    """A Merge of one model for all tasks, θ0 + α·direction, without storage accounting: task addition's own."""
    from .merging.base import Merge

    return Merge(
        vector=lambda task, alpha: alpha * direction,
        settings=tuple(coefs),
        storage_bits=0,
        direction=lambda task: direction,
    )
