"""What the sections of `accelerator` share: a device, a model with random weights, and how work is timed on it."""

import contextlib
import copy
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

from benchmarks.sections import BEGAN
from src import checkpoints, store
from src.datasets import loading
from src.datasets.base import Pixels
from src.heads import get_classification_head
from src.merging.base import Problem, Unlabelled
from src.modeling import ClassificationHead, ImageEncoder
from src.run import Run
from src.runtime.paths import Places
from src.runtime.seeds import event_seed

Numbers = dict[str, Any]  # a section's numbers, by what they are of

TINY_CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TASK = "EuroSAT"  # 10 classes: its names and prompts make the head; none of its images is read
CLASSES = (196, 47, 10, 43, 10, 45, 397, 10)  # of the papers' eight tasks
SHARE = 0.04  # |τ| / |θ0|


@dataclass(frozen=True)
class Sizes:
    """How much of everything. photo: height and width of the JPEG files. kernel: images of a tangent kernel."""

    model: str = "ViT-B-32"
    large: str = "ViT-L-14"
    batch: int = 128
    small_batch: int = 16
    large_batch: int = 64
    large_passes: tuple[int, ...] = (32, 64, 128)
    matrix: int = 8192
    copied: int = 1 << 30
    rounds: int = 10
    warm: int = 3
    images: int = 2048
    eval_batches: tuple[int, ...] = (100, 512)
    sweep_images: int = 400
    coefficients: int = 21
    photos: int = 512
    photo: tuple[int, int] = (375, 500)
    steps: int = 30
    adapt_batch: int = 16
    adapt_steps: int = 6
    kernel: tuple[int, ...] = (12, 24)
    gram_images: int = 256
    mini_images: int = 500
    broadcast: int = 1 << 28


TINY = Sizes(
    model="ViT-Fake",
    large="ViT-Fake",
    batch=8,
    small_batch=4,
    large_batch=4,
    large_passes=(4,),
    matrix=256,
    copied=1 << 20,
    rounds=2,
    warm=1,
    images=64,
    eval_batches=(16, 32),
    sweep_images=32,
    coefficients=3,
    photos=32,
    photo=(32, 40),
    steps=3,
    adapt_batch=2,
    adapt_steps=2,
    kernel=(4, 6),
    gram_images=8,
    mini_images=64,
    broadcast=1 << 16,
)


