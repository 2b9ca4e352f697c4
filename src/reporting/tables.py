"""The papers' tables from results, ours beside the published number, as Markdown, LaTeX and CSV.

A table is a function of `Runs` that yields `Table`s, named in TABLES. A cell is a number for each seed, printed as
mean ± sd, with the published one in brackets.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from src.datasets import registry
from src.datasets.corruptions import CORRUPTIONS
from src.reporting.runs import (
    BENCHMARKS,
    FIRST_SEED,
    MODE_NAMES,
    MODES,
    SINGLE_TASK,
    Merges,
    PerSeed,
    Runs,
    chance,
    printed,
    published,
    published_model,
)
from src.runtime.files import replacing

PUBLISHED_METHODS = {
    "none": "Pre-trained",
    "standard": "Non-lin. FT",
    "posthoc": "Post-hoc lin.",
    "linear": "Linear. FT",
}


@dataclass(frozen=True)
class Method:
    """A row of the merging table: main.py's label and command, and the published name."""

    label: str
    name: str
    command: str
    published: str | None = None


METHODS = (
    Method("zeroshot", "zero-shot", "method=zeroshot", "Zeroshot"),
    Method("average", "weight averaging", "method=average", "Weight averaging"),
    Method("sum", "task arithmetic", "method=sum", "Task arithmetic"),
    Method("ties", "TIES", "method=ties", "TIES"),
    Method("consensus", "consensus TA", "method=consensus", "Consensus TA"),
    Method("consensus_use_ties=True", "consensus TIES", "method=consensus method.use_ties=True", "Consensus TIES"),
    Method("mag_masking", "magnitude masking", "method=mag_masking", "Magnitude Masking"),
    Method("tall_mask", "TALL mask + TA", "method=tall_mask", "TALL Mask + TA"),
    Method("tall_mask_use_ties=True", "TALL mask + TIES", "method=tall_mask method.use_ties=True", "TALL Mask + TIES"),
)

# Methods that adapt at test time, with their names in the Concrete paper; by default they adapt on test images.
CONCRETE = "concrete_"
ADAPTED = tuple(
    Method(label, name, "method=" + label.replace("_granularity=", " method.granularity="), known)
    for label, name, known in (
        (f"{CONCRETE}task_arithmetic", "Concrete TA", "Concrete TA"),
        ("adamerging_granularity=task", "AdaMerging, task-wise", "TW AM"),
        ("adamerging_pp_granularity=task", "AdaMerging++, task-wise", "TW AM++"),
        (f"{CONCRETE}task_wise_adamerging", "Concrete AdaMerging, task-wise", "TW Concrete AM"),
        ("adamerging", "AdaMerging, layer-wise", "LW AM"),
        ("adamerging_pp", "AdaMerging++, layer-wise", "LW AM++"),
        (f"{CONCRETE}layer_wise_adamerging", "Concrete AdaMerging, layer-wise", "LW Concrete AM"),
    )
)
NOT_ADAPTED = {"average": "Weight Averaging", "sum": "Task Arithmetic", "ties": "Ties-Merging"}  # in that paper
UNSEEN = "_unseen="  # in labels of results that score further tasks
SPLIT_NAMES = {"test": "test", "val": "validation"}


@dataclass(frozen=True)
class Cell:
    """ours: a number for each seed, fewer than all where results are missing; in the unit it is printed in.

    spread: whether to print the sd; not for what seeds do not change.
    """

    ours: PerSeed = field(default_factory=PerSeed)
    published: float | None = None
    digits: int = 1
    spread: bool = True

    def text(self, seeds: int) -> str:
        """`81.0 ± 0.3 [76.5]`; a mean over fewer than all `seeds` says over how many."""
        parts = []
        if self.ours:
            parts.append(f"{self.ours.mean:.{self.digits}f}")
            if len(self.ours) > 1 and self.spread:
                parts.append(f"± {self.ours.sd:.{self.digits}f}")
            if len(self.ours) < seeds:
                parts.append(f"(n = {len(self.ours)})")
        if self.published is not None:
            parts.append(f"[{self.published:.1f}]" if self.digits <= 1 else f"[{round(self.published, 2):g}]")
        return " ".join(parts)

    def columns(self) -> list[float | str]:
        """Mean, sd, number of seeds and published value, for a file; empty where there is none."""
        ours, theirs = self.ours, self.published
        mean, sd = (round(ours.mean, 6) if ours else ""), (round(ours.sd, 6) if len(ours) > 1 else "")
        return [mean, sd, len(ours) or "", "" if theirs is None else round(theirs, 6)]


