"""The ways of fine-tuning, one row each: whose weights, which model they are evaluated in, names and looks.

To add one: a row here, and its training code in training.py where `trained_as` is its own name.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Mode:
    """A row. Every experiment, table and figure takes what it says of a mode from here.

    name: what --finetuning-mode calls it.
    title: its name in tables and figures; short: where room is short.
    published: its name in the tangent paper's tables, as published.csv has it.
    single_task: the published file name of its single-task accuracies.
    trained_as: the mode of finetune.py whose checkpoints it takes; None for the pre-trained model, which has none.
    tangent: whether it is evaluated as the linearized model f(x; θ0) + J(x; θ0)(θ − θ0).
    colour, marker, line: in every figure; a line style of Matplotlib.
    """

    name: str
    title: str
    short: str
    published: str
    single_task: str
    trained_as: str | None
    tangent: bool
    colour: str
    marker: str
    line: str | tuple = "-"

    @property
    def checkpoint(self) -> str:
        """`trained_as`. Raises ValueError for the pre-trained model, which is no fine-tuned one."""
        if self.trained_as is None:
            raise ValueError(f"mode {self.name}: expected one that is fine-tuned")
        return self.trained_as


MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode(
            "none",
            "pre-trained",
            "pre-trained",
            published="Pre-trained",
            single_task="zeroshot_accuracies",
            trained_as=None,
            tangent=False,
            colour="#767676",
            marker="D",
        ),
        Mode(
            "standard",
            "non-linear fine-tuning",
            "non-linear",
            published="Non-lin. FT",
            single_task="ft_accuracies",
            trained_as="standard",
            tangent=False,
            colour="#D55E00",
            marker="o",
        ),
        Mode(
            "posthoc",
            "post-hoc linearization",
            "post-hoc",
            published="Post-hoc lin.",
            single_task="posthoc_ft_accuracies",
            trained_as="standard",
            tangent=True,
            colour="#009E73",
            marker="^",
            line=(0, (5, 1.5)),
        ),
        Mode(
            "linear",
            "linear fine-tuning",
            "linear",
            published="Linear. FT",
            single_task="linear_ft_accuracies",
            trained_as="linear",
            tangent=True,
            colour="#0072B2",
            marker="s",
        ),
    )
}

# Which tensors of a checkpoint a task vector has: those that are trained; or, as in the published code, all of them.
SCOPES = ("visual", "published")
TRAINED = tuple(mode.name for mode in MODES.values() if mode.trained_as == mode.name)  # what finetune.py makes
EVALUATED = tuple(mode.name for mode in MODES.values() if mode.trained_as)  # what has task vectors


def titles(names: Iterable[str]) -> list[str]:
    return [MODES[name].title for name in names]
