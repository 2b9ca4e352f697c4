"""One script for one process, for `--world-size N` processes of its own, and under torchrun."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Rank 0 may work alone for hours. A process that dies is noticed by what started it, not by this.
PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class World:
    """This process among those that share the work."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def say(self, line: str) -> None:
        if self.leads:
            print(line, flush=True)

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


def cores() -> int:
    """CPU cores for this process: those it may use, shared with torchrun's other processes of this machine."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        allowed = os.process_cpu_count()
    elif hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count()
    return max(1, (allowed or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def under_torchrun() -> bool:
    """Whether torchrun started this process. Ends it where only a part of torchrun's variables is set."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return False
    needed = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in needed if name not in os.environ]:
        raise SystemExit(
            f"error: RANK and WORLD_SIZE are set, but not {', '.join(missing)}: start with torchrun, which sets them "
            "all, or unset RANK"
        )
    return True


def launch(worker: Callable, args, expected: tuple[type[Exception], ...] = ()) -> None:
    """Run `worker(args, world)` in every process: here, in torchrun's processes, or in `args.world_size` spawned ones.

    Raises ValueError where there are fewer devices than processes. When a process dies the others are ended: an error
    of one of the `expected` types is raised here as it is, any other is printed with its rank.
    """
    if under_torchrun():
        with torchrun(args.device) as world:
            _work(worker, args, world, expected)
        return
    check_devices(args)
    if args.world_size == 1:
        worker(args, World(device=args.device))
        return
    raised = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "rendezvous").as_uri()  # a file: no port to clash with another job's
        try:
            mp.spawn(_spawned, (worker, args, meeting, expected, raised), nprocs=args.world_size)
        except (mp.ProcessExitedException, mp.ProcessRaisedException):
            if raised.empty():
                raise
            raise raised.get() from None


def check_devices(args) -> None:
    """Raise ValueError for more processes on this machine than it has devices (CPU: cores)."""
    here = int(os.environ["LOCAL_WORLD_SIZE"]) if under_torchrun() else args.world_size
    if here < 1:
        raise ValueError(f"--world-size: expected at least 1, found {here}")
    on_gpu = torch.device(args.device).type == "cuda"
    if under_torchrun() and not on_gpu:
        return  # who starts processes by hand may have fewer cores than processes
    there = torch.cuda.device_count() if on_gpu else cores()
    if here > there:
        kind = "GPUs" if on_gpu else "CPU cores"
        flag = "--nproc-per-node" if under_torchrun() else "--world-size"
        raise ValueError(f"{flag}: expected at most the {there} {kind} of this machine, found {here}")


@contextmanager
def torchrun(device: str | None = None) -> Iterator[World]:
    """This process among torchrun's: joined to the others, on a device of its own.

    device: what they exchange tensors on; without it they exchange Python objects alone.
    """
    rank, size, local_rank = (int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    torch.set_num_threads(cores())
    on_gpu = device is not None and torch.device(device).type == "cuda"
    with _joined(on_gpu, "env://", rank, size):
        yield World(rank, size, f"cuda:{local_rank}" if on_gpu else "cpu")


@contextmanager
def _joined(on_gpu: bool, meeting: str, rank: int, size: int) -> Iterator[None]:
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=size, timeout=PATIENCE)
    yield
    dist.destroy_process_group()  # not after an error: NCCL would wait for the others, who wait for this process


def _spawned(rank: int, worker: Callable, args, meeting: str, expected, raised) -> None:
    on_gpu = torch.device(args.device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(max(1, cores() // args.world_size))
    with _joined(on_gpu, meeting, rank, args.world_size):
        try:
            _work(worker, args, World(rank, args.world_size, f"cuda:{rank}" if on_gpu else "cpu"), expected, raised)
        except expected as error:
            raised.put(error)
            sys.exit(1)


def _work(worker: Callable, args, world: World, expected, raised=None) -> None:
    try:
        worker(args, world)
    except expected:
        raise
    except Exception as error:
        # The others die of the broken connection; theirs is not the error to tell of.
        if raised is None or raised.empty():
            print(f"rank {world.rank} stopped: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise
