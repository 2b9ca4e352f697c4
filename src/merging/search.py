"""Several values of a method's options, among which validation chooses as it does among coefficients."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, get_type_hints

from pydantic import TypeAdapter, ValidationError

from src.evaluation import FeatureMap
from src.merging.base import Merge, Method, Problem, Setting
from src.runtime.messages import UsageError
from src.task_vectors import TaskVector


@dataclass(kw_only=True)
class Searched(Merge):
    """A method with several values of its options: validation chooses among all of their settings.

    merges: of each combination of options. A setting holds them and, under "setting", one of that merge's own.
    """

    merges: Sequence[tuple[Mapping[str, Any], Merge]]

    @classmethod
    def over(cls, method: Method, search: Mapping[str, Sequence[Any]], problem: Problem) -> "Searched":
        """search: option -> values. Raises UsageError for an option or a value that the method does not take."""
        combinations = [dict(zip(search, values)) for values in itertools.product(*search.values())]
        methods = [with_options(method, options, "search") for options in combinations]
        parts = [replace(problem, progress=problem.progress.part(number)) for number in range(len(methods))]
        merges = [(options, m.merge(part)) for options, m, part in zip(combinations, methods, parts)]
        first = merges[0][1]
        return cls(
            merges=merges,
            settings=[{**options, "setting": own} for options, merge in merges for own in merge.settings],
            storage_bits=first.storage_bits,
            per_task=first.per_task,
            info={"search": {option: list(values) for option, values in search.items()}},
        )

    def part(self, setting: Setting) -> tuple[int, Setting]:
        """Which of the merges a setting is of, and that merge's own setting."""
        options = {option: value for option, value in setting.items() if option != "setting"}
        return [own for own, _ in self.merges].index(options), setting["setting"]

    def vector(self, task: str, setting: Setting) -> TaskVector:
        index, own = self.part(setting)
        return self.merges[index][1].vector(task, own)

    def adapter(self, task: str, setting: Setting) -> FeatureMap | None:
        index, own = self.part(setting)
        return self.merges[index][1].adapter(task, own)

    def at_edge(self, setting: Setting) -> bool:
        index, own = self.part(setting)
        return self.merges[index][1].at_edge(own)

    def course(self, chosen: Mapping[str, Setting]) -> dict[str, Any] | None:
        first, *others = self._by_merge(chosen)
        return None if others else self.merges[first][1].adaptation

    def finish(self, chosen: Mapping[str, Setting]) -> dict[str, Any]:
        """What the merge of the chosen options tells. Tasks that chose other options have facts of their own."""
        facts = []
        for index, own in self._by_merge(chosen).items():
            options, merge = self.merges[index]
            facts.append((options, list(own), merge.info | merge.finish(own)))
        if len(facts) == 1:
            return facts[0][-1]
        return {"by_options": [{"options": options, "tasks": tasks, **of_merge} for options, tasks, of_merge in facts]}

    def _by_merge(self, chosen: Mapping[str, Setting]) -> dict[int, dict[str, Setting]]:
        """The chosen settings of each merge that has some, by task."""
        by_merge: dict[int, dict[str, Setting]] = {}
        for task, setting in chosen.items():
            index, own = self.part(setting)
            by_merge.setdefault(index, {})[task] = own
        return by_merge


def with_options(method: Method, options: Mapping[str, Any], where: str) -> Method:
    """A copy with other options, of the types that the schema says.

    Raises UsageError, in whose message the options stand under `where`, for an unknown one and a value of another type.
    """
    if unknown := [option for option in options if option not in method.defaults()]:
        raise UsageError(f"{where}: {method.name} has no option {unknown[0]}; it has {', '.join(method.defaults())}")
    types = get_type_hints(type(method))
    values = {}
    for option, value in options.items():
        try:
            values[option] = TypeAdapter(types[option]).validate_python(value)
        except ValidationError as error:
            why = error.errors()[0]["msg"]
            raise UsageError(f"{where}.{option}: {why[:1].lower()}{why[1:]}; got {value!r}") from None
    return replace(cast(Any, method), **values)
