"""Time and peak memory of merging, tensor by tensor from disk and the published way, on synthetic checkpoints.

    python -m benchmarks merge_memory                              # 8 tasks of ViT-B/32's size: 5 GB of disk
    python -m benchmarks merge_memory --tasks 20 --ways streaming  # 10 GB of disk
    python -m benchmarks merge_memory --tasks 3 --scale 0.1        # a minute

The published way is written here from its description: all state dicts are loaded, flattened and stacked into one
(tasks, weights) matrix, on which every step works. Both ways read the same files, in the published scope (all of the
encoder's tensors) unless told otherwise; each measurement is a process of its own, by turns over --rounds, and the
results must agree. Time is CPU time without imports; memory is the process's peak resident set, interpreter and
libraries included. Ratios are medians over rounds, with quartiles.

`sum`; `ties`, k = 20, disjoint mean; `tall_mask`, the masks of every task at five λ; `consensus` of the masks of
λ = 0.4, kept on disk as bits, k = 2.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import measure
from src import checkpoints
from src.checkpoints import PackedMask
from src.merging.base import Problem
from src.merging.consensus import consensus_mask
from src.merging.masked import load_masks, save_masks
from src.merging.tall_mask import LAMBDAS, tall_masks
from src.merging.task_arithmetic import multi_task_vector
from src.merging.ties import ties_vector

METHODS = ("sum", "ties", "tall_mask", "consensus")
WAYS = ("streaming", "published")
KEPT = LAMBDAS[2]  # λ of the masks on disk
Answer = tuple[float, ...]  # what both ways must agree on


def shapes(scale: float) -> dict[str, tuple[int, ...]]:
    """The tensors of ViT-B/32's image encoder with its frozen text-side leftovers; widths times `scale`."""
    width, features = (max(1, round(size * scale / 64)) * 64 for size in (768, 512))
    named = {"class_embedding": (width,), "positional_embedding": (50, width), "proj": (width, features)}
    named |= {"conv1.weight": (width, 3, 32, 32)}
    norms = ["ln_pre", "ln_post"]
    for block in (f"transformer.resblocks.{i}" for i in range(12)):
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        linear = {"attn.in_proj_": (3, 1), "attn.out_proj.": (1, 1), "mlp.c_fc.": (4, 1), "mlp.c_proj.": (1, 4)}
        for layer, (rows, columns) in linear.items():
            named |= {
                f"{block}.{layer}weight": (rows * width, columns * width),
                f"{block}.{layer}bias": (rows * width,),
            }
    named |= {f"{norm}.{kind}": (width,) for norm in norms for kind in ("weight", "bias")}
    text = {"positional_embedding": (77, features), "token_embedding.weight": (49408, features)}
    text |= {"ln_final.weight": (features,), "ln_final.bias": (features,), "text_projection": (features, features)}
    text |= {"logit_scale": ()}
    return {f"model.visual.{k}": s for k, s in named.items()} | {f"model.{k}": s for k, s in text.items()}


def drawn(tasks: int, scale: float) -> Iterator[dict[str, torch.Tensor]]:
    """θ0, and θ_t with |τ_t| of a twentieth of |θ0| (0 on the text side) of each task."""
    generator = torch.Generator().manual_seed(0)
    start = {name: torch.randn(shape, generator=generator) for name, shape in shapes(scale).items()}
    yield start
    for _ in range(tasks):
        yield {
            name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator) if "visual" in name else tensor
            for name, tensor in start.items()
        }


def prepare(folder: Path, tasks: int, scale: float, scope: str) -> None:
    """Write θ0, θ_t and the TALL masks."""
    models = drawn(tasks, scale)
    checkpoints.save(folder / "theta0.safetensors", next(models), {"model": "synthetic"})
    for task, weights in enumerate(tqdm(models, desc="checkpoints", total=tasks)):
        checkpoints.save(folder / f"task{task:02d}.safetensors", weights, {"model": "synthetic"})
    problem = read(folder, scope)
    total = multi_task_vector(problem)
    masks = {task: PackedMask.of(tall_masks(problem, task, total, [KEPT])[0].bits) for task in problem.tasks}
    save_masks(problem, "masks", masks)


def read(folder: Path, scope: str) -> Problem:
    files = sorted(folder.glob("task*.safetensors"))
    return Problem(
        checkpoints.Checkpoint(folder / "theta0.safetensors"),
        {file.stem: checkpoints.Checkpoint(file) for file in files},
        scope=scope,
        model="synthetic",
        mask_path=lambda name: folder / f"{name}.safetensors",
    )


def norm(vector) -> Answer:
    return (vector.norm(),)


