"""What a piece of work costs: seconds, and the memory that it takes beyond what was there."""

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # see proc(5)


class Cost:
    """seconds: wall time. peak_memory: bytes at the highest point above the start; None where the system tells none."""

    seconds: float = 0.0
    peak_memory: int | None = None


@contextmanager
def measured(device: str) -> Iterator[Cost]:
    """Measure what is done in the context, in this process: memory of the accelerator, or of the process on a CPU."""
    cost = Cost()
    started, before = time.perf_counter(), _start(device)
    yield cost
    cost.seconds = time.perf_counter() - started
    peak = _peak(device)
    cost.peak_memory = None if before is None or peak is None else max(0, peak - before)


def _start(device: str) -> int | None:
    """Bytes in use. The peak is counted from here on."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's; else work hides in memory that was freed
        trim(0)
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:  # another system, or a container that does not allow it
        return None
    return _status("VmRSS")


def _peak(device: str) -> int | None:
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(name: str) -> int | None:
    lines = (line.split() for line in STATUS.read_text().splitlines())
    return next((1024 * int(words[1]) for words in lines if words and words[0] == f"{name}:"), None)
