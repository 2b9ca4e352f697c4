"""Fine-tuning: schedule, batches, exact resume, several processes, refusals."""

import dataclasses
import itertools
import os
import signal
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from PIL import Image

import finetune as script
from src import args as arguments
from src import checkpoints, store, training
from src.curvature import Curvature, measure
from src.datasets import loading
from src.datasets.base import Pixels
from src.datasets.examples import Subset
from src.experiments import finetuning
from src.finetuning import batches
from src.finetuning import settings as settings_of_training
from src.finetuning.settings import EPOCH_BY_EPOCH, OF_SOME_MODES, Training
from src.finetuning.tally import Tally
from src.finetuning.trained import attention_weights
from src.heads import get_classification_head
from src.linearize import LinearizedImageEncoder
from src.modeling import ClassificationHead, ImageEncoder
from src.modes import ATTENTION, LOW_RANK, MODES, NO_EMBEDDINGS, TRAINED
from src.run import Run
from src.runtime import seeds
from src.runtime.distributed import World, cores, launch
from src.runtime.messages import UsageError
from src.runtime.paths import ROOT

two_cores = pytest.mark.skipif(cores() < 2, reason="needs 2 cores")
TRAIN = ("--steps=8", "--checkpoint-every=3", "--tasks=signs", "--batch-size=16")
# In any mode: τJp needs a second task. What a mode does otherwise than the others shall count within five steps.
SHORT = ("--steps=5", "--checkpoint-every=2", "--tasks", "signs", "digits", "--batch-size=8", "--warmup_length=1")
OPTIONS = {
    "tau_jp": ("--penalty=2", "--penalty-batch-size=3"),
    "tak": ("--penalty=10", "--penalty-images=20"),
    "ortho": ("--penalty=3",),
    "lora": ("--rank=4",),
    "l_lora": ("--rank=4",),
    "sam": ("--rho=1",),
}


def flags_of(mode: str) -> tuple[str, ...]:
    return (*SHORT, f"--finetuning-mode={mode}", *OPTIONS.get(mode, ()))


def weights(run, mode: str = "standard", task: str = "signs") -> dict[str, torch.Tensor]:
    return checkpoints.load(run.paths.checkpoint(task, mode))


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def assert_near(run, one, two, share=0.01):
    """Each tensor has moved from θ0 in the same way, to a share of its own movement.

    Left out are the biases of the attention's keys: softmax does not see them, so their gradient is zero but for
    rounding, whose sign Adam makes into a step.
    """
    start = store.pretrained(run)
    assert one.keys() == two.keys()
    for name in one:
        moved, difference = one[name] - start[name], one[name] - two[name]
        if name.endswith("attn.in_proj_bias"):
            query, _, value = difference.chunk(3)
            difference = torch.cat([query, value])
        assert difference.norm() <= share * moved.norm() + 1e-7, f"{name}: {difference.norm()} of {moved.norm()}"


def finetune(run, settings, world=World()):
    store.write_pretrained(run)
    training.finetune(run, "signs", settings, world)


def test_schedule_is_the_published_one():
    rates = [training.cosine_lr(step, 100, 1.0, 10) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5) and 0 < rates[99] < 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_batches_cover_each_epoch_once_and_shares_make_the_whole():
    batches = [seeds.batch_indices(50, 16, number, seed=3) for number in range(8)]
    assert [len(b) for b in batches] == [16, 16, 16, 2] * 2
    assert sorted(np.concatenate(batches[:4])) == list(range(50)) == sorted(np.concatenate(batches[4:]))
    assert not np.array_equal(batches[0], batches[4])
    np.testing.assert_array_equal(batches[5], seeds.batch_indices(50, 16, 5, seed=3))


def test_shift_moves_pixels_and_repeats_the_edge():
    image = torch.arange(36, dtype=torch.uint8).view(1, 6, 6, 1).expand(1, 6, 6, 3)
    seen = set()
    for seed in range(40):
        moved = batches.shifted(image, 2, torch.Generator().manual_seed(seed))
        moves = [(r, c) for r in range(-2, 3) for c in range(-2, 3) if torch.equal(moved, _moved(image, r, c))]
        assert len(moves) == 1
        seen.update(moves)
    assert {r for r, _ in seen} == {c for _, c in seen} == {-2, -1, 0, 1, 2}


def _moved(image, down, right):
    rows, columns = (torch.arange(6) + down).clamp(0, 5), (torch.arange(6) + right).clamp(0, 5)
    return image[:, rows][:, :, columns]


