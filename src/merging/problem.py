"""The merging problem of a run: its checkpoints, what a method may see of its images, and what is made of a merge."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from src import checkpoints, store
from src.datasets import loading, registry
from src.heads import get_classification_head
from src.linearize import LinearizedModel
from src.merging.base import Labelled, Merge, Problem, Progress, Setting, Unlabelled
from src.merging.names import tasks_name
from src.model_names import ModelName
from src.modes import MODES
from src.published import convert
from src.records import Storage
from src.run import Run
from src.runtime.messages import UsageError
from src.runtime.seeds import batch_indices, event_seed
from src.tensors import moved_over


@dataclass(frozen=True)
class Source:
    """Which fine-tuned weights to merge. encoders: checkpoints in the place of the run's own, by task."""

    mode: str = "standard"
    scope: str = "visual"
    encoders: tuple[tuple[str, str], ...] = ()


def read_problem(run: Run, source: Source, label: str = "", progress: Progress = Progress()) -> Problem:
    """θ0 and the checkpoints of `run.tasks`, opened but not read. label: of the masks that these settings make.

    Raises UsageError for `encoders` of a task that is not merged, and what opening a checkpoint raises.
    """
    encoders, mode, scope = dict(source.encoders), source.mode, source.scope
    run.require_mantissa_of(mode)
    if foreign := sorted(set(encoders) - set(run.tasks)):
        raise UsageError(f"encoders: expected tasks among {', '.join(run.tasks)}; got {', '.join(foreign)}")
    pretrained = store.pretrained(run)

    def finetuned(task: str) -> checkpoints.Checkpoint:
        if task not in encoders:
            return store.finetuned(run, task, mode)
        path = Path(encoders[task])
        given = checkpoints.Checkpoint(path, like=pretrained, model=run.model, mode=MODES[mode].checkpoint)
        check_head(run, task, given)
        check_start(run, given, pretrained)
        checkpoints.require_finite(given)
        return given

    weights = {task: finetuned(task) for task in run.tasks}
    files = tuple((file.path, file.path.stat().st_mtime_ns) for file in (pretrained, *weights.values()))
    return Problem(
        pretrained=pretrained,
        finetuned=weights,
        scope=scope,
        mode=mode,
        model=run.model,
        suite=run.suite_row,
        seed=run.seed,
        mask_path=partial(masks_path, run, source),
        published_masks=published_masks(run, source),
        label=label,
        images=Unlabelled(
            encoder=partial(model_of, run, mode),
            batch=partial(unlabelled, run),
            head=partial(get_classification_head, run),
        ),
        validation=Labelled(partial(labels, run)),
        progress=progress,
        precision=run.precision,
        named=run.named(),
        memo=_memo(run, source, files),
    )


def masks_path(run: Run, source: Source, name: str) -> Path:
    """Where the masks of that name lie for these weights."""
    tasks = tasks_name(run.suite, run.tasks, dict(source.encoders))
    return run.paths.masks(f"{name}_{tasks}_{source.mode}_{source.scope}")


def published_masks(run: Run, source: Source) -> Path | None:
    """Where published masks of these weights lie.

    None but for standard checkpoints of a suite's first tasks: nobody publishes others.
    """
    first = run.suite_row.tasks[: len(run.tasks)]
    fitting = run.tasks == first and source.mode == store.PUBLISHED_MODE and not source.encoders
    return run.paths.published_masks(len(run.tasks)) if fitting else None


def check_head(run: Run, task: str, file: checkpoints.Checkpoint) -> None:
    """Raise CheckpointError for a checkpoint that was fine-tuned against a head of other class names than the run's."""
    row, theirs = registry.get(task), store.publisher_of(file.header)
    if row.names(theirs) != row.names(store.publisher(run, task)):
        raise checkpoints.CheckpointError(
            f"{file.path}: expected a checkpoint that was fine-tuned against this run's head of {task}, found one of "
            f"{theirs or 'this project'}, whose class names are others; keep checkpoints of one publisher in a folder "
            f"of their own, and name it: save=FOLDER (python download_checkpoints.py --publisher=... --save=FOLDER)"
        )