@dataclass(frozen=True)
class Table:
    """rows: the first entry of each is its name, the others are Cells or texts. missing: commands that fill gaps."""

    name: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    seeds: tuple[int, ...]
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    in_readme: bool = False

    @property
    def full_caption(self) -> str:
        return f"{self.caption} {seeds_text(self.seeds)}"

    def texts(self) -> list[list[str]]:
        count = len(self.seeds)
        return [[entry.text(count) if isinstance(entry, Cell) else entry for entry in row] for row in self.rows]


def seeds_text(seeds: Sequence[int]) -> str:
    """How many seeds numbers are of."""
    if not seeds:
        return "No results yet."
    if len(seeds) == 1:
        return f"One seed ({seeds[0]})."
    return f"Mean ± sd over {len(seeds)} seeds ({', '.join(map(str, seeds))})."


def percent(values: PerSeed) -> PerSeed:
    return values.map(lambda value: 100 * value)


# --- The tables ----------------------------------------------------------------------------------------------------


def single_task(runs: Runs) -> Iterator[Table]:
    """Every model on its own task, and on the control set."""

    def row(title: str, number: Callable[[dict], float], setting: str | None) -> list[str | Cell]:
        cells = [
            Cell(percent(runs.number(name, number)), _published_single(runs.model, mode, setting) if setting else None)
            for mode, name in SINGLE_TASK.items()
        ]
        return [title, *cells]

    rows = [row(printed(task), lambda r, task=task: r[task], task) for task in runs.tasks]
    for count in benchmarks(runs):
        tasks = runs.tasks[:count]
        mean = row(f"mean of {count}", lambda r, tasks=tasks: _mean(r[t] for t in tasks), f"mean of {count} tasks")
        rows.append(mean)
    rows.append(row(f"{printed(runs.control)} (kept)", lambda r: r[runs.control], None))
    yield Table(
        "single_task",
        f"Single-task test accuracy, %; in brackets {beside(runs)}.",
        ["task", *(MODE_NAMES[mode] for mode in SINGLE_TASK)],
        rows,
        runs.seeds,
        notes=(f"{printed(runs.control)}: mean over the fine-tuned models of what each keeps on the control set.",),
        missing=tuple(runs.missing(SINGLE_TASK.values())),
        in_readme=True,
    )


def _published_single(model: str, mode: str, setting: str) -> float | None:
    """Published single-task accuracies: the tangent paper's recipe first, then those of the 20-task papers."""
    for paper in ("atlas", "lines", "tall"):
        method = "Fine-tuned" if mode == "standard" and paper != "atlas" else PUBLISHED_METHODS[mode]
        value = published(model, paper, "single-task", method, setting, "accuracy")
        if value is not None:
            return value
    return None


def addition(runs: Runs) -> Iterator[Table]:
    """Table 1 of the tangent paper, and its numbers for each task."""
    names = {mode: f"addition_{mode}" for mode in MODES}
    tasks = _tasks(runs, names.values())

    def ours(mode: str, *path: str) -> PerSeed:
        return percent(runs.number(names[mode], lambda r: _at(r, path)))

    def theirs(mode: str, metric: str) -> float | None:
        return _beside_main(runs, tasks, "Table 1", PUBLISHED_METHODS[mode], metric)

    zeroshot = [percent(runs.number(name, lambda r: r["zeroshot"]["mean_accuracy"])) for name in names.values()]
    rows = [["pre-trained", Cell(max(zeroshot, key=len), theirs("none", "absolute")), "", "", "", ""]]
    for mode in MODES:
        alphas = runs.number(names[mode], lambda r: next(iter(r["chosen"].values())))
        rows.append(
            [
                MODE_NAMES[mode],
                Cell(ours(mode, "test", "mean_accuracy"), theirs(mode, "absolute")),
                Cell(ours(mode, "test", "mean_normalised"), theirs(mode, "normalised")),
                Cell(ours(mode, "zeroshot", "mean_normalised")),
                Cell(percent(runs.number(names[mode], lambda r: _mean(r["denominators"]["test"].values())))),
                Cell(alphas, digits=3),
            ]
        )
    missing = tuple(runs.missing(names.values()))
    yield Table(
        "table1_addition",
        f"Task addition (Table 1): test accuracy of θ0 + α Σ τ, {len(tasks)} tasks, %; in brackets {beside(runs)}.",
        ["method", "absolute", "normalised", "zero-shot, normalised", "single-task (denominator)", "α"],
        rows,
        runs.seeds,
        notes=("zero-shot, normalised: what doing nothing scores by the same denominators.",),
        missing=missing,
        in_readme=True,
    )
    by_task = []
    for task in tasks:
        cells = [(mode, ("test", kind, task)) for mode in MODES for kind in ("accuracy", "normalised")]
        by_task.append([printed(task), *(Cell(ours(mode, *path)) for mode, path in cells)])
    yield Table(
        "addition_per_task",
        "Task addition, each task: test accuracy, absolute and normalised, %.",
        ["task", *(f"{MODE_NAMES[mode]}{kind}" for mode in MODES for kind in ("", ", normalised"))],
        by_task,
        runs.seeds,
        missing=missing,
    )


