"""Published files of every kind become the one format; those of other models, and others, are refused."""

import argparse
import pickle
import re
import sys
import types
from collections import OrderedDict
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
import torchvision.transforms as T
from published_files import assert_same, encoder_weights, published_vector, random_masks, small_clip
from torch import nn

from src import checkpoints
from src.checkpoints import Checkpoint, CheckpointError
from src.published import convert, towers
from src.runtime.files import file_hash


@pytest.fixture
def path(tmp_path):
    return tmp_path / "MNIST" / "standard.safetensors"


@pytest.fixture
def pretrained(tmp_path):
    path = tmp_path / "zeroshot.safetensors"
    checkpoints.save(path, encoder_weights(small_clip(seed=9)), {"model": "small"})
    return Checkpoint(path)


def test_a_published_state_dict(tmp_path, path, pretrained):
    weights = encoder_weights(small_clip())
    torch.save(OrderedDict(weights), tmp_path / "nonlinear_finetuned.pt")
    convert.convert(
        tmp_path / "nonlinear_finetuned.pt",
        path,
        model="small",
        task="MNIST",
        pretrained=pretrained,
        provenance={"by": "us"},
    )
    assert_same(checkpoints.load(path, model="small", task="MNIST", mode="standard", like=pretrained), weights)
    assert checkpoints.header(path)["provenance"] == {
        "file": "nonlinear_finetuned.pt",
        "sha256": file_hash(tmp_path / "nonlinear_finetuned.pt"),
        "by": "us",
    }


