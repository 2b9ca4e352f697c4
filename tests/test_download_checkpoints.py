"""download_checkpoints.py against servers made of local files in the published formats: no network."""

import inspect
import re
import shutil
from types import SimpleNamespace

import gdown
import huggingface_hub
import numpy as np
import pytest
import torch
from published_files import Armed, assert_same, encoder_weights, published_vector, random_masks, small_clip
from safetensors.torch import save_file

import download_checkpoints as script
from src import checkpoints, store
from src.published import download
from src.run import Run
from src.runtime.files import file_hash
from src.runtime.paths import Paths, Places

MODEL = "ViT-B-16"
COMMAND = [f"--model={MODEL}", "--kind=checkpoints"]
TASKS = ("MNIST", "DTD")


class Server:
    """A folder that both fake services serve; counts what is fetched, and misbehaves on demand."""

    def __init__(self, root):
        self.root, self.fetched, self.fault = root, [], None

    def files(self, prefix=""):
        return [path for path in sorted(self.root.rglob("*")) if path.is_file() and prefix in path.as_posix()]

    def path(self, file):
        return file.relative_to(self.root).as_posix()

    def fetch(self, part, path):
        """Go on after what is at `part`, as gdown's and the hub's clients do."""
        self.fetched.append(path)
        whole = (self.root / path).read_bytes()
        have = part.stat().st_size if part.exists() else 0
        with open(part, "ab") as file:
            if self.fault:
                file.write(whole[have : len(whole) // 2])
                raise self.fault
            file.write(whole[have:])


@pytest.fixture
def server(tmp_path, monkeypatch):
    """TALL's checkpoints and heads, as on Google Drive (the hub adds folders, and spells one in capitals)."""
    server = Server(tmp_path / "server")
    monkeypatch.setattr(download, "reachable", lambda url: True)
    monkeypatch.setattr(
        download, "drive_listing", lambda folder: [(server.path(f), server.path(f)) for f in server.files()]
    )
    monkeypatch.setattr(download, "drive_fetch", lambda part, file: server.fetch(part, file))

    def hub_listing(repo):
        listing = [(file, repo + "/") for file in server.files(repo)]
        return "abc123", [
            (server.path(file).removeprefix(prefix), file.stat().st_size, file_hash(file)) for file, prefix in listing
        ]

    monkeypatch.setattr(download, "hub_listing", hub_listing)
    monkeypatch.setattr(download, "hub_fetch", lambda part, repo, revision, path: server.fetch(part, f"{repo}/{path}"))
    return server


def weights(task):
    """Near those of the pre-trained encoder below, as fine-tuning leaves them."""
    return near(encoder_weights(small_clip(seed=9)), TASKS.index(task) + 1)


def near(start, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        key: tensor + 0.02 * torch.randn(tensor.shape, generator=generator) if "visual" in key else tensor
        for key, tensor in start.items()
    }


def serve_tall(folder):
    for task in TASKS:
        (folder / f"{task}Val").mkdir(parents=True)
        torch.save(weights(task), folder / f"{task}Val" / "nonlinear_finetuned.pt")
        (folder / f"{task}Val" / "args.txt").write_text("ignored")
    torch.save({"weight": torch.ones(10, 24), "bias": torch.zeros(10)}, folder / "head_MNISTVal.pt")


@pytest.fixture
def run(tmp_path):
    """Run the script in a place of its own; gives the arguments as parsed."""

    def run(*flags, command=COMMAND):
        places = [f"--save={tmp_path / 'save'}", f"--cache-dir={tmp_path / 'cache'}", "--device=cpu"]
        script.main([*command, *places, *flags])

    return run


@pytest.fixture
def paths(tmp_path):
    return Paths("vision", MODEL, 1, Places(*(tmp_path / name for name in ("save", "results", "cache", "data"))))


@pytest.fixture
def pretrained(paths):
    checkpoints.save(paths.pretrained(), encoder_weights(small_clip(seed=9)), {"model": MODEL, "mode": "none"})
    return checkpoints.Checkpoint(paths.pretrained())


def leftovers(paths):
    return sorted(file.name for file in (paths.cache / "published").rglob("*") if file.is_file())


def test_the_published_command_fetches_converts_and_does_nothing_the_second_time(server, run, paths, capsys):
    serve_tall(server.root)
    run()
    for task in TASKS:
        assert_same(
            checkpoints.load(paths.checkpoint(task, "standard"), model=MODEL, mode="standard", seed=1), weights(task)
        )
    assert checkpoints.load(paths.head("MNIST"), kind="head", task="MNIST")["weight"].shape == (10, 24)
    header = checkpoints.header(paths.checkpoint("DTD", "standard"))
    assert header["provenance"]["publisher"] == "tall" and "test and validation" in header["provenance"]["note"]
    assert header["provenance"]["origin"] == "https://drive.google.com/file/d/DTDVal/nonlinear_finetuned.pt"
    assert leftovers(paths) == ["verified.json"]
    output = capsys.readouterr().out
    assert "3 files, 0 there already" in output and "not published there: Cars, EuroSAT" in output
    assert len(server.fetched) == 3
    run()
    assert len(server.fetched) == 3 and "3 files, 3 there already" in capsys.readouterr().out


def test_installed_checkpoints_are_found_by_the_other_scripts(server, run, tmp_path, pretrained):
    serve_tall(server.root)
    run()
    found_by = Run.of(MODEL, places=Places(save=tmp_path / "save"))
    vector = store.task_vector(found_by, "MNIST", "standard").vector
    assert torch.equal(
        vector["model.visual.proj"], weights("MNIST")["model.visual.proj"] - pretrained["model.visual.proj"]
    )


def test_the_hub_gives_the_same_with_its_own_hashes(server, run, paths):
    serve_tall(server.root / download.TALL_REPO / "single_task" / "VIT-B-16")
    serve_tall(server.root / download.TALL_REPO / "single_task" / "ViT-B-32")  # another model's: left alone
    run("--source=hub", "--tasks=MNIST", "--keep")
    assert_same(checkpoints.load(paths.checkpoint("MNIST", "standard")), weights("MNIST"))
    assert (
        checkpoints.header(paths.checkpoint("MNIST", "standard"))["provenance"]["origin"] == "nik-dim/tall_masks@abc123"
    )
    assert not paths.checkpoint("DTD", "standard").exists()
    assert leftovers(paths) == ["head_MNISTVal.pt", "nonlinear_finetuned.pt", "verified.json"]


@pytest.mark.parametrize("fault", [ConnectionError("reset"), OSError(28, "No space left"), TimeoutError()])
def test_an_interrupted_download_goes_on_and_its_half_is_never_taken_for_the_whole(server, run, paths, fault):
    serve_tall(server.root)
    server.fault = fault
    with pytest.raises(
        SystemExit, match="(?s)the download stopped: .*Run the same command again.*--from-folder"
    ) as told:
        run("--tasks=MNIST")
    assert f"--save={paths.save}" in str(told.value) and "--tasks=MNIST --kind=checkpoints --from" in str(told.value)
    assert leftovers(paths) == ["nonlinear_finetuned.pt.part"] and not paths.checkpoint("MNIST", "standard").exists()
    server.fault = None
    run("--tasks=MNIST")
    assert_same(checkpoints.load(paths.checkpoint("MNIST", "standard")), weights("MNIST"))


def test_a_kill_between_fetching_and_converting_does_not_fetch_again(server, run, paths, monkeypatch):
    serve_tall(server.root)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download, "install", killed)
        run("--tasks=DTD")
    run("--tasks=DTD")
    assert len(server.fetched) == 1
    assert_same(checkpoints.load(paths.checkpoint("DTD", "standard")), weights("DTD"))


def test_a_file_that_differs_from_the_hubs_hash_is_set_aside(server, run, paths, monkeypatch):
    folder = server.root / download.TALL_REPO / "single_task" / MODEL
    serve_tall(folder)

    def broken(part, repo, revision, path):
        part.write_bytes((server.root / repo / path).read_bytes()[:-9] + b"9 bytes..")

    with monkeypatch.context() as patch:
        patch.setattr(download, "hub_fetch", broken)
        with pytest.raises(SystemExit, match=r"expected \{'size': \d+, 'sha256': .*found .*set aside as .*\.pt\.bad"):
            run("--source=hub", "--tasks=DTD")
    assert not paths.checkpoint("DTD", "standard").exists()
    assert leftovers(paths) == ["nonlinear_finetuned.pt.bad"]
    run("--source=hub", "--tasks=DTD")
    assert_same(checkpoints.load(paths.checkpoint("DTD", "standard")), weights("DTD"))


def test_a_drive_file_must_stay_what_it_was_at_the_first_download(server, run, paths):
    serve_tall(server.root)
    run("--tasks=DTD")
    torch.save(weights("MNIST"), server.root / "DTDVal" / "nonlinear_finetuned.pt")
    with pytest.raises(
        SystemExit, match="(?s)set aside as .*if the publisher replaced the file, remove its entry from"
    ):
        run("--tasks=DTD", "--overwrite")
    assert_same(checkpoints.load(paths.checkpoint("DTD", "standard")), weights("DTD"))  # the good one stays


def test_without_a_network_it_says_so_at_once(server, run, monkeypatch):
    monkeypatch.setattr(download, "reachable", lambda url: False)
    monkeypatch.setattr(download, "drive_listing", lambda folder: pytest.fail("the network was used"))
    with pytest.raises(
        SystemExit, match=r"(?s)no network: .*folders/1dmLqIwCYPqO0qsNEuflPhC5-_QodQHDv.*--from-folder=DIR"
    ):
        run()


def test_a_spent_quota_names_the_other_source(server, run):
    serve_tall(server.root)
    server.fault = gdown.exceptions.FileURLRetrievalError(
        "Too many users have viewed or downloaded this file recently."
    )
    told = "(?s)Too many users.*quota.*--model=ViT-B-16 .*--kind=checkpoints --source=hub"
    with pytest.raises(SystemExit, match=told):
        run()


def test_a_folder_that_was_fetched_by_hand_needs_no_network(server, run, paths, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "reachable", lambda url: pytest.fail("the network was used"))
    serve_tall(tmp_path / "by hand" / MODEL)
    run(f"--from-folder={tmp_path / 'by hand'}")
    assert_same(checkpoints.load(paths.checkpoint("MNIST", "standard")), weights("MNIST"))
    assert (tmp_path / "by hand" / MODEL / "MNISTVal" / "nonlinear_finetuned.pt").exists()
    with pytest.raises(SystemExit, match="expected checkpoints of ViT-L-14 in .*by hand, found no path"):
        run(f"--from-folder={tmp_path / 'by hand'}", command=["--model=ViT-L-14", "--kind=checkpoints"])


def test_files_under_a_folder_that_resembles_another_model(server, run, paths, tmp_path):
    serve_tall(tmp_path / "ViT-L-14_lab")
    run(f"--from-folder={tmp_path / 'ViT-L-14_lab'}")
    assert_same(checkpoints.load(paths.checkpoint("MNIST", "standard")), weights("MNIST"))


def test_the_cache_of_the_hubs_client_is_a_folder_of_files(server, run, paths, tmp_path, pretrained):
    """models--owner--name/snapshots/<revision>/<file>, which are links to blobs."""
    cache = tmp_path / "hub/models--tanganke--clip-vit-base-patch16_mnist"
    (cache / "snapshots/0123").mkdir(parents=True)
    (cache / "blobs").mkdir()
    save_file(hugging_face_names(near(encoder_weights(small_clip(seed=9)), 5)), cache / "blobs/abc")
    (cache / "snapshots/0123/model.safetensors").symlink_to("../../blobs/abc")
    run("--publisher=fusion_bench", f"--from-folder={tmp_path / 'hub'}")
    assert checkpoints.load(paths.checkpoint("MNIST", "standard"), like=pretrained, task="MNIST")


def test_a_checkpoint_that_was_fine_tuned_here_is_not_overwritten(server, run, paths):
    serve_tall(server.root)
    mine = weights("DTD")
    checkpoints.save(paths.checkpoint("MNIST", "standard"), mine, {"model": MODEL, "task": "MNIST", "mode": "standard"})
    with pytest.raises(SystemExit, match="found a checkpoint that was fine-tuned here; .*--save=.*--overwrite"):
        run()
    assert not server.fetched
    assert_same(checkpoints.load(paths.checkpoint("MNIST", "standard")), mine)
    run("--overwrite", "--tasks=MNIST")
    assert_same(checkpoints.load(paths.checkpoint("MNIST", "standard")), weights("MNIST"))


def test_a_truncated_installed_checkpoint_is_fetched_again(server, run, paths, capsys):
    serve_tall(server.root)
    run("--tasks=DTD")
    installed = paths.checkpoint("DTD", "standard")
    installed.write_bytes(installed.read_bytes()[:-1])
    run("--tasks=DTD")
    assert "cut short" in capsys.readouterr().out
    assert_same(checkpoints.load(installed), weights("DTD"))


def test_a_checkpoint_of_other_shapes_than_the_pretrained_one_is_refused(server, run, paths, pretrained):
    serve_tall(server.root)
    torch.save(
        weights("DTD") | {"model.visual.proj": torch.zeros(1)}, server.root / "DTDVal" / "nonlinear_finetuned.pt"
    )
    with pytest.raises(SystemExit, match=r"model.visual.proj: expected \(32, 24\), found \(1,\)"):
        run("--tasks=DTD")
    assert not paths.checkpoint("DTD", "standard").exists()


def test_a_checkpoint_of_another_pretrained_model_is_refused(server, run, paths, pretrained):
    """Its text side, which nobody trains, tells; so does its distance, where it has none, as FusionBench's."""
    serve_tall(server.root)
    run("--tasks=MNIST")
    header = checkpoints.header(paths.checkpoint("MNIST", "standard"))
    assert header["began_at"] == store.fingerprints(pretrained)["image"]
    other = encoder_weights(small_clip(seed=8))
    torch.save(other, server.root / "DTDVal" / "nonlinear_finetuned.pt")
    with pytest.raises(
        SystemExit, match="which is never trained, to be that of the pre-trained encoder; found another"
    ):
        run("--tasks=DTD", "--overwrite", f"--downloads={paths.cache / 'elsewhere'}")
    torch.save({k: v for k, v in other.items() if "visual" in k}, server.root / "DTDVal" / "nonlinear_finetuned.pt")
    with pytest.raises(SystemExit, match=r"expected weights near those of the pre-trained model, found them 1\d\d% of"):
        run("--tasks=DTD", "--overwrite", f"--downloads={paths.cache / 'another'}")
    assert not paths.checkpoint("DTD", "standard").exists()


def test_a_hostile_file_is_refused_and_nothing_runs(server, run, paths, tmp_path):
    serve_tall(server.root)
    torch.save(weights("DTD") | {"bomb": Armed(tmp_path / "ran")}, server.root / "DTDVal" / "nonlinear_finetuned.pt")
    with pytest.raises(SystemExit, match="posix.system.* take it for hostile"):
        run("--tasks=DTD")
    assert not (tmp_path / "ran").exists() and not paths.checkpoint("DTD", "standard").exists()


@pytest.mark.parametrize(
    "path", ["../../../MNISTVal/nonlinear_finetuned.pt", "{outside}/MNISTVal/nonlinear_finetuned.pt"]
)
def test_a_source_that_names_a_path_outside_writes_none(server, run, tmp_path, monkeypatch, path):
    path = path.format(outside=tmp_path / "outside")
    monkeypatch.setattr(download, "drive_listing", lambda folder: [(path, "x1")])
    with pytest.raises(SystemExit, match="expected a path inside .*nonlinear_finetuned.pt': take it for hostile"):
        run("--tasks=MNIST")
    assert not server.fetched and not list(tmp_path.rglob("MNISTVal"))


def test_published_masks(server, run, paths, pretrained, capsys):
    masks = random_masks({name: pretrained.shape(name) for name in pretrained}, tasks=TASKS)
    folder = server.root / download.TALL_REPO / "tall_masks" / MODEL
    folder.mkdir(parents=True)
    packed = {task: np.packbits(published_vector(named).numpy()) for task, named in masks.items()}
    np.save(folder / "TALL_mask_8task.npy", packed)
    run("--source=hub", command=[f"--model={MODEL}", "--kind=tall_masks"])
    path = paths.masks("published_tall_mask_8task")
    loaded = checkpoints.load_masks(path, model=MODEL, mode="standard", scope="published", tasks=TASKS)
    for task, named in masks.items():
        assert_same(loaded[task], named)
    told = capsys.readouterr().out
    assert "num_tasks=8 method=tall_mask method.load_mask=True" in told and f"save={paths.places.save} " in told


def test_fusion_bench_repositories(server, run, paths, pretrained, capsys):
    for name in ("mnist", "emnist_letters"):
        state = near(encoder_weights(small_clip(seed=9)), 5)
        folder = server.root / download.FUSION_BENCH_REPO.format("base-patch16", name)
        folder.mkdir(parents=True)
        save_file(hugging_face_names(state), folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
    run("--source=hub", "--publisher=fusion_bench")
    loaded = checkpoints.load(paths.checkpoint("MNIST", "standard"), like=pretrained, task="MNIST")
    for key, tensor in loaded.items():
        lent = not key.startswith("model.visual.") or key == "model.visual.proj"
        assert torch.equal(tensor, pretrained[key] if lent else state[key]), key
    assert "26 letters" in checkpoints.header(paths.checkpoint("EMNIST_letters", "standard"))["provenance"]["note"]
    assert not paths.checkpoint("EMNIST", "standard").exists()
    assert "not published there: Cars, DTD" in capsys.readouterr().out
    serve_tall(server.root / download.TALL_REPO / MODEL)
    with pytest.raises(SystemExit, match="found a checkpoint of fusion_bench; keep them apart with --save="):
        run("--source=hub")


def hugging_face_names(state):
    """An open_clip visual tower under Hugging Face's names: the converter's table, read backwards."""
    plain = {
        "class_embedding": "embeddings.class_embedding",
        "positional_embedding": "embeddings.position_embedding.weight",
        "conv1.weight": "embeddings.patch_embedding.weight",
    }
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    parts |= {"attn.out_proj": "self_attn.out_proj", "ln_pre": "pre_layrnorm", "ln_post": "post_layernorm"}
    named = {}
    for key, tensor in state.items():
        key = key.removeprefix("model.visual.")
        if match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", key):
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                named[f"vision_model.encoder.layers.{match[1]}.self_attn.{part}_proj.{match[2]}"] = piece.contiguous()
        elif key in plain:
            named[f"vision_model.{plain[key]}"] = tensor
        elif not key.startswith("model.") and key != "proj":
            stem, _, kind = key.replace("transformer.resblocks", "encoder.layers").rpartition(".")
            for ours, theirs in parts.items():
                stem = re.sub(rf"(^|\.){re.escape(ours)}$", rf"\g<1>{theirs}", stem)
            named[f"vision_model.{stem}.{kind}"] = tensor
    return named


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["--model=ViT-Mini", "--kind=checkpoints"], "expected one of ViT-B-32, ViT-B-16, ViT-L-14, found ViT-Mini"),
        (["--model=ViT-B-16", "--kind=masks"], "'masks' does not exist; did you mean tall_masks"),
        (["--model=ViT-B-16", "--kind=tall_masks", "--publisher=fusion_bench"], "fusion_bench publishes checkpoints"),
        (["--model=ViT-B-16", "--kind=checkpoints", "--publisher=fusion_bench"], "add --source=hub"),
        (["--model=ViT-B-16", "--kind=checkpoints", "--from-folder=nowhere"], "expected a folder"),
        (["--model=ViT-B-16"], "--kind"),
    ],
)
def test_wrong_arguments(command, message, capsys):
    with pytest.raises(SystemExit):
        script.main(command)
    assert message in capsys.readouterr().err