def negation(runs: Runs) -> Iterator[Table]:
    """Table 2 of the tangent paper."""
    names = {mode: f"negation_{mode}" for mode in MODES}
    tasks = _tasks(runs, names.values())
    threshold = {record["control_threshold"] for name in names.values() for record in runs.get(name).values()}

    def theirs(mode: str, metric: str) -> float | None:
        return _beside_main(runs, tasks, "Table 2", PUBLISHED_METHODS[mode], metric)

    zeroshot = SINGLE_TASK["none"]
    start = [
        Cell(percent(runs.number(zeroshot, lambda r: _mean(r[t] for t in tasks))), theirs("none", "target")),
        Cell(percent(runs.number(zeroshot, lambda r: r[runs.control])), theirs("none", "control")),
    ]
    rows = [["pre-trained", *start, ""]]
    for mode in MODES:
        alphas = runs.number(names[mode], lambda r: _mean(t["alpha"] for t in r["tasks"].values()))
        rows.append(
            [
                MODE_NAMES[mode],
                Cell(percent(runs.number(names[mode], lambda r: r["mean_target"])), theirs(mode, "target")),
                Cell(percent(runs.number(names[mode], lambda r: r["mean_control"])), theirs(mode, "control")),
                Cell(alphas, digits=3),
            ]
        )
    kept = f"{100 * max(threshold, default=0.95):g} %"
    lost = []
    for mode, name in names.items():
        failed = {
            task: [seed for seed, record in runs.get(name).items() if not record["tasks"][task]["control_kept"]]
            for task in tasks
        }
        for task, seeds in failed.items():
            if seeds:
                of = ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))
                lost.append(f"{MODE_NAMES[mode]}, {printed(task)}: no α keeps the control, so α = 0 ({of}).")
    yield Table(
        "table2_negation",
        f"Task negation (Table 2): test accuracy of θ0 − α τ, mean over {len(tasks)} tasks, {kept} of the control's "
        f"validation accuracy kept, %; in brackets {beside(runs)}, whose control is ImageNet.",
        ["method", "target (lower is better)", "control", "α, mean"],
        rows,
        runs.seeds,
        notes=tuple(lost),
        missing=tuple(runs.missing([zeroshot, *names.values()])),
        in_readme=True,
    )


def random_init(runs: Runs) -> Iterator[Table]:
    """Table 3 of the tangent paper."""
    fresh = runs.random_init
    modes = ("standard", "linear")
    tasks = _tasks(fresh, [f"addition_{mode}" for mode in modes])

    def theirs(method: str, metric: str) -> float | None:
        return _beside_main(runs, tasks, "Table 3", method, metric)

    def single(mode: str) -> PerSeed:
        return percent(fresh.number(SINGLE_TASK[mode], lambda r: _mean(r[t] for t in tasks)))

    rows = [["random initialization", Cell(single("none"), theirs("Random init", "single")), ""]]
    for mode in modes:
        multi = percent(fresh.number(f"addition_{mode}", lambda r: r["test"]["mean_accuracy"]))
        method = PUBLISHED_METHODS[mode]
        rows.append(
            [
                MODE_NAMES[mode],
                Cell(single(mode), theirs(method, "single")),
                Cell(multi, theirs(method, "multi")),
            ]
        )
    needed = [*(SINGLE_TASK[mode] for mode in ("none", *modes)), *(f"addition_{mode}" for mode in modes)]
    guess = 100 * _mean(chance(task) for task in tasks)
    yield Table(
        "table3_random_init",
        f"Addition from random initialization (Table 3), mean over {len(tasks)} tasks, %; in brackets {beside(runs)}.",
        ["method", "single-task", "multi-task"],
        rows,
        runs.seeds,
        notes=(f"The heads stay the pre-trained text heads. Chance: {guess:.1f} %.",),
        missing=tuple(fresh.missing(needed)),
        in_readme=True,
    )


