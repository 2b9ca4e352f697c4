"""Merge fine-tuned encoders by any method of src/merging and evaluate the result.

    python main.py model=ViT-B-32 method=sum
    python main.py model=ViT-B-32 method=ties method.k=20
    python main.py model=ViT-B-32 method=tall_mask method.use_ties=True
    python main.py model=ViT-B-32 method=tall_mask method.load_mask=True
    python main.py model=ViT-B-32 method=consensus method.prun_thre_k=2
    python main.py --multirun method=sum,ties,tall_mask,consensus finetuning_mode=standard,linear
    python main.py DATASETS=[land,signs] method=ties output=merged.safetensors

Everything under `method` is the method's own; the other keys are the flags of the other scripts, and those of
config/config.yaml. Validation chooses the setting, and test is read once. Writes
merging/<tasks>/<mode>-<scope>/<method and its options>.json. Needs the single-task results of the mode and of `none`.
"""

import re
import time
import zlib
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from src import checkpoints, data, results, store
from src.args import EVALUATION_MODES, base_parser, complete
from src.datasets import registry
from src.evaluation import evaluate_merge
from src.heads import get_classification_head
from src.merging.base import Merge, Method, Problem, load_methods
from src.paths import Paths


def run(cfg: DictConfig) -> None:
    started = time.time()
    args = arguments(cfg)
    method = OmegaConf.to_object(cfg.method)
    tasks = tasks_name(args, cfg.encoders)
    target = Paths.of(args).result(f"merging/{tasks}/{args.finetuning_mode}-{cfg.scope}/{label(method)}")
    if results.exists(target) and not (args.overwrite or cfg.output):
        print(f"{target}: there already, skipped (overwrite=True computes it again)")
        return
    output = Path(cfg.output) if cfg.output else None
    if output and output.suffix != ".safetensors":
        raise ValueError(f"expected output to end in .safetensors; got {output}")
    torch.manual_seed(args.seed)
    problem = read_problem(args, cfg, tasks)
    merge = method.merge(problem)
    record = evaluate_merge(args, merge, args.tasks, args.finetuning_mode)
    record |= {
        "method": method.name,
        "label": label(method),
        "options": OmegaConf.to_container(cfg.method),
        "scope": problem.scope,
        "parameters": {"scope": problem.num_parameters, "encoder": problem.num_parameters_total},
        "storage": storage(problem, merge),
    }
    if output:
        record["output"] = export(args, problem, merge, record["chosen"], output)
    results.write(target, record, OmegaConf.to_container(cfg, resolve=True) | vars(args), started)
    test = record["test"]
    print(
        f"{label(method)} {args.finetuning_mode} {tasks}: {100 * test['mean_accuracy']:.1f} % absolute, "
        f"{100 * test['mean_normalised']:.1f} % normalised, {merge.storage_bits / 1e9:.2f} Gb -> {target}"
    )


def arguments(cfg: DictConfig) -> Namespace:
    """The scripts' namespace: their flags, completed as they complete them, and the tasks that `cfg` means.

    Raises ValueError for a model, suite, task or mode that does not exist.
    """
    flags = {name: cfg[name] for name in shared_flags()}
    if flags["finetuning_mode"] not in EVALUATION_MODES:
        raise ValueError(f"finetuning_mode: {flags['finetuning_mode']!r} does not exist. Known: {EVALUATION_MODES}")
    if cfg.num_tasks < 1:
        raise ValueError(f"num_tasks: expected at least 1; got {cfg.num_tasks}")
    named = cfg.DATASETS or cfg.tasks
    flags["tasks"] = [named] if isinstance(named, str) else named
    args = complete(Namespace(**flags))
    return args if named else complete(Namespace(**flags | {"tasks": args.tasks[: cfg.num_tasks]}))


def shared_flags() -> dict[str, Any]:
    """The flags of the argparse scripts with their defaults."""
    flags = vars(base_parser("").parse_args([]))
    return {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}


def tasks_name(args: Namespace, encoders: Mapping[str, str]) -> str:
    """`8task` for the first 8 of the suite, as published; other sets, or encoders, add a checksum of their names."""
    count = len(args.tasks)
    if args.tasks == registry.suite(args.suite).tasks[:count] and not encoders:
        return f"{count}task"
    names = " ".join(sorted(f"{task}={encoders.get(task, '')}" for task in args.tasks))
    return f"{count}task_{zlib.crc32(names.encode()):08x}"


