"""Weights out of pickles that are never executed.

A pickle is a program: Python's `pickle` imports what it names and calls what it likes, so that loading a checkpoint of
unknown origin runs its author's code. The machine in `parse` knows the same stack, but has no import and no call: a
name becomes a `Name`, a call becomes a `Call` that only records what was asked for. `torch_weights` and `packed_arrays`
then rebuild tensors and arrays from the few recorded calls that they know, and ignore the rest.
"""

import functools
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch

# What model files name. Nothing here is ever imported or called; a name outside says that the file is no model file.
KNOWN_PACKAGES = ("torch", "torchvision", "open_clip", "clip", "src", "numpy", "PIL", "argparse", "collections")
KNOWN_NAMES = ("_codecs.encode", "copyreg._reconstructor", "functools.partial") + tuple(
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in ("object", "set", "frozenset", "list", "dict", "tuple", "slice", "bytearray", "int", "float", "bool")
)
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class UnpickleError(ValueError):
    """The file is damaged, or asks for something that no model file needs. Nothing was executed."""


class Name(NamedTuple):
    """What the pickle would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Stored(NamedTuple):
    """What the pickle keeps outside of itself: ("storage", type, key, device, number of elements)."""

    id: Any


@dataclass(eq=False)
class Call:
    """What the pickle would make by calling `function(*args)`, then handing it `state` and `items`."""

    function: Any
    args: tuple
    state: Any = None
    items: list = field(default_factory=list)  # pairs when they were set by key


def _refusing_damage(read: Callable) -> Callable:
    """Turn whatever a damaged file makes `read` stumble over into an UnpickleError."""

    @functools.wraps(read)
    def careful(source: Any) -> Any:
        try:
            return read(source)
        except UnpickleError:
            raise
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RuntimeError,
            EOFError,
            zipfile.BadZipFile,
        ) as error:
            raise UnpickleError(f"damaged or truncated file: {error}") from None

    return careful


@_refusing_damage
def parse(stream: BinaryIO) -> Any:
    """What the pickle in `stream` describes: Python's own plain values, with Name, Call and Stored in them."""
    return _Machine().run(stream)