def test_the_libraries_take_the_arguments_that_we_give_them(monkeypatch, tmp_path):
    """The thin functions that tests replace above: their calls fit the installed libraries' signatures."""

    def checked(function, answer):
        signature = inspect.signature(function)

        def call(*args, **kwargs):
            signature.bind(*args, **kwargs)
            return answer(*args, **kwargs)

        return call

    def hub_file(repo, path, revision, local_dir):
        file = local_dir / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"whole")
        return str(file)

    listed = [SimpleNamespace(id="x1", path="MNISTVal/a.pt", local_path="ignored")]  # gdown's named tuple
    monkeypatch.setattr(gdown, "download_folder", checked(gdown.download_folder, lambda **_: listed))
    monkeypatch.setattr(gdown, "download", checked(gdown.download, lambda output, **_: shutil.copy(__file__, output)))
    assert download.drive_listing("folder") == [("MNISTVal/a.pt", "x1")]
    download.drive_fetch(tmp_path / "part", "x1")
    assert (tmp_path / "part").exists()

    info = huggingface_hub.ModelInfo(
        id="a/b",
        sha="abc",
        siblings=[
            {"rfilename": "x/model.safetensors", "size": 5, "lfs": {"size": 5, "sha256": "f00", "pointerSize": 3}},
            {"rfilename": "README.md", "size": 7},
        ],
        tags=[],
    )
    real = huggingface_hub.HfApi.model_info
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", checked(real, lambda *_, **__: info))
    assert download.hub_listing("a/b") == ("abc", [("x/model.safetensors", 5, "f00"), ("README.md", 7, None)])
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", checked(huggingface_hub.hf_hub_download, hub_file))
    download.hub_fetch(tmp_path / "part2", "a/b", "abc", "x/model.safetensors")
    assert (tmp_path / "part2").read_bytes() == b"whole"


def test_an_unreachable_server_is_noticed():
    assert download.reachable("http://127.0.0.1:9") is False  # the discard port of this machine: refused at once
