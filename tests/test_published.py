"""Every command of README.md, docs/ and runs/ is one that its script takes: all are parsed, none is run."""

import importlib
import re
import shlex
from pathlib import Path

import hydra
import pytest
import vision_files
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import reproduce
from src import args as arguments
from src.datasets import __main__ as datasets_command
from src.datasets import own
from src.datasets.prepare import prepare
from src.experiments import commands
from src.experiments.merging import take_options
from src.merging import files as merging_files
from src.merging.registry import config_schemas
from src.published import convert as converting
from src.run import Run
from src.runtime.paths import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
RUNS = sorted((ROOT / "runs").glob("*.sh"))


def commands_of(page: Path) -> list[str]:
    """Those that start Python, without comments; of a shell file, for its usual arguments."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".sh":
        usual = dict(re.findall(r"^([A-Z]+)=\$\{\d:-(.*)\}$", text, re.MULTILINE))
        text = re.sub(r'"?\$\{?([A-Z]+)\}?', lambda found: usual[found[1]], text.partition("\n\n")[2]).replace('"', "")
    else:
        text = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    lines = [shlex.join(shlex.split(line, comments=True)) for line in text.splitlines()]
    return [line for line in lines if line.startswith(("python ", "torchrun "))]


VISION = commands_of(ROOT / "docs" / "vision.md")
COMMANDS = list(dict.fromkeys(line for page in (*PAGES, *RUNS) for line in commands_of(page)))


class Parsed(Exception):
    """The command line was taken; the work would begin here."""


def stopping_after(parse):
    def parse_and_stop(*given, **named):
        parse(*given, **named)
        raise Parsed

    return parse_and_stop


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses(command, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(arguments, "check_devices", lambda device: None)  # another machine has more of them
    launcher, *rest = shlex.split(command)
    if launcher == "torchrun":
        script = next(place for place, word in enumerate(rest) if word.endswith(".py"))
        assert all(re.fullmatch(r"--[a-z-]+(=.+)?", word) for word in rest[:script])
        rest = rest[script:]
    script, *flags = rest
    for file in (word.partition("=")[2] for word in flags if word.startswith("--pretrained-path=")):
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    if script == "-m":
        if flags[0] == "src.published.convert":
            monkeypatch.setattr(converting, "convert", stopping_after(lambda *_, **__: None))
            monkeypatch.setattr(converting, "Checkpoint", lambda path, **_: {})  # there is none in this folder
            with pytest.raises(Parsed):
                converting.main(flags[1:])
        else:
            assert (ROOT / f"{flags[0].replace('.', '/')}.py").exists() or flags[0] == "src.datasets"
            assert flags[0] != "src.datasets" or datasets_command.parse(flags[1:])
    elif script == "merge_checkpoints.py":
        monkeypatch.setattr(merging_files, "merge_files", stopping_after(lambda **_: None))
        with pytest.raises(Parsed):
            importlib.import_module("merge_checkpoints").main(flags)
    elif script == "main.py":
        suites = compose(flags) if flags != ["--methods"] else set()
        assert command not in VISION or suites == {"vision"}
    elif script == "reproduce.py":
        reproduce.main([*flags, "--dry-run", f"--results={tmp_path}"])
        assert "would run" in capsys.readouterr().out
    else:
        module = importlib.import_module(script.removesuffix(".py"))
        name = "parse" if hasattr(module, "parse") else "parse_reporting"  # those that read results alone
        monkeypatch.setattr(module, name, stopping_after(getattr(module, name)))
        with pytest.raises(Parsed):
            module.main(flags)


@pytest.fixture(scope="module", autouse=True)
def schemas() -> None:
    for group, name, schema in ((None, "flags", arguments.shared_flags()), *config_schemas()):
        ConfigStore.instance().store(group=group, name=name, node=schema)


def compose(flags: list[str]) -> set[str]:
    """The suites of what main.py would run: Hydra's configuration of every job of a sweep, completed."""
    suites = set()
    words = [word for word in flags if word != "--multirun"]
    if any(word.startswith("hydra/launcher=") for word in words):
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    overrides = OverridesParser.create().parse_overrides(words)
    (jobs,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    assert len(jobs) == 1 or "--multirun" in flags
    others = {tuple(word for word in job if not word.startswith("seed=")): job for job in jobs}  # seeds are all alike
    with hydra.initialize_config_dir(str(ROOT / "config"), version_base="1.3"):
        for job in others.values():
            cfg = hydra.compose("config", overrides=list(job), return_hydra_config=True)
            flags = OmegaConf.to_container(cfg, resolve=True)
            del flags["hydra"], flags["method"]
            suites.add(take_options(flags)[0].suite)
    return suites


def test_the_page_has_commands_of_every_kind():
    scripts = {word for command in VISION for word in command.split() if word.endswith(".py")}
    assert scripts >= {"finetune.py", "download_checkpoints.py", "main.py", "reproduce.py", "make_tables.py"}
    assert len(VISION) > 20 and len(RUNS) == 3 and all(len(commands_of(file)) > 8 for file in RUNS)


def test_reproduce_adds_and_negates_the_tasks_of_the_papers():
    run = Run.of(suite="vision")
    stages = [commands.COMMANDS[name] for name in ("addition", "negation", "random-init")]
    asked = [command for stage in stages for command in stage(run)]
    assert len(run.tasks) == 20 and len(stages) == 3
    assert all(f"--tasks={','.join(run.tasks[:8])}" in command.flags for command in asked)


def test_reproduce_merges_in_the_scope_that_is_asked_for(tmp_path, capsys):
    """`--scope=both`: each command of main.py twice, with results of their own; the others once."""
    lines = {}
    for scope in ("visual", "published", "both"):
        reproduce.main(["--model=ViT-B-32", "--dry-run", f"--results={tmp_path}", f"--scope={scope}"])
        told = (line.strip() for line in capsys.readouterr().out.splitlines() if "python" in line)
        lines[scope] = [line.partition("python ")[2] for line in told]
    merges = [line for line in lines["visual"] if line.startswith("main.py")]
    assert merges and not any("scope=" in line for line in lines["visual"])
    assert [line for line in lines["published"] if line.startswith("main.py")] == [
        f"{m} scope=published" for m in merges
    ]
    assert set(lines["both"]) == {*lines["visual"], *lines["published"]}
    run = Run.of("ViT-B-32", device="cpu")
    command = commands._merging(run)[0]
    assert commands.scoped(command, "published").outputs[0].parent.name == "standard-published"


def test_the_data_set_of_the_page_is_one(tmp_path):
    """Its YAML, with folders of this machine in the place of the page's."""
    page = (ROOT / "docs" / "vision.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    vision_files.class_folders("shapes", tmp_path, {"train": 10, "test": 2}, ["circle", "square"])
    (tmp_path / "shapes.yaml").write_text(text.replace("/data/shapes", str(tmp_path)))
    facts, row = own.read(tmp_path / "shapes.yaml")
    assert prepare(facts, tmp_path / "data").size("val") == 2
    assert row.templates == ("a drawing of a {}.",) and len(row.load("test", tmp_path / "data", 0)) == 4
