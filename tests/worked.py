"""What test_parallel.py gives to workers: every one imports this file, and neither pytest nor the tests."""

import os
import resource
import signal
import time
from pathlib import Path

from src.runtime.distributed import World


def double(number: int) -> int:
    if number < 0:
        raise ValueError("negative")
    return 2 * number


def raise_error(error: Exception) -> None:
    raise error


def state_of_worker(tensors: list) -> tuple[int, int, bool, list]:
    import torch  # here: every worker imports this file, and few of them need it

    return os.getpid(), torch.get_num_threads(), any(tensor.is_shared() for tensor in tensors), tensors


def gpus_of_worker(folder: Path) -> tuple[str, int]:
    """Waits until two workers are at it."""
    (folder / f"{os.getpid()}.pid").touch()
    end = time.monotonic() + 100
    while len(list(folder.glob("*.pid"))) < 2:
        assert time.monotonic() < end, "no other worker has come"
        time.sleep(0.02)
    return os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()


def page_faults(count: int) -> int:
    """Of eight texts of 8 MB that come and go together."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        texts = [b"x" * (8 << 20) for _ in range(8)]
        del texts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def die(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def mask(item: object) -> set[int]:
    return signal.pthread_sigmask(signal.SIG_BLOCK, [])


def write_mask(folder: Path, world: World) -> None:
    (folder / str(world.rank)).write_text(str(sorted(map(int, mask(None)))))
    world.barrier()  # a rank that ended before the other has joined would break its connection
