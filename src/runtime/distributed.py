"""One script for one process, for `--world-size N` processes of its own, and under torchrun.

Under torchrun every rank runs the script (`spmd`). Random draws are functions of seeds, and what ranks compute apart
they exchange, so that they come to the same decisions; rank 0 alone prints and writes.

torch is imported within the functions that need it: flags are parsed, and images drawn, without those 2 seconds.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from src.runtime import signals
from src.runtime.messages import UsageError, UserError

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

Returned = TypeVar("Returned")

# Rank 0 may work alone for hours. A process that dies is noticed by what started it, not by this.
PATIENCE = timedelta(days=1)
IN_STEP = timedelta(minutes=30)  # of processes that step together: what lasts longer is a fault of a machine
TELLING = 60  # seconds in which torchrun ends the other ranks, when the one that tells the error has ended

_alone: ContextVar[bool] = ContextVar("_alone", default=False)
_meeting: dist.Store | None = None  # where torchrun's ranks found each other


@dataclass(frozen=True)
class World:
    """This process among those that share the work."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    group: Any = None  # of torch.distributed; None: the one of all processes, with PATIENCE

    @contextmanager
    def in_step(self) -> Iterator[World]:
        """Within, this process among the same ones, who wait for each other for IN_STEP at most."""
        if self.size == 1:
            yield self
            return
        import torch.distributed as dist

        group = dist.new_group(timeout=IN_STEP)
        yield replace(self, group=group)
        dist.destroy_process_group(group)  # not after an error, as in _joined

    @property
    def is_primary(self) -> bool:
        return self.rank == 0

    def print0(self, line: str) -> None:
        if self.is_primary:
            print(line, flush=True)

    def barrier(self) -> None:
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier(self.group)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process; all have to ask."""
        if self.size == 1:
            return flag
        import torch
        import torch.distributed as dist

        box = torch.tensor([int(flag)], device=self.device)
        dist.all_reduce(box, dist.ReduceOp.MAX, group=self.group)
        return bool(box.item())


def rank() -> int:
    """This process's rank; 0 where there is but one."""
    return sys.modules["torch.distributed"].get_rank() if _in_group() else 0


def is_primary() -> bool:
    """Whether this process prints and writes for all."""
    return rank() == 0


def warn(text: str) -> None:
    """A line on standard error, of rank 0 alone: the other ranks find the same."""
    if is_primary():
        print(text, file=sys.stderr, flush=True)


def world_size() -> int:
    """Among how many processes work is shared out here; 1 within `alone`."""
    return sys.modules["torch.distributed"].get_world_size() if _in_group() and not _alone.get() else 1


def _in_group() -> bool:
    """Whether this process has joined others, for which torch.distributed has been imported."""
    return "torch.distributed" in sys.modules and sys.modules["torch.distributed"].is_initialized()


@contextmanager
def alone() -> Iterator[None]:
    """Within, this rank shares no work and waits for no other."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def gathered(value: Any) -> list[Any]:
    """The picklable `value` of every rank, in order, on every rank."""
    import torch.distributed as dist

    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_primary(function: Callable[[], Returned]) -> Returned:
    """What `function()` returns or raises on rank 0, which alone calls it, on every rank; picklable."""
    if world_size() == 1:
        return function()
    import torch.distributed as dist

    outcome: list[Any] = [None, None]
    if is_primary():
        try:
            with alone():
                outcome[0] = function()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def broadcast(tensor: torch.Tensor) -> None:
    """Give `tensor` the values that it has on rank 0, in place."""
    if world_size() > 1:
        import torch.distributed as dist

        carried = tensor.detach().cpu()  # gloo's, which exchanges what is not training
        dist.broadcast(carried, src=0)
        tensor.detach().copy_(carried)


def cores(shared: bool = True) -> int:
    """CPU cores for this process: those it may use, shared with torchrun's other processes of this machine.

    shared: False while these wait for what this process does.
    """
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        allowed = os.process_cpu_count()
    elif hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count()
    return max(1, (allowed or 1) // (int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if shared else 1))


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


def spmd(main: Callable[..., Returned]) -> Callable[..., Returned]:
    """Decorates a script's `main(argv=None)`: under torchrun every rank runs it, and rank 0 prints."""

    @functools.wraps(main)
    def run(argv=None) -> Returned:
        if not under_torchrun():
            return main(argv)
        with torchrun() as world, open(os.devnull, "w") as nowhere:
            with redirect_stdout(sys.stdout if world.is_primary else nowhere):
                return main(argv)

    return run


def leave_to_the_first() -> None:
    """Before an error is told. Ranks come to most errors together: the first tells it, and torchrun ends the others.

    One that torchrun did not end returns after all, so that no error is lost.
    """
    if not under_torchrun() or _is_first():
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(TELLING)


