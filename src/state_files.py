"""What an unfinished run goes on from: its weights and the moments of its optimizers, as a checkpoint."""

from collections.abc import Mapping
from pathlib import Path

import torch

from src import checkpoints
from src.checkpoints import Checkpoint, CheckpointError
from src.tensors import Weights, check_same


def save(
    path: Path,
    weights: Mapping[str, Mapping[str, torch.Tensor]],
    optimizers: Mapping[str, torch.optim.Optimizer],
    header: Mapping,
    kind: str,
) -> None:
    """Write what an unfinished run goes on from, as a checkpoint of this `kind`.

    weights: tensors by name, in groups: {"model": {"proj": ...}}. optimizers: by a name that no group has.
    """
    checkpoints.save(path, tensors(weights, optimizers), header, kind=kind)


def load(
    state: Checkpoint,
    optimizers: Mapping[str, torch.optim.Optimizer],
    like: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> dict[str, Weights]:
    """The groups of weights that `save` wrote; the moments of the optimizers are restored in place.

    like: weights whose names and shapes the groups must share. Raises CheckpointError for a state of other tensors.
    """
    weights: dict[str, Weights] = {}
    restored = {name: optimizer.state_dict() | {"state": {}} for name, optimizer in optimizers.items()}
    try:
        for key, tensor in state.read(state).items():
            group, _, name = key.partition("/")
            if group in restored:
                index, moment = name.split("/")
                _check_moment(optimizers[group], int(index), moment, state.shape(key))
                restored[group]["state"].setdefault(int(index), {})[moment] = tensor
            else:
                weights.setdefault(group, {})[name] = tensor
        for group, named in (like or {}).items():
            check_same(named, weights.get(group, {}), f"the {group} and the state")
    except ValueError as error:
        raise CheckpointError(
            f"{state.path}: expected the state of this run, found other tensors ({error}); remove it, or start anew "
            "with --overwrite (main.py: overwrite=True)"
        ) from None
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(restored[name])
    return weights


def _check_moment(optimizer: torch.optim.Optimizer, index: int, moment: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError for a moment that is none of a parameter of the optimizer: of its shape, or one number."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not 0 <= index < len(parameters):
        raise ValueError(f"{moment} of parameter {index}, of {len(parameters)}")
    if shape not in ((), tuple(parameters[index].shape)):
        raise ValueError(f"{moment} of shape {shape} for a parameter of shape {tuple(parameters[index].shape)}")


def tensors(
    weights: Mapping[str, Mapping[str, torch.Tensor]], optimizers: Mapping[str, torch.optim.Optimizer]
) -> Weights:
    """What `save` writes: "group/name" of the weights, "optimizer/index/moment" of the moments."""
    named_tensors = {f"{group}/{name}": t.detach() for group, named in weights.items() for name, t in named.items()}
    for name, optimizer in optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            named_tensors |= {f"{name}/{index}/{moment}": value for moment, value in moments.items()}
    return named_tensors
