"""What a test run leaves behind: nothing in the project's folder but caches, and nothing in /dev/shm."""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED_MEMORY = Path("/dev/shm")
# What Python, the tools and the fixture `mini_cache` keep from one test run to the next; git ignores all of it.
CACHES = re.compile(r"(.*/)?(__pycache__|[^/]+\.egg-info)/.*|(\.(venv|\w+_cache|hypothesis)|cache)(/.*)?")
LOOKS = 50  # at shared memory, until the helpers of ended workers have removed their semaphores
_BEFORE = pytest.StashKey[dict[str, object]]()


def traces(root: Path, shared_memory: Path) -> dict[str, object]:
    """Every file of the folder that is not as git has it, but for caches, and every name in shared memory.

    Of files their state, time and size. Names of shared memory that tell of another living process are left out.
    """
    found: dict[str, object] = {}
    command = ["git", "--no-optional-locks", "-C", str(root), "status", "--porcelain", "-z", "--ignored", "-uall"]
    done = subprocess.run(command, capture_output=True, check=False)
    for entry in os.fsdecode(done.stdout).split("\0") if done.returncode == 0 else []:
        state, name = entry[:2], entry[3:]
        if name and not CACHES.fullmatch(name):
            status = os.stat(root / name) if (root / name).exists() else None
            found[name] = (state, status and status.st_mtime_ns, status and status.st_size)
    for path in shared_memory.iterdir() if shared_memory.is_dir() else []:
        process = re.search(r"[-_](\d+)([-_]|$)", path.name)
        if not process or not Path(f"/proc/{process[1]}").exists():
            found[str(path)] = "shared memory"
    return found


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):  # of xdist's processes the first alone looks
        session.config.stash[_BEFORE] = traces(ROOT, SHARED_MEMORY)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    yield  # xdist's own ends its workers
    before = session.config.stash.get(_BEFORE, None)
    if before is not None and (changed := _changed(before)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\nthe tests left traces, or the tree was edited meanwhile: {', '.join(changed)}")


def _changed(before: dict[str, object]) -> list[str]:
    """The names that differ, when the helpers of ended workers have had time to remove their semaphores."""
    changed: list[str] = []
    for _ in range(LOOKS):
        after = traces(ROOT, SHARED_MEMORY)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        if not any(name.startswith(str(SHARED_MEMORY)) for name in changed):
            break
        time.sleep(0.2)
    return changed
