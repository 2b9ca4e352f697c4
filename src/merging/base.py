"""The contract of merging: a `Method` turns a `Problem` into a `Merge`.

A method is one file in this folder, and nothing else has to know of it:

    @register("ties")
    @dataclass
    class Ties(Method):
        k: float = 20.0                      # an option: `python main.py method=ties method.k=10`

        def merge(self, problem: Problem) -> Merge: ...

The dataclass is the method's schema for Hydra, so a wrong name, key or type gets Hydra's own message. Settings under a
name of their own go into config/method/<name>.yaml, which starts with `defaults: [<method>]`, or `[base_<method>]` when
it has the method's own name.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from hydra.core.config_store import ConfigStore

from src.checkpoints import VISUAL
from src.runtime.messages import few
from src.task_vectors import TaskVector

SCOPES = ("visual", "published")
ALPHAS = tuple(tenth / 10 for tenth in range(1, 11))  # the papers' coefficients of a merged vector
METHOD_CONFIGS = Path(__file__).resolve().parents[2] / "config" / "method"
METHODS: dict[str, type["Method"]] = {}  # filled by `register`


@dataclass(frozen=True)
class Problem:
    """What is to be merged: θ0 and each task's θ_t, from which τ_t = θ_t − θ0 is read one tensor at a time.

    pretrained, finetuned[task]: state dicts or `checkpoints.Checkpoint`s; anything with `keys()` and `[key]`.
    scope: "visual": the tensors that fine-tuning trains (`model.visual.*`); "published": every floating tensor of the
        image encoder, with the frozen text-side ones that the published vectors contain.
    mode: "standard", "linear" or "posthoc": how the merged weights will be evaluated.
    mask_path(name) is where masks of this problem lie on disk; label: the name of those that these settings make.

    Methods that adapt to unlabelled images get these too:
    encoder(): the frozen model of `mode` at θ0; `functional_call` gives it other weights.
    batches(task, split, batch_size, number): the `number`-th batch of a split in random order, and nothing but images.
    head(task): its classifier.
    watch(step, phase, vector): to be called when `step` steps are done, with a function that gives the merged vector
        as it then is. It returns nothing: what it finds out is not for the method to know.
    log(values, step): scalars of a step, for whoever looks on.
    state: where an unfinished adaptation is kept, every `save_every` steps (0: never). Who set it removes it.
    Raises ValueError, naming them, for keys or shapes that differ from θ0's, and for an unknown scope.
    """

    pretrained: Mapping[str, torch.Tensor]
    finetuned: Mapping[str, Mapping[str, torch.Tensor]]
    scope: str = "visual"
    mode: str = "standard"
    model: str = ""
    suite: str = ""
    seed: int | None = None
    mask_path: Callable[[str], Path] | None = None
    label: str = ""
    encoder: Callable[[], torch.nn.Module] | None = None
    batches: Callable[[str, str, int, int], torch.Tensor] | None = None
    head: Callable[[str], torch.nn.Module] | None = None
    watch: Callable[[int, str, Callable[[], TaskVector]], None] | None = None
    log: Callable[[dict[str, float], int], None] | None = None
    state: Path | None = None
    save_every: int = 0

    def __post_init__(self):
        if self.scope not in SCOPES:
            raise ValueError(f"expected a scope among {', '.join(SCOPES)}; got {self.scope!r}")
        if not self.finetuned:
            raise ValueError("expected at least one task to merge; got none")
        known = set(self.pretrained.keys())
        for task, weights in self.finetuned.items():
            if different := sorted(known.symmetric_difference(weights.keys())):
                raise ValueError(f"{task} and the pre-trained model differ in tensors: {few(different)}")

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.finetuned)

    @cached_property
    def _floating(self) -> dict[str, tuple[torch.dtype, torch.Size]]:
        tensors = ((key, self.pretrained[key]) for key in sorted(self.pretrained.keys()))
        return {key: (tensor.dtype, tensor.shape) for key, tensor in tensors if tensor.is_floating_point()}

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of the tensors in scope, in sorted order: the order of the published flat vectors and mask files."""
        shapes = {k: s for k, (_, s) in self._floating.items() if self.scope == "published" or k.startswith(VISUAL)}
        if not shapes:
            raise ValueError(f"expected floating tensors named {VISUAL}*; the checkpoint has {few(self._floating)}")
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
        start = self.pretrained[key].to(self.dtype)
        for task in self.tasks:
            yield self._weight(task, key) - start

    def tensor(self, task: str, key: str) -> torch.Tensor:
        """τ_task[key], a new tensor."""
        return self._weight(task, key) - self.pretrained[key].to(self.dtype)

    def vector(self, task: str) -> TaskVector:
        """τ_task, whole."""
        return TaskVector(vector={key: self.tensor(task, key) for key in self.keys})

    def _weight(self, task: str, key: str) -> torch.Tensor:
        weight = self.finetuned[task][key]
        if weight.shape != self.shapes[key]:
            got, expected = tuple(weight.shape), tuple(self.shapes[key])
            raise ValueError(f"{key} is {got} in {task}, but {expected} in the pre-trained model")
        return weight.to(self.dtype)

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


