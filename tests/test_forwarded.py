"""reproduce.py hands every flag on to the commands that have it."""

import shlex

import pytest

import reproduce
from src import args as arguments
from src.experiments.commands import FORWARDED, MERGE, Command, common_flags, with_forwarded
from src.modes import MODES, TRAINED
from src.run import Run, known_device
from src.runtime import distributed
from src.runtime.messages import UsageError

GIVEN = {"workers": 3, "compile": "inductor", "num_samples": 7, "chunk_size": 5}
SHARED = ("--precision=tf32", "--jobs=3", "--skip-corrupt", "--eval-batch-size=17")


@pytest.fixture(scope="module")
def commands() -> list[list[str]]:
    """The words of every command of a dry run of all stages."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in GIVEN.items()]
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **named: told.append(" ".join(map(str, words))))
        reproduce.main(["--dry-run", "--extended", "--results=nowhere", *SHARED, *flags])
    lines = [line.partition("would run:")[2].partition("  #")[0] for line in told if "would run:" in line]
    return [shlex.split(line) for line in lines]


def test_shared_flags_are_those_of_every_command(commands):
    assert len(commands) > 100
    for _, script, *words in commands:
        if script in ("make_tables.py", "make_figures.py", "make_report.py"):
            continue
        for flag in SHARED:
            name, _, value = flag.removeprefix("--").partition("=")
            told = f"{name.replace('-', '_')}={value or 'True'}" if script == f"{MERGE}.py" else flag
            assert told in words, (script, words)


@pytest.mark.parametrize("name", FORWARDED)
def test_a_scripts_own_flag_comes_to_it_and_to_no_other(commands, name):
    flag, seen = f"--{name.replace('_', '-')}={GIVEN[name]}", set()
    for _, script, *words in commands:
        modes = [mode for mode in MODES if f"--finetuning-mode={mode}" in words]
        refused = name == "compile" and any(MODES[mode].tangent for mode in modes)
        assert (flag in words) == (script.removesuffix(".py") in FORWARDED[name] and not refused), (script, words)
        seen |= {script.removesuffix(".py")} if flag in words else set()
    assert seen == {*FORWARDED[name]}


def test_what_is_not_given_is_left_to_the_script():
    command = Command("finetune", ("--finetuning-mode=standard",), ())
    assert with_forwarded(command, dict.fromkeys(FORWARDED)) == command
    assert with_forwarded(command, {"workers": 0}).flags[-1] == "--workers=0"


@pytest.mark.parametrize("mode", TRAINED)
def test_compiling_is_asked_of_modes_that_can(mode):
    command = with_forwarded(Command("finetune", (f"--finetuning-mode={mode}",), ()), {"compile": "inductor"})
    assert ("--compile=inductor" in command.flags) == (not MODES[mode].tangent)


@pytest.mark.parametrize(
    "flags, told", [(["--precision=bf16"], "the tangent models"), (["--workers=-1"], "at least 0")]
)
def test_wrong_flags_are_told_before_the_first_command(flags, told, capsys):
    with pytest.raises(SystemExit) as done:
        reproduce.main(["--dry-run", *flags])
    assert done.value.code == 2 and told in capsys.readouterr().err


@pytest.mark.parametrize("device", ["mps", "mps:0", "xpu", "meta"])
def test_devices_on_which_nothing_was_tried_are_refused(device):
    with pytest.raises(UsageError, match=f"--device: expected cpu or a CUDA GPU, found '{device}'"):
        known_device(device)
    with pytest.raises(UsageError, match="nothing was tried"):
        arguments.parse(arguments.base_parser(""), [f"--device={device}"])


def test_a_gpus_larger_batches_are_its_default_and_no_flag(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(distributed, "_gpus", lambda: 2)
    for device, size in (("cpu", 100), ("cuda", 256), ("cuda:1", 256)):
        run = Run.of(device=device)
        assert run.batch_size == size and not [flag for flag in common_flags(run) if "batch" in flag]
        assert "--eval-batch-size=17" in common_flags(Run.of(device=device, batch_size=17))
