"""The search for a coefficient: one pass for all of them, against the published loop (a full pass for each).

    python benchmarks/coefficient_sweep.py
    python benchmarks/coefficient_sweep.py --n-eval-points 41 --rounds 3

Times, in one run and by turns, on one task's validation images: (linear) one coefficient, all of them from one jvp, and
one evaluation of the linearized model per coefficient; (standard) all of them with each image decoded once, and one
evaluation per coefficient that decodes the images again. Ratios of medians; the accuracies of both ways are compared.
"""

import io
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src import store
from src.args import add_search, base_parser, parse
from src.datasets import loading as data
from src.datasets.base import Pixels
from src.evaluation import Line, score
from src.experiments.addition import coefficients
from src.heads import get_classification_head
from src.linearize import LinearizedImageEncoder
from src.modeling import ImageEncoder
from src.run import Run

TASK, SPLIT = "signs", "val"


class Jpegs:
    """The drawn pictures as photographs come: JPEG files of 224 pixels, all decoded at every call."""

    def __init__(self, pixels: Pixels, side: int):
        self.labels, self.side = pixels.labels, side
        self.files = []
        for picture in pixels.pixels:
            file = io.BytesIO()
            Image.fromarray(picture).resize((224, 224)).save(file, "JPEG", quality=90)
            self.files.append(file.getvalue())

    def __call__(self, *_) -> Pixels:
        decoded = [data.centre_crop(Image.open(io.BytesIO(file)), self.side) for file in self.files]
        return Pixels(np.stack(decoded), self.labels)


def random_direction(encoder) -> dict[str, torch.Tensor]:
    """A direction of 4 % of |θ0|: no fine-tuning is needed to time a sweep along it."""
    generator = torch.Generator().manual_seed(0)
    trained = {n: p for n, p in encoder.named_parameters() if n.startswith("model.visual.")}
    return {
        n: 0.04 * p.norm() / p.numel() ** 0.5 * torch.randn(p.shape, generator=generator) for n, p in trained.items()
    }


@torch.no_grad()
def published_loop(run: Run, direction, coefs, tangent: bool) -> list[float]:
    """Accuracy at each coefficient, every one by loading the weights and reading the images again."""
    encoder = ImageEncoder(run)
    model = LinearizedImageEncoder(run, image_encoder=encoder) if tangent else encoder
    theta0 = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    head = get_classification_head(run, TASK)
    accuracies = []
    for alpha in coefs:
        model.load_state_dict({n: w + alpha * direction[n] if n in direction else w for n, w in theta0.items()})
        batches = data.evaluation_batches(run, encoder, TASK, SPLIT)
        right = [(head(model(images)).argmax(1) == labels) for images, labels in batches]
        accuracies.append(torch.cat(right).float().mean().item())
    return accuracies


def main() -> None:
    parser = base_parser(__doc__, modes=None)
    add_search(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    run, options = parse(parser)
    torch.set_num_threads(options["threads"])
    coefs = coefficients(options["n_eval_points"] or run.protocol.n_eval_points)
    encoder = store.encoder(run)
    direction = random_direction(encoder)
    jpegs = Jpegs(data.examples(run, TASK, SPLIT), encoder.image_size)

    def swept(points, tangent):
        return lambda: score(run, TASK, SPLIT, Line(direction, points), tangent).accuracy

    ways = {
        "linear, one coefficient": (swept((1.0,), True), None),
        "linear, one jvp for all": (swept(coefs, True), None),
        "linear, published loop": (lambda: published_loop(run, direction, coefs, True), None),
        "standard, decoded once": (swept(coefs, False), jpegs),
        "standard, published loop": (lambda: published_loop(run, direction, coefs, False), jpegs),
    }
    seconds, accuracies = {name: [] for name in ways}, {}
    for _ in range(options["rounds"]):
        for name, (way, source) in ways.items():
            with mock.patch.object(data, "evaluation_pixels", source) if source else nullcontext():
                start = time.perf_counter()
                accuracies[name] = way()
                seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in median.items():
        print(f"{name:28s} {value:8.3f} s")
    one, all_, loop, once, again = median.values()
    print(f"linear: {len(coefs)} coefficients cost {all_ / one:.2f} x one; the published loop {loop / all_:.1f} x ours")
    print(f"standard: the published loop costs {again / once:.2f} x ours")
    for ours in ("linear, one jvp for all", "standard, decoded once"):
        loop = f"{ours.partition(',')[0]}, published loop"
        differing = max(abs(a - b) for a, b in zip(accuracies[ours], accuracies[loop]))
        print(f"{ours}: accuracies differ from the loop's by {differing:.4f} ({1 / len(jpegs.files):.4f} is one image)")


if __name__ == "__main__":
    main()