@dataclass
class Merge:
    """What a method returns: the vectors to add to θ0, and what validation chooses among.

    vector(task, setting): the vector to add for `task`. Methods that make one model ignore `task`.
    settings: the candidates; one means there is nothing to choose.
    per_task: False: one model and one choice, by the mean over tasks. True: a vector and a choice for each task.
    direction(task): given when vector(task, setting) = setting · direction(task); linear models then take every
        setting from one jvp.
    draws: above 0, the settings are that many draws of one random merge: nothing is chosen, accuracies are their means.
    storage_bits: what the merged model or models take, in fp32 and bits.
    info: facts for the result, known before the choice.
    adaptation: the course of a method that adapts, for the result.
    finish(chosen): called once with the setting chosen for each task; keeps what later runs load, and gives facts for
        the result.
    """

    vector: Callable[[str, float], TaskVector]
    settings: Sequence[float]
    storage_bits: int
    per_task: bool = False
    draws: int = 0
    direction: Callable[[str], TaskVector] | None = None
    info: dict[str, Any] = field(default_factory=dict)
    adaptation: dict[str, Any] | None = None
    finish: Callable[[Mapping[str, float]], dict[str, Any]] | None = None


def scaled(problem: Problem, tau: TaskVector, alphas: Sequence[float], **info: Any) -> Merge:
    """One model for all tasks: θ0 + α·τ, α among `alphas`."""
    return Merge(
        vector=lambda task, alpha: alpha * tau,
        settings=tuple(alphas),
        storage_bits=problem.storage_merged(),
        direction=lambda task: tau,
        info=info,
    )


class Method(ABC):
    """A merging method; a dataclass whose fields are its options."""

    name: ClassVar[str]

    @abstractmethod
    def merge(self, problem: Problem) -> Merge: ...


def register(name: str, *others: str) -> Callable[[type[Method]], type[Method]]:
    """Make a dataclass known to main.py as `method=<name>`; a name with slashes is a folder of config/method/.

    others: further spellings of `method=`; results are called by the first.
    Raises TypeError when the class is no (non-frozen) dataclass with a `merge`, ValueError when the name is taken.
    """

    def decorate(cls: type[Method]) -> type[Method]:
        if not (is_dataclass(cls) and issubclass(cls, Method)) or cls.__dataclass_params__.frozen:
            raise TypeError(f"expected method {name!r} to be a non-frozen dataclass and a Method; got {cls}")
        cls.name = name
        for spelling in (name, *others):
            if METHODS.setdefault(spelling, cls).__qualname__ != cls.__qualname__:
                raise ValueError(f"two merging methods are called {spelling!r}: {METHODS[spelling]} and {cls}")
            group, _, option = f"method/{spelling}".rpartition("/")
            has_yaml = (METHOD_CONFIGS / f"{spelling}.yaml").exists()  # takes the name, and builds on the schema
            ConfigStore.instance().store(group=group, name=f"base_{option}" if has_yaml else option, node=cls)
        return cls

    return decorate


def load_methods() -> None:
    """Import every module of this folder; each registers its methods."""
    package = importlib.import_module("src.merging")
    for module in pkgutil.iter_modules(package.__path__, "src.merging."):
        importlib.import_module(module.name)
