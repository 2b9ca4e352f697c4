"""What surrounds a script's `main`: errors that a user can mend, and signals, end it with a line."""

import functools
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from src import STOPPED
from src.runtime import distributed, signals
from src.runtime.files import in_words
from src.runtime.messages import UsageError, UserError

Returned = TypeVar("Returned")
UNREAD = 128 + signal.SIGPIPE


class GPUFull(UserError, RuntimeError):
    """A GPU has no memory for what is asked of it."""


def user_error(error: BaseException) -> UserError | None:
    """A UserError, or what the system says of a place or a GPU, told in a line; None for a fault of the program."""
    if isinstance(error, UserError):
        return error
    torch = sys.modules.get("torch")  # a script that stops at its flags does not load it
    if torch and isinstance(error, torch.OutOfMemoryError):
        return GPUFull(
            f"expected room in the GPU's memory, found: {'. '.join(str(error).split('. ')[:2])}. Take fewer images at "
            "once: finetune.py --batch-size=N --num-grad-accumulation=M, of which the product stays; "
            "--eval-batch-size; eval_ntk_localization.py --chunk-size; main.py method.pass_size. What is finished is "
            "kept"
        )
    return in_words(error) if isinstance(error, OSError) else None


def exit_status(errors: Sequence[Exception]) -> int:
    """2 where there were errors of usage alone, else 1."""
    return 2 if all(isinstance(error, UsageError) for error in errors) else 1


def unread(error: BaseException) -> bool:
    """Whether an error says that nobody reads what the program prints any more, as after `| head -1`.

    Pipes to other processes break too, where a worker was killed: the program's own streams tell.
    """
    return isinstance(error, BrokenPipeError) and bool(_unread_streams())


def _unread_streams() -> list[int]:
    """Descriptors of what the program prints to, as far as they are pipes that nobody reads."""
    looked = select.poll()
    for stream in (sys.stdout, sys.stderr):
        try:
            looked.register(stream.fileno(), 0)
        except (OSError, ValueError, AttributeError):  # no file of the system
            continue
    return [descriptor for descriptor, events in looked.poll(0) if events & select.POLLERR]


def _end_unread() -> NoReturn:
    """As other programs end whose reader has gone: without a word."""
    for descriptor in _unread_streams():
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)  # else Python tries once more at its end, and complains
    raise SystemExit(UNREAD)


def exit_on_user_error(main: Callable[..., Returned]) -> Callable[..., Returned]:
    """Decorates a script's `main(argv=None)`: it ends with a message alone, and with the processes that it started.

    The exit status is 1 after a UserError, 2 after a UsageError, 130 after SIGINT (Ctrl-C), 143 after SIGTERM, and 141
    where nobody reads what it prints any more. Under torchrun one process tells an error that all of them come to.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> Returned:
        nested = signals.are_caught()
        try:
            with signals.caught(signal.SIGINT, signal.SIGTERM):
                try:
                    returned = main(argv)
                finally:
                    signals.check()
                    if not nested:
                        sys.stdout.flush()  # while a reader who has gone is an error like others
                return returned
        except signals.Stopped as stopped:
            if nested:
                raise  # the program's own main ends it all
            if distributed.is_primary():
                print(STOPPED, file=sys.stderr, flush=True)
            raise SystemExit(stopped.status) from None
        except (Exception, SystemExit) as error:
            if unread(error) and not nested:
                _end_unread()
            if not isinstance(error, SystemExit) or isinstance(error.code, str):  # a number was told of before
                distributed.leave_to_the_first()
            if (message := user_error(error)) is None:
                raise
            if isinstance(message, UsageError):
                print(f"error: {message}", file=sys.stderr, flush=True)
                raise SystemExit(2) from None
            raise SystemExit(f"error: {message}") from None

    return run
