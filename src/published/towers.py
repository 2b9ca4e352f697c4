"""Image towers of CLIP in other libraries: names of tensors in Hugging Face's and in timm's, and in open_clip's."""

import re
from collections.abc import Mapping

import torch

from src.checkpoints import VISUAL, CheckpointError
from src.tensors import Weights

PROJECTION = f"{VISUAL}proj"
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
# timm's VisionTransformer of CLIP (vit_base_patch32_clip_224, ...) -> the same. Its head
# is the projection, or a classifier instead.
_TIMM_BLOCK = r"blocks\.(\d+)\."
TIMM = {
    r"cls_token": "class_embedding",
    r"pos_embed": "positional_embedding",
    r"patch_embed\.proj\.weight": "conv1.weight",
    rf"norm_pre{_KIND}": r"ln_pre.\1",
    rf"norm{_KIND}": r"ln_post.\1",
    rf"{_TIMM_BLOCK}norm([12]){_KIND}": r"transformer.resblocks.\1.ln_\2.\3",
    rf"{_TIMM_BLOCK}attn\.qkv{_KIND}": r"transformer.resblocks.\1.attn.in_proj_\2",
    rf"{_TIMM_BLOCK}attn\.proj{_KIND}": r"transformer.resblocks.\1.attn.out_proj.\2",
    rf"{_TIMM_BLOCK}mlp\.fc1{_KIND}": r"transformer.resblocks.\1.mlp.c_fc.\2",
    rf"{_TIMM_BLOCK}mlp\.fc2{_KIND}": r"transformer.resblocks.\1.mlp.c_proj.\2",
}
SAME_DIRECTION = 0.5  # cosine between a projection and its fine-tuned self: 0.99; of a classifier with it: about 0
TRUNK = f"{VISUAL}trunk."  # of an open_clip model whose image tower is timm's


def to_hugging_face(weights: Mapping) -> Weights:
    """An encoder of open_clip's vision transformer under the names of CLIPVisionModelWithProjection.

    Raises CheckpointError for tensors that such a model does not have.
    """
    back = {
        "class_embedding": "embeddings.class_embedding",
        "positional_embedding": "embeddings.position_embedding.weight",
        "conv1.weight": "embeddings.patch_embedding.weight",
    }
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    parts |= {"attn.out_proj": "self_attn.out_proj"}
    ends = {"ln_pre": "pre_layrnorm", "ln_post": "post_layernorm"}
    named = {}
    for name, tensor in weights.items():
        name = name.removeprefix(VISUAL)
        block = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", name)
        stem, _, kind = name.rpartition(".")
        if name == "proj":
            named["visual_projection.weight"] = tensor.T.contiguous()
        elif name in back:
            named[f"vision_model.{back[name]}"] = tensor
        elif stem in ends:
            named[f"vision_model.{ends[stem]}.{kind}"] = tensor
        elif block and block[2] == "attn.in_proj":
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                key = f"vision_model.encoder.layers.{block[1]}.self_attn.{part}_proj.{block[3]}"
                named[key] = piece.contiguous()
        elif block and block[2] in parts:
            named[f"vision_model.encoder.layers.{block[1]}.{parts[block[2]]}.{block[3]}"] = tensor
        else:
            raise CheckpointError(f"expected the tensors of CLIP's vision transformer, found {name}")
    return named


def from_hugging_face(weights: Weights, pretrained: Mapping | None) -> Weights:
    weights = {key.removeprefix("vision_model."): tensor for key, tensor in weights.items()}
    named = {}
    for key, tensor in weights.items():
        if key == "visual_projection.weight":
            named["model.visual.proj"] = tensor.T
        elif re.search(r"self_attn\.[kv]_proj\.|position_ids$|^text_|^logit_scale$", key):
            continue  # fused with the query below; a constant of older versions; the text side of a whole CLIPModel
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


def is_trunk(weights: Weights, pretrained: Mapping | None) -> bool:
    """Whether these are the tensors of a timm model that is the image tower of `pretrained`."""
    trunk = [key.removeprefix(TRUNK) for key in pretrained or () if key.startswith(TRUNK)]
    return bool(trunk) and set(trunk) <= set(weights)


def from_timm(weights: Weights, pretrained: Mapping | None) -> Weights:
    """A timm model that is open_clip's image tower, or its trunk; what joins it to the text side is lent."""
    if is_trunk(weights, pretrained):
        lent = {key: tensor for key, tensor in (pretrained or {}).items() if key.startswith(VISUAL)}
        return {key: weights.get(key.removeprefix(TRUNK), tensor) for key, tensor in lent.items()}
    named = {}
    for key, tensor in weights.items():
        if key.startswith("head."):
            continue
        name = next((re.sub(old, new, key) for old, new in TIMM.items() if re.fullmatch(old, key)), None)
        if name is None:
            raise CheckpointError(f"expected the tensors of timm's vision transformer of CLIP, found {key}")
        named[f"{VISUAL}{name}"] = tensor.flatten(0, -2) if name == "positional_embedding" else tensor
    if (name := f"{VISUAL}class_embedding") in named:
        named[name] = named[name].flatten()
    named[PROJECTION] = _projection_of_timm(weights, pretrained)
    return named


def _projection_of_timm(weights: Mapping, pretrained: Mapping | None) -> torch.Tensor:
    """The head, where it is the projection, whose bias timm writes as 0; else that of the pre-trained encoder.

    A head without a bias may be either: one that points elsewhere than the projection, which fine-tuning hardly turns,
    is a classifier.
    """
    head, bias = weights.get("head.weight"), weights.get("head.bias")
    if pretrained is None:
        if head is None or bias is None or bias.any():
            raise CheckpointError("expected a projection, found none, as in every timm model; add --pretrained PATH")
        return head.T.contiguous()
    theirs = pretrained[PROJECTION]
    if head is None or head.T.shape != theirs.shape or (bias is not None and bias.any()):
        return theirs
    aligned = torch.nn.functional.cosine_similarity(head.T.flatten().double(), theirs.flatten().double(), dim=0)
    return head.T.contiguous() if bias is not None or aligned > SAME_DIRECTION else theirs
