"""Independent pieces of work, over the cores of one machine or over the processes that torchrun started.

On a model as small as ViT-Mini, two processes with one thread each do more work than one with two threads. The pool
lives as long as the program, so `reproduce.py`, which calls many scripts, starts its workers once.

Under torchrun rank 0 alone runs the program: it decides, prints and writes. The other ranks wait for the work that
`each` deals to them (`shared`), so that no two processes can come to different decisions.
"""

import atexit
import functools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import current_process, get_context, parent_process
from multiprocessing.connection import wait

import torch
import torch.distributed as dist
from tqdm import tqdm

from src.runtime.distributed import torchrun, under_torchrun


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
    """[function(item) for each item], in order, under a progress bar: by all ranks, or by `jobs` processes, if several.

    With several, `function` and items must be picklable; the first error ends the work and is raised here.
    """
    items = list(items)
    if ranks() > 1:
        return _each_by_ranks(function, items, desc)
    if jobs <= 1 or len(items) <= 1:
        return [function(item) for item in tqdm(items, desc=desc, leave=False, disable=None)]
    futures = [_pool(jobs).submit(function, item) for item in items]
    try:
        return [future.result() for future in tqdm(futures, desc=desc, leave=False, disable=None)]
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def ranks() -> int:
    """Among how many processes of torchrun `each` deals the work; 1 without it."""
    return dist.get_world_size() if dist.is_initialized() else 1


def shared(main: Callable) -> Callable:
    """Decorates a script's `main(argv=None)`: under torchrun rank 0 runs it, the others do their share of `each`."""

    @functools.wraps(main)
    def run(argv=None):
        if not under_torchrun():
            return main(argv)
        with torchrun() as world:
            if not world.leads:
                return _serve(world.rank)
            try:
                return main(argv)
            finally:
                _broadcast(None)  # the end of the others' work

    return run


def _serve(rank: int) -> None:
    while (work := _broadcast(None)) is not None:
        dist.gather_object(_outcome(*work, rank))


def _each_by_ranks(function: Callable, items: list, desc: str) -> list:
    """Round by round, an item for each rank. What the items of a round have in common is sent once."""
    size = dist.get_world_size()
    results = []
    for start in tqdm(range(0, len(items), size), desc=desc, leave=False, disable=None):
        dealt = items[start : start + size]
        outcomes: list = [None] * size
        _broadcast((function, dealt))
        dist.gather_object(_outcome(function, dealt, rank=0), outcomes)
        for result, error in outcomes[: len(dealt)]:
            if error is not None:
                raise error
            results.append(result)
    return results


def _broadcast(work: object) -> object:
    """Rank 0's `work`, in every rank."""
    box = [work]
    dist.broadcast_object_list(box)
    return box[0]


def _outcome(function: Callable, dealt: list, rank: int) -> tuple[object, Exception | None]:
    """(result, None) or (None, error) of this rank's item; an error is rank 0's to raise, when all have answered."""
    try:
        return (function(dealt[rank]) if rank < len(dealt) else None), None
    except Exception as error:
        return None, error
