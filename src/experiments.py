"""Pieces of the analysis scripts that run in worker processes: one pair of tasks each."""

from collections.abc import Iterator

import numpy as np
import torch

from src import store
from src.analysis import ntk
from src.analysis.disentanglement import Disentanglement, Term, WeightPlane, linear_term, nonlinear_term, two_tangents
from src.checkpoints import VISUAL
from src.datasets import loading as data
from src.heads import get_classification_head
from src.linearize import forward_and_jvp

Batch = tuple[torch.Tensor, torch.Tensor]


def first_images(args, dataset: str, split: str, most: int | None) -> Iterator[Batch]:
    """Evaluation batches until `most` images (None: all); the order of every set is random already, or its file's."""
    left = len(data.examples(args, dataset, split)) if most is None else most
    for images, labels in data.evaluation_batches(args, store.encoder(args), dataset, split):
        if left <= 0:
            return
        yield images[:left], labels[:left]
        left -= len(images)


def disentanglement_term(job: tuple[tuple[str, str], int], args) -> Term:
    """One task's term of ξ for a pair of tasks: on the images and the head of `pair[own]`."""
    pair, own = job
    alphas = np.linspace(*args.range, args.n_points)
    encoder = store.encoder(args)
    head = get_classification_head(args, pair[own]).to(args.device)
    vectors = [
        store.to_device(store.task_vector(args, task, args.finetuning_mode).vector, args.device) for task in pair
    ]
    theta0 = dict(encoder.named_parameters())
    batches = first_images(args, pair[own], "test", args.num_samples)
    if args.finetuning_mode in store.TANGENT:
        tangents = two_tangents(lambda x, direction: forward_and_jvp(encoder, theta0, direction, x), *vectors)
        return linear_term(head, batches, tangents, alphas, own, pair[own])
    plane = WeightPlane(encoder, theta0, *vectors)
    return nonlinear_term(head, batches, plane, alphas, own, pair[own])


def disentanglement_record(args, terms: tuple[Term, Term]) -> dict:
    alphas = np.linspace(*args.range, args.n_points)
    return Disentanglement(alphas, terms).record()


def spread_images(args, dataset: str, split: str, count: int) -> torch.Tensor:
    """`count` normalised images of a split, drawn without replacement by the run's seed, (count, 3, H, W)."""
    encoder = store.encoder(args)
    found = data.evaluation_pixels(args, dataset, split, encoder.image_size)
    if count > len(found):
        raise ValueError(
            f"--num-samples: expected at most the {len(found)} images of {dataset} ({split}), found {count}"
        )
    indices = np.random.default_rng(args.seed).choice(len(found), count, replace=False)
    return data.batch_of(found.pixels[indices], encoder, args.device)


def ntk_localization(pair: tuple[str, str], args) -> dict:
    """Local energies of the task's eigenfunctions on the task, on held-out images of it, and on the control task.

    Three groups of `--num-samples` images: the task's (diagonalised), as many more of the task, and the control's.
    """
    task, control = pair
    n = args.num_samples
    of_task = spread_images(args, task, "test", 2 * n)
    images = torch.cat([of_task, spread_images(args, control, "test", n)])
    encoder = store.encoder(args)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name.startswith(VISUAL))
    try:
        head = get_classification_head(args, task).to(args.device)
        kernel = ntk.tangent_kernel(encoder, head, images, reduction=args.reduction, chunk_size=args.chunk_size).numpy()
    finally:
        encoder.requires_grad_(False)
    inside, heldout, outside = slice(0, n), slice(n, 2 * n), slice(2 * n, 3 * n)
    cross = {"heldout": kernel[heldout, inside], "control": kernel[outside, inside]}
    alone = ntk.localize(kernel[inside, inside], cross, ranks=args.ranks)
    both = np.r_[inside, outside]
    labels = np.arange(2 * n) < n
    joint = ntk.localize_jointly(kernel[np.ix_(both, both)], labels, ranks=args.ranks, seed=args.seed)
    return {
        "task": task,
        "control": control,
        "ranks": list(args.ranks),
        "nystrom": _localization(alone)
        | {
            "ratio": _finite(alone.ratio(over="control")),
            "ratio_heldout": _finite(alone.ratio(over="control", group="heldout")),
        },
        "joint": _localization(joint)
        | {
            "ratio": _finite(joint.ratio()),
            "ratio_of_shuffled_labels": _finite(joint.shuffled_ratio),
            "task_share": joint.task_share.tolist(),
        },
    }


def _localization(found: ntk.Localization) -> dict:
    return {
        "eigenvalues": found.eigenvalues.tolist(),
        "counts": found.counts.tolist(),
        "kept": found.kept.tolist(),
        "share_of_trace": found.shares.tolist(),
        "energy": {group: energy.tolist() for group, energy in found.energy.items()},
    }


def _finite(ratios: np.ndarray) -> list[float | None]:
    """Ratios for JSON; one over no energy at all is None."""
    return [float(ratio) if np.isfinite(ratio) else None for ratio in ratios]
