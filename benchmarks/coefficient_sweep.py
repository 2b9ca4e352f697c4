"""The search for a coefficient: one pass for all of them, against the published loop (a full pass for each).

    python -m benchmarks coefficient_sweep
    python -m benchmarks coefficient_sweep --n-eval-points 41 --rounds 3

By turns in one run, on one task's validation images: (linear) one coefficient, all of them from one jvp, and one
evaluation of the linearized model per coefficient; (standard) all of them with each image decoded once, and one
evaluation per coefficient that decodes the images again. First the accuracies of both ways are compared. Ratios are
medians over rounds with their quartiles, of CPU time.
"""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from benchmarks import measure
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


def swept(run: Run, direction: Mapping[str, torch.Tensor], points: Sequence[float], tangent: bool) -> list[float]:
    """The same by the suite's own way."""
    return list(score(run, TASK, SPLIT, Line(direction, tuple(points)), tangent).accuracy)


def main(argv: Sequence[str] | None = None) -> None:
    started = time.time()
    parser = base_parser(__doc__, modes=None)
    add_search(parser)
    measure.add_output(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    run, options = parse(parser, argv)
    torch.set_num_threads(options["threads"])
    coefs = coefficients(options["n_eval_points"] or run.protocol.n_eval_points)
    encoder = store.encoder(run)
    direction = random_direction(encoder)
    jpegs = Jpegs(data.examples(run, TASK, SPLIT), encoder.image_size)
    answers: dict[str, list[float]] = {}

    def way(name: str, source: Jpegs | None, function: Callable[..., list[float]], *about: Any) -> Callable[[], None]:
        def work() -> None:
            with mock.patch.object(data, "evaluation_pixels", source) if source else nullcontext():
                answers[name] = function(run, direction, *about)

        return work

    ways = {
        "linear, one coefficient": (None, swept, (1.0,), True),
        "linear, one jvp for all": (None, swept, coefs, True),
        "linear, published loop": (None, published_loop, coefs, True),
        "standard, decoded once": (jpegs, swept, coefs, False),
        "standard, published loop": (jpegs, published_loop, coefs, False),
    }
    works = {name: way(name, *about) for name, about in ways.items()}
    for ours in ("linear, one jvp for all", "standard, decoded once"):
        loop = f"{ours.partition(',')[0]}, published loop"
        works[ours](), works[loop]()
        differing = max(abs(a - b) for a, b in zip(answers[ours], answers[loop]))
        one_image = 1 / len(jpegs.files)
        print(f"{ours}: accuracies differ from the loop's by {differing:.4f} ({one_image:.4f} is one image)")
        if differing > 1.5 * one_image:  # an image between two classes may fall to either
            raise SystemExit("they should not: no ratio is told")
    seconds = measure.by_turns(works, options["rounds"])
    for name, values in seconds.items():
        print(f"{name:28s} {np.median(values):8.3f} s of CPU time")
    one, all_, loop, once, again = (seconds[name] for name in ways)
    rows = {
        f"linear: {len(coefs)} coefficients / one": measure.Ratio.of(all_, one),
        "linear: published loop / ours": measure.Ratio.of(loop, all_),
        "standard: published loop / ours": measure.Ratio.of(again, once),
    }
    for name, ratio in rows.items():
        print(f"{name}: {ratio}")
    record = {"ratios": {name: asdict(ratio) for name, ratio in rows.items()}, "seconds": seconds}
    measure.write(options["output"], record | {"images": len(jpegs.files)}, options, started)


if __name__ == "__main__":
    main()
