"""Where the eigenfunctions of the tangent kernel live (Figures 6, 14, 15 of arXiv:2305.12827).

The kernel of encoder and head is diagonalised on images of the task; Nyström's formula carries the leading
eigenfunctions to held-out images of the task and to the control's. The paper gives neither the reduction over outputs
nor the numbers of samples and eigenfunctions, and no script was ever published.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from typing_extensions import TypedDict

from src import store
from src.analysis import ntk
from src.checkpoints import VISUAL
from src.datasets import loading
from src.experiments.base import carry_out
from src.experiments.numbers import Number
from src.experiments.registry import NTK, NTK_RANKS, NTK_SAMPLES
from src.heads import get_classification_head
from src.ranges import check
from src.records import Corrupted, Grid
from src.run import Run
from src.runtime.messages import UsageError
from src.runtime.parallel import map_tasks
from src.runtime.precision import matmul_precision

PARTS = 4  # terms of a kernel that are computed apart: a fixed number, so that no sum depends on the machine


class Spectrum(TypedDict):
    """Local energies of the leading eigenfunctions: group of images -> (ranks, images)."""

    eigenvalues: Sequence[float]
    counts: Sequence[int]
    kept: Sequence[int]
    share_of_trace: Sequence[float]
    energy: Mapping[str, Grid]
    ratio: Sequence[float | None]  # None: over no energy at all


class HeldOutSpectrum(Spectrum):
    """Of the kernel on the task alone, carried to other images by Nyström's formula."""

    ratio_heldout: Sequence[float | None]


class JointSpectrum(Spectrum):
    """Of the kernel on task and control together."""

    ratio_of_shuffled_labels: Sequence[float | None]
    task_share: Sequence[float]


class KernelPair(TypedDict):
    """ranks: numbers of eigenfunctions, or shares of the trace."""

    task: str
    control: str
    ranks: Sequence[int | float]
    nystrom: HeldOutSpectrum
    joint: JointSpectrum


class Record(Corrupted):
    reduction: str
    num_samples: int
    pairs: Sequence[KernelPair]


def numbers(record: Record, suite: str) -> Iterator[Number]:
    for pair in record["pairs"]:
        name = f"{pair['task']}-{pair['control']}"
        for rank, ratio in zip(pair["ranks"], pair["nystrom"]["ratio_heldout"], strict=True):
            yield Number("energy_ratio", ratio, name, setting=rank)


def localize_kernel(
    run: Run,
    reduction: str = "trace",
    pairs: Sequence[tuple[str, str]] | None = None,
    num_samples: int = NTK_SAMPLES,
    chunk_size: int | None = None,
    ranks: Sequence[int | float] = NTK_RANKS,
    overwrite: bool = False,
) -> None:
    """Write ntk_<reduction>.json.

    reduction: over the outputs of the head. pairs: (task, control); by default the suite's. num_samples: images of the
    task, held out of it, and of the control. chunk_size: images whose gradients are held at once, by default as memory
    allows. ranks: numbers of eigenfunctions, or shares of the trace.
    """
    check(num_samples=num_samples, chunk_size=chunk_size, ranks=ranks)
    run.require_mantissa("the tangent kernel, whose small eigenvalues it would drown")
    counts = [rank for rank in ranks if isinstance(rank, int)]
    if tuple(ranks) != NTK_RANKS and max(counts, default=0) > num_samples:
        raise UsageError(f"--ranks: expected at most the {num_samples} of --num-samples; got {max(counts)}")
    options: dict[str, Any] = {
        "reduction": reduction,
        "pairs": pairs or run.suite_row.ntk_pairs,
        "num_samples": num_samples,
        "ranks": tuple(ranks),
    }
    made_of = partial(store.made_of, run, "none", sorted({name for pair in options["pairs"] for name in pair}))
    work = partial(_record, run, **options, chunk_size=chunk_size)
    record = carry_out(NTK, reduction, run, options, work, overwrite, made_of)
    for pair in record["pairs"] if record else ():
        by_rank = zip(pair["ranks"], pair["nystrom"]["ratio_heldout"])
        ratios = ", ".join(f"{k}: {'none' if r is None else f'{r:.2f}'}" for k, r in by_rank)
        print(f"{pair['task']}, control {pair['control']}: energy held out / control, by eigenfunctions: {ratios}")


