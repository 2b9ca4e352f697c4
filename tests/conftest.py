"""What several test files share: the mini suite's drawn images, and arguments as the scripts parse them."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from src import args as arguments
from src import store
from src.datasets.mini import draw

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)
settings.register_profile("suite", deadline=None)  # no test depends on how busy the machine is
settings.load_profile("suite")


@pytest.fixture(scope="session")
def mini_cache() -> Path:
    """The project's own cache: seed 0 is drawn at the first test that needs it."""
    folder = ROOT / "cache"
    draw.cached(folder, seed=0)
    return folder


@pytest.fixture
def parsed(tmp_path, mini_cache):
    """parsed("--tasks", "signs", ...) -> complete arguments of a mini run, seed 0, that writes under tmp_path."""

    def make(*flags: str, training: bool = False):
        parser = arguments.base_parser("", ("none", "standard", "linear", "posthoc"))
        arguments.add_search(parser)
        if training:
            arguments.add_training(parser)
        places = ("--seed=0", f"--save={tmp_path}/checkpoints", f"--results={tmp_path}/results", "--jobs=1")
        return arguments.parse(parser, [*places, f"--cache-dir={mini_cache}", "--device=cpu", *flags])

    yield make
    store._encoder.cache_clear()
