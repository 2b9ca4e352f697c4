"""Seven common corruptions of images at five severities, as in ImageNet-C and CIFAR-10-C.

Hendrycks and Dietterich, 2019, arXiv:1903.12261. Images below 64 pixels take the constants that the authors chose for
CIFAR-10-C, 32 x 32; others those of ImageNet-C, 224 x 224, whose blurs and noise leave little of a small image.
Only `test` is corrupted, for scoring and for what adapts on it: the shift is not known when validation chooses.

FusionBench's protocol (tanganke/fusion_bench, fusion_bench/dataset/image_corruption/make_corruption.py) is another, and
goes by names of its own, `fusion_bench_contrast`: CIFAR-10-C's constants for images of any size, applied to the file's
own pixels, before CLIP's resize and crop. Its `pixelate` gives images of 32 x 32. There the noise of an image depends
on its data set and its pixels. The Concrete paper's robustness has severity 2 of it, on four tasks.

The libraries that hold all seven (imagecorruptions, imgaug, albumentations) are no longer kept up; what Pillow and
SciPy do is theirs, and the rest is a few lines each.

The noise of an image depends on its data set and index alone, so every method sees the same images, in whatever order,
and severities differ by their strength. Spatter is water at the first three severities and mud at the last two. Drops
of water take their outline from erosion, where the published code runs OpenCV's Canny detector.
"""

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from src.datasets.base import PixelArray
from src.ranges import check as check_range
from src.runtime.messages import UsageError, nearest

SPLIT = "test"
SEVERITIES = (1, 2, 3, 4, 5)
SMALL = 64  # pixels
VERSION = 1  # of the corrupted pixels: caches on disk name it, so raise it where these change
FUSION_BENCH = "fusion_bench_"  # how the names of that protocol's corruptions begin
NATIVE_PIXELS = 32  # of CIFAR-10, whose constants it takes
EMBOSS = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
WATER, MUD = np.array([175, 238, 238]), np.array([63, 42, 20])  # RGB: pale turquoise, brown

# Each takes uint8 (height, width, 3), of `pixelate` a square, a generator and its constants; gives the image in
# [0, 255], not yet clipped.


def motion_blur(image: np.ndarray, rng: np.random.Generator, radius: int, sigma: float) -> np.ndarray:
    """Half a Gaussian along a direction within 45 degrees of the horizontal, as ImageMagick's."""
    angle = np.deg2rad(rng.uniform(-45, 45))
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2)).astype(np.float32)
    far, (height, width) = len(steps), image.shape[:2]
    padded = np.pad(image.astype(np.float32), ((far, far), (far, far), (0, 0)), "edge")
    blurred = np.zeros(image.shape, np.float32)
    for step, weight in zip(steps, weights / weights.sum()):
        top, left = far + round(step * np.sin(angle)), far + round(step * np.cos(angle))
        blurred += weight * padded[top : top + height, left : left + width]
    return blurred


def impulse_noise(image: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    """Salt and pepper: a share `amount` of all values becomes 0 or 255."""
    u = rng.random(image.shape, np.float32)
    return np.where(u < amount / 2, 0, np.where(u > 1 - amount / 2, 255, image))


def gaussian_noise(image: np.ndarray, rng: np.random.Generator, scale: float) -> np.ndarray:
    return image + 255 * scale * rng.standard_normal(image.shape, np.float32)


def pixelate(image: np.ndarray, rng: np.random.Generator, scale: float) -> np.ndarray:
    side = len(image)
    coarse = Image.fromarray(image).resize((int(scale * side),) * 2, Image.Resampling.BOX)
    return np.asarray(coarse.resize((side, side), Image.Resampling.BOX))


def spatter(
    image: np.ndarray, rng: np.random.Generator, level: float, sd: float, sigma: float, threshold: float,
    strength: float, mud: bool,
) -> np.ndarray:  # fmt: skip
    """Drops where smoothed noise exceeds `threshold`: of water, which adds light, or of mud, which covers."""
    from scipy import ndimage  # here, so that a script's --help does not wait for it

    noise = level + sd * rng.standard_normal(image.shape[:2], np.float32)
    liquid = ndimage.gaussian_filter(noise, sigma, mode="nearest")
    wet = liquid >= threshold
    if mud:
        cover = ndimage.gaussian_filter(wet.astype(float), strength, mode="nearest")[..., None]
        cover[cover < 0.8] = 0
        return (1 - cover) * image + cover * MUD
    relief = np.where(wet, liquid, 0) * _relief(wet)
    return image + strength * (relief / max(relief.max(), 1e-9))[..., None] * WATER


def _relief(wet: np.ndarray) -> np.ndarray:
    """Light on drops from one side: their embossed, equalised distance to the nearest outline."""
    from scipy import ndimage  # as in spatter

    outline = wet & ~ndimage.binary_erosion(wet)
    distance = ndimage.uniform_filter(np.minimum(ndimage.distance_transform_edt(~outline), 20), 3)
    equalised = 255 * np.searchsorted(np.sort(distance, axis=None), distance, side="right") / distance.size
    return ndimage.uniform_filter(np.clip(ndimage.correlate(equalised, EMBOSS), 0, 255), 3)


def contrast(image: np.ndarray, rng: np.random.Generator, scale: float) -> np.ndarray:
    mean = image.mean((0, 1))
    return mean + scale * (image - mean)


def jpeg_compression(image: np.ndarray, rng: np.random.Generator, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file, formats=("JPEG",)))


