"""A pass and a training step whose last block is computed for the class token alone, beside those of the whole block.

    python -m benchmarks class_token
    python -m benchmarks class_token --batch-size 64 --rounds 30 --threads 2

By turns in one run, of the standard and of the linear model: features without a graph, and a training step (forward,
loss, backward, clipping, AdamW). First the features and the gradients are compared. Tells the median CPU time, and how
many times that of the whole block in the same round it is: the median over rounds, and the quartiles.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks import measure
from benchmarks.linear_step import CLOSE, Stepper, asked, gradient, move_away
from src.linearize import LinearizedImageEncoder
from src.modeling import ImageEncoder, all_tokens


def main(argv: Sequence[str] | None = None) -> None:
    started = time.time()
    run, options, head = asked(__doc__, argv, batch_size=100, rounds=20)
    told: dict[str, Any] = {}
    for mode, encoder in {"standard": ImageEncoder(run), "linear": LinearizedImageEncoder(run)}.items():
        images = torch.randn(options["batch_size"], 3, encoder.image_size, encoder.image_size)
        labels = torch.randint(head.out_features, (options["batch_size"],))
        move_away(encoder)
        ways = {
            "a pass": torch.no_grad()(partial(encoder, images)),
            "a step": partial(Stepper(encoder, head), images, labels),
        }
        answers = {"a pass": ways["a pass"], "a step": partial(gradient, encoder, head, images, labels)}
        for name, way in ways.items():
            ours, whole = _both(answers[name], encoder)
            difference = float((ours() - (expected := whole())).norm() / expected.norm())
            if difference > CLOSE:
                raise SystemExit(f"{mode}, {name}: answers differ by {difference:.1e}; no ratio is told")
            ours, whole = _both(way, encoder)
            seconds = measure.by_turns({"ours": ours, "whole": whole}, options["rounds"], warm=3)
            row = measure.compared(seconds, "whole")["ours"]
            told[f"{mode}, {name}"] = row | {"differ by": difference}
            ratio = f"{measure.times(row)} x the whole block's"
            print(f"{mode}, {name}: {1000 * row['seconds']:.1f} ms of CPU time, {ratio}; differ by {difference:.1e}")
    measure.write(options["output"], {"passes": told}, options, started)


def _both(way: Callable[[], Any], encoder: nn.Module) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The way as it is, and with the last block whole."""

    def call(whole: bool) -> Any:
        with all_tokens(encoder) if whole else nullcontext():
            return way()

    return partial(call, False), partial(call, True)


if __name__ == "__main__":
    main()
