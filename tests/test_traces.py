"""A test run that leaves something in the tree or in /dev/shm fails, and says what."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import traces


@pytest.fixture
def project(tmp_path) -> Path:
    """A repository with one tracked file, and this project's own list of what git ignores."""
    root = tmp_path / "project"
    (root / "tests").mkdir(parents=True)
    (root / "kept.txt").write_text("before")
    shutil.copy(traces.ROOT / ".gitignore", root)
    shutil.copy(traces.__file__, root / "tests")
    (root / "tests/conftest.py").write_text("from traces import *\nfrom traces import _BEFORE\n")
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "c"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    return root


def gone() -> int:
    """The id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_files_are_told_and_caches_are_not(project, tmp_path):
    shared = tmp_path / "shm"
    shared.mkdir()
    assert traces.traces(project, shared) == {}
    for name in ("cache/mini/x.npy", ".pytest_cache/a/b", "src/__pycache__/x.pyc", ".hypothesis/x", ".venv/x"):
        (project / name).parent.mkdir(parents=True)
        (project / name).write_text("")
    (shared / f"sem.loky-{os.getpid()}-x").write_text("")  # of a living process: not for a test run to judge
    assert traces.traces(project, shared) == {}
    (project / "kept.txt").write_text("after")
    for name in ("checkpoints/mini/a.safetensors", "outputs/x", "new.txt"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("")
    left = shared / f"torch_{gone()}_1"
    left.write_text("")
    expected = {"kept.txt", "checkpoints/mini/a.safetensors", "outputs/x", "new.txt", str(left)}
    assert set(traces.traces(project, shared)) == expected


LEFT = {
    "nothing": ("pass", None),
    "a result": ("(ROOT / 'reproduced').mkdir(); (ROOT / 'reproduced/a.json').touch()", "reproduced/a.json"),
    "a change": ("(ROOT / 'kept.txt').write_text('after')", "kept.txt"),
    "shared memory": ("Path('/dev/shm/sem.{name}-{pid}-x').touch()", "/dev/shm/sem.{name}-{pid}-x"),
}


@pytest.mark.parametrize("kind", LEFT)
def test_a_run_that_leaves_something_fails_and_names_it(kind, project):
    code, told = LEFT[kind]
    names = {"pid": gone(), "name": project.parent.name}
    fewer = "import traces\nfrom traces import ROOT, Path\n\ntraces.LOOKS = 3\n"
    test = f"{fewer}\ndef test_it():\n    {code.format(**names)}\n"
    (project / "tests/test_it.py").write_text(test)
    program = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    subprocess.run(["git", "add", "."], cwd=project, check=True)
    try:
        alone = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # plugins take longer than the test
        done = subprocess.run(program, cwd=project, capture_output=True, text=True, env=alone)
    finally:
        Path(f"/dev/shm/sem.{names['name']}-{names['pid']}-x").unlink(missing_ok=True)
    assert "1 passed" in done.stdout and done.returncode == (told is not None), done.stdout + done.stderr
    assert ("left traces" in done.stdout) == (told is not None)
    assert told is None or told.format(**names) in done.stdout