@functools.cache
def _is_first() -> bool:
    if _meeting is None:  # the ranks have not met: each machine's first
        return os.environ["LOCAL_RANK"] == "0"
    import torch.distributed as dist

    try:
        return _meeting.add("errors told", 1) == 1
    except dist.DistError:  # the rank that kept the store has ended
        return True


def launch(worker: Callable[[World], None], device: str, processes: int = 1) -> None:
    """Run `worker(world)` in every process: here, in torchrun's processes, or in as many spawned ones.

    Raises UsageError where there are fewer devices than processes. When a process dies the others are ended: a
    UserError is raised here as it is, any other error is printed with its rank.
    """
    if under_torchrun():
        with torchrun(device) as world:
            _work(worker, world)
        return
    check_devices(device, processes)
    if processes == 1:
        worker(World(device=device))
        return
    import torch.multiprocessing as mp

    raised = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "rendezvous").as_uri()  # a file: no port to clash with another job's
        try:
            with signals.starting():
                shared = (worker, device, processes, meeting, raised)
                context = mp.spawn(_spawned, shared, nprocs=processes, join=False)
            while not context.join():
                pass
        except (mp.ProcessExitedException, mp.ProcessRaisedException):
            if raised.empty():
                raise
            raise raised.get() from None


def check_devices(device: str, processes: int = 1) -> None:
    """Raise UsageError for more processes on this machine than it has devices (CPU: cores); torchrun's count first."""
    here = int(os.environ["LOCAL_WORLD_SIZE"]) if under_torchrun() else processes
    if here < 1:
        raise UsageError(f"--world-size: expected at least 1, found {here}")
    if under_torchrun() and not _on_gpu(device):
        return  # who starts processes by hand may have fewer cores than processes
    there = _gpus() if _on_gpu(device) else cores()
    if there == 1 and under_torchrun() and "TORCHELASTIC_RUN_ID" not in os.environ:
        return  # not torchrun started them: srun, which may show each process the GPU that is its own
    if here > there:
        kind = "GPUs" if _on_gpu(device) else "CPU cores"
        flag = "--nproc-per-node" if under_torchrun() else "--world-size"
        raise UsageError(f"{flag}: expected at most the {there} {kind} of this machine, found {here}")


def _on_gpu(device: str) -> bool:
    return device.partition(":")[0] == "cuda"


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return tuple(named[: _gpus()]) if any(named) else tuple(map(str, range(_gpus())))


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


@contextmanager
def torchrun(device: str | None = None) -> Iterator[World]:
    """This process among torchrun's: joined to the others, on a device of its own.

    device: what they exchange tensors on; without it they exchange Python objects alone.
    """
    global _meeting
    import torch

    rank, size, local_rank = (int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    own = f"cuda:{local_rank % max(1, _gpus())}"  # srun may show each rank its own GPU alone
    if _gpus():
        torch.cuda.set_device(own)
    torch.set_num_threads(cores())
    own = own if device is not None and _on_gpu(device) else "cpu"
    with _joined(own, "env://", rank, size) as store:
        _meeting = store
        yield World(rank, size, own)


@contextmanager
def _joined(device: str, meeting: str, rank: int, size: int) -> Iterator[dist.Store]:
    import torch
    import torch.distributed as dist

    own = torch.device(device) if _on_gpu(device) else None  # NCCL connects to it at once, and guesses none
    backend = "nccl" if own else "gloo"
    store, rank, size = next(dist.rendezvous(meeting, rank, size, timeout=PATIENCE))
    store.set_timeout(PATIENCE)
    group = dist.PrefixStore("group", store)
    dist.init_process_group(backend, store=group, rank=rank, world_size=size, timeout=PATIENCE, device_id=own)
    yield store
    dist.destroy_process_group()  # not after an error: NCCL would wait for the others, who wait for this process


def _spawned(rank: int, worker: Callable[[World], None], device: str, processes: int, meeting: str, raised) -> None:
    signals.follow(os.getppid())
    import torch

    own = f"cuda:{rank}" if _on_gpu(device) else "cpu"
    if own == "cpu":
        torch.set_num_threads(max(1, cores() // processes))
    else:
        torch.cuda.set_device(own)
    with _joined(own, meeting, rank, processes), signals.caught(signal.SIGTERM):
        try:
            _work(worker, World(rank, processes, own), raised)
        except UserError as error:
            raised.put(error)
            sys.exit(1)
        except signals.Stopped as stopped:
            signals.end_children()
            sys.exit(stopped.status)


def _work(worker: Callable[[World], None], world: World, raised=None) -> None:
    try:
        worker(world)
    except UserError:
        raise
    except Exception as error:
        # The others die of the broken connection; theirs is not the error to tell of.
        if raised is None or raised.empty():
            print(f"rank {world.rank} stopped: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise
