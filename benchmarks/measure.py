"""What the benchmarks share: time by turns, ratios with their spread, memory, processes of their own, and the JSON."""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.runtime import results
from src.runtime.distributed import cores

# Starts the command that is measured. The peak that is told of a child holds that of its parent, and this one is small.
LAUNCHER = """
import json, resource, subprocess, sys
status = subprocess.run(sys.argv[2:], stdout=sys.stderr).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    json.dump({"status": status, "seconds": used.ru_utime + used.ru_stime, "bytes": 1024 * used.ru_maxrss}, file)
"""


@dataclass(frozen=True)
class Ratio:
    """Of paired rounds: the median, the quartiles, and how many rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float], base: Sequence[float]) -> "Ratio":
        """values[i] / base[i], which were measured one after the other."""
        ratios = [value / other for value, other in zip(values, base, strict=True)]
        low, median, high = (float(np.quantile(ratios, share)) for share in (0.25, 0.5, 0.75))
        return cls(round(median, 4), round(low, 4), round(high, 4), len(ratios))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def by_turns(
    ways: Mapping[str, Callable[[], Any]],
    rounds: int,
    warm: int = 0,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Seconds of each way in every round; a round calls each way once. warm: rounds before that do not count.

    The default clock is CPU time, which the load of other programs disturbs less than it does wall time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + warm):
        for name, way in ways.items():
            began = clock()
            way()
            seconds[name].append(clock() - began)
    return {name: values[warm:] for name, values in seconds.items()}


def compared(seconds: Mapping[str, Sequence[float]], base: str) -> dict[str, dict[str, Any]]:
    """For each way its median seconds, and how many times those of the base it takes."""
    return {
        name: {"seconds": statistics.median(values), "ratio": asdict(Ratio.of(values, seconds[base]))}
        for name, values in seconds.items()
    }


COSTS = ("seconds", "bytes")


def costs_compared(costs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """A row for each way, which is told: median seconds and bytes, and those of the first way / its own.

    costs: what the rounds of each way cost, of which the i-th were measured one after the other.
    """
    first, rows = next(iter(costs)), {}
    for way, rounds in costs.items():
        row: dict[str, Any] = {cost: statistics.median(one[cost] for one in rounds) for cost in COSTS}
        line = f"  {way:16} {1000 * row['seconds']:9.0f} ms {row['bytes'] / 1e6:8.0f} MB"
        if way != first:
            ratios = [Ratio.of([one[cost] for one in costs[first]], [one[cost] for one in rounds]) for cost in COSTS]
            line += "   {} / this: {} of the time, {} of the memory".format(first, *ratios)
            row["ratios"] = {cost: asdict(ratio) for cost, ratio in zip(COSTS, ratios)}
        print(line, flush=True)
        rows[way] = row
    return rows


def times(row: Mapping[str, Any]) -> str:
    """The ratio of a row of `compared`, in words."""
    return str(Ratio(**row["ratio"]))


def peak_memory() -> int:
    """Peak resident bytes of this process since it was started (which getrusage does not know after a fork)."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def in_process(program: str, arguments: Sequence[str], what: str) -> Any:
    """What `python -m <program> <arguments>` prints as JSON. Raises SystemExit, saying what was measured."""
    done = subprocess.run([sys.executable, "-m", program, *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{what}: the process ended with {done.returncode} (-9: it did not fit into memory)")
    return json.loads(done.stdout)


def spent(command: Sequence[str], folder: Path, threads: int = 1) -> dict[str, float]:
    """CPU seconds and peak bytes of a whole command: interpreter, imports, reading and writing included.

    folder: for the note of what was spent. Raises SystemExit for a command that fails.
    """
    note = folder / "spent.json"
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    started = [sys.executable, "-c", LAUNCHER, str(note), *command]
    done = subprocess.run(started, check=True, env=environment, stderr=subprocess.PIPE, text=True)
    answer = json.loads(note.read_text())
    if answer.pop("status"):
        raise SystemExit(f"expected a command that runs; {' '.join(command)} failed:\n{done.stderr[-1000:]}")
    return answer


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """p of cost ~ size^p, by least squares between the logarithms."""
    return round(float(np.polyfit(np.log(sizes), np.log(costs), 1)[0]), 3)


def processor() -> str:
    """The processor's model."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())


def machine() -> dict[str, Any]:
    """What the numbers were measured on; nothing by which one machine is told from others of its kind."""
    import torch  # here, so that the list of benchmarks does not wait for it

    about = {"processor": processor(), "cores": cores(), "threads": torch.get_num_threads()}
    return about | {"python": platform.python_version(), "torch": torch.__version__}


def parser(doc: str | None) -> argparse.ArgumentParser:
    """With the flags of every benchmark that has a parser of its own."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_output(made)
    return made


def add_output(made: argparse.ArgumentParser) -> None:
    made.add_argument("--output", type=Path, help="also write the measurements to this .json")


def add_steps(made: argparse.ArgumentParser, batch_size: int, rounds: int) -> None:
    """The flags of a benchmark of passes or training steps, with its defaults."""
    made.add_argument("--batch-size", type=int, default=batch_size)
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--threads", type=int, default=1)


def write(path: Path | None, record: Mapping[str, Any], settings: Mapping[str, Any], started: float) -> None:
    """Write the measurements with the machine's description and the settings, if they are asked for; no paths."""
    if path:
        plain = {name: value for name, value in settings.items() if not isinstance(value, Path) and value is not None}
        results.write(path, {"machine": machine()} | dict(record), plain, started, check=forget_places)


def forget_places(document: dict[str, Any]) -> None:
    """Take the flags that name folders of this machine out of the command that a result tells of."""
    words: list[str] = []
    for word in shlex.split(document["provenance"]["command"]):
        if word.startswith("/"):
            words.pop()  # the flag before it
        elif "=/" not in word:
            words.append(word)
    document["provenance"]["command"] = shlex.join(words)
