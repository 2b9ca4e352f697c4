"""Programs in processes of their own that need not import PyTorch and open_clip again, which takes seconds of each.

A child is forked from the test's process, and runs the program as the interpreter would: as `__main__`, with its
arguments, environment and folder, files in the place of its terminal, and the project's caches empty. What the test has
patched is patched there too, and what modules read as they were imported is as they read it here. Programs with worker
processes start those as ever, unless `workers` forks them too; test_scripts.py and test_processes.py start some
programs, and their workers, by the interpreter.

What is forked computes with one thread, as the tests do (conftest.py): the threads of a process do not follow it. It
writes no warning of Python's, for pytest keeps those.
"""

import contextlib
import ctypes
import functools
import multiprocessing.util
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

import pytest
import torch
from joblib.externals.loky import reusable_executor
from joblib.externals.loky.backend import fork_exec
from torch.distributed import TCPStore

from src.runtime.paths import ROOT

GRACE = 10  # tenths of a second
NEW_USER, NEW_MOUNTS = 0x10000000, 0x20000  # of Linux's unshare(2)


class Forked:
    """A started program. stdout, stderr: what it has written until now."""

    def __init__(
        self,
        command: tuple[str, ...],
        environment: Mapping[str, str],
        folder: Path,
        session: bool = False,
        before: Callable[[], object] | None = None,
        terminal: tuple[IO[str], IO[str]] | None = None,
    ):
        self.command, self.returncode = command, None
        self._out, self._err = terminal or (tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+"))
        _require_one_thread()
        if (pid := os.fork()) == 0:
            status = 70  # of an error in the lines below
            try:
                if session:
                    os.setsid()
                status = _program(command, environment, folder, (self._out, self._err), before)
            finally:
                os._exit(status)
        self.pid = pid

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing outlives the test."""
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)
            self.wait()

    @property
    def stdout(self) -> str:
        return _text(self._out)

    @property
    def stderr(self) -> str:
        return _text(self._err)

    def poll(self) -> int | None:
        """The exit status as `subprocess` has it, negative for a signal; None while it runs."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self) -> int:
        try:
            while self.poll() is None:  # pytest's own limit ends what is in vain
                time.sleep(0.01)
        finally:
            if self.returncode is None:
                self.send_signal(signal.SIGKILL)
                os.waitpid(self.pid, 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:  # else its number may be another's
            os.kill(self.pid, number)

    def completed(self) -> subprocess.CompletedProcess:
        """Its end, as `subprocess.run` gives it."""
        return subprocess.CompletedProcess(self.command, self.wait(), self.stdout, self.stderr)


def start(
    *command: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    session: bool = False,
    before: Callable[[], object] | None = None,
) -> Forked:
    """`python *command`: a script of the project by its name or path, or `-m MODULE`, or `-c CODE`, and arguments.

    session: whether it leads one of its own, of all processes that it starts. before: called there before the program.
    """
    import open_clip  # noqa: F401  # here, and in no module of `make check`: what a child imports is for it alone

    sys.stdout.flush()
    sys.stderr.flush()
    return Forked(tuple(map(str, command)), os.environ if env is None else env, cwd, session, before)


def run(
    *command: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    before: Callable[[], object] | None = None,
) -> subprocess.CompletedProcess:
    """The same, at its end."""
    return start(*command, env=env, cwd=cwd, before=before).completed()


def small_shm(size: str) -> None:
    """Give this process, which has one thread, and those that it starts a /dev/shm of their own.

    Raises OSError where the system does not let a user mount, and CalledProcessError where `mount` fails.
    """
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_USER | NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"], check=True)


def few_files(number: int) -> None:
    """As `ulimit -n` does: this process, and those that it starts, may have so many files open beside what is open."""
    number += len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))


def torchrun(*command: str | Path, processes: int = 2) -> subprocess.CompletedProcess:
    """`torchrun --standalone --nproc-per-node=2 *command`: a rank that fails ends the others. Gives what all wrote."""
    # As torchrun does, this process has the store at which the ranks meet, so that it outlives the first of them.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_RUN_ID": "none"}
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    with contextlib.ExitStack() as stack:
        of_rank = [{"RANK": rank, "LOCAL_RANK": rank} for rank in map(str, range(processes))]
        ranks = [stack.enter_context(start(*command, env=os.environ | shared | own)) for own in of_rank]
        while any(one.poll() is None for one in ranks) and not any(one.poll() for one in ranks):
            time.sleep(0.1)
        failed = next((status for one in ranks if (status := one.poll())), 0)
        for _ in range(GRACE):  # ranks that lost one end by themselves, on a busy machine later than torchrun waits
            if all(one.poll() is not None for one in ranks):
                break
            time.sleep(0.1)
        for one in ranks:
            if one.poll() is None:
                one.send_signal(signal.SIGTERM)
            one.wait()
    written = ("".join(getattr(one, stream) for one in ranks) for stream in ("stdout", "stderr"))
    return subprocess.CompletedProcess(ranks[0].command, failed, *written)


