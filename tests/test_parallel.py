"""Work over the cores: order, errors, killed workers, and what a program leaves behind, killed or not."""

import ast
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import forked
import pytest
from joblib.externals import loky
from worked import die, double, gpus_of_worker, mask, page_faults, raise_error, state_of_worker, write_mask

from src.datasets.examples import BadFile, CorruptImage
from src.run import Run
from src.runtime import distributed, signals
from src.runtime.parallel import WorkerKilled, map_tasks
from src.runtime.paths import ROOT


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_order_and_errors_are_raised_here(jobs):
    assert map_tasks(double, range(5), jobs, "doubling") == [0, 2, 4, 6, 8]
    with pytest.raises(ValueError, match="negative"):
        map_tasks(double, [1, -1, 2], jobs, "doubling")


@pytest.mark.parametrize("error", [BadFile(Path("a"), "b", "c"), CorruptImage.of("a", "b")])
def test_errors_travel_between_processes(error):
    with pytest.raises(type(error), match=str(error)):
        map_tasks(raise_error, [error, error], 2, "raising")


def test_tensors_go_by_value_to_workers_of_one_thread_that_stay(monkeypatch, request):
    """torch.multiprocessing would move those that are sent into shared memory, a file descriptor for each."""
    import torch

    monkeypatch.delenv("OMP_NUM_THREADS")  # as most users start the scripts
    tensors = [torch.full((3,), float(i)) for i in range(2000)]
    found = [map_tasks(state_of_worker, [tensors, tensors], 2, "sending") for _ in range(2)]
    for _, threads, shared, returned in found[0] + found[1]:
        assert threads == 1 and not shared
        assert torch.equal(torch.stack(returned), torch.stack(tensors))
        assert not any(tensor.is_shared() for tensor in (*tensors, *returned))
    first, second = ({pid for pid, *_ in call} for call in found)
    assert os.getpid() not in first and len(first | second) <= 2


@pytest.mark.parametrize(("visible", "gpus"), [(None, "01"), ("5,7,9", "57"), ("GPU-ab", ["GPU-ab"])])
def test_each_worker_has_a_gpu_of_its_own_while_there_are_some(visible, gpus, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "_gpus", lambda: len(gpus))
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with forked.workers():
        found = map_tasks(gpus_of_worker, [tmp_path] * 4, 2, "computing", "cuda")
    assert len({*found}) == 2 and {gpu for gpu, _ in found} == {*gpus}
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible


def test_a_gpu_that_is_named_is_shared(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "_gpus", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    with forked.workers():
        found = map_tasks(gpus_of_worker, [tmp_path] * 2, 2, "computing", "cuda:1")
    assert {gpus for gpus, _ in found} == {"5,7"}


def test_there_are_as_many_jobs_as_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(distributed, "_gpus", lambda: 3)
    assert [Run.of(device=device).jobs for device in ("cuda", "cuda:1", None)] == [3, 1, 3]
    assert Run.of(device="cuda", jobs=1).jobs == 1


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another allocator than glibc's")
def test_workers_keep_the_memory_that_is_given_back():
    once = 8 * 2048  # pages of 4 KB
    assert max(map_tasks(page_faults, [5, 5], 2, "allocating")) < 2 * once


def test_a_killed_worker_is_told_and_the_next_call_works():
    with pytest.raises(WorkerKilled, match="dying: expected 2 worker processes .* found one killed"):
        map_tasks(die, range(4), 2, "dying")
    assert map_tasks(double, range(5), 2, "doubling") == [0, 2, 4, 6, 8]


PROGRAM = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from src.runtime.parallel import map_tasks

def work(seconds):
    Path({folder!r}, f"{{os.getpid()}}.pid").touch()
    while len([*Path({folder!r}).glob("*.pid")]) < 2:  # or one worker does both, before the other has begun
        time.sleep(0.01)
    time.sleep(seconds)

if __name__ == "__main__":
    map_tasks(work, [float(sys.argv[1])] * 2, 2, "working")
"""


@pytest.mark.parametrize("killed", [False, True])
def test_a_program_leaves_nothing_behind(tmp_path, killed):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(root=str(ROOT), folder=str(tmp_path)))
    process = subprocess.Popen([sys.executable, str(program), "500" if killed else "1"])

    def left() -> list[Path]:
        folders = {Path("/dev/shm"), Path(tempfile.gettempdir())}
        return [path for folder in folders for path in folder.glob(f"*[-_]{process.pid}[-_]*")]

    def workers() -> list[int]:
        return [int(file.stem) for file in tmp_path.glob("*.pid")]

    _until(lambda: len(workers()) == 2)
    assert {path.name.partition("-")[0] for path in left()} <= {"sem.loky"}  # and semaphores alone while it works
    if killed:
        process.send_signal(signal.SIGKILL)
    process.wait()
    _until(lambda: not any(_alive(pid) for pid in workers()) and not left())


@pytest.fixture
def fresh_workers() -> Iterator[None]:
    """Workers stay from one call to the next: with the environment and the output of the test that started them."""
    loky.get_reusable_executor().shutdown(wait=True)
    yield
    loky.get_reusable_executor().shutdown(wait=True)


AT_START = """
import os, signal
if os.environ.get("PARENT") not in (None, str(os.getpid())):
    os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.mark.parametrize("kind", ["workers", "ranks"])
def test_a_signal_at_the_very_start_of_a_process_is_its_parents(kind, tmp_path, monkeypatch, capfd, fresh_workers):
    """Every process that is started gets a Ctrl-C in the midst of Python's own imports."""
    (tmp_path / "sitecustomize.py").write_text(AT_START)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PARENT", str(os.getpid()))
    if kind == "workers":
        masks = map_tasks(mask, range(2), 2, "starting")
    else:
        distributed.launch(partial(write_mask, tmp_path), "cpu", 2)
        masks = [ast.literal_eval((tmp_path / name).read_text()) for name in "01"]
    assert all(signal.SIGINT in blocked for blocked in masks) and signal.SIGINT not in mask(None)
    assert capfd.readouterr().err == ""


FIRST = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from src.runtime.parallel import map_tasks
from worked import mask
if __name__ == "__main__":
    print([sorted(map(int, blocked)) for blocked in map_tasks(mask, range(2), 2, "first")])
"""


def test_the_very_first_process_of_a_program_has_its_parents_signals_too(tmp_path):
    """Python's own helper, which its first pool starts, unblocks SIGINT in the process that starts it."""
    program = tmp_path / "program.py"
    program.write_text(FIRST.format(root=str(ROOT), tests=str(ROOT / "tests")))
    ended = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True)
    assert all(signal.SIGINT in blocked for blocked in ast.literal_eval(ended.stdout.strip()))


def test_a_signal_while_processes_start_is_not_lost():
    reached = False
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        with pytest.raises(signals.Stopped), signals.caught(signal.SIGINT):
            with signals.starting():
                os.kill(os.getpid(), signal.SIGINT)
            reached = True
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert not reached and signal.SIGINT not in mask(None)


def test_a_second_ctrl_c_does_not_wait_for_an_import(monkeypatch):
    monkeypatch.setattr(signals, "_in_the_midst", lambda frame: True)
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(signals.Stopped), signals.caught(signal.SIGINT):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(4 * signals.SOON)  # its repetitions wait too
            first = True
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("went on")
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert first


def _until(condition) -> None:
    while not condition():  # pytest's own limit ends what is in vain
        time.sleep(0.1)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
