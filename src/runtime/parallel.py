"""Independent pieces of work: over the cores or the GPUs of one machine, or the processes that torchrun started.

On a model as small as ViT-Mini, two processes with one thread each do more work than one with two threads. On GPUs each
worker has one for itself, or shares it with as few others as there must be. The workers
are loky's, which joblib keeps from one call to the next, so `reproduce.py`, which calls many scripts, starts them once.
What they are sent, and what they give, is pickled by value: no tensor takes a file descriptor or shared memory.
"""

import ctypes
import itertools
import os
import signal
import socket
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

from src.runtime import distributed, signals
from src.runtime.messages import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Of glibc's mallopt(3): a worker keeps this much freed memory, and takes arrays up to this size from it. Else they go
# back to the system, which clears every page when it is needed again: 4 to 7 % of a linear step of ViT-Mini.
MALLOPT = {-1: 1 << 28, -3: 1 << 25}  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD

_worker = False  # whether this process is one of the pool's
_claims: list[socket.socket] = []  # of this worker on its GPU, until it ends


class WorkerKilled(UserError, RuntimeError):
    """A worker process was killed, as the system does where memory runs out."""


def in_worker() -> bool:
    """Whether this process works for `map_tasks` of another, which has the terminal's progress bar."""
    return _worker


def map_tasks(
    function: Callable[[Item], Result], items: Iterable[Item], jobs: int, desc: str, device: str = "cpu"
) -> list[Result]:
    """[function(item) for each item], in order, under a progress bar: by `jobs` processes, or by all ranks of torchrun.

    device: what they compute on. For "cuda" each process has a GPU for which this is the name; others are shared.

    With several, `function`, items and results must be picklable. Under torchrun every rank calls this with the same
    items, does its share of them and gets all results; within an item, a rank is by itself. The first error ends the
    work and is raised here, on every rank. Raises WorkerKilled for a worker that was killed; the next call starts anew.
    """
    items = list(items)
    if distributed.world_size() > 1:
        return _over_ranks(function, items, desc)
    if jobs <= 1 or len(items) <= 1 or _worker:
        return [function(item) for item in tqdm(items, desc=desc, leave=False, disable=True if _worker else None)]
    jobs = min(jobs, len(items))
    results: Generator[Result, None, None] | None = None
    with warnings.catch_warnings():  # joblib's, of the items that it cancels where this is ended
        warnings.filterwarnings("ignore", ".*adjusting the input task iterator", UserWarning)
        try:
            with (
                parallel_config(
                    backend="loky",
                    n_jobs=jobs,
                    inner_max_num_threads=1,
                    initializer=_start_worker,
                    initargs=(os.getpid(), distributed.visible_gpus() if device == "cuda" else ()),
                    max_nbytes=None,  # large arrays too are pickled, not written to files
                    temp_folder=tempfile.gettempdir(),  # else joblib makes one in /dev/shm, though nothing goes there
                ),
                signals.starting(),  # the workers, and the thread of loky that puts others in the place of idle ones
            ):
                results = Parallel(return_as="generator", batch_size=1)(
                    delayed(_call)(function, item) for item in items
                )
            return list(tqdm(results, total=len(items), desc=desc, leave=False, disable=None))
        except BrokenProcessPool as error:
            raise WorkerKilled(
                f"{desc}: expected {jobs} worker processes to finish, found one killed, as the system does where "
                f"memory runs out; finished work is kept: give the same command again, with --jobs={jobs // 2} or fewer"
            ) from error
        finally:
            if results is not None:
                results.close()


def _start_worker(parent: int, gpus: tuple[str, ...] = ()) -> None:
    global _worker
    _worker = True
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for option, size in MALLOPT.items():
            mallopt(option, size)
    if gpus:  # before CUDA looks at what there is
        os.environ["CUDA_VISIBLE_DEVICES"] = _claimed(gpus, parent)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a worker that is ended would leave behind
    signals.follow(parent)


def _claimed(gpus: tuple[str, ...], parent: int) -> str:
    """A GPU that no other worker has, or fewest. The claim is a name of a socket, which goes with the process."""
    for seat in itertools.count():
        for gpu in gpus:
            claim = socket.socket(socket.AF_UNIX)
            try:
                claim.bind(f"\0map_tasks of {parent}: GPU {gpu}, seat {seat}")
            except OSError:
                claim.close()
                continue
            _claims.append(claim)
            return gpu
    raise AssertionError("unreachable: seats have no end")


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    try:
        with signals.caught(signal.SIGTERM):
            try:
                return function(item)
            finally:
                signals.check()
    except signals.Stopped as stopped:
        signals.end_children()
        os._exit(stopped.status)  # loky would take it for the item's error, and go on with the next


def _over_ranks(function: Callable[[Item], Result], items: list[Item], desc: str) -> list[Result]:
    """Round by round, an item for each rank."""
    rank, size = distributed.rank(), distributed.world_size()
    results = []
    for first in tqdm(range(0, len(items), size), desc=desc, leave=False, disable=None if rank == 0 else True):
        dealt = items[first : first + size]
        outcomes = distributed.gathered(_outcome(function, dealt[rank]) if rank < len(dealt) else None)
        for result, error in outcomes[: len(dealt)]:
            if error is not None:
                raise error
            results.append(result)
    return results


def _outcome(function: Callable[[Item], Any], item: Item) -> tuple[Any, Exception | None]:
    """(result, None) or (None, error): all ranks raise it, when all have answered."""
    try:
        with distributed.alone():
            return function(item), None
    except Exception as error:
        error.add_note(f"in rank {distributed.rank()}:\n{traceback.format_exc()}")
        return None, error
