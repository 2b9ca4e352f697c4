"""A merged encoder as other projects read it: open_clip's state dict, or a folder of Hugging Face's transformers.

    open_clip.create_model("ViT-B-32", pretrained="merged.safetensors", force_quick_gelu=True)
    transformers.CLIPVisionModelWithProjection.from_pretrained("merged")

open_clip's has the pre-trained text side, so that it is a whole CLIP. A model card says how it was made.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from src import store
from src.checkpoints import VISUAL
from src.modeling import build_clip
from src.published.convert import HUGGING_FACE_FILE
from src.published.towers import to_hugging_face
from src.run import Run
from src.runtime.files import replacing
from src.runtime.messages import CheckpointError

FORMATS = ("suite", "open_clip", "transformers")
CARD = """---
tags: [merge, task-arithmetic]
{more}---

# {title}

The image encoder of {model}, merged of {tasks} by {label} (coefficient {chosen}).

Test accuracy: {accuracy:.1f} % on average.

| task | accuracy, % |
| --- | ---: |
{rows}

{use}
"""


def files_for_others(output: Path, kind: str) -> list[Path]:
    """What `export_for_others` writes, the weights first; nothing for the suite's own format."""
    if kind == "transformers":
        return [output / name for name in (HUGGING_FACE_FILE, "config.json", "README.md")]
    return [output, output.with_suffix(".md")] if kind == "open_clip" else []


def merge_of(path: Path) -> dict[str, Any]:
    """`label` and `tasks` of the merge that `export_for_others` wrote to a file; nothing for any other file."""
    try:
        with safe_open(path, "pt") as file:
            merge = json.loads((file.metadata() or {}).get("merge", "{}"))
    except (OSError, SafetensorError, ValueError):
        return {}
    return merge if isinstance(merge, dict) else {}


def export_for_others(run: Run, weights: Mapping, output: Path, kind: str, record: Mapping[str, Any]) -> list[Path]:
    """Write the encoder `weights` (names of ImageEncoder) and its card; gives the files.

    kind: "open_clip", a .safetensors; or "transformers", a folder. Raises CheckpointError for a tower that is no vision
    transformer, which transformers' CLIP cannot hold.
    """
    tower = {name: tensor for name, tensor in weights.items() if name.startswith(VISUAL)}
    merge = {"label": record["label"], "tasks": list(run.tasks)}
    if kind == "open_clip":
        model, _ = build_clip(run)
        state = model.state_dict() | {name.removeprefix("model."): tensor for name, tensor in tower.items()}
        _save(output, state, merge)
        quick = ", force_quick_gelu=True" if _quick_gelu(model.visual) else ""
        use = f'`open_clip.create_model("{run.model}", pretrained="{output.name}"{quick})`'
        return [output, _card(output.with_suffix(".md"), run, output.stem, use, record)]
    visual = store.encoder(run).model.visual
    state = to_hugging_face(tower)
    _save(output / HUGGING_FACE_FILE, state, merge)
    with replacing(output / "config.json") as temporary:
        temporary.write_text(json.dumps(_config(visual, state), indent=2) + "\n", encoding="utf-8")
    use = f'`transformers.CLIPVisionModelWithProjection.from_pretrained("{output.name}")`'
    card = _card(output / "README.md", run, output.name, use, record, "library_name: transformers\n")
    return [output / HUGGING_FACE_FILE, output / "config.json", card]


def _save(path: Path, state: Mapping[str, torch.Tensor], merge: Mapping[str, Any]) -> None:
    metadata = {"format": "pt", "merge": json.dumps(merge)}
    with replacing(path) as temporary:
        save_file({name: tensor.cpu().contiguous().clone() for name, tensor in state.items()}, temporary, metadata)


def _quick_gelu(visual: Any) -> bool:
    return type(visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU" if _is_vit(visual) else False


def _is_vit(visual: Any) -> bool:
    return hasattr(getattr(visual, "transformer", None), "resblocks")


def _config(visual: Any, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """CLIPVisionConfig, from the tower itself."""
    if not _is_vit(visual):
        raise CheckpointError("expected a vision transformer of CLIP, which transformers can hold, found another tower")
    blocks = visual.transformer.resblocks
    width, patch = visual.conv1.weight.shape[0], visual.conv1.weight.shape[-1]
    side = visual.image_size[0] if isinstance(visual.image_size, tuple | list) else visual.image_size
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": blocks[0].mlp.c_fc.weight.shape[0],
        "num_hidden_layers": len(blocks),
        "num_attention_heads": blocks[0].attn.num_heads,
        "image_size": side,
        "patch_size": patch,
        "projection_dim": state["visual_projection.weight"].shape[0],
        "hidden_act": "quick_gelu" if _quick_gelu(visual) else "gelu",
        "layer_norm_eps": visual.ln_post.eps,
        "torch_dtype": "float32",
    }


def _card(path: Path, run: Run, title: str, use: str, record: Mapping[str, Any], more: str = "") -> Path:
    test = record["test"]
    text = CARD.format(
        more=more,
        title=title,
        model=run.model,
        tasks=", ".join(record["tasks"]),
        label=record["label"],
        chosen=record["chosen"][record["tasks"][0]],
        accuracy=100 * test["mean_accuracy"],
        rows="\n".join(f"| {task} | {100 * value:.1f} |" for task, value in test["accuracy"].items()),
        use=use,
    )
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
