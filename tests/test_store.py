"""θ0, checkpoints and heads belong together: other pre-trained weights than theirs are refused, or made anew."""

import pickle

import pytest
import torch
from drawn_checkpoints import draw_checkpoints

from src import checkpoints, heads, store, training
from src.runtime.messages import CheckpointError, MissingFile
from src.vit_mini import clip


@pytest.fixture
def other_weights(monkeypatch):
    """From now on, the pre-trained model is another one."""
    shipped = clip.load

    def moved():
        model, tokenizer = shipped()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
        return model, tokenizer

    def change():
        monkeypatch.setattr(clip, "load", moved)
        store.encoder.cache_clear()

    return change


def rewrite(path, **fields):
    """The same checkpoint with other header fields; None takes one away."""
    file = checkpoints.Checkpoint(path, kind=checkpoints.header(path)["kind"])
    header = {key: value for key, value in (file.header | fields).items() if value is not None}
    checkpoints.save(path, dict(file), header, kind=file.header["kind"])


def test_other_pretrained_weights_are_refused(make_run, make_training, other_weights):
    run = make_run()
    store.write_pretrained(run)
    store.encoder(run)
    other_weights()
    path = run.paths.pretrained()
    _, settings = make_training("--steps=1", "--batch-size=2")
    for use in (lambda: store.encoder(run), lambda: training.finetune(run, "signs", settings)):
        with pytest.raises(checkpoints.CheckpointError, match=f"{path}: expected the pre-trained .*--save=ANOTHER"):
            use()
    store.pretrained(run)  # what is merged on disk needs no source
    rewrite(path, fingerprints=None)  # as files were written before they said so
    store.encoder(run)


def test_a_checkpoint_of_another_start_is_refused(make_training):
    run, settings = make_training("--steps=1", "--batch-size=2")
    store.write_pretrained(run)
    training.finetune(run, "signs", settings)
    path = run.paths.checkpoint("signs", "standard")
    assert store.finetuned(run, "signs", "standard").header["began_at"]
    rewrite(path, began_at="0" * 16)
    for use in (lambda: store.task_vector(run, "signs", "posthoc"), lambda: training.finetune(run, "signs", settings)):
        with pytest.raises(checkpoints.CheckpointError, match="began at other weights .*--tasks=signs .*--overwrite"):
            use()
    rewrite(path, began_at=None)
    store.task_vector(run, "signs", "standard")


def test_a_head_of_another_text_tower_is_made_anew(make_run, make_training, other_weights):
    run = make_run()
    store.write_pretrained(run)
    first = heads.get_classification_head(run, "signs").weight
    other_weights()
    moved = make_run("--seed=3")  # heads are shared by all seeds, θ0 is not
    store.write_pretrained(moved)
    second = heads.get_classification_head(moved, "signs").weight
    assert not torch.equal(first, second)
    path = run.paths.head("signs")
    rewrite(path, text_side=None, classnames=None, templates=None)  # a published head says none of it
    assert torch.equal(heads.get_classification_head(run, "signs").weight, second)


def test_fingerprints_tell_weights_apart():
    weights = {"a": torch.randn(1000, 7), "b": torch.tensor(3.0)}
    same = {name: weights[name].clone() for name in ("b", "a")}
    assert checkpoints.fingerprint(weights) == checkpoints.fingerprint(same)
    assert checkpoints.fingerprint(weights) != checkpoints.fingerprint({**weights, "b": torch.tensor(3.1)})
    assert checkpoints.fingerprint(weights) != checkpoints.fingerprint({**weights, "a": weights["a"] * 1.001})
    assert checkpoints.fingerprint(weights) != checkpoints.fingerprint({**weights, "a": weights["a"].reshape(7, 1000)})


def test_a_vector_on_disk_is_the_task_vector_and_holds_none_of_it(make_run, tmp_path):
    run = make_run("--tasks=signs", f"--save={tmp_path}")
    draw_checkpoints(run)
    stored, vector = store.stored_vector(run, "signs", "standard"), store.task_vector(run, "signs", "standard").vector
    sent = pickle.dumps(stored)
    assert len(sent) < 50_000 < sum(tensor.nbytes for tensor in vector.values())
    for read in (stored, pickle.loads(sent)):
        assert list(read) == list(vector) and all(torch.equal(read[name], vector[name]) for name in vector)
        assert read.shapes == {name: tuple(tensor.shape) for name, tensor in vector.items()} and not read.wide
    with pytest.raises(KeyError):
        stored["model.logit_scale"]


def test_a_vector_of_other_tensors_than_the_pretrained_model_is_told(make_run, tmp_path):
    """When it is opened; and when a tensor is read, where the file is another one by then."""
    run = make_run("--tasks=signs", f"--save={tmp_path}")
    draw_checkpoints(run)
    path = run.paths.checkpoint("signs", "standard")
    whole, header = checkpoints.load(path), dict(model=run.model, task="signs", mode="standard", seed=0)
    name = next(name for name in whole if name.startswith(checkpoints.VISUAL))
    less = {other: tensor for other, tensor in whole.items() if other != name}
    opened = store.stored_vector(run, "signs", "standard")
    again = "remove it and make it again: python finetune.py --model=ViT-Mini --tasks=signs"
    for other, fault in ((less, f"missing {name}"), (less | {name: whole[name].flatten()[:2]}, r"found \(2,\)")):
        checkpoints.save(path, other, header)
        for read in (store.stored_vector, store.task_vector, store.finetuned):
            with pytest.raises(CheckpointError, match=f"{path}: .*{fault}.*; {again}"):
                read(run, "signs", "standard")
    for other in (less, less | {name: whole[name].flatten()[:2]}, less | {name: whole[name] + 1}):
        checkpoints.save(path, other, header)
        with pytest.raises(CheckpointError, match=f"{path}: expected the file that was opened, to read {name}"):
            opened[name]
    checkpoints.save(path, whole, header)
    assert opened[name].equal(whole[name] - store.pretrained(run)[name])
    for cut in (path.read_bytes()[: opened.theta._size], b"cut short"):
        path.write_bytes(cut)
        with pytest.raises(CheckpointError, match=f"{path}: expected the file that was opened"):
            opened[name]
    with pytest.raises(CheckpointError, match=f"{path}, found a foreign file; {again}"):
        store.made_of(run, "standard", ["signs"])
    path.unlink()
    with pytest.raises(MissingFile, match=f"{path}, found no file; make it with: python finetune.py"):
        opened[name]
