"""Places to write: tried before the work, told in a sentence, and left as they were; nothing half, nothing behind."""

import argparse
import errno
import fcntl
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import adapting_problems
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, given
from hypothesis import strategies as st
from script_parsers import every_flag

from src import args, checkpoints, state_files
from src.datasets.hub import Snapshot
from src.datasets.mini import draw
from src.datasets.record import Record
from src.experiments.base import carry_out
from src.experiments.commands import COMMANDS
from src.experiments.merging import Options, merge, take_options
from src.experiments.registry import ADDITION
from src.experiments.stages import MERGING
from src.merging.adamerging import AdaMerging
from src.merging.base import Progress
from src.merging.concrete import ConcreteTaskArithmetic
from src.merging.consensus import Consensus
from src.merging.surgery import Surgery
from src.merging.tall_mask import TallMask, masks_file
from src.merging.task_arithmetic import Sum
from src.reporting import style, table
from src.run import Run, override
from src.runtime import files, program, results
from src.runtime.files import StorageError, remove_abandoned, replacing, require_writable
from src.runtime.messages import MissingFile, UsageError
from src.runtime.paths import Places, from_root
from src.training import World, finetune

LARGEST = 3000  # bytes


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond LARGEST bytes: the kernel refuses the write, as it does where a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_result(path: Path) -> None:
    results.write(path, {"a": ["x" * 100] * 100}, {"device": "cpu"}, time.time())


def write_checkpoint(path: Path) -> None:
    checkpoints.save(path, {"a": torch.ones(100, 100)}, {"model": "small"})


def write_state(path: Path) -> None:
    state_files.save(path, {"model": {"a": torch.ones(100, 100)}}, {}, {"model": "small"}, "training state")


def write_figure(path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2])
    style.save(figure, path.parent, "made")


def write_record(path: Path) -> None:
    Record("made", "official", "x", True, {"train": [1] * 5000}, {}).write(path.parent.parent)


def write_snapshot(path: Path) -> None:
    Snapshot("x" * 5000, "r", {}).write(path.parent)


WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "result": ("made.json", write_result),
    "checkpoint": ("made.safetensors", write_checkpoint),
    "state": ("made.state", write_state),
    "table": ("made.md", lambda path: table.write_text(path, "x" * 5000)),
    "figure": ("made.png", write_figure),
    "record": ("prepared/made.json", write_record),
    "snapshot": ("snapshot.json", write_snapshot),
}


@pytest.fixture(autouse=True)
def no_git(monkeypatch):
    """The limit of a full disk would hold for what git writes too."""
    monkeypatch.setattr(results, "commit", lambda: None)


@pytest.mark.parametrize("writer", WRITERS)
def test_where_there_is_no_room_the_old_file_stays(writer, tmp_path):
    name, write = WRITERS[writer]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("before")
    with full_disk(), pytest.raises(StorageError) as caught:
        write(path)
    told = str(caught.value)
    assert told.count("\n") == 0 and str(path) in told and "File too large" in told and "MiB are free" in told
    assert path.read_text() == "before" and [p.name for p in path.parent.iterdir()] == [path.name]
    write(path)
    assert path.read_bytes() != b"before"


def places(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    (tmp_path / "file").write_text("")
    (tmp_path / "taken.json").mkdir()
    return {
        "a file in the place of a folder": (tmp_path / "file/made.json", "Not a directory"),
        "a folder in the place of a file": (tmp_path / "taken.json", "Is a directory"),
        "no right": (Path("/sys/made.json"), "Operation not permitted|Permission denied"),
        "no right to make a folder": (Path("/sys/a/b/made.json"), "Operation not permitted|Permission denied"),
        "too long": (tmp_path / f"{'x' * 251}.json", "File name too long"),
    }


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path):
    for kind, (path, reason) in places(tmp_path).items():
        with pytest.raises(StorageError, match=reason):
            require_writable(path)
            pytest.fail(kind)
        with pytest.raises(StorageError), replacing(path) as temporary:
            temporary.write_text(kind)
    require_writable(tmp_path / "new/folder/made.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "taken.json"]


def test_too_little_room_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1 << 30, 1 << 30, 1 << 20))
    require_writable(tmp_path / "made", room=1 << 20)
    with pytest.raises(StorageError, match=r"made: expected room in .*No space left on device \(1 MiB are free\)"):
        require_writable(tmp_path / "made", room=1 << 21)
    assert not list(tmp_path.iterdir())


