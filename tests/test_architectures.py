"""Every kind of open_clip's architectures, tiny and random: features, a linearized step, a step of fine-tuning."""

import copy
import functools
import json
from pathlib import Path

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from timm import create_model as create_timm
from torch import nn

from src import model_names, modeling, store
from src.evaluation import Line, features
from src.linearize import LinearizedImageEncoder
from src.modeling import ImageEncoder
from src.run import Run
from src.runtime.messages import UsageError
from src.runtime.paths import Places

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
TIMM = {"image_size": 32, "timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear"}
CONVNEXT = TIMM | {"timm_model_name": "convnext_atto"}
SIGLIP = TIMM | {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map", "timm_proj": "none", "image_size": 224}
ONE_TOKEN = TEXT | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
# One of each kind that open_clip's list has: kind of image tower, of text tower, and of what joins them.
KINDS: dict[str, dict] = {
    "vit": {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT},
    "vit-quickgelu": {"embed_dim": 16, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "resnet": {"embed_dim": 16, "vision_cfg": RESNET, "text_cfg": TEXT},
    "timm": {"embed_dim": 16, "vision_cfg": TIMM, "text_cfg": TEXT},
    "convnext": {"embed_dim": 16, "vision_cfg": CONVNEXT, "text_cfg": TEXT},
    "custom": {"embed_dim": 16, "custom_text": True, "vision_cfg": CONVNEXT, "text_cfg": TEXT},
    "sigmoid": {
        "embed_dim": 48,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": SIGLIP,
        "text_cfg": ONE_TOKEN,
    },
    "coca": {
        "embed_dim": 16,
        "custom_text": True,
        "vision_cfg": VIT | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": TEXT | {"attn_pooler_heads": 2},
    },
}

SIZES = {
    "layers",
    "width",
    "image_size",
    "patch_size",
    "head_width",
    "heads",
    "context_length",
    "vocab_size",
    "mlp_ratio",
}
SIZES |= {"attn_pooler_heads", "hf_model_name", "hf_tokenizer_name"}
SMALL_TIMM = {  # by the first word of a timm model's name: the smallest of its family
    "convnext": "convnext_atto",
    "eva": "eva02_tiny_patch14_224",
    "eva02": "eva02_tiny_patch14_224",
    "fastvit": "fastvit_mci0",
    "swin": "swin_tiny_patch4_window7_224",
    "vitamin": "vitamin_small_224",
}
SMALL_IMAGE = 64
FREE_SIZE = ("vit_base_mci_", "vitamin_", "fastvit_")  # timm models that take images of any size
SMALL_HF = {  # by the architecture of a text tower of the hub's: its config
    "roberta": {"model_type": "roberta"},
    "xlm": {"model_type": "xlm-roberta"},
    "mt5": {"model_type": "mt5", "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
    "nllb": {"model_type": "m2m_100", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    | {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("attention_heads", "ffn_dim")},
}


def of_one_build() -> dict[str, str]:
    """A name of open_clip's for each way of building that its list has: what differs but for sizes."""
    names: dict[str, str] = {}
    for name, config in open_clip.factory._MODEL_CONFIGS.items():
        parts = {part: {k: v for k, v in config.get(part, {}).items() if k not in SIZES} for part in PARTS}
        timm = parts["vision_cfg"].pop("timm_model_name", "")
        family = small_timm(timm) if timm else ""
        layers = type(config["vision_cfg"].get("layers"))
        of_hub = config["text_cfg"].get("hf_model_name", "").rpartition("/")[2].partition("-")[0]
        others = {k: v for k, v in config.items() if k not in (*PARTS, "embed_dim")}
        names.setdefault(repr((parts, family, layers, of_hub, others)), name)
    return {name: key for key, name in names.items()}


PARTS = ("vision_cfg", "text_cfg", "multimodal_cfg")


def shrunk(name: str, folder: Path) -> dict:
    """The configuration of open_clip's `name` with few and narrow layers, and otherwise as it is."""
    config = copy.deepcopy(open_clip.factory._MODEL_CONFIGS[name])
    vision, text = config["vision_cfg"], config["text_cfg"]
    if timm := vision.get("timm_model_name"):
        tiny = vision["timm_model_name"] = small_timm(timm)
        model = create_timm(tiny, num_classes=0, **shallow(tiny))
        free = tiny.startswith(FREE_SIZE)
        vision["image_size"] = SMALL_IMAGE if free else model.pretrained_cfg["input_size"][-1]
        if str(vision.get("timm_proj")).lower() == "none":
            config["embed_dim"] = model.num_features
    elif isinstance(vision["layers"], list):
        vision |= RESNET
    else:
        vision |= VIT
    if str(vision.get("timm_proj", "linear")).lower() != "none":
        config["embed_dim"] = 16
    for part in (vision, text, config.get("multimodal_cfg", {})):
        if "attn_pooler_heads" in part or part is config.get("multimodal_cfg"):
            part["attn_pooler_heads"] = 2
    for key in ("hf_tokenizer_name", "tokenizer_kwargs"):  # of the hub's
        text.pop(key, None)
    if hub := text.get("hf_model_name"):
        family = hub.rpartition("/")[2].partition("-")[0]
        small = dict(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=49408)
        (folder / "config.json").write_text(json.dumps(small | SMALL_HF[family]))
        text["hf_model_name"], text["hf_model_pretrained"] = str(folder), False
    else:
        text |= TEXT | ({"width": config["embed_dim"]} if text.get("proj_type") == "none" else {})
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= TEXT
    return config


def small_timm(name: str) -> str:
    """The smallest timm model that is built as `name` is."""
    if "siglip" in name or "_clip_" in name:
        return "vit_tiny_patch16_224"
    return "vit_pe_core_tiny_patch16_384" if "pe_core" in name else SMALL_TIMM.get(name.partition("_")[0], name)


def shallow(name: str) -> dict:
    """Arguments of a timm model that leave it few and narrow blocks, where its family takes them."""
    if name.startswith("vit_") and "_mci_" not in name:  # whose stem has the width of the blocks
        return {"depth": 2, "embed_dim": 48, "num_heads": 3}
    if name.startswith(("vit_", "vitamin_", "eva")):
        return {"depth": 2} | ({"img_size": SMALL_IMAGE} if name.startswith(FREE_SIZE) else {})
    if name.startswith("fastvit_"):
        return {"layers": (1, 1, 1, 1)}
    if name.startswith("swin"):
        return {"depths": (1, 1, 1, 1), "embed_dim": 24}
    return {"depths": (1, 1, 1, 1)} if name.startswith("convnext") else {}


@pytest.fixture(scope="module", autouse=True)
def one_vocabulary():
    """open_clip reads its words once for all of these names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip.factory, "SimpleTokenizer", functools.cache(open_clip.factory.SimpleTokenizer))
        yield


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda name, **more: create_timm(name, **more, **shallow(name)))
    known = open_clip.factory
    monkeypatch.setattr(known, "_MODEL_CONFIGS", dict(known._MODEL_CONFIGS))
    monkeypatch.setattr(known, "_MODEL_CONFIG_PATHS", list(known._MODEL_CONFIG_PATHS))

    def make(kind: str) -> Run:
        name = f"Tiny-{kind}".lower().replace(
            "siglip", "sigmoid"
        )  # by whose name open_clip takes a tokenizer of the hub
        config = KINDS[kind] if kind in KINDS else shrunk(kind, tmp_path)
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(tmp_path / f"{name}.json")
        model_names.open_clip_names.cache_clear()
        torch.manual_seed(0)
        whole = open_clip.create_model(name, pretrained=None, pretrained_hf=False)
        torch.save(whole.state_dict(), tmp_path / "weights.pt")
        return Run("vision", name, 1, ("MNIST",), Places(save=tmp_path), str(tmp_path / "weights.pt"))

    yield make
    model_names.open_clip_names.cache_clear()
    store.encoder.cache_clear()


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("kind", [*KINDS, *of_one_build()])
def test_an_architecture_works(run, kind):
    given = run(kind)
    encoder = ImageEncoder(given)
    assert not any(
        name.startswith(("model.transformer.", "model.text.", "model.text_d")) for name in encoder.state_dict()
    )
    assert all(name.startswith("model.visual.") == p.requires_grad for name, p in encoder.named_parameters())
    images = torch.randn(2, 3, encoder.image_size, encoder.image_size)
    model, tokenizer = modeling.build_clip(given)  # with its text tower, for heads
    with torch.no_grad():
        words = F.normalize(model.encode_text(tokenizer(["a cat", "a dog"])), dim=-1)
        assert words.shape == (2, encoder(images).shape[1])
    linear = LinearizedImageEncoder(given, image_encoder=ImageEncoder(given))
    moved = {n: 1e-3 * torch.randn_like(p) for n, p in encoder.named_parameters() if p.requires_grad}
    slope = next(features(encoder.eval(), [images], Line(moved), tangent=True))[2] - encoder(images)
    with torch.no_grad():
        for name, parameter in linear.named_parameters():
            parameter.add_(moved.get(name, 0.0))
        assert relative(linear(images) - encoder(images), slope) < 1e-3
    before = {n: p.detach().clone() for n, p in encoder.named_parameters()}
    if any(isinstance(m, nn.BatchNorm2d) for m in encoder.modules()):
        encoder.train()
    optimizer = torch.optim.AdamW([p for p in encoder.parameters() if p.requires_grad], 1e-3)
    F.cross_entropy(100 * F.normalize(encoder(images), dim=-1) @ words.T, torch.tensor([0, 1])).backward()
    optimizer.step()
    assert any(not torch.equal(before[n], p) for n, p in encoder.named_parameters())
    tau = {n: t - before[n] for n, t in encoder.named_parameters()}
    encoder.eval()
    assert torch.isfinite(next(features(encoder, [images], Line(tau), tangent=False))[2]).all()


def test_the_statistics_of_batch_norm_belong_to_the_task_vector(run):
    """A tower that was fine-tuned in training mode has moved its running statistics: θ0 + τ is θ with them."""
    given = run("resnet")
    start, end = ImageEncoder(given).eval(), ImageEncoder(given)
    images = torch.randn(8, 3, 32, 32)
    end.train()(images)  # no weight moves, the statistics do
    end.eval()
    tau = {n: t - start.state_dict()[n] for n, t in end.state_dict().items() if t.is_floating_point()}
    assert any("running_mean" in name and moved.any() for name, moved in tau.items())
    with torch.no_grad():
        torch.testing.assert_close(next(features(start, [images], Line(tau), tangent=False))[2], end(images))


def test_every_name_of_open_clip_is_of_a_kind_that_was_tried():
    """So that a new kind in a newer open_clip is noticed here. Text towers of the hub's need its network."""
    for name, config in open_clip.factory._MODEL_CONFIGS.items():
        vision, text = config["vision_cfg"], config["text_cfg"]
        assert vision.keys() & {"timm_model_name", "layers"} and ("layers" in text or "hf_model_name" in text), name


def test_weights_that_open_clip_does_not_have_name_those_it_has(make_run):
    with pytest.raises(
        UsageError, match="EVA02-B-16 has no weights 'openai' in open_clip; name one, as in --model=EVA02-B-"
    ):
        modeling.build_clip(make_run("--model=EVA02-B-16"))
    with pytest.raises(UsageError, match="RN50 has no weights 'laion' .*openai, yfcc15m"):
        modeling.build_clip(make_run("--model=RN50__pretrained__laion"))
    with pytest.raises(
        UsageError, match="ViT-S-32-alt has no weights .*it has none; or give a file by --pretrained-path"
    ):
        modeling.build_clip(make_run("--model=ViT-S-32-alt"))
