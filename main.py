"""Merge fine-tuned encoders by any method of src/merging and evaluate the result.

    python main.py model=ViT-B-32 method=sum
    python main.py model=ViT-B-32 method=ties method.k=20
    python main.py model=ViT-B-32 method=tall_mask method.use_ties=True
    python main.py model=ViT-B-32 method=tall_mask method.load_mask=True
    python main.py model=ViT-B-32 method=consensus method.prun_thre_k=2
    python main.py --multirun method=sum,ties,tall_mask,consensus finetuning_mode=standard,linear
    python main.py DATASETS=[land,signs] method=ties output=merged.safetensors
    python main.py model=ViT-B-32 method=adamerging method.granularity=layer
    python main.py model=ViT-B-32 method=concrete_subspace/clip_concrete_task_arithmetic method.adapt_on=val
    python main.py DATASETS=[land,signs] unseen=[digits,letters] method=concrete_task_arithmetic

Everything under `method` is the method's own; the other keys are the flags of the other scripts, and those of
config/config.yaml. Validation chooses the setting, and test is read once. Writes
merging/<tasks>/<mode>-<scope>/<method and its options>.json, and beside it vectors.json: norms of the task vectors and
cosines between them. Needs the single-task results of the mode and of `none`.

Methods that adapt at test time see images of the merged tasks, by default those of test, as in the papers, and never a
label. A run that was killed goes on where it last kept its state: give the same command again, without overwrite=True.
"""

import json
import os
import re
import sys
import time
import zlib
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from src import checkpoints, store
from src.args import EVALUATION_MODES, base_parser, complete
from src.datasets import loading as data
from src.datasets import registry
from src.evaluation import Denominators, Line, evaluate_merge, evaluate_unseen, score_all
from src.heads import get_classification_head
from src.linearize import LinearizedModel
from src.merging.base import Merge, Method, Problem, load_methods
from src.merging.geometry import vector_geometry
from src.runtime import results
from src.runtime.distributed import from_primary, is_primary, spmd, world_size
from src.runtime.files import replacing
from src.runtime.loggers import Logger
from src.runtime.paths import Paths
from src.runtime.program import USER_ERRORS, exit_on_user_error
from src.runtime.seeds import batch_indices, event_seed
from src.task_vectors import TaskVector


