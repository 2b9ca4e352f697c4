"""The one format of weights, masks and unfinished states on disk.

A file is safetensors whose metadata holds one JSON header: format, kind, model, task, mode, seed, step, versions, and
whatever else its writer adds (provenance, scope, ...). Pickles are refused; published ones are converted once, by
src/published/convert.py:

    python -m src.checkpoints convert nonlinear_finetuned.pt OUT.safetensors --model ViT-B-32 --task MNIST
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from src.checkpoint_headers import FIELDS, FORMAT, STORED, WEIGHTS, again, command, mark, read_head
from src.run import Run
from src.runtime.files import replacing
from src.runtime.messages import CheckpointError as CheckpointError  # there, where torch is not needed
from src.runtime.messages import MissingFile, few
from src.runtime.results import versions
from src.tensors import Weights, check_same

Masks = Mapping[str, Mapping[str, torch.Tensor]]  # task -> name -> bool tensor

VISUAL = "model.visual."  # how the names of the trained tensors, the image tower's, begin


class Checkpoint(Mapping):
    """A checkpoint on disk, read tensor by tensor: opening it reads the header alone.

    expect: header fields and the values that they must have, such as model="ViT-B-32", mode="linear"; None: any.
    like: weights (or another Checkpoint) whose names and shapes this one must share.
    run: whose it is, in whose folders the command of an error works.
    Raises FileNotFoundError, or CheckpointError for a file that is cut short, foreign, or another model's.
    """

    def __init__(
        self, path: Path, *, like: Mapping | None = None, kind: str = "weights", run: Run | None = None, **expect: Any
    ) -> None:
        self.path, self._run = path, run
        self.header, self._specs, self._size, self._mark = read_head(path, {"kind": kind} | expect, run)
        if like is not None:
            try:
                check_same(like, self, "the encoder and the checkpoint")
            except ValueError as error:
                raise CheckpointError(f"{path}: {error}; {again(self.header, path, run)}") from None
        try:
            with safe_open(path, framework="pt"):  # it sees whether offsets, shapes and types agree
                pass
        except SafetensorError as error:
            raise CheckpointError(f"{path}: damaged ({error}); {again(self.header, path, run)}") from None

    def __getitem__(self, key: str) -> torch.Tensor:
        """Raises KeyError, and CheckpointError or FileNotFoundError where the file is not what was opened any more."""
        return self.read([key])[key]

    def read(self, keys: Iterable[str]) -> Weights:
        """Some tensors; errors as for one. Their bytes alone are read, and the file is not kept open or in memory."""
        try:
            with open(self.path, "rb") as file:
                same = mark(file.read(self._size)) == self._mark
                return {key: self._tensor(key, file if same else None) for key in keys}
        except FileNotFoundError:
            make = command(self.header, self.path, self._run)
            raise MissingFile(f"expected the checkpoint {self.path}, found no file; make it with: {make}") from None

    def _tensor(self, key: str, file: BufferedReader | None) -> torch.Tensor:
        """file: None where another one has come to the path of the one that was opened."""
        if key not in self._specs:
            raise KeyError(f"{self.path} has no tensor {key!r}")
        spec = self._specs[key]
        tensor = torch.empty(spec["shape"], dtype=STORED[spec["dtype"]])
        if file is not None:
            file.seek(self._size + spec["data_offsets"][0])
            if file.readinto(tensor.reshape(-1).view(torch.uint8).numpy().data) == tensor.nbytes:
                return tensor
        raise CheckpointError(
            f"{self.path}: expected the file that was opened, to read {key}, found another, which has come to this "
            "place since; give the command again"
        )

    def __contains__(self, key: object) -> bool:
        return key in self._specs

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._specs[key]["shape"])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor, without reading one."""
        return {key: self.shape(key) for key in self}

    def stored(self, key: str) -> str:
        """The type of a tensor, as safetensors calls it."""
        return self._specs[key]["dtype"]

    def dtype(self, key: str) -> torch.dtype:
        return STORED[self.stored(key)]


