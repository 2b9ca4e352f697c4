"""Scripts as processes: in a small shell, asked to stop by a signal, and with a worker killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import forked
import pytest
import torch
import vision_files as files
from drawn_checkpoints import draw_checkpoints
from safetensors import safe_open

import finetune
from src import STOPPED, checkpoints, training
from src.datasets.prepare import prepare
from src.datasets.vision import FACTS
from src.runtime import signals
from src.runtime.distributed import World, cores
from src.runtime.paths import ROOT

two_cores = pytest.mark.skipif(cores() < 2, reason="needs 2 cores")

OPEN_FILES = 256  # a quarter of what most shells allow
PAIR = ("--pairs", "digits-signs", "signs-digits")
COMMANDS = (
    ("finetune.py", "--steps=2", "--batch-size=16"),
    ("eval_single_task.py", "--finetuning-mode=none"),
    ("eval_single_task.py", "--finetuning-mode=standard"),
    ("eval_task_addition.py", "--n-eval-points=2"),
    ("eval_task_negation.py", "--n-eval-points=2"),
    ("eval_disentanglement.py", *PAIR, "--n-points=3", "--num-samples=8"),
    ("eval_ntk_localization.py", *PAIR, "--num-samples=4", "--ranks", "2"),
    ("main.py", "method=sum", "method.alphas=[0.3]"),
    ("main.py", "method=tall_mask", "method.tall_mask_lambda=[0.4]"),
    ("main.py", "method=adamerging", "method.steps=2"),
)


class Workplace:
    """A folder of checkpoints and results; how a script is called on it."""

    def __init__(self, folder: Path, cache: Path):
        places = {"save": folder / "checkpoints", "results": folder / "results", "cache_dir": cache}
        self.folder, self.flags = folder, {"seed": "0", "device": "cpu", "jobs": "2", "tasks": "digits,signs"} | places

    def arguments(self, script: str) -> list[str]:
        given = [(name, f"[{value}]" if name == "tasks" else value) for name, value in self.flags.items()]
        if script == "main.py":
            return [f"{name}={value}" for name, value in given]
        return [f"--{name.replace('_', '-')}={value}" for name, value in self.flags.items()]

    def command(self, script: str, *more: str) -> list[str]:
        return [sys.executable, str(ROOT / script), *self.arguments(script), *more]

    @contextmanager
    def started(self, *command: str) -> Iterator[subprocess.Popen]:
        """The script in a session of its own, whose processes can be counted and, as a terminal does, be signalled."""

        def heed() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # which is ignored where the tests run in the background

        called = dict(stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=self.folder, preexec_fn=heed)
        with subprocess.Popen(self.command(*command), start_new_session=True, **called) as process:
            try:
                yield process
            finally:
                for pid in _session(process.pid):  # none, unless the test fails
                    os.kill(pid, signal.SIGKILL)

    @contextmanager
    def started_by_fork(self, script: str, *more: str) -> Iterator[forked.Forked]:
        """The same without what the interpreter does before the script."""
        with forked.start(script, *self.arguments(script), *more, cwd=self.folder, session=True) as process:
            try:
                yield process
            finally:
                for pid in _session(process.pid):
                    os.kill(pid, signal.SIGKILL)

    def states(self) -> list[Path]:
        # os.walk passes over folders that go meanwhile: a state is written in one of its own.
        found = (Path(folder, name) for folder, _, names in os.walk(self.folder) for name in names)
        return [path for path in found if path.suffix == ".state" and not path.name.startswith(".")]


@pytest.fixture
def drawn(make_run, tmp_path, small_cache) -> Workplace:
    """Checkpoints and single-task results that took no time to make."""
    draw_checkpoints(make_run("--tasks=digits,signs"))
    return Workplace(tmp_path, small_cache)


ONE_AFTER_ANOTHER = """
import importlib, json, sys
sys.path[0] = {root!r}
for script, *arguments in json.loads(sys.argv[1]):
    print("running", script, *arguments, file=sys.stderr)
    importlib.import_module(script).main(arguments)