def disentanglement(runs: Runs) -> Iterator[Table]:
    """ξ in the search space, a number for each heat map."""
    names = {mode: f"disentanglement_{mode}" for mode in MODES}
    rows = [
        [_pair_name(pair), *(Cell(percent(_of_pair(runs, name, pair, "box_mean"))) for name in names.values())]
        for pair in _pairs(runs, names.values(), registry.suite(runs.suite).pairs)
    ]
    yield Table(
        "disentanglement",
        "Disentanglement error (Figures 3 and 10): mean of ξ over the search space [−1, 1]², %.",
        ["pair", *(MODE_NAMES[mode] for mode in MODES)],
        rows,
        runs.seeds,
        notes=("ξ adds the errors of both tasks, so it reaches 200 %.",),
        missing=tuple(runs.missing(names.values())),
        in_readme=True,
    )


def ntk(runs: Runs) -> Iterator[Table]:
    """Localization of eigenfunctions as ratios of mean local energies, for every choice that the paper leaves open."""
    names = ("ntk_trace", "ntk_sum")
    starts = {"pre-trained": runs, "random": runs.random_init}
    records = [record for model in starts.values() for name in names for record in model.get(name).values()]
    ranks = list(dict.fromkeys(_rank(rank) for record in records for pair in record["pairs"] for rank in pair["ranks"]))
    rows = []
    for start, model in starts.items():
        for name in names:
            for pair in _pairs(model, [name], registry.suite(runs.suite).ntk_pairs, ("task", "control")):
                cells = [Cell(_ntk_ratio(model, name, pair, rank), digits=2) for rank in ranks]
                rows.append([f"{_pair_name(pair)}, {start}, {name.removeprefix('ntk_')}", *cells])
    yield Table(
        "ntk_localization",
        "Eigenfunctions of the tangent kernel (Figures 6, 14, 15): mean local energy on held-out images of the task "
        "over that on the control task, by the number of leading eigenfunctions or their share of the trace.",
        ["task – control, start, reduction", *ranks],
        rows,
        runs.seeds,
        notes=("1 means not localized.",),
        missing=(*runs.missing(names), *runs.random_init.missing(names)),
    )


def merging(runs: Runs) -> Iterator[Table]:
    """The main table of the TALL paper, for every benchmark, mode and scope that has results."""
    groups = [group for group in runs.merges if group.tasks in {runs.tasks[:n] for n in benchmarks(runs)}]
    if not any((g.tasks, g.mode, g.scope) == (runs.main_tasks, "standard", "visual") for g in groups):
        groups.insert(0, runs.merged(runs.main_tasks))
    for group in groups:
        yield _merging_table(runs, group)


def _merging_table(runs: Runs, group: Merges) -> Table:
    standard = group.mode == "standard"
    count = len(group.tasks)
    known = {method.label for method in METHODS}
    others = sorted(
        label
        for label, records in group.records.items()
        if label not in known and not _swept(records) and not _adapts(records)
    )
    wanted = [method for method in METHODS if standard or method.label in group.records]
    rows = [_merging_row(runs, group, method.label, method.name, method.published) for method in wanted]
    rows += [_merging_row(runs, group, label, label, None) for label in others]
    rows.append(_finetuned_row(runs, group))
    missing = []
    for method in wanted:
        found = group.records.get(method.label, {})
        if absent := [seed for seed in runs.seeds or (FIRST_SEED,) if seed not in found]:
            missing.append(runs.merge_command(method.command, group.tasks, group.mode, absent))
    suffix = "".join(f"_{part}" for part in (group.mode, group.scope) if part not in ("standard", "visual"))
    of = "" if standard else f", {MODE_NAMES[group.mode]}"
    scope = "" if group.scope == "visual" else f", vectors with the frozen tensors (scope={group.scope})"
    brackets = f"; in brackets {beside(runs)}" if standard else ""
    return Table(
        f"merging{'' if group.tasks == runs.main_tasks else f'_{count}'}{suffix}",
        f"Merging {count} tasks{of}{scope}: test accuracy, %, and storage{brackets}.",
        ["method", "absolute", "normalised", "α", "storage, Gb", "storage, merged models"],
        rows,
        runs.seeds,
        notes=("normalised: over the fine-tuned model's accuracy. No α stands where each task has a mask of its own.",),
        missing=tuple(missing),
        in_readme=group.tasks == runs.main_tasks and group.scope == "visual",
    )


def _merging_row(runs: Runs, group: Merges, label: str, name: str, known: str | None) -> list[str | Cell]:
    alphas = {seed: r for seed, r in group.records.get(label, {}).items() if not r["chosen_per_task"]}
    return [
        name,
        Cell(percent(group.number(label, lambda r: r["test"]["mean_accuracy"])), _tall(runs, group, known, "absolute")),
        Cell(
            percent(group.number(label, lambda r: r["test"]["mean_normalised"])),
            _tall(runs, group, known, "normalised"),
        ),
        Cell(PerSeed({seed: next(iter(r["chosen"].values())) for seed, r in alphas.items()}), digits=2),
        *_storage(runs, group, known, group.number(label, lambda r: r["storage"]["this"]), label),
    ]


