"""Training batches, a function of (seed, task, number): any number of processes sees the same images."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from src.datasets import loading
from src.datasets.base import Examples, PixelArray, Pixels
from src.datasets.examples import CorruptImage
from src.finetuning.settings import Training
from src.run import Run
from src.runtime.distributed import World
from src.runtime.files import shared_memory
from src.runtime.seeds import batch_indices, event_seed
from src.runtime.signals import heed_parent, starting

IGNORED = -100  # a label that is none: F.cross_entropy's ignore_index
PREFETCHED = 4  # batches that each process which decodes images has ready
MAX_SHIFT = 2  # pixels: the augmentation of images that are held in memory


def shifted(images: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """Each uint8 image (n, H, W, 3) moved by up to `most` pixels each way, its edge repeated."""
    n, side = len(images), images.shape[1]
    moves = torch.randint(-most, most + 1, (n, 2), generator=generator)
    grid = torch.arange(side)
    rows = (grid + moves[:, :1]).clamp(0, side - 1)  # (n, H)
    columns = (grid + moves[:, 1:]).clamp(0, side - 1)  # (n, W)
    return images[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


class Batches:
    """Training batches by number, for one rank: (images, labels) on the device, and the size of the global batch."""

    def __init__(self, run: Run, training: Training, encoder, examples: Examples, world: World, task: str):
        self.run, self.training, self.encoder, self.examples = run, training, encoder, examples
        self.world, self.task = world, task
        self.seed = event_seed(run.seed, task)
        self.pixels: PixelArray | None = None  # of images that are held in memory
        if isinstance(examples, Pixels) and examples.pixels.shape[1] == encoder.image_size:
            self.pixels = examples.pixels
        on_gpu = world.device.startswith("cuda")
        self.copying = torch.cuda.Stream(world.device) if on_gpu else None
        self.per_epoch = math.ceil(len(examples) / training.batch_size)

    def __call__(self, first: int, stop: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
        batches: Iterator[tuple[torch.Tensor, torch.Tensor, int]]
        if self.pixels is not None:
            pixels, normalise = self.pixels, loading.normalise
            batches = (self._from_memory(number, pixels) for number in range(first, stop))
        else:
            batches, normalise = self._decoded(first, stop), as_torchvision
        for images, labels, size in batches:
            images, labels = self._on_device(images, labels)
            if images.dtype == torch.uint8:
                images = normalise(images, self.encoder.mean, self.encoder.std)
            yield images, labels, size

    def _on_device(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """On a GPU they are copied on a stream of their own, while it works on the step before."""
        if self.copying is None:
            return [tensor.to(self.world.device) for tensor in tensors]
        pinned = [tensor if tensor.is_pinned() else tensor.pin_memory() for tensor in tensors]
        with torch.cuda.stream(self.copying):
            copies = [tensor.to(self.world.device, non_blocking=True) for tensor in pinned]
        computing = torch.cuda.current_stream(self.world.device)
        computing.wait_stream(self.copying)
        for copy in copies:
            copy.record_stream(computing)  # else their memory is another batch's before the step has read them
        return copies

    def _indices(self, number: int) -> np.ndarray:
        return batch_indices(len(self.examples), self.training.batch_size, number, self.seed)

    def _mine(self, images: int) -> tuple[slice, bool]:
        """This rank's part of a batch, and whether it counts.

        Where there are fewer images than processes, one that would have none takes the first again, and its label is
        IGNORED: few encoders take a batch of none, and DDP waits for every process.
        """
        if self.world.rank >= images:
            return slice(0, 1), False
        return slice(self.world.rank, None, self.world.size), True

    def _from_memory(self, number: int, pixels: PixelArray) -> tuple[torch.Tensor, torch.Tensor, int]:
        indices = self._indices(number)
        generator = torch.Generator().manual_seed(event_seed(self.seed, "shift", number))
        # The whole batch is shifted and then shared out, so that the shares of two processes make one process's batch.
        images = shifted(torch.from_numpy(pixels[indices]), MAX_SHIFT, generator)
        mine, counts = self._mine(len(indices))
        labels = torch.from_numpy(self.examples.labels[indices])[mine]
        return images[mine], labels if counts else torch.full_like(labels, IGNORED), len(indices)

    def _decoded(self, first: int, stop: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
        shares = []
        for number in range(first, stop):
            indices = self._indices(number)
            mine, counts = self._mine(len(indices))
            shares.append([(number // self.per_epoch, int(index), counts) for index in indices[mine]])
        augmented = _Augmented(self.examples, self._until_pixels(), self.seed)
        loader = torch.utils.data.DataLoader(
            augmented,
            batch_sampler=shares,
            num_workers=self.training.workers,
            worker_init_fn=heed_parent,
            pin_memory=self.world.device.startswith("cuda"),
            prefetch_factor=PREFETCHED if self.training.workers else None,
            collate_fn=self._collate(len(shares[0])) if shares else None,
        )
        with starting():
            batches = iter(loader)
        try:
            for number, (images, labels) in zip(range(first, stop), batches):
                yield torch.as_tensor(images), torch.as_tensor(labels), len(self._indices(number))
        except CorruptImage:
            loading.require_decodable(self.run, self.task, "train")  # which names and counts them all
            raise

    def _until_pixels(self) -> Callable:
        """The encoder's transform, without the usual end: pixels are sent as they are, and normalised on the device."""
        from torchvision.transforms import v2  # here: it takes a second, and mini's images need none of it

        whole = self.encoder.train_preprocess
        transforms: list[Any] = list(getattr(whole, "transforms", ()))
        if len(transforms) < 2:
            return whole
        scaled, normalised = transforms[-2:]
        usual = isinstance(scaled, v2.ToDtype) and (scaled.dtype, scaled.scale) == (torch.float32, True)
        if usual and isinstance(normalised, v2.Normalize):
            if (tuple(normalised.mean), tuple(normalised.std)) == (self.encoder.mean, self.encoder.std):
                return v2.Compose(transforms[:-2])
        return whole

    def _collate(self, images: int) -> Callable | None:
        """As arrays, which are sent by value, where /dev/shm has no room for the tensors of all decoding processes."""
        batch = images * 3 * self.encoder.image_size**2
        processes = self.training.workers * self.world.size
        return as_arrays if processes and batch * (PREFETCHED + 1) * processes > shared_memory() else None


def as_torchvision(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """uint8 (n, 3, H, W) to float, normalised: to the bit what v2.ToDtype and v2.Normalize make of each image."""
    centre, scale = (loading.channels(tuple(values), pixels.device) for values in (mean, std))
    return pixels.float().mul_(1 / 255).sub_(centre).div_(scale)


def as_arrays(examples: Sequence[tuple[torch.Tensor, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a batch, in the process's own memory."""
    return np.stack([image.numpy() for image, _ in examples]), np.array([label for _, label in examples])


class _Augmented(torch.utils.data.Dataset):
    """Decoded and augmented examples; the augmentation is a function of (seed, epoch, index), whoever decodes."""

    def __init__(self, examples: Examples, transform, seed: int):
        self.examples, self.transform, self.seed = examples, transform, seed

    def __getitem__(self, key: tuple[int, int, bool]):
        epoch, index, counts = key
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed also seeds every accelerator: 0.6 ms, for each image, where none is initialised.
            torch.default_generator.manual_seed(event_seed(self.seed, "augment", epoch, index))
            return self.transform(self.examples[index]), int(self.examples.labels[index]) if counts else IGNORED