def by_hand(run, settings, penalties=(), of_weights=None):
    """The encoder after the steps of a hand-written loop on f, or on f_lin with its plain gradient.

    penalties: images of other tasks at each step. of_weights: (θ, θ0) by name to what is added to the loss.
    """
    mode = MODES[settings.mode]
    encoder = start = ImageEncoder(run)
    if mode.tangent:
        start, encoder = ImageEncoder(run), LinearizedImageEncoder(run, image_encoder=encoder)
        encoder.fused = False  # the plain way: jvp, and backward through it
    if mode.trains == ATTENTION:
        for name, weight in encoder.named_parameters():
            weight.requires_grad_(name.endswith(("attn.in_proj_weight", "attn.out_proj.weight")) and "visual" in name)
    if mode.trains == NO_EMBEDDINGS:
        for name, weight in encoder.named_parameters():
            weight.requires_grad_(not name.endswith("_embedding"))
    theta0 = {name: weight.detach().clone() for name, weight in encoder.named_parameters()}
    head = get_classification_head(run, "signs")
    trained = [p for n, p in encoder.named_parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.wd)
    stream = training.Batches(run, settings, encoder, loading.examples(run, "signs", "train"), World(), "signs")
    for step, (images, labels, _) in enumerate(stream(0, settings.steps)):
        optimizer.param_groups[0]["lr"] = training.cosine_lr(step, settings.steps, settings.lr, settings.warmup_length)

        def backward(images=images, labels=labels, step=step):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(head(encoder(images)), labels)
            for others in penalties[step : step + 1] if step else ():  # at θ0 the norm is zero, and so is its gradient
                norms = (encoder(others) - start(others).detach()).norm(dim=1)
                loss = loss + settings.penalty * norms.mean()
            if of_weights is not None:
                loss = loss + settings.penalty * of_weights(dict(encoder.named_parameters()), theta0)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, settings.clip)

        backward()
        if settings.rho:
            before = [weight.detach().clone() for weight in trained]
            whole = torch.cat([weight.grad.flatten() for weight in trained])
            with torch.no_grad():
                for weight in trained:
                    weight += settings.rho * weight.grad / whole.norm()
            backward()
            with torch.no_grad():
                for weight, value in zip(trained, before):
                    weight.set_(value)
        optimizer.step()
    return encoder


PENALISED = ("tau_jp", "tak", "ortho")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, mini_cache):
    """trained(mode) -> (run, settings) of a fine-tuning with `flags_of(mode)`, which is done once."""
    folder = tmp_path_factory.mktemp("trained")

    @cache
    def of(mode: str) -> tuple[Run, Training]:
        made = _training(folder, mini_cache, mode)
        finetune(*made)
        return made

    yield of
    store.encoder.cache_clear()


def _training(folder: Path, cache: Path, mode: str) -> tuple[Run, Training]:
    places = ("--seed=0", "--device=cpu", "--jobs=1", f"--save={folder}", f"--cache-dir={cache}")
    run, options = arguments.parse(arguments.finetuning_parser(""), [*flags_of(mode), *places])
    for name in ("overwrite", "wandb", "tensorboard"):
        del options[name]
    return run, Training.of(run, **options)


@pytest.mark.parametrize("mode", [mode for mode in TRAINED if MODES[mode].trains != LOW_RANK and mode not in PENALISED])
def test_one_step_is_adamw_on_the_clipped_gradient(trained, mode):
    run, settings = trained(mode)
    # In some entry of a small tensor the sign of a gradient near zero, which Adam's first step is, is up to rounding.
    assert_near(run, weights(run, mode), by_hand(run, settings).state_dict(), share=0.05)


@pytest.mark.parametrize("which", ["cyclic", "strict"])
def test_other_tasks_features_are_held_to_the_pretrained_ones(make_training, which):
    """τJp: of one other task after the other, or of both at each step."""
    more = (f"--penalty-tasks={which}", "--tasks", "signs", "digits", "letters")
    run, settings = make_training(*flags_of("tau_jp"), *more)
    finetune(run, settings)
    of_task = []
    for other in ("digits", "letters"):
        examples = loading.examples(run, other, "train")
        few = dataclasses.replace(settings, batch_size=settings.penalty_batch_size)
        stream = training.Batches(run, few, ImageEncoder(run), examples, World(), other)
        of_task.append([images for images, *_ in stream(0, settings.steps)])
    digits, letters = of_task
    if which == "strict":
        penalties = [torch.cat(pair) for pair in zip(digits, letters)]
    else:
        penalties = [digits[0], letters[0], digits[1], letters[1], digits[2]]
    expected = by_hand(run, settings, penalties).state_dict()
    assert_near(run, weights(run, "tau_jp"), expected, share=0.05)
    free = by_hand(run, settings).state_dict()
    with pytest.raises(AssertionError):
        assert_near(run, free, expected, share=0.2)


