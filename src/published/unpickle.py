"""Weights and arrays out of published pickles, none of which is ever run.

A pickle is a program: Python's `pickle` imports what it names and calls what it likes. Here a name stands for a `Stub`,
which only keeps what it is given, or is refused. PyTorch's restricted loader reads the files of `torch.save`; a
`pickle.Unpickler` whose `find_class` knows seven names reads those of NumPy and of CIFAR.
"""

import os
import pickle
import pickletools
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from src.runtime.messages import few

# What files of models name beside PyTorch's own safe names, and what files of arrays name.
MODEL_PACKAGES = ("torch", "torchvision", "open_clip", "clip", "src", "numpy", "PIL", "argparse", "collections")
MODEL_NAMES = ("copyreg._reconstructor", "functools.partial") + tuple(
    f"builtins.{name}" for name in ("object", "frozenset", "list", "dict", "tuple", "slice", "int", "float", "bool")
)
PARTS = ("state_dict", "model_state_dict", "model")  # of training files, which hold an optimizer and more beside it
ARRAY_NAMES = ("numpy.dtype", "numpy.ndarray") + tuple(  # NumPy 2 calls its core _core
    f"numpy.{core}.{name}" for core in ("core", "_core") for name in ("multiarray._reconstruct", "numeric._frombuffer")
)


class UnpickleError(ValueError):
    """The file is damaged, or asks for something that no model file needs. Nothing was executed."""


class Stub:
    """Stands for what a pickle names: keeps the arguments of the call that it asks for, and the state that follows."""

    def __init__(self, *args: Any) -> None:
        self.args, self.state = args, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class ArrayUnpickler(pickle.Unpickler):
    """Plain values, and a Stub for each array; any other name is refused."""

    def find_class(self, module: str, name: str) -> type:
        if (full := f"{module}.{name}") == "_codecs.encode":  # of a text and "latin1": bytes, in pickle's protocol 2
            return bytes
        if full not in ARRAY_NAMES:
            raise _hostile([full])
        return Stub


