"""What surrounds a script's `main`: errors that a user can mend, and signals, end it with a line."""

import functools
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from src.runtime import distributed, signals
from src.runtime.files import in_words
from src.runtime.messages import UsageError, UserError

Returned = TypeVar("Returned")


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


def exit_on_user_error(main: Callable[..., Returned]) -> Callable[..., Returned]:
    """Decorates a script's `main(argv=None)`: it ends with a message alone, and with the processes that it started.

    The exit status is 1 after a UserError, 2 after a UsageError, 130 after SIGINT (Ctrl-C) and 143 after
    SIGTERM. Under torchrun one process tells an error that all of them come to.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> Returned:
        nested = signals.are_caught()
        try:
            with signals.caught(signal.SIGINT, signal.SIGTERM):
                try:
                    return main(argv)
                finally:
                    signals.check()
        except signals.Stopped as stopped:
            if nested:
                raise  # the program's own main ends it all
            if distributed.is_primary():
                print("stopped; the same command goes on", file=sys.stderr, flush=True)
            raise SystemExit(stopped.status) from None
        except (Exception, SystemExit) as error:
            if not isinstance(error, SystemExit) or isinstance(error.code, str):  # a number was told of before
                distributed.leave_to_the_first()
            if (told := user_error(error)) is None:
                raise
            if isinstance(told, UsageError):
                print(f"error: {told}", file=sys.stderr, flush=True)
                raise SystemExit(2) from None
            raise SystemExit(f"error: {told}") from None

    return run