def spoil(kind: str, folder: Path, monkeypatch, free: int = 1000) -> str:
    """Make a folder one in which nothing can be written; gives the reason that is told."""
    if kind == "full":
        monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1 << 30, 1 << 30, free))
        return "No space left on device"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("")
    return "Not a directory"


spoilt = pytest.mark.parametrize("kind", ["no folder", "full"])


@spoilt
def test_experiments_try_their_place_first(kind, make_run, tmp_path, monkeypatch):
    run = make_run(f"--results={tmp_path}/file", "--tasks=digits")
    reason = spoil(kind, tmp_path / "file", monkeypatch)
    with pytest.raises(StorageError, match=reason):
        carry_out(ADDITION, "standard", run, {}, lambda: pytest.fail("it computes first"), overwrite=False)


@spoilt
def test_fine_tuning_tries_its_place_first(kind, make_training, tmp_path, monkeypatch):
    """It needs several times the size of θ0."""
    run, training = make_training("--steps=1", f"--save={tmp_path}/file")
    monkeypatch.setattr("src.training._size", lambda path: 1 << 20)
    reason = spoil(kind, tmp_path / "file", monkeypatch, free=2 << 20)
    monkeypatch.setattr("src.training.FineTuning", lambda *which: pytest.fail("it trains first"))
    with pytest.raises(StorageError, match=reason):
        finetune(run, "signs", training, World())


@spoilt
@pytest.mark.parametrize("which", ["results", "output"])
def test_merging_tries_its_places_first(kind, which, make_run, monkeypatch):
    run = make_run("--tasks=digits")
    folder = run.paths.seed_results() / ("merging" if which == "results" else "file")
    reason = spoil(kind, folder, monkeypatch)
    options = Options(output=folder / "merged.safetensors" if which == "output" else None)
    monkeypatch.setattr("src.experiments.merging._merge", lambda *which: pytest.fail("it merges first"))
    with pytest.raises(StorageError, match=reason):
        merge(run, Sum(), options)


KEEPING = (TallMask(), ConcreteTaskArithmetic(), AdaMerging(), Surgery())


@pytest.mark.parametrize("method", KEEPING, ids=lambda method: method.name)
def test_methods_that_keep_files_try_their_place_first(method, tmp_path, monkeypatch):
    """Masks at the end, states on the way: a folder of checkpoints may be somebody else's."""
    (tmp_path / "file").write_text("")
    given = adapting_problems.problem(batch=lambda *which: pytest.fail("it adapts first"))
    keeps = {"progress": Progress(state=tmp_path / "file/x.state", save_every=1)}
    if method.name in ("tall_mask", "concrete_task_arithmetic"):
        keeps = {"mask_path": lambda name: tmp_path / f"file/{name}.safetensors", "label": "x"}
    with pytest.raises(StorageError, match="Not a directory"):
        method.merge(replace(given, **keeps))


def test_a_script_tells_it_in_a_line(capsys):
    @program.exit_on_user_error
    def main(argv=None):
        require_writable(Path("/sys/made.json"))

    with pytest.raises(SystemExit, match="^error: /sys/made.json: expected room in /sys"):
        main([])


