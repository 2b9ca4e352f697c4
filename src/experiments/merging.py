"""Merging by any method: choose on validation, read test once, and tell what it needs and costs."""

import glob
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from src import checkpoints, store
from src.args import take_run
from src.datasets import registry
from src.evaluation import Denominators
from src.experiments.base import unchanged
from src.experiments.leaks import leaks_record
from src.experiments.numbers import Number, score_numbers, summary_numbers
from src.merging import names
from src.merging.base import Affine, Drawn, Merge, Method, Problem, Progress, Scaled, Variant, states_of
from src.merging.evaluate import evaluate_merge, evaluate_unseen
from src.merging.geometry import vector_geometry
from src.merging.problem import Source, export, masks_path, published_masks, read_problem, storage
from src.merging.registry import label, variant_label
from src.merging.search import Searched
from src.merging.watch import Watch
from src.modes import EVALUATED, SCOPES
from src.published.export import FORMATS, export_for_others, files_for_others, merge_of
from src.ranges import check, require
from src.records import Adaptation, Merging, MergingCost, checked
from src.run import FP32, Run, task_names
from src.runtime import results
from src.runtime.cost import measured
from src.runtime.distributed import from_primary, is_primary
from src.runtime.files import file_hash, require_writable
from src.runtime.locks import only_one
from src.runtime.loggers import Logger, Loggers
from src.runtime.messages import UsageError, nearest
from src.runtime.paths import expanded
from src.runtime.precision import matmul_precision

Record = Merging


def numbers(record: Record, suite: str) -> Iterator[Number]:
    foreign = bool(record["encoders"]) and "divided_by" not in record
    yield from score_numbers(record, foreign)
    storage = record["storage"]
    yield Number("storage", storage["this"])
    yield Number("storage_merged", storage["merged"])
    yield Number("storage_finetuned", storage["finetuned"])
    if "cost" in record:
        yield Number("merging_seconds", record["cost"]["seconds"])
        yield Number("peak_memory", record["cost"]["peak_memory"])
    if "unseen" in record:
        unseen = record["unseen"]
        yield from summary_numbers(unseen, unseen["tasks"], False, "unseen_")
        yield from summary_numbers(unseen["zeroshot"], unseen["tasks"], False, "unseen_zeroshot_")


@dataclass(frozen=True)
class Options:
    """What main.py takes beside the run and the method.

    unseen: tasks that are scored without being merged. output: where to write the merged encoder; format: whose.
    search: options of the method among whose values validation chooses, such as {"k": [10, 20]}.
    save_every, eval_every: steps of an adaptation between kept states and between watched accuracies; 0: none.
    save_seconds: between kept states; 0: by steps alone.
    """

    source: Source = Source()
    unseen: tuple[str, ...] = ()
    search: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    output: Path | None = None
    format: str = FORMATS[0]
    save_every: int = 0
    save_seconds: float = 300
    eval_every: int = 0
    loggers: Loggers = Loggers()
    overwrite: bool = False

    def __post_init__(self):
        if self.format not in FORMATS:
            raise UsageError(f"format: {self.format!r} does not exist{nearest(self.format, FORMATS)} Known: {FORMATS}")
        if self.output and (self.output.suffix == ".safetensors") == (self.format == "transformers"):
            wanted = "a folder" if self.format == "transformers" else "a file that ends in .safetensors"
            raise UsageError(f"output: expected {wanted} for format={self.format}; got {self.output}")


def take_options(flags: dict[str, Any]) -> tuple[Run, Options]:
    """The run and the options that main.py's configuration means, as plain values without `method`.

    Raises UsageError for values that make no sense.
    """
    for name in ("overwrite", "skip_corrupt", "wandb", "tensorboard"):
        if not isinstance(flags[name], bool):
            raise UsageError(f"{name}: expected true or false; got {flags[name]!r}")
    mode, datasets, count = flags.pop("finetuning_mode"), flags.pop("DATASETS"), flags.pop("num_tasks")
    if [] in (datasets, flags["tasks"]):
        raise UsageError("DATASETS, tasks: expected at least one task, found none")
    named = flags["tasks"] if datasets in (None, "") else datasets
    if mode not in EVALUATED:
        raise UsageError(f"finetuning_mode: {mode!r} does not exist{nearest(mode, EVALUATED)} Known: {EVALUATED}")
    require(num_tasks=count, save_every=flags["save_every"], save_seconds=flags["save_seconds"])
    run = take_run(flags | {"tasks": str(count) if named is None else str(named) if isinstance(named, int) else named})
    steps = {name: flags[name] for name in ("save_every", "save_seconds", "eval_every")}
    if steps["eval_every"] is None:
        steps["eval_every"] = run.protocol.watch_every
    check(**steps)
    for name, example in (("encoders", "+encoders.TASK=FILE"), ("search", "+search.k=[10,20]")):
        if not isinstance(flags[name], dict):
            raise UsageError(f"{name}: expected it as in {example}; got {flags[name]!r}")
    if flags["scope"] not in SCOPES:
        raise UsageError(f"scope: expected one of {', '.join(SCOPES)}; got {flags['scope']!r}")
    given = {task: str(expanded(path, f"encoders.{task}")) for task, path in flags["encoders"].items()}
    return run, Options(
        source=Source(mode, flags["scope"], tuple(sorted(given.items()))),
        unseen=unseen_tasks(run, flags["unseen"]),
        search=_searched(flags["search"]),
        output=None if flags["output"] is None else expanded(flags["output"], "output"),
        format=flags["format"],
        loggers=Loggers(flags["wandb"], flags["tensorboard"]),
        overwrite=flags["overwrite"],
        **steps,
    )


