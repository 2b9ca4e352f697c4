"""Problems to adapt to: a tower of 100 weights in float64, its images and heads, Adam by hand, and results on mini."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from src.merging import names
from src.merging.adaptation import Adapting
from src.merging.base import Problem, Progress, Unlabelled
from src.runtime.seeds import event_seed

TASKS = ("a", "b", "c")


class Tower(nn.Module):
    """An image tower with a text-side tensor and an integer buffer, named as open_clip's are."""

    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.visual = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.LayerNorm(6), nn.Linear(6, 5))
        self.model.logit_scale = nn.Parameter(torch.zeros(()))
        self.model.register_buffer("position_ids", torch.arange(3))

    def forward(self, images):
        return self.model.visual(images)


def tower(seed: int = 0) -> Tower:
    torch.manual_seed(seed)
    return Tower().double().eval().requires_grad_(False)


def images(task: str, split: str, batch_size: int, number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(event_seed(task, split, number))
    return torch.randn(batch_size, 4, generator=generator).double()


def head(task: str) -> nn.Module:
    torch.manual_seed(event_seed(task) % 2**31)
    return nn.Linear(5, 3).double().requires_grad_(False)


def problem(encoder=tower, batch=images, progress=Progress(), **fields) -> Problem:
    start = tower().state_dict()
    ends = {}
    for place, task in enumerate(TASKS):
        torch.manual_seed(place + 1)
        ends[task] = {n: w + 0.3 * torch.randn_like(w) if n.startswith("model.visual") else w for n, w in start.items()}
    given = dict(model="tiny", seed=3, images=Unlabelled(encoder, batch, head), progress=progress)
    return Problem(start, ends, **given | fields)


def with_batches(given: Problem, batch) -> Problem:
    return replace(given, images=replace(given.images, batch=batch))


def small(method: type, **options) -> Adapting:
    return method(**dict(batch_size=5, vectors="float64") | options)


def flat(named) -> torch.Tensor:
    return torch.cat([named[name].detach().flatten() for name in sorted(named)])


class Adam:
    """Kingma & Ba, 2015, algorithm 1."""

    def __init__(self, rate: float):
        self.rate, self.t, self.m, self.v = rate, 0, 0.0, 0.0

    def step(self, value: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        self.t += 1
        self.m, self.v = 0.9 * self.m + 0.1 * gradient, 0.999 * self.v + 0.001 * gradient**2
        m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        return (value - self.rate * m / (v.sqrt() + 1e-8)).detach()


class Killed(Exception):
    pass


PAIR = ("digits", "signs")


def result_of(place: list[str], name: str) -> dict:
    folder = next(flag.removeprefix("results=") for flag in place if flag.startswith("results="))
    return json.loads((Path(folder) / "mini/ViT-Mini/seed_0" / f"{name}.json").read_text())


def result_name(method: str, mode: str = "standard", tasks: tuple[str, ...] = PAIR) -> str:
    return f"merging/{names.tasks_name('mini', tasks)}/{mode}-visual/{method}"
