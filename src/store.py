"""θ0 and the task vectors of a run, from the checkpoints that finetune.py wrote."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from src import checkpoints
from src.checkpoints import VISUAL
from src.datasets import registry
from src.modeling import ImageEncoder
from src.modes import MODES
from src.run import Run
from src.runtime.messages import MissingFile
from src.task_vectors import TaskVector
from src.tensors import difference

PUBLISHED_MODE = "standard"  # nobody publishes linear checkpoints
SHORT = 12  # characters of a hash in a result
# As safetensors calls the types that have a difference; one of DOUBLE is in float64.
DOUBLE = "F64"
FLOATING = (DOUBLE, "F32", "F16", "BF16")


@lru_cache(maxsize=2)
def encoder(run: Run) -> ImageEncoder:
    """The pre-trained encoder of `run.model` on its device, frozen; one per process. Its weights are θ0.

    Raises CheckpointError where θ0 on disk is another.
    """
    built = ImageEncoder(run)
    check_pretrained(run.paths.pretrained(), built.state_dict())
    return built.requires_grad_(False).eval().to(run.device)


def write_pretrained(run: Run) -> None:
    """Write θ0, which every task vector of this (suite, model, seed) is measured from, unless it is there."""
    path = run.paths.pretrained()
    if not path.is_file():
        weights = encoder(run).state_dict()
        header = dict(model=run.model, mode="none", seed=run.seed, step=0)
        checkpoints.save(path, weights, header | {"fingerprints": fingerprints(weights)})


def check_pretrained(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Raise CheckpointError where there is a θ0 at `path` other than these weights, which the source gives now."""
    if not path.is_file():
        return
    ours, header = fingerprints(weights), checkpoints.header(path)
    theirs = header.get("fingerprints", ours)  # older files do not say
    if theirs != ours:
        raise checkpoints.CheckpointError(
            f"{path}: expected the pre-trained weights of {header['model']} (fingerprint {ours['image']}), found "
            f"others ({theirs['image']}), from another --pretrained-path or version, and the checkpoints beside it "
            "belong to those; repeat the earlier weights, or keep these apart with --save=ANOTHER_FOLDER"
        )


def fingerprints(weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Of the image tower, which task vectors are measured from, and of the text side, which heads are made with."""
    image = {name: tensor for name, tensor in weights.items() if name.startswith(VISUAL)}
    text = {name: tensor for name, tensor in weights.items() if not name.startswith((VISUAL, "model.transformer."))}
    return {"image": checkpoints.fingerprint(image), "text": checkpoints.fingerprint(text)}


def written_fingerprints(run: Run) -> dict[str, str]:
    """Those of θ0 on disk; empty where it is not there, or too old to say."""
    path = run.paths.pretrained()
    return checkpoints.header(path).get("fingerprints", {}) if path.is_file() else {}


def pretrained(run: Run) -> checkpoints.Checkpoint:
    """θ0 on disk, read tensor by tensor; written where it is not there yet."""
    write_pretrained(run)
    return checkpoints.Checkpoint(run.paths.pretrained(), model=run.model, run=run)


def finetuned(run: Run, task: str, mode: str, step: int | None = None) -> checkpoints.Checkpoint:
    """θ of a task for an evaluation mode; with `step`, as it was after that step of its fine-tuning.

    Raises FileNotFoundError that names the command which fine-tunes all that the run lacks, or CheckpointError where θ
    began at another θ0, or has other tensors.
    """
    trained_as = MODES[mode].checkpoint
    expected: dict[str, Any] = dict(model=run.model, task=task, mode=trained_as, seed=run.seed)
    if step is None:
        path = run.paths.checkpoint(task, trained_as)
    else:
        path, expected["step"] = run.paths.encoder_at(task, trained_as, step), step
        if not path.is_file():
            raise MissingFile(
                f"{path}: expected the encoder after step {step}, found none; keep it with: "
                f"{finetuning(run, trained_as, [task])} --keep-every={step} --overwrite"
            )
    if not path.is_file():
        absent = [name for name in run.tasks if not run.paths.checkpoint(name, trained_as).is_file()]
        make = finetuning(run, trained_as, absent if task in absent else [task])
        raise MissingFile(f"expected the checkpoint {path}, found no file; make it with: {make}")
    theta0 = run.paths.pretrained()
    like = checkpoints.Checkpoint(theta0, model=run.model, run=run) if theta0.is_file() else None
    checkpoint = checkpoints.Checkpoint(path, like=like, run=run, **expected)
    check_start(run, path, checkpoint.header)
    checkpoints.require_finite(checkpoint)
    return checkpoint


def finetuning(run: Run, mode: str, tasks: Iterable[str]) -> str:
    """The command that fine-tunes these tasks in the run's folders."""
    return replace(run, corruption=None).command("finetune.py", f"--finetuning-mode={mode}", tasks=tasks)


def publisher(run: Run, dataset: str) -> str | None:
    """Who published the run's checkpoint of a data set, or, where it has none, all the others; None: made here."""
    own = run.paths.checkpoint(dataset, PUBLISHED_MODE)
    folder = run.paths.pretrained().parent
    files = [own] if own.is_file() else sorted(folder.glob(f"*/{own.name}"))
    publishers = {publisher_of(checkpoints.header(file)) for file in files}
    return publishers.pop() if len(publishers) == 1 else None


def publisher_of(header: Mapping) -> str | None:
    """Who published the file of a header; None: nobody, it was made here."""
    return (header.get("provenance") or {}).get("publisher")


def made_of(run: Run, mode: str, tasks: Iterable[str], encoders: Mapping[str, str] | None = None) -> dict[str, str]:
    """What scores are made of, as short hashes: θ0, and for each task its weights, class names, templates and head.

    Of a task the parts of results.changed: its fingerprint with the names, the digests of its weights and its head.
    encoders: checkpoints in the place of the run's own, by task. What is not on disk, or too old to say, is left out.
    """
    known = written_fingerprints(run)
    if not known:
        return {}
    made = {"theta0": f"{known['image']}-{checkpoints.header(run.paths.pretrained()).get('digest', '')}"}
    for task in tasks:
        path = _weights_of(run, task, mode)
        expected: dict[str, Any] = dict(task=task, mode=MODES[mode].trained_as, seed=run.seed)
        if encoders and task in encoders:
            path, expected = Path(encoders[task]), {}
        try:
            of_weights = f"{known['image']}-"
            if path:
                of_weights = checkpoints.known_hashes(
                    checkpoints.Checkpoint(path, model=run.model, run=run, **expected)
                )
        except FileNotFoundError:
            continue
        weights, _, digest = of_weights.partition("-")
        row = registry.get(task)
        names = row.names(publisher(run, task))
        hashes = (
            _short(weights, known["text"], *names, "", *row.templates),
            digest[:SHORT],
            _head_digest(run, row, names),
        )
        made[task] = "-".join(hashes)
    return made


def _head_digest(run: Run, row: registry.Dataset, names: Sequence[str]) -> str:
    """Of the head on disk, which may be a published one; empty where there is none, or one that will be made anew."""
    try:
        header = checkpoints.header(run.paths.head(row.name), kind="head")
    except FileNotFoundError:
        return ""
    return "" if head_outdated(header, head_made_of(run, row, names)) else header.get("digest", "")[:SHORT]


def head_made_of(run: Run, row: registry.Dataset, names: Sequence[str]) -> dict[str, Any]:
    """What a zero-shot head is made of, as its header tells it. names: of the classes."""
    text_side = written_fingerprints(run).get("text")
    return dict(classnames=list(names), templates=list(row.templates), text_side=text_side)


def head_outdated(header: Mapping, made_of: Mapping) -> bool:
    """Whether a head was made of something else; what either side does not know does not count."""
    known = {key: value for key, value in made_of.items() if value is not None and header.get(key) is not None}
    return any(header[key] != value for key, value in known.items())


def _weights_of(run: Run, task: str, mode: str) -> Path | None:
    """Where the encoder that is scored on a task lies; None for θ0, which scores the control set too."""
    trained_as = MODES[mode].trained_as
    return None if trained_as is None or task == run.control else run.paths.checkpoint(task, trained_as)


def _short(*parts: str) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:SHORT]


def check_start(run: Run, path: Path, header: Mapping) -> None:
    """Raise CheckpointError for the header of a fine-tuned checkpoint that began at another θ0 than the one on disk."""
    began, theta0 = header.get("began_at"), written_fingerprints(run).get("image")
    if began and theta0 and began != theta0:
        mended = (
            f"make it again: {finetuning(run, header.get('mode') or PUBLISHED_MODE, [header.get('task') or 'TASK'])} "
            "--overwrite"
        )
        if header.get("provenance"):
            mended = "give the weights that it began at by --pretrained-path, with a --save of their own"
        raise checkpoints.CheckpointError(
            f"{path}: expected a checkpoint that was fine-tuned from {run.paths.pretrained()} (fingerprint "
            f"{theta0}), found one that began at other weights ({began}); {mended}"
        )


class StoredVector(Mapping[str, torch.Tensor]):
    """τ = θ − θ0 of two checkpoints, worked out tensor by tensor when one is asked for: none is held.

    So a process has no more of many vectors in memory than the one that it scores, and others are sent where it lies.
    shapes: of the tensors. wide: whether one of them is float64.
    """

    def __init__(self, theta: checkpoints.Checkpoint, theta0: checkpoints.Checkpoint, names: Iterable[str]):
        self.theta, self.theta0 = theta, theta0
        self.shapes = {name: theta0.shape(name) for name in names if theta0.stored(name) in FLOATING}
        self.wide = any(DOUBLE in (file.stored(name) for file in (theta, theta0)) for name in self.shapes)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return difference(self.theta, self.theta0, [name])[name]

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def stored_vector(run: Run, task: str, mode: str, step: int | None = None) -> StoredVector:
    """The tensors of `task_vector`, on disk."""
    start = pretrained(run)
    return StoredVector(finetuned(run, task, mode, step), start, [name for name in start if name.startswith(VISUAL)])


def task_vector(run: Run, task: str, mode: str, step: int | None = None) -> TaskVector:
    """τ = θ − θ0 over the tensors that are trained (`model.visual.*`); θ after `step`, or after the last."""
    start = pretrained(run)
    trained = [name for name in start if name.startswith(VISUAL)]
    return TaskVector(vector=difference(finetuned(run, task, mode, step), start, trained))


def start_of(encoder: torch.nn.Module, *vectors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """θ0: the parameters, and the buffers that vectors move, as BatchNorm's statistics."""
    buffers = {name: buffer for name, buffer in encoder.named_buffers() if any(name in vector for vector in vectors)}
    return dict(encoder.named_parameters()) | buffers


def to_device(weights: Mapping[str, torch.Tensor], device: str) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in weights.items()}
