"""CLIP's image encoder, zero-shot heads, and classifiers made of the two."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from src import checkpoints
from src.checkpoints import CheckpointError
from src.model_names import WEIGHTS, ModelName, check_model, open_clip_names
from src.modes import MODES
from src.run import Run
from src.runtime.messages import UsageError
from src.vit_mini import clip as mini

DEFAULT_WEIGHTS = "openai"
# What an encoder knows of itself and its inputs beside its weights.
PREPROCESSING = ("model_name", "tokenizer", "train_preprocess", "val_preprocess", "image_size", "mean", "std")
TEXT_TOWERS = ("transformer", "text", "text_decoder")  # of CLIP, of open_clip's CustomTextCLIP, and CoCa's second


def _preprocess(side: int, mean, std, train: bool):
    from torchvision.transforms import InterpolationMode, v2

    crop = (
        [v2.RandomResizedCrop(side, scale=(0.9, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True)]
        if train
        else [v2.Resize(side, interpolation=InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(side)]
    )
    return v2.Compose(
        [v2.RGB(), *crop, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    )


def _build_mini(name: ModelName, seed: int):
    model, tokenizer = mini.load()
    if name.random:
        torch.manual_seed(seed)
        model.visual = mini.build(tokenizer.vocabulary_size).visual
    return model, tokenizer


def _build_open_clip(name: ModelName, seed: int, cache_dir: str | None, pretrained_path: str | None):
    import open_clip

    architecture = open_clip_names()[name.architecture]
    tag = name.weights or DEFAULT_WEIGHTS
    check_weights(architecture, tag, pretrained_path)
    about = open_clip.get_pretrained_cfg(architecture, tag)
    # OpenAI, for one, trained with QuickGELU. Asked for "ViT-B-32" with such weights, open_clip builds GELU and only
    # warns; about those in a file it cannot know.
    quick = about.get("quick_gelu", False)
    same = dict(force_quick_gelu=quick, cache_dir=cache_dir)
    try:
        model = open_clip.create_model(architecture, pretrained=pretrained_path or tag, **same)
    except Exception as error:  # whatever torch, safetensors or the hub's client raise
        raise CheckpointError(_no_weights(architecture, tag, about, pretrained_path, error)) from error
    if name.random:  # the image tower alone: heads come from the pre-trained text tower
        torch.manual_seed(seed)
        model.visual = open_clip.create_model(architecture, pretrained=None, **same).visual
    if quick:
        assert_quick_gelu(model)
    try:
        return model, _tokenizer(architecture)
    except Exception as error:  # SigLIP's, for one, is on the hub
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise CheckpointError(
            f"cannot get the tokenizer of {architecture}: {reason}\nIt is on the hub: run this once with a network, "
            "and what it leaves in HF_HOME serves without one"
        ) from error


@functools.cache  # it reads a vocabulary, and every encoder has one
def _tokenizer(architecture: str) -> Any:
    import open_clip

    return open_clip.get_tokenizer(architecture)


def check_weights(architecture: str, tag: str, pretrained_path: str | None) -> None:
    """Raise UsageError for weights that open_clip does not have of an architecture, with those that it has."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if pretrained_path or tag in tags:
        return
    ours = architecture.replace("/", "-")
    ways = f"name one, as in --model={ours}{WEIGHTS}{tags[0]}: {', '.join(tags)}" if tags else "it has none"
    raise UsageError(
        f"--model: {ours} has no weights {tag!r} in open_clip; {ways}; or give a file by --pretrained-path=FILE"
    )


def _no_weights(architecture: str, tag: str, about: dict, pretrained_path: str | None, error: Exception) -> str:
    reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    if pretrained_path:
        return (
            f"--pretrained-path: expected weights of {architecture} in {pretrained_path} (safetensors, or a torch.save "
            f"file of tensors), found {reason}"
        )
    where = f"a file of the hub's {about['hf_hub'].strip('/')}" if about.get("hf_hub") else "the file of these weights"
    return (
        f"cannot get the weights {tag} of {architecture}: {reason}\nWithout a network: fetch {where} (best "
        "open_clip_model.safetensors) on a machine that has one, copy it here and add --pretrained-path=FILE"
    )


def assert_quick_gelu(model: Any) -> None:
    """Raise if the image tower's blocks do not use QuickGELU, for weights that were trained with it, as OpenAI's.

    ResNets have no such blocks: their image tower is activated by ReLU.
    """
    blocks = getattr(getattr(model.visual, "transformer", None), "resblocks", ())
    kinds = {type(block.mlp.gelu).__name__ for block in blocks}
    if kinds - {"QuickGELU"}:
        raise RuntimeError(f"expected QuickGELU in every block (these weights need it), found {', '.join(kinds)}")


def build_clip(run: Run, keep_text: bool = True):
    """(CLIP model, tokenizer) of `run.model`, in evaluation mode, float32."""
    check_model(run.model)
    name = ModelName.parse(run.model)
    if name.mini:
        model, tokenizer = _build_mini(name, run.seed)
    else:
        model, tokenizer = _build_open_clip(name, run.seed, str(run.paths.cache), run.pretrained_path)
    for part in () if keep_text else TEXT_TOWERS:
        if hasattr(model, part):
            delattr(model, part)
    from src.class_token import shorten_last_block  # here: it imports open_clip

    shorten_last_block(model.visual)
    return model.float().eval(), tokenizer


