"""Passes over the images of a data set with the image cache and without it, decoding and resizing at every pass.

    python -m benchmarks image_cache
    python -m benchmarks image_cache --images 2000 --side 224 --rounds 5 --threads 8

By turns in one run, on a folder of JPEG files that it generates: evaluation's batches, without a model. First all
pixels of both ways are compared. Tells passes per second of CPU time, their ratio (median over rounds, and quartiles),
what building the cache cost, in passes, and what it takes on the disk. The operating system holds the files of both
ways in memory, so this is the time of decoding, not of the disk.
"""

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import measure
from src.datasets.base import Pixels
from src.datasets.cache import OnDemand, cached
from src.datasets.examples import Files
from src.datasets.loading import centre_crop

BATCH = 100


def photographs(folder: Path, count: int, shape: tuple[int, int]) -> Files:
    """JPEG files of smooth noise at quality 90: about as many bytes per pixel as photographs have."""
    random = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(random.integers(0, 256, (shape[0] // 8, shape[1] // 8, 3), dtype=np.uint8))
        small.resize(shape[::-1], Image.BICUBIC).save(folder / f"{number:06d}.jpg", quality=90)
    return Files.of((folder / f"{number:06d}.jpg", number % 10) for number in range(count))


def batches(pixels: Pixels) -> None:
    """A pass over all images, as evaluation reads them."""
    for start in range(0, len(pixels), BATCH):
        torch.from_numpy(np.array(pixels.pixels[start : start + BATCH])).permute(0, 3, 1, 2).float()


def main(argv: Sequence[str] | None = None) -> None:
    started = time.time()
    parser = measure.parser(__doc__)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--height", type=int, default=375, help="of the files; the width is 4/3 of it")
    parser.add_argument("--side", type=int, default=224, help="of the crops, as the encoder takes them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        files = photographs(Path(folder), options.images, (options.height, options.height * 4 // 3))
        crop = partial(centre_crop, side=options.side)
        began = time.process_time()
        stored = cached(files, crop, f"centre_crop {options.side}", Path(folder) / "cache", "photographs", "test")
        building = time.process_time() - began
        every = Pixels(OnDemand(files, crop, np.arange(len(files)), stored.pixels.shape), files.labels)
        for start in range(0, len(files), BATCH):
            part = slice(start, start + BATCH)
            if not np.array_equal(every.pixels[part], stored.pixels[part]):
                raise SystemExit(f"images {start} to {start + BATCH} differ with the cache: no ratio is told")
        ways = {"with the cache": lambda: batches(stored), "without the cache": lambda: batches(every)}
        seconds = measure.by_turns(ways, options.rounds)
        encoded = sum(Path(path).stat().st_size for path in files.paths)
    rows = measure.compared(seconds, "with the cache")
    for way, row in rows.items():
        rate = options.images / row["seconds"]
        print(f"{way:18s} {1 / row['seconds']:8.2f} passes/s over {options.images} images, {rate:8.0f} images/s")
    without, stored_bytes = rows["without the cache"], stored.pixels[0].nbytes
    in_passes = building / without["seconds"]
    print(f"without the cache {measure.times(without)} x the time; building it took {in_passes:.2f} passes")
    print(f"{encoded / options.images / 1024:.0f} KiB of JPEG per image became {stored_bytes / 1024:.0f} KiB")
    record = {"passes": rows, "building, in passes": in_passes}
    record["bytes of an image"] = {"JPEG": encoded / options.images, "cache": stored_bytes}
    measure.write(options.output, record, vars(options), started)


if __name__ == "__main__":
    main()
