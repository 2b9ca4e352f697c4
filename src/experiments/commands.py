"""The commands of the scripts that each stage of reproduce.py runs."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from src import store
from src.datasets.registry import BENCHMARKS
from src.experiments import stages, studies
from src.experiments.merging import variant_result
from src.experiments.registry import (
    ADDITION,
    ANALOGIES,
    COURSE,
    DISENTANGLEMENT,
    EXPERIMENTS,
    LAYERWISE,
    MERGEABILITY,
    MERGEABILITY_TASKS,
    MERGED_MODELS,
    NTK,
    SINGLE_TASK,
    Experiment,
)
from src.merging.base import Variant
from src.merging.registry import METHODS, WEIGHTS, variants
from src.model_names import random_name
from src.modes import EVALUATED, MODES, SCOPES, TRAINED, usual
from src.run import Corruption, Run, override
from src.runtime import results

FINETUNE, MERGE = "finetune", "main"
# Flags of reproduce.py that only some scripts have.
FORWARDED = {
    "workers": (FINETUNE,),
    "compile": (FINETUNE,),
    "num_samples": tuple(row.script for row in (DISENTANGLEMENT, NTK, LAYERWISE, MERGEABILITY, MERGED_MODELS)),
    "chunk_size": (NTK.script,),
}
SUBSETS = (2, 4, 8, 16)  # numbers of tasks
TSV_C_RANKS = (0.01, 0.03, 0.06, 0.25, 0.5)  # of r; 1/T is the default
PRUNED_TO = (1.0, 2.0, 5.0, 20.0, 40.0)  # percent of the weights; 10 is the default
ADAPTING = (stages.ADAPTATION, stages.ADAPTATION_MORE, stages.METHODS_ADAPTING)  # of methods that learn
CORRUPTED_BY, SEVERITY = ("gaussian_noise", "contrast"), 5  # of the stage robustness


@dataclass(frozen=True)
class Command:
    """One script with its flags, and the files that say that it has run. tasks: entries that they must have.

    after: whether it reads what another command of its stage may keep.
    """

    script: str
    flags: tuple[str, ...]
    outputs: tuple[Path, ...]
    tasks: tuple[str, ...] = ()
    after: bool = False

    @property
    def finished(self) -> bool:
        """Whether its files are there. Only the script itself can say whether they are of what is asked for."""
        return all(path.exists() for path in self.outputs) and not self.tasks_missing

    @property
    def written(self) -> list[int]:
        """When those of its files that are there were written, in ns."""
        return [path.stat().st_mtime_ns for path in self.outputs if path.exists()]

    @property
    def tasks_missing(self) -> bool:
        try:
            return bool(self.tasks) and not all({*self.tasks} <= {*results.read(path)} for path in self.outputs)
        except results.ResultError:
            return True

    def __str__(self) -> str:
        return shlex.join(["python", f"{self.script}.py", *self.flags])


def _fine_tune(run: Run, modes: Sequence[str] = usual(TRAINED), more: tuple[str, ...] = ()) -> list[Command]:
    """more: further flags."""
    return [
        Command(
            FINETUNE,
            (f"--finetuning-mode={mode}", *more, *common_flags(run)),
            tuple(run.paths.checkpoint(task, mode) for task in run.tasks),
        )
        for mode in modes
    ]


def _each(run: Run, experiment: Experiment, choices: Sequence[str] | None = None) -> list[Command]:
    """An experiment with every choice but the extended modes, or with those."""
    run = _first_benchmark(run) if experiment.benchmark else run
    return [
        Command(
            experiment.script,
            (f"{experiment.flag}={choice}", *common_flags(run)),
            (run.paths.result(experiment.result(choice)),),
            run.tasks if experiment == SINGLE_TASK else (),
        )
        for choice in choices or usual(experiment.choices)
    ]


def _first_benchmark(run: Run) -> Run:
    """The papers of the tangent space add and negate the first 8 tasks of a suite."""
    return replace(run, tasks=run.tasks[: BENCHMARKS[0]])


def _all_choices(run: Run, experiment: Experiment) -> list[Command]:
    runs = (run, replace(run, model=random_name(run.model))) if experiment.random_init else (run,)
    return [command for each in runs for command in _each(each, experiment)]


def _random_init(run: Run) -> list[Command]:
    random = replace(_first_benchmark(run), model=random_name(run.model))
    modes = usual(TRAINED)
    return [*_fine_tune(random), *_single_tasks(random, ("none", *modes)), *_each(random, ADDITION, modes)]


def _single_tasks(run: Run, choices: Sequence[str]) -> list[Command]:
    """Of what nobody negates: without the control set."""
    return [replace(command, flags=(*command.flags, "--control=never")) for command in _each(run, SINGLE_TASK, choices)]


def _merging(run: Run, modes: tuple[str, ...] = ("standard",)) -> list[Command]:
    """Every method on the papers' benchmarks, the first 8, 14 and 20 of the suite's tasks, or on those of --tasks."""
    return [
        _merge(replace(run, tasks=run.tasks[:count]), variant, mode=mode)
        for count in _benchmarks(run) or [len(run.tasks)]
        for mode in modes
        for variant in in_order(variants(stages.MERGING.name))
    ]


def _benchmarks(run: Run) -> list[int]:
    """The papers' numbers of tasks that a run has; none where it has tasks of its own choice."""
    suite = run.suite_row
    every = run.tasks in (suite.default, suite.tasks, suite.tasks[: BENCHMARKS[-1]])
    return [count for count in BENCHMARKS if count <= len(run.tasks)] if every else []


