"""What the suite costs on one GPU, in under six minutes.

    python -m benchmarks accelerator --output benchmarks/results/accelerator.json
    python -m benchmarks accelerator --only steps evaluation
    python -m benchmarks accelerator --tiny          # the same code on a CPU with a toy tower, to try the program

Weights are random (open_clip's own initialisation) and images are drawn by a generator, so every number is a time, a
size or a difference of two ways, never an accuracy. All that is timed is the suite's own code; the stand-ins are the
readers of data sets, and one encoder that is built once. ViT-B-32 unless a row says otherwise.

A section that fails tells its error in its place and the others go on. A section has a limit in seconds, and what it
found before the limit stays. What no longer fits into --budget is listed as skipped. The JSON is written after every
section.
"""

import argparse
import contextlib
import copy
import gc
import io
import json
import os
import pickle
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import count, repeat
from pathlib import Path
from typing import Any
from unittest import mock

BEGAN = time.time()
ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # open_clip's tokenizer of these models is in the package
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np  # noqa: E402
import open_clip  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch.func import functional_call  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from benchmarks import measure  # noqa: E402
from benchmarks.image_cache import photographs  # noqa: E402
from src import checkpoints, store, training  # noqa: E402
from src.analysis import ntk  # noqa: E402
from src.datasets import loading  # noqa: E402
from src.datasets.base import Pixels  # noqa: E402
from src.evaluation import ORIGIN, Line, score, score_all  # noqa: E402
from src.finetuning.batches import Batches  # noqa: E402
from src.finetuning.settings import Training  # noqa: E402
from src.heads import get_classification_head  # noqa: E402
from src.linearize import LinearizedModel, forward_and_jvp  # noqa: E402
from src.merging.adamerging import AdaMerging  # noqa: E402
from src.merging.adaptation import MergedModel  # noqa: E402
from src.merging.base import Drawn, Problem, Unlabelled  # noqa: E402
from src.merging.concrete_mask import ConcreteMask  # noqa: E402
from src.merging.inputs import Moments  # noqa: E402
from src.merging.registry import METHODS, load_methods  # noqa: E402
from src.modeling import ClassificationHead, ImageEncoder  # noqa: E402
from src.run import Run  # noqa: E402
from src.runtime.distributed import World, broadcast, cores, torchrun  # noqa: E402
from src.runtime.messages import UsageError  # noqa: E402
from src.runtime.paths import Places  # noqa: E402
from src.runtime.precision import matmul_precision  # noqa: E402
from src.runtime.seeds import event_seed  # noqa: E402
from src.training import FineTuning, finetune  # noqa: E402

Found = dict[str, Any]  # a section's numbers, by what they are of

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
        trained = copy.deepcopy(self.frozen)
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
        return copy.deepcopy(self.frozen).to(run.device)

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
    def peak(self) -> Iterator[Found]:
        """{"GB": the highest allocation within, above what was there before}, on a GPU."""
        self.clear()
        found: Found = {}
        if not self.gpu:
            yield found
            return
        self.wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield found
        self.wait()
        found["GB"] = round((torch.cuda.max_memory_allocated() - before) / 1e9, 3)

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

    def ms(self, work: Callable[[], Any], **how: int) -> Found:
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


def told(found: Found, name: str, value: Any) -> None:
    found[name] = value
    say(f"  {name}: {value}")


# ---- sections


def ceilings(b: Bench, found: Found) -> None:
    """Rates that the other numbers are held against: matrix products, a copy on the device, copies to it."""
    n, rounds = b.sizes.matrix, dict(blocks=3, calls=4, warm=2)
    for name, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        one, two = (torch.randn(n, n, device=b.device, dtype=dtype) for _ in range(2))
        with matmul_precision(name):
            seconds = statistics.median(b.rounds(lambda one=one, two=two: one @ two, **rounds))
        told(found, f"{name} TFLOP/s", round(2 * n**3 / seconds / 1e12, 2))
    source = torch.ones(b.sizes.copied, dtype=torch.uint8, device=b.device)
    target = torch.empty_like(source)
    seconds = statistics.median(b.rounds(lambda: target.copy_(source), **rounds))
    told(found, "device copy GB/s (read + written)", round(2 * len(source) / seconds / 1e9))
    values = b.sizes.batch * 3 * 224 * 224
    for name, dtype in (("float", torch.float32), ("uint8", torch.uint8)):
        batch = torch.ones(values, dtype=dtype)
        told(found, f"{name} batch to the device, pageable", b.ms(lambda t=batch: t.to(b.device), **rounds))
        if b.gpu:
            pinned = batch.pin_memory()
            told(found, f"{name} batch to the device, pinned", b.ms(lambda t=pinned: t.to(b.device), **rounds))