class Bench:
    """A device, a model with random weights (ViT-Mini with its own), and where the suite keeps its files."""

    def __init__(self, tiny: bool, folder: Path, device: str, model: str | None = None, task: str = TASK):
        self.tiny, self.folder, self.device, self.task = tiny, folder, device, task
        self.sizes = TINY if tiny else Sizes()
        self.model = model or self.sizes.model
        self.mini = self.model == "ViT-Mini"
        self.gpu = device.startswith("cuda")
        if tiny and not self.mini:
            config = folder / f"{self.model}.json"
            config.write_text(json.dumps(TINY_CONFIG))
            open_clip.add_model_config(config)

    def run(self, device: str | None = None, **more: Any) -> Run:
        places = Places(*(self.folder / name for name in ("checkpoints", "results", "cache", "data")))
        weights = None if self.mini else str(self.weights)
        suite = "mini" if self.mini else "vision"
        return Run.of(
            self.model,
            suite,
            self.task,
            device=device or self.device,
            places=places,
            pretrained_path=weights,
            jobs=1,
            **more,
        )

    @cached_property
    def weights(self) -> Path:
        """A file of random weights."""
        path = self.folder / f"{self.model}.safetensors"
        if not path.exists():
            torch.manual_seed(0)
            with torch.device(self.device):
                built = open_clip.create_model(self.model, pretrained=None, force_quick_gelu=True)
            save_file({name: t.detach().cpu().contiguous().clone() for name, t in built.state_dict().items()}, path)
        return path

    @cached_property
    def frozen(self) -> ImageEncoder:
        """What `store.encoder` gives, built once for all runs."""
        return ImageEncoder(self.run()).requires_grad_(False).eval().to(self.device)

    def encoder(self) -> ImageEncoder:
        """A copy to be trained."""
        trained = self._copy()
        for name, parameter in trained.named_parameters():
            parameter.requires_grad_(name.startswith(checkpoints.VISUAL))
        return trained

    @contextlib.contextmanager
    def suite(self, examples: Any = None) -> Iterator[None]:
        """Within, the suite takes the one encoder, and these examples for every split of every data set."""
        examples = self.pixels(64) if examples is None else examples
        with contextlib.ExitStack() as stack:
            for target, stand_in in (
                ("src.store.encoder", lambda run: self.frozen if run.device == self.device else self.elsewhere(run)),
                ("src.finetuning.trained.ImageEncoder", lambda run: self.encoder()),
                ("src.datasets.loading.training_examples", lambda *_: examples),
                ("src.datasets.loading.evaluation_pixels", lambda *_: examples),
            ):
                stack.enter_context(mock.patch(target, stand_in))
            store.write_pretrained(self.run())
            yield

    @cache  # noqa: B019  (a bench lives as long as the process)
    def elsewhere(self, run: Run) -> ImageEncoder:
        return self._copy().to(run.device)

    def _copy(self) -> ImageEncoder:
        """With the same tokenizer, whose vocabulary takes longer to copy than a toy tower takes to train."""
        tokenizer = self.frozen.tokenizer
        return copy.deepcopy(self.frozen, {id(tokenizer): tokenizer})

    def head(self, device: str | None = None) -> ClassificationHead:
        return get_classification_head(self.run(), self.task).to(device or self.device)

    @property
    def side(self) -> int:
        return self.frozen.image_size

    def images(self, number: int) -> torch.Tensor:
        """Normalised images, the same on every device."""
        drawn = torch.randn(number, 3, self.side, self.side, generator=torch.Generator().manual_seed(1))
        return drawn.to(self.device)

    @cache  # noqa: B019
    def pixels(self, number: int) -> Pixels:
        random, side = np.random.default_rng(0), self.side
        labels = random.integers(0, 10, number).astype(np.int64)
        return Pixels(random.integers(0, 256, (number, side, side, 3), dtype=np.uint8), labels)

    @cached_property
    def direction(self) -> dict[str, torch.Tensor]:
        """A vector of the length that fine-tuning moves weights, tensor by tensor; on the device."""
        generator = torch.Generator().manual_seed(0)
        trained = [(n, p) for n, p in self.frozen.named_parameters() if n.startswith(checkpoints.VISUAL)]
        return {
            name: (SHARE * p.norm().cpu() / p.numel() ** 0.5 * torch.randn(p.shape, generator=generator)).to(p.device)
            for name, p in trained
        }

    @cached_property
    def start(self) -> dict[str, torch.Tensor]:
        """θ0 on the CPU."""
        return {name: tensor.detach().cpu() for name, tensor in self.frozen.state_dict().items()}

    @cached_property
    def finetuned(self) -> dict[str, dict[str, torch.Tensor]]:
        """θ_t of eight tasks, on the CPU; drawn on the device, which takes seconds less."""
        weights = {}
        for number in range(len(CLASSES)):
            generator = torch.Generator(self.device).manual_seed(number)
            weights[f"task{number}"] = {
                name: t
                + (SHARE * float(t.norm()) / t.numel() ** 0.5)
                * torch.randn(t.shape, generator=generator, device=self.device).cpu()
                if name.startswith(checkpoints.VISUAL)
                else t
                for name, t in self.start.items()
            }
        return weights

    def problem(self, wanted: Callable[[str], bool] = lambda name: True, device: str = "cpu", **more: Any) -> Problem:
        """The eight tasks, as far as tensors are wanted, with their weights on a device; nothing is memorised yet.

        The model and the images are on the device of the bench, unless `more` has others.
        """

        def part(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: tensor.to(device) for name, tensor in weights.items() if wanted(name)}

        more.setdefault("images", self.unlabelled(self.frozen, self.device))
        finetuned = {task: part(weights) for task, weights in self.finetuned.items()}
        return Problem(part(self.start), finetuned, model=self.model, **more)

    def unlabelled(self, encoder: ImageEncoder, device: str) -> Unlabelled:
        width = self.head().in_features
        pixels = self.pixels(max(64, self.sizes.gram_images)).pixels

        def batch(task: str, split: str, size: int, number: int) -> torch.Tensor:
            chosen = np.random.default_rng(event_seed(task, number)).choice(len(pixels), size, replace=False)
            return loading.batch_of(pixels[chosen], encoder, device)

        generator = torch.Generator().manual_seed(9)
        heads = [ClassificationHead(10 * torch.randn(n, width, generator=generator)) for n in CLASSES]
        named = {f"task{number}": head.requires_grad_(False).to(device) for number, head in enumerate(heads)}
        return Unlabelled(lambda: encoder, batch, named.__getitem__)

    # ---- measuring

    def wait(self) -> None:
        """Until the device has done all that it was asked."""
        if self.gpu:
            torch.cuda.synchronize()

    def clear(self) -> None:
        """Free what nothing refers to."""
        gc.collect()
        if self.gpu:
            torch.cuda.empty_cache()

    @contextlib.contextmanager
    def peak(self) -> Iterator[Numbers]:
        """{"GB": the highest allocation within, above what was there before}, on a GPU."""
        self.clear()
        numbers: Numbers = {}
        if not self.gpu:
            yield numbers
            return
        self.wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield numbers
        self.wait()
        numbers["GB"] = round((torch.cuda.max_memory_allocated() - before) / 1e9, 3)

    def once(self, work: Callable[[], Any]) -> float:
        """Seconds of one call, the device's work included."""
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def rounds(self, work: Callable[[], Any], blocks: int = 3, calls: int = 3, warm: int = 1) -> list[float]:
        """Mean seconds of a call in each block; the device is waited for at the ends of a block alone."""
        for _ in range(warm):
            work()
        return [self.once(lambda: [work() for _ in range(calls)] and None) / calls for _ in range(blocks)]

    def ms(self, work: Callable[[], Any], **how: int) -> Numbers:
        """{"ms": the median over blocks, "spread": (most − least) / median}."""
        seconds = self.rounds(work, **how)
        median = statistics.median(seconds)
        return {"ms": round(1000 * median, 3), "spread": round((max(seconds) - min(seconds)) / median, 3)}


def far(one: torch.Tensor, other: torch.Tensor) -> float:
    """|one − other| / |other|, in float64."""
    one, other = one.detach().double().cpu(), other.detach().double().cpu()
    return float(f"{float((one - other).norm() / other.norm()):.2e}")


def apart(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """The same of two vectors."""
    return far(*(torch.cat([v[name].flatten().double().cpu() for name in other]) for v in (one, other)))


def say(line: str) -> None:
    print(f"[{time.time() - BEGAN:6.1f} s] {line}", file=sys.stderr, flush=True)


def note(numbers: Numbers, name: str, value: Any) -> None:
    numbers[name] = value
    say(f"  {name}: {value}")


MARK = "NUMBERS "


def report(numbers: Numbers) -> None:
    """A child's findings so far; the last line counts, also that of a child which came to its limit."""
    print(MARK + json.dumps(numbers), flush=True)
