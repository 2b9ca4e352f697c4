"""The contract of merging: a `Method` turns a `Problem` into a `Merge`.

A method is one file in this folder, which carries everything that is to be known of it:

    @register("ties", title="TIES", paper="2306.01708", published={"tall": "TIES"}, stage="merging")
    @dataclass
    class Ties(Method):
        k: float = option(20.0, PERCENT)     # `python main.py method=ties method.k=10`; ranges.py has the ranges

        def merge(self, problem: Problem) -> Merge: ...

The dataclass is the method's schema for Hydra, so a wrong name, key or type gets Hydra's own message. The words of
`register` (registry.py) put the method into tables, figures and the stages of reproduce.py. Settings under a name of
their own may go into config/method/<name>.yaml, which starts with `defaults: [<method>]`, or `[base_<method>]`.
"""

import glob
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, SupportsFloat, cast

import torch

from src.checkpoints import VISUAL, CheckpointError
from src.datasets.registry import Suite
from src.evaluation import FeatureMap, Line
from src.modes import SCOPES
from src.ranges import check_options
from src.runtime.messages import UsageError, few
from src.task_vectors import TaskVector
from src.tensors import check_same, difference

ALPHAS = tuple(tenth / 10 for tenth in range(1, 11))  # the papers' coefficients of a merged vector

Setting = Any  # what validation chooses among: a number, or a mapping of an option to its value


@dataclass(frozen=True)
class Unlabelled:
    """What a method may see of the images: never a label.

    encoder(): the frozen model of the problem's mode at θ0; `functional_call` gives it other weights.
    batch(task, split, batch_size, number): the `number`-th batch of a split in random order, and nothing but images.
    head(task): its classifier.
    """

    encoder: Callable[[], torch.nn.Module]
    batch: Callable[[str, str, int, int], torch.Tensor]
    head: Callable[[str], torch.nn.Module]


@dataclass(frozen=True)
class Labelled:
    """Labels of validation images, for the methods that say they learn from them; there are none of test images.

    labels(task, batch_size, number): those of the images of `Unlabelled.batch(task, "val", batch_size, number)`.
    """

    labels: Callable[[str, int, int], torch.Tensor]


Watchable = TaskVector | Mapping[str, Line]  # the merged vector, or the model of each task


@dataclass(frozen=True)
class Progress:
    """Where long work tells how it goes, and what it goes on from.

    watch(step, phase, model): to be called when `step` steps are done, with a function that gives the merged models
        as they then are. It returns nothing: what it finds out is not for the method to know.
    log(values, step): scalars of a step, for whoever looks on.
    state: where an unfinished adaptation is kept, at its end, every `save_every` steps, and where `save_seconds` have
        passed; never where both are 0. Who set it removes it.
    """

    watch: Callable[[int, str, Callable[[], Watchable]], None] | None = None
    log: Callable[[Mapping[str, SupportsFloat], int], None] | None = None
    state: Path | None = None
    save_every: int = 0
    save_seconds: float = 0

    def part(self, number: int) -> "Progress":
        """For one merge of several: it has a state of its own. Nobody watches, since a record has one course."""
        return replace(self, watch=None, state=self.state and part_of_state(self.state, number))


def part_of_state(state: Path, number: int) -> Path:
    """Where one merge of several keeps its state."""
    return state.with_name(f"{state.name}.{number}")


def states_of(state: Path) -> list[Path]:
    """This file and those of every part of it, if they are there."""
    return [state, *state.parent.glob(f"{glob.escape(state.name)}.*")]


