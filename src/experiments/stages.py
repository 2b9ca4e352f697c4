"""The stages of reproduce.py, in order: their names and purpose. Their commands are in reproduction.py."""

from collections.abc import Sequence
from dataclasses import dataclass

from src.experiments.registry import EXPERIMENTS


@dataclass(frozen=True)
class Stage:
    """A row. An `extended` stage runs when it is named, or with --extended.

    apart: whether its commands need nothing of each other and each has long work that one process does: --jobs of them
    run at once.
    """

    name: str
    title: str
    extended: bool = False
    apart: bool = False


STAGES = (
    Stage("fine-tuning", "every task in every mode"),
    *(Stage(row.stage, row.title, row.extended) for row in EXPERIMENTS.values() if not row.of_merged),
    Stage("merging", "the three papers' methods on the first 8, 14 and 20 tasks"),
    Stage("adaptation", "methods that learn from unlabelled images", apart=True),
    Stage("random-init", "fine-tuning, single tasks and addition without pre-training"),
    Stage("modes", "further ways of fine-tuning: every task, single tasks, addition, negation, ...", extended=True),
    Stage("modes-merging", "merging methods on their task vectors", extended=True),
    Stage("merging-sweeps", "consensus thresholds, and random subsets of the tasks", extended=True),
    Stage("unseen", "merged models on two tasks that they were not merged from", extended=True),
    Stage("merging-tangent", "the papers' methods on linear and post-hoc task vectors", extended=True),
    Stage("methods", "later papers' methods on every kind of task vectors", extended=True),
    Stage("methods-adapting", "every method that learns, on every kind of task vectors", extended=True, apart=True),
    Stage("adaptation-more", "further rows of adaptation, and on validation images", extended=True, apart=True),
    Stage("robustness", "scoring and adapting on corrupted images", extended=True),
    Stage("storage", "methods that keep a model for each task, at other sizes", extended=True),
    Stage("robust-tasks", "a few methods on random sets of 2 tasks and more", extended=True),
    Stage("robust-norm", "experts of which one is trained three times longer, merged", extended=True),
    Stage("robust-confidence", "experts trained with smoothed labels, merged", extended=True),
    Stage("robust-length", "experts trained shorter and longer, merged", extended=True),
    *(Stage(row.stage, row.title, row.extended) for row in EXPERIMENTS.values() if row.of_merged),
)
# Once, after the stages of every seed, from whatever results there are.
REPORT = (
    Stage("tables", "every table, the ledger of claims, accuracies.csv"),
    Stage("figures", "every figure", apart=True),
    Stage("report", "the page, report.html"),
)
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
