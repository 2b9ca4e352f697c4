"""θ0 and the task vectors of a run, from the checkpoints that finetune.py wrote."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch

from src import checkpoints
from src.checkpoints import VISUAL
from src.modeling import ImageEncoder
from src.runtime.paths import Paths
from src.task_vectors import TaskVector

# Post-hoc linearization puts the non-linearly fine-tuned weights into the linear model.
TRAINED_AS = {"standard": "standard", "linear": "linear", "posthoc": "standard"}
TANGENT = ("linear", "posthoc")  # modes whose model is the linear one


@lru_cache(maxsize=2)
def _encoder(
    suite: str, model: str, seed: int, cache_dir: str, pretrained_path: str | None, device: str, theta0: Path
) -> ImageEncoder:
    from argparse import Namespace

    names = Namespace(suite=suite, model=model, seed=seed, cache_dir=cache_dir, pretrained_path=pretrained_path)
    built = ImageEncoder(names)
    check_pretrained(theta0, built.state_dict())
    return built.requires_grad_(False).eval().to(device)


def encoder(args) -> ImageEncoder:
    """The pre-trained encoder of `args.model` on its device, frozen; one per process. Its weights are θ0.

    Raises CheckpointError where θ0 on disk is another.
    """
    torch.backends.cudnn.allow_tf32 = False  # evaluation is in fp32, also after a fine-tuning with --precision=tf32
    pretrained_path = getattr(args, "pretrained_path", None)
    names = (args.suite, args.model, args.seed, str(args.cache_dir), pretrained_path)
    return _encoder(*names, args.device, Paths.of(args).pretrained())


def save_pretrained(args) -> None:
    """Write θ0, which every task vector of this (suite, model, seed) is measured from, unless it is there."""
    path = Paths.of(args).pretrained()
    if not path.is_file():
        weights = encoder(args).state_dict()
        header = dict(model=args.model, mode="none", seed=args.seed, step=0)
        checkpoints.save(path, weights, header | {"fingerprints": fingerprints(weights)})


def check_pretrained(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Raise CheckpointError where there is a θ0 at `path` other than these weights, which the source gives now."""
    if not path.is_file():
        return
    ours, header = fingerprints(weights), checkpoints.header(path)
    found = header.get("fingerprints", ours)  # older files do not say
    if found != ours:
        raise checkpoints.CheckpointError(
            f"{path}: expected the pre-trained weights of {header['model']} (fingerprint {ours['image']}), found "
            f"others ({found['image']}), from another --pretrained-path or version, and the checkpoints beside it "
            "belong to those; repeat the earlier weights, or keep these apart with --save=ANOTHER_FOLDER"
        )


def fingerprints(weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Of the image tower, which task vectors are measured from, and of the text side, which heads are made with."""
    image = {name: tensor for name, tensor in weights.items() if name.startswith(VISUAL)}
    text = {name: tensor for name, tensor in weights.items() if not name.startswith((VISUAL, "model.transformer."))}
    return {"image": checkpoints.fingerprint(image), "text": checkpoints.fingerprint(text)}


def written_fingerprints(args) -> dict[str, str]:
    """Those of θ0 on disk; empty where it is not there, or too old to say."""
    path = Paths.of(args).pretrained()
    return checkpoints.header(path).get("fingerprints", {}) if path.is_file() else {}


def pretrained(args) -> checkpoints.Checkpoint:
    """θ0 on disk, read tensor by tensor."""
    save_pretrained(args)
    return checkpoints.Checkpoint(Paths.of(args).pretrained(), model=args.model)


def finetuned(args, task: str, mode: str) -> checkpoints.Checkpoint:
    """θ of a task for an evaluation mode.

    Raises FileNotFoundError that names the fine-tuning command, or CheckpointError where θ began at another θ0.
    """
    trained = TRAINED_AS[mode]
    path = Paths.of(args).checkpoint(task, trained)
    found = checkpoints.Checkpoint(path, model=args.model, task=task, mode=trained, seed=args.seed)
    check_start(args, path, found.header)
    return found


def check_start(args, path: Path, header: Mapping) -> None:
    """Raise CheckpointError for the header of a fine-tuned checkpoint that began at another θ0 than the one on disk."""
    began, theta0 = header.get("began_at"), written_fingerprints(args).get("image")
    if began and theta0 and began != theta0:
        raise checkpoints.CheckpointError(
            f"{path}: expected a checkpoint that was fine-tuned from {Paths.of(args).pretrained()} (fingerprint "
            f"{theta0}), found one that began at other weights ({began}); make it again: python finetune.py "
            f"--model={args.model} --seed={args.seed} --tasks={header['task']} --finetuning-mode={header['mode']} "
            "--overwrite"
        )


def task_vector(args, task: str, mode: str) -> TaskVector:
    """τ = θ − θ0 over the tensors that are trained (`model.visual.*`)."""
    start, end = pretrained(args), finetuned(args, task, mode)
    trained = [name for name in start if name.startswith(VISUAL)]
    return TaskVector(vector={name: end[name] - start[name] for name in trained if start[name].is_floating_point()})


def to_device(weights, device: str) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in weights.items()}
