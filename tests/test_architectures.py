"""Every kind of open_clip's architectures, tiny and random: features, a linearized step, a step of fine-tuning."""

import json

import open_clip
import pytest
import torch
import torch.nn.functional as F
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
        "embed_dim": 192,
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


@pytest.fixture
def run(tmp_path, monkeypatch):
    known = open_clip.factory
    monkeypatch.setattr(known, "_MODEL_CONFIGS", dict(known._MODEL_CONFIGS))
    monkeypatch.setattr(known, "_MODEL_CONFIG_PATHS", list(known._MODEL_CONFIG_PATHS))

    def make(kind: str) -> Run:
        name = f"Tiny-{kind}"
        (tmp_path / f"{name}.json").write_text(json.dumps(KINDS[kind]))
        open_clip.add_model_config(tmp_path / f"{name}.json")
        model_names.open_clip_names.cache_clear()
        torch.manual_seed(0)
        torch.save(open_clip.create_model(name, pretrained=None).state_dict(), tmp_path / "weights.pt")
        return Run("vision", name, 1, ("MNIST",), Places(save=tmp_path), str(tmp_path / "weights.pt"))

    yield make
    model_names.open_clip_names.cache_clear()
    store.encoder.cache_clear()


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_an_architecture_works(run, kind):
    given = run(kind)
    encoder = ImageEncoder(given)
    assert not any(
        name.startswith(("model.transformer.", "model.text.", "model.text_d")) for name in encoder.state_dict()
    )
    assert all(name.startswith("model.visual.") == p.requires_grad for name, p in encoder.named_parameters())
    images = torch.randn(4, 3, encoder.image_size, encoder.image_size)
    model, tokenizer = modeling.build_clip(given)  # with its text tower, for heads
    with torch.no_grad():
        words = F.normalize(model.encode_text(tokenizer(["a cat", "a dog"])), dim=-1)
        assert words.shape == (2, encoder(images).shape[1])
    linear = LinearizedImageEncoder(given, image_encoder=ImageEncoder(given))
    moved = {n: 1e-3 * torch.randn_like(p) for n, p in encoder.named_parameters() if p.requires_grad}
    slope = next(iter(features(encoder.eval(), images, Line(moved), tangent=True))) - encoder(images)
    with torch.no_grad():
        for name, parameter in linear.named_parameters():
            parameter.add_(moved.get(name, 0.0))
        assert relative(linear(images) - encoder(images), slope) < 1e-3
    before = {n: p.detach().clone() for n, p in encoder.named_parameters()}
    if any(isinstance(m, nn.BatchNorm2d) for m in encoder.modules()):
        encoder.train()
    optimizer = torch.optim.AdamW([p for p in encoder.parameters() if p.requires_grad], 1e-3)
    F.cross_entropy(100 * F.normalize(encoder(images), dim=-1) @ words.T, torch.tensor([0, 1, 0, 1])).backward()
    optimizer.step()
    assert any(not torch.equal(before[n], p) for n, p in encoder.named_parameters())
    tau = {n: t - before[n] for n, t in encoder.named_parameters()}
    encoder.eval()
    assert torch.isfinite(next(iter(features(encoder, images, Line(tau), tangent=False)))).all()


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
        torch.testing.assert_close(next(iter(features(start, images, Line(tau), tangent=False))), end(images))


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
