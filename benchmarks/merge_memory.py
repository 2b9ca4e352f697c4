"""Time and peak memory of merging, tensor by tensor from disk and the published way, on synthetic checkpoints.

    python benchmarks/merge_memory.py                              # 8 tasks of ViT-B/32's size: 5 GB of disk
    python benchmarks/merge_memory.py --tasks 20 --ways streaming  # 10 GB of disk
    python benchmarks/merge_memory.py --tasks 3 --scale 0.1        # a minute

The published way is written here from its description: all state dicts are loaded, flattened and stacked into one
(tasks, weights) matrix, on which every step works. Both ways read the same files, in the published scope (all of the
encoder's tensors) unless told otherwise; each measurement is a process of its own, and the results must agree. Memory
is the process's peak resident set, interpreter and libraries included.

`sum`; `ties`, k = 20, disjoint mean; `tall_mask`, the masks of every task at five λ; `consensus` of the masks of
λ = 0.4, kept on disk as bits, k = 2.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src import checkpoints  # noqa: E402
from src.merging.base import Problem  # noqa: E402
from src.merging.consensus import consensus_mask  # noqa: E402
from src.merging.masked import load_masks, save_masks  # noqa: E402
from src.merging.tall_mask import LAMBDAS, tall_masks  # noqa: E402
from src.merging.task_arithmetic import multi_task_vector  # noqa: E402
from src.merging.ties import ties_vector  # noqa: E402
from src.runtime import results  # noqa: E402

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


def prepare(folder: Path, tasks: int, scale: float, scope: str) -> None:
    """Write θ0, θ_t with |τ_t| of a twentieth of |θ0| (0 on the text side), and the TALL masks."""
    generator = torch.Generator().manual_seed(0)
    start = {name: torch.randn(shape, generator=generator) for name, shape in shapes(scale).items()}
    checkpoints.save(folder / "theta0.safetensors", start, {"model": "synthetic"})
    for task in tqdm(range(tasks), desc="checkpoints"):
        weights = {
            name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator) if "visual" in name else tensor
            for name, tensor in start.items()
        }
        checkpoints.save(folder / f"task{task:02d}.safetensors", weights, {"model": "synthetic"})
    problem = read(folder, scope)
    total = multi_task_vector(problem)
    masks = {task: tall_masks(problem, task, total, [KEPT])[0] for task in problem.tasks}
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


# ---- tensor by tensor


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


# ---- the published way


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


# ---- measuring


def peak_memory() -> int:
    """Peak resident bytes of this process since it was started (which getrusage does not know after a fork)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def work(way: Callable[[str, Path, str], Answer], method: str, folder: Path, scope: str) -> dict:
    libraries = peak_memory()
    started = time.perf_counter()
    answer = way(method, folder, scope)
    return dict(seconds=time.perf_counter() - started, peak=peak_memory(), libraries=libraries, answer=answer)


def measure(way: str, method: str, folder: Path, args: argparse.Namespace) -> dict:
    command = [sys.executable, __file__, "--work", way, method, str(folder), "--scope", args.scope]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{way} {method}: the process ended with {done.returncode} (-9: it did not fit into memory)")
    return json.loads(done.stdout)


def compare(measured: dict[str, dict]) -> None:
    """Print a row for each way, and stop where two ways give different answers."""
    for way, one in measured.items():
        print(f"  {way:10} {one['seconds']:8.1f} s  {one['peak'] / 1e9:6.2f} GB")
    if len(measured) == 2:
        ours, theirs = (measured[way] for way in WAYS)
        print(f"  {'ratio':10} {ours['seconds'] / theirs['seconds']:8.2f}    {ours['peak'] / theirs['peak']:6.2f}")
        np.testing.assert_allclose(ours["answer"], theirs["answer"], rtol=1e-5)


def main() -> None:
    started = time.time()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--scale", type=float, default=1.0, help="of the widths of ViT-B/32")
    parser.add_argument("--scope", choices=("published", "visual"), default="published")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--folder", type=Path, help="parent of the temporary folder of checkpoints")
    parser.add_argument("--output", type=Path, help="also write the measurements to this .json")
    parser.add_argument("--work", nargs=3, metavar=("WAY", "METHOD", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        way, method, folder = args.work
        print(json.dumps(work({"streaming": streaming, "published": published}[way], method, Path(folder), args.scope)))
        return
    record = {"tasks": args.tasks, "scale": args.scale, "scope": args.scope, "machine": platform.processor()}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        prepare(Path(folder), args.tasks, args.scale, args.scope)
        record["parameters"] = read(Path(folder), args.scope).num_parameters
        print(f"{args.tasks} tasks, {record['parameters'] / 1e6:.1f}M weights, scope {args.scope}")
        for method in args.methods:
            print(method)
            record[method] = {way: measure(way, method, Path(folder), args) for way in args.ways}
            compare(record[method])
    if args.output:
        results.write(args.output, record, vars(args), started)


if __name__ == "__main__":
    main()