@dataclass(frozen=True)
class Problem:
    """What is to be merged: θ0 and each task's θ_t, from which τ_t = θ_t − θ0 is read one tensor at a time.

    pretrained, finetuned[task]: state dicts or `checkpoints.Checkpoint`s; anything with `keys()` and `[key]`.
    scope: "visual": the tensors that fine-tuning trains (`model.visual.*`); "published": every floating tensor of the
        image encoder, with the frozen text-side ones that the published vectors contain.
    mode: a name of modes.py: how the merged weights will be evaluated.
    mask_path(name) is where masks of this problem lie on disk; label: the name of those that these settings make.
    published_masks: where the published ones of these tasks lie, if they were fetched.
    images: for methods that need some; None where there are none. validation: for those that ask for labels.
    precision: of the matrix products of passes that learn from images; everything else is fp32.
    named: what a command is told of the run that the checkpoints are of; see Run.named.
    memo: what methods have worked out and may want again, at other settings or options; it goes with the problem.
    Raises UsageError for an unknown scope and for no task; CheckpointError with the keys or shapes unlike θ0's.
    """

    pretrained: Mapping[str, torch.Tensor]
    finetuned: Mapping[str, Mapping[str, torch.Tensor]]
    scope: str = "visual"
    mode: str = "standard"
    model: str = ""
    suite: Suite | None = None
    seed: int | None = None
    mask_path: Callable[[str], Path] | None = None
    published_masks: Path | None = None
    label: str = ""
    images: Unlabelled | None = None
    validation: Labelled | None = None
    progress: Progress = Progress()
    precision: str = "fp32"
    named: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    memo: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self):
        if self.scope not in SCOPES:
            raise UsageError(f"scope: expected one of {', '.join(SCOPES)}; got {self.scope!r}")
        if not self.finetuned:
            raise UsageError("expected at least one task to merge; got none")
        for task, weights in self.finetuned.items():
            check_same(self.pretrained, weights, f"{task} and the pre-trained model", CheckpointError)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.finetuned)

    def shorter(self, family: str) -> int:
        """How many times fewer steps the suite gives to a family of adapting methods than its paper."""
        return self.suite.protocol.shorter.get(family, 1) if self.suite else 1

    def masks_at(self, name: str) -> Path:
        """Where masks of this problem lie on disk. Raises UsageError where the problem has no place for them."""
        if self.mask_path is None:
            raise UsageError("masks: the problem has no place on disk for them; pass mask_path=...")
        return self.mask_path(name)

    def unlabelled(self, method: "Method") -> Unlabelled:
        """The images. Raises UsageError where the problem comes without them; so does a batch without an image."""
        if (images := self.images) is None:
            raise UsageError(
                f"{method.name} needs unlabelled images; the problem comes without them: pass images=Unlabelled(...)"
            )

        def batch(task: str, split: str, batch_size: int, number: int) -> torch.Tensor:
            if not len(tensor := images.batch(task, split, batch_size, number)):
                raise UsageError(
                    f"{task}: expected unlabelled images of split {split}, found none; choose another by method.split, "
                    "or of a method that learns by method.adapt_on"
                )
            return tensor

        return replace(images, batch=batch)

    def labelled(self, method: "Method") -> Labelled:
        """The labels of validation images. Raises UsageError where the problem comes without them."""
        if self.validation is None:
            raise UsageError(
                f"{method.name} with loss=labels needs labels of validation images; the problem comes without them: "
                "pass validation=Labelled(...), or take loss=expert"
            )
        return self.validation

    @cached_property
    def _floating(self) -> dict[str, tuple[torch.dtype, torch.Size]]:
        tensors = ((key, self.pretrained[key]) for key in sorted(self.pretrained.keys()))
        return {key: (tensor.dtype, tensor.shape) for key, tensor in tensors if tensor.is_floating_point()}

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of the tensors in scope, in sorted order: the order of the published flat vectors and mask files."""
        shapes = {k: s for k, (_, s) in self._floating.items() if self.scope == "published" or k.startswith(VISUAL)}
        if not shapes:
            raise CheckpointError(
                f"expected floating tensors named {VISUAL}*; the checkpoint has {few(self._floating)}"
            )
        return shapes

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Differences are taken in float32 at least: half precision would round them to a few significant bits."""
        dtype = torch.float32
        for key in self.keys:
            dtype = torch.promote_types(dtype, self._floating[key][0])
        return dtype

    def tensors(self, key: str) -> Iterator[torch.Tensor]:
        """τ_t[key] of each task in turn; each a new tensor, the caller's to change."""
        start = {key: self.pretrained[key]}
        for weights in self.finetuned.values():
            yield difference(weights, start, dtype=self.dtype)[key]

    def tensor(self, task: str, key: str) -> torch.Tensor:
        """τ_task[key], a new tensor."""
        return difference(self.finetuned[task], self.pretrained, [key], self.dtype)[key]

    def vector(self, task: str) -> TaskVector:
        """τ_task, whole."""
        return TaskVector(vector=difference(self.finetuned[task], self.pretrained, self.keys, self.dtype))

    @property
    def num_parameters(self) -> int:
        """Weights in scope: the length of a task vector."""
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def num_parameters_total(self) -> int:
        """Weights of the whole image encoder, in scope or not."""
        return sum(shape.numel() for _, shape in self._floating.values())

    def storage_merged(self) -> int:
        """Bits of one fp32 model."""
        return 32 * self.num_parameters_total

    def storage_finetuned(self) -> int:
        """Bits of every task's weights in scope and of the shared rest, in fp32."""
        frozen = self.num_parameters_total - self.num_parameters
        return 32 * (len(self.tasks) * self.num_parameters + frozen)

    def storage_masked(self) -> int:
        """Bits of θ0 and one multi-task vector in fp32, and one mask bit per weight in scope and task."""
        return 32 * (self.num_parameters_total + self.num_parameters) + len(self.tasks) * self.num_parameters


