"""Errors of usage, and pieces of error messages."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What a user can cause and mend: what was expected, what was found, the command that mends it.

    A program says the message in a line, without a traceback. Errors of other classes keep their file and line.
    """


class UsageError(UserError, ValueError):
    """A flag or an option that makes no sense. A program says its message and ends with exit status 2."""


class CheckpointError(UserError, ValueError):
    """A file that is not the checkpoint it should be."""


class MissingFile(UserError, FileNotFoundError):
    """A file that another command makes."""


class NotFinite(UserError, FloatingPointError):
    """Numbers that are infinite or none."""


def few(names: Iterable[str], most: int = 4) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def nearest(name: object, known: Iterable[str]) -> str:
    """'; did you mean X?', or nothing. name: whatever was given in the place of one."""
    lowered = {k.lower(): k for k in known}
    match = difflib.get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.5)
    return f"; did you mean {lowered[match[0]]}?" if match else ""