def _finetuned_row(runs: Runs, group: Merges) -> list[str | Cell]:
    """One model for each task: the denominators that every result of the group carries."""
    label = max(group.records, key=lambda label: len(group.records[label]), default="")
    known = "Fine-tuned"
    return [
        "fine-tuned, one each",
        Cell(
            percent(group.number(label, lambda r: _mean(r["denominators"]["test"].values()))),
            _tall(runs, group, known, "absolute"),
        ),
        Cell(group.number(label, lambda r: 100.0)),
        "",
        *_storage(runs, group, known, group.number(label, lambda r: r["storage"]["finetuned"]), label),
    ]


def _storage(runs: Runs, group: Merges, known: str | None, bits: PerSeed, label: str) -> list[Cell]:
    """Storage in gigabits, and as a multiple of one merged model's."""
    theirs, one = (_tall(runs, group, name, "storage Gb") for name in (known, "Zeroshot"))
    merged = group.number(label, lambda r: r["storage"]["merged"])
    digits = 1 if not bits or bits.mean >= 1e9 else 3
    return [
        Cell(bits.map(lambda b: b / 1e9), theirs, digits, spread=False),
        Cell(bits.map(lambda b, m: b / m, merged), theirs / one if theirs and one else None, digits=2, spread=False),
    ]


def _tall(runs: Runs, group: Merges, known: str | None, metric: str) -> float | None:
    """A number of the TALL paper's main table, which is on non-linear vectors."""
    if group.mode != "standard" or known is None:
        return None
    return published(runs.model, "tall", "main table", known, f"{len(group.tasks)} tasks", metric)


def _swept(records: dict[int, dict]) -> bool:
    """Whether a result is a point of the sweep over consensus thresholds, which has a table of its own."""
    return all(record["method"] == "consensus" and record["options"]["prun_thre_k"] != 2 for record in records.values())


def _adapts(records: dict[int, dict]) -> bool:
    """Whether a result is of a method that adapts, or of unseen tasks: these have tables of their own."""
    return any("adaptation" in record or "unseen" in record for record in records.values())


def consensus_thresholds(runs: Runs) -> Iterator[Table]:
    """Accuracy against the number of tasks that must use a weight."""
    group = runs.merged(runs.main_tasks)
    sweep = {use_ties: threshold_sweep(group, use_ties) for use_ties in (False, True)}
    ks = sorted(set().union(*sweep.values()))
    if len(ks) <= 1:
        return
    rows = []
    for use_ties, found in sweep.items():
        name = "Consensus TIES" if use_ties else "Consensus TA"
        theirs = [
            published(runs.model, "tall", "consensus threshold", name, f"{len(group.tasks)} tasks, k={k}", "absolute")
            for k in ks
        ]
        rows.append([name, *(Cell(percent(found.get(k, PerSeed())), value) for k, value in zip(ks, theirs))])
    yield Table(
        "consensus_thresholds",
        "Consensus merging by the number k of tasks that must use a weight: absolute test accuracy, %; in brackets "
        f"{beside(runs)}.",
        ["method", *(f"k = {k}" for k in ks)],
        rows,
        runs.seeds,
        notes=("k = 0 is task arithmetic or TIES itself, and more than the number of tasks is zero-shot.",),
    )


def threshold_sweep(group: Merges, use_ties: bool, metric: str = "mean_accuracy") -> dict[int, PerSeed]:
    """k -> test accuracy of consensus merging; where k = 0 was not run for TA, it is task arithmetic itself."""
    sweep: dict[int, PerSeed] = {}
    for found in group.records.values():
        for seed, record in found.items():
            if record["method"] == "consensus" and record["options"]["use_ties"] == use_ties:
                k = record["options"]["prun_thre_k"]
                sweep.setdefault(k, PerSeed())[seed] = record["test"][metric]
    if sweep and not use_ties and 0 not in sweep and "sum" in group.records:
        sweep[0] = group.number("sum", lambda r: r["test"][metric])
    return dict(sorted(sweep.items()))


