"""What tables, figures and claims read: the results of several seeds, and the published numbers."""

import argparse
import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from scipy.special import stdtrit

from src.datasets import registry
from src.modes import MODES as MODES_ROWS
from src.runtime import results
from src.runtime.paths import CORRUPTED, PUBLISHED, ROOT, Paths, Places

MODES = ("standard", "posthoc", "linear")  # in the order of the paper's tables
MODE_NAMES = {
    "none": "pre-trained",
    "standard": "non-linear fine-tuning",
    "posthoc": "post-hoc linearization",
    "linear": "linear fine-tuning",
}
BENCHMARKS = (8, 14, 20)  # numbers of tasks of the papers: the first of the suite's
SINGLE_TASK = {name: MODES_ROWS[name].single_task for name in ("none", "standard", "linear", "posthoc")}
DESIGN_SEED = 0  # settings were chosen on it, so it stays out of what is reported
FIRST_SEED = 1
USUAL_RANK = 10  # eigenfunctions of the tangent kernel
SCRIPTS = {
    "addition": "eval_task_addition.py --finetuning-mode",
    "negation": "eval_task_negation.py --finetuning-mode",
    "disentanglement": "eval_disentanglement.py --finetuning-mode",
    "ntk": "eval_ntk_localization.py --reduction",
}


class PerSeed(dict[int, float]):
    """One number for each seed."""

    @property
    def mean(self) -> float:
        return math.fsum(self.values()) / len(self)

    @property
    def sd(self) -> float:
        """Standard deviation over the seeds, with n − 1; nan for one seed."""
        if len(self) < 2:
            return math.nan
        return math.sqrt(math.fsum((value - self.mean) ** 2 for value in self.values()) / (len(self) - 1))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's interval of the mean, for two seeds or more."""
        half = stdtrit(len(self) - 1, (1 + level) / 2) * self.sd / math.sqrt(len(self))
        return self.mean - half, self.mean + half

    def map(self, function: Callable[..., float], *others: "PerSeed") -> "PerSeed":
        """function(number, its counterparts) for each seed that all of them have."""
        seeds = [seed for seed in self if all(seed in other for other in others)]
        return PerSeed({seed: function(self[seed], *(other[seed] for other in others)) for seed in seeds})

    def __sub__(self, other: "PerSeed") -> "PerSeed":
        return self.map(lambda one, two: one - two, other)


Records = dict[int, dict]  # of one result: seed -> record


@dataclass(frozen=True)
class Merges:
    """Results of main.py on the same tasks, in the same mode and scope: label of the method -> seed -> record."""

    tasks: tuple[str, ...]
    mode: str
    scope: str
    records: Mapping[str, Records]

    def number(self, label: str, read: Callable[[dict], float]) -> PerSeed:
        return number(self.records.get(label, {}), read)