def _larger_benchmarks(run: Run) -> list[Run]:
    """A run of 14 and of 20 tasks, of those that the run has."""
    return [replace(run, tasks=run.tasks[:count]) for count in _benchmarks(run) if count > BENCHMARKS[0]]


def _tangent_merging(run: Run) -> list[Command]:
    return _merging(run, tuple(mode for mode in usual(EVALUATED) if MODES[mode].tangent))


def _methods(run: Run) -> list[Command]:
    """Every further method by its defaults, on the kinds of task vectors that are no extended modes'."""
    return _on_every_benchmark(run, _rows(stages.METHODS, defaults=True))


def _variants(run: Run) -> list[Command]:
    """Those methods, and those that adapt, with other options than their defaults."""
    return [
        *_on_every_benchmark(run, _rows(stages.METHODS, defaults=False)),
        *_adapted(run, _rows(*ADAPTING, defaults=False)),
    ]


def _rows(*of: stages.Stage, defaults: bool) -> list[Variant]:
    """defaults: those with a method's defaults, or else those with other options."""
    return in_order(row for stage in of for row in variants(stage.name) if defaults == (not row.options))


def _on_every_benchmark(run: Run, rows: Sequence[Variant]) -> list[Command]:
    """On the papers' eight tasks and every kind of task vectors.

    Those that take weights alone are compared on 14 and 20 tasks too, of non-linear fine-tuning as in their papers.
    """
    first = [_merge(_first_benchmark(run), row, mode=mode) for mode in usual(EVALUATED) for row in rows]
    of_weights = [row for row in rows if METHODS[row.method].needs == WEIGHTS]
    return [*first, *(_merge(larger, row) for larger in _larger_benchmarks(run) for row in of_weights)]


def _merged(run: Run, modes: Iterable[str], *names: str) -> list[Command]:
    """The methods of stages, on the papers' eight tasks."""
    rows = in_order(variant for name in names for variant in variants(name))
    return [_merge(_first_benchmark(run), variant, mode=mode) for mode in modes for variant in rows]


def _further_modes(run: Run) -> list[Command]:
    """Fine-tuning in every extended mode on the papers' eight tasks, and all that is measured of the others."""
    modes = [mode for mode in TRAINED if MODES[mode].extended]
    run = _first_benchmark(run)
    measured = [row for row in EXPERIMENTS.values() if {*modes} <= {*row.choices}]
    return [*_fine_tune(run, modes), *(command for row in measured for command in _each(run, row, modes))]


