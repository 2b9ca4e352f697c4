"""Tables 1, 2 and 3 of the tangent paper, its single-task accuracies, and numbers for its heat maps and kernels."""

from collections.abc import Iterator, Sequence
from statistics import fmean as mean
from typing import Any

import pandas as pd

from src.datasets import registry
from src.experiments.registry import ADDITION, DISENTANGLEMENT, NEGATION, NTK, SINGLE_TASK
from src.modes import EVALUATED, MODES, TRAINED, titles
from src.reporting.published import beside, published
from src.reporting.runs import Runs
from src.reporting.table import Cell, Table, pair_name, percent, printed

SINGLE_TASK_PAPERS = ("atlas", "lines", "tall")  # the tangent paper's own recipe first, then those of 20 tasks
SOURCES = (
    "In brackets the accuracies that fredzzhang/atlas found with the tangent paper's recipe, on 8 tasks; on further "
    "tasks those of LiNeS, then of the TALL paper. The tangent paper states none for single tasks."
)
FINETUNED = "Fine-tuned"  # what the papers other than the tangent paper call non-linear fine-tuning


def single_task(runs: Runs) -> Iterator[Table]:
    """Every model on its own task, and on the control set."""
    modes = runs.modes(SINGLE_TASK.choices)

    def single(mode: str, tasks: Sequence[str]) -> pd.Series:
        return 100 * runs.mean_over(tasks, experiment=SINGLE_TASK.name, mode=mode, metric="accuracy")

    def theirs(mode: str, setting: str) -> float | None:
        return published_single_task(runs.model, mode, setting)

    rows: list[list[str | Cell]] = [
        [printed(t), *(Cell(single(m, [t]), theirs(m, t)) for m in modes)] for t in (*runs.tasks, *runs.other_tasks)
    ]
    for count in runs.benchmarks:
        cells = (Cell(single(m, runs.tasks[:count]), theirs(m, f"mean of {count} tasks")) for m in modes)
        rows.append([f"mean of {count}", *cells])
    rows.append([f"{printed(runs.control)} (kept)", *(Cell(single(m, [runs.control])) for m in modes)])
    yield Table(
        "single_task",
        f"Single-task test accuracy, %{beside(runs.model)}.",
        ["task", *titles(modes)],
        rows,
        runs.seeds,
        notes=(
            f"{printed(runs.control)}: mean over the models of the first {len(runs.main_tasks)} tasks of what each "
            "keeps on the control set.",
            *((SOURCES,) if runs.of_papers else ()),
        ),
        missing=tuple(runs.missing(SINGLE_TASK, modes)),
        in_readme=True,
    )


def published_single_task(model: str, mode: str, setting: str) -> float | None:
    for paper in SINGLE_TASK_PAPERS:
        method = FINETUNED if mode == "standard" and paper != "atlas" else MODES[mode].published
        value = published(model, paper, "single-task", method, setting, "accuracy")
        if value is not None:
            return value
    return None


def addition(runs: Runs) -> Iterator[Table]:
    """Table 1, and its numbers for each task."""
    tasks = _tasks(runs, ADDITION.name)
    caption = f"Task addition (Table 1): test accuracy of θ0 + α Σ τ, {len(tasks)} tasks, %{beside(runs.model)}."
    modes = runs.modes(EVALUATED)
    missing = tuple(runs.missing(ADDITION, modes))
    start = 100 * runs.any_of(experiment=ADDITION.name, metric="zeroshot_accuracy")
    none = MODES["none"]
    rows: list[list[str | Cell]]
    rows = [[none.title, Cell(start, _theirs(runs, tasks, "Table 1", none.published, "absolute")), "", "", "", ""]]
    yield Table(
        "table1_addition",
        caption,
        ["method", "absolute", "normalised", "zero-shot, normalised", "single-task (denominator)", "α"],
        rows + [_added(runs, mode, tasks) for mode in modes],
        runs.seeds,
        notes=("zero-shot, normalised: what doing nothing scores by the same denominators.",),
        missing=missing,
        in_readme=True,
    )
    by_task: list[list[str | Cell]] = []
    for task in tasks:
        kinds = [(mode, metric) for mode in modes for metric in ("accuracy", "normalised")]
        cells = (percent(runs, experiment=ADDITION.name, mode=m, metric=metric, task=task) for m, metric in kinds)
        by_task.append([printed(task), *cells])
    yield Table(
        "addition_per_task",
        "Task addition, each task: test accuracy, absolute and normalised, %.",
        ["task", *(f"{title}{kind}" for title in titles(modes) for kind in ("", ", normalised"))],
        by_task,
        runs.seeds,
        missing=missing,
    )