def torch_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a file that `torch.save` (1.6 or later) wrote: a state dict or a whole module.

    Raises UnpickleError.
    """
    with open(path, "rb") as stream, _refusing_damage():
        _check_archive(stream)
        names = get_unsafe_globals_in_checkpoint(stream)
        if foreign := [n for n in names if n.split(".")[0] not in MODEL_PACKAGES and n not in MODEL_NAMES]:
            raise _hostile(foreign)
        stream.seek(0)
        with safe_globals([(type(name, (Stub,), {}), name) for name in names]):
            root = torch.load(stream, map_location="cpu", weights_only=True)
        for part in PARTS:
            if isinstance(root, dict) and isinstance(root.get(part), dict | Stub):
                root = root[part]
        named = _module_tensors(root, "", set()) if isinstance(root, Stub) else _items(root)
        # A state dict may hold such as the model's name beside the weights.
        return {name: _dense(value, name) for name, value in named if not isinstance(value, str | int | float | None)}


def packed_arrays(path: Path) -> dict[str, np.ndarray]:
    """The {name: bytes} that `np.save` (or `torch.save`) wrote of a dict of uint8 arrays of one dimension.

    Raises UnpickleError.
    """
    with open(path, "rb") as stream, _refusing_damage():
        if stream.read(2) == b"PK":
            with zipfile.ZipFile(stream) as archive, archive.open(_check_archive(stream)) as entry:
                root = plain_pickle(entry)
        else:
            stream.seek(0)
            version = np.lib.format.read_magic(stream)
            read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}")
            shape, _, dtype = read_header(stream)
            if not dtype.hasobject or shape != ():
                raise UnpickleError("expected one saved dict, found an array")
            (root,) = plain_pickle(stream).state[-1]
        arrays = {name: byte_array(value) for name, value in _items(root)}
        if shapes := [array.shape for array in arrays.values() if array.ndim != 1]:
            raise UnpickleError(f"expected arrays of one dimension, found {shapes[0]}")
        return arrays


def plain_pickle(stream: IO[bytes]) -> Any:
    """What the pickle in `stream` holds: plain values, and Stubs for `byte_array`. Python 2's text is read as Latin 1.

    Raises UnpickleError.
    """
    with _refusing_damage():
        start, size = stream.tell(), stream.seek(0, os.SEEK_END)
        stream.seek(start)
        for opcode, argument, _ in pickletools.genops(stream):  # which raises for a value that is longer than the file
            # Python makes room for a frame, and for all places of its memo up to the one named, before anything else.
            if opcode.name in ("PUT", "LONG_BINPUT", "FRAME") and (argument or 0) > size:
                raise UnpickleError(f"damaged or hostile: asks for {argument} places, which {size} bytes cannot fill")
        stream.seek(start)
        return ArrayUnpickler(stream, encoding="latin1").load()


def byte_array(stub: Any) -> np.ndarray:
    """The uint8 array that a Stub of `plain_pickle` stands for. Raises UnpickleError."""
    with _refusing_damage():
        if not isinstance(stub, Stub):
            raise UnpickleError(f"expected an array of bytes, found {_described(stub)}")
        if stub.state:
            _, shape, dtype, by_column, data = stub.state  # what `ndarray.__setstate__` takes
        else:
            data, dtype, shape, order = stub.args  # of `_frombuffer`, in pickle's protocol 5
            by_column = order != "C"
        data = data.encode("latin1") if isinstance(data, str) else data  # Python 2's bytes
        if dtype.args[0] not in ("u1", "uint8") or not isinstance(data, bytes | bytearray):
            raise UnpickleError("expected an array of bytes (uint8), found another type")
        return np.frombuffer(data, np.uint8).reshape(shape, order="F" if by_column else "C")


@contextmanager
def _refusing_damage() -> Iterator[None]:
    """Turn whatever a damaged file makes its reader stumble over into an UnpickleError."""
    try:
        yield
    except UnpickleError:
        raise
    except pickle.UnpicklingError as error:
        # PyTorch wraps its reason in advice to load the file unsafely.
        reason = " ".join(str(error).split("\n\n")[-2:][0].split())
        raise UnpickleError(f"damaged, or no pickle of a model (nothing was executed): {reason}") from None
    except Exception as error:  # the readers promise no types
        raise UnpickleError(f"damaged or truncated file; fetch it again ({type(error).__name__}: {error})") from None


def _hostile(names: list[str]) -> UnpickleError:
    listed = few(sorted(map(ascii, names)))
    return UnpickleError(
        f"the pickle names {listed}, which no model file needs: take it for hostile (nothing was executed)"
    )


def _check_archive(stream: IO) -> zipfile.ZipInfo:
    """The pickle's entry, after checking that the archive is whole; the stream is then at its start."""
    size = stream.seek(0, os.SEEK_END)
    with zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
        if any(entry.filename.endswith("/constants.pkl") for entry in entries):
            raise UnpickleError(
                "expected a file of torch.save, found TorchScript, which is a program. OpenAI's own are the weights "
                "that --model=ViT-B-32 and the like take by themselves"
            )
        # Else a small file could swell to fill the memory: compressed, or because its entries overlap.
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > size:
            raise UnpickleError("expected an uncompressed archive, as torch.save writes it")
        if broken := archive.testzip():  # PyTorch compares no checksums
            raise UnpickleError(f"damaged or truncated file; fetch it again (wrong checksum of {broken!a})")
    stream.seek(0)
    pickles = [entry for entry in entries if entry.filename.partition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise UnpickleError(f"expected one entry data.pkl in the archive, found {len(pickles)}")
    return pickles[0]


def _module_tensors(module: Any, prefix: str, parents: set[int]) -> Iterator[tuple[str, Any]]:
    """What `nn.Module.state_dict` yields, in its order."""
    if not isinstance(module, Stub) or not isinstance(module.state, dict):
        raise UnpickleError(f"expected a module under {prefix!r}, found {_described(module)}")
    children = _items(module.state["_modules"])
    if children and id(module) in parents:  # such as one that holds itself: names without end
        raise UnpickleError(f"the module {prefix!r} stands in two places")
    parents.add(id(module))
    hidden = module.state.get("_non_persistent_buffers_set", ())
    buffers = [(name, buffer) for name, buffer in _items(module.state["_buffers"]) if name not in hidden]
    yield from ((f"{prefix}{name}", tensor) for name, tensor in _items(module.state["_parameters"]) + buffers)
    for name, child in children:
        if child is not None:
            yield from _module_tensors(child, f"{prefix}{name}.", parents)


def _items(node: Any) -> list[tuple[str, Any]]:
    if not isinstance(node, dict) or not all(isinstance(name, str) for name in node):
        raise UnpickleError(f"expected weights by name, found {_described(node)}")
    return list(dict.items(node))  # an OrderedDict's own could be replaced by the pickle


def _dense(value: Any, name: str) -> Tensor:
    dense = type(value) in (Tensor, nn.Parameter) and value.device.type == "cpu" and value.layout is torch.strided
    # Quantized and nested ones may reach past their memory; one that is larger than its storage repeats it.
    if not dense or value.is_quantized or value.is_nested or value.nbytes > value.untyped_storage().nbytes():
        found = "one of another kind" if isinstance(value, Tensor) else _described(value)
        raise UnpickleError(f"expected a tensor with its own numbers under {name!r}, found {found}")
    return value.detach()


def _described(node: Any) -> str:
    return f"a {type(node).__name__}"
