"""A section of `accelerator`: whether the device and its precisions give the numbers of a CPU, and of float64."""

import copy
import re
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.sections.bench import Bench, Numbers, apart, far, note
from benchmarks.sections.steps import plainly, tuning
from src.linearize import forward_and_jvp
from src.merging.base import Problem
from src.merging.inputs import Moments
from src.merging.registry import METHODS, load_methods
from src.modeling import ImageEncoder
from src.runtime.precision import matmul_precision


def loss_gradient(b: Bench, mode: str, device: str, precision: str, plain: bool = False) -> torch.Tensor:
    """Of one step's loss, at θ0 + direction."""
    with matmul_precision(precision):
        return _loss_gradient(b, mode, device, precision, plain)


def _loss_gradient(b: Bench, mode: str, device: str, precision: str, plain: bool) -> torch.Tensor:
    tuned = tuning(b, mode, precision, 4, device=device)
    if plain:
        plainly(tuned)
    with torch.no_grad():
        for name, parameter in tuned.encoder.named_parameters():
            if name in b.direction:
                parameter.add_(b.direction[name].to(device))
    loss = F.cross_entropy(tuned.classifier(b.images(4).to(device)), torch.arange(4, device=device))
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, tuned.trained)])


def agreement(b: Bench, numbers: Numbers) -> None:
    """Relative distances: the device's numbers from the CPU's, precisions from float64, linear ways from each other."""
    with b.suite():
        here, there = b.frozen, copy.deepcopy(b.frozen).cpu()
        images, head = b.images(4), b.head()
        cpu = {name: tau.cpu() for name, tau in b.direction.items()}
        logits, slopes = {}, {}
        exact = [t.double() for t in cpu.values()]
        with torch.no_grad():
            wide = copy.deepcopy(there).double()
            f0, slopes["exact"] = forward_and_jvp(wide, {}, dict(zip(cpu, exact)), images.cpu().double())
            logits["exact"] = copy.deepcopy(head).cpu().double()(f0)
            for precision in ("fp32", "tf32"):
                with matmul_precision(precision):
                    logits[precision] = head(here(images))
                    slopes[precision] = forward_and_jvp(here, {}, b.direction, images)[1]
            logits["CPU"] = copy.deepcopy(head).cpu()(there(images.cpu()))
            slopes["CPU"] = forward_and_jvp(there, {}, cpu, images.cpu())[1]
        for what, values in (("logits", logits), ("J tau", slopes)):
            note(numbers, f"{what}, fp32 here against the CPU's", far(values["fp32"], values["CPU"]))
            for way in ("fp32", "tf32", "CPU"):
                note(numbers, f"{what}, {way} against float64", far(values[way], values["exact"]))
        for mode in ("standard", "linear"):
            ours = loss_gradient(b, mode, b.device, "fp32")
            note(
                numbers,
                f"{mode} gradient, fp32 here against the CPU's",
                far(ours, loss_gradient(b, mode, "cpu", "fp32")),
            )
            note(numbers, f"{mode} gradient, tf32 against fp32", far(loss_gradient(b, mode, b.device, "tf32"), ours))
            if mode == "linear":
                plain = loss_gradient(b, mode, b.device, "fp32", plain=True)
                note(numbers, "linear gradient, ours against the plain way's, fp32", far(ours, plain))
        merges_agree(b, numbers, there)


def merges_agree(b: Bench, numbers: Numbers, encoder: ImageEncoder) -> None:
    """One method of each kind of decomposition, on the matrices of one block whose inputs are as wide as the tower."""
    load_methods()
    block = re.compile(r".*blocks\.0\.(attn\.in_proj_weight|attn\.out_proj\.weight|mlp\.c_fc\.weight)")

    def merged(name: str, problem: Problem, **options: Any) -> dict[str, torch.Tensor]:
        merge = METHODS[name](**options).merge(problem)
        return merge.vector(problem.tasks[0], merge.settings[0]).vector

    wanted = lambda name: bool(block.fullmatch(name))  # noqa: E731
    for name in ("tsv_m", "iso_c", "wudi"):
        row = f"{name}, weights here against weights on the CPU"
        try:
            note(numbers, row, apart(merged(name, b.problem(wanted, b.device)), merged(name, b.problem(wanted))))
        except RuntimeError as error:  # a method that sums on the CPU, whatever its weights are on
            note(numbers, row, f"takes weights on the CPU alone: {str(error).splitlines()[0][:120]}")
    options = dict(images=b.sizes.gram_images // 8, batch_size=16)
    own, cpu = (
        merged("regmean", b.problem(wanted, images=images), **options)
        for images in (b.unlabelled(b.frozen, b.device), b.unlabelled(encoder, "cpu"))
    )
    note(numbers, "regmean, forward passes here against the CPU's", apart(own, cpu))
    x = b.images(4).reshape(4, -1, 768)
    grams = [Moments(), Moments()]
    for moments, rows in zip(grams, (x, x.cpu())):
        moments.add(rows)
    note(numbers, "Gram matrix of the same inputs, here against the CPU's", far(*(m.mean("xx") for m in grams)))
