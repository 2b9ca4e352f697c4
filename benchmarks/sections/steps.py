"""Sections of `accelerator`: rates of the device, steps of fine-tuning, and what feeds them."""

import contextlib
import io
import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import count, repeat
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.func import functional_call

from benchmarks.image_cache import photographs
from benchmarks.sections.bench import Bench, Numbers, note
from src import checkpoints, training
from src.evaluation import Line, score
from src.finetuning.batches import Batches
from src.finetuning.settings import Training
from src.linearize import LinearizedModel
from src.modeling import ClassificationHead
from src.runtime.distributed import World, cores
from src.runtime.precision import matmul_precision
from src.training import FineTuning, finetune


def ceilings(b: Bench, numbers: Numbers) -> None:
    """Rates that the other numbers are held against: matrix products, a copy on the device, copies to it."""
    n, rounds = b.sizes.matrix, dict(blocks=3, calls=4, warm=2)
    for name, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        one, two = (torch.randn(n, n, device=b.device, dtype=dtype) for _ in range(2))
        with matmul_precision(name):
            seconds = statistics.median(b.rounds(lambda one=one, two=two: one @ two, **rounds))
        note(numbers, f"{name} TFLOP/s", round(2 * n**3 / seconds / 1e12, 2))
    source = torch.ones(b.sizes.copied, dtype=torch.uint8, device=b.device)
    target = torch.empty_like(source)
    seconds = statistics.median(b.rounds(lambda: target.copy_(source), **rounds))
    note(numbers, "device copy GB/s (read + written)", round(2 * len(source) / seconds / 1e9))
    values = b.sizes.batch * 3 * 224 * 224
    for name, dtype in (("float", torch.float32), ("uint8", torch.uint8)):
        batch = torch.ones(values, dtype=dtype)
        note(numbers, f"{name} batch to the device, pageable", b.ms(lambda t=batch: t.to(b.device), **rounds))
        if b.gpu:
            pinned = batch.pin_memory()
            note(numbers, f"{name} batch to the device, pinned", b.ms(lambda t=pinned: t.to(b.device), **rounds))


def tuning(b: Bench, mode: str, precision: str, batch: int, device: str | None = None, **flags: Any) -> FineTuning:
    run = b.run(device)
    asked = dict(precision=precision, batch_size=batch, steps=10_000, checkpoint_every=0, workers=0, lr=1e-5)
    return FineTuning(run, b.task, Training.of(run, mode, **asked | flags), World(device=run.device))


def stepper(b: Bench, tuned: FineTuning, batch: int) -> Callable[[], Any]:
    """The suite's own step on a batch that is on the device already."""
    images, labels = b.images(batch), torch.arange(batch, device=b.device) % 10
    device = tuned.world.device
    stream, numbers = repeat((images.to(device), labels.to(device), batch)), count()
    return lambda: tuned.step(next(numbers), stream)


def plainly(tuned: FineTuning) -> FineTuning:
    """f_lin by torch.func.jvp and backward through it."""
    assert isinstance(tuned.encoder, LinearizedModel)
    tuned.encoder.fused = False
    return tuned


def steps(b: Bench, numbers: Numbers) -> None:
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
            note(
                numbers,
                f"{mode} {precision}, batch {batch}",
                row | {"images/s": round(1000 * batch / row["ms"])} | peak,
            )
    for precision in ("tf32", "fp32"):
        standard, linear, plain = (numbers[f"{m} {precision}, batch {b.sizes.batch}"]["ms"] for m, _, _ in plan[:3])
        numbers[f"linear / standard, {precision}"] = round(linear / standard, 3)
        numbers[f"plain / linear, {precision}"] = round(plain / linear, 3)


