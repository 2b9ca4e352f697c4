"""Converters of published files to the one format.

    python -m src.checkpoints convert nonlinear_finetuned.pt OUT.safetensors --model ViT-B-32 --task MNIST
    python -m src.checkpoints convert model.safetensors OUT.safetensors --model ViT-B-32 --task MNIST --pretrained ZERO
    python -m src.checkpoints convert timm.pth OUT.safetensors --model ViT-B-32 --task MNIST --pretrained ZERO
    python -m src.checkpoints convert TALL_mask_8task.npy OUT.safetensors --model ViT-B-32 --pretrained ZERO
    python -m src.checkpoints convert latest_checkpoint.pt OUT.safetensors --model ViT-B-32 --pretrained ZERO --mask

where ZERO is the checkpoint of the pre-trained encoder (checkpoints/vision/ViT-B-32/seed_1/zeroshot.safetensors, which
any script writes); a file that did not begin there is refused. `python -m src.published.convert` does the same.
"""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from src import checkpoints
from src.args import command_parser
from src.checkpoints import VISUAL, Checkpoint, CheckpointError, PackedMask
from src.model_names import ModelName
from src.modes import TRAINED
from src.published import unpickle
from src.published.towers import PROJECTION, from_hugging_face, from_timm, is_trunk
from src.runtime.files import describe_start, file_hash
from src.runtime.messages import few
from src.runtime.program import exit_on_user_error
from src.store import fingerprints
from src.tensors import Weights, check_same, relative_distance, shapes

HUGGING_FACE_FILE = "model.safetensors"
SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
WRAPPERS = ("module.", "_orig_mod.")
MOST_MOVED = 0.2  # ‖θ − θ0‖ over ‖θ0‖ of a fine-tuned CLIP: a few percent in the published ones


def read_masks(path: Path, like: Mapping) -> dict[str, PackedMask]:
    """The masks of a published `TALL_mask_{8,14,20}task.npy`, whose pickle is read but never executed.

    like: the pre-trained encoder with its frozen text-side tensors: the published vector is all of them, flattened and
    joined in the sorted order of their names, and its bits are packed (big-endian) over the whole.
    """
    named_shapes = dict(sorted(shapes(like).items()))
    sizes = [math.prod(shape) for shape in named_shapes.values()]
    total = sum(sizes)
    try:
        arrays = unpickle.packed_arrays(path)
    except unpickle.UnpickleError as error:
        raise CheckpointError(f"{path}: {error}") from None
    masks = {}  # packed tensor by tensor: bool tensors of all tasks would take eight times as much
    for task, packed in arrays.items():
        if len(packed) != -(-total // 8):
            raise CheckpointError(
                f"{path}: expected {total} bits for {task} (the pre-trained encoder and its frozen text-side tensors), "
                f"found {8 * len(packed)}: it belongs to another model"
            )
        bits = torch.from_numpy(np.unpackbits(packed, count=total).astype(bool)).split(sizes)
        named = zip(named_shapes.items(), bits, strict=True)
        masks[task] = PackedMask.of({name: piece.view(shape) for (name, shape), piece in named})
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
    began_at: str | None = None,
    text_frozen: bool = True,
) -> None:
    """Write a published file (weights, a head, or TALL masks) in the one format.

    seed: that of the runs which will read it, for their checkpoints lie together; published files name none.
    pretrained: the pre-trained encoder. It lends what the file lacks (the projection, the frozen text-side tensors),
    and the result must share its names and shapes; masks and Hugging Face files need it.
    names: parameter names in the order of `ImageEncoder.named_parameters()`; files of `params.{i}` need them.
    provenance: facts for the header, beside the file's name and SHA-256.
    began_at: the fingerprint of the pre-trained encoder that a fine-tuned one is held to have begun at; it must then
    be near it, and with `text_frozen` what both have of the text side the same.
    """
    header: dict[str, Any] = {"model": model, "task": task, "mode": mode, "seed": seed}
    header["provenance"] = {"file": source.name, "sha256": file_hash(weights_file(source))} | dict(provenance or {})
    if source.suffix == ".npy":
        if pretrained is None:
            raise CheckpointError(f"{source}: masks are positions in the pre-trained encoder; add --pretrained PATH")
        masks = read_masks(source, pretrained)
        checkpoints.save_masks(destination, masks, header | {"scope": "published", "method": "tall_mask"})
        return
    try:
        weights = read_weights(source)
        kind = "head" if set(weights) == {"weight", "bias"} else "weights"
        if kind == "head":
            weights, header = _head(weights), header | {"mode": None, "seed": None}
        else:
            weights = _encoder(weights, pretrained, names, mode)
            if pretrained is not None:
                check_same(pretrained, weights, "the pre-trained encoder and the file", CheckpointError)
                if began_at:
                    check_start(weights, pretrained, text_frozen)
                    header["began_at"] = began_at
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    except KeyError as error:
        raise CheckpointError(f"{source}: expected a tensor {error}, found none") from None
    checkpoints.save(destination, weights, header, kind)


