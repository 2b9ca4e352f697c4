"""From registry rows to tensors on a device."""

from collections.abc import Iterator
from functools import lru_cache, partial

import numpy as np
import torch

from src.datasets import corruptions, registry
from src.datasets.base import Examples, Pixels
from src.datasets.cache import cached, without_corrupt
from src.runtime.paths import Paths


def examples(args, dataset: str, split: str) -> Examples:
    """The examples of a split, not yet decoded. Raises what the row's loader raises, with the command that mends it."""
    return _examples(Paths.of(args), dataset, split)


@lru_cache(maxsize=64)
def _examples(paths: Paths, dataset: str, split: str) -> Examples:
    row = registry.get(dataset)
    return row.load(split, paths.cache if row.suite == "mini" else paths.data, paths.seed)


@lru_cache(maxsize=64)
def _decodable(paths: Paths, dataset: str, split: str, skip_corrupt: bool) -> Examples:
    return without_corrupt(_examples(paths, dataset, split), dataset, split, skip_corrupt)


def training_examples(args, dataset: str) -> Examples:
    """What to fine-tune on. With `--skip-corrupt` all of it is decoded once, to leave out what cannot be."""
    found = examples(args, dataset, "train")
    return _decodable(Paths.of(args), dataset, "train", True) if args.skip_corrupt else found


def require_decodable(args, dataset: str, split: str) -> None:
    """Raise DataError that names and counts the images which cannot be decoded."""
    _decodable(Paths.of(args), dataset, split, False)


@lru_cache(maxsize=64)
def _decoded(paths: Paths, dataset: str, split: str, side: int, skip_corrupt: bool) -> Pixels:
    """A split as pixels of the encoder's size: in memory already, or decoded once into the image cache on disk."""
    found = _examples(paths, dataset, split)
    if isinstance(found, Pixels):
        return found if found.pixels.shape[1] == side else _resized(found, side)
    crop = partial(centre_crop, side=side)
    folder = paths.images()
    return cached(found, crop, f"centre_crop {side}", folder, dataset, split, skip_corrupt=skip_corrupt)


def _resized(found: Pixels, side: int) -> Pixels:
    return Pixels(np.stack([centre_crop(found[i], side) for i in range(len(found))]), found.labels)


def evaluation_pixels(args, dataset: str, split: str, side: int) -> Pixels:
    """Every image of a split, resized and cropped at the centre, uint8 (n, side, side, 3), with its labels.

    Raises datasets.examples.DataError, which names and counts them, for images that cannot be decoded, unless
    `--skip-corrupt` leaves them out. With `--corruption` those of test are corrupted.
    """
    which = (Paths.of(args), dataset, split, side, getattr(args, "skip_corrupt", False))
    if split == corruptions.SPLIT and getattr(args, "corruption", None):
        return _corrupted(*which, args.corruption, args.severity)
    return _decoded(*which)


@lru_cache(maxsize=16)
def _corrupted(
    paths: Paths, dataset: str, split: str, side: int, skip_corrupt: bool, name: str, severity: int
) -> Pixels:
    """Small sets, which are held in memory, are corrupted once; those on disk whenever they are read."""
    found = _decoded(paths, dataset, split, side, skip_corrupt)
    pixels = corruptions.CorruptedPixels(found.pixels, dataset, name, severity)
    return Pixels(pixels if isinstance(found.pixels, np.memmap) else pixels[:], found.labels)


def evaluation_batches(
    args, encoder, dataset: str, split: str, share: tuple[int, int] = (0, 1)
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(images, labels) in order: normalised float (n, 3, H, W) and int64 (n,), on `args.device`.

    share: (which, of how many) equal parts of the split; where there are fewer images than parts, some are empty.
    """
    found = evaluation_pixels(args, dataset, split, encoder.image_size)
    which, of = share
    first, stop = (len(found) * part // of for part in (which, which + 1))
    for start in range(first, stop, args.eval_batch_size):
        part = slice(start, min(start + args.eval_batch_size, stop))
        yield batch_of(found.pixels[part], encoder, args.device), torch.from_numpy(found.labels[part]).to(args.device)


def batch_of(pixels: np.ndarray, encoder, device: str) -> torch.Tensor:
    """uint8 (n, side, side, 3) to what `encoder` takes."""
    return normalise(torch.from_numpy(np.array(pixels)).to(device), encoder.mean, encoder.std)


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
