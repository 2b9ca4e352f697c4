"""The checkpoint format: what it keeps, what it refuses and how it says so; and that no pickle is ever executed."""

import argparse
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import open_clip
import pytest
import torch
import torchvision.transforms as T
from torch import nn

from src import checkpoints
from src.checkpoints import Checkpoint, CheckpointError
from src.published import unpickle
from src.runtime.files import file_hash, replacing
from src.runtime.paths import ROOT

HEADER = {"model": "ViT-Mini", "task": "MNIST", "mode": "standard", "seed": 1, "step": 7}


def small_weights(seed=0):
    torch.manual_seed(seed)
    return {
        "model.logit_scale": torch.randn(()),
        "model.visual.proj": torch.randn(3, 5),
        "model.visual.ln.weight": torch.randn(5).half(),
    }


def small_clip(seed=0):
    """A real open_clip model with QuickGELU, as OpenAI's weights need it, but tiny."""
    torch.manual_seed(seed)
    vision = open_clip.CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=8, image_size=32)
    text = open_clip.CLIPTextCfg(context_length=8, vocab_size=16, width=32, heads=2, layers=1)
    model = open_clip.CLIP(24, vision, text, quick_gelu=True).eval()
    for tensor in model.state_dict().values():  # all of them distinct and non-zero, so that no mix-up goes unseen
        tensor.copy_(torch.randn_like(tensor) * 0.2)
    return model


def encoder_weights(model):
    """What `ImageEncoder(keep_lang=False).state_dict()` holds for this CLIP."""
    return {f"model.{key}": value for key, value in model.state_dict().items() if not key.startswith("transformer.")}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor) and found[key].dtype == tensor.dtype, key


@pytest.fixture
def path(tmp_path):
    return tmp_path / "MNIST" / "standard.safetensors"


@pytest.fixture
def pretrained(tmp_path):
    path = tmp_path / "zeroshot.safetensors"
    checkpoints.save(path, encoder_weights(small_clip(seed=9)), {"model": "small"})
    return Checkpoint(path)


# ---- the format


def test_weights_and_header_come_back(path):
    weights = small_weights()
    checkpoints.save(path, weights, HEADER | {"provenance": {"command": "python finetune.py"}})
    assert_same(
        checkpoints.load(path, model="ViT-Mini", task="MNIST", mode="standard", seed=None, like=weights), weights
    )
    header = checkpoints.header(path)
    assert {key: header[key] for key in HEADER} == HEADER
    assert header["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert header["provenance"] == {"command": "python finetune.py"}


def test_single_tensors_are_read_lazily(path):
    weights = small_weights()
    checkpoints.save(path, weights, HEADER)
    checkpoint = Checkpoint(path)
    assert set(checkpoint.keys()) == set(weights) and len(checkpoint) == 3 and "model.visual.proj" in checkpoint
    assert checkpoint.shape("model.visual.proj") == (3, 5) and checkpoint.shape("model.logit_scale") == ()
    assert checkpoint.dtype("model.visual.ln.weight") == torch.float16
    assert torch.equal(checkpoint["model.visual.proj"], weights["model.visual.proj"])
    with pytest.raises(KeyError, match="no tensor 'nothing'"):
        checkpoint["nothing"]


def test_views_and_shared_tensors_are_saved_by_value(path):
    big = torch.arange(12.0).reshape(3, 4)
    weights = {"row": big[1], "transposed": big.T, "tied": big, "tied again": big, "parameter": nn.Parameter(big)}
    checkpoints.save(path, weights, HEADER)
    assert_same(checkpoints.load(path), {key: value.detach() for key, value in weights.items()})


def test_equal_contents_give_equal_bytes(tmp_path):
    for name in "ab":
        checkpoints.save(tmp_path / name, small_weights(), HEADER)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_header_without_a_model_is_not_written(path):
    with pytest.raises(ValueError, match="names its model"):
        checkpoints.save(path, small_weights(), {"task": "MNIST"})
    assert not path.exists()


def test_a_kill_in_the_middle_of_writing_leaves_the_old_file(path):
    checkpoints.save(path, small_weights(), HEADER)
    script = (
        "import os, pathlib, signal, sys; from src.runtime.files import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, path], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    stale = [file for file in path.parent.iterdir() if file != path]
    assert [file.read_bytes() for file in stale] == [b"half"] and stale[0].name.startswith(".")
    assert_same(checkpoints.load(path), small_weights())
    checkpoints.save(path, small_weights(seed=1), HEADER)
    assert_same(checkpoints.load(path), small_weights(seed=1))


def test_an_error_while_writing_leaves_nothing(path):
    with pytest.raises(TypeError):
        checkpoints.save(path, small_weights(), HEADER | {"step": object()})
    assert not path.exists()
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert not list(path.parent.iterdir())


# ---- what is refused


def test_a_missing_checkpoint_names_the_command(path):
    with pytest.raises(FileNotFoundError, match=r"finetune.py --model=ViT-Mini --tasks=MNIST --finetuning-mode=linear"):
        checkpoints.load(path, model="ViT-Mini", task="MNIST", mode="linear")


@pytest.mark.parametrize("kept", [0, 5, 8, 9, 60, -1])
def test_a_truncated_checkpoint_is_refused(path, kept):
    checkpoints.save(path, small_weights(), HEADER)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="python finetune.py --model=ViT-Mini --tasks=MNIST") as error:
        checkpoints.load(path, model="ViT-Mini", task="MNIST")
    assert re.search(r"cut short|empty file|file of \d bytes|foreign file", str(error.value))


def test_bytes_after_the_end_are_refused(path):
    checkpoints.save(path, small_weights(), HEADER)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match=r"expected \d+ bytes, found \d+"):
        checkpoints.header(path)


