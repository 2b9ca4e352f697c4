"""What the project installs, and what it prints of where it runs."""

import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from src.runtime import results
from src.runtime.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = sorted({*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])})
LINES = (ROOT / "constraints.txt").read_text().splitlines()
PINNED = dict(line.split("==") for line in LINES if not line.startswith("#"))


@pytest.mark.parametrize("text", REQUIREMENTS)
def test_every_requirement_has_an_exact_version_that_it_allows(text):
    requirement = Requirement(text)
    assert requirement.specifier.contains(PINNED[canonicalize_name(requirement.name)])


def test_results_record_versions_of_pinned_packages():
    assert {canonicalize_name(name) for name in results.PACKAGES.values()} <= PINNED.keys()


def test_the_environment_is_printed_line_by_line():
    command = [sys.executable, "-m", "src.environment"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    printed = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert results.versions().items() <= printed.items()
    assert int(printed["threads"]) >= 1 and printed["device"] and printed["commit"] == (results.commit() or "none")
