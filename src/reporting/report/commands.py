"""The command that makes each number anew, of every result that the page rests on."""

import json
import shlex
from dataclasses import dataclass

from src.experiments.registry import EXPERIMENTS, NTK
from src.modes import MODES
from src.reporting.methods import Row
from src.reporting.report.setup import WORK
from src.reporting.result import MERGING, VECTORS, Result
from src.reporting.runs import Runs
from src.reporting.table import printed
from src.runtime.messages import few


@dataclass(frozen=True)
class Made:
    """what: the result in words. command: for all of its seeds, one a line where the script takes one."""

    kind: str
    what: str
    seeds: str
    command: str


def commands(runs: Runs) -> list[Made]:
    """One for each kind of result, over the seeds that have it; random towers included."""
    made = []
    for model in (runs, runs.random_init):
        alike: dict[tuple[str, ...], list[Result]] = {}
        for result in model.read:
            if result.experiment != VECTORS:
                alike.setdefault(_identity(runs, result), []).append(result)
        made += [_made(model, results) for results in alike.values()]
    return made


def _identity(runs: Runs, result: Result) -> tuple[str, ...]:
    return tuple(str(value) for name, value in result.columns(runs.suite).items() if name != "seed")


def _made(runs: Runs, results: list[Result]) -> Made:
    first, seeds = results[0], [result.seed for result in results]
    corrupted = (f"corruption={first.corruption}", f"severity={first.severity}") if first.corruption else ()
    if first.experiment == MERGING:
        row = Row.of(first)
        unseen = (f"unseen=[{','.join(first.unseen)}]",) if first.unseen else ()
        scope = (f"scope={first.scope}",) if first.scope != "visual" else ()
        command = runs.merge_command((*corrupted, *row.overrides, *unseen, *scope), first.task_list, first.mode, seeds)
        return Made(WORK[MERGING], _words(runs, first, row.title()), _text(seeds), command)
    if first.encoders:  # of a checkpoint that was named
        return Made(WORK[first.experiment], first.encoders, _text(seeds), first.record["provenance"]["command"])
    flags = [f"--{name}" for name in corrupted]
    experiment = EXPERIMENTS[first.experiment]
    choice = json.loads(first.options)["reduction"] if experiment == NTK else first.mode
    lines = [" ".join([runs.command(experiment, choice, seed), *map(shlex.quote, flags)]) for seed in seeds]
    return Made(WORK[first.experiment], _words(runs, first, ""), _text(seeds), "\n".join(lines))


def _words(runs: Runs, result: Result, title: str) -> str:
    parts = [runs.model if title == "" else title, MODES[result.mode].title if result.mode else ""]
    if result.experiment == NTK.name:
        parts.append(f"reduction {json.loads(result.options)['reduction']}")
    if result.task_list:
        parts.append(f"{len(result.task_list)} tasks")
        if result.task_list != runs.suite_tasks[: len(result.task_list)]:
            parts[-1] += f" ({few(map(printed, result.task_list))})"
    if result.unseen:
        parts.append(f"also scored on {few(map(printed, result.unseen))}")
    if result.corruption:
        parts.append(f"{printed(result.corruption)}, severity {result.severity}")
    return ", ".join(part for part in parts if part)


def _text(seeds: list[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))