def _further_modes_merged(run: Run) -> list[Command]:
    """Every method that does not adapt, on the task vectors of every extended mode."""
    return _merged(run, [mode for mode in EVALUATED if MODES[mode].extended], stages.MERGING.name, stages.METHODS.name)


def _adapting_methods(run: Run) -> list[Command]:
    """Every method that adapts, by its defaults; `adaptation` has some of non-linear fine-tuning."""
    return _adapted(run, _rows(*ADAPTING, defaults=True))


def _adapted(run: Run, rows: Sequence[Variant]) -> list[Command]:
    """On the papers' eight tasks and every kind of task vectors."""
    first = _first_benchmark(run)
    return [_merge(first, row, mode=mode, more=("eval_every=0",)) for mode in usual(EVALUATED) for row in rows]


def in_order(rows: Iterable[Variant]) -> list[Variant]:
    """Methods that read what another keeps on disk come after it."""
    return sorted(rows, key=lambda variant: METHODS[variant.method].after is not None)


def _analogies(run: Run) -> list[Command]:
    """Those of the suite, which may have none."""
    return _each(run, ANALOGIES) if run.suite_row.analogies else []


def _mergeability(run: Run) -> list[Command]:
    """Of non-linear fine-tuning, where there are pairs enough."""
    return _each(run, MERGEABILITY, MERGEABILITY.choices[:1]) if len(run.tasks) >= MERGEABILITY_TASKS else []


def _sweeps(run: Run) -> list[Command]:
    """Consensus TA at every threshold of every benchmark, consensus TIES of the first; methods on random subsets.

    Sum, TIES and TALL masks merge random subsets, each of which is in the next. `merging` has the default threshold 2,
    and task arithmetic and zero-shot, which are those of 0 and of more than the number of tasks.
    """
    first = _first_benchmark(run)
    swept = [(first, {}), (first, {"use_ties": True}), *((larger, {}) for larger in _larger_benchmarks(run))]
    commands = [
        _merge(benchmark, Variant("", {"prun_thre_k": k, **base}, method="consensus"))
        for benchmark, base in swept
        for k in (1, *range(3, len(benchmark.tasks) + 1))
    ]
    for count in (size for size in SUBSETS if size < len(run.tasks)):
        commands += [_merge(_subset(run, count), Variant("", method=name)) for name in ("sum", "ties", "tall_mask")]
    return commands


def _subset(run: Run, count: int) -> Run:
    """Random tasks of the run; each subset is in the next larger one."""
    order = np.random.default_rng(run.seed).permutation(len(run.tasks))
    return replace(run, tasks=tuple(run.tasks[i] for i in sorted(order[:count])))


def _numbers_of_tasks(run: Run) -> list[Command]:
    """The methods of the studies on random subsets of the first benchmark, from two tasks on."""
    first = _first_benchmark(run)
    sizes = range(2, len(first.tasks))
    return [_merge(_subset(first, count), variant) for count in sizes for variant in studies.compared()]


def _studies(run: Run, stage: str) -> list[Command]:
    """Fine-tuning, single-task accuracies and merging in the folders of each study of a stage."""
    commands = []
    for study in (study for study in studies.STUDIES if study.stage == stage):
        own = study.run(_first_benchmark(run))
        for tasks, flags in study.trainings(own):
            commands += _fine_tune(replace(own, tasks=tasks), (store.PUBLISHED_MODE,), flags)
        commands += _single_tasks(own, ("none", store.PUBLISHED_MODE))
        commands += [_merge(own, variant) for variant in studies.compared()]
    return commands


def _storage(run: Run) -> list[Command]:
    """Compression to other sizes than the default: ranks of TSV-C, shares of magnitude pruning."""
    ranks = [Variant("", {"rank": rank}, method="tsv_c") for rank in TSV_C_RANKS]
    shares = [Variant("", {"k": k}, method="mag_prune") for k in PRUNED_TO]
    return [_merge(_first_benchmark(run), variant) for variant in (*ranks, *shares)]