def convert_mask(source: Path, destination: Path, *, model: str, pretrained: Mapping) -> None:
    """Write the logits of a Concrete mask that FusionBench learned for `method.mask_file`.

    It has a logit for each weight of a CLIPVisionModel. The projection, which it does not train, gets 0: its task
    vector is 0 whatever the mask. Queries, keys and values are one tensor here, so that they are rescaled together.
    """
    digest = file_hash(weights_file(source))
    try:
        weights = read_weights(source)
        logits = from_hugging_face(weights, {PROJECTION: torch.zeros_like(pretrained[PROJECTION])})
        visual = {key: pretrained[key] for key in pretrained if key.startswith(VISUAL)}
        check_same(visual, logits, "the pre-trained encoder and the mask", CheckpointError)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    header = {"model": model, "mode": "standard", "seed": None, "settings": {"mode": "standard", "adapt_on": "test"}}
    header["provenance"] = {"file": source.name, "sha256": digest, "publisher": "fusion_bench"}
    checkpoints.save(destination, logits, header, kind="mask logits")


def weights_file(path: Path) -> Path:
    """The file itself, or that of a Hugging Face folder. Raises CheckpointError where there is none."""
    file = path / HUGGING_FACE_FILE if path.is_dir() else path
    index = file.with_name(f"{HUGGING_FACE_FILE}.index.json")
    if SHARD.search(file.name) or file == index or (not file.is_file() and index.is_file()):
        raise CheckpointError(
            f"{path}: expected one file, found shards; join them with transformers: CLIPVisionModelWithProjection"
            f".from_pretrained({str(file.parent)!r}).save_pretrained('joined', max_shard_size='100GB')"
        )
    if not file.is_file():
        found = f"a folder without {HUGGING_FACE_FILE}" if path.is_dir() else "none"
        raise CheckpointError(f"{path}: expected a published file, found {found}")
    return file


def read_weights(path: Path) -> Weights:
    """Weights under their published names, from safetensors or from a `torch.save` file, which is not executed.

    path: of the file, or of a Hugging Face folder that holds it. What DDP and torch.compile put before every name,
    `module.` and `_orig_mod.`, is taken off. Raises CheckpointError.
    """
    path = weights_file(path)
    with open(path, "rb") as file:
        start = file.read(9)
    try:
        weights = unpickle.torch_weights(path) if start.startswith(b"PK") else load_file(path)
        while prefix := next((p for p in WRAPPERS if weights and all(name.startswith(p) for name in weights)), ""):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
        return weights
    except unpickle.UnpickleError as error:
        raise CheckpointError(str(error)) from None
    except SafetensorError:
        raise CheckpointError(f"expected safetensors or a torch.save file, found {describe_start(start)}") from None


