"""Time and peak memory of a step of test-time adaptation beside the published ways of taking it.

    python -m benchmarks adaptation_step                            # a tower of ViT-Mini's size, 8 tasks
    python -m benchmarks adaptation_step --width 768 --layers 12 --side 224 --patch 32 --features 512   # ViT-B/32
    python -m benchmarks adaptation_step --tasks 20 --ways ours --device cuda

`adamerging`: layer-wise, one batch per task; `concrete`: task arithmetic, the gradient in the mask's logits. Every way
takes the same step from the same task vectors, and must find the same gradient:

ours: θ as a leaf, all tasks' batches in one pass, then back through the merge tensor by tensor;
ours, by task: the same with a pass for each task's batch, which keeps the activations of one task at a time;
one graph: the merge is part of autograd's graph, masked copies of every τ_t included, and every task's activations are
    kept until one backward at the end (FusionBench's way);
per batch: the merge is made anew for each task's batch, in one graph (AdaMerging's own way).

Each measurement is a process of its own, by turns over --repeats; ratios are medians over repeats, with quartiles. Time
is the median CPU time of a step (on a GPU: wall time); memory is what the task vectors and the steps add to the
process's peak (on a GPU: to the allocator's).
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from open_clip.transformer import VisionTransformer
from torch import nn
from torch.func import functional_call

from benchmarks import measure
from src.merging.adamerging import AdaMerging
from src.merging.adaptation import MergedModel, entropy
from src.merging.base import Problem, Unlabelled
from src.merging.concrete_mask import ConcreteMask
from src.runtime.seeds import event_seed

WAYS = ("ours", "ours, by task", "one graph", "per batch")
METHODS = {"adamerging": WAYS, "concrete": WAYS[:3]}


class Drawn(Mapping):
    """Weights θ0 + noise that are drawn when they are read, so that only what a way keeps is in memory."""

    def __init__(self, start: Mapping[str, torch.Tensor], task: int):
        self.start, self.task = start, task

    def __getitem__(self, name: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(event_seed(self.task, name))
        return self.start[name] + 0.02 * torch.randn(self.start[name].shape, generator=generator)

    def __iter__(self):
        return iter(self.start)

    def __len__(self) -> int:
        return len(self.start)


class Tower(nn.Module):
    def __init__(self, args: argparse.Namespace):
        super().__init__()
        self.model = nn.Module()
        size = dict(image_size=args.side, patch_size=args.patch, width=args.width, layers=args.layers)
        self.model.visual = VisionTransformer(**size, heads=args.width // 64, mlp_ratio=4.0, output_dim=args.features)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.visual(images)


def synthetic(args: argparse.Namespace) -> Problem:
    torch.manual_seed(0)
    tower = Tower(args).eval().requires_grad_(False)
    start = dict(tower.state_dict())
    tasks = [f"task{number}" for number in range(args.tasks)]
    tower = tower.to(args.device)
    heads = {task: nn.Linear(args.features, 10).requires_grad_(False) for task in tasks}

    def batch(task: str, split: str, batch_size: int, number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(event_seed(task, number))
        return torch.randn(batch_size, 3, args.side, args.side, generator=generator).to(args.device)

    finetuned = {task: Drawn(start, number) for number, task in enumerate(tasks)}
    return Problem(start, finetuned, images=Unlabelled(lambda: tower, batch, heads.__getitem__))


class OneGraph(MergedModel):
    """The same objective, by one backward through everything. again: the merge is made for each batch."""

    again = False

    def backward(self, lam, numbers, mask):
        masks = {name: mask(name) for name in self.taus}
        theta, loss = None, 0.0
        for task in self.problem.tasks:
            if theta is None or self.again:
                theta = dict(self.start)
                for row in range(len(lam)):
                    for name, tau in self.taus.items():
                        column = lam[row, self.layer[name] if lam.shape[1] > 1 else 0]
                        moved = tau[row] if masks[name] is None else masks[name] * tau[row]
                        theta[name] = theta[name] + column * moved
            features = functional_call(self.encoder, theta, (self.batch(task, numbers[0]),))
            loss = loss + entropy(self.heads[task](features))
        loss.backward()


class PerBatch(OneGraph):
    again = True


def work(way: str, method: str, args: argparse.Namespace) -> dict:
    """One measurement, in a process of its own."""
    torch.set_num_threads(args.threads)
    problem = synthetic(args)
    kind = {"one graph": OneGraph, "per batch": PerBatch}.get(way, MergedModel)
    tasks_at_once = 1 if way == "ours, by task" else args.tasks
    before = peak(args.device)
    model = kind(problem, AdaMerging(batch_size=args.batch_size, pass_size=args.batch_size * tasks_at_once))
    lam = model.coefficients("layer" if method == "adamerging" else "task")
    logits = {name: torch.zeros(shape, device=args.device) for name, shape in problem.shapes.items()}
    mask = ConcreteMask(logits if method == "concrete" else {}, 0.5, seed=0)
    learned = [lam] if method == "adamerging" else list(logits.values())
    for tensor in learned:
        tensor.requires_grad_()
    adam = torch.optim.Adam(learned, 1e-3)
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    seconds, first = [], None
    for step in range(args.rounds + 1):
        started = clock()
        adam.zero_grad()
        model.backward(lam, [step], mask.sample(step))
        first = first or [float(tensor.grad.double().norm()) for tensor in learned]
        adam.step()
        if args.device != "cpu":
            torch.cuda.synchronize()
        seconds.append(clock() - started)
    return dict(seconds=statistics.median(seconds[1:]), bytes=peak(args.device) - before, answer=first)


def peak(device: str) -> int:
    """Peak bytes of this process so far: of the allocator on a GPU, else resident."""
    return measure.peak_memory() if device == "cpu" else torch.cuda.max_memory_allocated()


def main(argv: Sequence[str] | None = None) -> None:
    started = time.time()
    parser = measure.parser(__doc__)
    sizes = dict(tasks=8, width=128, layers=4, side=32, patch=8, features=128, batch_size=16, rounds=5, threads=1)
    for name, value in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--repeats", type=int, default=3, help="processes of each way")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--work", nargs=2, metavar=("WAY", "METHOD"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.work:
        print(json.dumps(work(*options.work, options)))
        return
    of_child = ("device", *sizes)
    shared = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in of_child]
    record: dict[str, dict[str, dict]] = {}
    for method in options.methods:
        print(f"{method}: {options.tasks} tasks, batches of {options.batch_size}")
        ways = [way for way in METHODS[method] if way in options.ways]
        measured: dict[str, list[dict]] = {way: [] for way in ways}
        for _ in range(options.repeats):
            for way in ways:
                costs = measure.in_process("benchmarks.adaptation_step", [*shared, "--work", way, method], way)
                base = measured[ways[0]][0] if measured[ways[0]] else costs
                np.testing.assert_allclose(costs["answer"], base["answer"], rtol=1e-3, atol=1e-6)
                measured[way].append(costs)
        record[method] = measure.costs_compared(measured)
    measure.write(options.output, record, vars(options), started)


if __name__ == "__main__":
    main()
