"""From registry rows to tensors on a device."""

from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from src.datasets import corruptions, registry
from src.datasets.base import Examples, Pixels
from src.datasets.cache import cached, without_corrupt
from src.datasets.record import Record
from src.run import Corruption, Run
from src.runtime.memory import bytes_of_evaluation, free_memory, images_that_fit


@lru_cache(maxsize=64)
def examples(run: Run, dataset: str, split: str) -> Examples:
    """The examples of a split, not yet decoded. Raises what the row's loader raises, with the command that mends it."""
    row = registry.get(dataset)
    return row.load(split, run.paths.cache if registry.suite(row.suite).drawn else run.paths.data, run.seed)


def is_prepared(run: Run, dataset: str) -> bool:
    """Whether a data set can be loaded: drawn ones always, real ones once `prepare` has recorded them."""
    row = registry.get(dataset)
    return registry.suite(row.suite).drawn or Record.path(run.paths.data, dataset).is_file()


def prepared_control(run: Run) -> str | None:
    """The control set, where it can be loaded."""
    return run.control if is_prepared(run, run.control) else None


def other_validation(run: Run, dataset: str) -> str:
    """Why a set's validation images may be training images of published checkpoints; empty where they are not."""
    if dataset not in registry.FACTS or not is_prepared(run, dataset):
        return ""
    return Record.read(registry.FACTS[dataset], run.paths.data).other_validation


@lru_cache(maxsize=64)
def _decodable(run: Run, dataset: str, split: str, skip_corrupt: bool) -> Examples:
    return without_corrupt(examples(run, dataset, split), dataset, split, skip_corrupt)


def training_examples(run: Run, dataset: str) -> Examples:
    """What to fine-tune on. With `--skip-corrupt` all of it is decoded once, to leave out what cannot be."""
    return _decodable(run, dataset, "train", True) if run.skip_corrupt else examples(run, dataset, "train")


def require_decodable(run: Run, dataset: str, split: str) -> None:
    """Raise DataError that names and counts the images which cannot be decoded."""
    _decodable(run, dataset, split, False)


@lru_cache(maxsize=64)
def _decoded(run: Run, dataset: str, split: str, side: int) -> Pixels:
    """A split as pixels of the encoder's size: in memory already, or decoded once into the image cache on disk."""
    images = examples(run, dataset, split)
    if isinstance(images, Pixels):
        return images if images.pixels.shape[1] == side else _resized(images, side)
    crop = partial(centre_crop, side=side)
    folder = run.paths.images()
    return cached(images, crop, f"centre_crop {side}", folder, dataset, split, skip_corrupt=run.skip_corrupt)


def decode_split(job: tuple[str, str], root: Path, folder: Path, side: int) -> None:
    """Fill the image cache with a (data set, split), as evaluation reads it."""
    dataset, split = job
    images = registry.get(dataset).load(split, root, 0)
    if not isinstance(images, Pixels):
        cached(images, partial(centre_crop, side=side), f"centre_crop {side}", folder, dataset, split)


def _resized(images: Pixels, side: int) -> Pixels:
    return Pixels(np.stack([centre_crop(images[i], side) for i in range(len(images))]), images.labels)


def evaluation_pixels(run: Run, dataset: str, split: str, side: int) -> Pixels:
    """Every image of a split, resized and cropped at the centre, uint8 (n, side, side, 3), with its labels.

    Raises datasets.examples.DataError, which names and counts them, for images that cannot be decoded, unless
    `run.skip_corrupt` leaves them out. With `run.corruption` those of test are corrupted.
    """
    if run.corruption and split == corruptions.SPLIT:
        return _corrupted(run, run.corruption, dataset, split, side)
    return _decoded(run, dataset, split, side)


@lru_cache(maxsize=16)
def _corrupted(run: Run, corruption: Corruption, dataset: str, split: str, side: int) -> Pixels:
    """Small sets are held in memory. Sets in the image cache are corrupted once, into it, as clean ones are."""
    name, severity = corruption.name, corruption.severity
    stamp = f"{name} {severity}, version {corruptions.VERSION}"
    if corruptions.of_fusion_bench(name):
        images = examples(run, dataset, split)
        crop = partial(_corrupted_crop, dataset=dataset, name=name, severity=severity, side=side)
        if isinstance(images, Pixels):
            return Pixels(np.stack([crop(images[index]) for index in range(len(images))]), images.labels)
        transform, folder = f"{stamp}, centre_crop {side}", run.paths.images()
        return cached(images, crop, transform, folder, dataset, split, skip_corrupt=run.skip_corrupt)
    clean = _decoded(run, dataset, split, side)
    pixels = corruptions.CorruptedPixels(clean.pixels, dataset, name, severity)
    if isinstance(clean.pixels, np.memmap):
        crops = corruptions.CorruptedCrops(pixels, clean.labels, Path(str(clean.pixels.filename)))
        return cached(crops, np.asarray, stamp, run.paths.images(), dataset, split)
    return Pixels(pixels[:] if isinstance(clean.pixels, np.ndarray) else pixels, clean.labels)


def _corrupted_crop(image: Image.Image, dataset: str, name: str, severity: int, side: int) -> np.ndarray:
    return centre_crop(corruptions.corrupt_file(image, dataset, name, severity), side)


def evaluation_batches(
    run: Run, encoder, dataset: str, split: str, share: tuple[int, int] = (0, 1)
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(images, labels) in order: normalised float (n, 3, H, W) and int64 (n,), on `run.device`.

    share: (which, of how many) equal parts of the split; where there are fewer images than parts, some are empty.
    """
    images = evaluation_pixels(run, dataset, split, encoder.image_size)
    which, of = share
    first, stop = (len(images) * part // of for part in (which, which + 1))
    size = images_at_once(run, encoder)
    for start in range(first, stop, size):
        part = slice(start, min(start + size, stop))
        yield batch_of(images.pixels[part], encoder, run.device), on_device(images.labels[part], run.device)


def images_at_once(run: Run, encoder) -> int:
    """`run.batch_size`, or as many as a GPU's free memory holds in a pass of a tangent model, which takes most."""
    free = free_memory(run.device)
    if free is None or (each := bytes_of_evaluation(encoder)) is None:
        return run.batch_size
    return min(run.batch_size, images_that_fit(free, each))


def batch_of(pixels: np.ndarray, encoder, device: str) -> torch.Tensor:
    """uint8 (n, side, side, 3) to what `encoder` takes."""
    return normalise(on_device(pixels, device), encoder.mean, encoder.std)


def on_device(values: np.ndarray, device: str) -> torch.Tensor:
    """A copy of an array. A GPU makes its own after what it has to do before, and is not waited for."""
    tensor = torch.from_numpy(np.array(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else tensor.to(device)


def centre_crop(image, side: int) -> np.ndarray:
    """CLIP's evaluation crop of a PIL image: the shorter side to `side`, bicubic, then the middle; uint8."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transform

    resized = transform.resize(image.convert("RGB"), side, InterpolationMode.BICUBIC)
    return np.array(transform.center_crop(resized, [side, side]))


def normalise(pixels: torch.Tensor, mean, std) -> torch.Tensor:
    """uint8 (n, H, W, 3) to float (n, 3, H, W), normalised, where the pixels are."""
    mean, std = (channels(tuple(values), pixels.device) for values in (mean, std))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std


@lru_cache(maxsize=16)
def channels(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """(1, 3, 1, 1) on the device, made once: each copy of numbers to a GPU waits for all that it has to do."""
    return torch.tensor(values, device=device).view(1, 3, 1, 1)
