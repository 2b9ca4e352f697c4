"""What a GPU alone can show: the same numbers as on a CPU, no step that waits, and defaults that fit its memory."""

import dataclasses

import numpy as np
import pytest
import torch
from test_gram import problem
from test_memory import Tower
from test_training import OPTIONS, assert_near, finetune, weights

from src import store, training
from src.analysis.ntk import kernel
from src.datasets import loading
from src.datasets.base import Pixels
from src.evaluation import ORIGIN, Line, score
from src.linearize import LinearizedModel
from src.merging.tangent_matching import TangentMatching
from src.modeling import ImageEncoder
from src.modes import MODES, TRAINED
from src.runtime import memory
from src.runtime.distributed import World
from src.runtime.precision import matmul_precision

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = World(device="cuda")
GIB = 1 << 30


def flags_of(mode: str) -> tuple[str, ...]:
    steps = ("--steps=5", "--checkpoint-every=2", "--batch-size=16", "--warmup_length=1")
    return (*steps, "--tasks", "signs", "digits", f"--finetuning-mode={mode}", *OPTIONS.get(mode, ()))


@pytest.mark.parametrize("mode", TRAINED)
def test_the_trained_weights_are_those_of_a_cpu(make_training, tmp_path, mode):
    """With the fused optimizer, and batches that are copied beside the steps."""
    run, settings = make_training(*flags_of(mode))
    finetune(run, settings)
    there, same = make_training(*flags_of(mode), "--device=cuda", f"--save={tmp_path}/gpu")
    finetune(there, same, GPU)
    assert_near(run, weights(run, mode), weights(there, mode), share=0.05)


@pytest.mark.parametrize("mode", ["standard", "linear"])
def test_a_run_that_goes_on_ends_as_if_it_had_not_stopped(make_training, tmp_path, monkeypatch, mode):
    """The fused optimizer's moments are restored, its step among them."""
    whole, settings = make_training(*flags_of(mode), "--device=cuda")
    finetune(whole, settings, GPU)
    broken, settings = make_training(*flags_of(mode), "--device=cuda", f"--save={tmp_path}/broken")
    step = training.FineTuning.step

    def breaking(self, number, *which):
        if number == 3 and self.first == 0:
            raise KeyboardInterrupt
        return step(self, number, *which)

    monkeypatch.setattr(training.FineTuning, "step", breaking)
    with pytest.raises(KeyboardInterrupt):
        finetune(broken, settings, GPU)
    finetune(broken, settings, GPU)
    assert_near(whole, weights(whole, mode), weights(broken, mode), share=1e-3)


@pytest.mark.parametrize("mode", [mode for mode in TRAINED if mode != "sam"])  # which needs its gradient's norm
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_step_waits_for_nothing(make_training, mode, precision):
    if precision == "bf16" and MODES[mode].tangent:
        return
    run, settings = make_training(*flags_of(mode), "--device=cuda", f"--precision={precision}")
    store.write_pretrained(run)
    tuning = training.FineTuning(run, "signs", settings, GPU)
    stream, penalties = tuning.batches(0, 5), tuning.penalty.stream(0, 5) if tuning.penalty else None
    for number in range(2):
        tuning.step(number, stream, penalties)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(2, 5):
            tuning.step(number, stream, penalties)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert tuning.tally.look() is None and 0 < tuning.tally.accuracy < 1


@pytest.mark.parametrize("side", [32, 40])  # in memory at the encoder's size, or through the loader
def test_batches_are_those_of_a_cpu(make_training, side):
    """Also where the GPU is busy while they are copied."""
    run, settings = make_training("--batch-size=8", "--workers=2")
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (100, side, side, 3), dtype=np.uint8)
    examples, encoder = Pixels(pixels, np.arange(100)), ImageEncoder(run)
    here, there = (training.Batches(run, settings, encoder, examples, world, "signs") for world in (World(), GPU))
    busy, seen = torch.randn(4096, 4096, device="cuda"), []
    for images, labels, size in there(0, 30):
        busy = busy @ busy / 4096
        seen.append((images.square(), labels, size))  # after the product: in the order of the stream
    for (images, labels, size), (squares, theirs, n) in zip(here(0, 30), seen, strict=True):
        torch.testing.assert_close(squares.cpu(), images.square(), rtol=1e-5, atol=1e-6)
        assert torch.equal(theirs.cpu(), labels) and n == size


