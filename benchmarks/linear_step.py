"""The training step of the linear model beside the standard one and the plain way (jvp, and backward through it).

    python -m benchmarks linear_step
    python -m benchmarks linear_step --batch-size 64 --rounds 30 --threads 2

By turns in one run: forward, loss, backward, clipping, AdamW. First the gradients of the two linear ways are compared.
Tells the median CPU time of a step, and how many times the standard step's of the same round it is: the median over
rounds, and the quartiles. The arithmetic's floor is 5/3.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import measure
from src.args import base_parser, parse
from src.heads import get_classification_head
from src.linearize import LinearizedImageEncoder
from src.modeling import ClassificationHead, ImageEncoder
from src.run import Run

CLOSE = 1e-4  # of the gradients' norm


def gradient(encoder, head, images, labels) -> torch.Tensor:
    """All gradients in one vector (parameters,)."""
    trained = [p for p in encoder.parameters() if p.requires_grad]
    loss = F.cross_entropy(head(encoder(images)), labels)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)])


class Stepper:
    """A step on the images and labels that are set."""

    def __init__(self, encoder, head):
        self.encoder, self.head = encoder, head
        self.trained = [p for p in encoder.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, fused=True)

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.head(self.encoder(images)), labels).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()


def asked(
    doc: str | None, argv: Sequence[str] | None, batch_size: int, rounds: int
) -> tuple[Run, dict[str, Any], ClassificationHead]:
    """The run, the options and the head of a benchmark of passes and steps; its defaults are the numbers."""
    parser = base_parser(doc, modes=None)
    measure.add_output(parser)
    measure.add_steps(parser, batch_size, rounds)
    parser.add_argument("--dataset", default="signs", help="whose head the loss uses")
    run, options = parse(parser, argv)
    torch.set_num_threads(options["threads"])
    return run, options, get_classification_head(run, options["dataset"])


@torch.no_grad()
def move_away(encoder: nn.Module) -> None:
    """Move what is trained away from θ0, as some steps do."""
    for parameter in encoder.parameters():
        parameter.mul_(1.01 if parameter.requires_grad else 1)


def main(argv: Sequence[str] | None = None) -> None:
    started = time.time()
    run, options, head = asked(__doc__, argv, batch_size=32, rounds=40)
    encoders = {
        "standard": ImageEncoder(run),
        "linear": LinearizedImageEncoder(run),
        "linear, plain": LinearizedImageEncoder(run),
    }
    encoders["linear, plain"].fused = False
    side = encoders["standard"].image_size
    images = torch.randn(options["batch_size"], 3, side, side)
    labels = torch.randint(head.out_features, (options["batch_size"],))
    for name in ("linear", "linear, plain"):
        move_away(encoders[name])
    ours, plain = (gradient(encoders[name], head, images, labels) for name in ("linear", "linear, plain"))
    difference = float((ours - plain).norm() / plain.norm())
    print(f"gradients of the two linear ways differ by {difference:.1e} of their norm")
    if difference > CLOSE:
        raise SystemExit("they should not: no ratio is told")
    ways = {name: Stepper(encoder, head) for name, encoder in encoders.items()}
    seconds = measure.by_turns(
        {name: lambda way=way: way(images, labels) for name, way in ways.items()}, options["rounds"], warm=3
    )
    rows = measure.compared(seconds, "standard")
    for name, row in rows.items():
        ratio = f"{measure.times(row)} x the standard step"
        print(f"{name:14s} {1000 * row['seconds']:7.1f} ms of CPU time per step, {ratio}")
    measure.write(options["output"], {"steps": rows, "gradients differ by": difference}, options, started)


if __name__ == "__main__":
    main()