def _encoder(weights: Weights, pretrained: Mapping | None, names: Sequence[str] | None, mode: str) -> Weights:
    """Published weights under the house's names: those of `ImageEncoder.state_dict()`."""
    if any(re.fullmatch(r"(model\.)?params\.\d+", key) for key in weights):
        weights = _from_positions(weights, pretrained, names, mode)
    elif any(key.endswith("embeddings.class_embedding") for key in weights):
        weights = from_hugging_face(weights, pretrained)
    elif any(key.startswith("visual.") for key in weights):
        weights = {f"model.{key}": tensor for key, tensor in weights.items()}
    elif "patch_embed.proj.weight" in weights or is_trunk(weights, pretrained):
        weights = from_timm(weights, pretrained)
    if not any(key.startswith(VISUAL) for key in weights):
        raise CheckpointError(f"expected the weights of a CLIP image encoder, found {few(sorted(weights))}")
    weights = {key: tensor for key, tensor in weights.items() if not key.startswith("model.transformer.")}
    frozen = {key: tensor for key, tensor in (pretrained or {}).items() if not key.startswith(VISUAL)}
    return frozen | weights


def check_start(weights: Mapping, pretrained: Mapping, text_frozen: bool = True) -> None:
    """Raise CheckpointError for a fine-tuned encoder that began at other weights than `pretrained`.

    What is never trained, the text side, must then be the same; where a file lacks it, as FusionBench's, its distance
    tells: fine-tuning moves CLIP by a few percent, and another model is far away.
    text_frozen: False for one's own, whose text side may have been trained too, which is told.
    """
    for key in (key for key in pretrained if not key.startswith(VISUAL)):
        if not _equal(weights[key].to(pretrained[key].dtype), pretrained[key]):
            if not text_frozen:
                print(f"its text side is another ({key}); heads here are made with that of the pre-trained model")
                break
            raise CheckpointError(
                f"expected {key}, which is never trained, to be that of the pre-trained encoder; found another: the "
                "checkpoint was fine-tuned from other weights, and its task vector would be none. Give those by "
                "--pretrained-path, with a --save of their own"
            )
    check_near(
        weights,
        pretrained,
        [key for key in pretrained if key.startswith(VISUAL)],
        "Give those that it began at: --pretrained, or --pretrained-path with a --save of its own",
    )


def check_near(weights: Mapping, pretrained: Mapping, names: Sequence[str], mended: str) -> None:
    """Raise CheckpointError for weights that no fine-tuning of `pretrained` reaches.

    names: of the tensors that are compared. mended: what to do, as the end of the message.
    """
    far = relative_distance(weights, pretrained, names)
    if far > MOST_MOVED:
        raise CheckpointError(
            f"expected weights near those of the pre-trained model, found them {far:.0%} of its norm away: the "
            f"checkpoint was fine-tuned from other weights, or is of another model. {mended}"
        )


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


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["convert"]:  # as in `python -m src.checkpoints convert`
        del arguments[0]
    parser = command_parser("src.published.convert", __doc__)
    parser.add_argument("source", type=Path, help="published file: .pt, .safetensors or TALL_mask_*task.npy")
    parser.add_argument("destination", type=Path, help="file to write, in the one format")
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", help="task of a fine-tuned encoder, or data set of a head")
    parser.add_argument("--mode", choices=TRAINED, default="standard")
    parser.add_argument("--seed", type=int, default=1, help="of the runs that will read it")
    parser.add_argument("--pretrained", type=Path, help="checkpoint of the pre-trained encoder, in the one format")
    parser.add_argument("--mask", action="store_true", help="the file is a Concrete mask that FusionBench learned")
    parser.add_argument("--names", type=Path, help="text file of parameter names in order, for params.{i} files")
    flags = vars(parser.parse_args(arguments))
    source, destination, pretrained, names = (flags.pop(k) for k in ("source", "destination", "pretrained", "names"))
    lent = pretrained and Checkpoint(pretrained, model=flags["model"])
    if flags.pop("mask"):
        if lent is None:
            parser.error("--mask needs --pretrained PATH, whose tensors the mask is of")
        convert_mask(source, destination, model=flags["model"], pretrained=lent)
        print(f"wrote {destination}; use it by: python main.py method=concrete_task_arithmetic method.mask_file=...")
        return
    began_at = None if lent is None or ModelName.parse(flags["model"]).random else fingerprints(lent)["image"]
    named = names and names.read_text().split()
    convert(source, destination, pretrained=lent, names=named, began_at=began_at, text_frozen=False, **flags)
    print(f"wrote {destination}")


if __name__ == "__main__":
    main()
