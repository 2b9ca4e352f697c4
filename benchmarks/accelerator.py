"""What the suite costs on one GPU, in under six minutes.

    python -m benchmarks accelerator --output benchmarks/results/accelerator.json
    python -m benchmarks accelerator --only steps evaluation
    python -m benchmarks accelerator --tiny          # the same code on a CPU with a toy tower, to try the program

Weights are random (open_clip's own initialisation) and images are drawn by a generator, so every number is a time, a
size or a difference of two ways, never an accuracy. All that is timed is the suite's own code; the stand-ins are the
readers of data sets, and one encoder that is built once. ViT-B-32 unless a row says otherwise.

A section that fails tells its error in its place and the others go on. A section has a limit in seconds, and what it
found before the limit stays. What no longer fits into --budget is listed as skipped. The JSON is written after every
section.
"""

import argparse
import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.sections import BEGAN

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # open_clip's tokenizer of these models is in the package
os.environ.setdefault("TQDM_DISABLE", "1")

import open_clip  # noqa: E402
import torch  # noqa: E402

from benchmarks import measure  # noqa: E402
from benchmarks.sections.agreement import agreement  # noqa: E402
from benchmarks.sections.bench import MARK, Bench, Numbers, report, say  # noqa: E402
from benchmarks.sections.merges import adaptation, merging  # noqa: E402
from benchmarks.sections.processes import compiled, ranks  # noqa: E402
from benchmarks.sections.scoring import evaluation, kernel, sweep  # noqa: E402
from benchmarks.sections.steps import ceilings, large, loader, mini, saving, steps  # noqa: E402

SECTIONS: dict[str, tuple[Callable[[Bench, Numbers], None], int]] = {  # in order; the most seconds of each
    "ceilings": (ceilings, 20),
    "steps": (steps, 60),
    "agreement": (agreement, 60),
    "evaluation": (evaluation, 40),
    "sweep": (sweep, 35),
    "adaptation": (adaptation, 40),
    "ranks": (ranks, 60),
    "mini": (mini, 35),
    "large": (large, 50),
    "compiled": (compiled, 140),
    "loader": (loader, 60),
    "kernel": (kernel, 30),
    "saving": (saving, 15),
    "merging": (merging, 75),
}


CHILDREN = ("ranks", "compiled")  # which may hang, or change the process for good
LEAST = 8  # seconds that a section must have left to be begun


class Late(BaseException):  # which no handler of other errors takes for one
    """A section has come to its limit."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise Late in the main thread when the seconds are over."""

    def ring(*_: Any) -> None:
        raise Late(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def in_children(
    name: str, number: int, options: argparse.Namespace, folder: Path, limit: float, numbers: Numbers
) -> None:
    """The section in `number` processes as torchrun would start them; findings are the first's."""
    command = [sys.executable, "-m", "benchmarks.accelerator", "--child", name, "--folder", str(folder)]
    command += ["--tiny"] if options.tiny else []
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        first, second = (str(free.getsockname()[1]) for free in (one, other))
    shared = os.environ | {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": first, "NEXT_PORT": second}
    with contextlib.ExitStack() as stack:
        files = [[stack.enter_context(tempfile.TemporaryFile("w+")) for _ in "oe"] for _ in range(number)]
        started = []
        for rank, (out, err) in enumerate(files):
            variables = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if name == "ranks" else None
            started.append(subprocess.Popen(command, stdout=out, stderr=err, cwd=ROOT, env=variables))
        until = time.time() + limit
        try:
            statuses = [process.wait(max(0.1, until - time.time())) for process in started]
        except subprocess.TimeoutExpired:
            statuses = []
        finally:
            for process in started:
                process.kill()
                process.wait()
        texts = []
        for pair in files:
            for file in pair:
                file.seek(0)
            texts.append([file.read() for file in pair])
    lines = [line for line in texts[0][0].splitlines() if line.startswith(MARK)]
    numbers |= json.loads(lines[-1].removeprefix(MARK)) if lines else {}
    if not statuses:
        numbers["stopped after s"] = round(limit)
    elif any(statuses):
        rank = next(i for i, status in enumerate(statuses) if status)
        say(texts[rank][1].strip()[-2000:])
        last = (texts[rank][1].strip().splitlines() or [""])[-1]
        numbers["error"] = f"exit {statuses[rank]} of rank {rank}: {last[:300]}"


def child(name: str, options: argparse.Namespace) -> None:
    numbers: Numbers = {}
    folder = options.folder
    if name == "ranks":  # what ranks write for themselves alone must not meet
        folder = folder / f"rank{os.environ['RANK']}"
        folder.mkdir(exist_ok=True)
    SECTIONS[name][0](Bench(options.tiny, folder, device_of(options)), numbers)
    report(numbers)


def device_of(options: argparse.Namespace) -> str:
    return "cuda" if torch.cuda.is_available() and not options.tiny else "cpu"


def machine(b: Bench) -> Numbers:
    about = measure.machine() | {"model": b.model, "open_clip": open_clip.__version__}
    if b.gpu:
        properties = torch.cuda.get_device_properties(0)
        about |= {"GPU": properties.name, "GPUs": torch.cuda.device_count()}
        about |= {"GB of its memory": round(properties.total_memory / 1e9, 1)}
    return about


def work(name: str, b: Bench, options: argparse.Namespace, left: float, numbers: Numbers) -> None:
    """One section, within what is left."""
    function, most = SECTIONS[name]
    limit = 120 if options.tiny else min(most, left)
    if name not in CHILDREN:
        with within(limit):
            function(b, numbers)
        return
    in_children(name, 1, options, b.folder, limit, numbers)
    devices = 2 if options.tiny else torch.cuda.device_count() if b.gpu else 1
    if name == "ranks" and devices > 1:
        numbers[f"{devices} processes"] = {}
        in_children(name, devices, options, b.folder, limit, numbers[f"{devices} processes"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a toy tower on the CPU, to try the program")
    parser.add_argument("--budget", type=float, default=345, help="seconds for everything")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections")
    parser.add_argument("--without", nargs="+", choices=SECTIONS, default=(), help="not these sections")
    parser.add_argument("--output", "--out", type=Path, help="also write the JSON here, after every section")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    torch.backends.cudnn.allow_tf32 = False  # PyTorch's default is True
    gc.freeze()  # what the imports made: `clear` is called often, and need not look at it
    if options.child:
        child(options.child, options)
        return
    with tempfile.TemporaryDirectory() as folder:
        b = Bench(options.tiny, Path(folder), device_of(options))
        sections: dict[str, Numbers] = {}
        seconds: dict[str, float] = {}
        record = {"machine": machine(b), "sections": sections, "seconds": seconds}
        say(f"ready: {record['machine']}")
        for name in SECTIONS:
            if (options.only and name not in options.only) or name in options.without:
                continue
            left, began = options.budget - (time.time() - BEGAN), time.time()
            numbers = sections[name] = {}
            if left < LEAST and not options.tiny:
                numbers["skipped"] = f"{left:.0f} s were left"
                continue
            say(name)
            try:
                work(name, b, options, left, numbers)
            except Late as late:
                numbers["stopped"] = str(late)
            except Exception as error:
                traceback.print_exc()
                numbers["error"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
            seconds[name] = round(time.time() - began, 1)
            say(f"{name} took {seconds[name]} s{': ' + numbers['error'] if 'error' in numbers else ''}")
            b.clear()
            seconds["all"] = round(time.time() - BEGAN, 1)
            if options.output:
                options.output.parent.mkdir(parents=True, exist_ok=True)
                options.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
