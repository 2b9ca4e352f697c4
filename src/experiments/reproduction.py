"""Every stage of a suite in order, as the commands of the scripts; finished work is skipped."""

import importlib
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from src import scores
from src.args import BOTH
from src.experiments import stages
from src.experiments.commands import COMMANDS, MERGE, Command, in_scopes, with_forwarded
from src.modes import SCOPES
from src.ranges import RANGES, check
from src.reporting.shipped import compared_with_shipped, recorded_seconds
from src.run import Run
from src.runtime.parallel import map_tasks


def reproduce(
    run: Run,
    seeds: Sequence[int] | None = None,
    only: Sequence[str] | None = None,
    extended: bool = False,
    dry_run: bool = False,
    scope: str = SCOPES[0],
    overwrite: bool = False,
    **forwarded: Any,
) -> None:
    """Run the stages of every seed, then tables, figures and the page. only: names of stages.

    scope: of the vectors that are merged, or "both", one after the other. forwarded: values of FORWARDED, by name.

    A command that fails is reported, those that do not need it still run, and the exit status is 1.
    """
    run.require_mantissa("the tangent models of the suite")
    check(**{name: value for name, value in forwarded.items() if name in RANGES})
    with scores.kept():
        _reproduce(run, seeds, only, extended, dry_run, scope, overwrite, forwarded)


def _reproduce(
    run: Run,
    seeds: Sequence[int] | None,
    only: Sequence[str] | None,
    extended: bool,
    dry_run: bool,
    scope: str,
    overwrite: bool,
    forwarded: Mapping[str, Any],
) -> None:
    began, program = time.time(), Program(dry_run, overwrite, run.paths.results, run.jobs, run.device)
    for seed in seeds or [run.seed]:
        for stage in stages.chosen(stages.STAGES, only, extended):
            start = time.time()
            commands = in_scopes(COMMANDS[stage.name](replace(run, seed=seed)), SCOPES if scope == BOTH else (scope,))
            ran = program.run_all([with_forwarded(command, forwarded) for command in commands], stage.apart)
            if not dry_run:
                took = f"{time.time() - start:.0f} s" if ran else "finished before"
                print(f"seed {seed}, {stage.name}: {took}", flush=True)
    for stage in stages.chosen(stages.REPORT, only, extended):
        program.run_all(COMMANDS[stage.name](run), stage.apart, always=True)
    if program.failed:
        print(f"{len(program.failed)} of the commands failed; run them by themselves to see why:")
        print("\n".join(f"  {command}" for command in program.failed))
        raise SystemExit(1)
    if dry_run:
        known = [seconds for seconds in program.foreseen if seconds is not None]
        print(
            f"{len(program.foreseen)} commands would run; {len(known)} of them took {sum(known) / 60:.0f} minutes "
            "where the shipped results were made"
        )
    else:
        minutes = (time.time() - began) / 60
        print(f"all stages finished in {minutes:.1f} minutes; results in {run.places.results / run.suite}")
        if comparison := compared_with_shipped(run.suite, run.model, run.paths.results):
            print(comparison)


class Program:
    """Runs commands, and remembers those that failed: in this process, which keeps its workers, or in the workers."""

    def __init__(self, dry_run: bool, overwrite: bool, results: Path, jobs: int = 1, device: str = "cpu"):
        self.dry_run, self.overwrite, self.results = dry_run, overwrite, results
        self.jobs, self.device = jobs, device
        self.foreseen: list[float | None] = []  # seconds of each command that a dry run names, where they are known
        self.failed: list[Command] = []

    def run_all(self, commands: Sequence[Command], apart: bool = False, always: bool = False) -> int:
        """Run commands unless they are finished; how many had anything to do.

        apart: so many at once as there are jobs. always: also where they are finished.
        """
        ran = 0
        waiting: list[Command] = []
        for command in commands:
            there = command.finished and not always and not self.overwrite
            if self.dry_run:
                self._foresee(command, there)
                continue
            ran += not there
            if apart and not there:
                waiting.append(command)
                continue
            print(f"  {command}", flush=True)
            self._heed(command, _outcome(command, self.overwrite and not always))
        if waiting:
            print("\n".join(f"  {command}" for command in waiting), flush=True)
            work = partial(_outcome, overwrite=self.overwrite and not always)
            for command, outcome in zip(waiting, map_tasks(work, waiting, self.jobs, "commands", self.device)):
                self._heed(command, outcome)
        return ran

    def _foresee(self, command: Command, there: bool) -> None:
        if there:
            print(f"  there already: {command}")
            return
        seconds = recorded_seconds(command.outputs, self.results)
        self.foreseen.append(seconds)
        print(f"  would run:     {command}{'' if seconds is None else f'  # {seconds / 60:.1f} min'}")

    def _heed(self, command: Command, error: str | None) -> None:
        if error is not None:
            print(error, end="", file=sys.stderr, flush=True)
            self.failed.append(command)


def _outcome(command: Command, overwrite: bool) -> str | None:
    """None of a command that came to its end; else the traceback of what it has not told itself, or nothing."""
    try:
        with scores.kept():
            _call(command, overwrite)
    except SystemExit as error:
        return _told(error) if error.code else None
    except Exception:
        return traceback.format_exc()
    finally:
        sys.stdout.flush()  # of a worker, which does not end here
    return None


def _told(error: SystemExit) -> str:
    """A number was told of before."""
    return f"{error.code}\n" if isinstance(error.code, str) else ""


def _call(command: Command, overwrite: bool) -> None:
    again = "overwrite=True" if command.script == MERGE else "--overwrite"
    flags = [*command.flags, *([again] if overwrite else [])]
    typed, sys.argv = sys.argv, [f"{command.script}.py", *flags]  # what results name as the command that made them
    try:
        importlib.import_module(command.script).main(flags)
    finally:
        sys.argv = typed