def run(cfg: DictConfig) -> None:
    started = time.time()
    args = arguments(cfg)
    method = OmegaConf.to_object(cfg.method)
    unseen = unseen_tasks(args, cfg)
    tasks = tasks_name(args, cfg.encoders)
    named = label(method) + (f"_unseen={'+'.join(unseen)}" if unseen else "")
    folder = f"merging/{tasks}/{args.finetuning_mode}-{cfg.scope}"
    name = f"{folder}/{named}"
    target, state = Paths.of(args).result(name), Paths.of(args).adaptation_state(name)
    if results.exists(target) and not (args.overwrite or cfg.output or results.exists(state)):
        print(f"{target}: there already, skipped (overwrite=True computes it again)")
        return
    output = Path(cfg.output) if cfg.output else None
    if output and output.suffix != ".safetensors":
        raise ValueError(f"expected output to end in .safetensors; got {output}")
    torch.manual_seed(args.seed)
    with closing(Logger(args, f"{args.model}-{named}", target.parent)) as logger:
        watch = Watch(args, cfg, Paths.of(args).adaptation_state(f"{name}.watched"), logger.log)
        if args.overwrite and is_primary():
            for file in (state, watch.file):
                file.unlink(missing_ok=True)
        adapting = dict(watch=watch, log=logger.log, state=state, save_every=cfg.save_every)
        plain = label(method).rpartition("/")[2].replace("=", "-")  # Hydra takes no "=" in method.mask_file=...
        problem = read_problem(args, cfg, tasks, label=plain, **adapting)
        Denominators.of(args, args.finetuning_mode, (*args.tasks, *unseen))  # missing ones are told before long work
        merge = method.merge(problem)
    if unseen and merge.per_task:
        raise ValueError(f"unseen: {method.name} makes a model for each merged task, and none for {unseen[0]}")
    record = evaluate_merge(args, merge, args.tasks, args.finetuning_mode)
    record |= {
        "method": method.name,
        "label": named,
        "options": OmegaConf.to_container(cfg.method),
        "scope": problem.scope,
        "parameters": {"scope": problem.num_parameters, "encoder": problem.num_parameters_total},
        "storage": storage(problem, merge),
    }
    if merge.adaptation:
        record["adaptation"] = merge.adaptation | {"watched": watch.record()}
    if unseen:
        setting = record["chosen"][args.tasks[0]]
        record["unseen"] = evaluate_unseen(args, merge, setting, unseen, args.finetuning_mode)
    if output:
        record["output"] = from_primary(lambda: export(args, problem, merge, record["chosen"], output))
    config = OmegaConf.to_container(cfg, resolve=True) | vars(args)
    results.write(target, record, config, started)
    vectors = Paths.of(args).result(f"{folder}/vectors")
    if args.overwrite or not results.exists(vectors):
        about = {"finetuning_mode": args.finetuning_mode, "scope": problem.scope}
        results.write(vectors, about | vector_geometry(problem), config, started)
    for file in (state, watch.file):
        file.unlink(missing_ok=True)
    test = record["test"]
    print(
        f"{named} {args.finetuning_mode} {tasks}: {100 * test['mean_accuracy']:.1f} % absolute, "
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
    for option in ("eval_every", "save_every"):
        value = cfg[option]
        if not (value is None or isinstance(value, int) and value >= 0):
            raise ValueError(f"{option}: expected a number of steps, 0 for none; got {value!r}")
    named = cfg.DATASETS or cfg.tasks
    flags["tasks"] = [named] if isinstance(named, str) else named
    flags |= {"tensorboard": cfg.tensorboard, "wandb": cfg.wandb}
    args = complete(Namespace(**flags))
    return args if named else complete(Namespace(**flags | {"tasks": args.tasks[: cfg.num_tasks]}))


def unseen_tasks(args: Namespace, cfg: DictConfig) -> tuple[str, ...]:
    """The tasks that are scored without being merged, in the suite's order.

    Raises ValueError for unknown ones and for merged ones.
    """
    if not cfg.unseen:
        return ()
    named = [cfg.unseen] if isinstance(cfg.unseen, str) else list(cfg.unseen)
    unseen = complete(Namespace(**vars(args) | {"tasks": named})).tasks
    if merged := [task for task in unseen if task in args.tasks]:
        raise ValueError(f"unseen: {', '.join(merged)} is merged: name the tasks to merge, as in DATASETS=[...]")
    return tuple(task for task in registry.suite(args.suite).tasks if task in unseen)


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
    """The method's name with the options that are not its defaults: `ties_k=10`; files by their name and a checksum."""
    changed = []
    for option in fields(method):
        default = option.default_factory() if option.default_factory is not MISSING else option.default
        if (value := getattr(method, option.name)) != default:
            if isinstance(value, str) and "/" in value:
                value = f"{Path(value).stem}-{zlib.crc32(value.encode()):08x}"
            changed.append(f"{option.name}={f'{value:g}' if isinstance(value, float) else value}")
    return "_".join([method.name, *(re.sub(r"[^\w.=+-]+", "-", text) for text in changed)])


def read_problem(args: Namespace, cfg: DictConfig, tasks: str, **adapting: Any) -> Problem:
    """θ0 and the checkpoints of `args.tasks`, opened but not read. adapting: what else a Problem tells such methods.

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
        suite=args.suite,
        seed=args.seed,
        mask_path=lambda name: paths.masks(f"{name}_{tasks}_{mode}_{scope}"),
        encoder=partial(model_of, args),
        batches=partial(unlabelled, args),
        head=partial(get_classification_head, args),
        **adapting,
    )


def model_of(args: Namespace) -> torch.nn.Module:
    """The frozen model at θ0 of `args.finetuning_mode`: the encoder, or its linearization."""
    encoder = store.encoder(args)
    return LinearizedModel(encoder) if args.finetuning_mode in store.TANGENT else encoder


def unlabelled(args: Namespace, task: str, split: str, batch_size: int, number: int) -> torch.Tensor:
    """The `number`-th batch of a split's images, normalised; never a label.

    It is a function of (seed, task, split, number). Every round through the images takes them in a new order, and its
    last batch may be smaller.
    """
    encoder = store.encoder(args)
    pixels = data.evaluation_pixels(args, task, split, encoder.image_size).pixels
    indices = batch_indices(len(pixels), batch_size, number, event_seed(args.seed, "unlabelled", task, split))
    return data.batch_of(pixels[indices], encoder, args.device)


class Watch:
    """Accuracies on validation images in the course of an adaptation, kept beside its state.

    `watch(step, phase, vector)` evaluates at the start of each phase and every `eval_every` steps. It tells the method
    nothing. What a resumed run comes to again takes the place of what was there.
    """

    split = "val"

    def __init__(self, args: Namespace, cfg: DictConfig, file: Path, log: Callable[[dict[str, float], int], None]):
        self.args, self.file, self.log = args, file, log
        self.every = (10 if args.suite == "mini" else 0) if cfg.eval_every is None else cfg.eval_every

    def __call__(self, step: int, phase: str, vector: Callable[[], TaskVector]) -> None:
        if not self.every:
            return
        points = json.loads(self.file.read_text()) if self.file.is_file() else []
        before = [point["step"] < step or (point["step"] == step and point["phase"] != phase) for point in points]
        points = points[: before.index(False) if False in before else None]
        if step % self.every and phase in {point["phase"] for point in points}:
            return
        line = Line(vector().vector)
        jobs = [(task, self.split, [line]) for task in self.args.tasks]
        found = score_all(self.args, jobs, self.args.finetuning_mode in store.TANGENT, f"watching step {step}")
        accuracy = {task: scores[0][0].accuracy for task, scores in zip(self.args.tasks, found)}
        with replacing(self.file) as temporary:
            temporary.write_text(json.dumps([*points, {"step": step, "phase": phase, "accuracy": accuracy}]))
        self.log({f"watched/{task}": value for task, value in accuracy.items()}, step)

    def record(self) -> dict[str, Any] | None:
        """Which split was watched, and its accuracies by task; None where nothing was."""
        if not (self.every and self.file.is_file()):
            return None
        points = json.loads(self.file.read_text())
        columns = {key: [point[key] for point in points] for key in ("step", "phase")}
        accuracy = {task: [point["accuracy"][task] for point in points] for task in self.args.tasks}
        return {"split": self.split, **columns, "accuracy": accuracy}


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


@exit_on_user_error
@spmd
def main(argv: Sequence[str] | None = None) -> None:
    """The command line; `argv`: overrides in the place of the process's own, run once.

    An error that a user can mend is told in a line; the other jobs of a --multirun run all the same, and the exit
    status is then 1 (under Hydra's own launcher: a job that another launcher sent away tells its error in its log).
    """
    load_methods()
    ConfigStore.instance().store(name="flags", node=shared_flags())
    failed = []

    def job(cfg: DictConfig) -> None:
        try:
            run(cfg)
        except (*USER_ERRORS, ValueError) as error:  # ValueError: an option that does not fit
            if "HYDRA_FULL_ERROR" in os.environ:
                raise
            if world_size() > 1:  # the ranks could come to the next job one by one
                raise SystemExit(f"error: {error}") from None
            print(f"error: {error}", file=sys.stderr)
            failed.append(error)

    if argv is None:
        hydra.main(config_path="config", config_name="config", version_base="1.3")(job)()
    else:
        with hydra.initialize(config_path="config", version_base="1.3"):
            job(hydra.compose("config", overrides=list(argv)))
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