def _adaptation(run: Run) -> list[Command]:
    """The methods that adapt at test time, on the papers' eight tasks, as published: on the images that are scored."""
    return [_merge(_first_benchmark(run), variant) for variant in variants(stages.ADAPTATION.name)]


def _compared() -> list[Variant]:
    return [variant for variant in variants() if variant.compared]


def _unseen(run: Run) -> list[Command]:
    """Methods that make one model, on two tasks that they were not merged from."""
    apart = run.suite_row.unseen
    seen = tuple(task for task in run.tasks[: BENCHMARKS[0]] if task not in apart)
    if not (seen and set(apart) <= set(run.tasks)):
        return []
    return [_merge(replace(run, tasks=seen), variant, unseen=apart) for variant in _compared()]


def _more_adaptation(run: Run) -> list[Command]:
    """Task-wise Concrete AdaMerging, AdaMerging++, and adaptation to validation images, so that test is read once."""
    on_val = [
        replace(variant, options={**variant.options, "adapt_on": "val"})
        for variant in _compared()
        if variant.stage == stages.ADAPTATION.name
    ]
    return [_merge(_first_benchmark(run), variant) for variant in (*variants(stages.ADAPTATION_MORE.name), *on_val)]


def _robustness(run: Run) -> list[Command]:
    """Scoring, and adapting, on corrupted test images."""
    commands = []
    for name in CORRUPTED_BY:
        corrupted = replace(run, corruption=Corruption(name, run.corruption.severity if run.corruption else SEVERITY))
        commands += _each(corrupted, SINGLE_TASK, ("none", "standard"))
        for variant in _compared():
            watching = ("eval_every=0",) if variant.stage == stages.ADAPTATION.name else ()
            commands.append(_merge(_first_benchmark(corrupted), variant, more=watching))
    return commands


def _merge(
    run: Run, variant: Variant, mode: str = "standard", unseen: tuple[str, ...] = (), more: tuple[str, ...] = ()
) -> Command:
    """main.py on the run's tasks. more: further overrides."""
    flags = [*variant.overrides, *([f"unseen=[{','.join(unseen)}]"] if unseen else []), *more]
    if run.tasks != run.suite_row.tasks[: len(run.tasks)]:
        flags.append(f"DATASETS=[{','.join(run.tasks)}]")
    elif len(run.tasks) != BENCHMARKS[0]:  # main.py's default
        flags.append(f"num_tasks={len(run.tasks)}")
    if mode != "standard":
        flags.append(f"finetuning_mode={mode}")
    shared = (flag.removeprefix("--").partition("=") for flag in common_flags(run) if not flag.startswith("--tasks="))
    flags += [override(name.replace("-", "_"), value or "True") for name, _, value in shared]
    output = run.paths.result(variant_result(run, variant, mode, unseen))
    return Command(MERGE, tuple(flags), (output,), after=METHODS[variant.method].after is not None)


def in_scopes(commands: Iterable[Command], scopes: Sequence[str]) -> list[Command]:
    """The commands, those of main.py in each scope."""
    return [
        scoped(command, scope) if command.script == MERGE else command
        for command in commands
        for scope in (scopes if command.script == MERGE else scopes[:1])
    ]


def scoped(command: Command, scope: str) -> Command:
    """A command of main.py with another scope than the default."""
    if scope == SCOPES[0]:
        return command
    folders = (path.parent.name.removesuffix(f"-{SCOPES[0]}") for path in command.outputs)
    outputs = (p.parent.with_name(f"{mode}-{scope}") / p.name for p, mode in zip(command.outputs, folders))
    return replace(command, flags=(*command.flags, f"scope={scope}"), outputs=tuple(outputs))


