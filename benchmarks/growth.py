"""How time and memory grow with tasks, coefficients, images and width, and the slopes between logarithms.

    python -m benchmarks growth
    python -m benchmarks growth --works merging --scale 0.5

A slope p says cost ~ size^p: 1 is proportional, 0 does not grow. `merging`: CPU time and memory above the libraries',
by tasks, on synthetic checkpoints on disk, each a process of its own. `coefficients`: the search on one task's
validation images, by its coefficients. `images`: an evaluation, by images. `width`: a training step of a tower of four
layers, by its width; its weights grow with the square.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer

from benchmarks import measure
from benchmarks.coefficient_sweep import SPLIT, TASK, random_direction, swept
from benchmarks.linear_step import Stepper
from benchmarks.merge_memory import METHODS, in_turn, prepare
from src import store
from src.args import base_parser, parse
from src.datasets import loading
from src.datasets.base import Pixels
from src.linearize import LinearizedModel
from src.modeling import ClassificationHead
from src.run import Run

Grown = dict[str, Any]  # sizes, costs by size, slopes


def grown(sizes: Sequence[int], costs: dict[str, list[float]]) -> Grown:
    """Told, and recorded."""
    slopes = {name: measure.slope(sizes, values) for name, values in costs.items()}
    for name, values in costs.items():
        row = ", ".join(f"{size}: {value:.3g}" for size, value in zip(sizes, values))
        print(f"  {name}: {row}; slope {slopes[name]:.2f}", flush=True)
    return {"sizes": list(sizes), "costs": costs, "slopes": slopes}


def merging(run: Run, options: dict[str, Any]) -> Grown:
    """Of each method: CPU seconds, and bytes above those of the libraries."""
    costs: dict[str, list[float]] = {}
    for tasks in options["tasks_of"]:
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder), tasks, options["scale"], "visual")
            for method in METHODS:
                (cost,) = in_turn(["streaming"], method, Path(folder), "visual", 1)["streaming"]
                costs.setdefault(f"{method}: s", []).append(cost["seconds"])
                above = (cost["bytes"] - cost["libraries"]) / 1e6
                costs.setdefault(f"{method}: MB", []).append(max(above, 0.1))
    return grown(options["tasks_of"], costs)


def seconds(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    return {name: sorted(of_way)[rounds // 2] for name, of_way in measure.by_turns(ways, rounds, warm=1).items()}


def coefficients(run: Run, options: dict[str, Any]) -> Grown:
    direction, sizes = random_direction(store.encoder(run)), options["coefficients"]
    costs: dict[str, list[float]] = {}
    for kind, tangent in (("standard", False), ("linear, by one jvp", True)):
        ways = {
            str(size): partial(
                swept, run, direction, torch.linspace(0, 1, size).tolist() if size > 1 else [1.0], tangent
            )
            for size in sizes
        }
        costs[f"{kind}: s"] = list(seconds(ways, options["rounds"]).values())
    return grown(sizes, costs)


def images(run: Run, options: dict[str, Any]) -> Grown:
    encoder = store.encoder(run)
    direction, sizes = random_direction(encoder), options["images"]
    every = loading.evaluation_pixels(run, TASK, SPLIT, encoder.image_size)
    costs: dict[str, list[float]] = {}
    for kind, tangent in (("standard", False), ("linear", True)):
        costs[f"{kind}: s"] = []
        for size in sizes:
            chosen = torch.arange(size).numpy() % len(every)
            some = Pixels(every.pixels[chosen], every.labels[chosen])
            with mock.patch.object(loading, "evaluation_pixels", lambda *_, some=some: some):
                way = {"": partial(swept, run, direction, [1.0], tangent)}
                costs[f"{kind}: s"] += seconds(way, options["rounds"]).values()
    return grown(sizes, costs)


class Features(torch.nn.Module):
    """A vision transformer of four layers on 17 tokens."""

    def __init__(self, width: int):
        super().__init__()
        size = dict(image_size=32, patch_size=8, width=width, layers=4, heads=width // 32, mlp_ratio=4.0)
        self.visual = VisionTransformer(**size, output_dim=width)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.visual(batch)


def width(run: Run, options: dict[str, Any]) -> Grown:
    costs: dict[str, list[float]] = {"standard step: s": [], "linear step: s": []}
    labels = torch.arange(options["batch_size"]) % 10
    batch = torch.randn(options["batch_size"], 3, 32, 32)
    for size in options["widths"]:
        head = ClassificationHead(F.normalize(torch.randn(10, size), dim=-1)).requires_grad_(False)
        ways = {
            "standard step: s": Stepper(Features(size).eval(), head),
            "linear step: s": Stepper(LinearizedModel(Features(size).eval()), head),
        }
        works = {name: partial(way, batch, labels) for name, way in ways.items()}
        for name, value in seconds(works, options["rounds"]).items():
            costs[name].append(value)
    return grown(options["widths"], costs)


WORKS = {"merging": merging, "coefficients": coefficients, "images": images, "width": width}


def main(argv: Sequence[str] | None = None) -> None:
    started = time.time()
    parser = base_parser(__doc__, modes=None)
    measure.add_output(parser)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32, help="of the steps by width")
    parser.add_argument("--scale", type=float, default=0.25, help="of the widths of ViT-B/32, for merging")
    for name, sizes in (
        ("tasks-of", (2, 5, 10, 20)),
        ("coefficients", (1, 5, 11, 21, 41)),
        ("images", (125, 250, 500, 1000)),
        ("widths", (64, 128, 256, 512)),
    ):
        parser.add_argument(f"--{name}", nargs="+", type=int, default=sizes)
    run, options = parse(parser, argv)
    torch.set_num_threads(options["threads"])
    record = {}
    for name in options["works"]:
        print(f"by {'tasks, ' if name == 'merging' else ''}{name}")
        record[name] = WORKS[name](run, options)
    measure.write(options["output"], record, options, started)


if __name__ == "__main__":
    main()
