"""Independent pieces of work over the cores of one machine: one single-threaded process for each core.

On a model as small as ViT-Mini, two processes with one thread each do more work than one with two threads. The pool
lives as long as the program, so `reproduce.py`, which calls many scripts, starts its workers once.
"""

import atexit
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import current_process, get_context, parent_process
from multiprocessing.connection import wait

import torch
from tqdm import tqdm


def _prepare_worker() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A program that is killed cannot shut its pool down; its workers would work on, and then wait for ever."""
    wait([parent_process().sentinel])
    os._exit(1)


@cache
def _pool(jobs: int) -> ProcessPoolExecutor:
    # Threads are counted when a library is loaded, before the initializer runs: the environment tells OpenMP early.
    os.environ["OMP_NUM_THREADS"] = "1"
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_prepare_worker)
    atexit.register(pool.shutdown, cancel_futures=True)
    return pool


def line() -> int:
    """The line of the terminal for a progress bar of this process: workers have one each, below the program's own."""
    return current_process()._identity[0] if parent_process() else 0


def each(function: Callable, items: Iterable, jobs: int, desc: str) -> list:
    """[function(item) for each item], in order, under a progress bar; by `jobs` processes where that is more than one.

    With several, `function` and items must be picklable; the first error ends the work and is raised here.
    """
    items = list(items)
    if jobs <= 1 or len(items) <= 1:
        return [function(item) for item in tqdm(items, desc=desc, leave=False, disable=None)]
    futures = [_pool(jobs).submit(function, item) for item in items]
    try:
        return [future.result() for future in tqdm(futures, desc=desc, leave=False, disable=None)]
    except BaseException:
        for future in futures:
            future.cancel()
        raise
