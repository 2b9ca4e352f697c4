"""One process at a time makes a file; another that wants the same says so in a line, and waits.

The lock is the kernel's: it ends with the process that holds it, however that ends, so none is ever stale. Where a file
system has no locks, filelock takes files of its own, which tell the process and the machine that wrote them.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from src.runtime.distributed import is_primary
from src.runtime.files import LONGEST, refuse

OFTEN = 0.2  # seconds between two looks at a lock


@contextmanager
def only_one(path: Path, each: bool = False) -> Iterator[None]:
    """Within, no other process makes `path`; of processes that work together, the first holds the lock.

    each: processes that work together take the lock too, one after the other.

    Look at what is there once more within: another run may have made it meanwhile. Folders that are made for the lock
    are removed where nothing came into them. Raises StorageError where the folder cannot be written.
    """
    if not is_primary() and not each:
        yield
        return
    name = os.fsdecode(os.fsencode(path.name)[: LONGEST - 6])
    new = [folder for folder in path.absolute().parents if not folder.exists()]  # the innermost first
    marker = path.with_name(f".{name}.lock")
    lock = FileLock(marker, poll_interval=OFTEN)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{path}: another run is at work on it; waiting for its end", file=sys.stderr, flush=True)
            lock.acquire()
        except OSError as error:
            refuse(path, error)
        yield
    finally:
        if lock.is_locked:
            marker.unlink(missing_ok=True)  # before the release: who waits finds it gone, and locks a new one
            lock.release()
        for folder in new:
            with suppress(OSError):  # not empty
                folder.rmdir()