def _searched(search: Mapping[str, Any]) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    for option, values in search.items():
        if not (isinstance(values, list) and values):
            raise UsageError(f"search.{option}: expected a list of values, as in +search.k=[10,20]; got {values!r}")
    return tuple((option, tuple(values)) for option, values in search.items())


def unseen_tasks(run: Run, given: str | list[str] | None) -> tuple[str, ...]:
    """The tasks that are scored without being merged, in the suite's order.

    Raises UsageError for unknown ones and for merged ones.
    """
    if given in (None, "", []):
        return ()
    unseen = task_names(given, run.suite_row, "unseen")
    if merged := [task for task in unseen if task in run.tasks]:
        raise UsageError(f"unseen: {', '.join(merged)} is merged: name the tasks to merge, as in DATASETS=[...]")
    return tuple(task for task in registry.names(run.suite_row) if task in unseen)


def result_name(run: Run, method: Method, options: Options) -> str:
    """The name of a result, in the folder of a seed."""
    source = options.source
    folder = names.folder(run.suite, run.tasks, source.mode, source.scope, dict(source.encoders))
    return f"{folder}/{_label(method, options)}"


def variant_result(run: Run, variant: Variant, mode: str = "standard", unseen: tuple[str, ...] = ()) -> str:
    """The name of the result of a row of the tables."""
    folder = names.folder(run.suite, run.tasks, mode, "visual")
    return f"{folder}/{names.unseen_label(variant_label(variant), unseen)}"


def _label(method: Method, options: Options) -> str:
    return names.unseen_label(label(method, dict(options.search)), options.unseen)


def merge(run: Run, method: Method, options: Options) -> None:
    """Merge, evaluate, and write the record; skipped where the same is there, resumed where it was broken off."""
    name = result_name(run, method, options)
    if _there(run, method, options, name):
        return
    target = run.paths.result(name)
    require_writable(target)
    if options.output:
        check_output(run, options, _label(method, options))
    with only_one(target):
        if not _there(run, method, options, name):  # else another run made it meanwhile
            _merge(run, method, options, name)


def _there(run: Run, method: Method, options: Options, name: str) -> bool:
    """Whether the same result is there and nothing is left to do, which is then told."""
    states = states_of(run.paths.adaptation_state(name))
    if options.overwrite or options.output or any(map(results.exists, states)):
        return False
    decisive, config = ("tasks", "precision", "method", "encoders", "search"), run.config(**_config(method, options))
    return results.skip_existing(run.paths.result(name), config, decisive, _made_of(run, method, options))


def _merge(run: Run, method: Method, options: Options, name: str) -> None:
    started, before = time.time(), _made_of(run, method, options)
    source, search, named = options.source, dict(options.search), _label(method, options)
    target, state = run.paths.result(name), run.paths.adaptation_state(name)
    states = states_of(state)
    config = run.config(**_config(method, options))
    torch.manual_seed(run.seed)
    with closing(Logger(options.loggers, f"{run.model}-{named}", target.parent, config)) as logger:
        watched = run.paths.adaptation_state(f"{name}.watched")
        watch = Watch(run, source.mode, options.eval_every, watched, logger.log)
        if options.overwrite and is_primary():
            _remove(*states, watched)
        progress = Progress(watch, logger.log, state, options.save_every, options.save_seconds)
        plain = label(method, search).replace("=", "-")  # Hydra takes no "=" in method.mask_file=...
        problem = read_problem(run, source, plain, progress)
        # Missing ones are told before long work; given checkpoints are scored here.
        denominators = Denominators.of(run, source.mode, run.tasks, dict(source.encoders))
        if options.unseen:
            Denominators.of(run, source.mode, options.unseen)
        made, cost = made_and_measured(
            run, lambda: Searched.over(method, search, problem) if search else method.merge(problem)
        )
    if options.unseen and made.per_task:
        raise UsageError(f"unseen: {method.name} makes a model for each merged task, and none for {options.unseen[0]}")
    if options.output and options.format != FORMATS[0] and made.per_task:
        raise UsageError(f"format: {method.name} makes a model for each task; format={options.format} has one")
    record: Merging = {
        **evaluate_merge(run, made, run.tasks, source.mode, fixed_settings(method, made), denominators),
        **run.corruption_record(),
        **leaks_record(run, source.mode, dict(source.encoders)),
        "method": method.name,
        "label": named,
        "options": vars(method),
        "scope": source.scope,
        "encoders": dict(source.encoders),
        "divided_by": "the merged checkpoints",
        "parameters": {"scope": problem.num_parameters, "encoder": problem.num_parameters_total},
        "storage": storage(problem, made),
        "cost": cost,
    }
    if course := made.course(record["chosen"]):
        record["adaptation"] = cast(Adaptation, course | {"watched": watch.record()})
    if options.unseen:
        setting = record["chosen"][run.tasks[0]]
        record["unseen"] = evaluate_unseen(run, made, setting, options.unseen, source.mode)
    if options.output:
        record["output"] = from_primary(lambda: write_merged(run, options, problem, made, record))
    _write_vectors(run, problem, name, config, started, options.overwrite)  # first: a result says that all is there
    made_of = unchanged(target, before, _made_of(run, method, options))
    results.write(target, record, config, started, lambda document: checked(document, Merging, target), made_of)
    _remove(*states_of(state), watched)
    test = record["test"]
    print(
        f"{named} {source.mode} {names.tasks_name(run.suite, run.tasks, dict(source.encoders))}: "
        f"{100 * test['mean_accuracy']:.1f} % absolute, {100 * test['mean_normalised']:.1f} % normalised, "
        f"{made.storage_bits / 1e9:.2f} Gb -> {target}"
    )


