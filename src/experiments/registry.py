"""The experiments: what their results are called, and the commands that make them.

To add one: a row here, a file beside this one that computes the record, and a script of docstring, flags and one call.
"""

from dataclasses import dataclass

from src.modes import EVALUATED, MODES


@dataclass(frozen=True)
class Experiment:
    """A row: `python <script>.py <flag>=<choice>` writes `<name>_<choice>.json`."""

    name: str
    script: str
    flag: str
    choices: tuple[str, ...]

    def result(self, choice: str) -> str:
        """The name of a result, in the folder of a seed."""
        return f"{self.name}_{choice}"

    @property
    def schema(self) -> str:
        """The name of its records' schema; see records.py."""
        return self.name

    def command(self, choice: str, flags: str) -> str:
        """The command that makes a result; flags: those of a run."""
        return f"python {self.script}.py {self.flag}={choice} {flags}"


class SingleTask(Experiment):
    """Its results have the published file names."""

    def result(self, choice: str) -> str:
        return MODES[choice].single_task


MODE = "--finetuning-mode"
CONTROL = ("prepared", "always", "never")  # when single-task evaluation scores the control set too
SINGLE_TASK = SingleTask("single_task", "eval_single_task", MODE, tuple(MODES))
ADDITION = Experiment("addition", "eval_task_addition", MODE, EVALUATED)
NEGATION = Experiment("negation", "eval_task_negation", MODE, EVALUATED)
DISENTANGLEMENT = Experiment("disentanglement", "eval_disentanglement", MODE, EVALUATED)
NEGATION_POINTS = 21  # on mini too: every point costs a pass over the control set for each task
NTK = Experiment("ntk", "eval_ntk_localization", "--reduction", ("trace", "sum"))
NTK_RANKS = (5, 10, 20, 0.9)  # eigenfunctions, and with a point shares of the trace
NTK_SAMPLES = 64

EXPERIMENTS = {row.name: row for row in (SINGLE_TASK, ADDITION, NEGATION, DISENTANGLEMENT, NTK)}