def _added(runs: Runs, mode: str, tasks: tuple[str, ...]) -> list[str | Cell]:
    what: dict[str, Any] = {"experiment": ADDITION.name, "mode": mode}
    name = MODES[mode].published
    return [
        MODES[mode].title,
        percent(runs, _theirs(runs, tasks, "Table 1", name, "absolute"), metric="accuracy", **what),
        percent(runs, _theirs(runs, tasks, "Table 1", name, "normalised"), metric="normalised", **what),
        percent(runs, metric="zeroshot_normalised", **what),
        percent(runs, metric="finetuned_accuracy", **what),
        Cell(runs.values(metric="chosen", **what), digits=3),
    ]


def negation(runs: Runs) -> Iterator[Table]:
    """Table 2."""
    tasks, modes = _tasks(runs, NEGATION.name), runs.modes(EVALUATED)
    thresholds = runs.select(experiment=NEGATION.name, metric="control_threshold")["value"]
    share = f"{100 * max(thresholds, default=0.95):g} %"
    their_model = beside(runs.model)
    start: dict[str, Any] = {"experiment": SINGLE_TASK.name, "mode": "none", "metric": "accuracy"}
    none = MODES["none"]
    target = Cell(100 * runs.mean_over(tasks, **start), _theirs(runs, tasks, "Table 2", none.published, "target"))
    control = percent(runs, _theirs(runs, tasks, "Table 2", none.published, "control"), task=runs.control, **start)
    yield Table(
        "table2_negation",
        f"Task negation (Table 2): test accuracy of θ0 − α τ, mean over {len(tasks)} tasks, {share} of the control's "
        f"validation accuracy kept, %{their_model}{', whose control is ImageNet' if their_model else ''}.",
        ["method", "target (lower is better)", "control", "α, mean"],
        [[none.title, target, control, ""], *(_negated(runs, mode, tasks) for mode in modes)],
        runs.seeds,
        notes=tuple(note for mode in modes for note in _lost_controls(runs, mode, tasks)),
        missing=tuple([*runs.missing(SINGLE_TASK, ["none"]), *runs.missing(NEGATION, modes)]),
        in_readme=True,
    )


def _negated(runs: Runs, mode: str, tasks: tuple[str, ...]) -> list[str | Cell]:
    what: dict[str, Any] = {"experiment": NEGATION.name, "mode": mode}
    name = MODES[mode].published
    return [
        MODES[mode].title,
        percent(runs, _theirs(runs, tasks, "Table 2", name, "target"), metric="target_accuracy", **what),
        percent(runs, _theirs(runs, tasks, "Table 2", name, "control"), metric="control_accuracy", **what),
        Cell(runs.mean_over(tasks, metric="chosen", **what), digits=3),
    ]


def _lost_controls(runs: Runs, mode: str, tasks: tuple[str, ...]) -> Iterator[str]:
    """A line for each task that no coefficient keeps the control of, with the seeds."""
    for task in tasks:
        reached = runs.values(experiment=NEGATION.name, mode=mode, metric="control_kept", task=task)
        if seeds := [str(seed) for seed in reached.index[reached == 0]]:
            of = f"seed{'' if len(seeds) == 1 else 's'} {', '.join(seeds)}"
            yield f"{MODES[mode].title}, {printed(task)}: no α keeps the control, so α = 0 ({of})."


def random_init(runs: Runs) -> Iterator[Table]:
    """Table 3."""
    fresh = runs.random_init
    tasks, modes = _tasks(fresh, ADDITION.name), fresh.modes(TRAINED)

    def single(mode: str, name: str) -> Cell:
        ours = fresh.mean_over(tasks, experiment=SINGLE_TASK.name, mode=mode, metric="accuracy")
        return Cell(100 * ours, _theirs(runs, tasks, "Table 3", name, "single"))

    rows: list[list[str | Cell]] = [["random initialization", single("none", "Random init"), ""]]
    for mode in modes:
        name = MODES[mode].published
        theirs = _theirs(runs, tasks, "Table 3", name, "multi")
        added = percent(fresh, theirs, experiment=ADDITION.name, mode=mode, metric="accuracy")
        rows.append([MODES[mode].title, single(mode, name), added])
    guess = 100 * mean(guess_rate(task) for task in tasks)
    yield Table(
        "table3_random_init",
        f"Addition from random initialization (Table 3), mean over {len(tasks)} tasks, %{beside(runs.model)}.",
        ["method", "single-task", "multi-task"],
        rows,
        runs.seeds,
        notes=(f"The heads stay the pre-trained text heads. Chance: {guess:.1f} %.",),
        missing=tuple([*fresh.missing(SINGLE_TASK, ("none", *modes)), *fresh.missing(ADDITION, modes)]),
        in_readme=True,
    )