@contextmanager
def all_tokens(encoder: nn.Module) -> Iterator[None]:
    """Within, the last block gives every token's output: for whoever looks at a block rather than at the features."""
    from src.class_token import LastBlock  # here: it imports open_clip

    before = {module: module.whole for module in encoder.modules() if isinstance(module, LastBlock)}
    for block in before:
        block.whole = True
    try:
        yield
    finally:
        for block, whole in before.items():
            block.whole = whole


def has_text(weights: Iterable[str]) -> bool:
    """Whether a checkpoint, by the names of its tensors, has a text tower."""
    return any(name.startswith(tuple(f"model.{tower}." for tower in TEXT_TOWERS)) for name in weights)


class ImageEncoder(nn.Module):
    """CLIP's image tower. `encoder(images)`: (N, 3, H, W) normalised pixels -> (N, D) features, not normalised.

    The last block gives the class token alone (src/class_token.py): enter `all_tokens` to look at what it gives.

    Without `keep_lang` the text transformer is dropped; the small text-side tensors stay, frozen, so that the state
    dict has the published names. Only `model.visual` is trained. Raises CheckpointError for weights that cannot be had,
    or are not this model's, and UsageError for weights that do not exist and for a tower of images that are no squares.
    """

    def __init__(self, run: Run, keep_lang: bool = False):
        super().__init__()
        self.model_name = run.model
        self.model, self.tokenizer = build_clip(run, keep_lang)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith("visual."))
        visual = self.model.visual
        sides = set(visual.image_size) if isinstance(visual.image_size, Sequence) else {visual.image_size}
        if len(sides) > 1:
            raise UsageError(f"--model: expected square images, found {run.model}, whose are {visual.image_size}")
        (side,) = sides
        mean, std = getattr(visual, "image_mean", None) or mini.MEAN, getattr(visual, "image_std", None) or mini.STD
        self.image_size, self.mean, self.std = side, tuple(mean), tuple(std)
        self.train_preprocess = _preprocess(side, mean, std, train=True)
        self.val_preprocess = _preprocess(side, mean, std, train=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.encode_image(images)

    def save(self, path: str | Path, **header: Any) -> None:
        """Write a checkpoint in the one format. header: such as `task`. Raises CheckpointError and StorageError."""
        checkpoints.save(Path(path), self.state_dict(), {"model": self.model_name, "mode": "standard"} | header)

    @classmethod
    def load(cls, run: Run, path: str | Path) -> "ImageEncoder":
        """The encoder of a run's model with the weights of a checkpoint.

        Raises CheckpointError for another model's, and for those of a linearized model, whose network is another.
        """
        file = checkpoints.Checkpoint(Path(path), model=run.model)
        mode = MODES.get(file.header.get("mode", ""))
        if mode and mode.tangent:
            raise CheckpointError(
                f"{path}: expected weights of a network, found those of its linearization ({mode.name}); load them "
                "with: LinearizedImageEncoder.load"
            )
        encoder = cls(run, keep_lang=has_text(file))
        encoder.load_state_dict(checkpoints.load(file.path, model=run.model, like=encoder.state_dict()))
        return encoder


class ClassificationHead(nn.Linear):
    """Logits = normalised features @ weights.T; weights (classes, D) already carry CLIP's logit scale."""

    def __init__(self, weights: torch.Tensor, normalize: bool = True):
        classes, width = weights.shape
        super().__init__(width, classes, bias=False)
        self.normalize = normalize
        self.weight = nn.Parameter(weights.clone())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(F.normalize(features, dim=-1) if self.normalize else features)

    def save(self, path: str | Path, model: str, **header: Any) -> None:
        """Write it in the one format. model: whose features it takes; header: such as `task`."""
        own = {"model": model, "normalize": self.normalize}
        checkpoints.save(Path(path), {"weight": self.weight}, own | header, kind="head")

    @classmethod
    def load(cls, path: str | Path, **expect: Any) -> "ClassificationHead":
        """The head that `save` wrote, or the cache of heads. expect: such as `task`. Raises CheckpointError."""
        normalize = checkpoints.header(Path(path), kind="head").get("normalize", True)
        return cls(checkpoints.load(Path(path), kind="head", **expect)["weight"], normalize)


class ImageClassifier(nn.Module):
    """Encoder and head: images (N, 3, H, W) -> logits (N, classes)."""

    def __init__(self, image_encoder: nn.Module, classification_head: ClassificationHead):
        super().__init__()
        self.image_encoder = image_encoder
        self.classification_head = classification_head
        for attribute in ("train_preprocess", "val_preprocess"):
            if hasattr(image_encoder, attribute):
                setattr(self, attribute, getattr(image_encoder, attribute))

    def freeze_head(self) -> None:
        self.classification_head.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classification_head(self.image_encoder(images))


class MultiHeadImageClassifier(nn.Module):
    """One encoder and several heads; `head_idx` chooses."""

    def __init__(self, image_encoder: nn.Module, classification_heads: Sequence[ClassificationHead]):
        super().__init__()
        self.image_encoder = image_encoder
        self.classification_heads = nn.ModuleList(classification_heads)
        if hasattr(image_encoder, "val_preprocess"):
            self.val_preprocess = image_encoder.val_preprocess

    def freeze_head(self) -> None:
        self.classification_heads.requires_grad_(False)

    def forward(self, images: torch.Tensor, head_idx: int) -> torch.Tensor:
        return self.classification_heads[head_idx](self.image_encoder(images))