def with_forwarded(command: Command, given: Mapping[str, Any]) -> Command:
    """The command with those of FORWARDED that its script has. What is not given has the script's default."""
    tangent = any(f"--finetuning-mode={mode.name}" in command.flags for mode in MODES.values() if mode.tangent)
    named = {name: value for name, value in given.items() if value is not None and command.script in FORWARDED[name]}
    if tangent:
        named.pop("compile", None)  # finetune.py refuses it of tangent models
    flags = (f"--{name.replace('_', '-')}={value}" for name, value in named.items())
    return replace(command, flags=(*command.flags, *flags))


def _tables(run: Run) -> list[Command]:
    return [Command("make_tables", _reported(run), (run.paths.tables(),))]


def _figures(run: Run) -> list[Command]:
    """The figures, dealt to as many commands as work at once, and the pictures of images, drawn or read for them."""
    from src.reporting.figures import FIGURES  # here, for it imports what draws

    names, folder = tuple(FIGURES), run.paths.figures()
    places = tuple(flag for flag in common_flags(run) if flag.startswith(("--cache-dir=", "--data-location=")))
    dealt = [names[first :: run.jobs] for first in range(min(run.jobs, len(names)))]
    flags = ("--skip-missing", *_reported(run))
    drawings = [
        Command("make_figures", (*some, *flags), tuple(folder / f"{name}.png" for name in some)) for some in dealt
    ]
    if len(drawings) == 1:  # all, which need no naming
        drawings = [Command("make_figures", _reported(run), (folder,))]
    pictures = [
        Command("make_figures", (name, *_reported(run), *places), (folder / f"{name}.png",))
        for name in ("contact", "corruptions")
    ]
    return drawings + pictures


def _report(run: Run) -> list[Command]:
    return [Command("make_report", _reported(run), (run.paths.report(),))]


def _reported(run: Run) -> tuple[str, ...]:
    """The flags of the programs that read results alone."""
    return tuple(flag for flag in common_flags(run) if flag.startswith(("--model=", "--results=")))


def common_flags(run: Run) -> tuple[str, ...]:
    """What every command of a run shares; defaults are left out, so that the commands are those one would type."""
    named = run.named()
    if run.device != Run.of().device:
        named["device"] = run.device
    usual = Run.of(device=run.device)
    if run.batch_size != usual.batch_size:
        named["eval_batch_size"] = run.batch_size
    if run.jobs != usual.jobs:
        named["jobs"] = run.jobs
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in named.items()]
    if run.tasks != run.suite_row.default:
        flags.append(f"--tasks={','.join(run.tasks)}")
    return (*flags, *(["--skip-corrupt"] if run.skip_corrupt else []))


# The commands of one seed, and of the end, by the name of the stage.
COMMANDS: dict[str, Callable[[Run], list[Command]]] = {
    **{row.stage: partial(_all_choices, experiment=row) for row in EXPERIMENTS.values()},
    ANALOGIES.stage: _analogies,
    COURSE.stage: partial(_each, experiment=COURSE, choices=COURSE.choices[:1]),
    MERGEABILITY.stage: _mergeability,
    **{study.stage: partial(_studies, stage=study.stage) for study in studies.STUDIES},
    stages.FINE_TUNING.name: _fine_tune,
    stages.MERGING.name: _merging,
    stages.ADAPTATION.name: _adaptation,
    stages.RANDOM_INIT.name: _random_init,
    stages.MODES.name: _further_modes,
    stages.MODES_MERGING.name: _further_modes_merged,
    stages.MERGING_SWEEPS.name: _sweeps,
    stages.UNSEEN.name: _unseen,
    stages.MERGING_TANGENT.name: _tangent_merging,
    stages.METHODS.name: _methods,
    stages.METHODS_ADAPTING.name: _adapting_methods,
    stages.VARIANTS.name: _variants,
    stages.ADAPTATION_MORE.name: _more_adaptation,
    stages.ROBUSTNESS.name: _robustness,
    stages.STORAGE.name: _storage,
    stages.ROBUST_TASKS.name: _numbers_of_tasks,
    stages.TABLES.name: _tables,
    stages.FIGURES.name: _figures,
    stages.REPORT_PAGE.name: _report,
}
