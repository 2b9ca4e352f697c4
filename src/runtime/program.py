"""How a script ends: an error that a user can mend is told in a line, without a traceback."""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

from src.checkpoints import CheckpointError
from src.datasets.examples import DataError
from src.runtime.messages import UsageError
from src.runtime.results import ResultError

USER_ERRORS = (CheckpointError, DataError, ResultError, FileNotFoundError, FloatingPointError, UsageError)


def exit_on_user_error(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a script's `main(argv=None)`: such an error ends it, with status 2 where its flags make no sense."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> Any:
        try:
            return main(argv)
        except UsageError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except USER_ERRORS as error:
            raise SystemExit(f"error: {error}") from None

    return run
