"""Merging files into a file, as whole commands: merge_checkpoints.py beside mergekit-pytorch, where that is installed.

    python -m benchmarks merge_files --peer /path/to/venv/bin/mergekit-pytorch
    python -m benchmarks merge_files --scale 0.5 --tasks 8 --rounds 5 --peer mergekit-pytorch
    python -m benchmarks merge_files                              # ours alone: the peer is no dependency

Both commands read the same safetensors files of a ViT-B/32's shapes and write one; interpreter, imports, reading and
writing count. By turns over --rounds, on one thread; ratios are medians with quartiles. First the two merged files are
compared weight by weight: task arithmetic must agree. TIES is timed too, but is another method there: it trims tensor
by tensor, here the whole vector is trimmed as published; the share of weights that differ is told.

mergekit is found on the PATH, or by --peer. It can have an environment of its own (python -m venv; pip install
mergekit): how it is installed does not matter here.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file, save_file

from benchmarks import measure
from benchmarks.merge_memory import drawn
from src.runtime.paths import ROOT

PEER = "mergekit-pytorch"
ALPHA = 0.3
SAME = 1e-6  # the largest difference between two weights that are the same but for rounding
METHODS = {"sum": ("task_arithmetic", {}), "ties": ("ties", {"density": 0.2})}  # ours: mergekit's name and options


def ours(method: str, models: Sequence[Path], output: Path) -> list[str]:
    files = list(map(str, models))
    flags = [f"--method={method}", f"--alpha={ALPHA}", f"--output={output}", "--overwrite"]
    return [sys.executable, str(ROOT / "merge_checkpoints.py"), *files, *flags]


def peers(peer: str, method: str, models: Sequence[Path], folder: Path) -> list[str]:
    """The command, and its configuration in the folder, where it writes `model.safetensors` too."""
    start, *finetuned = map(str, models)
    name, options = METHODS[method]
    config = {
        "merge_method": name,
        "base_model": start,
        "dtype": "float32",
        "parameters": {"lambda": ALPHA, "normalize": method == "ties"},
        "models": [{"model": file, "parameters": {"weight": 1.0} | options} for file in finetuned],
    }
    file = folder / f"{method}.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return [peer, str(file), str(folder / f"peer_{method}")]


def largest_difference(one: Path, other: Path) -> tuple[float, float]:
    """Between two weights, and the share of weights that differ by more than SAME."""
    first, second = load_file(one), load_file(other)
    if first.keys() != second.keys():
        raise SystemExit(
            f"expected the tensors of one file in the other, found other names: {first.keys() ^ second.keys()}"
        )
    apart = [(first[name].double() - second[name].double()).abs() for name in first]
    total = sum(tensor.numel() for tensor in apart)
    differing = sum(int((tensor > SAME).sum()) for tensor in apart)
    return max(float(tensor.max()) for tensor in apart), differing / total


def main(argv: Sequence[str] | None = None) -> None:
    started = time.time()
    parser = measure.parser(__doc__)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--scale", type=float, default=0.5, help="of the widths of ViT-B/32")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", default=PEER, help="the command, or where it lies")
    parser.add_argument("--folder", type=Path, help="parent of the temporary folder of checkpoints")
    options = parser.parse_args(argv)
    peer = shutil.which(options.peer)
    record: dict[str, Any] = {"peer": PEER if peer else f"{PEER} is not installed"}
    if not peer:
        print(f"{options.peer}: not found, so that ours is measured alone; --peer says where it lies")
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        models = []
        for number, weights in enumerate(drawn(options.tasks, options.scale)):
            models.append(folder / f"model{number}.safetensors")
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, models[-1], {"format": "pt"})
            record["parameters"] = sum(tensor.numel() for tensor in weights.values())
        print(f"{options.tasks} models of {record['parameters'] / 1e6:.1f}M weights, α = {ALPHA}")
        for method in options.methods:
            output = folder / f"{method}.safetensors"
            commands = {"ours": ours(method, models, output)}
            if peer:
                commands[PEER] = peers(peer, method, models, folder)
            spent: dict[str, list[dict[str, float]]] = {way: [] for way in commands}
            for _ in range(options.rounds):
                for way, command in commands.items():
                    spent[way].append(measure.spent(command, folder))
            print(method)
            record[method] = measure.costs_compared(spent)
            if peer:
                (merged,) = (folder / f"peer_{method}").glob("*.safetensors")
                most, share = largest_difference(output, merged)
                record[method]["largest difference"], record[method]["differing weights"] = most, share
                print(f"  largest difference of a weight {most:.1e}; {100 * share:.2f} % of the weights differ")
                if method == "sum" and most > SAME:
                    raise SystemExit("task arithmetic should agree: no ratio counts")
    measure.write(options.output, record, {n: v for n, v in vars(options).items() if n != "peer"}, started)


if __name__ == "__main__":
    main()