"""


@cache
def may_mount() -> bool:
    tried = forked.run("-c", "", before=lambda: forked.small_shm("64k"))
    return tried.returncode == 0


@two_cores
def test_scripts_run_where_few_files_may_be_open_and_shared_memory_is_small(tmp_path, small_cache):
    """One after another in one process and with the same workers, as reproduce.py runs them: none leaves files open.

    /dev/shm, where it may be mounted: one megabyte, where a container has 64; semaphores go there, and no tensor.
    """
    place = Workplace(tmp_path, small_cache)
    commands = [(script.removesuffix(".py"), *place.arguments(script), *more) for script, *more in COMMANDS]

    def limit() -> None:
        forked.few_files(OPEN_FILES)
        if mountable:
            forked.small_shm("1m")

    mountable = may_mount()
    program = ("-c", ONE_AFTER_ANOTHER.format(root=str(ROOT)), json.dumps(commands, default=str))
    with forked.workers():
        done = forked.run(*program, cwd=tmp_path, before=limit)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


@two_cores
def test_decoding_processes_send_by_value_where_shared_memory_is_small(tmp_path, small_cache):
    """The same checkpoint as with room for the batches."""
    if not may_mount():
        pytest.skip("needs user namespaces, to mount a small /dev/shm")
    files.class_folders("EuroSAT", tmp_path / "data/eurosat", {"2750": 20}, files.EUROSAT)
    prepare(FACTS["EuroSAT"], tmp_path / "data", as_is=True)
    written = []
    for name in ("small", "usual"):
        place = Workplace(tmp_path / name, small_cache)
        place.flags |= {"tasks": "EuroSAT", "jobs": "1", "data_location": tmp_path / "data", "suite": "vision"}
        flags = (*place.arguments("finetune.py"), "--steps=3", "--batch-size=64", "--workers=2", "--model=ViT-Mini")
        if name == "small":
            done = forked.run("finetune.py", *flags, cwd=tmp_path, before=lambda: forked.small_shm("100k"))
            assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        else:
            finetune.main(flags)
        (checkpoint,) = (tmp_path / name).rglob("EuroSAT/standard.safetensors")
        written.append(checkpoints.load(checkpoint))
    assert all(torch.equal(tensor, written[1][name]) for name, tensor in written[0].items())


STUB = """
import os, pathlib, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(0.2)
pathlib.Path("imported").touch()
raise ImportError("a stub")
"""


@pytest.mark.parametrize("module, whole, status", [("pydantic", False, -signal.SIGINT), ("torch", True, 130)])
def test_a_signal_while_python_imports_is_told_in_a_line(module, whole, status, tmp_path, monkeypatch):
    """Before the program's own handler is there, Python dies of it; after, PyTorch's import is never cut in two."""
    (tmp_path / f"{module}.py").write_text(STUB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Workplace(tmp_path, tmp_path).started("finetune.py") as process:
        _, errors = process.communicate()
    assert (process.returncode, errors.splitlines()) == (status, [STOPPED])
    assert (tmp_path / "imported").exists() == whole


TRAIN = ("finetune.py", "--steps=1000000", "--checkpoint-every=1", "--overwrite")
ADAPT = ("main.py", "method=adamerging", "method.steps=99999", "save_every=1", "eval_every=0")


@two_cores
@pytest.mark.parametrize(
    "number, to_all, states, command",
    [
        (signal.SIGTERM, False, 2, TRAIN),
        (signal.SIGINT, True, 1, (*TRAIN, "--world-size=2")),
        (signal.SIGINT, True, 0, ("eval_task_negation.py", "--n-eval-points=20001")),
        (signal.SIGTERM, True, 1, ADAPT),
    ],
    ids=("workers", "ranks", "evaluation", "adaptation"),
)
def test_a_signal_ends_a_script_with_a_line_and_all_its_processes(drawn, number, to_all, states, command):
    # The one that is told before its workers are at work starts as a user's, and they too: in the midst of imports.
    start = drawn.started_by_fork if states else drawn.started
    with forked.workers(), forked.ranks(), start(*command) as process:
        # Where there is no state: its workers and their helpers.
        _until(lambda: len(drawn.states()) >= states if states else len(_session(process.pid)) > 3, process)
        (os.killpg if to_all else os.kill)(process.pid, number)
        process.wait()
        assert (process.returncode, _errors(process).splitlines()) == (128 + number, [STOPPED])
        _until(lambda: not _session(process.pid))
    for state in drawn.states():
        with safe_open(state, "pt") as file:  # whole
            assert file.keys()


@two_cores
def test_a_schedulers_signal_ends_the_decoding_processes_last(tmp_path, small_cache):
    """SIGTERM to every process: the training ends its step, for which it needs the others, and saves."""
    place = Workplace(tmp_path, small_cache)
    files.class_folders("EuroSAT", tmp_path / "data/eurosat", {"2750": 20}, files.EUROSAT)
    prepare(FACTS["EuroSAT"], tmp_path / "data", as_is=True)
    place.flags |= {"tasks": "EuroSAT", "jobs": "1", "data_location": tmp_path / "data", "suite": "vision"}
    steps = ("--steps=20000", "--checkpoint-every=3", "--batch-size=8", "--workers=2", "--model=ViT-Mini")
    with place.started_by_fork("finetune.py", *steps) as process:
        _until(place.states, process)
        (state,) = place.states()
        saved = state.stat().st_mtime_ns
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        assert (process.returncode, process.stderr.splitlines()) == (143, [STOPPED])
        assert state.stat().st_mtime_ns > saved
        _until(lambda: not _session(process.pid))


def test_sigterm_in_a_step_saves_the_step_and_the_run_ends_bit_identical(make_training, tmp_path, monkeypatch):
    flags = ("--steps=8", "--tasks=signs", "--batch-size=8")
    whole, settings = make_training(*flags)
    training.finetune_together(whole, settings, World())
    for last in (3, 7):  # in the midst, and at the end
        broken, _ = make_training(*flags, f"--save={tmp_path}/broken{last}")
        with monkeypatch.context() as patch:
            _signal_in_step(patch, last)
            with pytest.raises(signals.Stopped) as stopped, signals.caught(signal.SIGTERM):
                training.finetune_together(broken, settings, World())
        assert stopped.value.status == 143
        state = broken.paths.training_state("signs", "standard")
        assert checkpoints.Checkpoint(state, kind="training state").header["step"] == last + 1
        training.finetune_together(broken, settings, World())
        for name, tensor in checkpoints.load(whole.paths.checkpoint("signs", "standard")).items():
            assert torch.equal(tensor, checkpoints.load(broken.paths.checkpoint("signs", "standard"))[name])


def _signal_in_step(patch, step: int) -> None:
    rate = training.cosine_lr

    def signalling(now: int, *arguments):
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return rate(now, *arguments)

    patch.setattr(training, "cosine_lr", signalling)


def test_a_signal_in_a_step_that_fails_is_not_lost():
    def steps():
        for _ in signals.until_stopped(range(3), save=pytest.fail):
            os.kill(os.getpid(), signal.SIGTERM)
            raise ValueError

    with pytest.raises(signals.Stopped), signals.caught(signal.SIGTERM):
        try:
            steps()
        finally:
            signals.check()


MIDST = "os.kill(os.getpid(), signal.SIGTERM); done.append(1)"


@pytest.mark.parametrize(
    "where, whole", [("<frozen importlib._bootstrap>", True), ("/lib/omegaconf/base.py", True), ("/lib/mine.py", False)]
)
def test_what_is_not_to_be_interrupted_ends_first(where, whole):
    done: list[int] = []
    with pytest.raises(signals.Stopped) as stopped, signals.caught(signal.SIGTERM):
        exec(compile(MIDST, where, "exec"), {"os": os, "signal": signal, "done": done})
        while True:
            time.sleep(0.01)
    assert stopped.value.status == 143 and bool(done) == whole


def test_ignored_signals_stay_ignored():
    earlier = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as nohup and a shell's & do
    try:
        with signals.caught(signal.SIGTERM):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _session(leader: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session) == leader and state != "Z":
            found.append(int(folder.name))
    return found


def _errors(process: subprocess.Popen | forked.Forked) -> str:
    return process.stderr if isinstance(process, forked.Forked) else process.stderr.read()


def _until(condition, process: subprocess.Popen | forked.Forked | None = None) -> None:
    while not condition():  # pytest's own limit ends what is in vain
        assert process is None or process.poll() is None, _errors(process)
        time.sleep(0.1)