def test_the_movement_of_weights_is_held_by_factors_of_other_tasks(make_training):
    """TAK: the factors are those of the other tasks together, each by its number of images."""
    run, settings = make_training(*flags_of("tak"), "--tasks", "signs", "digits", "letters")
    finetune(run, settings)
    encoder = LinearizedImageEncoder(run)
    start = dict(encoder.named_parameters()) | dict(encoder.named_buffers())
    examples = {other: loading.examples(run, other, "train") for other in ("digits", "letters")}
    factors = Curvature()
    for other, images in examples.items():
        generator = torch.Generator().manual_seed(seeds.event_seed(run.seed, other, "curvature"))
        stream = [*training.Batches(run, settings, encoder, images, World(), other)(0, 3)]  # 20 images, in eights
        batches = [
            (batch, torch.randn(len(batch), encoder(batch).shape[1], generator=generator)) for batch, *_ in stream
        ]
        factors.add(measure(ImageEncoder(run), start, batches), len(images) / sum(map(len, examples.values())))

    def of_weights(theta, theta0):
        return factors.of({name: theta[name] - theta0[name] for name in factors.names if theta[name].requires_grad})

    expected = by_hand(run, settings, of_weights=of_weights).state_dict()
    assert_near(run, weights(run, "tak"), expected, share=0.05)
    with pytest.raises(AssertionError):
        assert_near(run, by_hand(run, settings).state_dict(), expected, share=0.2)


def test_matrices_are_drawn_to_orthogonal_ones(trained):
    """OrthoReg: ‖ΔWᵀΔW − I‖ by the singular values of ΔW."""
    run, settings = trained("ortho")

    def of_weights(theta, theta0):
        total = 0
        for name, weight in theta.items():
            if weight.dim() == 2 and "visual" in name and not name.endswith("positional_embedding"):
                total = total + (torch.linalg.svdvals(weight - theta0[name]).square() - 1).square().sum().sqrt()
        return total

    # From the second step on: at θ0 the derivative of singular values is not defined, and that of the norm is zero.
    expected = by_hand(run, settings, of_weights=of_weights).state_dict()
    assert_near(run, weights(run, "ortho"), expected, share=0.05)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, mini_cache):
    """Where two processes have trained every mode. test_processes.py has some that are started as a user's are."""
    folder = tmp_path_factory.mktemp("two")
    with forked.ranks():
        launch(partial(_train, folder, mini_cache), "cpu", 2)
    return folder


def _train(folder: Path, cache: Path, world: World) -> None:
    for mode in TRAINED:
        finetune(*_training(folder, cache, mode), world)


@two_cores
@pytest.mark.parametrize("mode", TRAINED)
def test_two_processes_give_the_weights_of_one(trained, two_processes, mode):
    run, _ = trained(mode)
    two = checkpoints.load(two_processes / f"mini/ViT-Mini/seed_0/signs/{mode}.safetensors")
    assert_near(run, weights(run, mode), two, share=0.05)


@two_cores
def test_torchrun_gives_the_weights_of_one(make_training, tmp_path):
    """Its ranks are forked, with the variables that torchrun sets."""
    run, settings = make_training(*TRAIN)
    finetune(run, settings)
    flags = (*TRAIN, "--seed=0", "--device=cpu", f"--save={tmp_path}/two", f"--cache-dir={run.places.cache}")
    done = forked.torchrun("finetune.py", *flags)
    assert done.returncode == 0, done.stderr
    two = checkpoints.load(tmp_path / "two/mini/ViT-Mini/seed_0/signs/standard.safetensors")
    assert_near(run, weights(run, settings.mode), two)
    assert done.stdout.count("signs standard: 8 steps") == 1  # rank 0 alone speaks


MEETING = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from src.runtime.distributed import launch

def worker(world):
    with world.in_step() as among:
        world.print0(f"of {{among.size}}, the second too: {{among.any(among.rank == 1)}}")

if __name__ == "__main__":
    launch(worker, "cpu")
"""


@two_cores
def test_ranks_meet_as_torchrun_itself_starts_them(tmp_path):
    """The tests of ranks fork them, with what torchrun sets (`forked.torchrun`); here they are torchrun's own."""
    program = tmp_path / "program.py"
    program.write_text(MEETING)
    done = forked.run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["of 2, the second too: True"]