def tuning(b: Bench, mode: str, precision: str, batch: int, device: str | None = None, **flags: Any) -> FineTuning:
    run = b.run(device)
    asked = dict(precision=precision, batch_size=batch, steps=10_000, checkpoint_every=0, workers=0, lr=1e-5)
    return FineTuning(run, b.task, Training.of(run, mode, **asked | flags), World(device=run.device))


def stepper(b: Bench, tuned: FineTuning, batch: int) -> Callable[[], Any]:
    """The suite's own step on a batch that is on the device already."""
    images, labels = b.images(batch), torch.arange(batch, device=b.device) % 10
    place = tuned.world.device
    stream, numbers = repeat((images.to(place), labels.to(place), batch)), count()
    return lambda: tuned.step(next(numbers), stream)


def plainly(tuned: FineTuning) -> FineTuning:
    """f_lin by torch.func.jvp and backward through it."""
    assert isinstance(tuned.encoder, LinearizedModel)
    tuned.encoder.fused = False
    return tuned


def steps(b: Bench, found: Found) -> None:
    """Training steps at the papers' batch: time, images/s, peak memory; and at a small batch, where launches bind."""
    how = dict(blocks=3, calls=max(1, b.sizes.rounds // 3), warm=b.sizes.warm)
    modes = ("attention", "attention_linear", "lora", "l_lora", "sam")
    plan = [(m, p, b.sizes.batch) for p in ("tf32", "fp32") for m in ("standard", "linear", "linear, plain")]
    plan += [("standard", "bf16", b.sizes.batch), *((m, "tf32", b.sizes.small_batch) for m in ("standard", "linear"))]
    plan += [(m, "tf32", b.sizes.batch) for m in modes]
    with b.suite():
        for mode, precision, batch in plan:
            with matmul_precision(precision), b.peak() as peak:
                tuned = tuning(b, mode.partition(",")[0], precision, batch)
                if mode.endswith("plain"):
                    plainly(tuned)
                row = b.ms(stepper(b, tuned, batch), **how)
                del tuned
            told(
                found, f"{mode} {precision}, batch {batch}", row | {"images/s": round(1000 * batch / row["ms"])} | peak
            )
    for precision in ("tf32", "fp32"):
        standard, linear, plain = (found[f"{m} {precision}, batch {b.sizes.batch}"]["ms"] for m, _, _ in plan[:3])
        found[f"linear / standard, {precision}"] = round(linear / standard, 3)
        found[f"plain / linear, {precision}"] = round(plain / linear, 3)


def loss_gradient(b: Bench, mode: str, device: str, precision: str, plain: bool = False) -> torch.Tensor:
    """Of one step's loss, at θ0 + direction."""
    with matmul_precision(precision):
        return _loss_gradient(b, mode, device, precision, plain)


def _loss_gradient(b: Bench, mode: str, device: str, precision: str, plain: bool) -> torch.Tensor:
    tuned = tuning(b, mode, precision, 4, device=device)
    if plain:
        plainly(tuned)
    with torch.no_grad():
        for name, parameter in tuned.encoder.named_parameters():
            if name in b.direction:
                parameter.add_(b.direction[name].to(device))
    loss = F.cross_entropy(tuned.classifier(b.images(4).to(device)), torch.arange(4, device=device))
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, tuned.trained)])


def agreement(b: Bench, found: Found) -> None:
    """Relative distances: the device's numbers from the CPU's, precisions from float64, linear ways from each other."""
    with b.suite():
        here, there = b.frozen, copy.deepcopy(b.frozen).cpu()
        images, head = b.images(4), b.head()
        cpu = {name: tau.cpu() for name, tau in b.direction.items()}
        logits, slopes = {}, {}
        exact = [t.double() for t in cpu.values()]
        with torch.no_grad():
            wide = copy.deepcopy(there).double()
            f0, slopes["exact"] = forward_and_jvp(wide, {}, dict(zip(cpu, exact)), images.cpu().double())
            logits["exact"] = copy.deepcopy(head).cpu().double()(f0)
            for precision in ("fp32", "tf32"):
                with matmul_precision(precision):
                    logits[precision] = head(here(images))
                    slopes[precision] = forward_and_jvp(here, {}, b.direction, images)[1]
            logits["CPU"] = copy.deepcopy(head).cpu()(there(images.cpu()))
            slopes["CPU"] = forward_and_jvp(there, {}, cpu, images.cpu())[1]
        for what, values in (("logits", logits), ("J tau", slopes)):
            told(found, f"{what}, fp32 here against the CPU's", far(values["fp32"], values["CPU"]))
            for way in ("fp32", "tf32", "CPU"):
                told(found, f"{what}, {way} against float64", far(values[way], values["exact"]))
        for mode in ("standard", "linear"):
            ours = loss_gradient(b, mode, b.device, "fp32")
            told(
                found, f"{mode} gradient, fp32 here against the CPU's", far(ours, loss_gradient(b, mode, "cpu", "fp32"))
            )
            told(found, f"{mode} gradient, tf32 against fp32", far(loss_gradient(b, mode, b.device, "tf32"), ours))
            if mode == "linear":
                plain = loss_gradient(b, mode, b.device, "fp32", plain=True)
                told(found, "linear gradient, ours against the plain way's, fp32", far(ours, plain))
        merges_agree(b, found, there)


