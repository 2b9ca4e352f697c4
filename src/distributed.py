"""One script for one process, for `--world-size N` processes of its own, and under torchrun."""

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


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


def under_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(worker: Callable, args) -> None:
    """Run `worker(args, world)` in every process: here, in torchrun's processes, or in `args.world_size` spawned ones.

    Raises ValueError where there are fewer devices than processes; when a process dies the others are ended and the
    error names its rank.
    """
    if under_torchrun():
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        _join(worker, args, rank, size, int(os.environ.get("LOCAL_RANK", rank)), "env://")
        return
    check_devices(args)
    if args.world_size == 1:
        worker(args, World(device=args.device))
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "rendezvous").as_uri()  # a file: no port to clash with another job's
        mp.spawn(_spawned, (worker, args, meeting), nprocs=args.world_size)


def check_devices(args) -> None:
    """Raise ValueError when `--world-size` asks for more processes than there are devices (CPU: cores)."""
    if args.world_size < 1:
        raise ValueError(f"--world-size: expected at least 1, found {args.world_size}")
    on_gpu = torch.device(args.device).type == "cuda"
    there = torch.cuda.device_count() if on_gpu else os.cpu_count()
    if args.world_size > there:
        kind = "GPUs" if on_gpu else "CPU cores"
        raise ValueError(f"--world-size: expected at most the {there} {kind} of this machine, found {args.world_size}")


def _spawned(rank: int, worker: Callable, args, meeting: str) -> None:
    _join(worker, args, rank, args.world_size, rank, meeting)


def _join(worker: Callable, args, rank: int, size: int, local_rank: int, meeting: str) -> None:
    on_gpu = torch.device(args.device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(local_rank)
    else:
        torch.set_num_threads(max(1, os.cpu_count() // size))
    dist.init_process_group("nccl" if on_gpu else "gloo", init_method=meeting, rank=rank, world_size=size)
    try:
        worker(args, World(rank, size, f"cuda:{local_rank}" if on_gpu else "cpu"))
    except Exception as error:
        # The others die of the broken connection, and one of their errors may be the one that is reported.
        print(f"rank {rank} stopped: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise
    finally:
        dist.destroy_process_group()
