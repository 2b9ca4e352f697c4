"""What tables, figures and claims read: all results of one model of a suite, over seeds."""

import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean as mean
from typing import Any

import numpy as np
import pandas as pd

from src.datasets import registry
from src.experiments.numbers import MEAN
from src.experiments.registry import EXPERIMENTS, NTK, SINGLE_TASK, Experiment
from src.experiments.studies import STUDIES
from src.model_names import ModelName, pretrained_name, random_name
from src.modes import MODES
from src.reporting import frame
from src.reporting.published import published_model
from src.reporting.result import VECTORS, Result, as_text, chosen, joined, read_results
from src.run import Run, override
from src.runtime.messages import UsageError, few
from src.runtime.paths import Paths, Places, from_root, portable
from src.runtime.results import MissingResult

# Entries of a result's configuration that decide none of its numbers, or that tell results apart.
UNCOUNTED = frozenset(
    "seed tasks jobs device workers compile chunk_size pretrained_path batch_size eval_batch_size save results cache "
    "data cache_dir data_location skip_corrupt save_every save_seconds eval_every output overwrite wandb tensorboard "
    "method search encoders unseen corruption severity DATASETS num_tasks".split()
)
DESIGN_SEED = 0  # settings were chosen on it, so it stays out of what is reported
FIRST_SEED = 1
# Columns that a selection leaves out have these values: clean images, own checkpoints, the mean over tasks, on test,
# after validation has chosen.
USUAL = {
    "corruption": "", "severity": 0, "method": "", "options": "", "encoders": "", "unseen": "", "task": MEAN,
    "split": "test", "setting": None,
}  # fmt: skip


