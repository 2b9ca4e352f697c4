"""Work over the cores: order, errors, and workers that do not outlive a killed program."""

import os
import signal
import subprocess
import sys
import time

import pytest

from src.runtime.parallel import map_tasks
from src.runtime.paths import ROOT


def double(number: int) -> int:
    if number < 0:
        raise ValueError("negative")
    return 2 * number


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_order_and_errors_are_raised_here(jobs):
    assert map_tasks(double, range(5), jobs, "doubling") == [0, 2, 4, 6, 8]
    with pytest.raises(ValueError, match="negative"):
        map_tasks(double, [1, -1, 2], jobs, "doubling")


def test_workers_end_with_a_killed_program(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        f"import os, sys, time; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\nfrom src.runtime.parallel import map_tasks\n"
        "def sleep(folder):\n"
        "    (Path(folder) / f'{os.getpid()}.pid').touch()\n"
        "    time.sleep(500)\n"
        "if __name__ == '__main__': map_tasks(sleep, [sys.argv[1]] * 2, 2, 'sleeping')\n"
    )
    process = subprocess.Popen([sys.executable, str(program), str(tmp_path)])

    def workers() -> list[int]:
        return [int(file.stem) for file in tmp_path.glob("*.pid")]

    _until(lambda: len(workers()) == 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _until(lambda: not any(_alive(pid) for pid in workers()))


def _until(condition) -> None:
    end = time.time() + 120
    while not condition():
        assert time.time() < end, "waited in vain"
        time.sleep(0.1)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