def save(path: Path, weights: Mapping[str, torch.Tensor], header: Mapping, kind: str = "weights") -> None:
    """Write `weights` with `header` to `path`, whole or not at all.

    header: JSON values; `model` must be among them, the others of FIELDS are null when absent.
    kind: "weights" (of an image encoder), "head", "task vector" or "masks"; a reader of one refuses the others.
    Raises CheckpointError for weights or a head that are not finite, and StorageError.
    """
    if not header.get("model"):
        raise ValueError(f"expected a header that names its model, found {dict(header)}")
    header = {"format": FORMAT, "kind": kind} | dict.fromkeys(FIELDS) | dict(header) | {"versions": versions()}
    if kind in WEIGHTS:
        _check_finite(weights, path, "nothing was written")
        header |= {"fingerprint": fingerprint(weights), "digest": digest(weights)}
    text = json.dumps(header, allow_nan=False)
    with replacing(path) as temporary:
        try:
            save_file(own_storage(weights), temporary, metadata={"header": text})
        except SafetensorError as error:
            if number := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
            raise


def load(path: Path, *, like: Mapping | None = None, **expect: Any) -> Weights:
    """All weights of the checkpoint at `path`; arguments and errors as in Checkpoint."""
    file = Checkpoint(path, like=like, **expect)
    return file.read(file)