def adaptation(runs: Runs) -> Iterator[Table]:
    """The main table of the Concrete paper: AdaMerging and Concrete, by the images that they adapt on."""
    group = runs.merged(runs.main_tasks)

    def theirs(method: str | None, setting: str) -> float | None:
        return published(runs.model, "concrete", "multi-task", method, setting, "accuracy") if method else None

    rows, by_task = [], []

    def add(label: str, name: str, split: str, known: str | None) -> None:
        mean = Cell(percent(group.number(label, lambda r: r["test"]["mean_accuracy"])), theirs(known, "average"))
        rows.append([name, split, mean, Cell(percent(group.number(label, lambda r: r["test"]["mean_normalised"])))])
        tasks = [
            Cell(percent(group.number(label, lambda r, task=task: r["test"]["accuracy"][task])), theirs(known, task))
            for task in group.tasks
        ]
        by_task.append([name, split, *tasks, mean])

    names = {method.label: method.name for method in METHODS}
    for label, known in NOT_ADAPTED.items():
        add(label, names[label], "", known)
    for method in ADAPTED:
        add(method.label, method.name, SPLIT_NAMES["test"], method.published)
    shown = {method.label for method in ADAPTED}
    for method in ADAPTED:
        if (label := on_validation(method.label)) in group.records:
            shown.add(label)
            add(label, method.name, SPLIT_NAMES["val"], None)
    others = {label: records for label, records in group.records.items() if label not in shown and UNSEEN not in label}
    for label, records in sorted(others.items()):
        if _adapts(records):
            split = next(iter(records.values()))["adaptation"]["adapt_on"]
            add(label, label, SPLIT_NAMES[split], None)
    missing = []
    for method in ADAPTED:
        found = group.records.get(method.label, {})
        if absent := [seed for seed in runs.seeds or (FIRST_SEED,) if seed not in found]:
            missing.append(runs.merge_command(method.command, group.tasks, seeds=absent))
    caption = f"Adapting at test time, {len(group.tasks)} tasks: test accuracy, %; in brackets {beside(runs)}."
    notes = (
        "adapts on: whose unlabelled images the method learns from. In the papers it is the test images that are then "
        "scored. Methods that do not adapt choose α on labelled validation images, in the paper α = 0.3.",
    )
    shared = dict(caption=caption, seeds=runs.seeds, notes=notes, missing=tuple(missing))
    yield Table(
        name="adaptation", header=["method", "adapts on", "absolute", "normalised"], rows=rows, in_readme=True, **shared
    )
    header = ["method", "adapts on", *map(printed, group.tasks), "mean"]
    yield Table(name="adaptation_per_task", header=header, rows=by_task, **shared)


def on_validation(label: str) -> str:
    """The label of the same method, adapting on validation images."""
    name, found, granularity = label.partition("_granularity")
    return f"{name}_adapt_on=val{found}{granularity}"


def unseen(runs: Runs) -> Iterator[Table]:
    """Merged models on tasks that were not merged, one table for each split of the tasks that has results."""
    methods = [*(method for method in METHODS if method.label in NOT_ADAPTED), *ADAPTED]
    for group in runs.merges:
        splits = dict.fromkeys(label.partition(UNSEEN)[2] for label in group.records if UNSEEN in label)
        for split in splits if (group.mode, group.scope) == ("standard", "visual") else ():
            tasks = split.split("+")
            rows, zeroshot = [], {}
            for method in methods:
                label = f"{method.label}{UNSEEN}{split}"
                zeroshot |= {seed: r["unseen"]["zeroshot"] for seed, r in group.records.get(label, {}).items()}
                rows.append([method.name, *_unseen_cells(runs, group, label, tasks, method)])
            untouched = [PerSeed({s: r["accuracy"][task] for s, r in zeroshot.items()}) for task in tasks]
            means = PerSeed({s: r["mean_accuracy"] for s, r in zeroshot.items()})
            rows.insert(0, ["zero-shot", "", *(Cell(percent(values)) for values in (*untouched, means))])
            yield Table(
                f"unseen_{'_'.join(tasks)}",
                f"Generalisation: merging and adapting on {len(group.tasks)} tasks, test accuracy on these and on "
                f"{' and '.join(map(printed, tasks))}, %; in brackets {beside(runs)}.",
                ["method", f"mean of {len(group.tasks)} seen", *map(printed, tasks), "mean of unseen"],
                [row for row in rows if any(isinstance(cell, Cell) and cell.ours for cell in row[1:])],
                runs.seeds,
                in_readme=True,
            )


def _unseen_cells(runs: Runs, group: Merges, label: str, tasks: Sequence[str], method: Method) -> list[Cell]:
    # The paper's tables of generalisation call layer-wise AdaMerging by its family's name.
    name = NOT_ADAPTED.get(method.label, method.published)
    name = {"LW AM": "AdaMerging", "LW AM++": "AdaMerging++", "LW Concrete AM": "Concrete AM"}.get(name, name)

    def cell(read: Callable[[dict], float], setting: str | None) -> Cell:
        return Cell(percent(group.number(label, read)), setting and published_unseen(runs, tasks, name, setting))

    return [
        cell(lambda r: r["test"]["mean_accuracy"], None),
        *(cell(lambda r, task=task: r["unseen"]["accuracy"][task], task) for task in tasks),
        cell(lambda r: r["unseen"]["mean_accuracy"], "average of unseen"),
    ]