@pytest.mark.parametrize("mode", ["standard", "linear", "tak"])
def test_a_killed_run_ends_bit_identical(make_training, tmp_path, monkeypatch, mode, capsys):
    flags = ("--steps=8", "--checkpoint-every=2", "--batch-size=8", f"--finetuning-mode={mode}")
    flags = (*flags, *OPTIONS.get(mode, ()), "--tasks", "signs", *(["digits"] if MODES[mode].needs_others else []))
    whole, settings = make_training(*flags)
    finetune(whole, settings)
    broken, _ = make_training(*flags, f"--save={tmp_path}/broken")
    state = broken.paths.training_state("signs", mode)
    places = (f"--save={broken.places.save}", f"--cache-dir={broken.places.cache}")
    same = (*flags, "--seed=0", "--device=cpu", "--jobs=1", *places)
    with monkeypatch.context() as patch:  # of the process that is started, too
        _break_after(patch, 5, lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert forked.run("finetune.py", *same).returncode == -signal.SIGKILL
    assert state.exists() and not broken.paths.checkpoint("signs", mode).exists()
    script.main(same)
    assert "goes on from step 4" in capsys.readouterr().out
    assert_same(weights(whole, mode), weights(broken, mode))
    assert not state.exists()


@pytest.mark.parametrize("mode", TRAINED)
def test_a_run_that_goes_on_ends_bit_identical_and_with_its_own_state_alone(
    make_training, trained, tmp_path, monkeypatch, mode
):
    whole, _ = trained(mode)
    flags = (*flags_of(mode), f"--save={tmp_path}/broken")
    run, settings = make_training(*flags)
    _break_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        finetune(run, settings)
    monkeypatch.undo()
    state = run.paths.training_state("signs", mode)
    for name, value in ({"lr": 0.5} | {name: default * 2 for name, default in _numbers(mode)}).items():
        with pytest.raises(checkpoints.CheckpointError, match=rf"{name} .* \(now {value}\)"):
            finetune(run, dataclasses.replace(settings, **{name: value}))
    other = TRAINED[TRAINED.index(mode) - 1]
    foreign = run.paths.training_state("signs", other)
    foreign.write_bytes(state.read_bytes())
    with pytest.raises(checkpoints.CheckpointError, match=f"expected mode '{other}', found '{mode}'"):
        finetune(*make_training(*flags_of(other), f"--save={tmp_path}/broken"))
    finetune(run, settings)
    assert_same(weights(whole, mode), weights(run, mode))
    header = checkpoints.header(run.paths.checkpoint("signs", mode))
    assert header["mode"] == mode and header["step"] == 5 and header["began_at"]
    assert {*OF_SOME_MODES} & {*header["settings"]} == {*MODES[mode].options}


def _numbers(mode: str) -> list[tuple[str, float]]:
    return [(name, default) for name, default in MODES[mode].options.items() if not isinstance(default, str)]


@pytest.mark.parametrize("mode", [mode for mode in TRAINED if MODES[mode].trains])
def test_what_a_mode_does_not_train_stays_bit_equal(trained, mode):
    run, _ = trained(mode)
    start, end = store.pretrained(run), weights(run, mode)
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    if MODES[mode].trains == NO_EMBEDDINGS:
        names = (f"{checkpoints.VISUAL}{which}_embedding" for which in ("class", "positional"))
        assert moved == {name for name in start if name.startswith(checkpoints.VISUAL)} - {*names}
    else:
        assert moved == {*attention_weights(ImageEncoder(run))} and len(moved) == 8


@pytest.mark.parametrize("mode", [mode for mode in TRAINED if MODES[mode].trains == LOW_RANK])
def test_factors_beside_the_checkpoint_make_it(trained, mode):
    run, _ = trained(mode)
    path = run.paths.checkpoint("signs", mode)
    factors = checkpoints.Checkpoint(path.with_suffix(".factors"), kind="factors", mode=mode, task="signs", step=5)
    start, end = store.pretrained(run), weights(run, mode)
    for name in attention_weights(ImageEncoder(run)):
        a, b = factors[f"{name}.lora_A"], factors[f"{name}.lora_B"]
        assert a.shape[1] == b.shape[2] == 4 and factors.header["scale"] == 4 and b.any()
        product = torch.cat([part_b @ part_a for part_b, part_a in zip(b, a)])
        torch.testing.assert_close(start[name] + 4 * product, end[name], rtol=1e-6, atol=1e-7)


def test_options_of_other_modes_are_refused(make_training):
    for option in ("--rank=4", "--penalty=1", "--rho=0.1", "--penalty-tasks=strict"):
        with pytest.raises(UsageError, match=f"{option.partition('=')[0]}: expected a fine-tuning mode that has it"):
            make_training("--finetuning-mode=linear", option)


@pytest.mark.parametrize("mode", [mode for mode in TRAINED if MODES[mode].needs_others])
def test_one_task_has_no_others(make_training, mode):
    with pytest.raises(UsageError, match=f"{mode} needs images of other tasks; expected two tasks, found signs"):
        finetune(*make_training(f"--finetuning-mode={mode}", "--steps=1", "--tasks=signs"))


def test_encoders_are_kept_along_the_training(make_training, tmp_path):
    """They are those that a run stopped there would have; --keep-every changes no weight."""
    flags = (*TRAIN, "--lr=1e-4")
    run, settings = make_training(*flags, "--keep-every=3")
    finetune(run, settings)
    plain, _ = make_training(*flags, f"--save={tmp_path}/plain")
    finetune(plain, make_training(*flags)[1])
    assert_same(weights(run), weights(plain))
    start, kept = store.pretrained(run), [run.paths.encoder_at("signs", "standard", step) for step in (3, 6)]
    assert [*kept[0].parent.iterdir()] in (kept, kept[::-1])
    lengths = []
    for step, path in zip((3, 6), kept):
        end = checkpoints.Checkpoint(path, model=run.model, task="signs", mode="standard", step=step)
        lengths.append(sum(float((end[name] - start[name]).square().sum()) for name in start))
    assert 0 < lengths[0] < lengths[1]
    with pytest.raises(
        checkpoints.CheckpointError, match=r"after step 2, found\s+none, .*--keep-every=2; .*--overwrite"
    ):
        finetune(*make_training(*flags, "--keep-every=2"))
    again, settings = make_training(*flags)
    training.finetune(again, "signs", settings, overwrite=True)
    assert not any(path.exists() for path in kept)


class Watched:
    """One image, for a process that does not see SIGINT."""

    labels = np.zeros(1, int)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Image.Image:
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])  # since it was started
        return Image.new("RGB", (40, 40))


