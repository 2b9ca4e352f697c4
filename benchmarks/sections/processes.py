"""Sections of `accelerator` in processes of their own: ranks, and torch.compile."""

import os
import statistics
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from benchmarks.sections.bench import TASK, Bench, Numbers, far, report
from benchmarks.sections.steps import stepper, tuning
from src.evaluation import Line, score, score_all
from src.runtime.distributed import broadcast, torchrun
from src.runtime.messages import UsageError
from src.runtime.precision import matmul_precision


def ranks(b: Bench, numbers: Numbers) -> None:
    """Under torchrun's variables: NCCL (gloo on a CPU), DDP around both classifiers, evaluation shared out."""
    began = time.perf_counter()
    with torchrun(b.device) as world:
        world.barrier()
        b.device = world.device
        numbers |= {"backend": dist.get_backend(), "processes": world.size}
        numbers["joining: s"] = round(time.perf_counter() - began, 2)
        numbers["any: one flag of all"] = [world.any(False), world.any(world.is_primary)]
        if world.size > 1:
            carried = torch.ones(b.sizes.broadcast // 4, device=b.device)
            seconds = statistics.median(b.rounds(lambda: dist.all_reduce(carried)))
            numbers["all_reduce GB/s"] = round(b.sizes.broadcast / seconds / 1e9, 2)
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
                numbers[f"{mode} tf32, batch {b.sizes.small_batch} a process"] = row
                del tuned, wrapped
    os.environ["MASTER_PORT"] = os.environ["NEXT_PORT"]  # the other ranks might still find the first store
    with torchrun(), b.suite(b.pixels(64)):  # as the evaluation scripts join
        numbers["backend of evaluation"] = dist.get_backend()
        one = next(iter(b.direction.values())).clone()
        broadcast(one)
        line, run = Line(b.direction, (0.0, 0.5, 1.0)), b.run(device=b.device)
        shared = score_all(run, "standard", {TASK: (TASK, line)}, "val", "ranks")[TASK]
        numbers["score_all equals score"] = shared.accuracy == score(run, TASK, "val", line, False).accuracy


def compiled(b: Bench, numbers: Numbers) -> None:
    """torch.compile as --compile has it: seconds to compile, a step, graph breaks, and a ragged batch."""
    from torch._dynamo.utils import counters  # here: it takes seconds

    for mode, precision in (("linear", "tf32"), ("standard", "bf16"), ("standard", "tf32")):
        torch._dynamo.reset()
        counters.clear()
        row: Numbers = {}
        numbers[f"{mode} {precision}"] = row
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
        report(numbers)
    ragged = stepper(b, tuned, b.sizes.batch // 4 + 1)  # of the last, which takes longer than the first batch
    with matmul_precision(precision):
        row["a ragged batch: s"] = round(b.once(ragged), 1)
        row["ms after it"] = b.ms(step)["ms"]
    report(numbers)