@dataclass(frozen=True)
class Runs:
    """All results of one model of a suite.

    seeds: those to report; by default all that are there but the design seed, unless it is the only one.
    """

    suite: str
    model: str
    results: Path
    chosen_seeds: tuple[int, ...] | None = None
    corruption: str = ""  # of test images, name_severity

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        if self.chosen_seeds:
            return self.chosen_seeds
        folders = self._folder(FIRST_SEED).parent.glob("seed_*")
        found = sorted(int(folder.name.removeprefix("seed_")) for folder in folders)
        return tuple(seed for seed in found if seed != DESIGN_SEED) or tuple(found)

    @cached_property
    def records(self) -> dict[int, dict[str, dict]]:
        """seed -> name -> record, of every result there is. Raises results.ResultError for a damaged one."""
        found = {}
        for seed in self.seeds:
            folder = self._folder(seed)
            files = {f.relative_to(folder): f for f in sorted(folder.rglob("*.json"))}
            own = {name: file for name, file in files.items() if name.parts[0] != CORRUPTED}
            found[seed] = {name.with_suffix("").as_posix(): results.read(file) for name, file in own.items()}
        return found

    def get(self, name: str) -> Records:
        """The records called `name`, of the seeds that have it."""
        return {seed: records[name] for seed, records in self.records.items() if name in records}

    def require(self, name: str) -> Records:
        """`get`, or results.MissingResult with the command that makes it."""
        if found := self.get(name):
            return found
        command = self.command(name, (self.seeds or (FIRST_SEED,))[0])
        raise results.MissingResult(f"expected the result {name} of {self.model}, found none; make it with: {command}")

    def number(self, name: str, read: Callable[[dict], float]) -> PerSeed:
        """A number of each record called `name`."""
        return number(self.get(name), read)

    def missing(self, names: Iterable[str]) -> list[str]:
        """The commands that make those results that are not there."""
        seeds = self.seeds or (FIRST_SEED,)
        return [self.command(name, seed) for name in names for seed in seeds if name not in self.records.get(seed, {})]

    def command(self, name: str, seed: int) -> str:
        """The command that makes a result of one of the eval scripts."""
        modes = {single: mode for mode, single in SINGLE_TASK.items()}
        experiment, _, option = name.partition("_")
        script = (
            f"eval_single_task.py --finetuning-mode={modes[name]}"
            if name in modes
            else f"{SCRIPTS[experiment]}={option}"
        )
        suite = f" --suite={self.suite}" if registry.default_suite(self.model) != self.suite else ""
        shifted = "".join(f" --{flag}" for flag in self._corruption_flags)
        return f"python {script} --model={self.model} --seed={seed}{suite}{shifted}"

    @property
    def _corruption_flags(self) -> list[str]:
        name, _, severity = self.corruption.rpartition("_")
        return [f"corruption={name}", f"severity={severity}"] if name else []

    def merge_command(
        self, options: str, tasks: tuple[str, ...], mode: str = "standard", seeds: Sequence[int] | None = None
    ) -> str:
        """The command that makes results of main.py; options: `method=ties method.k=10`; seeds: by default all."""
        seeds = seeds or self.seeds or (FIRST_SEED,)
        multirun = ["--multirun"] if len(seeds) > 1 or "," in self.corruption else []
        shared = [*multirun, f"model={self.model}", f"seed={','.join(map(str, seeds))}"]
        if len(tasks) != BENCHMARKS[0]:
            shared.append(f"num_tasks={len(tasks)}")
        if mode != "standard":
            shared.append(f"finetuning_mode={mode}")
        return " ".join(["python main.py", *shared, *self._corruption_flags, options])

    @cached_property
    def merges(self) -> list[Merges]:
        """Every result that names its `method`, wherever it lies, grouped by tasks, mode and scope."""
        groups: dict[tuple, dict[str, Records]] = {}
        for seed, records in self.records.items():
            for name, record in records.items():
                if "method" in record and "test" in record:
                    key = tuple(record["tasks"]), record["finetuning_mode"], record.get("scope", "visual")
                    label = record.get("label", name.rpartition("/")[2])
                    groups.setdefault(key, {}).setdefault(label, {})[seed] = record

        def place(key: tuple) -> tuple:
            tasks, mode, scope = key
            return len(tasks), tasks, MODES.index(mode), scope

        return [Merges(*key, groups[key]) for key in sorted(groups, key=place)]

    def merged(self, tasks: tuple[str, ...], mode: str = "standard", scope: str = "visual") -> Merges:
        """The group of these tasks; empty where nothing was merged."""
        for group in self.merges:
            if (group.tasks, group.mode, group.scope) == (tuple(tasks), mode, scope):
                return group
        return Merges(tuple(tasks), mode, scope, {})

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """The suite's first tasks: those of the largest benchmark that was scored, at least the suite's default."""
        suite = registry.suite(self.suite)
        scored = [set(record) for record in self.get(SINGLE_TASK["none"]).values()]
        found = [n for n in BENCHMARKS if any(scores.issuperset(suite.tasks[:n]) for scores in scored)]
        return suite.tasks[: max(len(suite.default), *found, 0)]

    @property
    def control(self) -> str:
        return registry.suite(self.suite).control

    @property
    def main_tasks(self) -> tuple[str, ...]:
        """The papers' first benchmark: what claims are tested on."""
        return self.tasks[: BENCHMARKS[0]]

    @property
    def random_init(self) -> "Runs":
        """The same network without pre-training."""
        return Runs(self.suite, f"{self.model}__init__", self.results, self.seeds)

    def corrupted(self, name: str, severity: int) -> "Runs":
        """The same on corrupted test images; for commands, `name` may be several with commas."""
        return replace(self, chosen_seeds=self.seeds, corruption=f"{name}_{severity}")

    @property
    def severities(self) -> list[int]:
        """Those that any corruption has results of."""
        names = {name for seed in self.seeds for name in self._paths(seed).corruptions()}
        return sorted({int(name.rpartition("_")[2]) for name in names})

    def siblings(self) -> list["Runs"]:
        """Every pre-trained model of the suite that has results, this one first."""
        folders = sorted(self._folder(FIRST_SEED).parent.parent.glob("*/seed_*"))
        models = dict.fromkeys([self.model, *(folder.parent.name for folder in folders)])
        return [Runs(self.suite, m, self.results, self.chosen_seeds) for m in models if not m.endswith("__init__")]

    def stem(self, name: str) -> str:
        """The file name of a table or figure: models other than the suite's own are told apart."""
        return name if self.model == registry.suite(self.suite).model else f"{name}_{self.model}"

    @property
    def paths(self) -> Paths:
        return self._paths(FIRST_SEED)

    def _paths(self, seed: int) -> Paths:
        return Paths(self.suite, self.model, seed, Places(results=self.results), self.corruption)

    def _folder(self, seed: int) -> Path:
        return self._paths(seed).result("any").parent