@dataclass(kw_only=True)
class Merge(ABC):
    """What a method returns: the vectors to add to θ0, and the settings that validation chooses among.

    settings: the candidates; one means there is nothing to choose.
    storage_bits: what the merged model or models take, in fp32 and bits.
    info: facts for the result, known before the choice.
    adaptation: the course of a method that adapts, for the result.
    per_task: False: one model and one choice, by the mean over tasks. True: a vector and a choice for each task.
    Raises UsageError where there are no settings.
    """

    settings: Sequence[Setting]
    storage_bits: int
    info: dict[str, Any] = field(default_factory=dict)
    adaptation: dict[str, Any] | None = None
    per_task: bool = False

    def __post_init__(self):
        if not self.settings:
            raise UsageError("expected at least one coefficient for validation to choose among; got none")

    @abstractmethod
    def vector(self, task: str, setting: Setting) -> TaskVector:
        """The vector to add to θ0 for `task`; a merge that makes one model for all tasks ignores `task`."""

    def lines(self, task: str, settings: Sequence[Setting]) -> list[Line]:
        """The models of these settings, in order, as lines to score."""
        return [Line(self.vector(task, setting).vector) for setting in settings]

    def adapter(self, task: str, setting: Setting) -> FeatureMap | None:
        """What is done to the features of `task` before its head; None: nothing."""
        return None

    def at_edge(self, setting: Setting) -> bool:
        """Whether it is the last of several, so that one beyond them might be better."""
        return len(self.settings) > 1 and setting == self.settings[-1]

    def course(self, chosen: Mapping[str, Setting]) -> dict[str, Any] | None:
        """The course of the adaptation that gave the chosen models; None where nothing was adapted."""
        return self.adaptation

    def finish(self, chosen: Mapping[str, Setting]) -> dict[str, Any]:
        """Called once with the chosen settings, by task: keeps what later runs load, and gives facts for the result."""
        return {}


@dataclass(kw_only=True)
class Scaled(Merge):
    """One model for all tasks, θ0 + α·τ, α among the settings; linear models take every α from one jvp."""

    tau: TaskVector

    def vector(self, task: str, setting: Setting) -> TaskVector:
        return setting * self.tau

    def lines(self, task: str, settings: Sequence[Setting]) -> list[Line]:
        return [Line(self.tau.vector, tuple(settings))]


@dataclass(kw_only=True)
class Affine(Merge):
    """One model for all tasks, θ0 + offset + α·τ, α among the settings; linear models take every α from two jvps."""

    offset: TaskVector
    tau: TaskVector

    def vector(self, task: str, setting: Setting) -> TaskVector:
        return self.offset + setting * self.tau

    def lines(self, task: str, settings: Sequence[Setting]) -> list[Line]:
        return [Line(self.tau.vector, tuple(settings), self.offset.vector)]


@dataclass(kw_only=True)
class Drawn(Merge):
    """A random merge: accuracies at each setting are means over its draws, which all have the same settings.

    draw(number): the merge of one draw, made anew at each call. What is exported is the first.
    """

    draw: Callable[[int], Merge]
    draws: int

    def vector(self, task: str, setting: Setting) -> TaskVector:
        return self.draw(0).vector(task, setting)


def scaled(problem: Problem, tau: TaskVector, alphas: Iterable[float], **info: Any) -> Scaled:
    """One model for all tasks: θ0 + α·τ, α among `alphas`; info: facts for the result."""
    return Scaled(tau=tau, settings=tuple(alphas), storage_bits=problem.storage_merged(), info=info)


@dataclass(frozen=True)
class Variant:
    """Options of a method under a name of their own: a row of the tables.

    published: the names that papers give it, by the column `paper` of published.csv, or `paper:table`.
    stage: that of reproduce.py which runs it; None: none does.
    spelling: a further `method=` that stands for these options.
    compared: beside each other on unseen tasks, on corrupted images, and adapted to validation images.
    studied: of the few that merge experts which were trained otherwise; see experiments/studies.py.
    method: the registered name, filled in by `register`.
    """

    title: str
    options: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, str] = field(default_factory=dict)
    stage: str | None = None
    spelling: str | None = None
    compared: bool = False
    studied: bool = False
    method: str = ""

    def published_name(self, paper: str, table: str = "") -> str | None:
        return self.published.get(f"{paper}:{table}", self.published.get(paper))

    @property
    def overrides(self) -> tuple[str, ...]:
        """How main.py is told of it."""
        return f"method={self.method}", *(f"method.{key}={value}" for key, value in self.options.items())


class Method(ABC):
    """A merging method; a dataclass whose fields are its options. What `register` was told is in the class variables.

    name: of `method=` and in results. title: in tables. paper: its arXiv number. needs: what it takes.
    after: the method whose files it reads. untuned: the published default of the coefficient that validation chooses.
    variants: its rows in tables; the first has the default options. adds: whether its vector is a multiple of Σ τ_t.
    trims: whether it keeps a share of all weights, so that it is another method where the vector has other tensors.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[str]
    after: ClassVar[str | None]
    untuned: ClassVar[float | None]
    variants: ClassVar[tuple[Variant, ...]]
    adds: ClassVar[bool] = False
    trims: ClassVar[bool] = False

    def __post_init__(self):
        """Raises UsageError for an option that is no number of its range."""
        check_options(self)

    @abstractmethod
    def merge(self, problem: Problem) -> Merge: ...

    def reads(self, masks_at: Callable[[str], Path], published_masks: Path | None = None) -> Path | None:
        """The file beside the checkpoints that `merge` reads, if any; a result tells when it changes.

        masks_at: where masks lie, by their name. published_masks: as in Problem.
        """
        return None

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The options and their default values."""
        return {
            option.name: option.default_factory() if option.default_factory is not MISSING else option.default
            for option in fields(cast(Any, cls))
        }
