"""The ways of fine-tuning, one row each: whose weights, which model they are evaluated in, names and looks.

To add one: a row here, its learning rate in src/datasets/registry.py, and in src/finetuning/ whatever it trains or
adds to the loss that no other mode does.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# What a mode trains, where it is not the whole image tower.
ATTENTION, LOW_RANK, NO_EMBEDDINGS = "attention", "low-rank", "no embeddings"
# What it minimises, where it is not the loss of its task at θ.
TAU_JP, TAK, ORTHO, SAM = "tau_jp", "tak", "ortho", "sam"
CYCLIC = "cyclic"
PENALTY_TASKS = ("strict", CYCLIC)  # images of all other tasks at a step, or of one in turn
# Fields of Training that only the modes have which train or minimise this, with their defaults.
OPTIONS: dict[str, dict[str, int | float | str]] = {
    LOW_RANK: {"rank": 16, "lora_alpha": 16.0},
    TAU_JP: {"penalty": 0.1, "penalty_batch_size": 16, "penalty_tasks": CYCLIC},
    TAK: {"penalty": 0.1, "penalty_images": 256},
    ORTHO: {"penalty": 0.01},
    SAM: {"rho": 0.02},
}


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
    trains: which weights, empty for the whole image tower; minimises: what, empty for the loss of its task.
    extended: whether reproduce.py makes it in a stage of its own, and tables show it only where there are results.
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
    trains: str = ""
    minimises: str = ""
    extended: bool = False

    @property
    def options(self) -> dict[str, int | float | str]:
        """Its further fields of Training, with their defaults."""
        return OPTIONS.get(self.trains, {}) | OPTIONS.get(self.minimises, {})

    @property
    def needs_others(self) -> bool:
        """Whether its checkpoint depends on which other tasks there are."""
        return self.minimises in (TAU_JP, TAK)

    @property
    def checkpoint(self) -> str:
        """`trained_as`. Raises ValueError for the pre-trained model, which is no fine-tuned one."""
        if self.trained_as is None:
            raise ValueError(f"mode {self.name}: expected one that is fine-tuned")
        return self.trained_as


DASHED = (0, (5, 1.5))


def _further(name: str, title: str, short: str, *, tangent: bool = False, **facts: Any) -> Mode:
    """A row that the tangent paper does not have: trained under its own name, and made in the stage `modes`."""
    single_task = f"{name}_ft_accuracies"
    return Mode(name, title, short, "", single_task, trained_as=name, tangent=tangent, extended=True, **facts)


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
            line=DASHED,
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
        # Jin et al., arXiv:2407.07089: the weights of attention alone, without biases.
        _further(
            "attention",
            "attention-only",
            "attention",
            trains=ATTENTION,
            colour="#CC79A7",
            marker="v",
        ),
        _further(
            "attention_linear",
            "attention-only, linear",
            "attention, linear",
            tangent=True,
            trains=ATTENTION,
            colour="#AA4499",
            marker="<",
            line=DASHED,
        ),
        # Yoshida et al., ICLR 2025: linear, with a penalty on what τ does to other tasks' features.
        _further(
            "tau_jp",
            "linear, τJp penalty",
            "τJp",
            tangent=True,
            minimises=TAU_JP,
            colour="#332288",
            marker="P",
        ),
        # arXiv:2602.17385: the same with Kronecker factors of the other tasks in the place of their images.
        _further(
            "tak",
            "linear, TAK penalty",
            "TAK",
            tangent=True,
            trains=NO_EMBEDDINGS,
            minimises=TAK,
            colour="#44AA99",
            marker="d",
            line=DASHED,
        ),
        # arXiv:2604.17078: each matrix of τ is drawn to orthogonal columns, or rows, of norm 1.
        _further(
            "ortho",
            "OrthoReg",
            "OrthoReg",
            minimises=ORTHO,
            colour="#999933",
            marker="*",
        ),
        # Hu et al., arXiv:2106.09685, and its linearization, Tang et al., arXiv:2310.04742.
        _further(
            "lora",
            "LoRA",
            "LoRA",
            trains=LOW_RANK,
            colour="#E69F00",
            marker="X",
        ),
        _further(
            "l_lora",
            "linearized LoRA",
            "L-LoRA",
            tangent=True,
            trains=LOW_RANK,
            colour="#117733",
            marker="p",
            line=DASHED,
        ),
        # Foret et al., arXiv:2010.01412: the loss at the worst weights nearby.
        _further(
            "sam",
            "sharpness-aware",
            "SAM",
            minimises=SAM,
            colour="#882255",
            marker="h",
        ),
    )
}

# Which tensors of a checkpoint a task vector has: those that are trained; or, as in the published code, all of them.
SCOPES = ("visual", "published")
TRAINED = tuple(mode.name for mode in MODES.values() if mode.trained_as == mode.name)  # what finetune.py makes
EVALUATED = tuple(mode.name for mode in MODES.values() if mode.trained_as)  # what has task vectors


def usual(names: Iterable[str]) -> tuple[str, ...]:
    """Those that are no extended modes; names of other things are kept."""
    return tuple(name for name in names if name not in MODES or not MODES[name].extended)


def titles(names: Iterable[str]) -> list[str]:
    return [MODES[name].title for name in names]