def test_a_damaged_header_is_refused(path):
    checkpoints.save(path, small_weights(), HEADER)
    whole = path.read_bytes()
    for damaged in (whole.replace(b'"F32"', b'"F99"', 1), whole.replace(b'"dtype"', b'"dtype\\', 1)):
        assert damaged != whole
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="python finetune.py --model=ViT-Mini"):
            checkpoints.load(path, model="ViT-Mini")


def test_changing_loaded_tensors_leaves_the_file_as_it_is(path):
    checkpoints.save(path, small_weights(), HEADER)
    for tensor in checkpoints.load(path).values():
        tensor.zero_()
    assert_same(checkpoints.load(path), small_weights())


@pytest.mark.parametrize(
    ("expect", "message"),
    [
        ({"model": "ViT-B-32"}, r"expected model 'ViT-B-32', found 'ViT-Mini'; .*--model=ViT-B-32 --tasks=MNIST"),
        ({"mode": "linear"}, r"expected mode 'linear', found 'standard'; .*--finetuning-mode=linear"),
        ({"task": "SVHN"}, r"expected task 'SVHN', found 'MNIST'; .*--tasks=SVHN"),
        ({"seed": 2}, r"expected seed 2, found 1; .*--seed=2"),
    ],
)
def test_another_model_mode_task_or_seed_is_refused(path, expect, message):
    checkpoints.save(path, small_weights(), HEADER)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(path, **expect)


def test_other_names_and_shapes_are_listed(path):
    checkpoints.save(path, small_weights(), HEADER)
    like = {"model.logit_scale": torch.zeros(()), "model.visual.proj": torch.zeros(3, 6), "model.gone": torch.zeros(1)}
    with pytest.raises(CheckpointError) as error:
        checkpoints.load(path, like=like)
    for part in (
        "missing model.gone",
        "unexpected model.visual.ln.weight",
        "model.visual.proj: expected (3, 6), found (3, 5)",
        "python finetune.py --model=ViT-Mini",
    ):
        assert part in str(error.value)