def test_a_published_state_dict_of_another_model_is_refused_and_nothing_is_written(tmp_path, path, pretrained):
    weights = encoder_weights(small_clip())
    weights["model.visual.proj"] = torch.zeros(2, 2)
    torch.save(weights, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other.pt.*model.visual.proj: expected \(32, 24\), found \(2, 2\)"):
        convert.convert(tmp_path / "other.pt", path, model="small", pretrained=pretrained)
    assert not path.exists()


@pytest.fixture
def old_repository(monkeypatch):
    """The classes that an old checkpoint names, there while it is pickled and gone when it is read."""
    module = types.ModuleType("src.modeling")

    class ImageEncoder(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model
            self.val_preprocess = T.Compose([T.Resize(32, T.InterpolationMode.BICUBIC), T.Normalize([0.5], [0.2])])
            self.args = argparse.Namespace(model="small", cache_dir=None)
            self.register_buffer("seen", torch.zeros(1), persistent=False)
            del self.model.transformer

    class ClassificationHead(nn.Linear):
        def __init__(self, weights):
            super().__init__(weights.shape[1], weights.shape[0])
            self.normalize = True
            self.weight, self.bias = nn.Parameter(weights.clone()), nn.Parameter(torch.zeros(len(weights)))

    for cls in (ImageEncoder, ClassificationHead):
        cls.__module__, cls.__qualname__ = module.__name__, cls.__name__
        setattr(module, cls.__name__, cls)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        yield module, patch


def test_a_pickled_module(tmp_path, path, pretrained, old_repository):
    module, patch = old_repository
    expected = encoder_weights(small_clip())
    torch.save(module.ImageEncoder(small_clip()), tmp_path / "finetuned.pt")
    patch.undo()
    convert.convert(tmp_path / "finetuned.pt", path, model="small", task="MNIST", pretrained=pretrained)
    assert_same(checkpoints.load(path, like=pretrained), expected)


def test_a_pickled_head(tmp_path, path, old_repository):
    module, patch = old_repository
    weights = torch.randn(10, 24)
    torch.save(module.ClassificationHead(weights), tmp_path / "head_MNISTVal.pt")
    patch.undo()
    convert.convert(tmp_path / "head_MNISTVal.pt", path, model="small", task="MNIST")
    assert_same(checkpoints.load(path, kind="head", task="MNIST"), {"weight": weights})
    assert checkpoints.header(path)["mode"] is None


def converted_clip(path: Path, pretrained: dict[str, torch.Tensor]) -> torch.nn.Module:
    """CLIP with the weights of a converted file, every one of which has its place in it."""
    clip = small_clip()
    state = {key.removeprefix("model."): value for key, value in checkpoints.load(path, like=pretrained).items()}
    assert not clip.load_state_dict(state, strict=False).unexpected_keys
    return clip


@pytest.mark.parametrize("prefix", ["vision_model.", ""])
@pytest.mark.parametrize("projected", [True, False])
def test_a_hugging_face_vision_model_gives_the_same_features(tmp_path, path, pretrained, prefix, projected):
    from safetensors.torch import save_file
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=128, projection_dim=24, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=8, hidden_act="quick_gelu", layer_norm_eps=1e-5,
    )  # fmt: skip
    torch.manual_seed(1)
    theirs = CLIPVisionModelWithProjection(config).eval()
    for tensor in theirs.state_dict().values():
        tensor.add_(torch.randn_like(tensor) * 0.2)
    if not projected:  # a CLIPVisionModel has no projection: it is the pre-trained one
        theirs.visual_projection.weight.data.copy_(pretrained["model.visual.proj"].T)
    weights = {
        re.sub(r"^vision_model\.", prefix, key): value.contiguous() for key, value in theirs.state_dict().items()
    }
    if not projected:
        del weights["visual_projection.weight"]
    weights[f"{prefix}embeddings.position_ids"] = torch.arange(17)[None]  # in files of transformers before 4.31
    if prefix and projected:  # a whole CLIPModel, whose text side is left out
        weights |= {name: torch.ones(2) for name in ("text_model.x", "text_projection.weight", "logit_scale")}
    save_file(weights, tmp_path / "model.safetensors")

    convert.convert(tmp_path / "model.safetensors", path, model="small", task="MNIST", pretrained=pretrained)
    ours = converted_clip(path, pretrained)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(ours.encode_image(images), theirs(images).image_embeds, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours.token_embedding.weight, pretrained["model.token_embedding.weight"])


def test_a_hugging_face_vision_model_needs_the_pretrained_projection(tmp_path, path):
    from safetensors.torch import save_file

    save_file({"embeddings.class_embedding": torch.zeros(4)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="add --pretrained"):
        convert.convert(tmp_path / "model.safetensors", path, model="small")
    save_file({"embeddings.class_embedding": torch.zeros(4), "pooler.x": torch.zeros(1)}, tmp_path / "clip.safetensors")
    with pytest.raises(CheckpointError, match="expected the tensors of a CLIPVisionModel, found pooler.x"):
        convert.convert(tmp_path / "clip.safetensors", path, model="small")
    query = {"embeddings.class_embedding": torch.zeros(4), "encoder.layers.0.self_attn.q_proj.bias": torch.zeros(4)}
    save_file(query, tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match="expected a tensor 'encoder.layers.0.self_attn.k_proj.bias', found none"):
        convert.convert(tmp_path / "half.safetensors", path, model="small")


@pytest.fixture
def tangent_checkpoint(tmp_path, pretrained):
    """A file as the tangent repository's LinearizedImageEncoder.save writes it."""
    names = list(pretrained)
    theta = {name: torch.randn_like(pretrained[name]) for name in names}
    state = {f"model.params.{i}": theta[name] for i, name in enumerate(names)}
    state |= {f"model.params0.{i}": pretrained[name] for i, name in enumerate(names)}
    torch.save(OrderedDict(state | {"model_name": "small"}), tmp_path / "linear_finetuned.pt")
    return tmp_path / "linear_finetuned.pt", names, theta


def test_a_linear_checkpoint_of_positions(path, pretrained, tangent_checkpoint):
    source, names, theta = tangent_checkpoint
    options = {"model": "small", "task": "MNIST", "pretrained": pretrained}
    convert.convert(source, path, mode="linear", names=names, **options)
    assert_same(checkpoints.load(path, mode="linear", like=pretrained), theta)
    with pytest.raises(CheckpointError, match="--mode linear"):
        convert.convert(source, path, names=names, **options)
    with pytest.raises(CheckpointError, match="--names"):
        convert.convert(source, path, mode="linear", **options)
    swapped = [names[-1], *names[1:-1], names[0]]
    with pytest.raises(CheckpointError, match=f"params0.0 to be {re.escape(names[-1])}"):
        convert.convert(source, path, mode="linear", names=swapped, **options)
    with pytest.raises(CheckpointError, match=f"expected {len(names) - 1} parameters"):
        convert.convert(source, path, mode="linear", names=names[1:], **options)


WRAPPED = {
    "a state dict of DDP": lambda named: {f"module.{key}": value for key, value in named.items()},
    "of torch.compile": lambda named: {f"_orig_mod.{key}": value for key, value in named.items()},
    "of both": lambda named: {f"module._orig_mod.{key}": value for key, value in named.items()},
    "of both, the other way": lambda named: {f"_orig_mod.module.{key}": value for key, value in named.items()},
    "open_clip's training file": lambda named: {
        "epoch": 3,
        "name": "run",
        "state_dict": OrderedDict((f"module.{key}", value) for key, value in named.items()),
        "optimizer": {"state": {0: {"step": torch.ones(())}}, "param_groups": [{"lr": 1e-3}]},
    },
    "under model": lambda named: {"model": named, "epoch": 3},
    "under model_state_dict": lambda named: {"model_state_dict": named, "optimizer_state_dict": {"state": {}}},
}


@pytest.mark.parametrize("how", WRAPPED)
def test_what_training_puts_around_weights_is_taken_off(tmp_path, path, pretrained, how):
    named = encoder_weights(small_clip())
    torch.save(WRAPPED[how](named), tmp_path / "x.pt")
    convert.convert(tmp_path / "x.pt", path, model="small", task="MNIST", pretrained=pretrained)
    assert_same(checkpoints.load(path, like=pretrained), named)


def write_torchscript(path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(3, 3), torch.zeros(1, 3)), str(path))


def write_index(path):
    path.mkdir()
    (path / "model.safetensors.index.json").write_text("{}")


UNSUITED = {
    "TorchScript": ("x.pt", write_torchscript, "which is a program"),
    "an older torch.save": (
        "x.pt",
        lambda path: torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=False),
        "before PyTorch 1.6; write it anew by: torch.save",
    ),
    "an index of shards": ("model.safetensors.index.json", lambda path: path.write_text("{}"), "found shards; join"),
    "a shard": ("model-00001-of-00002.safetensors", lambda path: path.write_bytes(b"x"), "found shards; join"),
    "a folder of shards": ("folder", write_index, "found shards; join"),
    "a folder without weights": ("folder", lambda path: path.mkdir(), "a folder without model.safetensors"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("kind", UNSUITED)
def test_files_that_cannot_be_converted_say_what_they_are_and_what_mends_it(tmp_path, path, kind):
    name, write, told = UNSUITED[kind]
    write(tmp_path / name)
    with pytest.raises(SystemExit, match=f"{name}.*{told}"):
        convert.main([str(tmp_path / name), str(path), "--model=small"])
    assert not path.exists()


def test_foreign_weights_are_not_converted(tmp_path, path):
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="expected the weights of a CLIP image encoder, found fc.weight"):
        convert.convert(tmp_path / "x.pt", path, model="small")
    torch.save([1, 2], tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="expected weights by name, found a list"):
        convert.convert(tmp_path / "x.pt", path, model="small")


def near(weights, seed=0):
    """The image tower moved by 5 % of its norm, as fine-tuning moves it."""
    draws = torch.Generator().manual_seed(seed)
    return {
        name: w + 0.01 * torch.randn(w.shape, generator=draws) if name.startswith("model.visual.") else w
        for name, w in weights.items()
    }


def test_the_command_line_converts_and_says_what_is_wrong(tmp_path, path, pretrained, capsys):
    torch.save(near(encoder_weights(small_clip(seed=9))), tmp_path / "x.pt")
    arguments = ["convert", str(tmp_path / "x.pt"), str(path), "--model", "small", "--task", "MNIST"]
    convert.main([*arguments, "--mode", "standard", "--pretrained", str(pretrained.path)])
    assert "wrote" in capsys.readouterr().out and len(Checkpoint(path, task="MNIST")) == len(pretrained)
    with pytest.raises(SystemExit, match="expected model 'other', found 'small'"):
        convert.main([*arguments[:4], "other", "--pretrained", str(pretrained.path)])


def test_a_checkpoint_of_another_start_is_not_converted(tmp_path, path, pretrained, capsys):
    """Its difference from θ0 would be no task vector. One's own text side may have been trained too."""
    command = [str(tmp_path / "x.pt"), str(path), "--model=small", "--task=MNIST", f"--pretrained={pretrained.path}"]
    torch.save(encoder_weights(small_clip()), tmp_path / "x.pt")
    with pytest.raises(SystemExit, match="x.pt: expected weights near those of the pre-trained model, found them"):
        convert.main(command)
    assert not path.exists()
    own = near(dict(pretrained)) | {"model.text_projection": torch.zeros_like(pretrained["model.text_projection"])}
    torch.save(own, tmp_path / "x.pt")
    convert.main(command)
    assert "its text side is another (model.text_projection)" in capsys.readouterr().out
    assert checkpoints.header(path)["began_at"] == checkpoints.fingerprint(
        {name: tensor for name, tensor in pretrained.items() if name.startswith("model.visual.")}
    )


@pytest.mark.parametrize("head", ["projection", "none", "classifier"])
def test_a_vision_transformer_of_timm_gives_the_same_features(tmp_path, path, pretrained, head):
    from timm.models.vision_transformer import VisionTransformer

    theirs = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, pre_norm=True, norm_layer=nn.LayerNorm,
        act_layer="quick_gelu", num_classes=24 if head == "projection" else 0,
    ).eval()  # fmt: skip
    for tensor in theirs.state_dict().values():
        tensor.add_(torch.randn_like(tensor) * 0.2)
    weights = theirs.state_dict()
    if head == "projection":
        theirs.head.bias.data.zero_()
        projection = theirs.head.weight.data.T
    else:
        projection = pretrained["model.visual.proj"]
    if head == "classifier":
        weights |= {"head.weight": torch.randn(10, 32), "head.bias": torch.randn(10)}
    torch.save(weights, tmp_path / "timm.pth")
    convert.convert(tmp_path / "timm.pth", path, model="small", task="MNIST", pretrained=pretrained)
    ours = converted_clip(path, pretrained)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        features = theirs.forward_head(theirs.forward_features(images), pre_logits=True) @ projection
        torch.testing.assert_close(ours.encode_image(images), features, atol=1e-5, rtol=1e-5)
    if head != "projection":
        with pytest.raises(CheckpointError, match="expected a projection, found none, as in every timm model"):
            convert.convert(tmp_path / "timm.pth", path, model="small")
    torch.save(weights | {"dist_token": torch.zeros(1, 1, 32)}, tmp_path / "deit.pth")
    with pytest.raises(CheckpointError, match="expected the tensors of timm's vision transformer of CLIP, found dist"):
        convert.convert(tmp_path / "deit.pth", path, model="small", pretrained=pretrained)