def test_decoding_processes_leave_a_terminals_signal_to_the_training(make_training):
    """It ends the step that it is in, and needs them for it."""
    run, settings = make_training("--batch-size=1", "--workers=1")
    batches = training.Batches(run, settings, ImageEncoder(run), Watched(), World(), "signs")
    assert len(list(batches(0, 2))) == 2 and signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_accumulation_is_the_larger_batch(make_training, tmp_path, monkeypatch):
    """Two forward passes of 16 make one step of 32. An image's shift is drawn with its batch, so nothing is shifted."""
    monkeypatch.setattr(batches, "MAX_SHIFT", 0)
    flags = ("--steps=3", "--tasks=signs")
    large = make_training(*flags, "--batch-size=32")
    small = make_training(*flags, "--batch-size=16", "--num-grad-accumulation=2", f"--save={tmp_path}/small")
    finetune(*large)
    finetune(*small)
    assert_near(large[0], weights(large[0]), weights(small[0]))


def test_finished_work_is_skipped_and_foreign_checkpoints_are_refused(make_training, capsys):
    run, settings = make_training(*TRAIN)
    finetune(run, settings)
    path = run.paths.checkpoint("signs", "standard")
    before = path.read_bytes()
    training.finetune(run, "signs", settings)
    assert "skipped" in capsys.readouterr().out and path.read_bytes() == before
    path.write_bytes(before[: len(before) // 2])
    with pytest.raises(checkpoints.CheckpointError, match="cut short"):
        training.finetune(run, "signs", settings)
    assert len(path.read_bytes()) == len(before) // 2


def test_a_finished_checkpoint_of_other_settings_is_refused_and_stays(make_training):
    finetune(*make_training("--steps=1", "--batch-size=4"))
    other, settings = make_training("--steps=2", "--batch-size=4", "--lr=0.5", "--precision=tf32")
    before = other.paths.checkpoint("signs", "standard").read_bytes()
    told = r"trained with lr 0.00025 \(now 0.5\), precision fp32 \(now tf32\), steps 1 \(now 2\); .*--overwrite"
    with pytest.raises(checkpoints.CheckpointError, match=told):
        finetune(other, settings)
    assert other.paths.checkpoint("signs", "standard").read_bytes() == before


def losses(monkeypatch, run, settings) -> list[float]:
    """What is logged of a fine-tuning, at every step."""
    found = []

    class Recorder:
        def __init__(self, *arguments): ...
        def close(self): ...
        def log(self, values, step):
            found.append(float(values["loss"]))

    monkeypatch.setattr(training, "Logger", Recorder)
    finetune(run, settings)
    return found


@pytest.mark.parametrize("mode", [mode for mode in TRAINED if not MODES[mode].tangent])
def test_bf16_is_near_fp32(make_training, tmp_path, monkeypatch, mode):
    flags = ("--steps=4", "--warmup_length=1", "--batch-size=16", f"--finetuning-mode={mode}")
    whole = losses(monkeypatch, *make_training(*flags))
    half = losses(monkeypatch, *make_training(*flags, "--precision=bf16", f"--save={tmp_path}/half"))
    assert half == pytest.approx(whole, rel=0.02) and half != whole
    half_run, _ = make_training(f"--save={tmp_path}/half")
    assert all(p.dtype == torch.float32 for p in weights(half_run, mode).values())


@pytest.mark.parametrize("mode", [mode for mode in TRAINED if MODES[mode].tangent])
def test_bf16_is_refused_where_it_would_lose_the_tangent(make_training, mode):
    with pytest.raises(UsageError, match="loses its second term"):
        make_training(f"--finetuning-mode={mode}", "--precision=bf16")


@pytest.mark.parametrize("mode", [mode for mode in TRAINED if MODES[mode].tangent])
def test_compiling_what_cannot_be_is_refused(make_training, mode):
    with pytest.raises(UsageError, match=f"of which {mode} is made, so nothing would be compiled"):
        make_training(f"--finetuning-mode={mode}", "--compile")


@pytest.mark.parametrize("mode", [mode for mode in TRAINED if not MODES[mode].tangent])
def test_compiled_training_is_the_same(make_training, tmp_path, mode):
    """With the backend that traces as the default one does, and then runs what it traced."""
    flags = (*flags_of(mode), "--steps=2", "--batch-size=4")
    plain, compiled = (
        make_training(*flags),
        make_training(*flags, f"--save={tmp_path}/c", "--compile=eager"),
    )
    for run, settings in (plain, compiled):
        finetune(run, settings)
    torch.compiler.reset()
    (plain, _), (compiled, _) = plain, compiled
    assert_near(plain, weights(plain, mode), weights(compiled, mode))
    assert checkpoints.header(compiled.paths.checkpoint("signs", mode))["settings"]["compile"] == "eager"


def test_ten_heads_share_the_graphs_of_one_encoder(make_training, monkeypatch):
    """And so does an epoch's last batch, which is smaller: PyTorch gives compiling up at the ninth graph."""
    run, settings = make_training("--steps=2", "--batch-size=4", "--compile=eager", "--checkpoint-seconds=0")
    store.write_pretrained(run)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    for classes in range(2, 12):
        head = ClassificationHead(torch.randn(classes, 128, generator=torch.Generator().manual_seed(classes)))
        monkeypatch.setattr(training, "get_classification_head", lambda run, task, head=head: head)
        examples = Pixels(np.zeros((7, 32, 32, 3), np.uint8), np.arange(7) % classes)
        monkeypatch.setattr(loading, "training_examples", lambda run, task, examples=examples: examples)
        tuning = training.FineTuning(run, "signs", settings, World())
        stream = tuning.batches(0, 2)
        for number in range(2):
            tuning.step(number, stream)
    stats = dict(torch._dynamo.utils.counters["stats"])
    torch.compiler.reset()
    assert 1 <= stats["unique_graphs"] <= 3, stats
    assert not torch._dynamo.utils.counters["graph_break"]


def test_frozen_weights_are_compared_again_only_after_a_write(make_run, monkeypatch):
    encoder = LinearizedImageEncoder(make_run())
    frozen = encoder.model.visual.ln_pre.weight.requires_grad_(False)
    images, compared, equal = torch.randn(2, 3, 32, 32), [], torch.equal

    def counted(*pair):
        compared.append(1)
        return equal(*pair)

    monkeypatch.setattr(torch, "equal", counted)
    at_start = encoder(images)
    assert compared
    compared.clear()
    assert equal(encoder(images), at_start) and not compared
    with torch.no_grad():
        frozen.add_(1)
    moved = encoder(images)
    assert len(compared) == 1 and not equal(moved, at_start)
    encoder.load_state_dict(encoder.state_dict() | {"model.visual.ln_pre.weight": frozen - 1})
    torch.testing.assert_close(encoder(images), at_start)


def test_states_are_saved_by_the_clock(make_training, monkeypatch):
    """At a look at the numbers, every ten steps, where so much time has passed; steps say nothing to it."""
    now, saved = [0.0], []
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(training.FineTuning, "_save", lambda self, step: saved.append(step))
    step = training.FineTuning.step

    def slow(self, *which):
        now[0] += 7
        return step(self, *which)

    monkeypatch.setattr(training.FineTuning, "step", slow)
    finetune(*make_training("--steps=60", "--batch-size=1", "--tasks=signs", "--checkpoint-seconds=130"))
    assert saved == [19, 39]
    saved.clear()
    flags = ("--steps=30", "--batch-size=1", "--tasks=signs", "--checkpoint-seconds=0", "--checkpoint-every=12")
    run, settings = make_training(*flags)
    training.finetune(run, "signs", settings, overwrite=True)
    assert saved == [11, 23]


def test_the_usual_state_is_kept_by_time_alone(make_training):
    settings = make_training()[1]
    assert (settings.checkpoint_every, settings.checkpoint_seconds) == (0, 300)


@pytest.mark.parametrize("broken", ["weight", "moment"])
def test_a_state_that_is_no_number_never_takes_the_place_of_a_good_one(make_training, monkeypatch, broken):
    """Also where loss and gradient were finite."""
    run, settings = make_training("--steps=9", "--batch-size=4", "--tasks=signs", "--checkpoint-every=2")
    step = training.FineTuning.step

    def breaking(self, number, *which):
        loss = step(self, number, *which)
        if number == 3:
            first = self.trained[0]
            target = first if broken == "weight" else self.optimizer.state[first]["exp_avg"]
            target.data.view(-1)[0] = float("inf")
        return loss

    monkeypatch.setattr(training.FineTuning, "step", breaking)
    with pytest.raises(training.NonFiniteLoss, match="at step 3 of 9; the last good state is kept"):
        finetune(run, settings)
    state = checkpoints.Checkpoint(run.paths.training_state("signs", "standard"), kind="training state")
    assert state.header["step"] == 2 and all(torch.isfinite(state[key]).all() for key in state)


@pytest.mark.parametrize("which", ["loss", "norm"])
def test_the_first_step_that_is_no_number_is_named(which):
    tally = Tally()
    for number in range(3, 9):
        loss, norm = torch.tensor(0.5), torch.tensor(2.0)
        if number in (5, 7):
            loss, norm = (loss * float("nan"), norm) if which == "loss" else (loss, norm * float("inf"))
        tally.count(torch.tensor(3), torch.tensor(4))
        tally.add(number, loss, norm)
    step, loss = tally.look()
    assert step == 5 and (loss != loss) == (which == "loss") and tally.last_step == 8
    assert tally.accuracy == 0.75 and tally.look() is None


def test_pixels_are_normalised_to_the_bit_as_torchvision_does(make_training):
    """Of images that decoding processes send as they are; also by a transform of another end, which stays whole."""
    run, settings = make_training("--batch-size=5", "--workers=0")
    pixels = np.random.default_rng(0).integers(0, 256, (7, 40, 48, 3), dtype=np.uint8)
    encoder, examples = ImageEncoder(run), Pixels(pixels, np.arange(7))
    ours = training.Batches(run, settings, encoder, examples, World(), "signs")
    sent = ours._until_pixels()(examples[0])
    assert sent.dtype == torch.uint8 and tuple(sent.shape) == (3, 32, 32)
    usual = encoder.train_preprocess
    encoder.train_preprocess = torch.nn.Sequential(usual)  # the whole of it in the decoding process
    theirs = training.Batches(run, settings, encoder, examples, World(), "signs")
    whole = list(theirs(0, 4))
    encoder.train_preprocess = usual
    for (one, labels, _), (other, same, _) in zip(ours(0, 4), whole, strict=True):
        assert torch.equal(one, other) and torch.equal(labels, same) and one.stride() == other.stride()


def test_an_epochs_order_and_a_subsets_labels_are_made_once(monkeypatch):
    made, randperm = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *which, **named: made.append(1) or randperm(*which, **named))
    for number in range(12):
        seeds.batch_indices(23, 4, number, seed=987654321)
    assert len(made) == 2

    class Counted:
        gathered = 0

        @property
        def labels(self):
            type(self).gathered += 1
            return np.arange(9)

    some = Subset(Counted(), np.array([4, 2]))
    assert [int(some.labels[i]) for i in (0, 1, 0)] == [4, 2, 4] and Counted.gathered == 1


def test_decoding_processes_share_the_cores(make_training, monkeypatch):
    monkeypatch.setattr(settings_of_training, "cores", lambda: 12)
    assert make_training("--tasks=signs")[1].workers == 12
    assert make_training("--tasks", "signs", "digits", "--jobs=8")[1].workers == 6
    assert make_training("--tasks=signs", "--world-size=4")[1].workers == 3
    assert make_training("--tasks=signs", "--workers=7")[1].workers == 7


def test_a_state_of_other_settings_is_refused(make_training, monkeypatch):
    run, settings = make_training(*TRAIN)
    _break_after(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        finetune(run, settings)
    monkeypatch.undo()
    other = make_training(*TRAIN, "--lr=0.01")
    with pytest.raises(checkpoints.CheckpointError, match=r"lr 0.00025 \(now 0.01\)"):
        finetune(*other)


def test_sums_whose_steps_ran_on_over_the_ends_of_epochs_are_other_settings(make_training, tmp_path):
    """Older files say True of them. Means, and sums of one pass, were made of the same images then as now."""
    sums, two = "--sum-gradients", "--num-grad-accumulation=2"
    for number, (flags, alike) in enumerate([((sums, two), False), ((two,), True), ((sums,), True)]):
        run, settings = make_training(
            "--steps=2", "--tasks=signs", "--batch-size=8", f"--save={tmp_path}/{number}", *flags
        )
        finetune(run, settings)
        path, state = run.paths.checkpoint("signs", "standard"), run.paths.training_state("signs", "standard")
        file = checkpoints.Checkpoint(path)
        assert file.header["settings"]["sum_gradients"] == (settings.sum_gradients if alike else EPOCH_BY_EPOCH)
        told = file.header["settings"] | {"sum_gradients": settings.sum_gradients}
        older = {name: value for name, value in file.header.items() if name != "kind"} | {"settings": told}
        checkpoints.save(path, dict(file), older)
        if alike:
            finetune(run, settings)  # finished before
            continue
        for other in (path, state):
            with pytest.raises(checkpoints.CheckpointError, match=f"{other.name}.* sum_gradients True .now epoch by"):
                finetune(run, settings)
            path.unlink(missing_ok=True)
            checkpoints.save(state, {"model/x": torch.zeros(1)}, older | {"step": 1}, kind="training state")


def test_a_loss_that_is_no_number_stops_and_keeps_the_state(make_training, monkeypatch):
    run, settings = make_training(*TRAIN)
    cross_entropy = training.F.cross_entropy
    calls = []

    def poisoned(*arguments, **named):
        calls.append(1)
        return cross_entropy(*arguments, **named) * (float("nan") if len(calls) == 5 else 1)

    monkeypatch.setattr(training.F, "cross_entropy", poisoned)
    with pytest.raises(training.NonFiniteLoss, match="at step 4 of 8; the last good state is kept"):
        finetune(run, settings)
    state = checkpoints.Checkpoint(run.paths.training_state("signs", "standard"), kind="training state")
    assert state.header["step"] == 3 and all(torch.isfinite(state[key]).all() for key in state)


def _interrupt() -> None:
    raise KeyboardInterrupt


def _break_after(monkeypatch, steps: int, end: Callable[[], None] = _interrupt) -> None:
    rate, calls = training.cosine_lr, []

    def counted(*arguments):
        calls.append(1)
        if len(calls) > steps:
            end()
        return rate(*arguments)

    monkeypatch.setattr(training, "cosine_lr", counted)


def test_world_size_above_the_devices_is_an_error(make_run):
    with pytest.raises(UsageError, match=f"--world-size: expected at most the {cores()} CPU cores"):
        finetuning.finetune_tasks(make_run(), "standard", world_size=4096)


@two_cores
def test_a_dead_rank_ends_the_job_with_its_reason(tmp_path):
    program = Path(tmp_path / "dies.py")
    program.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from src.runtime.distributed import launch\n"
        "def worker(world):\n"
        "    if world.rank == 1: raise RuntimeError('rank one is unwell')\n"
        "    world.barrier()\n"
        "if __name__ == '__main__': launch(worker, 'cpu', 2)\n"
    )
    with forked.ranks():
        done = forked.run(program)
    assert done.returncode != 0 and "rank 1 stopped: RuntimeError: rank one is unwell" in done.stderr


def test_gradients_of_a_step_are_summed_where_that_is_asked_for(make_training, tmp_path, monkeypatch):
    """As the published scripts do: the clip then sees twice the mean of two passes."""
    monkeypatch.setattr(batches, "MAX_SHIFT", 0)
    norms, clip = [], torch.nn.utils.clip_grad_norm_

    def noted(parameters, most):
        norms.append(clip(parameters, 1e9))
        return norms[-1]

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", noted)
    flags = ("--steps=1", "--tasks=signs", "--batch-size=16", "--num-grad-accumulation=2")
    for number, more in enumerate(([], ["--sum-gradients"])):
        finetune(*make_training(*flags, *more, f"--save={tmp_path}/{number}"))
    torch.testing.assert_close(norms[1], 2 * norms[0])


class PublishedLoop:
    """Which batches each optimizer step is of, and its learning rate's place, as the published scripts loop."""

    def __init__(self, epochs: int, batches: int, accumulated: int):
        self.steps, self.places, left = [], [], []
        self.length = epochs * batches // accumulated
        for epoch in range(epochs):
            for i in range(batches):
                left.append(epoch * batches + i)
                if (i + 1) % accumulated == 0:
                    self.steps.append(left)
                    self.places.append(i // accumulated + epoch * batches // accumulated)
                    left = []


@pytest.mark.parametrize(("epochs", "batches", "accumulated"), [(3, 5, 2), (4, 7, 3), (2, 4, 2), (3, 3, 1)])
def test_an_epochs_odd_last_pass_joins_the_next_one_as_published(make_training, epochs, batches, accumulated):
    published = PublishedLoop(epochs, batches, accumulated)
    flags = (f"--epochs={epochs}", f"--num-grad-accumulation={accumulated}", "--sum-gradients")
    _, settings = make_training(*flags)
    steps = settings_of_training.number_of_steps(settings, "signs", batches)
    ends = [settings_of_training.passes_before(settings, step, batches) for step in range(steps + 1)]
    assert [list(range(*span)) for span in itertools.pairwise(ends)] == published.steps
    places = [settings_of_training.place_in_schedule(settings, step, batches) for step in range(steps + 1)]
    assert places == [*published.places, published.length]
    mean = dataclasses.replace(settings, sum_gradients=False)
    assert settings_of_training.number_of_steps(mean, "signs", batches) == published.length
    assert settings_of_training.passes_before(mean, 4, batches) == 4 * accumulated


def test_a_step_of_three_passes_sums_them(make_training, tmp_path, monkeypatch):
    """The second epoch's first step, which the first one's odd pass joins."""
    counts = []
    gradient = training.FineTuning._gradient

    def counted(self, passes, number, *more, **named):
        counts.append((number, len(passes := list(passes))))
        return gradient(self, passes, number, *more, **named)

    monkeypatch.setattr(training.FineTuning, "_gradient", counted)
    run, settings = make_training("--tasks=signs", "--num-grad-accumulation=2", "--sum-gradients", "--epochs=2")
    some = loading.training_examples(run, "signs")
    few = Pixels(some.pixels[:24], some.labels[:24])
    monkeypatch.setattr(loading, "training_examples", lambda *_: few)
    finetune(run, dataclasses.replace(settings, batch_size=8))  # three batches an epoch
    assert counts == [(2, 2), (3, 3)]


@pytest.mark.parametrize("normalised", [True, False])
def test_towers_with_batch_norm_are_trained_in_training_mode_as_published(make_training, monkeypatch, normalised):
    build = training.build

    def built(*given):
        encoder = build(*given)
        if normalised:
            encoder.model.visual.norm = torch.nn.BatchNorm2d(3)
        return encoder

    monkeypatch.setattr(training, "build", built)
    run, settings = make_training("--steps=1", "--tasks=signs", "--batch-size=4")
    store.write_pretrained(run)
    classifier = training.FineTuning(run, "signs", settings, World()).classifier
    assert classifier.image_encoder.model.training == normalised