@_refusing_damage
def torch_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name of a file that `torch.save` (1.6 or later) wrote: a state dict or a whole module."""
    with zipfile.ZipFile(path) as archive:
        root = parse(archive.open(_entry(archive, "data.pkl")))
        storages: dict[str, torch.Tensor] = {}
        return {name: _tensor(node, archive, storages) for name, node in _named_tensors(root)}


@_refusing_damage
def packed_arrays(path: Path) -> dict[str, np.ndarray]:
    """The {name: bytes} that `np.save` (or `torch.save`) wrote of a dict of uint8 arrays."""
    with open(path, "rb") as stream:
        is_zip = stream.read(2) == b"PK"
        stream.seek(0)
        if is_zip:
            with zipfile.ZipFile(stream) as archive:
                root = parse(archive.open(_entry(archive, "data.pkl")))
        else:
            root = _object_of_npy(stream)
    if not isinstance(root, dict):
        raise UnpickleError("expected a dict of arrays, found something else")
    return {str(name): _array(node) for name, node in root.items()}


class _Machine:
    """The stack machine of pickle, without its two dangerous instructions."""

    def __init__(self) -> None:
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> Any:
        for opcode, argument, _ in pickletools.genops(stream):
            instruction = _INSTRUCTIONS.get(opcode.name)
            if instruction is None:
                raise UnpickleError(f"the pickle uses {opcode.name}, which no model file does")
            instruction(self, argument)
        return self.stack.pop()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> tuple:
        if count > len(self.stack):
            raise UnpickleError("damaged pickle: it takes more from its stack than there is")
        start = len(self.stack) - count
        values = tuple(self.stack[start:])
        del self.stack[start:]
        return values

    def pop_to_mark(self) -> tuple:
        return self.pop(len(self.stack) - self.marks.pop())

    def name(self, module: str, name: str) -> None:
        if module.split(".")[0] not in KNOWN_PACKAGES and f"{module}.{name}" not in KNOWN_NAMES:
            raise UnpickleError(
                f"the pickle names {module}.{name}, which no model file needs: "
                "take it for hostile (nothing was executed)"
            )
        self.push(Name(module, name))

    def call(self, function: Any, args: Any, *keywords: Any) -> None:
        self.push(Call(function, tuple(args) + keywords))

    def add(self, values: tuple) -> None:
        target = self.stack[-1]
        if isinstance(target, Call):
            target.items.extend(values)
        elif isinstance(target, set):
            target.update(values)
        else:
            target.extend(values)

    def set_items(self, values: tuple) -> None:
        target = self.stack[-1]
        if isinstance(target, Call):
            target.items.extend(_dict(values).items())
        else:
            target.update(_dict(values))

    def build(self, state: Any) -> None:
        if not isinstance(self.stack[-1], Call):
            raise UnpickleError("the pickle gives a state to a plain value, which no model file does")
        self.stack[-1].state = state


def _dict(values: tuple) -> dict:
    return dict(zip(values[::2], values[1::2], strict=True))


def _constant(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(value)


_INSTRUCTIONS = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "EMPTY_TUPLE": _constant(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": lambda machine, _: machine.pop(1),
    "POP_MARK": lambda machine, _: machine.pop_to_mark(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "TUPLE": lambda machine, _: machine.push(machine.pop_to_mark()),
    "TUPLE1": lambda machine, _: machine.push(machine.pop(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.pop(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.pop(3)),
    "LIST": lambda machine, _: machine.push(list(machine.pop_to_mark())),
    "FROZENSET": lambda machine, _: machine.push(frozenset(machine.pop_to_mark())),
    "DICT": lambda machine, _: machine.push(_dict(machine.pop_to_mark())),
    "APPEND": lambda machine, _: machine.add(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.add(machine.pop_to_mark()),
    "ADDITEMS": lambda machine, _: machine.add(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "MEMOIZE": lambda machine, _: machine.memo.update({len(machine.memo): machine.stack[-1]}),
    "GLOBAL": lambda machine, argument: machine.name(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.pop(2)),
    "REDUCE": lambda machine, _: machine.call(*machine.pop(2)),
    "NEWOBJ": lambda machine, _: machine.call(*machine.pop(2)),
    "NEWOBJ_EX": lambda machine, _: machine.call(*machine.pop(3)),
    "BUILD": lambda machine, _: machine.build(*machine.pop(1)),
    "BINPERSID": lambda machine, _: machine.push(Stored(*machine.pop(1))),
}
_LITERALS = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
)
_INSTRUCTIONS |= dict.fromkeys(_LITERALS.split(), _Machine.push)
_INSTRUCTIONS |= dict.fromkeys(
    ("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, argument: machine.memo.update({argument: machine.stack[-1]})
)
_INSTRUCTIONS |= dict.fromkeys(
    ("GET", "BINGET", "LONG_BINGET"), lambda machine, argument: machine.push(machine.memo[argument])
)


def _named_tensors(root: Any) -> Iterator[tuple[str, Call]]:
    if isinstance(root, Call) and isinstance(root.state, dict) and "_modules" in root.state:
        yield from _of_module(root, "")
        return
    for name, node in _pairs(root):
        if _is_call(node, "_rebuild"):
            yield str(name), node
        elif not isinstance(node, (str, int, float, type(None))):  # such as a model's name beside its weights
            raise UnpickleError(f"expected a tensor under {name!r}, found {_describe(node)}")


def _of_module(module: Any, prefix: str) -> Iterator[tuple[str, Call]]:
    """What `nn.Module.state_dict` yields, in its order."""
    if not isinstance(module, Call) or not isinstance(module.state, dict):
        raise UnpickleError(f"expected a module under {prefix!r}, found {_describe(module)}")
    hidden = module.state.get("_non_persistent_buffers_set", ())
    hidden = hidden.args[0] if isinstance(hidden, Call) and hidden.args else hidden
    tensors = _pairs(module.state.get("_parameters", {}))
    tensors += [(name, node) for name, node in _pairs(module.state.get("_buffers", {})) if name not in hidden]
    yield from ((f"{prefix}{name}", node) for name, node in tensors if node is not None)
    for name, child in _pairs(module.state["_modules"]):
        if child is not None:
            yield from _of_module(child, f"{prefix}{name}.")


def _pairs(node: Any) -> list[tuple[Any, Any]]:
    """The items of a dict, or of a Call that stands for an OrderedDict."""
    if isinstance(node, dict):
        return list(node.items())
    if _is_call(node, "OrderedDict") and all(isinstance(item, tuple) and len(item) == 2 for item in node.items):
        return node.items
    raise UnpickleError(f"expected weights by name, found {_describe(node)}")


def _tensor(node: Any, archive: zipfile.ZipFile, storages: dict[str, torch.Tensor]) -> torch.Tensor:
    """The tensor that `node` describes; tensors that share a storage in the file share it here."""
    while _is_call(node, "_rebuild_parameter") and node.args:
        node = node.args[0]
    if not _is_call(node, "_rebuild_tensor") or len(node.args) < 4 or not isinstance(node.args[0], Stored):
        raise UnpickleError(f"expected a tensor, found {_describe(node)}")
    stored, offset, size, stride = node.args[:4]
    return _storage(stored, archive, storages).as_strided(size, stride, offset)


def _storage(stored: Stored, archive: zipfile.ZipFile, storages: dict[str, torch.Tensor]) -> torch.Tensor:
    if not isinstance(stored.id, tuple) or len(stored.id) != 5 or not isinstance(stored.id[1], Name):
        raise UnpickleError(f"expected a storage, found {_describe(stored.id)}")
    _, kind, key, _, elements = stored.id
    if kind.name not in DTYPES:
        raise UnpickleError(f"expected a storage of one of {', '.join(DTYPES)}, found {kind}")
    if key not in storages:
        data = bytearray(archive.read(_entry(archive, f"data/{key}")))
        if len(data) != elements * DTYPES[kind.name].itemsize:
            raise UnpickleError(f"expected {elements} elements of {kind} in storage {key}, found {len(data)} bytes")
        storages[key] = torch.frombuffer(data, dtype=DTYPES[kind.name]) if data else torch.empty(0)
    return storages[key]


def _entry(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """The archive's entry of that name: torch.save puts all of them in one folder, named as it likes."""
    matches = [entry for entry in archive.infolist() if entry.filename.partition("/")[2] == name]
    if len(matches) != 1:
        raise UnpickleError(f"expected one entry {name} in the archive, found {len(matches)}")
    if matches[0].compress_type != zipfile.ZIP_STORED:  # so a small file cannot swell to fill the memory
        raise UnpickleError(f"expected {name} uncompressed, as torch.save writes it")
    return matches[0]


