"""The one format: what it keeps, what it refuses and how it says so; masks and unfinished states in it."""

import json
import pickle
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from published_files import assert_same, random_masks
from torch import nn

from src import checkpoint_headers, checkpoints, state_files
from src.checkpoints import Checkpoint, CheckpointError
from src.runtime.files import replacing
from src.runtime.paths import ROOT

HEADER = {"model": "ViT-Mini", "task": "MNIST", "mode": "standard", "seed": 1, "step": 7}


def small_weights(seed=0):
    torch.manual_seed(seed)
    return {
        "model.logit_scale": torch.randn(()),
        "model.visual.proj": torch.randn(3, 5),
        "model.visual.ln.weight": torch.randn(5).half(),
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "MNIST" / "standard.safetensors"


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
    (stale,) = (folder for folder in path.parent.iterdir() if folder != path)
    assert [file.read_bytes() for file in stale.iterdir()] == [b"half"] and stale.name.startswith(".")
    assert_same(checkpoints.load(path), small_weights())
    checkpoints.save(path, small_weights(seed=1), HEADER)
    assert_same(checkpoints.load(path), small_weights(seed=1))
    assert list(path.parent.iterdir()) == [path]


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


def test_tensors_of_every_kind_come_back(path):
    kinds = {str(kind): torch.ones(2, 3).to(kind) for kind in checkpoint_headers.STORED.values()}
    kinds |= {"empty": torch.empty(0, 3), "number": torch.tensor(2.5), "turned": torch.arange(6.0).reshape(2, 3).T}
    checkpoints.save(path, kinds, HEADER, kind="training state")
    file = checkpoints.Checkpoint(path, kind="training state")
    assert_same(file.read(file), kinds)
    assert all(file[name].dtype == file.dtype(name) == tensor.dtype for name, tensor in kinds.items())
    assert "empty" in file and "none" not in file


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


# ---- unfinished states


def trained(kind, steps, seed=0):
    """A layer after some steps, and its optimizer."""
    torch.manual_seed(seed)
    layer = nn.Linear(3, 2)
    optimizer = kind(layer.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        layer(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
    return layer, optimizer


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_a_state_goes_on_where_it_stopped(path, kind):
    whole, _ = trained(kind, 5)
    (layer, optimizer), (_, twin) = trained(kind, 3), trained(kind, 2, seed=1)
    optimizers = {"inner": optimizer, "outer": twin}
    weights = {"model": layer.state_dict(), "value": {"a/b": torch.ones(2)}}
    state_files.save(path, weights, optimizers, {"model": "small", "step": 3}, kind="a state")
    state = Checkpoint(path, kind="a state")
    (layer, optimizer), (_, twin) = trained(kind, 1, seed=2), trained(kind, 4, seed=3)
    found = state_files.load(state, {"inner": optimizer, "outer": twin})
    assert_same(state_files.tensors({}, {"outer": twin}), {k: state[k] for k in state if k.startswith("outer/")})
    assert_same(found["value"], {"a/b": torch.ones(2)})
    layer.load_state_dict(found["model"])
    for _ in range(state.header["step"], 5):
        optimizer.zero_grad()
        layer(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
    assert_same(layer.state_dict(), whole.state_dict())
    with pytest.raises(CheckpointError, match="expected kind 'weights', found 'a state'"):
        Checkpoint(path)


def test_states_of_earlier_versions_are_read(path):
    """Their names, as they were written by hand before `state_files.save` was."""
    layer, optimizer = trained(torch.optim.AdamW, 3)
    tensors = {f"model/{name}": tensor for name, tensor in layer.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": moment for name, moment in moments.items()}
    assert "optimizer/1/exp_avg_sq" in tensors and "model/weight" in tensors
    checkpoints.save(path, tensors, {"model": "small"}, kind="training state")
    _, fresh = trained(torch.optim.AdamW, 0, seed=1)
    found = state_files.load(Checkpoint(path, kind="training state"), {"optimizer": fresh})
    assert_same(found["model"], layer.state_dict())
    for index, moments in optimizer.state_dict()["state"].items():
        assert_same(fresh.state_dict()["state"][index], moments)
    assert_same(state_files.tensors({"model": layer.state_dict()}, {"optimizer": optimizer}), tensors)


# ---- masks


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


def test_the_header_is_json_that_other_tools_can_read(path):
    from safetensors import safe_open

    checkpoints.save(path, small_weights(), HEADER)
    with safe_open(path, framework="np") as file:
        assert json.loads(file.metadata()["header"])["task"] == "MNIST"
