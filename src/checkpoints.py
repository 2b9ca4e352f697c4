"""The one format of weights and masks on disk, and converters of the published ones.

A file is safetensors whose metadata holds one JSON header: format, kind, model, task, mode, seed, step, versions, and
whatever else its writer adds (provenance, scope, ...). Pickles are refused; published ones are converted once:

    python -m src.checkpoints convert nonlinear_finetuned.pt OUT.safetensors --model ViT-B-32 --task MNIST
    python -m src.checkpoints convert model.safetensors OUT.safetensors --model ViT-B-32 --task MNIST --pretrained ZERO
    python -m src.checkpoints convert TALL_mask_8task.npy OUT.safetensors --model ViT-B-32 --pretrained ZERO

where ZERO is the checkpoint of the pre-trained encoder.
"""

import argparse
import hashlib
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from src.published import unpickle
from src.runtime.files import file_hash, replacing
from src.runtime.messages import few
from src.runtime.results import versions

Weights = dict[str, torch.Tensor]
Masks = dict[str, Weights]  # task -> name -> bool tensor

VISUAL = "model.visual."  # how the names of the trained tensors, the image tower's, begin
FORMAT = 1
FIELDS = ("model", "task", "mode", "seed", "step")
MAX_HEADER = 100_000_000  # bytes: safetensors' own limit

# Hugging Face's CLIPVisionModel -> open_clip's visual tower. Keys and values are fused with the query.
_BLOCK, _KIND = r"encoder\.layers\.(\d+)\.", r"\.(weight|bias)"
HUGGING_FACE = {
    r"embeddings\.class_embedding": "class_embedding",
    r"embeddings\.position_embedding\.weight": "positional_embedding",
    r"embeddings\.patch_embedding\.weight": "conv1.weight",
    rf"pre_layrnorm{_KIND}": r"ln_pre.\1",
    rf"post_layernorm{_KIND}": r"ln_post.\1",
    rf"{_BLOCK}layer_norm([12]){_KIND}": r"transformer.resblocks.\1.ln_\2.\3",
    rf"{_BLOCK}self_attn\.q_proj{_KIND}": r"transformer.resblocks.\1.attn.in_proj_\2",
    rf"{_BLOCK}self_attn\.out_proj{_KIND}": r"transformer.resblocks.\1.attn.out_proj.\2",
    rf"{_BLOCK}mlp\.fc1{_KIND}": r"transformer.resblocks.\1.mlp.c_fc.\2",
    rf"{_BLOCK}mlp\.fc2{_KIND}": r"transformer.resblocks.\1.mlp.c_proj.\2",
}


class CheckpointError(ValueError):
    """A file that is not the checkpoint it should be: what was expected, what was found, the command that mends it."""


class Checkpoint(Mapping):
    """A checkpoint on disk, read tensor by tensor: opening it reads the header alone.

    expect: header fields and the values that they must have, such as model="ViT-B-32", mode="linear"; None: any.
    like: weights (or another Checkpoint) whose names and shapes this one must share.
    Raises FileNotFoundError, or CheckpointError for a file that is cut short, foreign, or another model's.
    """

    def __init__(self, path: Path, *, like: Mapping | None = None, kind: str = "weights", **expect: Any) -> None:
        self.path = path
        self.header, self._specs = _read_header(path, {"kind": kind} | expect)
        if like is not None:
            try:
                _check_shapes(_shapes(self), _shapes(like))
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {error}; make it again: {_command(self.header)}") from None
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise CheckpointError(f"{path}: damaged ({error}); make it again: {_command(self.header)}") from None

    def __getitem__(self, key: str) -> torch.Tensor:
        if key not in self._specs:
            raise KeyError(f"{self.path} has no tensor {key!r}")
        with safe_open(self.path, framework="pt") as file:  # one open for long would keep all that was read in memory
            return file.get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._specs[key]["shape"])

    def dtype(self, key: str) -> torch.dtype:
        return self[key].dtype


