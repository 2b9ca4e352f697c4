"""The experiments: what their results are called, the commands that make them, and the stage that runs them.

To add one: a row here; a file beside this one, named as the row, with `Record` (the schema of its results), `numbers`
(what they hold for tables) and the computation; and a script of docstring, flags and one call.
"""

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from src.modes import EVALUATED, MODES, TRAINED, usual


@dataclass(frozen=True)
class Experiment:
    """A row: `python <script>.py <flag>=<choice>` writes `<name>_<choice>.json`.

    stage: of reproduce.py. title: what a reader calls it. benchmark: whether it is on the papers' first 8 tasks, in the
    place of all of the run's. pairs: whether it names its own tasks, as pairs, so that --tasks says nothing to it.
    random_init: also on random weights. extended: whether the stage runs when it is named, or with --extended.
    of_merged: whether it reads results of main.py, so that its stage comes after those that make them.
    """

    name: str
    script: str
    flag: str
    choices: tuple[str, ...]
    stage: str
    title: str
    benchmark: bool = False
    pairs: bool = False
    random_init: bool = False
    extended: bool = False
    of_merged: bool = False

    def result(self, choice: str) -> str:
        """The name of a result, in the folder of a seed."""
        return f"{self.name}_{choice}"

    def is_extended(self, choice: str) -> bool:
        """Whether `reproduce.py` makes a result with --extended alone."""
        return self.extended or (choice in MODES and MODES[choice].extended)

    def command(self, choice: str, flags: str) -> str:
        """The command that makes a result; flags: those of a run."""
        return f"python {self.script}.py {self.flag}={choice} {flags}"


class SingleTask(Experiment):
    """Its results have the published file names."""

    def result(self, choice: str) -> str:
        return MODES[choice].single_task


MODE = "--finetuning-mode"
CONTROL = ("prepared", "always", "never")  # when single-task evaluation scores the control set too
SINGLE_TASK = SingleTask("single_task", "eval_single_task", MODE, tuple(MODES), "single-task", "single-task accuracies")
ADDITION = Experiment("addition", "eval_task_addition", MODE, EVALUATED, "addition", "task addition", benchmark=True)
NEGATION = Experiment("negation", "eval_task_negation", MODE, EVALUATED, "negation", "task negation", benchmark=True)
NEGATION_POINTS = 21  # on mini too: every point costs a pass over the control set for each task
DISENTANGLEMENT = Experiment(
    "disentanglement", "eval_disentanglement", MODE, EVALUATED, "disentanglement", "disentanglement error", pairs=True
)
NTK = Experiment(
    "ntk",
    "eval_ntk_localization",
    "--reduction",
    ("trace", "sum"),
    "ntk",
    "tangent kernel",
    pairs=True,
    random_init=True,
)
NTK_RANKS = (5, 10, 20, 0.9)  # eigenfunctions, and with a point shares of the trace
NTK_SAMPLES = 64

GEOMETRY = Experiment(
    "geometry", "eval_geometry", MODE, TRAINED, "geometry", "spectral geometry", benchmark=True, extended=True
)
LAYERWISE = Experiment(
    "layerwise",
    "eval_layerwise",
    MODE,
    EVALUATED,
    "layerwise",
    "layer-wise interference",
    benchmark=True,
    extended=True,
)
LAYERWISE_SAMPLES = 64
CONNECTIVITY = Experiment(
    "connectivity",
    "eval_connectivity",
    MODE,
    EVALUATED,
    "connectivity",
    "loss barriers between models",
    benchmark=True,
    extended=True,
)
CONNECTIVITY_POINTS = 11
ANALOGIES = Experiment(
    "analogies", "eval_analogies", MODE, EVALUATED, "analogies", "task analogies", pairs=True, extended=True
)
ANALOGY_POINTS = 21
COURSE = Experiment(
    "course",
    "eval_course",
    MODE,
    usual(EVALUATED),
    "course",
    "courses of adaptations, read three times",
    benchmark=True,
    extended=True,
)
COURSE_EVERY = 5
MERGEABILITY = Experiment(
    "mergeability",
    "eval_mergeability",
    MODE,
    usual(EVALUATED),
    "mergeability",
    "what foretells how well a pair merges",
    benchmark=True,
    extended=True,
)
MERGEABILITY_SAMPLES = 200
MERGEABILITY_TASKS = 3  # at least: two have one pair
MERGED_MODELS = Experiment(
    "merged_models",
    "eval_merged_models",
    MODE,
    EVALUATED,
    "merged-models",
    "merged models seen closely",
    benchmark=True,
    extended=True,
    of_merged=True,
)
MERGED_SAMPLES = 64

EXPERIMENTS = {
    row.name: row
    for row in (
        SINGLE_TASK,
        ADDITION,
        NEGATION,
        DISENTANGLEMENT,
        NTK,
        GEOMETRY,
        LAYERWISE,
        CONNECTIVITY,
        ANALOGIES,
        COURSE,
        MERGEABILITY,
        MERGED_MODELS,
    )
}
MERGING = "merging"  # of main.py, whose commands are not of this form


def module(experiment: str) -> ModuleType:
    """The file of an experiment: its `Record`, its `numbers`, and the computation. It imports torch."""
    return import_module(f"src.experiments.{experiment}")
