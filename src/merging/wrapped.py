"""What the methods share that build on another: LiNeS and SVC, which change its vector, and Surgery."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.merging.adaptation import Adapting
from src.merging.base import Drawn, Merge, Method, Problem, Scaled
from src.merging.registry import METHODS, load_methods
from src.merging.search import with_options
from src.runtime.messages import UsageError, nearest
from src.task_vectors import TaskVector


@dataclass
class Based(Method):
    """base: the method, by any of its names. base_options: its options, as in `+method.base_options.k=10`."""

    base: str = "sum"
    base_options: dict[str, Any] = field(default_factory=dict)

    def base_method(self) -> Method:
        """The base with its options. Raises UsageError for an unknown name or option."""
        load_methods()
        if self.base not in METHODS:
            raise UsageError(
                f"base: no merging method is called {self.base!r}{nearest(self.base, METHODS)} "
                "(python main.py --methods lists them)"
            )
        cls = METHODS[self.base]
        usual = next((dict(v.options) for v in cls.variants if v.spelling == self.base), {})
        return with_options(cls(), usual | self.base_options, "base_options")

    def reads(self, masks_at: Callable[[str], Path], published_masks: Path | None = None) -> Path | None:
        return self.base_method().reads(masks_at, published_masks)


@dataclass
class Wrapper(Based):
    """A method that changes the one vector of another."""

    @abstractmethod
    def wrapped(self, problem: Problem, tau: TaskVector, alphas: Sequence[float]) -> Merge:
        """The merge that is made of the models θ0 + α·τ of another."""

    def merge(self, problem: Problem) -> Merge:
        """A random base is wrapped draw by draw. Raises UsageError for a base that this cannot take."""
        base = self.base_method()
        if isinstance(base, Adapting):
            raise self._unfit("it adapts its coefficients to images, and another vector is not what they are fit for")
        merge = base.merge(problem)
        first = self._of(problem, merge.draw(0) if isinstance(merge, Drawn) else merge)
        if not isinstance(merge, Drawn):
            return first

        def draw(number: int) -> Merge:
            return self._of(problem, merge.draw(number))

        return Drawn(
            draw=draw,
            draws=merge.draws,
            settings=first.settings,
            storage_bits=first.storage_bits,
            info=merge.info | first.info,
        )

    def _of(self, problem: Problem, merge: Merge) -> Merge:
        if merge.per_task:
            raise self._unfit("it makes a model for each task")
        if isinstance(merge, Scaled):
            tau, alphas = merge.tau, merge.settings
        elif len(merge.settings) == 1:
            tau, alphas = merge.vector(problem.tasks[0], merge.settings[0]), (1.0,)
        else:
            raise self._unfit("its models do not lie on one line through θ0")
        made = self.wrapped(problem, tau, alphas)
        made.info = merge.info | made.info
        return made

    def _unfit(self, why: str) -> UsageError:
        return UsageError(
            f"base: {type(self).name} changes the one vector of a method such as sum, average, ties or consensus; "
            f"it cannot take {self.base}: {why}"
        )
