"""Accuracies of many settings from one pass over the images; `select` and `select_negation` choose on validation.

A model θ0 + α·τ is scored along a *line*: a direction τ and its coefficients. A non-linear model takes one forward pass
per coefficient, each image being decoded once. The linear model's features are affine in α,

    f_lin(x; θ0 + α·τ) = f(x; θ0) + α · J(x; θ0) τ,

so one jvp gives all of its coefficients; two do where the line does not pass through θ0.
Source: https://arxiv.org/abs/2305.12827, equation (3).
"""

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F

from src import checkpoints, store
from src.correctness import pack
from src.datasets import loading
from src.heads import get_classification_head
from src.linearize import forward_and_jvp
from src.modes import MODES
from src.records import SUFFIXES, Summary
from src.run import FP32, Run
from src.runtime import results
from src.runtime.distributed import world_size
from src.runtime.memory import held_together
from src.runtime.messages import NotFinite, few
from src.runtime.parallel import map_tasks
from src.runtime.precision import features_at, matmul_precision
from src.scores import Features, Job, Point, Tangents, scores_of
from src.tensors import difference, moved

Key = TypeVar("Key", bound=Hashable)
FeatureMap = Callable[[torch.Tensor], torch.Tensor]  # (N, D) -> (N, D)
Jvp = Callable[..., tuple[torch.Tensor, torch.Tensor]]  # as forward_and_jvp


@dataclass(frozen=True)
class Line:
    """θ0 + offset + α·direction for every α of `coefs`; no direction and no offset stand for θ0 itself.

    adapter: what is done to the features before the head; it is pickled for other processes.
    """

    direction: Mapping[str, torch.Tensor]
    coefs: tuple[float, ...] = (1.0,)
    offset: Mapping[str, torch.Tensor] = field(default_factory=dict)
    adapter: FeatureMap | None = None


ORIGIN = Line({}, (0.0,))


@dataclass(frozen=True)
class Curve:
    """A model's scores at each of its settings on the images of a split.

    accuracy: top-1, in [0, 1], (settings,). loss: mean cross-entropy, (settings,). n: images.
    correct: which images are right, packed (see correctness.py), (settings,); of a random model's first draw.
    draws: the accuracies of each draw of a random model, (draws, settings), of which `accuracy` is the mean.
    """

    accuracy: tuple[float, ...]
    loss: tuple[float, ...]
    n: int
    correct: tuple[str, ...]
    draws: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def through(cls, points: Sequence[Point]) -> "Curve":
        return cls(
            tuple(point.accuracy for point in points),
            tuple(point.loss for point in points),
            points[0].n,
            tuple(point.correct for point in points),
        )


class NonFiniteFeatures(NotFinite):
    """An image feature is no number: the coefficient is too large, or a checkpoint is broken."""