def label(method: Method) -> str:
    """The method's name with the options that are not its defaults: `ties_k=10`."""
    changed = []
    for option in fields(method):
        default = option.default_factory() if option.default_factory is not MISSING else option.default
        if (value := getattr(method, option.name)) != default:
            changed.append(f"{option.name}={f'{value:g}' if isinstance(value, float) else value}")
    return "_".join([method.name, *(re.sub(r"[^\w.=+-]+", "-", text) for text in changed)])


def read_problem(args: Namespace, cfg: DictConfig, tasks: str) -> Problem:
    """θ0 and the checkpoints of `args.tasks`, opened but not read.

    Raises ValueError for `encoders` of a task that is not merged, and what opening a checkpoint raises.
    """
    paths, mode, scope = Paths.of(args), args.finetuning_mode, cfg.scope
    if foreign := sorted(set(cfg.encoders) - set(args.tasks)):
        raise ValueError(f"encoders: expected tasks among {', '.join(args.tasks)}; got {', '.join(foreign)}")
    pretrained = store.pretrained(args)

    def finetuned(task: str) -> checkpoints.Checkpoint:
        if task not in cfg.encoders:
            return store.finetuned(args, task, mode)
        fields = dict(model=args.model, mode=store.TRAINED_AS[mode])
        return checkpoints.Checkpoint(Path(cfg.encoders[task]), like=pretrained, **fields)

    return Problem(
        pretrained=pretrained,
        finetuned={task: finetuned(task) for task in args.tasks},
        scope=scope,
        mode=mode,
        model=args.model,
        seed=args.seed,
        images=partial(unlabelled, args),
        head=partial(get_classification_head, args),
        mask_path=lambda name: paths.masks(f"{name}_{tasks}_{mode}_{scope}"),
    )


def unlabelled(args: Namespace, task: str, split: str, batch_size: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless batches of a split's images, normalised and in a new order each time round; never a label."""
    encoder = store.encoder(args)
    found = data.evaluation_pixels(args, task, split, encoder.image_size)
    order = np.random.default_rng([seed, zlib.crc32(f"{task} {split}".encode())])
    while True:
        for indices in np.array_split(order.permutation(len(found)), max(1, len(found) // batch_size)):
            yield data.batch_of(found.pixels[indices], encoder, args.device)


def storage(problem: Problem, merge: Merge) -> dict[str, Any]:
    """Bits of this merge, of the papers' three ways to keep all tasks (fp32), and of the files as they are."""
    files = {name: weights.path for name, weights in {"pretrained": problem.pretrained, **problem.finetuned}.items()}
    return {
        "this": merge.storage_bits,
        "merged": problem.storage_merged(),
        "finetuned": problem.storage_finetuned(),
        "masked": problem.storage_masked(),
        "files": {name: 8 * path.stat().st_size for name, path in files.items()},
    }


def export(args: Namespace, problem: Problem, merge: Merge, chosen: dict[str, float], output: Path) -> list[Path]:
    """Write θ0 + the chosen vector to `output`; to a file for each task (`.<task>.safetensors`) where models differ."""
    written = []
    for task in problem.tasks if merge.per_task else problem.tasks[:1]:
        path = output.with_suffix(f".{task}.safetensors") if merge.per_task else output
        weights = problem.pretrained + merge.vector(task, chosen[task])
        own = dict(task=task) if merge.per_task else {}
        header = dict(model=args.model, mode=store.TRAINED_AS[args.finetuning_mode], seed=args.seed) | own
        about = dict(tasks=list(problem.tasks), scope=problem.scope, chosen=chosen[task])
        checkpoints.save(path, weights, header | about)
        written.append(path)
    return written


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; `argv`: overrides in the place of the process's own, run once."""
    load_methods()
    ConfigStore.instance().store(name="flags", node=shared_flags())
    if argv is None:
        hydra.main(config_path="config", config_name="config", version_base="1.3")(run)()
        return
    with hydra.initialize(config_path="config", version_base="1.3"):
        run(hydra.compose("config", overrides=list(argv)))


if __name__ == "__main__":
    main()
