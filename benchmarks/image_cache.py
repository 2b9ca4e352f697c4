"""Passes over the images of a data set with the image cache and without it, decoding and resizing at every pass.

    python benchmarks/image_cache.py
    python benchmarks/image_cache.py --images 2000 --side 224 --rounds 5 --threads 8

By turns in one run, on a folder of JPEG files that it generates: evaluation's batches, without a model. Prints passes
per second of CPU time (which another program's load disturbs less than wall time), their ratio, what building the cache
cost, in passes, and what it takes on the disk. The operating system holds the files of both ways in memory, so this is
the time of decoding, not of the disk.
"""

import argparse
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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


def seconds_of_a_pass(pixels: Pixels) -> float:
    began = time.process_time()
    for start in range(0, len(pixels), BATCH):
        torch.from_numpy(np.array(pixels.pixels[start : start + BATCH])).permute(0, 3, 1, 2).float()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--height", type=int, default=375, help="of the files; the width is 4/3 of it")
    parser.add_argument("--side", type=int, default=224, help="of the crops, as the encoder takes them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        files = photographs(Path(folder), args.images, (args.height, args.height * 4 // 3))
        crop = partial(centre_crop, side=args.side)
        began = time.process_time()
        stored = cached(files, crop, f"centre_crop {args.side}", Path(folder) / "cache", "photographs", "test")
        building = time.process_time() - began
        every = Pixels(OnDemand(files, crop, np.arange(len(files)), stored.pixels.shape), files.labels)
        assert np.array_equal(every.pixels[:BATCH], stored.pixels[:BATCH])
        seconds = {"without the cache": [], "with the cache": []}
        for _ in range(args.rounds):
            for way, pixels in zip(seconds, (every, stored)):
                seconds[way].append(seconds_of_a_pass(pixels))
        without, with_cache = (statistics.median(values) for values in seconds.values())
        encoded = sum(Path(path).stat().st_size for path in files.paths)
    for way, median in (("without the cache", without), ("with the cache", with_cache)):
        rate = args.images / median
        print(f"{way:18s} {1 / median:8.2f} passes/s over {args.images} images, {rate:8.0f} images/s")
    print(f"with the cache {without / with_cache:.0f} x as many; building it took {building / without:.2f} passes")
    print(f"{encoded / args.images / 1024:.0f} KiB of JPEG per image became {stored.pixels[0].nbytes / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