SYSTEM = [
    (FileExistsError(errno.EEXIST, "", "/etc/passwd"), "/etc/passwd: expected room .* found: File exists \\(.* free"),
    (
        OSError(errno.ENOSPC, ""),
        "a file that is read or written: expected room .* found: No space left on device. Make",
    ),
    (PermissionError(errno.EACCES, "", b"/a"), "/a: expected room .*, found: Permission denied"),
    (NotADirectoryError(errno.ENOTDIR, "", "/a/b"), "/a/b: expected room .*, found: Not a directory"),
]


@pytest.mark.parametrize("error, said", SYSTEM, ids=lambda value: getattr(value, "errno", ""))
def test_what_the_system_says_of_a_place_is_told_in_a_line_wherever_it_comes_from(error, said):
    @program.exit_on_user_error
    def main(argv=None):
        raise error

    with pytest.raises(SystemExit, match=f"^error: {said}"):
        main([])


def test_other_errors_of_the_system_keep_their_traceback():
    @program.exit_on_user_error
    def main(argv=None):
        raise FileNotFoundError(errno.ENOENT, "", "a")

    with pytest.raises(FileNotFoundError):
        main([])


def test_drawing_tries_its_place_first(tmp_path, monkeypatch):
    monkeypatch.setattr(draw, "draw", lambda *which: pytest.fail("it draws first"))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Not a directory|File exists"):
        draw.cached(tmp_path / "file", 0, ("signs",))
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1 << 30, 1 << 30, 1 << 20))
    with pytest.raises(StorageError, match="No space left on device"):
        draw.cached(tmp_path / "cache", 0, ("signs",))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    left, used, foreign = (tmp_path / name for name in (f".a.{'0' * 12}.tmp", f".b.{'1' * 12}.tmp", ".c.tmp"))
    for folder in (left, used, foreign):
        folder.mkdir()
        (folder / "new").write_text("half")
    lock = os.open(used, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # as long as it is written
    with replacing(tmp_path / "made") as temporary:
        assert files.TEMPORARY.fullmatch(temporary.parent.name)
        remove_abandoned(tmp_path)  # as another process would
        temporary.write_text("whole")
    assert {p.name for p in tmp_path.iterdir()} == {"made", used.name, foreign.name}
    os.close(lock)
    remove_abandoned(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"made", foreign.name}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_second_writer_leaves_the_temporary_of_the_first_alone(writer, tmp_path, monkeypatch):
    """Even where a library replaces the file that it was told to write."""
    file, write = WRITERS[writer]

    def replace(temporary, path):
        remove_abandoned(Path(path).parent)  # as the second does, when the first has written its file
        return rename(temporary, path)

    rename = os.replace
    monkeypatch.setattr(files.os, "replace", replace)
    write(tmp_path / file)
    assert (tmp_path / file).exists() and not list(tmp_path.glob(".*"))


def elsewhere(name: str) -> Run:
    return Run.of(device="cpu", places=Places(results=Path(name)))


ODD = ["~", "a=b", "a#b", "a,b", "mes données (1)", "{x}", "${x}", "it's", "a\\b", "[a]", "x" * 200]


@pytest.mark.parametrize("name", ODD)
def test_odd_folders_hold_results_and_checkpoints(name, tmp_path):
    folder = tmp_path / name
    for writer in ("result", "checkpoint", "state", "table", "figure"):
        file, write = WRITERS[writer]
        write(folder / file)
        require_writable(folder / file)
    assert results.read(folder / "made.json")["a"] and checkpoints.load(folder / "made.safetensors", model="small")
    assert len(list(folder.iterdir())) == 6  # and the figure's PDF


@pytest.mark.parametrize("name", [*ODD, "seed_1", "/a/b", "0.5e"])
def test_hydra_reads_odd_paths_as_they_are(name):
    """Those of a command that is told, and those that reproduce.py gives."""
    (told,) = {word for word in COMMANDS[MERGING.name](elsewhere(name))[0].flags if word.startswith("results=")}
    assert told == override("results", name)
    parsed = OverridesParser.create().parse_override(told)
    assert not parsed.is_sweep_override() and str(parsed.value()).replace("\\${", "${") == name


@given(name=st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1))
def test_hydra_reads_any_text_as_it_is(name):
    assume(not name.replace(".", "").replace("_", "").isalnum())  # numbers and words are what Hydra takes them for
    parsed = OverridesParser.create().parse_override(override("results", name))
    assert not parsed.is_sweep_override()
    if isinstance(parsed.value(), float):
        return
    assert str(parsed.value()).replace("\\${", "${") == name


