"""Files in, one file out, in the formats that came; and results as other projects read them."""

import json
import re
from types import SimpleNamespace

import open_clip
import pytest
import torch
from published_files import small_clip
from safetensors.torch import load_file, save_file
from test_architectures import run as tiny_run  # noqa: F401 (a fixture)

import merge_checkpoints
from src import store
from src.experiments.merging import check_output
from src.modeling import build_clip
from src.published import convert
from src.published.export import export_for_others
from src.runtime.messages import UsageError


def state(seed, near=None):
    weights = near or small_clip(seed).state_dict()
    generator = torch.Generator().manual_seed(seed)
    return {name: t + 0.01 * torch.randn(t.shape, generator=generator) if near else t for name, t in weights.items()}


@pytest.fixture
def files(tmp_path):
    """open_clip's: θ0 as safetensors, one as a torch.save file, one as its training loop writes them."""
    start = state(0)
    ends = [state(seed, start) for seed in (1, 2)]
    save_file(start, tmp_path / "zero.safetensors")
    torch.save(ends[0], tmp_path / "a.pt")
    wrapped = {f"module.{name}": tensor for name, tensor in ends[1].items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": wrapped, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
               tmp_path / "b.pt")  # fmt: skip
    return start, ends, [str(tmp_path / name) for name in ("zero.safetensors", "a.pt", "b.pt")]


def test_open_clips_files_give_one_that_open_clip_reads(files, tmp_path):
    start, ends, paths = files
    merge_checkpoints.main([*paths, "--alpha=0.3", f"--output={tmp_path / 'merged.safetensors'}"])
    merged = load_file(tmp_path / "merged.safetensors")
    assert merged.keys() == start.keys()
    for name, tensor in start.items():
        expected = tensor + 0.3 * sum(end[name] - tensor for end in ends)
        torch.testing.assert_close(merged[name], expected, atol=1e-6, rtol=1e-5)
    small_clip().load_state_dict(merged)
    card = (tmp_path / "merged.md").read_text()
    assert "task arithmetic" in card and "coefficient 0.3" in card and str(paths[1]) in card


def test_options_and_defaults_of_methods(files, tmp_path, capsys):
    start, ends, paths = files
    out = f"--output={tmp_path / 'merged.safetensors'}"
    merge_checkpoints.main([*paths, "--method=average", out])
    merged = load_file(tmp_path / "merged.safetensors")
    mean = {name: sum(end[name] for end in ends) / 2 for name in start}
    torch.testing.assert_close(merged, mean, atol=1e-6, rtol=1e-5)
    merge_checkpoints.main([*paths, "--method=ties", "--overwrite", out, "--options", "k=50", "reduce=sum"])
    assert "ties_k=50_reduce=sum of 2 models, coefficient 1.0" in capsys.readouterr().out


def test_nothing_is_replaced_unasked(files, tmp_path, capsys):
    start, ends, paths = files
    out = tmp_path / "merged.safetensors"
    for taken in (out, out.with_suffix(".md")):
        taken.write_text("mine")
        with pytest.raises(SystemExit) as ended:
            merge_checkpoints.main([*paths, f"--output={out}"])
        assert ended.value.code == 2 and f"found {taken}; --overwrite replaces it" in capsys.readouterr().err
        assert taken.read_text() == "mine" and len(list(tmp_path.iterdir())) == 4
        taken.unlink()
    merge_checkpoints.main([*paths, f"--output={out}"])
    merge_checkpoints.main([*paths, f"--output={out}", "--method=average", "--overwrite"])
    (tmp_path / "link.safetensors").symlink_to(paths[0])
    before = load_file(paths[0])
    for name in ("zero.safetensors", "link.safetensors"):
        with pytest.raises(SystemExit) as ended:
            merge_checkpoints.main([*paths, f"--output={tmp_path / name}", "--overwrite"])
        assert ended.value.code == 2 and "expected another file than those that are merged" in capsys.readouterr().err
    torch.testing.assert_close(load_file(paths[0]), before, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--method=tie"], "'tie' does not exist; did you mean ties"),
        (["--method=ties", "--options", "kk=3"], "ties has no option kk; did you mean k"),
        (["--method=ties", "--options", f"k={'[' * 2000}"], "--options: expected NAME=VALUE"),
        (["--method=adamerging"], "adamerging needs .*: merge with main.py"),
        (["--method=mag_masking"], "makes a model for each task"),
        (["nowhere.pt"], "found none at nowhere.pt"),
        (["--output=merged.pt"], "expected a file that ends in .safetensors"),
    ],
)
def test_what_cannot_be_merged_is_told(files, tmp_path, more, told, capsys):
    with pytest.raises(SystemExit) as ended:
        out = [f"--output={tmp_path / 'merged.safetensors'}"] if "--output" not in more[0] else []
        merge_checkpoints.main([*files[2], *more, *out])
    assert ended.value.code == 2
    assert re.search(told, capsys.readouterr().err)
    assert not (tmp_path / "merged.safetensors").exists()


