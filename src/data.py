"""From registry rows to tensors on a device."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch

from .datasets import registry
from .datasets.base import Examples, Pixels
from .paths import Paths


def examples(args, dataset: str, split: str) -> Examples:
    """The examples of a split, not yet decoded. Raises what the row's loader raises, with the command that mends it."""
    return _examples(Paths.of(args), dataset, split)


@lru_cache(maxsize=64)
def _examples(paths: Paths, dataset: str, split: str) -> Examples:
    row = registry.get(dataset)
    return row.load(split, paths.cache if row.suite == "mini" else paths.data, paths.seed)


def evaluation_batches(args, encoder, dataset: str, split: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(images, labels) in order: normalised float (n, 3, H, W) and int64 (n,), on `args.device`."""
    found = examples(args, dataset, split)
    for start in range(0, len(found), args.eval_batch_size):
        indices = np.arange(start, min(start + args.eval_batch_size, len(found)))
        images = torch.from_numpy(pixels_of(found, indices, encoder.image_size))
        yield normalise(images.to(args.device), encoder.mean, encoder.std), torch.from_numpy(
            found.labels[indices]
        ).to(args.device)


def pixels_of(found: Examples, indices: np.ndarray, side: int) -> np.ndarray:
    """The images at `indices` as uint8 (n, side, side, 3): read, or decoded, resized and cropped at the centre."""
    if isinstance(found, Pixels) and found.pixels.shape[1:3] == (side, side):
        return found.pixels[indices]
    return np.stack([centre_crop(found[int(i)], side) for i in indices])


def centre_crop(image, side: int) -> np.ndarray:
    """CLIP's evaluation crop of a PIL image: the shorter side to `side`, bicubic, then the middle; uint8."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transform

    resized = transform.resize(image.convert("RGB"), side, InterpolationMode.BICUBIC)
    return np.array(transform.center_crop(resized, [side, side]))


def normalise(pixels: torch.Tensor, mean, std) -> torch.Tensor:
    """uint8 (n, H, W, 3) to float (n, 3, H, W), normalised, where the pixels are."""
    mean, std = (torch.tensor(c, device=pixels.device).view(1, 3, 1, 1) for c in (mean, std))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