PATH_FLAGS = [pytest.param(parser, action, id=name) for name, parser, action in every_flag() if action.type is Path]


@pytest.mark.parametrize("parser, action", PATH_FLAGS)
def test_a_tilde_is_the_home_folder_in_every_flag_that_is_a_path(parser, action, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parser._get_value(action, "~/x") == tmp_path / "x" and parser._get_value(action, "x/~") == Path("x/~")
    if action.option_strings:
        with pytest.raises(SystemExit) as stop:
            parser.parse_args([f"{action.option_strings[0]}=~nobody_of_this_name/x"])
        assert stop.value.code == 2 and "~nobody_of_this_name/x: expected a home folder" in capsys.readouterr().err


@pytest.mark.parametrize("parser, action", PATH_FLAGS)
@pytest.mark.parametrize("text, said", [("", "found an empty one"), ("r\udce9sultats", "expected a path in UTF-8")])
def test_no_path_and_a_path_that_libraries_cannot_read_are_refused(text, said, parser, action, capsys):
    """An empty one comes of a variable without a value, and would mean the project's own folder."""
    if not action.option_strings:
        with pytest.raises(argparse.ArgumentError, match=said):
            parser._get_value(action, text)
        return
    with pytest.raises(SystemExit) as stop:
        parser.parse_args([f"{action.option_strings[0]}={text}"])
    assert stop.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("key", ["save", "results", "data_location", "cache_dir", "pretrained_path"])
def test_keys_that_are_paths_refuse_the_same_and_are_named(key):
    named = "--pretrained-path" if key == "pretrained_path" else key
    for path, said in (
        ("", "expected .* empty one"),
        ("r\udce9s", ".*a path in UTF-8"),
        (7, "expected a path, found 7"),
    ):
        with pytest.raises(UsageError, match=f"^{named}: {said}"):
            args.take_run(args.shared_flags() | {"model": "ViT-B-32", key: path})


def test_keys_of_merging_that_are_paths_are_named():
    flags = {"finetuning_mode": "standard", "DATASETS": ["signs"], "num_tasks": 8, "save_every": 0, "save_seconds": 1.0}
    flags |= {"eval_every": 0, "search": {}, "scope": "visual", "unseen": None, "format": "suite", "encoders": {}}
    flags |= {"wandb": False, "tensorboard": False, "output": None} | args.shared_flags()
    for wrong, named in (({"output": ""}, "output"), ({"encoders": {"signs": ""}}, "encoders.signs")):
        with pytest.raises(UsageError, match=f"^{named}: expected a path, found an empty one"):
            take_options(flags | wrong)
    with pytest.raises(UsageError, match="^method.mask_file: .*udce9s.*: expected a path in UTF-8"):
        masks_file(Path, False, "r\udce9s", None)


def test_a_checkout_in_a_folder_that_libraries_cannot_read_is_told(monkeypatch):
    monkeypatch.setattr("src.runtime.paths.ROOT", Path("/r\udce9sultats"))
    with pytest.raises(UsageError, match="expected a path in UTF-8; rename it"):
        from_root("results")


def test_a_tilde_is_the_home_folder_in_flags_and_keys_alike(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").touch()
    names = ("save", "results", "cache-dir", "data-location", "pretrained-path")
    flags = ["--model=ViT-B-32", *(f"--{name}=~/x" for name in names)]
    keys = args.shared_flags() | {name.replace("-", "_"): "~/x" for name in names} | {"model": "ViT-B-32"}
    keys |= {
        "finetuning_mode": "standard",
        "DATASETS": "MNIST",
        "num_tasks": 8,
        "save_every": 0,
        "save_seconds": 0,
        "eval_every": 0,
    }
    keys |= {"scope": "visual", "encoders": {"MNIST": "~/x"}, "unseen": [], "search": {}, "format": "suite"}
    keys |= {"output": "~/x.safetensors", "wandb": False, "tensorboard": False}
    run, options = take_options(keys)
    for paths, pretrained in ((run.paths, run.pretrained_path), _of_flags(flags)):
        assert {paths.save, paths.results, paths.cache, paths.data, Path(pretrained)} == {tmp_path / "x"}
    assert options.output == tmp_path / "x.safetensors" and options.source.encoders == (("MNIST", f"{tmp_path}/x"),)
    assert from_root("~/x") == tmp_path / "x"


def _of_flags(flags):
    run = args.parse(args.base_parser(""), flags)[0]
    return run.paths, run.pretrained_path


@pytest.mark.parametrize("method", [TallMask, Consensus, ConcreteTaskArithmetic])
def test_a_tilde_is_the_home_folder_of_a_file_of_masks(method, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises((UsageError, checkpoints.CheckpointError, MissingFile), match=f"{tmp_path}/none.safetensors"):
        method(mask_file="~/none.safetensors").merge(adapting_problems.problem())


def test_no_home_and_no_temporary_folder(monkeypatch, tmp_path):
    for name in ("HOME", "TMPDIR", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    run = Run.of(seed=0, device="cpu", places=Places(tmp_path / "save", tmp_path / "results"))
    write_result(run.paths.result("made"))
    assert results.read(run.paths.result("made"))
    assert os.environ.get("HOME") is None


def test_a_temporary_that_another_process_is_about_to_remove_is_given_up(tmp_path, monkeypatch):
    """It was opened and locked by the other between being made and being locked."""
    flock, other = fcntl.flock, []

    def raced(descriptor, how):
        if not other:
            other.append(os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY))
            flock(other[0], fcntl.LOCK_EX)
        return flock(descriptor, how)

    monkeypatch.setattr(files.fcntl, "flock", raced)
    with files.replacing(tmp_path / "a.json") as temporary:
        (abandoned,) = (path for path in tmp_path.iterdir() if path != temporary.parent)
        abandoned.rmdir()
        temporary.write_text("{}")
    os.close(other[0])
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_temporary_that_another_process_removed_before_it_was_locked_is_given_up(tmp_path, monkeypatch):
    made, mkdir = [], Path.mkdir

    def raced(folder, *rest, **options):
        mkdir(folder, *rest, **options)
        if files.TEMPORARY.fullmatch(folder.name):
            made.append(folder)
            if len(made) == 1:
                remove_abandoned(folder.parent)

    monkeypatch.setattr(Path, "mkdir", raced)
    with files.replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("{}")
    assert len(made) == 2 and [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("text", ["a line", "x" * 100_000], ids=["kept back until the end", "more than is kept back"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_program_whose_reader_has_gone_ends_without_a_word(stream, text, monkeypatch):
    """As of `python make_tables.py | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)

    @program.exit_on_user_error
    def main(argv=None):
        print(text, file=getattr(sys, stream))

    with os.fdopen(writer, "w", 1 if stream == "stderr" else -1) as unread:  # by lines, as Python's own
        monkeypatch.setattr(sys, stream, unread)
        with pytest.raises(SystemExit) as ended:
            main([])
        assert ended.value.code == 141  # of a shell, for SIGPIPE; closing flushes once more


def test_a_pipe_to_another_process_that_breaks_is_a_fault_of_the_program():
    @program.exit_on_user_error
    def main(argv=None):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        main([])