def check_start(run: Run, file: checkpoints.Checkpoint, pretrained: checkpoints.Checkpoint) -> None:
    """Raise CheckpointError for a checkpoint that did not begin at the run's θ0.

    Its header tells; of one that was converted without θ0, and so has none, the weights.
    """
    store.check_start(run, file.path, file.header)
    foreign = file.header.get("provenance") and not file.header.get("began_at")
    if not foreign or ModelName.parse(run.model).random:
        return
    try:
        convert.check_start(file, pretrained, text_frozen=False)
    except checkpoints.CheckpointError as error:
        raise checkpoints.CheckpointError(f"{file.path}: {error}") from None


@lru_cache(maxsize=1)
def _memo(run: Run, source: Source, files: tuple[tuple[Path, int], ...]) -> dict[Any, Any]:
    """What methods have worked out of these files, kept from one merge of a process to the next."""
    return {}


def model_of(run: Run, mode: str) -> torch.nn.Module:
    """The frozen model of a mode at θ0: the encoder, or its linearization."""
    encoder = store.encoder(run)
    return LinearizedModel(encoder) if MODES[mode].tangent else encoder


def unlabelled(run: Run, task: str, split: str, batch_size: int, number: int) -> torch.Tensor:
    """The `number`-th batch of a split's images, normalised; never a label.

    It is a function of (seed, task, split, number). Every round through the images takes them in a new order, and its
    last batch may be smaller.
    """
    encoder = store.encoder(run)
    pixels = loading.evaluation_pixels(run, task, split, encoder.image_size).pixels
    indices = batch_indices(len(pixels), batch_size, number, _order(run, task, split))
    return loading.batch_of(pixels[indices], encoder, run.device)


def labels(run: Run, task: str, batch_size: int, number: int) -> torch.Tensor:
    """Those of the `number`-th batch of validation images that `unlabelled` gives."""
    every = loading.evaluation_pixels(run, task, "val", store.encoder(run).image_size).labels
    indices = batch_indices(len(every), batch_size, number, _order(run, task, "val"))
    return loading.on_device(every[indices], run.device)


def _order(run: Run, task: str, split: str) -> int:
    """The seed of the order in which a method sees a split."""
    return event_seed(run.seed, "unlabelled", task, split)


def storage(problem: Problem, merge: Merge) -> Storage:
    """Bits of this merge, of the papers' three ways to keep all tasks (fp32), and of the files as they are."""
    weights = {"pretrained": problem.pretrained, **problem.finetuned}
    files = {name: own.path for name, own in weights.items() if isinstance(own, checkpoints.Checkpoint)}
    return {
        "this": merge.storage_bits,
        "merged": problem.storage_merged(),
        "finetuned": problem.storage_finetuned(),
        "masked": problem.storage_masked(),
        "files": {name: 8 * path.stat().st_size for name, path in files.items()},
    }


def export(problem: Problem, merge: Merge, chosen: Mapping[str, Setting], output: Path, label: str = "") -> list[Path]:
    """Write θ0 + the chosen vector to `output`; to a file for each task (`.<task>.safetensors`) where models differ.

    Such a file has the task's adapter too, `adapter.*`, where there is one; it is then no encoder, and loads as none.
    label: of the method with its options, for the header.
    """
    written, began_at = [], store.fingerprints(problem.pretrained)["image"]
    for task in problem.tasks if merge.per_task else problem.tasks[:1]:
        path = output.with_suffix(f".{task}.safetensors") if merge.per_task else output
        weights = moved_over(problem.pretrained, dict(merge.vector(task, chosen[task]).vector))
        if adapter := merge.adapter(task, chosen[task]):
            weights |= {f"adapter.{name}": tensor for name, tensor in vars(adapter).items()}
        header: dict[str, Any] = dict(model=problem.model, mode=MODES[problem.mode].checkpoint, seed=problem.seed)
        header["began_at"] = began_at
        header |= dict(tasks=list(problem.tasks), scope=problem.scope, chosen=chosen[task], label=label)
        checkpoints.save(path, weights, header | (dict(task=task) if merge.per_task else {}))
        written.append(path)
    return written