def merges_agree(b: Bench, found: Found, encoder: ImageEncoder) -> None:
    """One method of each kind of decomposition, on the matrices of one block whose inputs are as wide as the tower."""
    load_methods()
    block = re.compile(r".*blocks\.0\.(attn\.in_proj_weight|attn\.out_proj\.weight|mlp\.c_fc\.weight)")

    def merged(name: str, problem: Problem, **options: Any) -> dict[str, torch.Tensor]:
        merge = METHODS[name](**options).merge(problem)
        return merge.vector(problem.tasks[0], merge.settings[0]).vector

    wanted = lambda name: bool(block.fullmatch(name))  # noqa: E731
    for name in ("tsv_m", "iso_c", "wudi"):
        row = f"{name}, weights here against weights on the CPU"
        try:
            told(found, row, apart(merged(name, b.problem(wanted, b.device)), merged(name, b.problem(wanted))))
        except RuntimeError as error:  # a method that sums on the CPU, whatever its weights are on
            told(found, row, f"takes weights on the CPU alone: {str(error).splitlines()[0][:120]}")
    options = dict(images=b.sizes.gram_images // 8, batch_size=16)
    own, cpu = (
        merged("regmean", b.problem(wanted, images=images), **options)
        for images in (b.unlabelled(b.frozen, b.device), b.unlabelled(encoder, "cpu"))
    )
    told(found, "regmean, forward passes here against the CPU's", apart(own, cpu))
    x = b.images(4).reshape(4, -1, 768)
    grams = [Moments(), Moments()]
    for moments, rows in zip(grams, (x, x.cpu())):
        moments.add(rows)
    told(found, "Gram matrix of the same inputs, here against the CPU's", far(*(m.mean("xx") for m in grams)))


def evaluation(b: Bench, found: Found) -> None:
    """src.evaluation.score: images/s by batch size, in fp32 and with TF32, and reading without a model."""
    examples = b.pixels(b.sizes.images)
    once = dict(blocks=1, calls=1, warm=1)
    lines = {
        "pre-trained": (ORIGIN, False),
        "standard, one coefficient": (Line(b.direction), False),
        "linear, one coefficient": (Line(b.direction), True),
    }
    with b.suite(examples):
        for precision in ("fp32", "tf32"):
            for size in b.sizes.eval_batches:
                run = b.run(batch_size=size, precision=precision)
                for name, (line, tangent) in lines.items():
                    with matmul_precision(precision), b.peak() as peak:
                        row = b.ms(lambda r=run, x=line, t=tangent: score(r, b.task, "val", x, t), **once)
                    rate = {"images/s": round(1000 * len(examples) / row["ms"])}
                    told(found, f"{name}, batch {size}, {precision}", rate | peak)
        run = b.run()
        read = lambda: [len(x) for x, _ in loading.evaluation_batches(run, b.frozen, b.task, "val")]  # noqa: E731
        rate = round(1000 * len(examples) / b.ms(read, **once)["ms"])
        told(found, "reading and normalising alone, batch 100: images/s", rate)


def sweep(b: Bench, found: Found) -> None:
    """Many coefficients: one jvp for all, against a pass for each; and the non-linear sweep, by batch size."""
    examples = b.pixels(b.sizes.sweep_images)
    coefficients = tuple(float(a) for a in np.linspace(0, 1, b.sizes.coefficients))
    found |= {"images": len(examples), "coefficients": len(coefficients)}
    with b.suite(examples):

        def seconds(coefs: tuple[float, ...], tangent: bool, warm: int = 1, **fields: int) -> float:
            run = b.run(**fields)
            line = Line(b.direction, coefs)
            return b.rounds(lambda: score(run, b.task, "val", line, tangent), blocks=1, calls=1, warm=warm)[0]

        one, all_ = seconds((1.0,), True), seconds(coefficients, True)
        loop = sum(seconds((alpha,), True, warm=0) for alpha in coefficients)
        told(
            found,
            "linear: ms of one, of all by one jvp, of a pass for each",
            [round(1000 * s) for s in (one, all_, loop)],
        )
        found["linear: all / one"], found["linear: the loop / ours"] = round(all_ / one, 2), round(loop / all_, 2)
        for size in b.sizes.eval_batches:
            once, many = seconds((1.0,), False, batch_size=size), seconds(coefficients, False, 0, batch_size=size)
            told(found, f"standard, batch {size}: ms of one, of all", [round(1000 * once), round(1000 * many)])
    weights = dict(b.frozen.named_parameters())
    build = lambda: {n: weights[n] + 0.5 * tau for n, tau in b.direction.items()}  # noqa: E731
    told(found, "building the weights of one coefficient", b.ms(build))


def mini(b: Bench, found: Found) -> None:
    """ViT-Mini here, on one thread and on all: a step of batch 32, and a merged model's evaluation."""
    threads = torch.get_num_threads()
    places = [("this device", b.device, threads), ("CPU, 1 thread", "cpu", 1)]
    if threads > 2:
        places.append((f"CPU, {threads} threads", "cpu", threads))
    for name, device, number in places:
        torch.set_num_threads(number)
        own = Bench(b.tiny, b.folder, device, "ViT-Mini", "signs")
        examples = own.pixels(b.sizes.mini_images)
        try:
            with own.suite(examples):
                for mode in ("standard", "linear"):
                    work = stepper(own, tuning(own, mode, "fp32", 32), 32)
                    told(found, f"{name}: {mode} step, fp32", own.ms(work, calls=3 if b.tiny else 20, warm=3))
                    if own.gpu:
                        with matmul_precision("tf32"):
                            work = stepper(own, tuning(own, mode, "tf32", 32), 32)
                            told(found, f"{name}: {mode} step, tf32", own.ms(work, calls=20, warm=3))
                whole = finetune_rate(own, "standard", examples, steps=3 if b.tiny else 60)
                told(found, f"{name}: finetune(), standard, steps/s", whole["steps/s"])
                coefficients = tuple(float(a) for a in np.linspace(0, 1, b.sizes.coefficients))
                for line, tangent in (((1.0,), False), (coefficients, False), (coefficients, True)):
                    work = partial(score, own.run(), "signs", "val", Line(own.direction, line), tangent)
                    row = own.ms(work, blocks=2, calls=1)
                    kind = "linear" if tangent else "standard"
                    told(found, f"{name}: {kind}, {len(line)} coefficients, {len(examples)} images", row)
        finally:
            torch.set_num_threads(threads)


def merging(b: Bench, found: Found) -> None:
    """Merging methods on eight task vectors in memory.

    Whole vectors on the CPU, where main.py merges; then those that decompose or sort matrices on one block of the
    tower, with the time of all its blocks by multiplication; then decompositions of weights that lie on the device.
    """
    load_methods()
    began = time.perf_counter()
    problem = b.problem()
    told(found, "drawing eight tasks: s", round(time.perf_counter() - began, 1))
    one_block = re.compile(r".*blocks\.0\..*")
    in_block = lambda name: bool(one_block.fullmatch(name))  # noqa: E731
    sizes = {name: tensor.numel() for name, tensor in b.start.items() if name.startswith(checkpoints.VISUAL)}
    blocks = len({m[1] for name in sizes if (m := re.match(r".*blocks\.(\d+)\.", name))})
    times = sum(sizes.values()) / sum(size for name, size in sizes.items() if in_block(name))
    found |= {
        "threads": torch.get_num_threads(),
        "blocks": blocks,
        "weights of the tower / of a block": round(times, 2),
    }

    def vectors(name: str, own: Problem, **options: Any) -> list[dict[str, torch.Tensor]]:
        merge = METHODS[name](**options).merge(own)
        first = merge.draw(0) if isinstance(merge, Drawn) else merge
        return [first.vector(own.tasks[0], setting).vector for setting in first.settings[:1]]

    def whole(name: str) -> None:
        seconds = b.once(lambda: vectors(name, problem))
        told(found, f"{name}, whole tower: s", round(seconds, 2))

    whole("sum")
    tall(b, problem, found)
    plan: list[tuple[str, dict[str, Any], str, str, float]] = [
        ("iso_c", {}, "cpu", "blocks", blocks),
        ("iso_c", {}, b.device, "blocks", blocks),
        ("regmean", {"images": b.sizes.gram_images}, "cpu", "blocks", blocks),
        ("tsv_m", {}, "cpu", "blocks", blocks),
        ("tsv_m", {}, b.device, "blocks", blocks),
        ("breadcrumbs", {}, "cpu", "weights", times),
        ("pcb", {}, "cpu", "weights", times),
        ("wudi", {}, "cpu", "blocks", blocks),
        ("iso_cts", {}, "cpu", "blocks", blocks),
        ("iso_cts", {}, b.device, "blocks", blocks),
        ("wudi", {"solver": "adam", "steps": 10}, "cpu", "blocks", blocks),
    ]
    for name, options, device, unit, factor in plan:
        if device != "cpu" and not b.gpu:
            continue
        own = b.problem(in_block, device)
        steps_told = ""
        if options.get("solver") == "adam":
            factor, steps_told = factor * 300 / options["steps"], f", {options['steps']} of 300 steps"
        seconds = b.once(lambda n=name, p=own, o=options: vectors(n, p, **o))
        row = {"s": round(seconds, 2), f"all {unit}, by multiplication: s": round(seconds * factor, 1)}
        told(found, f"{name}{' by Adam' if steps_told else ''}, one block, weights on {device}{steps_told}", row)
    whole("ties")
    whole("dare")


def tall(b: Bench, problem: Problem, found: Found) -> None:
    """TALL masks as main.py makes them, and what a vector costs to move."""
    began = time.perf_counter()
    merge = METHODS["tall_mask"]().merge(problem)
    vectors = [merge.vector(problem.tasks[0], setting).vector for setting in merge.settings]
    told(found, "tall_mask, whole tower: s of the sum and 5 vectors of a task", round(time.perf_counter() - began, 2))
    one = vectors[0]
    found["a vector: GB"] = round(sum(t.numel() * 4 for t in one.values()) / 1e9, 3)
    seconds = b.once(lambda: {name: tensor.to(b.device) for name, tensor in one.items()})
    told(found, "a vector to the device: s", round(seconds, 3))
    told(found, "pickling a vector, as ranks are dealt it: s", round(b.once(lambda: pickle.dumps(one, 5)), 3))


def adaptation(b: Bench, found: Found) -> None:
    """A step of AdaMerging (layer-wise, original: two batches per task) and one of Concrete task arithmetic."""
    problem, size = b.problem(), b.sizes.adapt_batch
    found |= {"tasks": len(problem.tasks), "images of a pass": size * len(problem.tasks)}
    how = dict(blocks=2, calls=max(1, b.sizes.adapt_steps // 2))
    with b.peak() as peak:
        began = time.perf_counter()
        model = MergedModel(problem, AdaMerging(batch_size=size), clamp=True)
        b.wait()
        told(found, "task vectors to the device: s", round(time.perf_counter() - began, 2))
    found["task vectors: GB"] = peak.get("GB")
    layerwise = model.coefficients("layer").requires_grad_()
    taskwise = model.coefficients("task")
    logits = {n: torch.zeros(s, device=b.device).requires_grad_() for n, s in problem.shapes.items()}
    mask = ConcreteMask(logits, 0.5, seed=0)
    adams = torch.optim.Adam([layerwise], 1e-3), torch.optim.Adam(logits.values(), 1e-3)
    number = count()

    def adamerging() -> None:
        adams[0].zero_grad()
        index = next(number)
        model.backward(layerwise, (2 * index, 2 * index + 1))
        adams[0].step()

    def concrete() -> None:
        adams[1].zero_grad()
        index = next(number)
        model.backward(taskwise, [index], mask.sample(index))
        adams[1].step()

    def merge_alone(lam: torch.Tensor, of: Callable[[str], torch.Tensor | None]) -> None:
        """θ is built, and a gradient is taken back through its formula: the step without images."""
        point = lam.detach().clone().requires_grad_(lam.requires_grad)
        for name in model.taus:
            with torch.no_grad():
                theta = model.start[name] + model.update(name, point, of)
            model.update(name, point, of).backward(theta)

    for precision in ("fp32", "tf32"):
        model.problem = replace(problem, precision=precision)
        for name, work in (("AdaMerging", adamerging), ("Concrete", concrete)):
            with matmul_precision(precision), b.peak() as peak:
                row = b.ms(work, **how)
            told(found, f"{name} step, {precision}", row | peak)
    told(found, "AdaMerging, the merge alone", b.ms(lambda: merge_alone(layerwise, lambda name: None), **how))
    for x in logits.values():
        x.grad = None
    told(found, "Concrete, the merge alone", b.ms(lambda: merge_alone(taskwise, mask.sample(0)), **how))


def kernel(b: Bench, found: Found) -> None:
    """The tangent kernel of encoder and head: seconds and peak memory by reduction and images, and the CPU's."""
    encoder, few = b.encoder().eval(), b.images(4)
    with b.suite():
        head = b.head()
    small, large = b.sizes.kernel
    for reduction, images, chunk in (
        ("sum", small, None),
        ("trace", small, None),
        ("sum", large, None),
        ("sum", large, large),
    ):
        work = partial(ntk.tangent_kernel, encoder, head, b.images(images), reduction=reduction, chunk_size=chunk)
        with b.peak() as peak:
            seconds = b.once(work)
        told(found, f"{reduction}, {images} images, chunk {chunk or 'by memory'}", {"s": round(seconds, 2)} | peak)
    found["outputs of the head"] = head.out_features
    here = ntk.tangent_kernel(encoder, head, few, reduction="sum")
    there = ntk.tangent_kernel(copy.deepcopy(encoder).cpu(), copy.deepcopy(head).cpu(), few.cpu(), reduction="sum")
    told(found, "here against the CPU", far(here, there))


def saving(b: Bench, found: Found) -> None:
    """A training state as finetune() keeps it: seconds to write and to read."""
    with b.suite():
        tuned = tuning(b, "standard", "fp32", b.sizes.small_batch)
        stepper(b, tuned, b.sizes.small_batch)()
        tuned.state.parent.mkdir(parents=True, exist_ok=True)
        told(found, "writing: s", [round(b.once(lambda: tuned._save(0)), 2) for _ in range(2)])
        found["GB"] = round(tuned.state.stat().st_size / 1e9, 2)
        read = b.once(lambda: checkpoints.load(tuned.state, kind="training state"))
        told(found, "reading: s", round(read, 2))
        tuned.state.unlink()


def finetune_rate(b: Bench, mode: str, examples: Any, steps: int | None = None, **flags: Any) -> Found:
    """What finetune() tells of its steps, and all of its seconds. Call it within b.suite()."""
    run, size = b.run(), 32 if b.mini else b.sizes.batch
    asked = dict(steps=steps or b.sizes.steps, batch_size=size, checkpoint_every=0, lr=1e-5) | flags
    line = io.StringIO()
    with mock.patch.object(training.loading, "training_examples", lambda *_: examples):
        with contextlib.redirect_stdout(line):
            began = time.perf_counter()
            finetune(run, b.task, Training.of(run, mode, **asked), World(device=run.device), overwrite=True)
            whole = time.perf_counter() - began
    match = re.search(r"([\d.]+) steps/s", line.getvalue())
    rate = float(match[1]) if match else 0.0
    return {"steps/s": rate, "images/s": round(rate * size), "s with start and end": round(whole, 1)}


def loader(b: Bench, found: Found) -> None:
    """Decoding and augmentation of training images by --workers, and what finetune() makes of it from end to end."""
    folder, number = b.folder / "photos", cores()
    folder.mkdir()
    files = photographs(folder, b.sizes.photos, b.sizes.photo)
    found["cores"] = number
    world = World(device=b.device)
    with b.suite():
        for workers in dict.fromkeys((2, number)):
            settings = Training.of(b.run(), "standard", workers=workers, batch_size=b.sizes.batch)
            batches = Batches(b.run(), settings, b.frozen, files, world, b.task)
            passes = 2 if b.tiny else 4 if workers <= 2 else 24
            began, first, images = time.perf_counter(), 0.0, 0
            for batch, *_ in batches(0, passes):
                if not first:  # starting the workers, and the first batch
                    first, began = time.perf_counter() - began, time.perf_counter()
                else:
                    images += len(batch)
            b.wait()
            rate = round(images / max(1e-9, time.perf_counter() - began))
            told(found, f"{workers} workers", {"images/s": rate, "first batch: s": round(first, 2)})
        memory = b.pixels(4 * b.sizes.batch)
        for name, mode, examples, flags in (
            (f"standard tf32, files, {number} workers", "standard", files, {"precision": "tf32", "workers": number}),
            ("standard tf32, in memory", "standard", memory, {"precision": "tf32"}),
            ("linear tf32, in memory", "linear", memory, {"precision": "tf32"}),
            ("standard bf16, in memory", "standard", memory, {"precision": "bf16"}),
            (
                "standard tf32, in memory, a state every 10 steps",
                "standard",
                memory,
                {"precision": "tf32", "checkpoint_every": 10},
            ),
        ):
            told(found, f"finetune(): {name}", finetune_rate(b, mode, examples, **flags))


def large(b: Bench, found: Found) -> None:
    """ViT-L-14: fine-tuning in both modes, and one pass of adaptation by the number of images, with their memory."""
    own = Bench(b.tiny, b.folder, b.device, b.sizes.large)
    head = ClassificationHead(torch.randn(10, own.frozen.model.visual.output_dim)).requires_grad_(False)
    with own.suite(), mock.patch.object(training, "get_classification_head", lambda *_: head):
        for mode in ("standard", "linear"):
            with matmul_precision("tf32"), own.peak() as peak:
                tuned = tuning(own, mode, "tf32", own.sizes.large_batch)
                row = own.ms(stepper(own, tuned, own.sizes.large_batch), blocks=3, calls=1)
                del tuned
            told(found, f"{mode} tf32, batch {own.sizes.large_batch}", row | peak)
    named = {n: p for n, p in own.frozen.named_parameters() if n.startswith(checkpoints.VISUAL)}
    for images in own.sizes.large_passes:
        name = f"forward and backward over {images} images, tf32"
        try:
            with matmul_precision("tf32"), own.peak() as peak:
                theta = {n: p.clone().requires_grad_() for n, p in named.items()}
                work = lambda t=theta, n=images: functional_call(own.frozen, t, (own.images(n),)).square().mean()  # noqa: E731
                seconds = own.once(lambda w=work: w().backward())
                del theta, work
            told(found, name, {"s": round(seconds, 2)} | peak)
        except torch.OutOfMemoryError as error:
            told(found, name, f"out of memory: {str(error)[:120]}")


# ---- in processes of their own


def ranks(b: Bench, found: Found) -> None:
    """Under torchrun's variables: NCCL (gloo on a CPU), DDP around both classifiers, evaluation shared out."""
    began = time.perf_counter()
    with torchrun(b.device) as world:
        world.barrier()
        b.device = world.device
        found |= {"backend": dist.get_backend(), "processes": world.size}
        found["joining: s"] = round(time.perf_counter() - began, 2)
        found["any: one flag of all"] = [world.any(False), world.any(world.is_primary)]
        if world.size > 1:
            carried = torch.ones(b.sizes.broadcast // 4, device=b.device)
            seconds = statistics.median(b.rounds(lambda: dist.all_reduce(carried)))
            found["all_reduce GB/s"] = round(b.sizes.broadcast / seconds / 1e9, 2)
        with b.suite(), matmul_precision("tf32"):
            world.barrier()
            for mode in ("standard", "linear"):
                tuned = tuning(b, mode, "tf32", b.sizes.small_batch)
                wrapped = DistributedDataParallel(tuned.classifier)
                images, labels = b.images(b.sizes.small_batch), torch.arange(b.sizes.small_batch, device=b.device) % 10

                def gradient(model: torch.nn.Module, x=images, y=labels, trained=tuned.trained) -> torch.Tensor:
                    for parameter in trained:
                        parameter.grad = None
                    F.cross_entropy(model(x), y).backward()
                    return torch.cat([p.grad.flatten() for p in trained]).clone()

                row = {"DDP's gradient against the model's own": far(gradient(wrapped), gradient(tuned.classifier))}
                for way, model in (("without DDP", tuned.classifier), ("with DDP", wrapped)):
                    row[f"forward and backward {way}"] = b.ms(lambda m=model: gradient(m), calls=3)
                found[f"{mode} tf32, batch {b.sizes.small_batch} a process"] = row
                del tuned, wrapped
    os.environ["MASTER_PORT"] = os.environ["NEXT_PORT"]  # the other ranks might still find the first store
    with torchrun(), b.suite(b.pixels(64)):  # as the evaluation scripts join
        found["backend of evaluation"] = dist.get_backend()
        one = next(iter(b.direction.values())).clone()
        broadcast(one)
        line, run = Line(b.direction, (0.0, 0.5, 1.0)), b.run(device=b.device)
        shared = score_all(run, "standard", {TASK: (TASK, line)}, "val", "ranks")[TASK]
        found["score_all equals score"] = shared.accuracy == score(run, TASK, "val", line, False).accuracy


def compiled(b: Bench, found: Found) -> None:
    """torch.compile as --compile has it: seconds to compile, a step, graph breaks, and a ragged batch."""
    from torch._dynamo.utils import counters  # here: it takes seconds

    for mode, precision in (("linear", "tf32"), ("standard", "bf16"), ("standard", "tf32")):
        torch._dynamo.reset()
        counters.clear()
        row: Found = {}
        found[f"{mode} {precision}"] = row
        with b.suite(), matmul_precision(precision), b.peak() as peak:
            try:
                tuned = tuning(b, mode, precision, b.sizes.batch, compile="eager" if b.tiny else "inductor")
            except UsageError as error:
                row["refused"] = str(error)
                continue
            step = stepper(b, tuned, b.sizes.batch)
            row["compiling: s"] = round(b.once(step) + b.once(step), 1)
            row |= b.ms(step)
        row |= {"graph breaks": sum(counters["graph_break"].values())} | peak
        row["why"] = [text.strip().splitlines()[0][:110] for text in list(counters["graph_break"])[:3]]
        report(found)
    ragged = stepper(b, tuned, b.sizes.batch // 4 + 1)  # of the last, which takes longer than the first batch
    with matmul_precision(precision):
        row["a ragged batch: s"] = round(b.once(ragged), 1)
        row["ms after it"] = b.ms(step)["ms"]
    report(found)


SECTIONS: dict[str, tuple[Callable[[Bench, Found], None], int]] = {  # in order; the most seconds of each
    "ceilings": (ceilings, 20),
    "steps": (steps, 60),
    "agreement": (agreement, 60),
    "evaluation": (evaluation, 40),
    "sweep": (sweep, 35),
    "adaptation": (adaptation, 40),
    "ranks": (ranks, 60),
    "mini": (mini, 35),
    "large": (large, 50),
    "compiled": (compiled, 140),
    "loader": (loader, 60),
    "kernel": (kernel, 30),
    "saving": (saving, 15),
    "merging": (merging, 75),
}
CHILDREN = ("ranks", "compiled")  # which may hang, or change the process for good
LEAST = 8  # seconds that a section must have left to be begun


class Late(BaseException):  # which no handler of other errors takes for one
    """A section has come to its limit."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise Late in the main thread when the seconds are over."""

    def ring(*_: Any) -> None:
        raise Late(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


MARK = "FOUND "


def report(found: Found) -> None:
    """A child's findings so far; the last line counts, also that of a child which came to its limit."""
    print(MARK + json.dumps(found), flush=True)


def in_children(name: str, number: int, options: argparse.Namespace, folder: Path, limit: float, found: Found) -> None:
    """The section in `number` processes as torchrun would start them; findings are the first's."""
    command = [sys.executable, "-m", "benchmarks.accelerator", "--child", name, "--folder", str(folder)]
    command += ["--tiny"] if options.tiny else []
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        first, second = (str(free.getsockname()[1]) for free in (one, other))
    shared = os.environ | {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": first, "NEXT_PORT": second}
    with contextlib.ExitStack() as stack:
        files = [[stack.enter_context(tempfile.TemporaryFile("w+")) for _ in "oe"] for _ in range(number)]
        started = []
        for rank, (out, err) in enumerate(files):
            variables = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if name == "ranks" else None
            started.append(subprocess.Popen(command, stdout=out, stderr=err, cwd=ROOT, env=variables))
        until = time.time() + limit
        try:
            statuses = [process.wait(max(0.1, until - time.time())) for process in started]
        except subprocess.TimeoutExpired:
            statuses = []
        finally:
            for process in started:
                process.kill()
                process.wait()
        texts = []
        for pair in files:
            for file in pair:
                file.seek(0)
            texts.append([file.read() for file in pair])
    lines = [line for line in texts[0][0].splitlines() if line.startswith(MARK)]
    found |= json.loads(lines[-1].removeprefix(MARK)) if lines else {}
    if not statuses:
        found["stopped after s"] = round(limit)
    elif any(statuses):
        rank = next(i for i, status in enumerate(statuses) if status)
        say(texts[rank][1].strip()[-2000:])
        last = (texts[rank][1].strip().splitlines() or [""])[-1]
        found["error"] = f"exit {statuses[rank]} of rank {rank}: {last[:300]}"


def child(name: str, options: argparse.Namespace) -> None:
    found: Found = {}
    folder = options.folder
    if name == "ranks":  # what ranks write for themselves alone must not meet
        folder = folder / f"rank{os.environ['RANK']}"
        folder.mkdir(exist_ok=True)
    SECTIONS[name][0](Bench(options.tiny, folder, device_of(options)), found)
    report(found)


def device_of(options: argparse.Namespace) -> str:
    return "cuda" if torch.cuda.is_available() and not options.tiny else "cpu"


def machine(b: Bench) -> Found:
    about = measure.machine() | {"model": b.model, "open_clip": open_clip.__version__}
    if b.gpu:
        properties = torch.cuda.get_device_properties(0)
        about |= {"GPU": properties.name, "GPUs": torch.cuda.device_count()}
        about |= {"GB of its memory": round(properties.total_memory / 1e9, 1)}
    return about


def work(name: str, b: Bench, options: argparse.Namespace, left: float, found: Found) -> None:
    """One section, within what is left."""
    function, most = SECTIONS[name]
    limit = 120 if options.tiny else min(most, left)
    if name not in CHILDREN:
        with within(limit):
            function(b, found)
        return
    in_children(name, 1, options, b.folder, limit, found)
    devices = 2 if options.tiny else torch.cuda.device_count() if b.gpu else 1
    if name == "ranks" and devices > 1:
        found[f"{devices} processes"] = {}
        in_children(name, devices, options, b.folder, limit, found[f"{devices} processes"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a toy tower on the CPU, to try the program")
    parser.add_argument("--budget", type=float, default=345, help="seconds for everything")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections")
    parser.add_argument("--without", nargs="+", choices=SECTIONS, default=(), help="not these sections")
    parser.add_argument("--output", "--out", type=Path, help="also write the JSON here, after every section")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    torch.backends.cudnn.allow_tf32 = False  # PyTorch's default is True
    gc.freeze()  # what the imports made: `clear` is called often, and need not look at it
    if options.child:
        child(options.child, options)
        return
    with tempfile.TemporaryDirectory() as place:
        b = Bench(options.tiny, Path(place), device_of(options))
        sections: dict[str, Found] = {}
        seconds: dict[str, float] = {}
        record = {"machine": machine(b), "sections": sections, "seconds": seconds}
        say(f"ready: {record['machine']}")
        for name in SECTIONS:
            if (options.only and name not in options.only) or name in options.without:
                continue
            left, began = options.budget - (time.time() - BEGAN), time.time()
            found = sections[name] = {}
            if left < LEAST and not options.tiny:
                found["skipped"] = f"{left:.0f} s were left"
                continue
            say(name)
            try:
                work(name, b, options, left, found)
            except Late as late:
                found["stopped"] = str(late)
            except Exception as error:
                traceback.print_exc()
                found["error"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
            seconds[name] = round(time.time() - began, 1)
            say(f"{name} took {seconds[name]} s{': ' + found['error'] if 'error' in found else ''}")
            b.clear()
            seconds["all"] = round(time.time() - BEGAN, 1)
            if options.output:
                options.output.parent.mkdir(parents=True, exist_ok=True)
                options.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