def test_another_architecture_is_told(files, tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(
        SystemExit, match="other.safetensors and the pre-trained model differ in their tensors: missing"
    ):
        merge_checkpoints.main(
            [*files[2], str(tmp_path / "other.safetensors"), f"--output={tmp_path / 'm.safetensors'}"]
        )


def test_a_model_that_lies_far_from_the_first_is_refused_unless_asked(files, tmp_path, capsys):
    save_file(state(3), tmp_path / "other.safetensors")  # of the same shapes, fine-tuned from other weights
    command = [*files[2], str(tmp_path / "other.safetensors"), f"--output={tmp_path / 'm.safetensors'}"]
    far = r"other.safetensors: expected weights near those of the pre-trained model, found them 1\d\d% .* add --far"
    with pytest.raises(SystemExit, match=far):
        merge_checkpoints.main(command)
    assert not (tmp_path / "m.safetensors").exists()
    merge_checkpoints.main([*command, "--far"])
    assert "of 3 models" in capsys.readouterr().out


RECORD = {
    "tasks": ["MNIST"], "label": "sum", "chosen": {"MNIST": 0.3},
    "test": {"mean_accuracy": 0.5, "accuracy": {"MNIST": 0.5}},
}  # fmt: skip


@pytest.fixture
def encoder(tiny_run):  # noqa: F811
    run = tiny_run("vit-quickgelu")
    images = torch.randn(2, 3, 32, 32)
    weights = {
        name: t + 0.01 if name.startswith("model.visual") else t for name, t in store.encoder(run).state_dict().items()
    }
    moved = {name.removeprefix("model."): t for name, t in weights.items()}
    model, _ = build_clip(run)
    model.load_state_dict(moved, strict=False)
    return run, weights, images, model.encode_image(images)


def test_a_merged_encoder_in_open_clips_format(encoder, tmp_path):
    run, weights, images, expected = encoder
    paths = export_for_others(run, weights, tmp_path / "merged.safetensors", "open_clip", RECORD)
    model = open_clip.create_model(run.model, pretrained=str(paths[0]))
    torch.testing.assert_close(model.eval().encode_image(images), expected)
    assert "open_clip.create_model" in paths[1].read_text() and "| MNIST | 50.0 |" in paths[1].read_text()


def test_a_merged_encoder_in_hugging_faces_format(encoder, tmp_path):
    transformers = pytest.importorskip("transformers")
    run, weights, images, expected = encoder
    export_for_others(run, weights, tmp_path / "merged", "transformers", RECORD)
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(model(pixel_values=images).image_embeds, expected, atol=1e-5, rtol=1e-4)
    again = convert.read_weights(tmp_path / "merged")  # and it comes back
    back = convert._encoder(again, weights, None, "standard")
    assert back.keys() == weights.keys() and all(torch.equal(back[name], weights[name]) for name in weights)


@pytest.mark.parametrize(("kind", "name"), [("open_clip", "merged.safetensors"), ("transformers", "merged")])
def test_an_output_replaces_nothing_but_an_earlier_one_of_the_same_merge(encoder, tmp_path, kind, name):
    run, weights, _, _ = encoder

    def check(label: str, overwrite: bool = False) -> None:
        check_output(run, SimpleNamespace(output=tmp_path / name, format=kind, overwrite=overwrite), label)

    card = tmp_path / ("merged.md" if kind == "open_clip" else "merged/README.md")
    card.parent.mkdir(exist_ok=True)
    card.write_text("somebody's notes")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=f"found {card} .another file"):
            check("sum", overwrite)
    export_for_others(run, weights, tmp_path / name, kind, RECORD)
    check("sum")
    with pytest.raises(UsageError, match="an earlier output of this merge, found .* .sum."):
        check("ties")
    check("ties", overwrite=True)


def test_hugging_face_folders_give_one(encoder, tmp_path):
    run, weights, _, _ = encoder
    for number, name in enumerate(("zero", "a", "b")):
        moved = {n: t + number * 0.001 if n.startswith("model.visual") else t for n, t in weights.items()}
        export_for_others(run, moved, tmp_path / name, "transformers", RECORD)
    merge_checkpoints.main(
        [*(str(tmp_path / name) for name in ("zero", "a", "b")), "--alpha=1", f"--output={tmp_path / 'm'}"]
    )
    merged, zero = (load_file(tmp_path / name / "model.safetensors") for name in ("m", "zero"))
    assert all(torch.allclose(merged[name], zero[name] + 0.003, atol=1e-6) for name in zero)
    assert json.loads((tmp_path / "m/config.json").read_text())["model_type"] == "clip_vision_model"
    assert (tmp_path / "m/README.md").exists()
