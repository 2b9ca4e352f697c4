"""The stages of reproduce.py, in order: their names and purpose. Their commands are in commands.py."""

from collections.abc import Sequence
from dataclasses import dataclass

from src.experiments.registry import EXPERIMENTS


@dataclass(frozen=True)
class Stage:
    """A row. An `extended` stage runs when it is named, or with --extended.

    apart: whether --jobs of its commands run at once, those that read what others keep after these. methods: whether
    merging methods are registered with its name.
    """

    name: str
    title: str
    extended: bool = False
    apart: bool = False
    methods: bool = False


FINE_TUNING = Stage("fine-tuning", "every task in every mode")
MERGING = Stage(
    "merging", "the three papers' methods on the first 8 tasks; of a run of more, on 14 and 20 too", methods=True
)
ADAPTATION = Stage("adaptation", "methods that learn from unlabelled images", apart=True, methods=True)
RANDOM_INIT = Stage("random-init", "fine-tuning, single tasks and addition without pre-training")
MODES = Stage("modes", "further ways of fine-tuning: every task, single tasks, addition, negation, ...", extended=True)
MODES_MERGING = Stage(
    "modes-merging", "merging methods, by all their options, on their task vectors", extended=True, apart=True
)
MERGING_SWEEPS = Stage(
    "merging-sweeps", "consensus thresholds, and random subsets of the tasks", extended=True, apart=True
)
UNSEEN = Stage("unseen", "merged models on two tasks that they were not merged from", extended=True)
MERGING_TANGENT = Stage(
    "merging-tangent", "the papers' methods on linear and post-hoc task vectors", extended=True, apart=True
)
METHODS = Stage(
    "methods", "later papers' methods on every kind of task vectors", extended=True, apart=True, methods=True
)
METHODS_ADAPTING = Stage(
    "methods-adapting",
    "every method that learns, on every kind of task vectors",
    extended=True,
    apart=True,
    methods=True,
)
VARIANTS = Stage("variants", "methods and what learns, by other options than their defaults", extended=True, apart=True)
ADAPTATION_MORE = Stage(
    "adaptation-more",
    "further rows of adaptation, and on validation images",
    extended=True,
    apart=True,
    methods=True,
)
ROBUSTNESS = Stage("robustness", "scoring and adapting on corrupted images", extended=True)
STORAGE = Stage("storage", "methods that keep a model for each task, at other sizes", extended=True, apart=True)
ROBUST_TASKS = Stage("robust-tasks", "a few methods on random sets of 2 tasks and more", extended=True, apart=True)
ROBUST_NORM = Stage("robust-norm", "experts of which one is trained three times longer, merged", extended=True)
ROBUST_CONFIDENCE = Stage("robust-confidence", "experts trained with smoothed labels, merged", extended=True)
ROBUST_LENGTH = Stage("robust-length", "experts trained shorter and longer, merged", extended=True)
TABLES = Stage("tables", "every table, the ledger of claims, accuracies.csv")
FIGURES = Stage("figures", "every figure", apart=True)
REPORT_PAGE = Stage("report", "the page, report.html")

STAGES = (
    FINE_TUNING,
    *(Stage(row.stage, row.title, row.extended) for row in EXPERIMENTS.values() if not row.of_merged),
    MERGING,
    ADAPTATION,
    RANDOM_INIT,
    MODES,
    MODES_MERGING,
    MERGING_SWEEPS,
    UNSEEN,
    MERGING_TANGENT,
    METHODS,
    METHODS_ADAPTING,
    VARIANTS,
    ADAPTATION_MORE,
    ROBUSTNESS,
    STORAGE,
    ROBUST_TASKS,
    ROBUST_NORM,
    ROBUST_CONFIDENCE,
    ROBUST_LENGTH,
    *(Stage(row.stage, row.title, row.extended) for row in EXPERIMENTS.values() if row.of_merged),
)
# Once, after the stages of every seed, from whatever results there are.
REPORT = (TABLES, FIGURES, REPORT_PAGE)
OF_METHODS = tuple(stage.name for stage in STAGES if stage.methods)
NAMES = tuple(stage.name for stage in (*STAGES, *REPORT))


def listing() -> str:
    """A line for each stage."""
    width = max(map(len, NAMES))
    rows = [(stage, ", extended" if stage.extended else "") for stage in (*STAGES, *REPORT)]
    return "\n".join(f"    {stage.name:{width}}  {stage.title}{mark}" for stage, mark in rows)


def chosen(stages: Sequence[Stage], only: Sequence[str] | None, extended: bool) -> list[Stage]:
    """The stages that run. only: names."""
    if only:
        return [stage for stage in stages if stage.name in only]
    return [stage for stage in stages if extended or not stage.extended]