@pytest.mark.parametrize("tangent", [False, True])
def test_scores_are_those_of_a_cpu(make_run, tangent):
    run = make_run("--tasks=signs")
    line = Line({name: 0.02 * w for name, w in ImageEncoder(run).named_parameters() if "visual" in name}, (0.0, 0.5))
    line = dataclasses.replace(line, direction={name: w.detach() for name, w in line.direction.items()})
    for of_line in (ORIGIN, line):
        one, other = (
            score(dataclasses.replace(run, device=device), "signs", "test", of_line, tangent)
            for device in ("cpu", "cuda")
        )
        assert other.loss == pytest.approx(one.loss, abs=1e-4)
        assert other.accuracy == pytest.approx(one.accuracy, abs=2.5 / one.n)


def test_products_have_the_mantissa_that_is_asked_for():
    a, b = (torch.randn(1024, 1024, device="cuda") for _ in range(2))
    exact, errors = a.double() @ b.double(), {}
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for precision in ("fp32", "tf32"):
        with matmul_precision(precision):
            errors[precision] = float((a @ b - exact).norm() / exact.norm())
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
    assert errors["fp32"] < 1e-5
    if torch.cuda.get_device_capability() >= (8, 0):
        assert 1e-4 < errors["tf32"] < 1e-2


@pytest.mark.parametrize("precision, near", [("tf32", 0.01), ("bf16", 0.02)])
def test_scores_in_less_precision_are_near(make_run, precision, near):
    run = make_run("--tasks=signs", "--device=cuda")
    one, other = (
        score(dataclasses.replace(run, precision=p), "signs", "test", ORIGIN, False) for p in ("fp32", precision)
    )
    assert other.loss == pytest.approx(one.loss, rel=near) and other.accuracy == pytest.approx(one.accuracy, abs=near)


def peak_of(work) -> int:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("tangent", [False, True])
def test_a_pass_of_as_many_images_as_fit_does_fit(tangent):
    """At the size of ViT-B-32."""
    tower = Tower(224, 32, 768, 12, quick=True).cuda()
    model, free = LinearizedModel(tower) if tangent else tower, 4 * GIB
    besides = (2 if tangent else 1) * memory.bytes_of(tower.parameters())  # of the gradient, and the direction
    count = memory.images_that_fit(free, memory.bytes_of_pass(model, tangent), besides)
    images = torch.randn(count, 3, 224, 224, device="cuda")
    peak = peak_of(lambda: model(images).square().sum().backward())
    assert count > 16 and free / 3 < peak < free


def test_a_chunk_of_the_kernel_fits(monkeypatch):
    """At the size of ViT-B-32; in two chunks or more, whose gradients are held together."""
    tower, free = Tower(224, 32, 768, 12, quick=True).cuda(), 8 * GIB
    for name, parameter in tower.named_parameters():
        parameter.requires_grad_(name.startswith("model.visual."))
    monkeypatch.setattr(kernel, "free_memory", lambda device: free)
    chunk = kernel.usual_chunk(tower, [p for p in tower.parameters() if p.requires_grad], torch.device("cuda"))
    images = torch.randn(2 * chunk, 3, 224, 224, device="cuda")
    peak = peak_of(lambda: kernel.tangent_kernel(tower, lambda features: features[:, :2], images, reduction="sum"))
    print(f"chunk {chunk}, peak {peak / GIB:.2f} of {free / GIB:.0f} GiB")
    assert chunk > 1 and free / 4 < peak < free


def test_free_memory_is_what_an_allocation_takes():
    before = memory.free_memory("cuda")
    held = torch.empty(GIB, dtype=torch.uint8, device="cuda")
    assert before - memory.free_memory("cuda") == pytest.approx(GIB, rel=0.05) and len(held)


def test_constants_of_the_normalisation_are_copied_once():
    pixels = torch.zeros(2, 4, 4, 3, dtype=torch.uint8, device="cuda")
    loading.normalise(pixels, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        loading.normalise(pixels, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("metric", ["features", "gauss_newton"])
@pytest.mark.parametrize("precondition", ["kronecker", "none"])
def test_tangent_matching_is_that_of_a_cpu(metric, precondition):
    given = problem(tangent=True)
    here = given.images
    there = dataclasses.replace(
        here, encoder=lambda: here.encoder().to(GPU.device), batch=lambda *which: here.batch(*which).to(GPU.device)
    )
    method = TangentMatching(metric=metric, precondition=precondition, iterations=[0, 3])
    one, other = (method.merge(dataclasses.replace(given, images=images)) for images in (here, there))
    assert other.info["errors"] == pytest.approx(one.info["errors"], rel=1e-6)
    for k in one.settings:
        torch.testing.assert_close(
            dict(other.vector("a", k).vector), dict(one.vector("a", k).vector), rtol=1e-6, atol=1e-8
        )
