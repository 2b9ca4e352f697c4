"""What a computation is about: which network, which images, which places. Every function of the library takes a `Run`."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from src.model_names import check_model
from src.datasets import corruptions, registry
from src.runtime.distributed import cores
from src.runtime.messages import nearest
from src.runtime.paths import Paths, Places


@dataclass(frozen=True)
class Run:
    """One network, seed and set of tasks, with the places of its files and what to compute on.

    model: a name as in model_names.py; suite: "mini" or "vision"; tasks: names of the suite's data sets.
    seed: of everything; mini draws its images from it too.
    pretrained_path: a local file of pre-trained weights, in the place of those that the model's name stands for.
    device: PyTorch's name. jobs: tasks worked on at once. batch_size: images of one forward pass in evaluation.
    corruption: of the test images. skip_corrupt: leave out images that cannot be decoded.

    `Run.of` fills in what the suite decides; `dataclasses.replace` gives a changed copy.
    """

    suite: str
    model: str
    seed: int
    tasks: tuple[str, ...]
    places: Places = Places()
    pretrained_path: str | None = None
    device: str = "cpu"
    jobs: int = 1
    batch_size: int = 100
    corruption: corruptions.Corrupted | None = None
    skip_corrupt: bool = False

    @classmethod
    def of(
        cls,
        model: str | None = None,
        suite: str | None = None,
        tasks: str | Iterable[str] | None = None,
        seed: int = 1,
        device: str | None = None,
        jobs: int | None = None,
        **fields: Any,
    ) -> "Run":
        """A run in which what is None is filled in: the suite of the model, its model, all its tasks, this machine.

        tasks: names, in lists or with commas. Raises ValueError for what does not exist, with the nearest that does.
        """
        model = model or registry.suite(suite or registry.DEFAULT).model
        check_model(model)
        suite = suite or registry.default_suite(model)
        device = device or default_device()
        if jobs is None:
            jobs = cores() if device.startswith("cpu") else 1
        return cls(suite, model, seed, task_names(tasks, registry.suite(suite)), device=device, jobs=jobs, **fields)

    @cached_property
    def paths(self) -> Paths:
        return Paths(self.suite, self.model, self.seed, self.places, str(self.corruption or ""))

    @property
    def suite_row(self) -> registry.Suite:
        return registry.suite(self.suite)

    @property
    def control(self) -> str:
        """The data set whose accuracy negation is to keep."""
        return self.suite_row.control

    @property
    def settings(self) -> dict[str, Any]:
        """The suite's protocol for this model; see registry.Protocol."""
        return self.suite_row.settings(self.model)

    def config(self, **options: Any) -> dict[str, Any]:
        """Every field, and the `options` of an experiment, as results record them."""
        own = asdict(self)
        places = own.pop("places")
        return own | {name: str(folder) for name, folder in places.items()} | options

    def flags(self) -> str:
        """How a command is told of this run: `--model=ViT-Mini --seed=1`, and a corruption where there is one."""
        named = {"model": self.model, "seed": self.seed}
        if self.suite != registry.default_suite(self.model):
            named["suite"] = self.suite
        if self.corruption:
            named |= {"corruption": self.corruption.name, "severity": self.corruption.severity}
        return " ".join(f"--{name}={value}" for name, value in named.items())


def default_device() -> str:
    """A CUDA GPU where there is one, else the processor."""
    import torch  # here, so that a script's --help does not wait for it

    return "cuda" if torch.cuda.is_available() else "cpu"


def task_names(names: str | Iterable[str] | None, suite: registry.Suite) -> tuple[str, ...]:
    """Names of the suite's tasks; all of them for None. Raises ValueError for an unknown one, and for a name twice."""
    if not names:
        return suite.tasks
    chunks = [names] if isinstance(names, str) else names
    tasks = tuple(name for chunk in chunks for name in chunk.split(",") if name)
    for name in tasks:
        if name not in suite.tasks:
            raise ValueError(
                f"--tasks: {name!r} is no task of suite {suite.name}{nearest(name, suite.tasks)} "
                f"Known: {', '.join(suite.tasks)}"
            )
    if repeated := sorted({name for name in tasks if tasks.count(name) > 1}):
        raise ValueError(f"--tasks: expected each task once, found {', '.join(repeated)} more than once")
    return tasks


def flag_values(fields: Mapping[str, Any]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in fields.items()]