def guess_rate(dataset: str) -> float:
    """Accuracy of guessing: 1 / C."""
    return 1 / len(registry.get(dataset).classnames)


def disentanglement(runs: Runs) -> Iterator[Table]:
    """ξ in the search space, a number for each heat map."""
    what: dict[str, Any] = {"experiment": DISENTANGLEMENT.name, "metric": "error_in_box"}
    modes = runs.modes(EVALUATED)
    records = [record for mode in modes for record in runs.of(DISENTANGLEMENT, mode).values()]
    pairs = dict.fromkeys(tuple(pair["tasks"]) for record in records for pair in record["pairs"])
    rows: list[list[str | Cell]] = [
        [pair_name(pair), *(percent(runs, mode=mode, task="-".join(pair), **what) for mode in modes)]
        for pair in pairs or registry.suite(runs.suite).pairs
    ]
    yield Table(
        "disentanglement",
        "Disentanglement error (Figures 3 and 10): mean of ξ over the search space [−1, 1]², %.",
        ["pair", *titles(modes)],
        rows,
        runs.seeds,
        notes=("ξ adds the errors of both tasks, so it reaches 200 %.",),
        missing=tuple(runs.missing(DISENTANGLEMENT, modes)),
        in_readme=True,
    )


def kernel(runs: Runs) -> Iterator[Table]:
    """Localization of eigenfunctions as ratios of mean local energies, for every choice that the paper leaves open."""
    starts = {"pre-trained": runs, "random": runs.random_init}
    everything = [r for model in starts.values() for choice in NTK.choices for r in model.of(NTK, choice).values()]
    ranks = list(dict.fromkeys(rank for record in everything for pair in record["pairs"] for rank in pair["ranks"]))
    rows: list[list[str | Cell]] = []
    for start, model in starts.items():
        for reduction in NTK.choices:
            options = {"reduction": reduction}
            records = model.of(NTK, reduction).values()
            pairs = dict.fromkeys((pair["task"], pair["control"]) for record in records for pair in record["pairs"])
            for pair in pairs or registry.suite(runs.suite).ntk_pairs:
                what = {"experiment": NTK.name, "metric": "energy_ratio", "task": "-".join(pair), "options": options}
                cells = (Cell(model.values(setting=rank, **what), digits=2) for rank in ranks)
                rows.append([f"{pair_name(pair)}, {start}, {reduction}", *cells])
    yield Table(
        "ntk_localization",
        "Eigenfunctions of the tangent kernel (Figures 6, 14, 15): mean local energy on held-out images of the task "
        "over that on the control task, by the number of leading eigenfunctions or their share of the trace.",
        ["task – control, start, reduction", *map(_rank_name, ranks)],
        rows,
        runs.seeds,
        notes=("1 means not localized.",),
        missing=tuple([*runs.missing(NTK, NTK.choices), *runs.random_init.missing(NTK, NTK.choices)]),
    )


def _rank_name(rank: float | int) -> str:
    """A number of eigenfunctions, or a share of the trace."""
    return f"{rank:.0%} of the trace" if isinstance(rank, float) else f"{rank}"


def _tasks(runs: Runs, experiment: str) -> tuple[str, ...]:
    """The tasks that an experiment's results are of; the papers' first benchmark where there are none."""
    first = next((r for r in runs.read if r.experiment == experiment and not r.corruption), None)
    return first.task_list if first else runs.main_tasks


def _theirs(runs: Runs, tasks: tuple[str, ...], table: str, method: str, metric: str) -> float | None:
    """A number of the paper, for results on its benchmark."""
    if tasks != runs.main_tasks:
        return None
    return published(runs.model, "tangent", table, method, f"{len(tasks)} tasks", metric)


TABLES = (single_task, addition, negation, random_init, disentanglement, kernel)
