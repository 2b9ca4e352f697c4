"""Sections of `accelerator`: merging methods, and steps of those that learn."""

import pickle
import re
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import torch

from benchmarks.sections.bench import Bench, Numbers, note
from src import checkpoints
from src.merging.adamerging import AdaMerging
from src.merging.adaptation import MergedModel
from src.merging.base import Drawn, Problem
from src.merging.concrete_mask import ConcreteMask
from src.merging.registry import METHODS, load_methods
from src.runtime.precision import matmul_precision


def merging(b: Bench, numbers: Numbers) -> None:
    """Merging methods on eight task vectors in memory.

    Whole vectors on the CPU, where main.py merges; then those that decompose or sort matrices on one block of the
    tower, with the time of all its blocks by multiplication; then decompositions of weights that lie on the device.
    """
    load_methods()
    began = time.perf_counter()
    problem = b.problem()
    note(numbers, "drawing eight tasks: s", round(time.perf_counter() - began, 1))
    one_block = re.compile(r".*blocks\.0\..*")
    in_block = lambda name: bool(one_block.fullmatch(name))  # noqa: E731
    sizes = {name: tensor.numel() for name, tensor in b.start.items() if name.startswith(checkpoints.VISUAL)}
    blocks = len({m[1] for name in sizes if (m := re.match(r".*blocks\.(\d+)\.", name))})
    times = sum(sizes.values()) / sum(size for name, size in sizes.items() if in_block(name))
    numbers |= {
        "threads": torch.get_num_threads(),
        "blocks": blocks,
        "weights of the tower / of a block": round(times, 2),
    }

    def vectors(name: str, own: Problem, **options: Any) -> list[dict[str, torch.Tensor]]:
        merge = METHODS[name](**options).merge(own)
        first = merge.draw(0) if isinstance(merge, Drawn) else merge
        return [first.vector(own.tasks[0], setting).vector for setting in first.settings[:1]]

    def whole(name: str) -> None:
        seconds = b.once(lambda: vectors(name, problem))
        note(numbers, f"{name}, whole tower: s", round(seconds, 2))

    whole("sum")
    tall(b, problem, numbers)
    plan: list[tuple[str, dict[str, Any], str, str, float]] = [
        ("iso_c", {}, "cpu", "blocks", blocks),
        ("iso_c", {}, b.device, "blocks", blocks),
        ("regmean", {"images": b.sizes.gram_images}, "cpu", "blocks", blocks),
        ("tsv_m", {}, "cpu", "blocks", blocks),
        ("tsv_m", {}, b.device, "blocks", blocks),
        ("breadcrumbs", {}, "cpu", "weights", times),
        ("pcb", {}, "cpu", "weights", times),
        ("wudi", {}, "cpu", "blocks", blocks),
        ("iso_cts", {}, "cpu", "blocks", blocks),
        ("iso_cts", {}, b.device, "blocks", blocks),
        ("wudi", {"solver": "adam", "steps": 10}, "cpu", "blocks", blocks),
    ]
    for name, options, device, unit, factor in plan:
        if device != "cpu" and not b.gpu:
            continue
        own = b.problem(in_block, device)
        steps_told = ""
        if options.get("solver") == "adam":
            factor, steps_told = factor * 300 / options["steps"], f", {options['steps']} of 300 steps"
        seconds = b.once(lambda n=name, p=own, o=options: vectors(n, p, **o))
        row = {"s": round(seconds, 2), f"all {unit}, by multiplication: s": round(seconds * factor, 1)}
        note(numbers, f"{name}{' by Adam' if steps_told else ''}, one block, weights on {device}{steps_told}", row)
    whole("ties")
    whole("dare")


def tall(b: Bench, problem: Problem, numbers: Numbers) -> None:
    """TALL masks as main.py makes them, and what a vector costs to move."""
    began = time.perf_counter()
    merge = METHODS["tall_mask"]().merge(problem)
    vectors = [merge.vector(problem.tasks[0], setting).vector for setting in merge.settings]
    note(numbers, "tall_mask, whole tower: s of the sum and 5 vectors of a task", round(time.perf_counter() - began, 2))
    one = vectors[0]
    numbers["a vector: GB"] = round(sum(t.numel() * 4 for t in one.values()) / 1e9, 3)
    seconds = b.once(lambda: {name: tensor.to(b.device) for name, tensor in one.items()})
    note(numbers, "a vector to the device: s", round(seconds, 3))
    note(numbers, "pickling a vector, as ranks are dealt it: s", round(b.once(lambda: pickle.dumps(one, 5)), 3))


def adaptation(b: Bench, numbers: Numbers) -> None:
    """A step of AdaMerging (layer-wise, original: two batches per task) and one of Concrete task arithmetic."""
    problem, size = b.problem(), b.sizes.adapt_batch
    numbers |= {"tasks": len(problem.tasks), "images of a pass": size * len(problem.tasks)}
    how = dict(blocks=2, calls=max(1, b.sizes.adapt_steps // 2))
    with b.peak() as peak:
        began = time.perf_counter()
        model = MergedModel(problem, AdaMerging(batch_size=size), clamp=True)
        b.wait()
        note(numbers, "task vectors to the device: s", round(time.perf_counter() - began, 2))
    numbers["task vectors: GB"] = peak.get("GB")
    layerwise = model.coefficients("layer").requires_grad_()
    taskwise = model.coefficients("task")
    logits = {n: torch.zeros(s, device=b.device).requires_grad_() for n, s in problem.shapes.items()}
    mask = ConcreteMask(logits, 0.5, seed=0)
    adams = torch.optim.Adam([layerwise], 1e-3), torch.optim.Adam(logits.values(), 1e-3)
    number = count()

    def adamerging() -> None:
        adams[0].zero_grad()
        index = next(number)
        model.backward(layerwise, (2 * index, 2 * index + 1))
        adams[0].step()

    def concrete() -> None:
        adams[1].zero_grad()
        index = next(number)
        model.backward(taskwise, [index], mask.sample(index))
        adams[1].step()

    def merge_alone(lam: torch.Tensor, of: Callable[[str], torch.Tensor | None]) -> None:
        """θ is built, and a gradient is taken back through its formula: the step without images."""
        point = lam.detach().clone().requires_grad_(lam.requires_grad)
        for name in model.taus:
            with torch.no_grad():
                theta = model.start[name] + model.update(name, point, of)
            model.update(name, point, of).backward(theta)

    for precision in ("fp32", "tf32"):
        model.problem = replace(problem, precision=precision)
        for name, work in (("AdaMerging", adamerging), ("Concrete", concrete)):
            with matmul_precision(precision), b.peak() as peak:
                row = b.ms(work, **how)
            note(numbers, f"{name} step, {precision}", row | peak)
    note(numbers, "AdaMerging, the merge alone", b.ms(lambda: merge_alone(layerwise, lambda name: None), **how))
    for x in logits.values():
        x.grad = None
    note(numbers, "Concrete, the merge alone", b.ms(lambda: merge_alone(taskwise, mask.sample(0)), **how))