def header(path: Path, **expect: Any) -> dict:
    """The header of a file in the one format (of any kind), after checking that the file is whole."""
    return read_head(path, expect).header


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """A short hash by which networks are told apart: of names, shapes and up to 64 numbers of each tensor, as float32.

    Training changes every tensor, so a few numbers of each are enough, and cost milliseconds for any model, whatever
    its numbers are stored as. `digest` sees what this misses.
    """
    total = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach()
        some = tensor.flatten()[:: max(1, tensor.numel() // 64)][:64]
        total.update(f"{name} {tuple(tensor.shape)}".encode())
        total.update(some.float().cpu().numpy().tobytes())
    return total.hexdigest()[:16]


def digest(weights: Mapping[str, torch.Tensor]) -> str:
    """A short hash of every byte, with names, types and shapes: an edited row or a few masked weights change it.

    1.7 GB a second, so `save` alone takes it, and writes it into the header.
    """
    total = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()[:16]


def known_fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """As `fingerprint`; a checkpoint on disk says it in its header, but for older ones."""
    return _fingerprint_at(*_stamp(weights)) if isinstance(weights, Checkpoint) else fingerprint(weights)


def known_hashes(weights: Mapping[str, torch.Tensor]) -> str:
    """Fingerprint and, of a file that says it, digest, as results.changed compares them."""
    digest = weights.header.get("digest", "") if isinstance(weights, Checkpoint) else ""
    return f"{known_fingerprint(weights)}-{digest}"


def require_finite(file: Checkpoint) -> None:
    """Raise CheckpointError for weights that hold a NaN or an infinity. `save` writes none: what it wrote is not read.

    Merging would hide some of them: no NaN is among the largest entries of a task vector.
    """
    if "fingerprint" not in file.header:
        _check_finite_at(*_stamp(file))


def _stamp(file: Checkpoint) -> tuple[Path, str, int, int]:
    status = file.path.stat()
    return file.path, file.header["kind"], status.st_mtime_ns, status.st_size


@lru_cache(maxsize=256)
def _fingerprint_at(path: Path, kind: str, *stamp: int) -> str:
    file = Checkpoint(path, kind=kind)
    return file.header.get("fingerprint") or fingerprint(file)


@lru_cache(maxsize=256)
def _check_finite_at(path: Path, kind: str, *stamp: int) -> None:
    file = Checkpoint(path, kind=kind)
    _check_finite(file, path, again(file.header, path))


def _check_finite(weights: Mapping[str, torch.Tensor], path: Path, mend: str) -> None:
    if broken := [name for name in weights if not torch.isfinite(weights[name]).all()]:
        raise CheckpointError(f"{path}: expected finite numbers, found NaN or infinity in {few(broken)}; {mend}")


class PackedMask(Mapping):
    """A mask in memory as it is on disk, one bit for each weight: name -> bool tensor, made when it is read.

    packed: name -> uint8, (⌈weights / 8⌉,). shapes: name -> that of the tensor. Equal to any mapping of equal tensors.
    """

    def __init__(self, packed: Mapping[str, torch.Tensor], shapes: Mapping[str, Sequence[int]]):
        self.packed, self.shapes = dict(packed), {name: tuple(shape) for name, shape in shapes.items()}

    @classmethod
    def of(cls, mask: Mapping[str, torch.Tensor]) -> "PackedMask":
        """Raises TypeError for tensors that are not bool."""
        if isinstance(mask, cls):
            return mask
        packed, shapes = {}, {}
        for name, bits in mask.items():
            packed[name], shapes[name] = _pack(bits), tuple(bits.shape)
        return cls(packed, shapes)

    def only(self, names: Collection[str]) -> "PackedMask":
        """Of these names alone, as far as there are such."""
        packed = {name: bits for name, bits in self.packed.items() if name in names}
        return PackedMask(packed, {name: self.shapes[name] for name in packed})

    def __getitem__(self, name: str) -> torch.Tensor:
        return _unpack(self.packed[name].numpy(), self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.packed)

    def __len__(self) -> int:
        return len(self.packed)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping) or self.keys() != other.keys():
            return False
        return all(torch.equal(bits, other[name]) for name, bits in self.items())


def save_masks(path: Path, masks: Masks, header: Mapping) -> None:
    """Write {task: {name: bool tensor}} with one bit per weight; all tasks mask the same names and shapes."""
    packed = {task: PackedMask.of(named) for task, named in masks.items()}
    first = next((mask.shapes for mask in packed.values()), {})
    for task, mask in packed.items():
        if mask.shapes != first:
            raise ValueError(f"expected masks of one set of shapes for all tasks, found others for {task}")
    bits = {f"{task}/{name}": tensor for task, mask in packed.items() for name, tensor in mask.packed.items()}
    shapes = {name: list(shape) for name, shape in first.items()}
    save(path, bits, dict(header) | {"tasks": list(masks), "shapes": shapes}, kind="masks")


def load_masks(path: Path, **expect: Any) -> dict[str, PackedMask]:
    """{task: mask} from `path`, packed; `expect` as in Checkpoint, `tasks=[...]` and `scope=...` among them."""
    file = Checkpoint(path, kind="masks", **expect)
    require(file, "tasks", "shapes")
    shapes, tasks = file.header["shapes"], file.header["tasks"]
    sizes = {f"{task}/{name}": (-(-math.prod(shape) // 8),) for task in tasks for name, shape in shapes.items()}
    if wrong := [key for key, size in sizes.items() if file.shapes.get(key) != size or file.stored(key) != "U8"]:
        raise CheckpointError(
            f"{path}: expected one bit for each weight of every task, found none or others for {few(wrong)}; "
            f"{again(file.header, path)}"
        )
    bits = file.read(sizes)
    return {task: PackedMask({name: bits[f"{task}/{name}"] for name in shapes}, shapes) for task in tasks}


def require(file: Checkpoint, *fields: str) -> None:
    """Raise CheckpointError for a file whose header lacks one of the fields."""
    if missing := [field for field in fields if file.header.get(field) is None]:
        raise CheckpointError(
            f"{file.path}: expected {', '.join(fields)} in its header, found no {', '.join(missing)}; remove it, or "
            "start anew with --overwrite (main.py: overwrite=True)"
        )


def own_storage(weights: Mapping[str, torch.Tensor]) -> Weights:
    """The weights as safetensors wants them: contiguous, on the CPU, no two sharing memory."""
    owned: Weights = {}
    seen = set()
    for key, tensor in weights.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().nbytes() != tensor.nbytes or tensor.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        owned[key] = tensor
    return owned


def _pack(mask: torch.Tensor) -> torch.Tensor:
    if mask.dtype != torch.bool:
        raise TypeError(f"expected a bool mask, found {mask.dtype}")
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy()))


def _unpack(packed: np.ndarray, shape: Sequence[int]) -> torch.Tensor:
    bits = np.unpackbits(packed, count=math.prod(shape))
    return torch.from_numpy(bits.view(bool).reshape(shape))


if __name__ == "__main__":
    import runpy  # `convert` has moved; its documented address stays

    runpy.run_module("src.published.convert", run_name="__main__")