@pytest.mark.parametrize("classes", [10, 24])
def test_a_timm_classifier_without_a_bias_is_no_projection(pretrained, classes):
    """24 classes: as many as the projection has outputs, so that its direction alone tells."""
    theirs = pretrained["model.visual.proj"]
    of_timm = {"cls_token": torch.ones(1, 1, 32), "head.weight": torch.randn(classes, 32)}
    assert torch.equal(towers.from_timm(of_timm, pretrained)["model.visual.proj"], theirs)
    with pytest.raises(CheckpointError, match="expected a projection, found none"):
        towers.from_timm(of_timm, None)
    moved = (theirs + 0.02 * torch.randn_like(theirs)).T
    found = towers.from_timm(of_timm | {"head.weight": moved}, pretrained)["model.visual.proj"]
    assert torch.equal(found, moved.T)
    without_bias = {"head.weight": torch.randn(classes, 32), "head.bias": torch.zeros(classes)}
    found = towers.from_timm(of_timm | without_bias, pretrained)["model.visual.proj"]
    assert torch.equal(found, without_bias["head.weight"].T if classes == 24 else theirs)


def test_a_timm_model_that_is_a_tower_goes_into_its_trunk(tmp_path, path):
    trunk = {"stem.weight": torch.randn(4, 3), "head.norm.weight": torch.randn(4)}
    lent = {"model.visual.head.proj.weight": torch.randn(2, 4), "model.logit_scale": torch.ones(())}
    start = {f"model.visual.trunk.{name}": torch.zeros_like(w) for name, w in trunk.items()} | lent
    torch.save(trunk, tmp_path / "timm.pth")
    convert.convert(tmp_path / "timm.pth", path, model="small", task="MNIST", pretrained=start)
    assert_same(checkpoints.load(path), {f"model.visual.trunk.{name}": w for name, w in trunk.items()} | lent)