def mini(b: Bench, numbers: Numbers) -> None:
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
                    note(numbers, f"{name}: {mode} step, fp32", own.ms(work, calls=3 if b.tiny else 20, warm=3))
                    if own.gpu:
                        with matmul_precision("tf32"):
                            work = stepper(own, tuning(own, mode, "tf32", 32), 32)
                            note(numbers, f"{name}: {mode} step, tf32", own.ms(work, calls=20, warm=3))
                whole = finetune_rate(own, "standard", examples, steps=3 if b.tiny else 60)
                note(numbers, f"{name}: finetune(), standard, steps/s", whole["steps/s"])
                coefficients = tuple(float(a) for a in np.linspace(0, 1, b.sizes.coefficients))
                for line, tangent in (((1.0,), False), (coefficients, False), (coefficients, True)):
                    work = partial(score, own.run(), "signs", "val", Line(own.direction, line), tangent)
                    row = own.ms(work, blocks=2, calls=1)
                    kind = "linear" if tangent else "standard"
                    note(numbers, f"{name}: {kind}, {len(line)} coefficients, {len(examples)} images", row)
        finally:
            torch.set_num_threads(threads)


def saving(b: Bench, numbers: Numbers) -> None:
    """A training state as finetune() keeps it: seconds to write and to read."""
    with b.suite():
        tuned = tuning(b, "standard", "fp32", b.sizes.small_batch)
        stepper(b, tuned, b.sizes.small_batch)()
        tuned.state.parent.mkdir(parents=True, exist_ok=True)
        note(numbers, "writing: s", [round(b.once(lambda: tuned._save(0)), 2) for _ in range(2)])
        numbers["GB"] = round(tuned.state.stat().st_size / 1e9, 2)
        read = b.once(lambda: checkpoints.load(tuned.state, kind="training state"))
        note(numbers, "reading: s", round(read, 2))
        tuned.state.unlink()


def finetune_rate(b: Bench, mode: str, examples: Any, steps: int | None = None, **flags: Any) -> Numbers:
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


def loader(b: Bench, numbers: Numbers) -> None:
    """Decoding and augmentation of training images by --workers, and what finetune() makes of it from end to end."""
    folder, number = b.folder / "photos", cores()
    folder.mkdir()
    files = photographs(folder, b.sizes.photos, b.sizes.photo)
    numbers["cores"] = number
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
            note(numbers, f"{workers} workers", {"images/s": rate, "first batch: s": round(first, 2)})
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
            note(numbers, f"finetune(): {name}", finetune_rate(b, mode, examples, **flags))


def large(b: Bench, numbers: Numbers) -> None:
    """ViT-L-14: fine-tuning in both modes, and one pass of adaptation by the number of images, with their memory."""
    own = Bench(b.tiny, b.folder, b.device, b.sizes.large)
    head = ClassificationHead(torch.randn(10, own.frozen.model.visual.output_dim)).requires_grad_(False)
    with own.suite(), mock.patch.object(training, "get_classification_head", lambda *_: head):
        for mode in ("standard", "linear"):
            with matmul_precision("tf32"), own.peak() as peak:
                tuned = tuning(own, mode, "tf32", own.sizes.large_batch)
                row = own.ms(stepper(own, tuned, own.sizes.large_batch), blocks=3, calls=1)
                del tuned
            note(numbers, f"{mode} tf32, batch {own.sizes.large_batch}", row | peak)
    named = {n: p for n, p in own.frozen.named_parameters() if n.startswith(checkpoints.VISUAL)}
    for images in own.sizes.large_passes:
        name = f"forward and backward over {images} images, tf32"
        try:
            with matmul_precision("tf32"), own.peak() as peak:
                theta = {n: p.clone().requires_grad_() for n, p in named.items()}
                work = lambda t=theta, n=images: functional_call(own.frozen, t, (own.images(n),)).square().mean()  # noqa: E731
                seconds = own.once(lambda w=work: w().backward())
                del theta, work
            note(numbers, name, {"s": round(seconds, 2)} | peak)
        except torch.OutOfMemoryError as error:
            note(numbers, name, f"out of memory: {str(error)[:120]}")
