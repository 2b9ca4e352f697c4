"""The head of a checkpoint: checked without reading a number; a fault names the command that mends it."""

import hashlib
import os
import shlex
import struct
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Required

import torch
from pydantic import NonNegativeInt, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # Python's own does not serve pydantic before 3.12

from src.run import Run, as_flags, as_overrides, run_at
from src.runtime.files import describe_start, parse_json
from src.runtime.messages import CheckpointError, MissingFile, few

FORMAT = 1
FIELDS = ("model", "task", "mode", "seed", "step")
WEIGHTS = ("weights", "head", "task vector")  # kinds of files whose tensors are computed with
STORED = {  # types of tensors as safetensors calls them
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NUMBERS = STORED.keys() - {"BOOL"}
MAX_HEADER = 100_000_000  # bytes: safetensors' own limit


class Header(TypedDict, total=False):
    """What a header may hold, as far as a reader relies on it."""

    kind: Required[str]
    model: Required[str]
    task: str | None
    mode: str | None
    seed: int | None
    step: NonNegativeInt | None
    scope: str | None
    method: str | None
    provenance: dict[str, Any] | None
    settings: dict[str, Any]
    phases: dict[str, NonNegativeInt]
    curves: dict[str, Any]
    tasks: list[str]
    shapes: dict[str, list[NonNegativeInt]]
    fingerprint: str
    digest: str
    fingerprints: dict[str, str]
    made_of: dict[str, str]
    began_at: str | None
    text_side: str | None
    classnames: list[str]
    templates: list[str]


_HEADER = TypeAdapter(Header)


class Head(NamedTuple):
    """A file's head, which stands before its numbers. size: of the head, in bytes. mark: a hash of it."""

    header: dict
    specs: Mapping[str, Any]
    size: int
    mark: bytes


def mark(head: bytes) -> bytes:
    """A hash of a file's head. The heads of weights, heads and task vectors hold the digest of their numbers."""
    return hashlib.sha256(head).digest()


def read_head(path: Path, expect: Mapping, run: Run | None = None) -> Head:
    """The JSON header and the tensors' specifications, after checking that the file is whole and as expected."""
    expect = {field: list(v) if isinstance(v, tuple) else v for field, v in expect.items() if v is not None}
    mend = again(expect, path, run)
    if not path.is_file():
        raise MissingFile(f"expected the checkpoint {path}, found no file; make it with: {command(expect, path, run)}")
    with open(path, "rb") as file:
        start = file.read(9)
        length = struct.unpack("<Q", start[:8])[0] if len(start) == 9 else 0
        if not 0 < length <= MAX_HEADER or start[8:] != b"{":
            cure = f"convert it with: {_convert_command(path, expect)}" if start[:1] in b"P\x93" and start else mend
            raise CheckpointError(f"expected a checkpoint in {path}, found {describe_start(start)}; {cure}")
        file.seek(8)
        text = file.read(length)
        size = os.fstat(file.fileno()).st_size
    try:
        specs, about = _parsed(text)
        header = about and parse_json(about)
        expected = 8 + length + max((spec["data_offsets"][1] for spec in specs.values()), default=0)
    except (ValueError, LookupError, TypeError, AttributeError):
        specs, header, expected = {}, None, 8 + length  # the header itself is cut short, or damaged
    if size != expected:
        fault = "cut short" if size < expected else "damaged"
        raise CheckpointError(f"{path}: expected {expected} bytes, found {size}: it is {fault}; {mend}")
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(
            f"expected a checkpoint in {path}, found safetensors without this project's header (format {FORMAT}); "
            f"if it is a published one, convert it with: {_convert_command(path, expect)}"
        )
    try:
        _HEADER.validate_python(header)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise CheckpointError(
            f"{path}: expected this project's header, found {'.'.join(map(str, first['loc']))}: "
            f"{first['msg'].lower()}; {mend}"
        ) from None
    known = NUMBERS if header["kind"] in WEIGHTS else STORED
    if strange := [name for name, spec in specs.items() if spec["dtype"] not in known]:
        raise CheckpointError(
            f"{path}: expected numbers in every tensor, found {specs[strange[0]]['dtype']} in {few(strange)}; {mend}"
        )
    for field, value in expect.items():
        if header.get(field) != value:
            raise CheckpointError(
                f"{path}: expected {field} {value!r}, found {header.get(field)!r}; make the expected one with: "
                f"{command(header | expect, path, run)}"
            )
    return Head(header, specs, 8 + length, mark(start[:8] + text))


@lru_cache(maxsize=64)  # the checkpoints of a run are opened again and again; each has a header of its own to change
def _parsed(text: bytes) -> tuple[Mapping[str, Any], bytes | None]:
    """The specifications of the tensors, and the text of the project's header. Raises all that damaged ones make."""
    specs = parse_json(text.rstrip())
    metadata = specs.pop("__metadata__", {})
    for spec in specs.values():
        sizes = (*spec["shape"], *spec["data_offsets"])
        if not (isinstance(spec["dtype"], str) and len(spec["data_offsets"]) == 2):
            raise ValueError(f"a specification {spec}")
        if not all(isinstance(size, int) and 0 <= size < 1 << 60 for size in sizes):
            raise ValueError(f"sizes {sizes}")
    return specs, metadata["header"].encode() if "header" in metadata else None


def command(fields: Mapping, path: Path, run: Run | None = None) -> str:
    """The command that makes a checkpoint (or masks) with these header fields at `path`, as far as they are known.

    run: whose it is, in whose folders the command works; by default the place of the file tells one of them.
    """
    run = run or run_at(path, "save")
    named = {name: fields[name] for name in ("model", "seed") if fields.get(name) is not None}
    if run:
        named = replace(run, corruption=None).named() | named  # which is of test images alone
    if fields.get("kind") == "masks":
        return f"python main.py {as_overrides({'model': '...'} | named)} method=tall_mask"
    given = {"model": named.pop("model", None), "tasks": fields.get("task"), "finetuning_mode": fields.get("mode")}
    if fields.get("mode") == "none":  # θ0, which any fine-tuning writes first
        del given["finetuning_mode"]
    known = {name: value for name, value in given.items() if value is not None}
    return f"python finetune.py {as_flags(known | named)}".rstrip()


def again(fields: Mapping, path: Path, run: Run | None = None) -> str:
    """How to mend a file that is there: its command by itself would come to it again, or skip what it is beside."""
    if "provenance" in fields:  # it was published: no command of ours makes it
        return "it was converted from a published file; fetch it anew with download_checkpoints.py --overwrite"
    anew = command(fields, path, run) + " overwrite=True" * (fields.get("kind") == "masks")
    if fields.get("task") or fields.get("kind") == "masks":
        return f"remove it and make it again: {anew}"
    return f"give another file; or, where it is the suite's own, remove it and make it again: {anew}"


def _convert_command(path: Path, fields: Mapping) -> str:
    known = [f"--{field} {fields.get(field)}" for field in ("task", "mode") if fields.get(field)]
    model = fields.get("model") or "MODEL"
    start = shlex.join(["python", "-m", "src.checkpoints", "convert", str(path), "OUT.safetensors"])
    return " ".join([start, f"--model {model}", *known])
