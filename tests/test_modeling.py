"""Encoders, heads and names of models."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP

from src import checkpoints, heads, modeling
from src.checkpoints import CheckpointError
from src.datasets import registry
from src.linearize import LinearizedImageEncoder
from src.model_names import ModelName, check_model
from src.modeling import (
    ClassificationHead,
    ImageClassifier,
    ImageEncoder,
    MultiHeadImageClassifier,
    assert_quick_gelu,
)
from src.vit_mini import clip


def test_model_names():
    assert ModelName.parse("ViT-B-32") == ModelName("ViT-B-32", None, False)
    assert ModelName.parse("ViT-B-32__pretrained__laion2b_e16") == ModelName("ViT-B-32", "laion2b_e16", False)
    assert ModelName.parse("ViT-Mini__init__") == ModelName("ViT-Mini", None, True)


def test_unknown_model_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean ViT-B-32"):
        check_model("ViT-B32")


def test_shipped_weights_are_small_and_say_how_they_were_made():
    assert clip.SHIPPED.stat().st_size < 8_000_000
    from safetensors import safe_open

    with safe_open(clip.SHIPPED, framework="pt") as file:
        header = json.loads(file.metadata()["header"])
        assert {file.get_slice(k).get_dtype() for k in file.keys()} == {"F16"}
    assert header["seconds"] > 0 and header["steps"] and header["words"]


def test_encoder_has_the_published_names(make_run):
    encoder = ImageEncoder(make_run())
    names = set(encoder.state_dict())
    text_side = {"model.positional_embedding", "model.text_projection", "model.logit_scale",
                 "model.token_embedding.weight", "model.ln_final.weight", "model.ln_final.bias"}  # fmt: skip
    assert text_side < names
    assert all(n.startswith("model.visual.") for n in names - text_side)
    assert {n for n, p in encoder.named_parameters() if p.requires_grad} == names - text_side
    assert any(n.startswith("model.transformer.") for n in ImageEncoder(make_run(), keep_lang=True).state_dict())


def test_encoder_is_a_function_of_each_image(make_run):
    encoder = ImageEncoder(make_run())
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        together = encoder(images)
        alone = torch.cat([encoder(image[None]) for image in images])
    assert together.shape == (3, clip.EMBED)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_random_initialization_keeps_the_text_head(make_run):
    trained, random = make_run(), make_run("--model=ViT-Mini__init__")
    a, b = ImageEncoder(trained), ImageEncoder(random)
    assert not torch.equal(a.model.visual.proj, b.model.visual.proj)
    again = ImageEncoder(random).model.visual.proj
    torch.testing.assert_close(b.model.visual.proj, again, rtol=0, atol=0)
    head = heads.get_classification_head(trained, "signs")
    torch.testing.assert_close(head.weight, heads.get_classification_head(random, "signs").weight, rtol=0, atol=0)


def test_head_is_the_prompt_ensemble(make_run):
    """Against the definition, in float64: normalise, average, normalise, scale."""
    run = make_run()
    model, tokenizer = modeling.build_clip(run)
    row = registry.get("land")
    expected = []
    with torch.no_grad():
        for name in row.classnames:
            texts = model.encode_text(tokenizer([t.format(name) for t in row.templates])).double()
            expected.append(F.normalize(F.normalize(texts, dim=-1).mean(0), dim=-1) * model.logit_scale.double().exp())
    built = heads.get_classification_head(run, "land")
    cached = heads.get_classification_head(run, "land")
    torch.testing.assert_close(built.weight.double(), torch.stack(expected), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(built.weight, cached.weight, atol=0, rtol=0)
    assert not built.weight.requires_grad


def test_a_head_of_other_class_names_is_not_reused(make_run, monkeypatch):
    run = make_run()
    before = heads.get_classification_head(run, "signs").weight
    row = registry.get("signs")
    renamed = registry.Dataset(**vars(row) | {"templates": ("the {} symbol",)})
    monkeypatch.setitem(registry.ROWS, "signs", renamed)
    assert not torch.equal(before, heads.get_classification_head(run, "signs").weight)


def test_head_normalises_and_classifiers_compose():
    head = ClassificationHead(torch.randn(5, 8))
    features = torch.randn(4, 8)
    torch.testing.assert_close(head(features), F.normalize(features, dim=-1) @ head.weight.T)
    torch.testing.assert_close(head(3 * features), head(features))
    encoder = torch.nn.Linear(2, 8)
    one = ImageClassifier(encoder, head)
    many = MultiHeadImageClassifier(encoder, [ClassificationHead(torch.randn(3, 8)), head])
    inputs = torch.randn(4, 2)
    torch.testing.assert_close(many(inputs, 1), one(inputs))
    one.freeze_head()
    assert not head.weight.requires_grad and encoder.weight.requires_grad


def tiny_clip(quick: bool) -> CLIP:
    vision = dict(image_size=16, patch_size=8, width=16, layers=1, head_width=8)
    return CLIP(8, vision, dict(context_length=4, vocab_size=9, width=16, heads=2, layers=1), quick_gelu=quick)


def test_quick_gelu_is_asserted():
    assert_quick_gelu(tiny_clip(quick=True))
    with pytest.raises(RuntimeError, match="expected QuickGELU"):
        assert_quick_gelu(tiny_clip(quick=False))
    assert_quick_gelu(SimpleNamespace(visual=torch.nn.ReLU()))  # a ResNet's tower has no blocks of a transformer


@pytest.mark.parametrize(
    "model, weights, quick",
    [
        ("ViT-B-32", None, True),
        ("ViT-B-32", "openai.safetensors", True),  # a file is of the weights that the name means
        ("ViT-B-32__pretrained__metaclip_400m", None, True),
        ("ViT-B-32__pretrained__laion2b_s34b_b79k", "laion.safetensors", False),
    ],
)
def test_weights_get_the_activation_that_they_were_trained_with(make_run, monkeypatch, tmp_path, model, weights, quick):
    asked = {}
    monkeypatch.chdir(tmp_path)
    if weights:
        Path(weights).touch()

    def create(architecture, pretrained, **options):
        asked.update(options, pretrained=pretrained)
        return tiny_clip(options["force_quick_gelu"])

    monkeypatch.setattr(open_clip, "create_model", create)
    run = make_run(f"--model={model}", *([f"--pretrained-path={weights}"] if weights else []))
    modeling.build_clip(run)
    assert asked["force_quick_gelu"] == quick
    assert asked["pretrained"] == (weights or ModelName.parse(model).weights or "openai")
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: tiny_clip(quick=False))  # one that only warns
    with pytest.raises(RuntimeError, match="expected QuickGELU") if quick else nullcontext():
        modeling.build_clip(run)


def test_weights_that_cannot_be_had_name_the_way_without_a_network(make_run, monkeypatch, tmp_path):
    def unreachable(*arguments, **options):
        raise OSError("Network is unreachable\nand more")

    file = tmp_path / "weights.pt"
    file.write_bytes(b"<html>")
    with pytest.raises(CheckpointError, match=f"--pretrained-path: expected weights of ViT-B-32 in {file} .*found Unp"):
        modeling.build_clip(make_run("--model=ViT-B-32", f"--pretrained-path={file}"))
    monkeypatch.setattr(open_clip, "create_model", unreachable)
    with pytest.raises(
        CheckpointError, match="OSError: Network is unreachable\nWithout a network: fetch .*timm/vit_base_"
    ):
        modeling.build_clip(make_run("--model=ViT-B-32"))


def test_tokenizer_knows_words_and_spells_the_rest():
    tokenizer = clip.Tokenizer.of(["a red car"])
    tokens = tokenizer(["a red car", "a xy", "a red car a red car a red car a red car"])
    assert tokens.shape == (3, clip.CONTEXT)
    assert tokens[0, :5].tolist() == [tokenizer.start, 256, 258, 257, tokenizer.end]
    assert tokens[1, :5].tolist() == [tokenizer.start, 256, ord("x"), ord("y"), tokenizer.end]
    assert tokens[2, -1] == tokenizer.end


def test_published_names_of_data_sets_have_the_same_head(make_run):
    run = make_run()
    plain, published = (heads.get_classification_head(run, name).weight for name in ("signs", "signsVal"))
    assert torch.equal(plain, published)


@pytest.mark.parametrize("cls", [ImageEncoder, LinearizedImageEncoder])
@pytest.mark.parametrize("keep_lang", [False, True])
def test_encoders_and_heads_are_saved_and_loaded(make_run, tmp_path, cls, keep_lang):
    """As the published classes do; a linear one is loaded around the pre-trained weights."""
    run = make_run()
    encoder = cls(run, keep_lang=keep_lang)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            parameter.add_(0.01 if name.startswith("model.visual.") else 0)
    encoder.save(tmp_path / "x.safetensors", task="signs")
    again = cls.load(run, tmp_path / "x.safetensors")
    images = torch.randn(2, 3, encoder.image_size, encoder.image_size)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), encoder.eval()(images))
    assert again.state_dict().keys() == encoder.state_dict().keys()
    mode = "linear" if cls is LinearizedImageEncoder else "standard"
    assert checkpoints.header(tmp_path / "x.safetensors", task="signs")["mode"] == mode
    with pytest.raises(checkpoints.CheckpointError, match="expected model 'ViT-B-32', found 'ViT-Mini'"):
        cls.load(make_run("--model=ViT-B-32"), tmp_path / "x.safetensors")
    head = ClassificationHead(torch.randn(3, 4))
    head.save(tmp_path / "head.safetensors", model=run.model, task="signs")
    assert torch.equal(ClassificationHead.load(tmp_path / "head.safetensors", task="signs").weight, head.weight)
    ClassificationHead(head.weight, normalize=False).save(tmp_path / "plain.safetensors", model=run.model)
    assert head.normalize and not ClassificationHead.load(tmp_path / "plain.safetensors").normalize
    with pytest.raises(checkpoints.CheckpointError, match="head"):
        cls.load(run, tmp_path / "head.safetensors")


def test_a_linear_model_is_loaded_around_its_own_start_alone(make_run, tmp_path):
    run = make_run()
    start = ImageEncoder(run)
    with torch.no_grad():
        start.get_parameter("model.visual.proj").add_(0.01)
    LinearizedImageEncoder(run, init_encoder=start).save(tmp_path / "x.safetensors")
    with pytest.raises(checkpoints.CheckpointError, match="expected a model that was linearized around the run's θ0"):
        LinearizedImageEncoder.load(run, tmp_path / "x.safetensors")
    with pytest.raises(checkpoints.CheckpointError, match="found those of its linearization"):
        ImageEncoder.load(run, tmp_path / "x.safetensors")