def number(records: Records, read: Callable[[dict], float | None]) -> PerSeed:
    """A number of each record; those that lack it, being of other tasks, or have None are left out."""
    found = PerSeed()
    for seed, record in records.items():
        with suppress(KeyError):
            if (value := read(record)) is not None:
                found[seed] = value
    return found


def reporting_parser(doc: str) -> argparse.ArgumentParser:
    """The flags of make_tables.py and make_figures.py."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=registry.SUITES, help="by default the suite that the model is meant for")
    parser.add_argument("--model", help="default: the suite's own, ViT-Mini without --suite")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of results")
    parser.add_argument("--seeds", help="comma-separated; default: all but 0, on which settings were chosen")
    return parser


def parse_runs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Runs:
    """The results that the flags mean."""
    suite = args.suite or (registry.default_suite(args.model) if args.model else "mini")
    try:
        seeds = tuple(int(seed) for seed in args.seeds.split(",")) if args.seeds else None
    except ValueError:
        parser.error(f"--seeds: expected numbers such as 1,2,3; got {args.seeds!r}")
    runs = Runs(suite, args.model or registry.suite(suite).model, ROOT / args.results, seeds)
    if not runs.seeds and (others := [other.model for other in runs.siblings()[1:]]):
        parser.error(f"--model: {runs.model!r} has no results in {runs.results / suite}; there are {', '.join(others)}")
    return runs


def usual_rank(ranks: Sequence[float | int]) -> int:
    """The place of the number of eigenfunctions that figures and claims take: USUAL_RANK, or else the middle one."""
    return ranks.index(USUAL_RANK) if USUAL_RANK in ranks else len(ranks) // 2


def chance(dataset: str) -> float:
    """Accuracy of guessing: 1 / C."""
    return 1 / len(registry.get(dataset).classnames)


def printed(name: str) -> str:
    """A data set's name as printed."""
    return name.replace("_", " ")


def published_model(model: str) -> str:
    """The model whose published numbers stand beside ours: its own, or for the embedded suite the papers' smallest."""
    base = model.removesuffix("__init__").removesuffix("__pretrained__")
    return base if any(base == key[2] for key in _published()) else "ViT-B-32"


def published(model: str, paper: str, table: str, method: str, setting: str, metric: str) -> float | None:
    """A published number in its own unit (percent, gigabits), or None; see published.csv."""
    return _published().get((paper, table, published_model(model), method, setting, metric))


@cache
def _published() -> dict[tuple[str, ...], float]:
    with open(PUBLISHED, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        fields = ("paper", "table", "model", "method", "setting", "metric")
        return {tuple(row[field] for field in fields): float(row["value"]) for row in rows}