def test_foreign_files_are_named_for_what_they_are(tmp_path):
    from safetensors.torch import save_file

    torch.save(small_weights(), tmp_path / "zip.pt")
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps({"a": list(range(100))}))
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "page.pt").write_text("<!DOCTYPE html><html>quota</html>")
    (tmp_path / "noise").write_bytes(bytes(range(200, 256)))
    for name, nature in {
        "zip.pt": r"a pickle \(torch.save\), which is never executed; convert it with: python -m src.checkpoints",
        "bare.pkl": "a bare pickle, which is never executed",
        "other.safetensors": "without this project's header .* python -m src.checkpoints convert",
        "array.npy": "a NumPy file; convert it with",
        "page.pt": "a web page",
        "noise": "a foreign file",
    }.items():
        with pytest.raises(CheckpointError, match=nature):
            checkpoints.load(tmp_path / name)


# ---- pickles are read, not executed


class Armed:
    """Unpickled in the usual way, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path):
    marker = tmp_path / "ran"
    armed = Armed(marker)
    torch.save({"model.visual.proj": torch.zeros(2), "bomb": armed}, tmp_path / "state.pt")
    np.save(tmp_path / "masks.npy", {"MNIST": np.zeros(4, np.uint8), "SVHN": armed})
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(armed))
    for name in ("state.pt", "masks.npy", "bare.pt"):
        with pytest.raises(CheckpointError):
            checkpoints.load(tmp_path / name)
        with pytest.raises(CheckpointError) as error:
            checkpoints.convert(tmp_path / name, tmp_path / "out", model="small", pretrained=small_weights())
        if name != "bare.pt":
            assert "posix.system" in str(error.value) and "nothing was executed" in str(error.value)
    assert not marker.exists() and not (tmp_path / "out").exists()
    pickle.Unpickler(io.BytesIO((tmp_path / "bare.pt").read_bytes())).load()
    assert marker.exists(), "the file was not armed: this test could not have failed"


@pytest.mark.parametrize(
    "program",
    [
        b"cposix\nsystem\n(Vtouch RAN\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x01x\x85R.",
        b"cbuiltins\ngetattr\n(cos\nsystem\nVx\ntR.",
        b"\x80\x02\x82\x01.",  # a name by its number in copyreg's registry
        b"(Vtouch RAN\nicposix\nsystem\n.",
        b"ctorch.hub\nload\n(Vsomebody/repository\ntR.",  # a known package, recorded and never called
        b"",
        b"\x80\x02",
        b"\x80\x02}(X\x01\x00\x00\x00a",
        b"R.",
        b"\x80\x02]h\x07.",
        b"\x80\x02}]]s.",
        b"\x80\x02K\x01}b.",
    ],
)
def test_strange_pickles_are_refused(tmp_path, program):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("archive/data.pkl", program)
    with pytest.raises(unpickle.UnpickleError):
        unpickle.torch_weights(tmp_path / "x.pt")


def test_a_damaged_archive_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.arange(1000.0)}, path)
    whole = path.read_bytes()
    at = whole.index(torch.arange(1000.0).numpy().tobytes())
    for damaged in (whole[:-1000], whole[:100], whole[: at + 8] + b"\xff" + whole[at + 9 :]):
        path.write_bytes(damaged)
        with pytest.raises(unpickle.UnpickleError, match="damaged or truncated"):
            unpickle.torch_weights(path)


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(8)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    assert entries[name].count(b"K\x08\x85") == 1  # the size (8,)
    entries[name] = entries[name].replace(b"K\x08\x85", b"K\x09\x85")
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)
    with pytest.raises(unpickle.UnpickleError, match="out of bounds"):
        unpickle.torch_weights(path)


def test_every_kind_of_tensor_is_read_as_torch_reads_it(tmp_path):
    path = tmp_path / "x.pt"
    base = torch.randn(4, 6)
    weights = OrderedDict(
        {str(dtype): torch.arange(5).to(dtype) for dtype in unpickle.DTYPES.values()}
        | {"view": base[1:, ::2], "transposed": base.T, "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
        | {"parameter": nn.Parameter(base.clone())}
    )
    torch.save(weights, path)
    assert_same(unpickle.torch_weights(path), torch.load(path, weights_only=True))


# ---- converters of published formats


def test_a_published_state_dict(tmp_path, path, pretrained):
    weights = encoder_weights(small_clip())
    torch.save(OrderedDict(weights), tmp_path / "nonlinear_finetuned.pt")
    checkpoints.convert(
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
        checkpoints.convert(tmp_path / "other.pt", path, model="small", pretrained=pretrained)
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
    checkpoints.convert(tmp_path / "finetuned.pt", path, model="small", task="MNIST", pretrained=pretrained)
    assert_same(checkpoints.load(path, like=pretrained), expected)


def test_a_pickled_head(tmp_path, path, old_repository):
    module, patch = old_repository
    weights = torch.randn(10, 24)
    torch.save(module.ClassificationHead(weights), tmp_path / "head_MNISTVal.pt")
    patch.undo()
    checkpoints.convert(tmp_path / "head_MNISTVal.pt", path, model="small", task="MNIST")
    assert_same(checkpoints.load(path, kind="head", task="MNIST"), {"weight": weights})
    assert checkpoints.header(path)["mode"] is None


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
    save_file(weights, tmp_path / "model.safetensors")

    checkpoints.convert(tmp_path / "model.safetensors", path, model="small", task="MNIST", pretrained=pretrained)
    ours = small_clip()
    state = {key.removeprefix("model."): value for key, value in checkpoints.load(path, like=pretrained).items()}
    assert not ours.load_state_dict(state, strict=False).unexpected_keys
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(ours.encode_image(images), theirs(images).image_embeds, atol=1e-5, rtol=1e-5)
    assert torch.equal(state["token_embedding.weight"], pretrained["model.token_embedding.weight"])


def test_a_hugging_face_vision_model_needs_the_pretrained_projection(tmp_path, path):
    from safetensors.torch import save_file

    save_file({"embeddings.class_embedding": torch.zeros(4)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="add --pretrained"):
        checkpoints.convert(tmp_path / "model.safetensors", path, model="small")
    save_file(
        {"embeddings.class_embedding": torch.zeros(4), "text_model.x": torch.zeros(1)}, tmp_path / "clip.safetensors"
    )
    with pytest.raises(CheckpointError, match="expected the tensors of a CLIPVisionModel, found text_model.x"):
        checkpoints.convert(tmp_path / "clip.safetensors", path, model="small")
    query = {"embeddings.class_embedding": torch.zeros(4), "encoder.layers.0.self_attn.q_proj.bias": torch.zeros(4)}
    save_file(query, tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match="expected a tensor 'encoder.layers.0.self_attn.k_proj.bias', found none"):
        checkpoints.convert(tmp_path / "half.safetensors", path, model="small")


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
    checkpoints.convert(source, path, mode="linear", names=names, **options)
    assert_same(checkpoints.load(path, mode="linear", like=pretrained), theta)
    with pytest.raises(CheckpointError, match="--mode linear"):
        checkpoints.convert(source, path, names=names, **options)
    with pytest.raises(CheckpointError, match="--names"):
        checkpoints.convert(source, path, mode="linear", **options)
    swapped = [names[-1], *names[1:-1], names[0]]
    with pytest.raises(CheckpointError, match=f"params0.0 to be {re.escape(names[-1])}"):
        checkpoints.convert(source, path, mode="linear", names=swapped, **options)
    with pytest.raises(CheckpointError, match=f"expected {len(names) - 1} parameters"):
        checkpoints.convert(source, path, mode="linear", names=names[1:], **options)


def test_foreign_weights_are_not_converted(tmp_path, path):
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="expected the weights of a CLIP image encoder, found fc.weight"):
        checkpoints.convert(tmp_path / "x.pt", path, model="small")
    torch.save([1, 2], tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="expected weights by name, found a list"):
        checkpoints.convert(tmp_path / "x.pt", path, model="small")


def test_the_command_line_converts_and_says_what_is_wrong(tmp_path, path, pretrained, capsys):
    torch.save(encoder_weights(small_clip()), tmp_path / "x.pt")
    arguments = ["convert", str(tmp_path / "x.pt"), str(path), "--model", "small", "--task", "MNIST"]
    checkpoints.main([*arguments, "--mode", "standard", "--pretrained", str(pretrained.path)])
    assert "wrote" in capsys.readouterr().out and len(Checkpoint(path, task="MNIST")) == len(pretrained)
    with pytest.raises(SystemExit, match="expected model 'other', found 'small'"):
        checkpoints.main([*arguments[:4], "other", "--pretrained", str(pretrained.path)])


# ---- masks


def random_masks(shapes, tasks=("MNIST", "SVHN"), seed=0):
    torch.manual_seed(seed)
    return {task: {name: torch.rand(shape) < 0.4 for name, shape in shapes.items()} for task in tasks}


def test_masks_are_bits_on_disk(tmp_path):
    masks = random_masks({"model.visual.proj": (100, 81), "model.visual.scale": (), "model.visual.bias": (3,)})
    path = tmp_path / "masks.safetensors"
    checkpoints.save_masks(path, masks, {"model": "small", "scope": "visual"})
    assert path.stat().st_size < 2 * 8104 / 8 + 1500
    loaded = checkpoints.load_masks(path, model="small", scope="visual", tasks=("MNIST", "SVHN"))
    assert list(loaded) == ["MNIST", "SVHN"]
    for task, named in masks.items():
        assert_same(loaded[task], named)


def test_masks_for_others_are_refused(tmp_path):
    path = tmp_path / "masks.safetensors"
    checkpoints.save_masks(path, random_masks({"a": (3,)}), {"model": "small", "scope": "visual"})
    with pytest.raises(CheckpointError, match=r"tasks \['MNIST'\], found \['MNIST', 'SVHN'\]; .*main.py model=small"):
        checkpoints.load_masks(path, tasks=["MNIST"])
    with pytest.raises(CheckpointError, match="expected scope 'published', found 'visual'"):
        checkpoints.load_masks(path, scope="published")
    with pytest.raises(CheckpointError, match="expected kind 'weights', found 'masks'"):
        checkpoints.load(path)
    with pytest.raises(ValueError, match="others for SVHN"):
        checkpoints.save_masks(path, {"MNIST": {"a": torch.ones(3) > 0}, "SVHN": {"b": torch.ones(3) > 0}}, HEADER)
    with pytest.raises(TypeError, match="bool"):
        checkpoints.save_masks(path, {"MNIST": {"a": torch.ones(3)}}, HEADER)


def published_vector(named):
    """The published flattening: every tensor in the sorted order of the names."""
    return torch.cat([named[name].reshape(-1) for name in sorted(named)])


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
    loaded = checkpoints.read_published_masks(source, like=pretrained)
    destination = tmp_path / "masks.safetensors"
    checkpoints.convert(source, destination, model="small", pretrained=pretrained)
    again = checkpoints.load_masks(destination, model="small", scope="published", tasks=list(masks))
    for task, named in masks.items():
        assert_same(loaded[task], named)
        assert_same(again[task], named)


def test_published_masks_of_another_model_are_refused(tmp_path, pretrained):
    source = tmp_path / "TALL_mask_8task.npy"
    np.save(source, {"MNIST": np.zeros(5, np.uint8)})
    with pytest.raises(CheckpointError, match="bits for MNIST .* found 40: it belongs to another model"):
        checkpoints.read_published_masks(source, like=pretrained)
    for value in (np.zeros(5, np.float32), [1, 2], "text"):
        np.save(source, {"MNIST": value})
        with pytest.raises(CheckpointError, match=r"TALL_mask_8task.npy: expected"):
            checkpoints.read_published_masks(source, like=pretrained)
    np.save(source, np.zeros(5))
    with pytest.raises(CheckpointError, match="expected one saved dict, found an array"):
        checkpoints.read_published_masks(source, like=pretrained)
    with pytest.raises(CheckpointError, match="add --pretrained"):
        checkpoints.convert(source, tmp_path / "out", model="small")


def test_the_header_is_json_that_other_tools_can_read(path):
    from safetensors import safe_open

    checkpoints.save(path, small_weights(), HEADER)
    with safe_open(path, framework="np") as file:
        assert json.loads(file.metadata()["header"])["task"] == "MNIST"
