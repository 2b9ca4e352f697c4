"""The training step of the linear model beside the standard one and the plain way (jvp, and backward through it).

    python benchmarks/linear_step.py
    python benchmarks/linear_step.py --batch-size 64 --rounds 30 --threads 2

By turns in one run: forward, loss, backward, clipping, AdamW. Prints the median CPU time of a step (which another
program's load disturbs less than wall time does), its ratio to the standard step, and how far the gradients of the two
linear ways are apart. The arithmetic's floor is 5/3.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.args import base_parser, parse
from src.heads import get_classification_head
from src.linearize import LinearizedImageEncoder
from src.modeling import ImageEncoder


def gradient(encoder, head, images, labels) -> torch.Tensor:
    """All gradients in one vector (parameters,)."""
    trained = [p for p in encoder.parameters() if p.requires_grad]
    loss = F.cross_entropy(head(encoder(images)), labels)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)])


def main() -> None:
    parser = base_parser(__doc__, modes=None)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dataset", default="signs", help="whose head the loss uses")
    run, options = parse(parser)
    torch.set_num_threads(options["threads"])
    torch.manual_seed(run.seed)
    head = get_classification_head(run, options["dataset"])
    encoders = {
        "standard": ImageEncoder(run),
        "linear": LinearizedImageEncoder(run),
        "linear, plain": LinearizedImageEncoder(run),
    }
    encoders["linear, plain"].fused = False
    trained = {name: [p for p in e.parameters() if p.requires_grad] for name, e in encoders.items()}
    optimizers = {name: torch.optim.AdamW(parameters, lr=1e-5) for name, parameters in trained.items()}
    side = encoders["standard"].image_size
    seconds = {name: [] for name in encoders}
    for _ in range(options["rounds"] + 3):
        images = torch.randn(options["batch_size"], 3, side, side)
        labels = torch.randint(head.out_features, (options["batch_size"],))
        for name, encoder in encoders.items():
            start = time.process_time()
            optimizers[name].zero_grad()
            F.cross_entropy(head(encoder(images)), labels).backward()
            torch.nn.utils.clip_grad_norm_(trained[name], 1.0)
            optimizers[name].step()
            seconds[name].append(time.process_time() - start)
    standard = statistics.median(seconds["standard"][3:])
    for name, values in seconds.items():
        median = statistics.median(values[3:])  # the first rounds warm up
        print(f"{name:14s} {1000 * median:7.1f} ms of CPU time per step, {median / standard:.2f} x the standard step")
    encoders["linear, plain"].load_state_dict(encoders["linear"].state_dict())
    ours, plain = (gradient(encoders[name], head, images, labels) for name in ("linear", "linear, plain"))
    print(f"gradients of the two linear ways differ by {(ours - plain).norm() / plain.norm():.1e} of their norm")


if __name__ == "__main__":
    main()
