"""What a computation is about: network, images, places; what works on files takes a `Run`."""

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from src.datasets import corruptions, registry
from src.model_names import ModelName, check_model
from src.modes import MODES
from src.ranges import check
from src.records import Corrupted
from src.runtime.distributed import cores, visible_gpus
from src.runtime.messages import UsageError, nearest
from src.runtime.paths import Paths, Places, expanded, portable

BATCH, GPU_BATCH = 100, 256  # images of one forward pass in evaluation; a GPU waits for Python in smaller ones
PRECISIONS = FP32, TF32, BF16 = ("fp32", "tf32", "bf16")  # of matrix products; see runtime/precision.py
PLAIN = re.compile(r"[A-Za-z0-9_./:+-]+( [A-Za-z0-9_./:+-]+)*")  # what Hydra reads without quotes
SIGNED = re.compile(r"[+-][0-9.].*")  # a number to Hydra, which drops a sign that says nothing


@dataclass(frozen=True)
class Corruption:
    """A corruption of test images by name, and its severity, 1 to 5. Raises UsageError for what does not exist."""

    name: str
    severity: int

    def __post_init__(self):
        corruptions.check(self.name, self.severity)

    def __str__(self) -> str:
        return f"{self.name}_{self.severity}"


@dataclass(frozen=True)
class Run:
    """One network, seed and set of tasks, with the places of its files and what to compute on.

    suite: "mini" or "vision". model: a name as in model_names.py. tasks: names of the suite's data sets.
    seed: of everything; mini draws its images from it too.
    pretrained_path: a local file of pre-trained weights, in the place of those that the model's name stands for.
    device: PyTorch's name; for "cuda" each job has a GPU. jobs: tasks worked on at once.
    batch_size: images of one forward pass in evaluation.
    corruption: of the test images. skip_corrupt: leave out images that cannot be decoded.
    precision: of matrix products in fine-tuning, adaptation and evaluation.

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
    batch_size: int = BATCH
    corruption: Corruption | None = None
    skip_corrupt: bool = False
    precision: str = FP32

    def __post_init__(self):
        check(seed=self.seed, jobs=self.jobs, eval_batch_size=self.batch_size)
        if self.precision not in PRECISIONS:
            raise UsageError(f"--precision: expected one of {', '.join(PRECISIONS)}; got {self.precision!r}")

    @classmethod
    def of(
        cls,
        model: str | None = None,
        suite: str | None = None,
        tasks: str | Iterable[str] | None = None,
        seed: int = 1,
        device: str | None = None,
        jobs: int | None = None,
        batch_size: int | None = None,
        **fields: Any,
    ) -> "Run":
        """A run in which what is None is filled in: the suite of the model, its model, its tasks, this machine.

        tasks: names, in lists or with commas. Raises UsageError for what does not exist, with the nearest that does.
        """
        if model is None:
            model = registry.suite(registry.DEFAULT if suite is None else suite).model
        check_model(model)
        if suite is None:
            suite = registry.default_suite(model)
        if (path := fields.get("pretrained_path")) is not None:
            if ModelName.parse(model).mini:
                raise UsageError(f"--pretrained-path: {model} has weights of its own; leave the flag out")
            file = expanded(path, "--pretrained-path")
            if not file.is_file():
                raise UsageError(f"--pretrained-path: expected a file of weights, found none at {path}")
            fields["pretrained_path"] = str(file)
        device = known_device(default_device() if device is None else device)
        if jobs is None:
            jobs = cores() if device == "cpu" else len(visible_gpus()) if device == "cuda" else 1
        if batch_size is None:
            batch_size = BATCH if device == "cpu" else GPU_BATCH
        fields |= {"device": device, "jobs": jobs, "batch_size": batch_size}
        return cls(suite, model, seed, task_names(tasks, registry.suite(suite)), **fields)

    @cached_property
    def paths(self) -> Paths:
        return Paths(self.suite, self.model, self.seed, self.places, str(self.corruption or ""))

    def require_mantissa(self, what: str) -> None:
        """Raise UsageError where the precision is bf16, which is too coarse for `what`."""
        if self.precision == BF16:
            raise UsageError(f"--precision: bf16 has 8 significant bits, too few for {what}; take fp32 or tf32")

    def require_mantissa_of(self, mode: str) -> None:
        """Raise UsageError where the precision is bf16 and the mode is evaluated as a tangent model."""
        if MODES[mode].tangent:
            self.require_mantissa(f"{mode}: f(x; θ0) + J(θ − θ0) loses its second term, a few percent of the first")

    @property
    def suite_row(self) -> registry.Suite:
        return registry.suite(self.suite)

    @property
    def control(self) -> str:
        """The data set whose accuracy negation is to keep."""
        return self.suite_row.control

    @property
    def protocol(self) -> registry.Protocol:
        """How the suite is fine-tuned and searched, for this model."""
        return self.suite_row.protocol_of(self.model)

    def config(self, **options: Any) -> dict[str, Any]:
        """Every field, and the options of an experiment, as results record them."""
        fields = asdict(self)
        places = fields.pop("places")
        return fields | places | options

    def corruption_record(self) -> Corrupted:
        """What a result says of the corruption that it was made under; nothing where there was none."""
        if self.corruption is None:
            return {}
        name, severity = self.corruption.name, self.corruption.severity
        return {"corruption": {"name": name, "severity": severity, "splits": [corruptions.SPLIT]}}

    def named(self) -> dict[str, Any]:
        """What a command is told of this run beside its tasks: names with underscores; defaults are left out."""
        named: dict[str, Any] = {"model": self.model, "seed": self.seed}
        if self.suite != registry.default_suite(self.model):
            named["suite"] = self.suite
        if self.corruption:
            named |= {"corruption": self.corruption.name, "severity": self.corruption.severity}
        if self.precision != FP32:
            named["precision"] = self.precision
        usual, places = Places(), self.places
        folders = {"save": "save", "results": "results", "cache_dir": "cache", "data_location": "data"}
        named |= {
            flag: getattr(places, folder)
            for flag, folder in folders.items()
            if getattr(places, folder) != getattr(usual, folder)
        }
        return named | ({"pretrained_path": self.pretrained_path} if self.pretrained_path else {})

    def flags(self) -> str:
        """How a command is told of this run, as a shell reads it: `--model=ViT-Mini --seed=1 --results=reproduced`."""
        return as_flags(self.named())

    def command(self, script: str, *words: str, tasks: Iterable[str] = ()) -> str:
        """A command of a script on this run, in its folders. tasks: its `--tasks`; none: the script's default."""
        named = f" --tasks={','.join(tasks)}" if tasks else ""
        return " ".join([shlex.join(["python", script, *words]), self.flags() + named])

    def reproduce(self, *words: str) -> str:
        """The command of reproduce.py on this run; it always names the folder of results, of which it has its own."""
        named = self.named() | {"results": self.places.results}
        if "--seeds" in words:
            del named["seed"]
        return " ".join([shlex.join(["python", "reproduce.py", *words]), as_flags(named)])