def streaming(method: str, folder: Path, scope: str) -> Answer:
    problem = read(folder, scope)
    if method == "ties":
        return norm(ties_vector(problem, k=20, reduce="mean"))
    if method == "consensus":
        mask = consensus_mask(load_masks(problem, "masks", "--")[0], k=2)  # the masks are gone when τ_MTL is made
        return norm(mask * multi_task_vector(problem))
    total = multi_task_vector(problem)
    if method == "tall_mask":
        counts = [[mask.count() for mask in tall_masks(problem, t, total, LAMBDAS)] for t in problem.tasks]
        return tuple(np.sum(counts, axis=0).tolist())
    return norm(total)


def flatten(weights, scope: str) -> torch.Tensor:
    return torch.cat([weights[k].flatten() for k in sorted(weights) if scope == "published" or "visual" in k])


def stack(folder: Path, scope: str) -> tuple[torch.Tensor, torch.Tensor]:
    """θ_t, (tasks, weights), and θ0, (weights,)."""
    finetuned = [checkpoints.load(file) for file in sorted(folder.glob("task*.safetensors"))]
    start = checkpoints.load(folder / "theta0.safetensors")
    return torch.vstack([flatten(weights, scope) for weights in finetuned]), flatten(start, scope)


def stacked_ties(tau: torch.Tensor) -> torch.Tensor:
    tau = tau.clone()
    rank = tau.shape[1] - int(tau.shape[1] * 0.2)
    tau = tau * (tau.abs() >= tau.abs().kthvalue(rank, dim=1, keepdim=True).values)
    sign = tau.sum(0).sign()
    sign[sign == 0] = sign.sum().sign()
    chosen = tau * torch.where(sign > 0, tau > 0, tau < 0)
    return chosen.sum(0) / (chosen != 0).sum(0).float().clamp(min=1)


def published(method: str, folder: Path, scope: str) -> Answer:
    theta, theta0 = stack(folder, scope)
    tau = theta - theta0
    if method == "ties":
        return (float(stacked_ties(tau).double().norm()),)
    total = tau.sum(0)
    if method == "tall_mask":
        masks = {lam: (theta0 - theta).abs() > ((theta0 + total) - theta).abs() * lam for lam in LAMBDAS}
        return tuple(int(mask.sum()) for mask in masks.values())
    if method == "consensus":
        masks = checkpoints.load_masks(folder / "masks.safetensors")
        counts = torch.zeros_like(total)
        for mask in [flatten(mask, scope) for mask in masks.values()]:
            counts = counts + mask.float()
        total = total * (counts >= 2)
    return (float(total.double().norm()),)


def work(way: Callable[[str, Path, str], Answer], method: str, folder: Path, scope: str) -> dict:
    libraries = measure.peak_memory()
    began = time.process_time()
    answer = way(method, folder, scope)
    seconds = time.process_time() - began
    return dict(seconds=seconds, bytes=measure.peak_memory(), libraries=libraries, answer=answer)


def in_turn(ways: Sequence[str], method: str, folder: Path, scope: str, rounds: int) -> dict[str, list[dict]]:
    """Measurements of each way, which must come to the same answers."""
    costs: dict[str, list[dict]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            arguments = ["--work", way, method, str(folder), "--scope", scope]
            costs[way].append(measure.in_process("benchmarks.merge_memory", arguments, f"{way} {method}"))
            np.testing.assert_allclose(costs[way][-1]["answer"], costs[ways[0]][0]["answer"], rtol=1e-5)
    return costs


def main(argv: Sequence[str] | None = None) -> None:
    started = time.time()
    parser = measure.parser(__doc__)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--scale", type=float, default=1.0, help="of the widths of ViT-B/32")
    parser.add_argument("--scope", choices=("published", "visual"), default="published")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="parent of the temporary folder of checkpoints")
    parser.add_argument("--work", nargs=3, metavar=("WAY", "METHOD", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.work:
        way, method, folder = options.work
        torch.set_num_threads(1)
        function = {"streaming": streaming, "published": published}[way]
        print(json.dumps(work(function, method, Path(folder), options.scope)))
        return
    record: dict = {}
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        prepare(Path(folder), options.tasks, options.scale, options.scope)
        record["parameters"] = read(Path(folder), options.scope).num_parameters
        print(f"{options.tasks} tasks, {record['parameters'] / 1e6:.1f}M weights, scope {options.scope}")
        for method in options.methods:
            print(method)
            measured = in_turn(options.ways, method, Path(folder), options.scope, options.rounds)
            record[method] = measure.costs_compared(measured)
    measure.write(options.output, record, vars(options), started)


if __name__ == "__main__":
    main()