def _object_of_npy(stream: BinaryIO) -> Any:
    """The one Python object that `np.save` pickled behind the header of a .npy file."""
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(stream)
    root = parse(stream) if dtype.hasobject and shape == () else None
    if not _is_call(root, "_reconstruct") or not isinstance(root.state, tuple) or not root.state[-1:]:
        raise UnpickleError("expected one saved dict, found an array")
    items = root.state[-1]
    return items[0] if isinstance(items, list) and len(items) == 1 else None


def _array(node: Any) -> np.ndarray:
    """A one-dimensional uint8 array: NumPy pickles it as raw bytes, in one of two ways."""
    if _is_call(node, "_reconstruct") and isinstance(node.state, tuple) and len(node.state) == 5:
        _, shape, dtype, _, data = node.state
    elif _is_call(node, "_frombuffer") and len(node.args) == 4:
        data, dtype, shape, _ = node.args
    else:
        raise UnpickleError(f"expected an array of bytes, found {_describe(node)}")
    if _is_call(data, "encode") and len(data.args) == 2 and data.args[1] == "latin1":  # bytes, in pickle's protocol 2
        data = data.args[0].encode("latin1")
    if not _is_call(dtype, "dtype") or dtype.args[0] not in ("u1", "uint8") or not isinstance(data, (bytes, bytearray)):
        raise UnpickleError("expected an array of packed bytes (uint8), found another type")
    if shape != (len(data),):
        raise UnpickleError(f"expected {shape} packed bytes, found {len(data)}")
    return np.frombuffer(data, dtype=np.uint8)


def _is_call(node: Any, name: str) -> bool:
    """Whether `node` records a call of a function whose name starts with `name`."""
    return isinstance(node, Call) and isinstance(node.function, Name) and node.function.name.startswith(name)


def _describe(node: Any) -> str:
    return f"a call of {node.function}" if isinstance(node, Call) else f"a {type(node).__name__}"
