"""Tensors by name: whether two collections agree, τ = θ − θ0, and θ0 + α·τ."""

import math
from collections.abc import Iterable, Mapping, MutableMapping, Sequence

import numpy as np
import torch
from torch import Tensor

from src.runtime.messages import few

Weights = dict[str, Tensor]


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor by name; a collection that has `shapes` of its own, as a Checkpoint, reads no tensor."""
    known = getattr(tensors, "shapes", None)
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()} if known is None else known


def check_same(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str, error: type[Exception] = ValueError
) -> None:
    """Raise `error`, naming them, for tensors in which two collections differ by name or by shape.

    what: both collections in the plural, such as "the task vectors".
    """
    wanted, given = shapes(expected), shapes(found)
    faults = []
    if missing := sorted(wanted.keys() - given.keys()):
        faults.append(f"missing {few(missing)}")
    if unexpected := sorted(given.keys() - wanted.keys()):
        faults.append(f"unexpected {few(unexpected)}")
    reshaped = [name for name in wanted if name in given and wanted[name] != given[name]]
    if reshaped:
        faults.append(few(f"{name}: expected {wanted[name]}, found {given[name]}" for name in reshaped))
    if faults:
        raise error(f"{what} differ in their tensors: {'; '.join(faults)}")


def difference(
    theta: Mapping[str, Tensor],
    theta0: Mapping[str, Tensor],
    names: Iterable[str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Weights:
    """τ = θ − θ0 without a graph, tensor by tensor in `dtype` or in a wider type of the weights.

    names: by default those of every floating tensor of θ0: counters and other integer buffers have no difference.
    Half precision would round the differences to a few significant bits; float32 is the least.
    """
    tau = {}
    with torch.no_grad():
        for name in theta0 if names is None else names:
            start, end = theta0[name], theta[name]
            if start.is_floating_point():
                wide = torch.promote_types(dtype, torch.promote_types(start.dtype, end.dtype))
                tau[name] = end.to(wide) - start.to(wide)
    return tau


def displacement(theta: Mapping[str, Tensor], theta0: Mapping[str, Tensor]) -> Weights:
    """θ − θ0 of every tensor of θ, with its graph and in the tensors' own type: what training differentiates."""
    return {name: tensor - theta0[name] for name, tensor in theta.items()}


def relative_distance(theta: Mapping[str, Tensor], theta0: Mapping[str, Tensor], names: Iterable[str]) -> float:
    """‖θ − θ0‖ / ‖θ0‖ over the named tensors, in float64, one tensor of each at a time; 0 where θ0 is 0 and θ too."""
    far = norm = 0.0
    for name in names:
        start = theta0[name].double()
        far += float((theta[name].double() - start).square().sum())
        norm += float(start.square().sum())
    return math.sqrt(far / norm) if norm else math.inf if far else 0.0


def moved(theta0: Mapping[str, Tensor], tau: Mapping[str, Tensor], alpha: float | Tensor) -> Weights:
    """θ0 + α·τ as a new state dict, in the types and on the devices of θ0; tensors that τ does not have stay.

    Raises ValueError, naming them, for tensors of τ that θ0 lacks or has in another shape.
    """
    start = {name: theta0[name] for name in tau if name in theta0}
    check_same(start, tau, "the weights and the task vector")
    end = {}
    for name, weight in start.items():
        step = tau[name]
        wide = torch.promote_types(weight.dtype, step.dtype)
        end[name] = (weight.to(wide) + alpha * step.to(weight.device, wide)).to(weight.dtype)
    return {name: end[name] if name in end else theta0[name] for name in theta0}


def displaced(theta: Mapping[str, Tensor], tau: Mapping[str, Tensor], alpha: float) -> Weights:
    """θ + α·τ in the types of θ, rounded once and unchecked, for loops over many α; see `moved`."""
    return {**theta} | {name: torch.add(theta[name], tensor, alpha=alpha) for name, tensor in tau.items()}


def moved_over(theta0: Mapping[str, Tensor], tau: MutableMapping[str, Tensor]) -> Weights:
    """θ0 + τ, as `moved` gives it, tensor by tensor: one of θ0 is read at a time, and τ is empty in the end.

    So a merged model takes the place of its vector in memory. Raises ValueError, naming them, for tensors of τ that θ0
    lacks or has in another shape.
    """
    known = shapes(theta0)
    expected = {name: torch.empty(known[name], device="meta") for name in tau if name in known}
    check_same(expected, tau, "the weights and the task vector")
    end = {}
    for name in theta0:
        weight = theta0[name]
        end[name] = moved({name: weight}, {name: tau.pop(name)}, 1.0)[name] if name in tau else weight
    return end


def put_in_place(values: np.ndarray, places: Sequence[int]) -> None:
    """Bring to each of the places of a flat array, (n,), what sorting would bring there; needs no other array.

    NumPy selects 14 times as fast as torch.kthvalue, but 15 times as slowly as it sorts where most values are 0, as
    those of low rank are.
    """
    if 2 * np.count_nonzero(values) < len(values):
        values.sort()
    else:
        values.partition(places)
