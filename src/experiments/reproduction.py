"""Every stage of a suite in order, as the commands of the scripts; finished work is skipped."""

import importlib
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from src import scores
from src.args import BOTH
from src.experiments import durations, stages
from src.experiments.commands import COMMANDS, MERGE, Command, in_scopes, with_forwarded
from src.modes import SCOPES
from src.ranges import RANGES, check
from src.reporting.shipped import compared_with_shipped, recorded_seconds
from src.run import Run
from src.runtime.parallel import WorkerKilled, map_tasks
from src.runtime.results import ResultError


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
    with scores.shared():
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
    folder = run.places.results / run.suite
    # Only what the usual flags take is recorded, and foreseen.
    usual = scope == SCOPES[0] and run.tasks == run.suite_row.default and not {*forwarded.values()} - {None}
    known = durations.foreseen(run.suite, run.model, run.jobs) if usual else {}
    took: dict[str, list[float]] = {}
    minutes: dict[str, float | None] = {}
    for seed in seeds or [run.seed]:
        for stage in stages.chosen(stages.STAGES, only, extended):
            start, before = time.time(), len(program.failed)
            commands = in_scopes(COMMANDS[stage.name](replace(run, seed=seed)), SCOPES if scope == BOTH else (scope,))
            ran = program.run_all([with_forwarded(command, forwarded) for command in commands], stage.apart)
            if dry_run:
                title = f"seed {seed}, {stage.name}"
                minutes |= program.foresee(title, known.get(stage.name), len(commands), run.jobs if stage.apart else 1)
                continue
            seconds = time.time() - start
            print(f"seed {seed}, {stage.name}: {f'{seconds:.0f} s' if ran else 'finished before'}", flush=True)
            if ran == len(commands) > 0 and len(program.failed) == before:
                took.setdefault(stage.name, []).append(seconds)
    for stage in stages.chosen(stages.REPORT, only, extended):
        start = time.time()
        program.run_all(COMMANDS[stage.name](run), stage.apart, always=True)
        took[stage.name] = [time.time() - start]
        if dry_run:
            minutes |= program.foresee(stage.name, known.get(stage.name), len(COMMANDS[stage.name](run)))
    if program.failed:
        print(f"{len(program.failed)} of the commands failed; run them by themselves to see why:")
        print("\n".join(f"  {command}" for command in program.failed))
        raise SystemExit(1)
    if dry_run:
        timed = sum(value for value in minutes.values() if value is not None)
        others = ", ".join(title for title, value in minutes.items() if value is None)
        print(
            f"{program.foreseen} commands are left: about {timed:.0f} minutes with {run.jobs} jobs"
            f"{f'; no time is known of {others}' if others else ''}"
        )
        return
    print(f"all stages finished in {(time.time() - began) / 60:.1f} minutes; results in {folder}")
    if usual and {*took} - {stage.name for stage in stages.REPORT}:
        durations.record(folder, run.model, run.jobs, run.device, {stage: fmean(each) for stage, each in took.items()})
    if comparison := compared_with_shipped(run.suite, run.model, run.places.results):
        print(comparison)


class Program:
    """Runs commands, and remembers those that failed: in this process, which keeps its workers, or in the workers."""

    def __init__(self, dry_run: bool, overwrite: bool, results: Path, jobs: int = 1, device: str = "cpu"):
        self.dry_run, self.overwrite, self.results = dry_run, overwrite, results
        self.jobs, self.device = jobs, device
        # Of a dry run: seconds of the commands of a stage that are left, where they are known; and commands in all.
        self.waiting: list[float | None] = []
        self.foreseen = 0
        self.failed: list[Command] = []

    def run_all(self, commands: Sequence[Command], apart: bool = False, always: bool = False) -> int:
        """Run commands unless they are finished; how many had anything to do.

        apart: so many at once as there are jobs, the longest first, so that all end together, and in the end those that
        read what others keep. always: also where they are finished.
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
            if fails(command, self.overwrite and not always):
                self.failed.append(command)
        waiting.sort(key=self._seconds, reverse=True)
        for after in (False, True):
            self._at_once([command for command in waiting if command.after == after], self.overwrite and not always)
        return ran

    def _at_once(self, commands: Sequence[Command], overwrite: bool) -> None:
        """A worker that is killed ends the others; what they had not finished is tried once more, by new ones."""
        work, kills = partial(fails, overwrite=overwrite, processes=self.jobs), 0
        before = {command: command.written for command in commands}
        while commands and kills < 2:
            try:
                failed = map_tasks(work, commands, self.jobs, "commands", self.device)
                self.failed += [command for command, one in zip(commands, failed) if one]
                return
            except WorkerKilled as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
                commands, kills = [c for c in commands if not c.finished or c.written == before[c]], kills + 1
        self.failed += commands

    def _seconds(self, command: Command) -> float:
        """How long the shipped counterpart took; 0 where nothing tells."""
        try:
            return recorded_seconds(command.outputs, self.results) or 0.0
        except ResultError:  # which the command finds too, or makes anew
            return 0.0

    def _foresee(self, command: Command, there: bool) -> None:
        if there:
            print(f"  there already: {command}")
            return
        self.waiting.append(recorded_seconds(command.outputs, self.results))
        print(f"  would run:     {command}")

    def foresee(self, title: str, seconds: float | None, commands: int, at_once: int = 1) -> dict[str, float | None]:
        """Title -> minutes of the stage whose commands were just named, None where unknown; {} for nothing to do.

        seconds: of all of its commands. Where they are not known, what the shipped results took one by one, of which so
        many are made at once.
        """
        waiting, self.waiting = self.waiting, []
        self.foreseen += len(waiting)
        if not waiting:
            return {}
        each = [value for value in waiting if value is not None]
        if seconds is not None:
            minutes = seconds * len(waiting) / commands / 60
        elif len(each) == len(waiting):
            minutes = sum(each) / 60 / at_once
        else:
            print(f"{title}: no time is known", flush=True)
            return {title: None}
        print(f"{title}: about {minutes:.1f} min", flush=True)
        return {title: minutes}


def fails(command: Command, overwrite: bool, processes: int = 1) -> bool:
    """Run a command, tell what it has not told itself, and say whether it failed. processes: that do so at once."""
    print(f"  {command}", flush=True)
    try:
        with scores.shared(processes):
            _call(command, overwrite)
    except SystemExit as error:
        if isinstance(error.code, str):  # a number was told of before
            print(error.code, file=sys.stderr, flush=True)
        return bool(error.code)
    except Exception:
        traceback.print_exc()
        return True
    finally:
        sys.stdout.flush()  # of a worker, which does not end here
    return False


def _call(command: Command, overwrite: bool) -> None:
    again = "overwrite=True" if command.script == MERGE else "--overwrite"
    flags = [*command.flags, *([again] if overwrite else [])]
    typed, sys.argv = sys.argv, [f"{command.script}.py", *flags]  # what results name as the command that made them
    try:
        importlib.import_module(command.script).main(flags)
    finally:
        sys.argv = typed