def features(
    encoder,
    batches: Sequence[torch.Tensor],
    line: Line,
    tangent: bool,
    precision: str = FP32,
    jvp: Jvp | None = None,
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """(index of the coefficient, index of the batch, features (N, D)); each batch's coefficients come in order.

    The weights of a coefficient are made once for all batches. precision: "bf16" for no tangent model.
    jvp: in the place of forward_and_jvp.
    """
    theta0 = store.start_of(encoder, line.direction, line.offset)
    if tangent and line.direction:
        for number, images in enumerate(batches):
            f0, slope = (jvp or forward_and_jvp)(encoder, theta0, line.direction, images)
            if line.offset:
                f0 = f0 + forward_and_jvp(encoder, theta0, line.offset, images)[1]
            for index, alpha in enumerate(line.coefs):
                yield index, number, f0 + alpha * slope
        return
    start = moved(theta0, line.offset, 1.0)
    for index, alpha in enumerate(line.coefs):
        weights = moved(start, line.direction, alpha)
        for number, images in enumerate(batches):
            yield index, number, features_at(encoder, weights, images, precision)


@dataclass(frozen=True)
class Sums:
    """Of the images of a share: which are right, (coefs, images), and the sum of their cross-entropies, (coefs,)."""

    correct: torch.Tensor
    loss: torch.Tensor

    def __add__(self, other: "Sums") -> "Sums":
        """Of this share and the one behind it."""
        return Sums(torch.cat([self.correct, other.correct], dim=1), self.loss + other.loss)

    def curve(self) -> Curve:
        n = self.correct.shape[1]
        accuracy, loss = ([total / n for total in sums.tolist()] for sums in (self.correct.sum(1), self.loss))
        return Curve(tuple(accuracy), tuple(loss), n, tuple(map(pack, self.correct.numpy())))


@torch.no_grad()
def sums(
    run: Run,
    dataset: str,
    split: str,
    line: Line,
    tangent: bool,
    share: tuple[int, int] = (0, 1),
    jvp: Jvp | None = None,
) -> Sums:
    """What `score` averages, over a share of the images (see loading.evaluation_batches). jvp: see `features`.

    Raises NonFiniteFeatures, naming the data set and the coefficient.
    """
    with matmul_precision(run.precision):
        return _sums(run, dataset, split, line, tangent, share, jvp)


def _sums(
    run: Run, dataset: str, split: str, line: Line, tangent: bool, share: tuple[int, int], jvp: Jvp | None
) -> Sums:
    encoder = store.encoder(run)
    head = get_classification_head(run, dataset).to(run.device)
    direction, offset = (store.to_device(part, run.device) for part in (line.direction, line.offset))
    line = replace(line, direction=direction, offset=offset)
    correct = [torch.zeros((len(line.coefs), 0), dtype=torch.bool, device=run.device)]
    loss = torch.zeros(len(line.coefs), dtype=torch.float64, device=run.device)
    finite = torch.ones(len(line.coefs), dtype=torch.bool, device=run.device)
    for group in held_together(loading.evaluation_batches(run, encoder, dataset, split, share)):
        images, labels = zip(*group)
        right = [torch.empty((len(line.coefs), len(of)), dtype=torch.bool, device=run.device) for of in labels]
        for index, number, at_alpha in features(encoder, images, line, tangent, run.precision, jvp):
            logits = head(line.adapter(at_alpha) if line.adapter else at_alpha)
            finite[index] &= torch.isfinite(at_alpha).all()
            right[number][index] = logits.argmax(1) == labels[number]
            loss[index] += F.cross_entropy(logits, labels[number], reduction="sum")
        correct += right
    if not finite.all():  # asked once: a GPU would be waited for
        alpha = line.coefs[int(finite.int().argmin())]
        raise NonFiniteFeatures(
            f"{dataset} ({split}): features are not finite at coefficient {alpha}; "
            "look for a damaged or diverged checkpoint, or search smaller coefficients"
        )
    return Sums(torch.cat(correct, dim=1).cpu(), loss.cpu())


def score(run: Run, dataset: str, split: str, line: Line, tangent: bool) -> Curve:
    """The scores of every coefficient of a line on a split, with one pass over its images."""
    return sums(run, dataset, split, line, tangent).curve()


def _sums_of(work: tuple[Job, tuple[int, int]], run: Run, split: str, keep: bool) -> tuple[Sums, tuple[Features, ...]]:
    """Of a share of a job; keep: also the features of a tangent model that lies on a line from θ0."""
    job, share = work
    model, line = job.model, job.line
    if not (keep and model.tangent) or line.offset:
        return sums(run, model.dataset, split, line, model.tangent, share), ()
    tangents = Tangents(forward_and_jvp, job.features)
    of_share = sums(run, model.dataset, split, line, model.tangent, share, tangents)
    return of_share, () if job.features else tuple(tangents.batches)


def score_all(run: Run, mode: str, lines: Mapping[Key, tuple[str, Line]], split: str, desc: str) -> dict[Key, Curve]:
    """`score` for every key's (data set, line); several at once, or each shared out among torchrun's ranks.

    What is known already is not computed again; see scores.py.
    """
    run.require_mantissa_of(mode)
    scores, model_of = scores_of(run, MODES[mode].tangent, split)
    models = {key: (model_of(dataset, line), line) for key, (dataset, line) in lines.items()}
    jobs, ranks = scores.missing(models.values()), world_size()
    work = [(job, (rank, ranks)) for job in jobs for rank in range(ranks)]
    keep = bool(scores.room) and ranks == 1
    shares = map_tasks(partial(_sums_of, run=run, split=split, keep=keep), work, run.jobs, desc, run.device)
    for index, job in enumerate(jobs):
        (first, decodable), *rest = shares[index * ranks : (index + 1) * ranks]
        scores.add(job, sum((part for part, _ in rest), start=first).curve(), decodable)
    return {key: Curve.through(scores.of(*model)) for key, model in models.items()}


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
    allowed = [i for i in range(len(coefs)) if control[i] >= floor]
    return min(allowed, key=lambda i: (target[i], coefs[i]), default=None)


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


@dataclass(frozen=True)
class Denominators:
    """Single-task accuracies that normalise a merged model's, and what doing nothing scores: split -> task -> it."""

    finetuned: dict[str, dict[str, float]]  # of the fine-tuned model of the same mode
    zeroshot: dict[str, dict[str, float]]

    @classmethod
    def of(cls, run: Run, mode: str, tasks: Sequence[str], encoders: Mapping[str, str] | None = None) -> "Denominators":
        """From the single-task results. Raises results.MissingResult that names the command that makes them.

        encoders: checkpoints in the place of the run's own, by task, which no result is of: these are scored now.
        """
        given = {task: path for task, path in (encoders or {}).items() if task in tasks}
        own = [task for task in tasks if task not in given]
        finetuned = _single_task(run, mode, own) if own else {split: {} for split in SUFFIXES}
        for split, scores in _score_encoders(run, mode, given).items():
            finetuned[split] |= scores
        useless = [f"{task} ({split})" for split, scores in finetuned.items() for task in tasks if not scores[task]]
        if useless:
            sources = {str(given.get(name.partition(" ")[0], run.paths.single_task(mode))) for name in useless}
            raise results.ResultError(
                f"{', '.join(sorted(sources))}: expected accuracies to divide by, found 0 of {', '.join(useless)}"
            )
        return cls(finetuned, _single_task(run, "none", tasks))

    @classmethod
    def made_of(
        cls, run: Run, mode: str, tasks: Sequence[str], encoders: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """A short hash of those that are results, for others that they enter; none where they are not there."""
        try:
            own = [task for task in tasks if task not in (encoders or {})]
            known = cls(_single_task(run, mode, own) if own else {}, _single_task(run, "none", tasks))
        except (results.MissingResult, results.ResultError):
            return {}
        return {"denominators": hashlib.sha256(repr(known).encode()).hexdigest()[:12]}

    def summary(self, accuracy: Mapping[str, float], split: str = "test") -> Summary:
        """Absolute and normalised accuracy of a model, per task and averaged."""
        normalised = {task: value / self.finetuned[split][task] for task, value in accuracy.items()}
        return {
            "accuracy": dict(accuracy),
            "normalised": normalised,
            "mean_accuracy": mean(accuracy.values()),
            "mean_normalised": mean(normalised.values()),
        }


def _score_encoders(run: Run, mode: str, encoders: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """split -> task -> accuracy on its own task of each given checkpoint; nothing is computed for none."""
    if not encoders:
        return {}
    start = store.pretrained(run)
    trained = [name for name in start if name.startswith(checkpoints.VISUAL)]
    given = {task: checkpoints.Checkpoint(Path(path), like=start, model=run.model) for task, path in encoders.items()}
    lines = {task: (task, Line(difference(file, start, trained))) for task, file in given.items()}
    curves = {split: score_all(run, mode, lines, split, f"given checkpoints, {split}") for split in SUFFIXES}
    return {split: {task: curve.accuracy[0] for task, curve in of.items()} for split, of in curves.items()}


def _single_task(run: Run, mode: str, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    named = run.tasks if run.tasks != run.suite_row.default else ()
    command = run.command("eval_single_task.py", f"--finetuning-mode={mode}", tasks=named)
    path = run.paths.single_task(mode)
    record = results.require(path, command)
    results.require_same(path, run.config(), ("precision",))
    if missing := [task + suffix for task in tasks for suffix in SUFFIXES.values() if task + suffix not in record]:
        raise results.MissingResult(
            f"{path}: expected accuracies of {few(missing)}, found none; make it with: {command} --overwrite"
        )
    if stale := results.outdated(record["provenance"], store.made_of(run, mode, tasks)):
        raise results.ResultError(
            f"{path}: expected accuracies of the checkpoints that are there, found those of others: {few(stale)} "
            f"changed since; make it with: {command} --overwrite"
        )
    scores = {split: {task: record[task + suffix] for task in tasks} for split, suffix in SUFFIXES.items()}
    for value in (value for of_split in scores.values() for value in of_split.values()):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise results.ResultError(
                f"{path}: expected accuracies from 0 to 1, found {str(value)[:40]!r}; make it again with: {command} "
                "--overwrite"
            )
    return scores
