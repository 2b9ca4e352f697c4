"""SIGINT and SIGTERM: a program that is asked to stop saves what it is at and ends with every process that it started.

The first process answers for all. A terminal sends SIGINT, and a scheduler SIGTERM, to every process at once. The
processes that the program started take their orders from the first alone, which sends them SIGTERM.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

TIDIED = "ignore:resource_tracker:UserWarning"  # a filter of Python's
# In the paths of code that is not to be interrupted: PyTorch's import then aborts the process, and OmegaConf leaves
# its bookkeeping undone, of which Hydra prints a traceback.
WHOLE = ("<frozen importlib", f"{os.sep}omegaconf{os.sep}")
SOON = 0.05  # seconds until a signal is sent again
GRACE = 60  # seconds that a process has to end the step it is in and to save its state, before it is killed

_caught = False  # whether the signals are this module's
_asked: int | None = None  # the signal that came
_in_step = False  # whether the end of a step has to be waited for
_late: tuple[int, threading.Timer] | None = None  # a signal that came at a wrong time, and what repeats it
_repeated = False  # whether the signal that comes is such a repetition


class Stopped(KeyboardInterrupt):
    """A signal, its only argument, asked the program to stop."""

    @property
    def status(self) -> int:
        """The exit status, as a shell counts: 130 after SIGINT, 143 after SIGTERM."""
        return 128 + self.args[0]


@contextmanager
def caught(*numbers: int) -> Iterator[None]:
    """Within, these signals end the program's processes and raise Stopped: at once, or after a step of `until_stopped`.

    One that comes in the midst of an import, or of what else is not to be interrupted, waits for its end.
    A second SIGINT waits for nothing. Signals that are ignored stay ignored. Nested, and in other threads than the main
    one, which alone gets signals, it changes nothing.
    """
    global _caught, _asked, _late
    if _caught or threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.getsignal(number) for number in numbers}
    for number, handler in earlier.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _stop)
    _caught = True
    try:
        yield
    finally:
        if _late:
            _late[1].cancel()
        for number, handler in earlier.items():
            signal.signal(number, handler)
        _caught, _asked, _late = False, None, None


def until_stopped(
    steps: Iterable[int], save: Callable[[int], None], agreed: Callable[[bool], bool] = bool
) -> Iterator[int]:
    """The steps of a loop. A signal that comes in one of them waits for its end; then save(step) is called.

    agreed: whether this process was asked to stop -> whether the loop shall, for processes that step together.
    Raises Stopped after the save.
    """
    global _in_step
    try:
        for step in steps:
            _in_step = True
            yield step
            if agreed(_asked is not None):
                save(step)
                raise Stopped(_asked or signal.SIGTERM)
    finally:
        _in_step = False


def are_caught() -> bool:
    return _caught


def check() -> None:
    """Raise Stopped where a signal came that nothing answered: what it waited for ended with an error."""
    global _in_step
    _in_step = False
    if _asked is not None or _late:
        raise Stopped(_late[0] if _asked is None and _late else _asked)


def _stop(number: int, frame: FrameType | None) -> None:
    global _asked, _late, _repeated
    first, _repeated = _repeated or not _late or number != signal.SIGINT, False
    if first and _in_the_midst(frame):
        if _late:
            _late[1].cancel()
        timer = threading.Timer(SOON, _repeat, (number,))
        timer.daemon = True
        timer.start()
        _late = number, timer
        return
    again = _asked is not None
    if again and number == signal.SIGTERM:
        return  # sent by a scheduler to every process, and by the first process to this one
    _asked = number
    if _in_step and not again:
        return
    end_children(0 if again else GRACE)
    raise Stopped(number)


def _repeat(number: int) -> None:
    global _repeated
    _repeated = True
    os.kill(os.getpid(), number)


def _in_the_midst(frame: FrameType | None) -> bool:
    """Whether what is not to be interrupted called this frame."""
    while frame:
        if any(part in frame.f_code.co_filename for part in WHOLE):
            return True
        frame = frame.f_back
    return False


def end_children(grace: float = GRACE) -> None:
    """End the processes that this one started with multiprocessing or joblib; those that do not after `grace`: kill."""
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    until = time.monotonic() + grace
    for child in children:
        child.join(max(0.0, until - time.monotonic()))
        if child.is_alive() and child.pid is not None:
            os.kill(child.pid, signal.SIGKILL)
            child.join()


@contextmanager
def starting() -> Iterator[None]:
    """Within, the processes that this thread starts have SIGINT blocked from their first instruction on.

    Until a process calls `follow` it would answer a terminal's Ctrl-C by itself, with a traceback in the midst of its
    imports. This process loses none: one that comes meanwhile is answered at the end, or at once by another thread.
    The helper that removes semaphores of an ended program does so without a word.
    """
    filters = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (filters, TIDIED)))
    resource_tracker.ensure_running()  # first: Python unblocks SIGINT where it starts this helper
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if filters is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = filters
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def follow(parent: int) -> None:
    """Make this process one of `parent`'s: it ends at its SIGTERM or after it, and leaves a terminal's SIGINT to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: int) -> None:
    """A process that is killed can end no other."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def heed_parent(worker: int) -> None:
    """`worker_init_fn` of a DataLoader: SIGTERM counts when the parent sends it, not when a scheduler does.

    The parent ends the step that it is in, which needs this process. For the same reason a terminal's SIGINT is its.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_at_sigterm_of, args=(os.getppid(),), daemon=True).start()


def _end_at_sigterm_of(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