def published_unseen(runs: Runs, tasks: Sequence[str], method: str, setting: str) -> float | None:
    """A number of that of the Concrete paper's two splits which these unseen tasks stand for."""
    split = "generalisation 2" if set(tasks) == {"RESISC45", "SVHN"} else "generalisation 1"
    return published(runs.model, "concrete", split, method, setting, "accuracy")


def robustness(runs: Runs) -> Iterator[Table]:
    """Methods on corrupted test images, one table for each severity that has results."""
    for severity in runs.severities:
        groups = {name: runs.corrupted(name, severity).merged(runs.main_tasks) for name in CORRUPTIONS}
        found = [method for method in (*METHODS, *ADAPTED) if any(method.label in g.records for g in groups.values())]
        groups = {"clean": runs.merged(runs.main_tasks)} | groups
        rows = [_robustness_row(runs, groups, method) for method in found]
        labels = {
            name: max(g.records, key=lambda label: len(g.records[label]), default="") for name, g in groups.items()
        }
        alone = [
            g.number(labels[name], lambda r: _mean(r["denominators"]["test"].values())) for name, g in groups.items()
        ]
        rows.append(["fine-tuned, one each", *(Cell(percent(values)) for values in alone)])
        missing = []
        for method in found:
            if absent := [name for name in CORRUPTIONS if method.label not in groups[name].records]:
                shifted = runs.corrupted(",".join(absent), severity)
                missing.append(shifted.merge_command(method.command, runs.main_tasks))
        yield Table(
            f"robustness_{severity}",
            f"Robustness: test accuracy on corrupted images of severity {severity}, {len(runs.main_tasks)} tasks, %; "
            f"in brackets FusionBench's {published_model(runs.model)} on four tasks.",
            ["method", "clean", *map(printed, CORRUPTIONS)],
            rows,
            runs.seeds,
            notes=("Methods that adapt see corrupted test images; α is chosen on clean validation images.",),
            missing=tuple(missing),
            in_readme=True,
        )


ROBUSTNESS = {"sum": "Task Arithmetic", "ties": "Ties-Merging", "adamerging": "Layer-wise AdaMerging"}  # FusionBench's


def _robustness_row(runs: Runs, groups: dict[str, Merges], method: Method) -> list[str | Cell]:
    row = [method.name]
    for name, group in groups.items():
        setting = {"clean": "Clean Test set", "jpeg_compression": "JPEG Compression"}.get(name, printed(name).title())
        known = ROBUSTNESS.get(method.label, "")
        theirs = published(runs.model, "fusionbench", "robustness", known, setting, "accuracy")
        row.append(Cell(percent(group.number(method.label, lambda r: r["test"]["mean_accuracy"])), theirs))
    return row


TABLES: tuple[Callable[[Runs], Iterator[Table]], ...] = (
    single_task,
    addition,
    negation,
    random_init,
    disentanglement,
    ntk,
    merging,
    consensus_thresholds,
    adaptation,
    unseen,
    robustness,
)


def make(runs: Runs) -> list[Table]:
    """Every table, under the file name that tells the model."""
    return [replace(table, name=runs.stem(table.name)) for function in TABLES for table in function(runs)]


# --- Reading records -----------------------------------------------------------------------------------------------


def benchmarks(runs: Runs) -> list[int]:
    """The papers' numbers of tasks that the suite has."""
    return [count for count in BENCHMARKS if count <= len(runs.tasks)]


def beside(runs: Runs) -> str:
    return f"the published {published_model(runs.model)}"


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def _at(record: dict, path: Sequence[str]) -> float:
    for key in path:
        record = record[key]
    return record


def _tasks(runs: Runs, names) -> tuple[str, ...]:
    """The tasks that the results called `names` are of; the papers' first benchmark where there are none."""
    found = (tuple(record["tasks"]) for name in names for record in runs.get(name).values())
    return next(found, runs.main_tasks)


def _beside_main(runs: Runs, tasks: tuple[str, ...], table: str, method: str, metric: str) -> float | None:
    """A number of the tangent paper, for results on its benchmark."""
    if tasks != runs.main_tasks:
        return None
    return published(runs.model, "tangent", table, method, f"{len(tasks)} tasks", metric)