def made_and_measured(run: Run, merging: Callable[[], Merge]) -> tuple[Merge, MergingCost]:
    """A merge and its cost, with what it makes only as it is scored: a random draw, the models of single tasks."""
    with measured(run.device) as cost, matmul_precision(FP32):
        made = merging()
        if isinstance(made, Drawn):
            made.draw(0)
        elif made.per_task:
            for task in run.tasks:
                made.vector(task, made.settings[0])
    return made, {"seconds": round(cost.seconds, 3), "peak_memory": cost.peak_memory}


def write_merged(run: Run, options: Options, problem: Problem, made: Merge, record: Merging) -> list[Path]:
    """The files of `output=`, in the format that is asked for."""
    output = cast(Path, options.output)
    if options.format == FORMATS[0]:
        return export(problem, made, record["chosen"], output, record["label"])
    weights = problem.pretrained + made.vector(run.tasks[0], record["chosen"][run.tasks[0]])
    return export_for_others(run, weights, output, options.format, record)


def check_output(run: Run, options: Options, named: str) -> None:
    """Raise UsageError where `output` would replace another file than an earlier output of the same merge."""
    output = cast(Path, options.output)
    others = files_for_others(output, options.format)
    files = others or [output, *output.parent.glob(f"{glob.escape(output.stem)}.*.safetensors")]
    require_writable(files[0])
    for path in files:
        if not path.is_file():
            continue
        header = merge_of(files[0]) if others else checkpoints.header(path)
        known = header.get("label") or header.get("task") or header.get("kind", "another file")
        if (header.get("label"), header.get("tasks")) != (named, list(run.tasks)) and not (
            options.overwrite and header.get("label")
        ):
            raise UsageError(
                f"output: expected a name that is free, or an earlier output of this merge, found {path} "
                f"({known}); name another, or remove it"
            )


def _made_of(run: Run, method: Method, options: Options) -> dict[str, str]:
    source, tasks = options.source, (*run.tasks, *options.unseen)
    encoders = dict(source.encoders)
    made = store.made_of(run, source.mode, tasks, encoders)
    made |= Denominators.made_of(run, source.mode, tasks, encoders)
    masks = method.reads(partial(masks_path, run, source), published_masks(run, source))
    return made | ({"masks": file_hash(masks)[:12]} if masks and masks.is_file() else {})


def fixed_settings(method: Method, made: Merge) -> dict[str, float]:
    """What is scored on test beside the chosen coefficient: the published default, and 1 where one vector is scaled."""
    scales = isinstance(made, Scaled) or (isinstance(made, Drawn) and method.untuned is not None)
    if len(made.settings) == 1 or not (scales or isinstance(made, Affine)):
        return {}
    fixed = {} if method.untuned is None else {"untuned": method.untuned}
    return fixed | ({"one": 1.0} if scales else {})


def _config(method: Method, options: Options) -> dict[str, Any]:
    return {
        "finetuning_mode": options.source.mode,
        "scope": options.source.scope,
        "encoders": dict(options.source.encoders),
        "unseen": options.unseen,
        "search": dict(options.search),
        "method": vars(method),
        "output": options.output,
        "save_every": options.save_every,
        "save_seconds": options.save_seconds,
        "eval_every": options.eval_every,
    }


def _write_vectors(run: Run, problem: Problem, name: str, config: Mapping, started: float, overwrite: bool) -> None:
    """Beside the first result of a folder: norms of the task vectors and cosines between them."""
    path = run.paths.result(f"{name.rpartition('/')[0]}/vectors")
    if overwrite or not results.exists(path):
        about = {"finetuning_mode": problem.mode, "scope": problem.scope}
        results.write(path, about | vector_geometry(problem), config, started)


def _remove(*files: Path) -> None:
    for file in files:
        file.unlink(missing_ok=True)