@dataclass(frozen=True)
class Runs:
    """All results of one model of a suite.

    results: the folder of all results. chosen_seeds: those to report; by default all that are there but the design
    seed, unless it is the only one.
    """

    suite: str
    model: str
    results: Path
    chosen_seeds: tuple[int, ...] | None = None
    _masks: dict[tuple[str, Any], np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        if self.chosen_seeds is not None:
            return self.chosen_seeds
        return tuple(seed for seed in self.seeds_there if seed != DESIGN_SEED) or self.seeds_there

    @cached_property
    def seeds_there(self) -> tuple[int, ...]:
        """Every seed that has a folder."""
        folders = self.paths.seed_results().parent.glob("seed_*")
        return tuple(sorted(int(folder.name.removeprefix("seed_")) for folder in folders))

    @property
    def command_seeds(self) -> tuple[int, ...]:
        """Those that a command for missing results names."""
        return self.seeds or (FIRST_SEED,)

    def check(self) -> None:
        """Raise UsageError where there are no results of the model, or none of a chosen seed."""
        where, others = self.results / self.suite, [model for model in self.models if model != self.model]
        if not self.seeds_there:
            there = f"there are {', '.join(others)}" if others else f"make some with: {self.reproduce_command()}"
            raise UsageError(f"--model: expected results of {self.model} in {where}, found none; {there}")
        if absent := [seed for seed in self.seeds if seed not in self.seeds_there]:
            raise UsageError(
                f"--seeds: expected seeds of {self.model} with results in {where}, found none of "
                f"{', '.join(map(str, absent))}; there are {', '.join(map(str, self.seeds_there))}"
            )
        for result in self.of_other_tasks:
            print(
                f"{result.file}: left out, for it is of {few(result.tasks)}, and reports are of the first "
                f"{len(self.main_tasks)} tasks; make it anew with: "
                f"{self.command(EXPERIMENTS[result.experiment], result.mode, result.seed)} --overwrite",
                file=sys.stderr,
            )
        for result, differences in self.of_other_options:
            print(
                f"{result.file}: left out, for it was made with {differences}; make it anew with the others' options "
                f"and: {self._anew(result)}",
                file=sys.stderr,
            )
        if not self.read:
            raise UsageError(f"expected results of {self.model} in {where}, found none of the suite's tasks")

    @cached_property
    def read(self) -> tuple[Result, ...]:
        """Every result of the seeds that reports are of. Raises ResultError for a damaged one, or unlike its schema."""
        left_out = [result for result, _ in self.of_other_options]
        return tuple(result for result in self._of_these_tasks if not any(result is other for other in left_out))

    @cached_property
    def _of_these_tasks(self) -> list[Result]:
        return [result for result in self._there if not any(result is other for other in self.of_other_tasks)]

    @cached_property
    def of_other_tasks(self) -> tuple[Result, ...]:
        """Results that are left out: of an experiment on the first benchmark, and of other tasks than that."""
        return tuple(
            result
            for result in self._there
            if result.experiment in EXPERIMENTS
            and EXPERIMENTS[result.experiment].benchmark
            and {*result.tasks} not in ({*self.main_tasks}, set())
        )

    @cached_property
    def of_other_options(self) -> tuple[tuple[Result, str], ...]:
        """Results that are left out: made with other options than most seeds, such as another number of coefficients.

        With each what differs, in words. Where no options have most seeds, those of the first seed count: a mean over
        different options would be one of nothing.
        """
        alike: dict[tuple, list[Result]] = {}
        for result in self._of_these_tasks:
            if result.experiment != VECTORS:
                alike.setdefault(result.identity, []).append(result)
        others = []
        for results in alike.values():
            configs = [result.record["provenance"]["config"] for result in results]
            shared = [name for name in configs[0] if name not in UNCOUNTED and all(name in other for other in configs)]
            options = [{name: str(config[name]) for name in shared} for config in configs]
            usual = max(options, key=options.count)
            for result, own in zip(results, options):
                if own != usual:
                    names = [name for name in shared if own[name] != usual[name]]
                    told = ", ".join(f"{name} = {own[name]} (others: {usual[name]})" for name in names)
                    others.append((result, told))
        return tuple(others)

    @cached_property
    def _there(self) -> tuple[Result, ...]:
        return tuple(result for seed in self.seeds for result in read_results(self.paths_of(seed)))

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A number a row; see frame.py. Raises ResultError."""
        return frame.frame(self.suite, ((self.model, result) for result in self.read))

    def select(self, **columns: Any) -> pd.DataFrame:
        """The rows that have these values, and the usual ones in the other columns of USUAL.

        Tuples of names stand for them joined, dicts for options, a list for any of its values, `...` for all.
        """
        return self.frame[self._rows(columns)]

    def _rows(self, columns: Mapping[str, Any]) -> np.ndarray:
        """Which rows `select` has. A row has many columns of text: numbers are taken without copying those."""
        mask = np.ones(len(self.frame), bool)
        for column, value in {**USUAL, **columns}.items():
            if value is ...:
                continue
            value = joined(value) if isinstance(value, tuple) else as_text(value) if isinstance(value, dict) else value
            mask &= self._where(column, value)
        return mask

    def _where(self, column: str, value: Any) -> np.ndarray:
        key = column, tuple(value) if isinstance(value, list) else value
        if key not in self._masks:
            of_column = self.frame[column]
            if isinstance(value, list):
                self._masks[key] = of_column.isin(value).to_numpy()
            else:
                self._masks[key] = (of_column.isna() if value is None else of_column == value).to_numpy(bool)
        return self._masks[key]

    def values(self, **columns: Any) -> pd.Series:
        """The number that `select` finds for each seed; empty where no seed has it."""
        rows = self._rows(columns)
        value, seed = (self.frame[name].to_numpy()[rows] for name in ("value", "seed"))
        return pd.Series(value, seed, dtype=float).dropna()

    def any_of(self, **columns: Any) -> pd.Series:
        """For each seed the first of numbers that are all the same."""
        return self.select(**columns).groupby("seed")["value"].first()

    def mean_over(self, tasks: Sequence[str] | None, geometric: bool = False, **columns: Any) -> pd.Series:
        """For each seed that has all of them, the mean over tasks, or over pairs of them; None: over all of each.

        Sums are rounded once, as in the results; pandas' own mean can differ in a printed digit.
        """
        rows = self.frame[["value", "seed"]][self._rows({"task": ... if tasks is None else list(tasks), **columns})]
        numbers = np.log(rows["value"]) if geometric else rows["value"]
        of_seed = numbers.groupby(rows["seed"]).agg(["count", "size", mean])
        expected = of_seed["size"] if tasks is None else len(tasks)
        means = of_seed["fmean"][of_seed["count"] == expected]
        return np.exp(means) if geometric else means

    def find(self, experiment: str, **fields: Any) -> dict[int, Any]:
        """Seed -> record of the results whose fields (of Result) have these values; by default on clean images."""
        wanted = {"experiment": experiment, "corruption": "", "encoders": ""} | fields
        wanted = {name: as_text(value) if isinstance(value, dict) else value for name, value in wanted.items()}
        there = self._of_method.get((experiment, wanted["method"]), ()) if "method" in wanted else self.read
        return {r.seed: r.record for r in there if all(getattr(r, name) == v for name, v in wanted.items())}

    @cached_property
    def _of_method(self) -> Mapping[tuple[str, str], list[Result]]:
        there: Mapping[tuple[str, str], list[Result]] = defaultdict(list)
        for result in self.read:
            there[result.experiment, result.method].append(result)
        return there

    def of(self, experiment: Experiment, choice: str) -> dict[int, Any]:
        """Seed -> record of an experiment with a choice."""
        return self.find(**chosen(experiment, choice))

    def require(self, experiment: Experiment, choice: str) -> dict[int, Any]:
        """`of`, or MissingResult with the command that makes it."""
        if records := self.of(experiment, choice):
            return records
        command = self.command(experiment, choice, self.command_seeds[0])
        raise MissingResult(
            f"expected the result {experiment.result(choice)} of {self.model}, found none; make it with: {command}"
        )

    def modes(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those that are no extended modes, and the extended ones that have results."""
        there = {result.mode for result in self.read}
        return tuple(name for name in names if name in there or not MODES[name].extended)

    @cached_property
    def extended_seeds(self) -> tuple[int, ...]:
        """Those that a command for results of an extended stage names: the seeds that have any, or all."""
        there = {result.seed for result in self.read if result.is_extended(self.main_tasks)}
        return tuple(seed for seed in self.command_seeds if seed in there) or self.command_seeds

    def missing(self, experiment: Experiment, choices: Iterable[str]) -> list[str]:
        """The commands that make those results that are not there."""
        return [
            self.command(experiment, choice, seed)
            for choice in choices
            for seed in (self.extended_seeds if experiment.is_extended(choice) else self.command_seeds)
            if seed not in self.of(experiment, choice)
        ]

    def command(self, experiment: Experiment, choice: str, seed: int) -> str:
        """The command that makes a result of one of the eval scripts, where the results that are there were made."""
        run = self._run(seed)
        of_benchmark = experiment.benchmark or ModelName.parse(self.model).random
        tasks = self.main_tasks if of_benchmark else self.tasks
        named = not experiment.pairs and tasks != run.suite_row.default
        return experiment.command(choice, run.flags() + (f" --tasks={','.join(tasks)}" if named else ""))

    def _anew(self, result: Result) -> str:
        """The command that makes a result again, without options of its own."""
        row = EXPERIMENTS.get(result.experiment)
        choice = result.record["reduction"] if row == NTK else result.mode
        if row and choice:
            return f"{self.command(row, choice, result.seed)} --overwrite"
        words = (f"method={result.record['method']}", "overwrite=True")
        return self.merge_command(words, tuple(result.tasks), result.mode or "standard", [result.seed])

    def reproduce_command(self, seeds: Sequence[int] = (), stage: str = "") -> str:
        """The command that runs reproduce.py, or a stage of it, into this folder; seeds: by default the first."""
        words = ["--only", stage, "--seeds", ",".join(map(str, seeds))] if stage else []
        return self._run((seeds or self.command_seeds)[0]).reproduce(*words)

    def merge_command(
        self, overrides: Iterable[str], tasks: tuple[str, ...], mode: str = "standard", seeds: Sequence[int] = ()
    ) -> str:
        """The command that makes results of main.py. overrides: `method=ties`, ...; seeds: by default all."""
        seeds, overrides = seeds or self.command_seeds, list(overrides)
        several = len(seeds) > 1 or any(o.startswith("corruption=") and "," in o for o in overrides)
        shared = ["--multirun"] if several else []
        of_seeds = f"seed={','.join(map(str, seeds))}"
        named = self._run(seeds[0]).named().items()
        shared += [of_seeds if name == "seed" else override(name, value) for name, value in named]
        if tasks != self.suite_tasks[: len(tasks)]:
            shared.append(f"DATASETS=[{','.join(tasks)}]")
        elif len(tasks) != registry.BENCHMARKS[0]:  # main.py's default
            shared.append(f"num_tasks={len(tasks)}")
        if mode != "standard":
            shared.append(f"finetuning_mode={mode}")
        return shlex.join(["python", "main.py", *shared, *overrides])

    def _run(self, seed: int) -> Run:
        """The run that a command is to go on with: in the folders, and from the weights, of the results that exist."""
        config = self._config
        folders = {"save": ("save",), "cache": ("cache", "cache_dir"), "data": ("data", "data_location")}
        places = {  # older results have the flags' names
            folder: Path(config[name]) for folder, names in folders.items() for name in names if config.get(name)
        }
        places["results"] = portable(from_root(self.results))
        return Run(self.suite, self.model, seed, self.tasks, Places(**places), config.get("pretrained_path"))

    @cached_property
    def _config(self) -> dict[str, Any]:
        """How a result of this model was made; of the pre-trained one where a random network has none yet."""
        name, pretrained = ModelName.parse(self.model), pretrained_name(self.model)
        read = self.read or (Runs(self.suite, pretrained, self.results, self.seeds).read if name.random else ())
        return next((result.record["provenance"].get("config", {}) for result in read), {})

    def missing_merge(self, *overrides: str) -> MissingResult:
        """An error that names the command for results of main.py on the papers' first benchmark."""
        command = self.merge_command(overrides, self.main_tasks)
        return MissingResult(f"expected merging results of {self.model}, found none; make them with: {command}")

    @property
    def suite_tasks(self) -> tuple[str, ...]:
        return registry.suite(self.suite).tasks

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """The suite's first tasks: those of the largest benchmark that θ0 was scored on, at least its default."""
        scored = [set(record) for record in self.of(SINGLE_TASK, "none").values()]
        sizes = [n for n in registry.BENCHMARKS if any(scores.issuperset(self.suite_tasks[:n]) for scores in scored)]
        return self.suite_tasks[: max([len(registry.suite(self.suite).default), *sizes])]

    @cached_property
    def other_tasks(self) -> tuple[str, ...]:
        """Real data sets of no benchmark, such as one's own, that have single-task results."""
        row = registry.suite(self.suite)
        if row.drawn:
            return ()
        records = (record for mode in ("none", "standard") for record in self.of(SINGLE_TASK, mode).values())
        scored = set().union(*records)
        return tuple(name for name in registry.names(row) if name in scored and name not in row.tasks)

    @property
    def main_tasks(self) -> tuple[str, ...]:
        """The papers' first benchmark: what claims are tested on."""
        return self.suite_tasks[: registry.BENCHMARKS[0]]

    @property
    def benchmarks(self) -> list[int]:
        """The papers' numbers of tasks that `tasks` has."""
        return [count for count in registry.BENCHMARKS if count <= len(self.tasks)]

    @property
    def control(self) -> str:
        return registry.suite(self.suite).control

    @cached_property
    def random_init(self) -> "Runs":
        """The same network without pre-training."""
        return Runs(self.suite, random_name(self.model), self.results, self.seeds)

    @cached_property
    def studies(self) -> "dict[str, Runs]":
        """By name: the same seeds with the experts of each study."""
        return {s.name: Runs(self.suite, self.model, s.results(self.results), self.seeds) for s in STUDIES}

    @property
    def shared_images(self) -> bool:
        """Whether all seeds are scored on the same test images."""
        return not registry.suite(self.suite).drawn

    @property
    def of_papers(self) -> bool:
        """Whether published numbers are of this very network on these very images."""
        return self.shared_images and published_model(self.model) == self.model

    @property
    def models(self) -> list[str]:
        """Every model of the suite that has results."""
        folders = self.paths.seed_results().parent.parent.glob("*/seed_*")
        return sorted({folder.parent.name for folder in folders})

    @property
    def siblings(self) -> list["Runs"]:
        """Every pre-trained model of the suite that has results, this one first."""
        names = (name for name in dict.fromkeys([self.model, *self.models]) if not ModelName.parse(name).random)
        return [Runs(self.suite, name, self.results, self.chosen_seeds) for name in names]

    def stem(self, name: str) -> str:
        """The file name of a table or figure: models other than the suite's own are told apart."""
        return name if self.model == registry.suite(self.suite).model else f"{name}_{self.model}"

    @property
    def paths(self) -> Paths:
        return self.paths_of(FIRST_SEED)

    def paths_of(self, seed: int) -> Paths:
        return Paths(self.suite, self.model, seed, Places(results=self.results))


def every_number(suite: str, results: Path) -> pd.DataFrame:
    """The frame of all models and seeds of a suite, the design seed and random towers included."""
    runs = [Runs(suite, model, results) for model in Runs(suite, registry.suite(suite).model, results).models]
    read = ((r.model, result) for r in runs for seed in r.seeds_there for result in read_results(r.paths_of(seed)))
    return frame.frame(suite, read)
