"""Every data set that the suite knows, one row each, and the two suites made of them."""

from dataclasses import dataclass, field, replace
from functools import cache

from src.datasets import own
from src.datasets.base import Dataset
from src.datasets.facts import Facts
from src.datasets.mini import FIRST as MINI_FIRST
from src.datasets.mini import ROWS as MINI_ROWS
from src.datasets.mini import TASKS as MINI_TASKS
from src.datasets.vision import CONTROL as VISION_CONTROL
from src.datasets.vision import FACTS as VISION_FACTS
from src.datasets.vision import ROWS as VISION_ROWS
from src.datasets.vision import TASKS as VISION_TASKS
from src.model_names import ModelName, pretrained_name
from src.runtime.messages import UsageError, nearest

OWN, WRONG = own.read_all()
# A set of one's own cannot take the place of the papers'.
FACTS: dict[str, Facts] = {name: facts for name, (facts, _) in OWN.items()} | VISION_FACTS
ROWS: dict[str, Dataset] = {row.name: row for row in (*(row for _, row in OWN.values()), *MINI_ROWS, *VISION_ROWS)}


@dataclass(frozen=True)
class Protocol:
    """How a suite is fine-tuned and searched, where the command line says nothing else."""

    lr: dict[str, float]  # per fine-tuning mode
    batch_size: int  # the global one, over all processes, of one forward pass
    warmup_length: int
    n_eval_points: int
    n_grid_points: int  # per axis of the disentanglement grid
    grid_samples: int | None  # images per task on that grid; None: all
    wd: float = 0.1
    ls: float = 0.0
    num_grad_accumulation: int = 1
    clip: float = 1.0
    shorter: dict[str, int] = field(default_factory=dict)  # family of adapting methods -> how many times fewer steps
    watch_every: int = 0  # steps between accuracies on validation images while a method adapts; 0: none


@dataclass(frozen=True)
class Suite:
    name: str
    tasks: tuple[str, ...]  # in the papers' order: a benchmark is the first so many
    default: tuple[str, ...]  # of a run that names no tasks
    control: str
    model: str
    protocol: Protocol
    pairs: tuple[tuple[str, str], ...]  # for the disentanglement heatmaps
    ntk_pairs: tuple[tuple[str, str], ...]  # (task, control) for the localization of eigenfunctions
    unseen: tuple[str, ...]  # scored without being merged
    analogies: tuple[tuple[str, str, str, str], ...] = ()  # A is to B as C is to D, which nothing is trained on
    drawn: bool = False  # whether the images are drawn from the seed
    per_model: dict[str, dict] = field(default_factory=dict)  # deviations from the protocol, by model

    def protocol_of(self, model: str) -> Protocol:
        return replace(self.protocol, **self.per_model.get(pretrained_name(model), {}))


BENCHMARKS = (8, 14, 20)  # the papers' numbers of tasks: the first of a suite's
DEFAULT = "mini"
SUITES = {
    # Lengths and the learning rates of `standard` and `linear` were chosen on seed 0 alone, for |τ| of a few percent of
    # |θ0|, as CLIP's are; those of the other modes on seed 0 as docs/modes.md has it.
    "mini": Suite(
        name="mini",
        tasks=MINI_TASKS,
        default=MINI_FIRST,
        control="control",
        model="ViT-Mini",
        protocol=Protocol(
            lr={
                "standard": 2.5e-4,
                "linear": 5e-4,
                "attention": 1e-3,
                "attention_linear": 1e-3,
                "tau_jp": 5e-4,
                "tak": 5e-4,
                "ortho": 2.5e-4,
                "lora": 8e-3,
                "l_lora": 1.6e-2,
                "sam": 2.5e-4,
            },
            batch_size=32,
            warmup_length=25,
            n_eval_points=41,
            n_grid_points=13,
            grid_samples=256,
            shorter={"adamerging": 20, "concrete": 40, "adarank": 200, "surgery": 20},
            watch_every=10,
        ),
        drawn=True,
        pairs=(("land", "house_numbers"), ("textures", "scenes"), ("vehicles", "signs")),
        ntk_pairs=(("land", "vehicles"), ("signs", "letters"), ("textures", "scenes")),
        unseen=("land", "digits"),
        analogies=(("digits", "house_numbers", "letters", "house_letters"),),
    ),
    "vision": Suite(
        name="vision",
        tasks=VISION_TASKS,
        default=VISION_TASKS,
        control=VISION_CONTROL,
        model="ViT-B-32",
        protocol=Protocol(
            lr=dict.fromkeys(
                ("standard", "linear", "attention", "attention_linear", "tau_jp", "tak", "ortho", "sam"), 1e-5
            )
            | dict.fromkeys(("lora", "l_lora"), 3e-4),
            batch_size=128,
            warmup_length=500,
            n_eval_points=21,
            n_grid_points=20,
            grid_samples=None,
        ),
        pairs=(("EuroSAT", "SVHN"), ("DTD", "SUN397"), ("Cars", "RESISC45")),
        ntk_pairs=(("RESISC45", "Cars"),),
        unseen=("EuroSAT", "MNIST"),
        per_model={"ViT-L-14": dict(batch_size=64, num_grad_accumulation=2)},
    ),
}


def suite(name: str) -> Suite:
    if name not in SUITES:
        raise UsageError(f"--suite: {name!r} does not exist{nearest(name, SUITES)} Known: {', '.join(SUITES)}")
    return SUITES[name]


def get(name: str) -> Dataset:
    check_own(name)
    if name not in ROWS:
        raise UsageError(f"data set {name!r} does not exist{nearest(name, list(ROWS))} Known: {', '.join(ROWS)}")
    return ROWS[name]


def check_own(name: str) -> None:
    """Raise UsageError for a data set of one's own whose file makes no sense."""
    if name in WRONG:
        raise UsageError(WRONG[name])


def names(row: Suite) -> tuple[str, ...]:
    """What a run may name: the tasks in order, and the suite's further sets, which are of no benchmark."""
    of_suite = (name for name, one in ROWS.items() if one.suite == row.name and name != row.control)
    return tuple(dict.fromkeys((*row.tasks, *of_suite)))


@cache
def default_suite(model: str) -> str:
    """The suite that a model is meant for."""
    return "mini" if ModelName.parse(model).mini else "vision"