@dataclass(frozen=True)
class Corruption:
    """A function with its constants at each severity, for large images and for small ones."""

    function: Callable[..., np.ndarray]
    large: tuple[tuple, ...]
    small: tuple[tuple, ...]


CORRUPTIONS = {
    corruption.function.__name__: corruption
    for corruption in (
        Corruption(
            motion_blur,
            large=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
            small=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ),
        Corruption(
            impulse_noise,
            large=((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
            small=((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
        ),
        Corruption(
            gaussian_noise,
            large=((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
            small=((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
        ),
        Corruption(
            pixelate,
            large=((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
            small=((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
        ),
        Corruption(
            spatter,
            large=(
                (0.65, 0.3, 4, 0.69, 0.6, False),
                (0.65, 0.3, 3, 0.68, 0.6, False),
                (0.65, 0.3, 2, 0.68, 0.5, False),
                (0.65, 0.3, 1, 0.65, 1.5, True),
                (0.67, 0.4, 1, 0.65, 1.5, True),
            ),
            small=(
                (0.62, 0.1, 0.7, 0.7, 0.5, False),
                (0.65, 0.1, 0.8, 0.7, 0.5, False),
                (0.65, 0.3, 1, 0.69, 0.5, False),
                (0.65, 0.1, 0.7, 0.69, 0.6, True),
                (0.65, 0.1, 0.5, 0.68, 0.6, True),
            ),
        ),
        Corruption(
            contrast,
            large=((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
            small=((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
        ),
        Corruption(
            jpeg_compression,
            large=((25,), (18,), (15,), (10,), (7,)),
            small=((80,), (65,), (58,), (50,), (40,)),
        ),
    )
}


def check(name: str, severity: int) -> None:
    """Raises UsageError that says what exists."""
    known = [*CORRUPTIONS, *(f"{FUSION_BENCH}{name}" for name in CORRUPTIONS)]
    if name not in known:
        raise UsageError(f"corruption: {name!r} does not exist{nearest(name, known)} Known: {', '.join(known)}")
    check_range(severity=severity)


def of_fusion_bench(name: str) -> bool:
    """Whether a corruption is of FusionBench's protocol, which files are corrupted by, not crops."""
    return name.startswith(FUSION_BENCH)


def corrupt_file(image: Image.Image, dataset: str, name: str, severity: int) -> Image.Image:
    """A corrupted copy of an image in its own size, by FusionBench's protocol; of `pixelate` one of 32 x 32."""
    check(name, severity)
    name = name.removeprefix(FUSION_BENCH)
    pixels = np.asarray(image.convert("RGB"))
    constants = CORRUPTIONS[name].small[severity - 1]
    if name == pixelate.__name__:
        coarse = image.convert("RGB").resize((int(constants[0] * NATIVE_PIXELS),) * 2, Image.Resampling.BOX)
        return coarse.resize((NATIVE_PIXELS,) * 2, Image.Resampling.BOX)
    rng = np.random.default_rng([zlib.crc32(f"{dataset} {name}".encode()), zlib.crc32(pixels.tobytes())])
    changed = CORRUPTIONS[name].function(pixels, rng, *constants)
    return Image.fromarray(np.clip(changed, 0, 255).astype(np.uint8))


def corrupt(pixels: np.ndarray, name: str, severity: int, seeds) -> np.ndarray:
    """Corrupted copies of uint8 images (n, side, side, 3). seeds: of each image, what default_rng takes."""
    check(name, severity)
    corruption, small = CORRUPTIONS[name], pixels.shape[1] < SMALL
    constants = (corruption.small if small else corruption.large)[severity - 1]
    corrupted = np.empty(pixels.shape, np.uint8)
    for index, (image, seed) in enumerate(zip(pixels, seeds)):
        changed = corruption.function(np.asarray(image), np.random.default_rng(seed), *constants)
        corrupted[index] = np.clip(changed, 0, 255)
    return corrupted


@dataclass(frozen=True)
class CorruptedPixels:
    """The images of `dataset`, corrupted whenever they are read: an array that takes all that NumPy's take."""

    pixels: PixelArray
    dataset: str
    name: str
    severity: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.pixels.shape

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        positions = np.arange(len(self))[index]
        if np.ndim(positions) == 0:
            return self[np.array([positions])][0]
        stream = zlib.crc32(f"{self.dataset} {self.name}".encode())
        seeds = ([stream, position] for position in positions)
        return corrupt(self.pixels[index], self.name, self.severity, seeds)


@dataclass(frozen=True)
class CorruptedCrops:
    """Corrupted images of a set whose clean pixels lie in a file of the image cache, as examples for that cache."""

    pixels: CorruptedPixels
    labels: np.ndarray
    clean: Path  # its name carries a hash of all that its bytes depend on

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def name(self, index: int) -> str:
        return f"{self.clean}[{index}]"

    def raw(self, index: int) -> bytes:
        return self.pixels[index].tobytes()

    def identity(self) -> str:
        return self.clean.name