def _record(
    run: Run,
    reduction: str,
    pairs: Sequence[tuple[str, str]],
    num_samples: int,
    ranks: Sequence[int | float],
    chunk_size: int | None,
) -> Record:
    loading.examples(run, pairs[0][0], "test")  # mini's are drawn once, before the workers look for them
    parts = PARTS if reduction == "trace" else 1
    jobs = [(pair, part) for pair in pairs for part in range(parts)]
    work = partial(
        kernel_part, run=run, reduction=reduction, num_samples=num_samples, chunk_size=chunk_size, parts=parts
    )
    terms = map_tasks(work, jobs, run.jobs, f"tangent kernel, {reduction}", run.device)
    kernels = [np.sum(terms[first : first + parts], axis=0) for first in range(0, len(terms), parts)]
    records = [localization(pair, kernel, num_samples, ranks, run.seed) for pair, kernel in zip(pairs, kernels)]
    return {"reduction": reduction, "num_samples": num_samples, "pairs": records}


def spread_images(run: Run, dataset: str, split: str, count: int) -> torch.Tensor:
    """`count` normalised images of a split, drawn without replacement by the run's seed, (count, 3, H, W)."""
    return spread_examples(run, dataset, split, count)[0]


def spread_examples(run: Run, dataset: str, split: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same images and their labels, (count,)."""
    encoder = store.encoder(run)
    images = loading.evaluation_pixels(run, dataset, split, encoder.image_size)
    if count > len(images):
        raise UsageError(
            f"--num-samples: expected at most the {len(images)} images of {dataset} ({split}), found {count}"
        )
    indices = np.random.default_rng(run.seed).choice(len(images), count, replace=False)
    pixels, labels = images.pixels[indices], images.labels[indices]
    return loading.batch_of(pixels, encoder, run.device), loading.on_device(labels, run.device)


def kernel_part(
    job: tuple[tuple[str, str], int], run: Run, reduction: str, num_samples: int, chunk_size: int | None, parts: int
) -> np.ndarray:
    """A term of the kernel of a pair, for job = (pair, part).

    It is on `num_samples` images of each of three groups: the task's, which are diagonalised, others of the task, and
    the control's.
    """
    (task, control), part = job
    of_task = spread_images(run, task, "test", 2 * num_samples)
    images = torch.cat([of_task, spread_images(run, control, "test", num_samples)])
    encoder = store.encoder(run)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name.startswith(VISUAL))
    try:
        head = get_classification_head(run, task).to(run.device)
        with matmul_precision(run.precision):
            kernel = ntk.tangent_kernel(
                encoder,
                head,
                images,
                reduction=reduction,
                chunk_size=chunk_size,
                blocks=_blocks(num_samples),
                part=(part, parts),
            )
    finally:
        encoder.requires_grad_(False)
    return kernel.numpy()


def _blocks(n: int) -> tuple[ntk.Block, ...]:
    """What `localization` reads, but for mirror images: all against the task's, and the control's among themselves."""
    inside, _, outside = _groups(n)
    return (slice(0, 3 * n), inside), (outside, outside)


def _groups(n: int) -> tuple[slice, slice, slice]:
    return slice(0, n), slice(n, 2 * n), slice(2 * n, 3 * n)


def localization(
    pair: tuple[str, str], kernel: np.ndarray, num_samples: int, ranks: Sequence[int | float], seed: int
) -> KernelPair:
    """Local energies of the task's eigenfunctions on the task, on held-out images of it, and on the control task."""
    task, control = pair
    n = num_samples
    inside, heldout, outside = _groups(n)
    cross = {"heldout": kernel[heldout, inside], "control": kernel[outside, inside]}
    alone = ntk.localize(kernel[inside, inside], cross, ranks=ranks)
    both = np.r_[inside, outside]
    labels = np.arange(2 * n) < n
    joint = ntk.localize_jointly(kernel[np.ix_(both, both)], labels, ranks=ranks, seed=seed)
    return {
        "task": task,
        "control": control,
        "ranks": list(ranks),
        "nystrom": {
            **_localization(alone, alone.ratio(over="control")),
            "ratio_heldout": _finite(alone.ratio(over="control", group="heldout")),
        },
        "joint": {
            **_localization(joint, joint.ratio()),
            "ratio_of_shuffled_labels": _finite(cast(np.ndarray, joint.shuffled_ratio)),
            "task_share": cast(np.ndarray, joint.task_share).tolist(),
        },
    }


def _localization(energies: ntk.Localization, ratio: np.ndarray) -> Spectrum:
    return {
        "eigenvalues": energies.eigenvalues.tolist(),
        "counts": energies.counts.tolist(),
        "kept": energies.kept.tolist(),
        "share_of_trace": energies.shares.tolist(),
        "energy": {group: energy.tolist() for group, energy in energies.energy.items()},
        "ratio": _finite(ratio),
    }


def _finite(ratios: np.ndarray) -> list[float | None]:
    """Ratios for JSON; one over no energy at all is None."""
    return [float(ratio) if np.isfinite(ratio) else None for ratio in ratios]