def _pairs(runs: Runs, names, default, keys: tuple[str, str] | None = None) -> list[tuple[str, str]]:
    """The pairs that results are of, or else the suite's."""
    found = {}
    for name in names:
        for record in runs.get(name).values():
            for pair in record["pairs"]:
                found[tuple(pair["tasks"]) if keys is None else (pair[keys[0]], pair[keys[1]])] = None
    return list(found) or list(default)


def _of_pair(runs: Runs, name: str, pair: tuple[str, str], field_name: str) -> PerSeed:
    found = {
        seed: entry[field_name]
        for seed, record in runs.get(name).items()
        for entry in record["pairs"]
        if tuple(entry["tasks"]) == pair
    }
    return PerSeed(found)


def _ntk_ratio(runs: Runs, name: str, pair: tuple[str, str], rank: str) -> PerSeed:
    def read(record: dict) -> float | None:
        for entry in record["pairs"]:
            ranks = [_rank(r) for r in entry["ranks"]]
            if (entry["task"], entry["control"]) == pair and rank in ranks:
                return entry["nystrom"]["ratio_heldout"][ranks.index(rank)]  # None: over no energy at all
        return None

    return runs.number(name, read)


def _rank(rank: float | int) -> str:
    """A number of eigenfunctions, or a share of the trace."""
    return f"{rank:.0%} of the trace" if isinstance(rank, float) else f"{rank}"


def _pair_name(pair: tuple[str, str]) -> str:
    return " – ".join(map(printed, pair))


# --- Writing -------------------------------------------------------------------------------------------------------


def markdown(table: Table) -> str:
    """The table with its caption above, and below it notes and the commands that fill what is missing."""
    lines = [f"**{table.full_caption}**", "", _pipe(table.header), _pipe(["---", *["---:"] * (len(table.header) - 1)])]
    lines += [_pipe(row) for row in table.texts()]
    lines += [line for note in table.notes for line in ("", note)]
    if table.missing:
        lines += ["", "Empty cells are filled by:", "", "```sh", *table.missing, "```"]
    return "\n".join(lines) + "\n"


def _pipe(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "±": r"$\pm$", "−": "$-$",
    "–": "--", "α": r"$\alpha$", "θ0": r"$\theta_0$", "τ": r"$\tau$", "Σ": r"$\sum$", "ξ": r"$\xi$", "²": r"$^2$",
    "λ": r"$\lambda$", "≥": r"$\geq$",
}  # fmt: skip


def _escaped(text: str) -> str:
    return re.sub("θ0|.", lambda found: LATEX.get(found[0], found[0]), text)


def latex(table: Table) -> str:
    """The table as a float with booktabs' rules."""
    rows = [" & ".join(_escaped(cell) for cell in row) + r" \\" for row in table.texts()]
    below = [rf"\par\smallskip\footnotesize {_escaped(note)}" for note in table.notes]
    return "\n".join(
        [
            *(f"% empty cells are filled by: {command}" for command in table.missing),
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escaped(table.full_caption)}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"\toprule",
            " & ".join(map(_escaped, table.header)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            *below,
            r"\end{table}",
            "",
        ]
    )


def comma_separated(table: Table) -> str:
    """Means with their sd, number of seeds and published counterparts as columns of their own."""
    parts = ("", " sd", " seeds", " published")
    numeric = [any(isinstance(row[i], Cell) for row in table.rows) for i in range(len(table.header))]
    header = []
    for title, is_number in zip(table.header, numeric):
        header += [title + part for part in parts] if is_number else [title]
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(header)
    for row in table.rows:
        entries = []
        for entry, is_number in zip(row, numeric):
            if isinstance(entry, Cell):
                entries += entry.columns()
            else:
                entries += [entry, "", "", ""] if is_number else [entry]
        out.writerow(entries)
    return text.getvalue()


FORMATS = {".md": markdown, ".tex": latex, ".csv": comma_separated}


def write(tables: Sequence[Table], folder: Path) -> None:
    """Each table in every format, under its name."""
    for table in tables:
        for suffix, render in FORMATS.items():
            write_text(folder / f"{table.name}{suffix}", render(table))


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


BEGIN, END = "<!-- tables:begin -->", "<!-- tables:end -->"


def embed(readme: Path, block: str) -> None:
    """Replace what stands between the markers of `readme`. Raises ValueError where they are not there, once each."""
    text = readme.read_text(encoding="utf-8")
    found = re.findall(f"{re.escape(BEGIN)}.*?{re.escape(END)}", text, flags=re.DOTALL)
    if len(found) != 1:
        raise ValueError(f"{readme}: expected one block between {BEGIN} and {END}, found {len(found)}")
    write_text(readme, text.replace(found[0], f"{BEGIN}\n{block.strip()}\n{END}"))