@contextlib.contextmanager
def ranks() -> Iterator[None]:
    """`launch` forks the processes that it starts, here and in programs that are forked meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        forking = functools.partial(torch.multiprocessing.start_processes, start_method="fork")
        patch.setattr(torch.multiprocessing, "spawn", forking)
        yield


@contextlib.contextmanager
def workers() -> Iterator[None]:
    """`map_tasks` forks the workers that it starts, here and in programs that are forked meanwhile.

    What loky would start the interpreter for is done in the fork: all comes through its pipes. Variables that libraries
    read as they are imported, such as OMP_NUM_THREADS, are those of this process.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fork_exec, "fork_exec", functools.partial(_worker, fork_exec.fork_exec))
        _end_workers()  # or those that are there would do the work
        try:
            yield
        finally:
            _end_workers()


@contextlib.contextmanager
def jobs() -> Iterator[None]:
    """submitit's local launcher forks its controllers and jobs, in programs that are forked meanwhile."""
    from submitit.local import local

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "subprocess", types.SimpleNamespace(Popen=_job))
        yield


def _job(command: list[str], *, env: Mapping[str, str], stdout=None, stderr=None, **_: object) -> Forked:
    """In the place of `subprocess.Popen`, as submitit calls it."""
    program = tuple(command[command.index("-m") :])
    return Forked(program, env, Path.cwd(), terminal=(stdout, stderr) if stdout else None)


def _end_workers() -> None:
    if reusable_executor._executor:
        reusable_executor._executor.shutdown(wait=True)


def _worker(by_exec: Callable[..., int], command: list[str], keep: list[int], env: Mapping[str, str] | None) -> int:
    """loky's `fork_exec`: the process's id."""
    _, kind, *rest = command
    if kind != "-m":  # its tracker of semaphores
        return by_exec(command, keep, env=env)
    _require_one_thread()
    if pid := os.fork():
        return pid
    status = 70
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in map(int, os.listdir("/proc/self/fd")):  # which exec would close
            if descriptor > 2 and descriptor not in keep:
                os.dup2(nowhere, descriptor)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # not the test's own
        os.environ.update(env or {})
        _be_its_own()
        sys.argv = rest
        status = _status(lambda: runpy.run_module(rest[0], run_name="__main__", alter_sys=True))
    finally:
        os._exit(status)


def _text(file: IO[str]) -> str:
    file.flush()
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()


def _program(
    command: tuple[str, ...],
    environment: Mapping[str, str],
    folder: Path,
    terminal: tuple[IO[str], IO[str]],
    before: Callable[[], object] | None,
) -> int:
    """Of the child: the program, and its exit status."""
    for descriptor, file in enumerate(terminal, start=1):
        os.dup2(file.fileno(), descriptor)
    sys.stdout, sys.stderr = (open(descriptor, "w", buffering=1, closefd=False) for descriptor in (1, 2))
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _be_its_own()
    os.chdir(folder)
    changed = {name: value for name, value in environment.items() if os.environ.get(name) != value}
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(changed)
    if before and (status := _status(before)):
        return status
    status = _status(_main(command))
    _end_workers()  # as the interpreter does at its end, with what they share
    multiprocessing.util._exit_function()
    return status


def _require_one_thread() -> None:
    if (threads := torch.get_num_threads()) > 1:
        raise RuntimeError(f"expected one thread, of which a fork has its own, found {threads}: it would wait for them")


def _be_its_own() -> None:
    """Of a child: it has neither what functions of the project have cached nor the processes of the one it is of."""
    reusable_executor._executor = None
    multiprocessing.process._children.clear()
    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "src"]:
        for value in vars(module).values():
            if clear := getattr(value, "cache_clear", None):
                clear()


def _main(command: tuple[str, ...]) -> Callable[[], object]:
    kind, *rest = command
    if kind == "-m":
        sys.argv, sys.path[:0] = rest, [os.getcwd()]
        return lambda: runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    if kind == "-c":
        sys.argv, sys.path[:0] = ["-c", *rest[1:]], [""]
        program = sys.modules["__main__"] = types.ModuleType("__main__")  # which workers import anew if it has a file
        return lambda: exec(compile(rest[0], "<string>", "exec"), vars(program))
    script = str(ROOT / kind)
    sys.argv, sys.path[:0] = [script, *rest], [os.path.dirname(script)]
    return lambda: runpy.run_path(script, run_name="__main__")


def _status(main: Callable[[], object]) -> int:
    try:
        main()
        status = 0
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            print(ended.code, file=sys.stderr)
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status
