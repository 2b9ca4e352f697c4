"""Accuracies of many settings from one pass over the images, and `select`, the only reader of validation.

A model θ0 + α·τ is scored along a *line*: a direction τ and its coefficients. A non-linear model takes one forward pass
per coefficient, each image being decoded once. The linear model's features are affine in α,

    f_lin(x; θ0 + α·τ) = f(x; θ0) + α · J(x; θ0) τ,

so one jvp gives all of its coefficients. Source: https://arxiv.org/abs/2305.12827, equation (3).
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch.func import functional_call

from src import store
from src.datasets import corruptions
from src.datasets import loading as data
from src.heads import get_classification_head
from src.linearize import forward_and_jvp
from src.runtime import results
from src.runtime.distributed import from_primary, world_size
from src.runtime.parallel import map_tasks
from src.runtime.paths import Paths
from src.task_vectors import TaskVector


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


class NonFiniteFeatures(FloatingPointError):
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


@dataclass(frozen=True)
class Sums:
    """Over the images of a share: right answers and cross-entropy, (coefficients,) for each line; number of images."""

    correct: list[torch.Tensor]
    loss: list[torch.Tensor]
    n: int

    def __add__(self, other: "Sums") -> "Sums":
        correct = [a + b for a, b in zip(self.correct, other.correct)]
        return Sums(correct, [a + b for a, b in zip(self.loss, other.loss)], self.n + other.n)

    def scores(self) -> list[list[Score]]:
        return [
            [Score(c.item() / self.n, total.item() / self.n, self.n) for c, total in zip(right, summed)]
            for right, summed in zip(self.correct, self.loss)
        ]


def score(args, dataset: str, split: str, lines: Sequence[Line], tangent: bool) -> list[list[Score]]:
    """Scores of every line's every coefficient on a split, with one pass over its images.

    Raises NonFiniteFeatures, naming the data set and the coefficient.
    """
    return sums(args, dataset, split, lines, tangent).scores()


@torch.no_grad()
def sums(args, dataset: str, split: str, lines: Sequence[Line], tangent: bool, share: tuple[int, int] = (0, 1)) -> Sums:
    """What `score` averages, over a share of the images (see data.evaluation_batches)."""
    encoder = store.encoder(args)
    head = get_classification_head(args, dataset).to(args.device)
    lines = [Line(store.to_device(line.direction, args.device), line.coefs) for line in lines]
    correct = [torch.zeros(len(line.coefs), dtype=torch.int64) for line in lines]
    loss = [torch.zeros(len(line.coefs), dtype=torch.float64) for line in lines]
    n = 0
    for images, labels in data.evaluation_batches(args, encoder, dataset, split, share):
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
    return Sums(correct, loss, n)


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
        finetuned = _single_task(args, mode, tasks)
        if useless := [f"{task} ({split})" for split, found in finetuned.items() for task in tasks if not found[task]]:
            raise results.ResultError(
                f"{Paths.of(args).single_task(mode)}: expected accuracies to divide by, found 0 of {', '.join(useless)}"
            )
        return cls(finetuned, _single_task(args, "none", tasks))


def _single_task(args, mode: str, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    command = f"python eval_single_task.py --finetuning-mode={mode} --model={args.model} --seed={args.seed}"
    if args.corruption:
        command += f" --corruption={args.corruption} --severity={args.severity}"
    path = Paths.of(args).single_task(mode)
    found = results.require(path, command)
    missing = [task for task in tasks if task not in found]
    if missing:
        raise results.MissingResult(
            f"{path}: expected accuracies of {', '.join(missing)}, found none; make it with: {command} --overwrite"
        )
    return {"val": {t: found[f"{t}Val"] for t in tasks}, "test": {t: found[t] for t in tasks}}


Job = tuple[str, str, Sequence[Line]]  # data set, split, lines


def _sums_of(work: tuple[Job, tuple[int, int]], args, tangent: bool) -> Sums:
    (dataset, split, lines), share = work
    return sums(args, dataset, split, lines, tangent, share)


def score_all(args, jobs: Sequence[Job], tangent: bool, desc: str) -> list[list[list[Score]]]:
    """`score` for every job: [job][line][coefficient]. Several at once, or each shared out among torchrun's ranks."""
    ranks = world_size()
    work = [(job, (rank, ranks)) for job in jobs for rank in range(ranks)]
    found = map_tasks(partial(_sums_of, args=args, tangent=tangent), work, args.jobs, desc)
    shares = [found[first : first + ranks] for first in range(0, len(found), ranks)]
    return [sum(rest, start=first).scores() for first, *rest in shares]


def evaluate_merge(args, merge, tasks: Sequence[str], mode: str) -> dict:
    """Choose the setting on validation, read test once, and tell everything: the record of a merging result.

    merge: see merging.base.Merge. Accuracies are in [0, 1]; normalised ones are divided by the fine-tuned model's of
    the same mode and split. `report` tells each task's test accuracy and loss, and their averages.
    """
    settings = tuple(merge.settings)
    tangent = mode in store.TANGENT
    denominators = Denominators.of(args, mode, tasks)

    def scores(split: str, chosen: Callable[[str], Sequence[float]]) -> dict[str, list[Score]]:
        return score_merge(args, merge, tasks, split, chosen, tangent)

    validation = scores("val", lambda task: settings)
    if merge.draws:
        validation = {task: [pooled(found)] for task, found in validation.items()}
    curves = {task: [s.accuracy for s in found] for task, found in validation.items()}
    index = select(curves, denominators.finetuned["val"], merge.per_task)
    chosen = {task: settings[i] for task, i in index.items()}
    found = scores("test", lambda task: settings if merge.draws else [chosen[task]])
    test = {task: pooled(per_setting) for task, per_setting in found.items()}
    finished = from_primary(lambda: merge.finish(chosen)) if merge.finish else {}
    accuracy = {task: s.accuracy for task, s in test.items()}
    record = {
        "tasks": list(tasks),
        "finetuning_mode": mode,
        "settings": list(settings[:1] if merge.draws else settings),
        "chosen_per_task": merge.per_task,
        "chosen": chosen,
        "at_edge": len(settings) > 1 and not (merge.per_task or merge.draws) and index[tasks[0]] == len(settings) - 1,
        "val": {
            "accuracy": curves,
            "mean_accuracy": [mean(values) for values in zip(*curves.values())],
            "mean_normalised": mean_normalised(curves, denominators.finetuned["val"]),
        },
        "test": summary(accuracy, denominators.finetuned["test"]) | {"loss": {t: s.loss for t, s in test.items()}},
        "report": report(test),
        "zeroshot": summary(denominators.zeroshot["test"], denominators.finetuned["test"]),
        "denominators": denominators.finetuned,
        "n": {"val": {t: f[0].n for t, f in validation.items()}, "test": {t: s.n for t, s in test.items()}},
        "info": {**merge.info, **finished},
    }
    if merge.draws:
        record["draws"] = spread({task: [s.accuracy for s in per_draw] for task, per_draw in found.items()})
    return record | corruptions.record(args)


def score_merge(
    args, merge, tasks: Sequence[str], split: str, chosen: Callable[[str], Sequence[float]], tangent: bool
) -> dict[str, list[Score]]:
    """Scores of each task's chosen settings on a split, in order; draws are made and scored one at a time."""

    def lines(task: str, settings: Sequence[float]) -> list[Line]:
        if merge.direction is not None:
            return [Line(merge.direction(task).vector, tuple(settings))]
        return [Line(merge.vector(task, setting).vector) for setting in settings]

    scores = {task: [] for task in tasks}
    # Models of one task each are made for as many tasks as are scored at once, a model for all tasks is made once.
    together = max(1, args.jobs) if merge.per_task else len(tasks)
    for settings in [lambda task, draw=draw: [draw] for draw in merge.settings] if merge.draws else [chosen]:
        for first in range(0, len(tasks), together):
            part = tasks[first : first + together]
            shared = None if merge.per_task else lines(part[0], settings(part[0]))
            jobs = [(t, split, shared or lines(t, settings(t))) for t in part]
            for task, per_line in zip(part, score_all(args, jobs, tangent, f"{split} accuracy")):
                scores[task] += [s for line in per_line for s in line]
    return scores


def evaluate_unseen(args, merge, setting: float, tasks: Sequence[str], mode: str) -> dict:
    """Test accuracies of one merged model on tasks that were not merged, beside the pre-trained model's.

    setting: the chosen one of `merge`, which makes one model for all tasks. Denominators as in evaluate_merge.
    """
    denominators = Denominators.of(args, mode, tasks)
    settings = tuple(merge.settings) if merge.draws else (setting,)
    found = score_merge(args, merge, tasks, "test", lambda task: settings, mode in store.TANGENT)
    test = {task: pooled(per_setting) for task, per_setting in found.items()}
    accuracy = {task: s.accuracy for task, s in test.items()}
    return summary(accuracy, denominators.finetuned["test"]) | {
        "tasks": list(tasks),
        "report": report(test),
        "zeroshot": summary(denominators.zeroshot["test"], denominators.finetuned["test"]),
        "denominators": denominators.finetuned["test"],
    }


def pooled(scores: Sequence[Score]) -> Score:
    """The means over scores of the same images."""
    return Score(mean(s.accuracy for s in scores), mean(s.loss for s in scores), scores[0].n)


def spread(accuracy: Mapping[str, Sequence[float]]) -> dict:
    """Accuracies of random draws of a merge, by task, with the standard deviation (n − 1) of each and of their mean."""
    means = [mean(values) for values in zip(*accuracy.values())]
    return {
        "n": len(means),
        "accuracy": {task: list(values) for task, values in accuracy.items()},
        "mean_accuracy": means,
        "sd": statistics.stdev(means),
        "sd_per_task": {task: statistics.stdev(values) for task, values in accuracy.items()},
    }


def report(scores: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    """task -> accuracy and mean cross-entropy, and the mean over tasks of both."""
    average = pooled(list(scores.values()))
    return {task: {"accuracy": s.accuracy, "loss": s.loss} for task, s in (*scores.items(), ("average", average))}


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
    from src.merging.base import Merge

    return Merge(
        vector=lambda task, alpha: alpha * direction,
        settings=tuple(coefs),
        storage_bits=0,
        direction=lambda task: direction,
    )
