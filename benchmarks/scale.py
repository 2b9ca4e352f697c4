"""What a large study costs: hours, memory, disk and network on one GPU and on 64. Prints the tables of docs/scale.md.

    python -m benchmarks.scale

All of it is arithmetic on RATES, each with where it comes from: put your own in their place. Counts of images and
epochs are those of the registry, the grid of jobs is that of docs/scale.sbatch.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from src.datasets import registry
from src.datasets.base import validation_indices

MODEL, TASKS, SEEDS, GPUS = "ViT-L-14", 20, 3, 64
MODES = ("standard", "linear", "attention", "lora", "sam")
TANGENT = ("linear",)
ADAPTING = (
    "adamerging",
    "adamerging_pp",
    "concrete_task_arithmetic",
    "concrete_layer_wise_adamerging",
    "surgery",
    "atlas",
)
METHODS = 30  # with those that adapt
POINTS, ALPHAS, TESTED = 21, 10, 3  # coefficients of addition and negation, of a merge, and of either on test images


@dataclass(frozen=True)
class Rate:
    """source: "measured", on the GPU of benchmarks/results/accelerator.json; "derived" from such; or "assumed"."""

    value: float
    unit: str
    source: str


RATES: Mapping[str, Rate] = {
    "fine-tuning, standard": Rate(64 / 0.526, "images/s", "measured: a batch of 64 in TF32 takes 526 ms"),
    "fine-tuning, linear": Rate(64 / 0.845, "images/s", "measured: a batch of 64 in TF32 takes 845 ms"),
    "fine-tuning, attention": Rate(64 / 0.526 * 47.1 / 35.8, "images/s", "derived: ViT-B-32's ratio to standard"),
    "fine-tuning, lora": Rate(64 / 0.526 * 47.1 / 32.4, "images/s", "derived: ViT-B-32's ratio to standard"),
    "fine-tuning, sam": Rate(64 / 0.526 * 47.1 / 98.1, "images/s", "derived: ViT-B-32's ratio to standard"),
    "forward and backward": Rate(128 / 0.65, "images/s", "measured: 128 images in TF32 take 0.65 s"),
    "forward": Rate(3 * 128 / 0.65 * 3496 / 8100, "images/s", "derived: a third of the former, in fp32 as ViT-B-32"),
    "forward with a tangent": Rate(
        3 * 128 / 0.65 * 1355 / 8100, "images/s", "derived: the same, as ViT-B-32's linear model"
    ),
    "merging weights": Rate(0.2, "hours", "assumed: the mean of a method; spectral ones take most"),
    "a checkpoint": Rate(1.37, "GB", "derived: 343 M numbers in fp32"),
    "a task vector": Rate(1.216, "GB", "derived: 304 M numbers in fp32"),
    "fine-tuning, standard: memory": Rate(39.8, "GB", "measured, batch 64"),
    "fine-tuning, linear: memory": Rate(76.5, "GB", "measured, batch 64, before tangents were freed"),
    "a pass of 32 images: memory": Rate(18.6, "GB", "measured, forward and backward"),
    "a pass of 128 images: memory": Rate(70.7, "GB", "measured, forward and backward"),
    "a decoded image": Rate(147 / 1024**2, "GB", "derived: 224 x 224 x 3 bytes"),
    "the mirrors of 20 data sets": Rate(35, "GB", "docs/vision.md"),
    "the mirror of ImageNet": Rate(150, "GB", "docs/vision.md"),
}


@dataclass(frozen=True)
class Images:
    """Of a data set by split; seen: while it is fine-tuned on."""

    train: int
    val: int
    test: int
    seen: int = 0

    @classmethod
    def of(cls, name: str) -> "Images":
        counts = {part: int(np.sum(count)) for part, count in registry.FACTS[name].counts.items()}
        val = counts.get("val") or len(validation_indices(counts["train"])[1])
        train = counts["train"] - (0 if "val" in counts else val)
        return cls(train, val, counts["test"], train * (registry.get(name).epochs or 0))


@dataclass(frozen=True)
class Stage:
    """Jobs that need nothing of each other. hours: of each, on a GPU. reads: GB of checkpoints of each."""

    name: str
    hours: list[float] = field(repr=False)
    reads: float = 0.0

    @property
    def total(self) -> float:
        return sum(self.hours)

    @property
    def on_all(self) -> float:
        """Hours on all GPUs: the longest job first, each to the GPU that is free first."""
        free = [0.0] * GPUS
        for hours in sorted(self.hours, reverse=True):
            free.sort()
            free[0] += hours
        return max(free)


def rate(name: str) -> float:
    return RATES[name].value


def scored(images: float, mode: str, points: int = 1) -> float:
    """Hours to score a line of coefficients: a tangent model takes them all from one pass."""
    if mode in TANGENT:
        return images / rate("forward with a tangent") / 3600
    return images * points / rate("forward") / 3600


def stages() -> list[Stage]:
    """Those of docs/scale.sbatch."""
    suite = registry.suite("vision")
    of_task = [Images.of(name) for name in suite.tasks[:TASKS]]
    control = Images.of(suite.control)
    seen = [images.seen for images in of_task]
    val, test = sum(images.val for images in of_task), sum(images.test for images in of_task)
    on_control = TASKS * (control.val + control.test)
    vectors = (TASKS + 1) * rate("a checkpoint")
    tuning = [n / rate(f"fine-tuning, {mode}") / 3600 for mode in MODES for n in seen]
    single = [scored(val + test + control.val + control.test, "none")]
    single += [scored(val + test + on_control, mode) for mode in MODES]
    added = [scored(val, mode, POINTS) + scored(test, mode, 2) for mode in MODES]
    negated = [
        scored(val + TASKS * control.val, mode, POINTS) + scored(test + TASKS * control.test, mode) for mode in MODES
    ]
    merged = [
        rate("merging weights") + scored(val, mode, ALPHAS) + scored(test, mode, TESTED)
        for mode in MODES
        for _ in range(METHODS - len(ADAPTING))
    ]
    learned = [adapting(name, mode) + scored(val, mode) + scored(test, mode) for mode in MODES for name in ADAPTING]
    return [
        Stage("fine-tuning", SEEDS * tuning, rate("a checkpoint")),
        Stage("single tasks and control", SEEDS * single, vectors),
        Stage("addition and negation", SEEDS * (added + negated), vectors),
        Stage("merging", SEEDS * merged, vectors),
        Stage("methods that adapt", SEEDS * learned, vectors),
    ]


def adapting(method: str, mode: str) -> float:
    """Hours of the published schedule: steps of 16 images a task, in the one or two batches of its paper."""
    slower = rate("fine-tuning, standard") / rate("fine-tuning, linear") if mode in TANGENT else 1
    steps = {"concrete_task_arithmetic": 2000, "concrete_layer_wise_adamerging": 3000, "surgery": 1000}.get(method, 500)
    batches = 2 if method.startswith("adamerging") else 1
    return slower * steps * batches * TASKS * 16 / rate("forward and backward") / 3600


def tables() -> str:
    """The tables of docs/scale.md."""
    of_stage = stages()
    lines = [f"| stage | jobs | hours on 1 GPU | hours on {GPUS} | longest job, hours | read, TB |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for s in of_stage:
        read = len(s.hours) * s.reads / 1000
        lines.append(
            f"| {s.name} | {len(s.hours)} | {s.total:,.0f} | {s.on_all:,.1f} | {max(s.hours):.1f} | {read:.1f} |"
        )
    total, on_all = sum(s.total for s in of_stage), sum(s.on_all for s in of_stage)
    jobs, read = sum(len(s.hours) for s in of_stage), sum(len(s.hours) * s.reads for s in of_stage)
    lines.append(f"| all | {jobs} | {total:,.0f} | {on_all:,.1f} | | {read / 1000:.1f} |")
    lines += ["", "| what | GB |", "| --- | ---: |"]
    lines += [f"| {what} | {gigabytes:,.3g} |" for what, gigabytes in sizes(read / on_all / 3600).items()]
    lines += ["", "| rate | | from |", "| --- | ---: | --- |"]
    lines += [f"| {name} | {one.value:,.3g} {one.unit} | {one.source} |" for name, one in RATES.items()]
    return "\n".join(lines) + "\n"


def sizes(read_per_second: float) -> dict[str, float]:
    suite = registry.suite("vision")
    every = [Images.of(name) for name in (*suite.tasks[:TASKS], suite.control)]
    evaluated = sum(images.val + images.test for images in every)
    vectors = TASKS * rate("a task vector")
    return {
        "disk: checkpoints of all tasks, modes and seeds": TASKS * len(MODES) * SEEDS * rate("a checkpoint"),
        "disk: mirrors, with the Arrow copy of each": 2
        * (rate("the mirrors of 20 data sets") + rate("the mirror of ImageNet")),
        "disk: decoded evaluation images": evaluated * rate("a decoded image"),
        f"disk: states of {GPUS} fine-tunings at once": GPUS * 3 * rate("a task vector"),
        "a GPU's memory: fine-tuning, standard, batch 64": rate("fine-tuning, standard: memory"),
        "a GPU's memory: fine-tuning, linear, batch 64": rate("fine-tuning, linear: memory"),
        "a GPU's memory: AdaMerging, 20 tasks, pass_size=32": vectors + rate("a pass of 32 images: memory"),
        "a GPU's memory: AdaMerging, 20 tasks, pass_size=128": vectors + rate("a pass of 128 images: memory"),
        "RAM of a merge that holds every vector (RegMean, WUDI)": vectors,
        "network: checkpoints a second, on average": read_per_second,
    }


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    print(tables(), end="")


if __name__ == "__main__":
    main()