def as_flags(named: Mapping[str, Any]) -> str:
    """What `Run.named` says, as a shell reads it."""
    return shlex.join(f"--{name.replace('_', '-')}={value}" for name, value in named.items())


def as_overrides(named: Mapping[str, Any]) -> str:
    """What `Run.named` says, as main.py and a shell read it."""
    return shlex.join(override(name, value) for name, value in named.items())


def run_at(file: Path, kind: str) -> Run | None:
    """The run whose file lies there, as far as its place tells: model, seed, suite, and one folder.

    kind: "save" or "results", the folder that the file lies in. None where no run keeps files in such a place.
    """
    for folder in file.parents:
        suite, model = folder.parent.parent.name, folder.parent.name
        if re.fullmatch(r"seed_\d{1,9}", folder.name) and suite in registry.SUITES:
            root = portable(folder.parents[2])
            return Run(suite, model, int(folder.name.removeprefix("seed_")), (), Places(**{kind: root}))
    return None


def override(name: str, value: Any) -> str:
    """`name=value` as Hydra reads it: a value of other characters than words, numbers and paths have is quoted."""
    text = str(value)
    if PLAIN.fullmatch(text) and (not isinstance(value, str) or not SIGNED.fullmatch(text)):
        return f"{name}={text}"
    escaped = re.sub(r"(\\*)'", r"\1\1\'", text)  # backslashes count before a quote alone
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped).replace("${", r"\${")
    return f"{name}='{escaped}'"


def known_device(device: str) -> str:
    """`device`. Raises UsageError for one that PyTorch does not have here."""
    import torch  # here, so that a script's --help does not wait for it

    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise UsageError(f"--device: expected a name of PyTorch's, such as cpu or cuda:0; got {device!r}") from None
    if kind not in ("cpu", "cuda"):
        raise UsageError(
            f"--device: expected cpu or a CUDA GPU, found {device!r}, on which nothing was tried; mps, for one, lacks "
            "the float64 that kernels, norms and merges need"
        )
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device: expected a device of this machine, found no GPU for {device!r}; try --device=cpu")
    return device


def default_device() -> str:
    """A CUDA GPU where there is one, else the processor."""
    import torch  # here, so that a script's --help does not wait for it

    return "cuda" if torch.cuda.is_available() else "cpu"


def task_names(names: str | Iterable[str] | None, suite: registry.Suite, flag: str = "--tasks") -> tuple[str, ...]:
    """Names of the suite's tasks, also from how many of its first; its default for None. flag: where they were given.

    Raises UsageError for an unknown name, for a name twice, for none, and for more than there are.
    """
    if names is None:
        return suite.default
    chunks = [names] if isinstance(names, str) else names
    if not isinstance(chunks, (list, tuple)) or not all(isinstance(chunk, str) for chunk in chunks):
        raise UsageError(f"{flag}: expected names, or a number; got {names!r}")
    tasks = tuple(name for chunk in chunks for name in chunk.split(",") if name)
    if len(tasks) == 1 and tasks[0].isdecimal():
        if not 1 <= (count := int(tasks[0])) <= len(suite.tasks):
            raise UsageError(f"{flag}: expected a number from 1 to {len(suite.tasks)}, or names; found {count}")
        return suite.tasks[:count]
    known = registry.names(suite)
    for name in tasks:
        registry.check_own(name)
        if name not in known:
            raise UsageError(
                f"{flag}: {name!r} is no task of suite {suite.name}{nearest(name, known)} Known: {', '.join(known)}"
            )
    if len(set(tasks)) < len(tasks) or not tasks:
        raise UsageError(f"{flag}: expected at least one task and each once, found {', '.join(tasks) or 'none'}")
    return tasks


def pair_names(texts: Iterable[str], suite: registry.Suite) -> tuple[tuple[str, str], ...]:
    """Pairs of two tasks from texts such as `signs-letters`. Raises UsageError."""
    pairs = []
    for text in texts:
        names = text.split("-")
        if len(names) != 2 or "" in names:
            raise UsageError(
                f"--pairs: expected two tasks joined by '-', as in {'-'.join(suite.pairs[0])}; found {text!r}"
            )
        first, second = task_names(names, suite, "--pairs")
        pairs.append((first, second))
    return tuple(pairs)
