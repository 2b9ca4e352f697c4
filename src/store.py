"""θ0 and the task vectors of a run, from the checkpoints that finetune.py wrote."""

from functools import lru_cache

import torch

from . import checkpoints
from .modeling import ImageEncoder
from .paths import Paths
from .task_vectors import TaskVector

# Post-hoc linearization puts the non-linearly fine-tuned weights into the linear model.
TRAINED_AS = {"standard": "standard", "linear": "linear", "posthoc": "standard"}
TANGENT = ("linear", "posthoc")  # modes whose model is the linear one


@lru_cache(maxsize=2)
def _encoder(
    suite: str, model: str, seed: int, cache_dir: str, pretrained_path: str | None, device: str
) -> ImageEncoder:
    from argparse import Namespace

    names = Namespace(suite=suite, model=model, seed=seed, cache_dir=cache_dir, pretrained_path=pretrained_path)
    return ImageEncoder(names).requires_grad_(False).eval().to(device)


def encoder(args) -> ImageEncoder:
    """The pre-trained encoder of `args.model` on its device, frozen; one per process. Its weights are θ0."""
    pretrained_path = getattr(args, "pretrained_path", None)
    found = _encoder(args.suite, args.model, args.seed, str(args.cache_dir), pretrained_path, args.device)
    return found


def save_pretrained(args) -> None:
    """Write θ0, which every task vector of this (suite, model, seed) is measured from, unless it is there."""
    path = Paths.of(args).pretrained()
    if not path.is_file():
        header = dict(model=args.model, mode="none", seed=args.seed, step=0)
        checkpoints.save(path, encoder(args).state_dict(), header)


def pretrained(args) -> checkpoints.Checkpoint:
    """θ0 on disk, read tensor by tensor."""
    save_pretrained(args)
    return checkpoints.Checkpoint(Paths.of(args).pretrained(), model=args.model)


def finetuned(args, task: str, mode: str) -> checkpoints.Checkpoint:
    """θ of a task for an evaluation mode. Raises FileNotFoundError that names the fine-tuning command."""
    trained = TRAINED_AS[mode]
    path = Paths.of(args).checkpoint(task, trained)
    return checkpoints.Checkpoint(path, model=args.model, task=task, mode=trained, seed=args.seed)


def task_vector(args, task: str, mode: str) -> TaskVector:
    """τ = θ − θ0 over the tensors that are trained (`model.visual.*`)."""
    start, end = pretrained(args), finetuned(args, task, mode)
    trained = [name for name in start if name.startswith("model.visual.")]
    return TaskVector(vector={name: end[name] - start[name] for name in trained if start[name].is_floating_point()})


def to_device(weights, device: str) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in weights.items()}