def save(path: Path, weights: Mapping[str, torch.Tensor], header: Mapping, kind: str = "weights") -> None:
    """Write `weights` with `header` to `path`, whole or not at all.

    header: JSON values; `model` must be among them, the others of FIELDS are null when absent.
    kind: "weights" (of an image encoder), "head" or "masks"; a reader that expects one kind refuses the others.
    """
    if not header.get("model"):
        raise ValueError(f"expected a header that names its model, found {dict(header)}")
    header = {"format": FORMAT, "kind": kind} | dict.fromkeys(FIELDS) | dict(header) | {"versions": versions()}
    text = json.dumps(header, allow_nan=False)
    with replacing(path) as temporary:
        save_file(_own_storage(weights), temporary, metadata={"header": text})


def load(path: Path, *, like: Mapping | None = None, **expect: Any) -> Weights:
    """All weights of the checkpoint at `path`; arguments and errors as in Checkpoint."""
    return dict(Checkpoint(path, like=like, **expect))


def header(path: Path, **expect: Any) -> dict:
    """The header of a file in the one format (of any kind), after checking that the file is whole."""
    return _read_header(path, expect)[0]


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """A short hash by which weights are told apart: of names, shapes and up to 64 numbers of each tensor, as float32.

    Training changes every tensor, so a few numbers of each are enough, and cost milliseconds for any model.
    """
    total = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach()
        some = tensor.flatten()[:: max(1, tensor.numel() // 64)][:64]
        total.update(f"{name} {tuple(tensor.shape)}".encode())
        total.update(some.float().cpu().numpy().tobytes())
    return total.hexdigest()[:16]


def save_masks(path: Path, masks: Masks, header: Mapping) -> None:
    """Write {task: {name: bool tensor}} with one bit per weight; all tasks mask the same names and shapes."""
    shapes = {task: {name: list(mask.shape) for name, mask in named.items()} for task, named in masks.items()}
    first = next(iter(shapes.values()), {})
    for task, found in shapes.items():
        if found != first:
            raise ValueError(f"expected masks of one set of shapes for all tasks, found others for {task}")
    packed = {f"{task}/{name}": _pack(mask) for task, named in masks.items() for name, mask in named.items()}
    save(path, packed, dict(header) | {"tasks": list(masks), "shapes": first}, kind="masks")


def load_masks(path: Path, **expect: Any) -> Masks:
    """{task: {name: bool tensor}} from `path`; `expect` as in Checkpoint, `tasks=[...]` and `scope=...` among them."""
    file = Checkpoint(path, kind="masks", **expect)
    shapes = file.header["shapes"]
    return {
        task: {name: _unpack(file[f"{task}/{name}"].numpy(), shape) for name, shape in shapes.items()}
        for task in file.header["tasks"]
    }


def read_published_masks(path: Path, like: Mapping) -> Masks:
    """The masks of a published `TALL_mask_{8,14,20}task.npy`, whose pickle is read but never executed.

    like: the pre-trained encoder with its frozen text-side tensors: the published vector is all of them, flattened and
    joined in the sorted order of their names, and its bits are packed (big-endian) over the whole.
    """
    shapes = dict(sorted(_shapes(like).items()))
    sizes = [math.prod(shape) for shape in shapes.values()]
    total = sum(sizes)
    try:
        arrays = unpickle.packed_arrays(path)
    except unpickle.UnpickleError as error:
        raise CheckpointError(f"{path}: {error}") from None
    masks = {}
    for task, packed in arrays.items():
        if len(packed) != -(-total // 8):
            raise CheckpointError(
                f"{path}: expected {total} bits for {task} (the pre-trained encoder and its frozen text-side tensors), "
                f"found {8 * len(packed)}: it belongs to another model"
            )
        bits = torch.from_numpy(np.unpackbits(packed, count=total).astype(bool)).split(sizes)
        masks[task] = {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), bits, strict=True)}
    return masks


def convert(
    source: Path,
    destination: Path,
    *,
    model: str,
    task: str | None = None,
    mode: str = "standard",
    seed: int = 1,
    pretrained: Mapping | None = None,
    names: Sequence[str] | None = None,
    provenance: Mapping | None = None,
) -> None:
    """Write a published file (weights, a head, or TALL masks) in the one format.

    seed: that of the runs which will read it, for their checkpoints lie together; published files name none.
    pretrained: the pre-trained encoder. It lends what the file lacks (the projection, the frozen text-side tensors),
    and the result must share its names and shapes; masks and Hugging Face files need it.
    names: parameter names in the order of `ImageEncoder.named_parameters()`; files of `params.{i}` need them.
    provenance: facts for the header, beside the file's name and SHA-256.
    """
    header = {"model": model, "task": task, "mode": mode, "seed": seed}
    header["provenance"] = {"file": source.name, "sha256": file_hash(source)} | dict(provenance or {})
    if source.suffix == ".npy":
        if pretrained is None:
            raise CheckpointError(f"{source}: masks are positions in the pre-trained encoder; add --pretrained PATH")
        masks = read_published_masks(source, pretrained)
        save_masks(destination, masks, header | {"scope": "published", "method": "tall_mask"})
        return
    try:
        weights = read_published(source)
        kind = "head" if set(weights) == {"weight", "bias"} else "weights"
        if kind == "head":
            weights, header = _head(weights), header | {"mode": None, "seed": None}
        else:
            weights = _encoder(weights, pretrained, names, mode)
            if pretrained is not None:
                _check_shapes(_shapes(weights), _shapes(pretrained))
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    except KeyError as error:
        raise CheckpointError(f"{source}: expected a tensor {error}, found none") from None
    save(destination, weights, header, kind)


def read_published(path: Path) -> Weights:
    """Weights under their published names, from safetensors or from a `torch.save` file, which is not executed."""
    with open(path, "rb") as file:
        start = file.read(9)
    try:
        if start.startswith(b"PK"):
            return unpickle.torch_weights(path)
        return load_file(path)
    except unpickle.UnpickleError as error:
        raise CheckpointError(str(error)) from None
    except SafetensorError:
        raise CheckpointError(f"expected safetensors or a torch.save file, found {_nature(start)}") from None


def _read_header(path: Path, expect: Mapping) -> tuple[dict, dict]:
    """The JSON header and the tensors' specifications, after checking that the file is whole and as expected."""
    expect = {field: list(v) if isinstance(v, tuple) else v for field, v in expect.items() if v is not None}
    mend = _command(expect)
    if not path.is_file():
        raise FileNotFoundError(f"expected the checkpoint {path}, found no file; make it with: {mend}")
    with open(path, "rb") as file:
        start = file.read(9)
        length = struct.unpack("<Q", start[:8])[0] if len(start) == 9 else 0
        if not 0 < length <= MAX_HEADER or start[8:] != b"{":
            cure = f"convert it with: {_convert_command(path, expect)}" if start[:1] in b"P\x93" and start else mend
            raise CheckpointError(f"expected a checkpoint in {path}, found {_nature(start)}; {cure}")
        file.seek(8)
        text = file.read(length)
    try:
        specs = json.loads(text)
        metadata = specs.pop("__metadata__", {})
        expected = 8 + length + max((spec["data_offsets"][1] for spec in specs.values()), default=0)
        found = json.loads(metadata["header"]) if "header" in metadata else None
    except (ValueError, LookupError, TypeError, AttributeError):
        specs, found, expected = {}, None, 8 + length  # the header itself is cut short, or damaged
    size = path.stat().st_size
    if size != expected:
        fault = "cut short" if size < expected else "damaged"
        raise CheckpointError(f"{path}: expected {expected} bytes, found {size}: it is {fault}; make it again: {mend}")
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise CheckpointError(
            f"expected a checkpoint in {path}, found safetensors without this project's header (format {FORMAT}); "
            f"if it is a published one, convert it with: {_convert_command(path, expect)}"
        )
    for field, value in expect.items():
        if found.get(field) != value:
            mend = _command(found | expect)
            raise CheckpointError(
                f"{path}: expected {field} {value!r}, found {found.get(field)!r}; make the expected one with: {mend}"
            )
    return found, specs


def _shapes(weights: Mapping) -> dict[str, tuple[int, ...]]:
    if isinstance(weights, Checkpoint):
        return {key: weights.shape(key) for key in weights}
    return {key: tuple(tensor.shape) for key, tensor in weights.items()}


def _check_shapes(found: Mapping[str, tuple], expected: Mapping[str, tuple]) -> None:
    """Raise CheckpointError that names the tensors in which `found` differs from `expected`."""
    faults = []
    if missing := [key for key in expected if key not in found]:
        faults.append(f"missing {few(missing)}")
    if unknown := [key for key in found if key not in expected]:
        faults.append(f"unexpected {few(unknown)}")
    reshaped = [key for key in expected if key in found and found[key] != expected[key]]
    faults += [f"{key}: expected {expected[key]}, found {found[key]}" for key in reshaped[:4]]
    if faults:
        raise CheckpointError(f"expected the pre-trained encoder's tensors, found others: {'; '.join(faults)}")


def _nature(start: bytes) -> str:
    """What a file is that begins with `start`."""
    if not start:
        return "an empty file"
    if start.startswith(b"PK"):
        return "a pickle (torch.save), which is never executed"
    if start[:1] == b"\x80" and start[1:2] in b"\1\2\3\4\5":
        return "a bare pickle, which is never executed"
    if start.startswith(b"\x93NUMPY"):
        return "a NumPy file"
    if start.lstrip().startswith(b"<"):
        return "a web page"
    return "a foreign file" if len(start) == 9 else f"a file of {len(start)} bytes"


def _command(fields: Mapping) -> str:
    """The command that makes a checkpoint (or masks) with these header fields, as far as they are known."""
    if fields.get("kind") == "masks":
        return f"python main.py model={fields.get('model') or '...'} method=tall_mask"
    flags = {"model": "--model", "task": "--tasks", "mode": "--finetuning-mode", "seed": "--seed"}
    if fields.get("mode") == "none":  # θ0, which any fine-tuning writes first
        del flags["mode"]
    known = [f"{flag}={fields[field]}" for field, flag in flags.items() if fields.get(field) is not None]
    return " ".join(["python finetune.py", *known])


def _convert_command(path: Path, fields: Mapping) -> str:
    known = [f"--{field} {fields.get(field)}" for field in ("task", "mode") if fields.get(field)]
    model = fields.get("model") or "MODEL"
    return " ".join(["python -m src.checkpoints convert", str(path), "OUT.safetensors", f"--model {model}", *known])


def _own_storage(weights: Mapping[str, torch.Tensor]) -> Weights:
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


def _encoder(weights: Weights, pretrained: Mapping | None, names: Sequence[str] | None, mode: str) -> Weights:
    """Published weights under the house's names: those of `ImageEncoder.state_dict()`."""
    if any(re.fullmatch(r"(model\.)?params\.\d+", key) for key in weights):
        weights = _from_positions(weights, pretrained, names, mode)
    elif any(key.endswith("embeddings.class_embedding") for key in weights):
        weights = _from_hugging_face(weights, pretrained)
    elif any(key.startswith("visual.") for key in weights):
        weights = {f"model.{key}": tensor for key, tensor in weights.items()}
    if not any(key.startswith(VISUAL) for key in weights):
        raise CheckpointError(f"expected the weights of a CLIP image encoder, found {few(sorted(weights))}")
    weights = {key: tensor for key, tensor in weights.items() if not key.startswith("model.transformer.")}
    frozen = [key for key in pretrained or () if not key.startswith(VISUAL)]
    return {key: pretrained[key] for key in frozen} | weights


def _from_hugging_face(weights: Weights, pretrained: Mapping | None) -> Weights:
    weights = {key.removeprefix("vision_model."): tensor for key, tensor in weights.items()}
    named = {}
    for key, tensor in weights.items():
        if key == "visual_projection.weight":
            named["model.visual.proj"] = tensor.T
        elif re.search(r"self_attn\.[kv]_proj\.|position_ids$", key):
            continue  # fused with the query below; a constant of older versions
        else:
            name = next((re.sub(old, new, key) for old, new in HUGGING_FACE.items() if re.fullmatch(old, key)), None)
            if name is None:
                raise CheckpointError(f"expected the tensors of a CLIPVisionModel, found {key}")
            if "q_proj" in key:
                tensor = torch.cat([weights[key.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            named[f"model.visual.{name}"] = tensor
    if "model.visual.proj" not in named:  # a CLIPVisionModel ends before the projection, which stays as pre-trained
        if pretrained is None:
            raise CheckpointError(
                "expected a projection, found none, as in every CLIPVisionModel; add --pretrained PATH"
            )
        named["model.visual.proj"] = pretrained["model.visual.proj"]
    return named


def _from_positions(weights: Weights, pretrained: Mapping | None, names: Sequence[str] | None, mode: str) -> Weights:
    """A linear checkpoint of the tangent repository: `params.{i}` is θ, `params0.{i}` θ0, both by position."""
    if mode != "linear":
        raise CheckpointError(f"expected a {mode} checkpoint, found a linear one (params.0, ...); add --mode linear")
    if names is None:
        raise CheckpointError(
            "expected names, found positions (params.0, ...); add --names FILE, one name a line, in order"
        )
    theta, theta0 = (
        {int(key.rpartition(".")[2]): tensor for key, tensor in weights.items() if f"{part}." in key}
        for part in ("params", "params0")
    )
    if sorted(theta) != list(range(len(names))):
        raise CheckpointError(f"expected {len(names)} parameters, one for each name, found {len(theta)}")
    for position, name in enumerate(names):
        if pretrained is not None and position in theta0 and not _equal(theta0[position], pretrained.get(name)):
            raise CheckpointError(
                f"expected params0.{position} to be {name} of the pre-trained encoder, found another tensor: the names "
                "are in another order, or the checkpoint started from another encoder"
            )
    return {name: theta[position] for position, name in enumerate(names)}


def _equal(tensor: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is not None and tensor.shape == other.shape and bool((tensor == other).all())


def _head(weights: Weights) -> Weights:
    """A published zero-shot head; its bias is zero, and ours has none."""
    if weights["bias"].any():
        raise CheckpointError("expected a zero-shot head, whose bias is zero, found another bias")
    return {"weight": weights["weight"]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command = parser.add_subparsers(required=True, metavar="convert").add_parser("convert")
    command.add_argument("source", type=Path, help="published file: .pt, .safetensors or TALL_mask_*task.npy")
    command.add_argument("destination", type=Path, help="file to write, in the one format")
    command.add_argument("--model", required=True)
    command.add_argument("--task", help="task of a fine-tuned encoder, or data set of a head")
    command.add_argument("--mode", choices=("standard", "linear"), default="standard")
    command.add_argument("--seed", type=int, default=1, help="of the runs that will read it")
    command.add_argument("--pretrained", type=Path, help="checkpoint of the pre-trained encoder, in the one format")
    command.add_argument("--names", type=Path, help="text file of parameter names in order, for params.{i} files")
    args = parser.parse_args(arguments)
    try:
        convert(
            args.source,
            args.destination,
            model=args.model,
            task=args.task,
            mode=args.mode,
            seed=args.seed,
            pretrained=args.pretrained and Checkpoint(args.pretrained, model=args.model),
            names=args.names and args.names.read_text().split(),
        )
    except (CheckpointError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    print(f"wrote {args.destination}")


if __name__ == "__main__":
    main()