@pytest.mark.parametrize("module", [["src.checkpoints", "convert"], ["src.published.convert"]])
def test_both_commands_convert(tmp_path, path, module):
    torch.save(encoder_weights(small_clip()), tmp_path / "x.pt")
    command = ("-m", *module, tmp_path / "x.pt", path, "--model", "small")
    done = forked.run(*command)
    assert (done.returncode, done.stdout) == (0, f"wrote {path}\n"), done.stderr
    assert len(Checkpoint(path, model="small")) == len(encoder_weights(small_clip()))
    (tmp_path / "x.pt").write_bytes(b"PK and no more")
    done = forked.run(*command)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {tmp_path / 'x.pt'}: damaged or truncated file")


@pytest.mark.parametrize("writer", ["np.save", "np.save, old", "torch.save"])
def test_published_masks_are_read_without_executing_them(tmp_path, pretrained, writer):
    masks = random_masks({name: pretrained.shape(name) for name in pretrained})
    packed = {task: np.packbits(published_vector(named).numpy()) for task, named in masks.items()}
    source = tmp_path / "TALL_mask_8task.npy"
    if writer == "torch.save":
        torch.save(packed, source)
    elif writer == "np.save":
        np.save(source, packed)
    else:  # NumPy 1.x pickled with protocol 3 or 2, and called its module numpy.core
        with open(source, "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
            body = pickle.dumps(np.array(packed, dtype=object), protocol=2)
            file.write(body.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    loaded = convert.read_masks(source, like=pretrained)
    destination = tmp_path / "masks.safetensors"
    convert.convert(source, destination, model="small", pretrained=pretrained)
    again = checkpoints.load_masks(destination, model="small", scope="published", tasks=list(masks))
    for task, named in masks.items():
        assert_same(loaded[task], named)
        assert_same(again[task], named)


def test_published_masks_of_another_model_are_refused(tmp_path, pretrained):
    source = tmp_path / "TALL_mask_8task.npy"
    np.save(source, {"MNIST": np.zeros(5, np.uint8)})
    with pytest.raises(CheckpointError, match="bits for MNIST .* found 40: it belongs to another model"):
        convert.read_masks(source, like=pretrained)
    for value in (np.zeros(5, np.float32), [1, 2], "text"):
        np.save(source, {"MNIST": value})
        with pytest.raises(CheckpointError, match=r"TALL_mask_8task.npy: expected"):
            convert.read_masks(source, like=pretrained)
    np.save(source, np.zeros(5))
    with pytest.raises(CheckpointError, match="expected one saved dict, found an array"):
        convert.read_masks(source, like=pretrained)
    with pytest.raises(CheckpointError, match="add --pretrained"):
        convert.convert(source, tmp_path / "out", model="small")


def test_a_mask_of_fusion_bench(tmp_path):
    """{"model": logits by the names of a CLIPVisionModel}, as its Fabric saves them."""
    from test_download_checkpoints import hugging_face_names

    start = encoder_weights(small_clip())
    logits = {key: torch.randn_like(tensor) for key, tensor in start.items() if key.startswith("model.visual.")}
    theirs = {key: tensor for key, tensor in hugging_face_names(logits).items() if "proj.weight" != key}
    torch.save({"model": theirs}, tmp_path / "latest_checkpoint.pt")
    checkpoints.save(tmp_path / "zero.safetensors", start, {"model": "small", "mode": "none"})
    out = tmp_path / "mask.safetensors"
    flags = ["--model=small", f"--pretrained={tmp_path / 'zero.safetensors'}", "--mask"]
    convert.main([str(tmp_path / "latest_checkpoint.pt"), str(out), *flags])
    kept = checkpoints.Checkpoint(out, kind="mask logits", model="small", like=logits)
    assert kept.header["settings"] == {"mode": "standard", "adapt_on": "test"}
    for key, tensor in logits.items():
        expected = torch.zeros_like(tensor) if key == "model.visual.proj" else tensor
        assert torch.equal(kept[key], expected)
