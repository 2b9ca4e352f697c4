"""Sections of `accelerator`: evaluation at one coefficient and at many, and tangent kernels."""

import copy
from functools import partial

import numpy as np

from benchmarks.sections.bench import Bench, Numbers, far, note
from src.analysis import ntk
from src.datasets import loading
from src.evaluation import ORIGIN, Line, score
from src.runtime.precision import matmul_precision


def evaluation(b: Bench, numbers: Numbers) -> None:
    """src.evaluation.score: images/s by batch size, in fp32 and with TF32, and reading without a model."""
    examples = b.pixels(b.sizes.images)
    once = dict(blocks=1, calls=1, warm=1)
    lines = {
        "pre-trained": (ORIGIN, False),
        "standard, one coefficient": (Line(b.direction), False),
        "linear, one coefficient": (Line(b.direction), True),
    }
    with b.suite(examples):
        for precision in ("fp32", "tf32"):
            for size in b.sizes.eval_batches:
                run = b.run(batch_size=size, precision=precision)
                for name, (line, tangent) in lines.items():
                    with matmul_precision(precision), b.peak() as peak:
                        row = b.ms(lambda r=run, x=line, t=tangent: score(r, b.task, "val", x, t), **once)
                    rate = {"images/s": round(1000 * len(examples) / row["ms"])}
                    note(numbers, f"{name}, batch {size}, {precision}", rate | peak)
        run = b.run()
        read = lambda: [len(x) for x, _ in loading.evaluation_batches(run, b.frozen, b.task, "val")]  # noqa: E731
        rate = round(1000 * len(examples) / b.ms(read, **once)["ms"])
        note(numbers, "reading and normalising alone, batch 100: images/s", rate)


def sweep(b: Bench, numbers: Numbers) -> None:
    """Many coefficients: one jvp for all, against a pass for each; and the non-linear sweep, by batch size."""
    examples = b.pixels(b.sizes.sweep_images)
    coefficients = tuple(float(a) for a in np.linspace(0, 1, b.sizes.coefficients))
    numbers |= {"images": len(examples), "coefficients": len(coefficients)}
    with b.suite(examples):

        def seconds(coefs: tuple[float, ...], tangent: bool, warm: int = 1, **fields: int) -> float:
            run = b.run(**fields)
            line = Line(b.direction, coefs)
            return b.rounds(lambda: score(run, b.task, "val", line, tangent), blocks=1, calls=1, warm=warm)[0]

        one, all_ = seconds((1.0,), True), seconds(coefficients, True)
        loop = sum(seconds((alpha,), True, warm=0) for alpha in coefficients)
        note(
            numbers,
            "linear: ms of one, of all by one jvp, of a pass for each",
            [round(1000 * s) for s in (one, all_, loop)],
        )
        numbers["linear: all / one"], numbers["linear: the loop / ours"] = round(all_ / one, 2), round(loop / all_, 2)
        for size in b.sizes.eval_batches:
            once, many = seconds((1.0,), False, batch_size=size), seconds(coefficients, False, 0, batch_size=size)
            note(numbers, f"standard, batch {size}: ms of one, of all", [round(1000 * once), round(1000 * many)])
    weights = dict(b.frozen.named_parameters())
    build = lambda: {n: weights[n] + 0.5 * tau for n, tau in b.direction.items()}  # noqa: E731
    note(numbers, "building the weights of one coefficient", b.ms(build))


def kernel(b: Bench, numbers: Numbers) -> None:
    """The tangent kernel of encoder and head: seconds and peak memory by reduction and images, and the CPU's."""
    encoder, few = b.encoder().eval(), b.images(4)
    with b.suite():
        head = b.head()
    small, large = b.sizes.kernel
    for reduction, images, chunk in (
        ("sum", small, None),
        ("trace", small, None),
        ("sum", large, None),
        ("sum", large, large),
    ):
        work = partial(ntk.tangent_kernel, encoder, head, b.images(images), reduction=reduction, chunk_size=chunk)
        with b.peak() as peak:
            seconds = b.once(work)
        note(numbers, f"{reduction}, {images} images, chunk {chunk or 'by memory'}", {"s": round(seconds, 2)} | peak)
    numbers["outputs of the head"] = head.out_features
    here = ntk.tangent_kernel(encoder, head, few, reduction="sum")
    there = ntk.tangent_kernel(copy.deepcopy(encoder).cpu(), copy.deepcopy(head).cpu(), few.cpu(), reduction="sum")
    note(numbers, "here against the CPU", far(here, there))
