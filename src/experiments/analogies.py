"""Task analogies: A is to B as C is to D, so θ0 + α·(τ_C + τ_B − τ_A) is scored on D, of which nothing was trained.

Beside it stand θ0, τ_C and τ_B alone, and their sum, each with its α chosen on D's validation images and scored on its
test images once. Source: Ilharco et al., arXiv:2212.04089, section 5.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, NotRequired

from typing_extensions import TypedDict

from src import store
from src.datasets import loading
from src.evaluation import ORIGIN, Line, score_all, select
from src.experiments.addition import coefficients
from src.experiments.base import carry_out
from src.experiments.numbers import Number
from src.experiments.registry import ANALOGIES, ANALOGY_POINTS
from src.ranges import check
from src.records import Bits, Corrupted
from src.run import Run, task_names
from src.runtime.messages import UsageError
from src.task_vectors import TaskVector

PRETRAINED, ANALOGY = "pre-trained", "τ_C + τ_B − τ_A"
# Name -> how often τ_A, τ_B and τ_C are in the vector.
VECTORS = {"τ_C": (0, 0, 1), "τ_B": (0, 1, 0), "τ_C + τ_B": (0, 1, 1), ANALOGY: (-1, 1, 1)}


class Tried(TypedDict):
    """alpha: chosen on the target's validation images; accuracy there at each coefficient. test, control: accuracy."""

    alpha: float
    val: Sequence[float]
    test: float
    control: float | None
    correct: NotRequired[Bits]


class Analogy(TypedDict):
    """tasks: A, B and C. n: images of D by split. tried: by the name of the vector."""

    tasks: Sequence[str]
    n: Mapping[str, int]
    tried: Mapping[str, Tried]


class Record(Corrupted):
    """analogies: by D, the target."""

    finetuning_mode: str
    coefs: Sequence[float]
    control: str | None
    analogies: Mapping[str, Analogy]


class Quadruple(NamedTuple):
    """Names of data sets: a is to b as c is to d."""

    a: str
    b: str
    c: str
    d: str


def quadruple(run: Run, names: Sequence[str]) -> Quadruple:
    """Raises UsageError for other than four distinct data sets of the run's suite."""
    if len(names) != 4 or len(set(names)) < 4:
        raise UsageError(f"--analogy: expected four data sets, A B C D of A : B = C : D; found {' '.join(names)}")
    return Quadruple(*task_names(list(names), run.suite_row))


def numbers(record: Record, suite: str) -> Iterator[Number]:
    """Test accuracy of each vector on the target, and on the control set."""
    for target, analogy in record["analogies"].items():
        for name, tried in analogy["tried"].items():
            yield Number(f"accuracy {name}", tried["test"], target)
            if tried["control"] is not None:
                yield Number(f"control_accuracy {name}", tried["control"], target)


def measure_analogies(
    run: Run,
    mode: str,
    analogy: Sequence[str] | None = None,
    n_eval_points: int = ANALOGY_POINTS,
    overwrite: bool = False,
) -> None:
    """Write analogies_<mode>.json. analogy: A, B, C and D; None: those of the suite.

    Raises UsageError where the suite has none and none is given.
    """
    check(n_eval_points=n_eval_points)
    chosen = [quadruple(run, names) for names in ([analogy] if analogy else run.suite_row.analogies)]
    if not chosen:
        raise UsageError(f"--analogy: expected four data sets A B C D, for the suite {run.suite} has none of its own")
    trained = sorted({task for each in chosen for task in each[:3]})
    made_of = partial(store.made_of, run, mode, trained)
    options = {"analogies": [list(each) for each in chosen], "n_eval_points": n_eval_points}
    record = carry_out(
        ANALOGIES, mode, run, options, lambda: _record(run, mode, chosen, n_eval_points), overwrite, made_of
    )
    if record is None:
        return
    for target, result in record["analogies"].items():
        shown = ", ".join(f"{name} {100 * tried['test']:.1f} %" for name, tried in result["tried"].items())
        print(f"analogy {mode}, {target}: {shown} -> {run.paths.result(ANALOGIES.result(mode))}")


def _record(run: Run, mode: str, chosen: Sequence[Quadruple], n_eval_points: int) -> Record:
    coefs = coefficients(n_eval_points)
    control = loading.prepared_control(run)
    loading.examples(run, chosen[0].d, "test")  # mini's are drawn once, before the workers look for them
    return {
        "finetuning_mode": mode,
        "coefs": list(coefs),
        "control": control,
        "analogies": {each.d: _analogy(run, mode, each, coefs, control) for each in chosen},
    }


def _analogy(run: Run, mode: str, names: Quadruple, coefs: tuple[float, ...], control: str | None) -> Analogy:
    taus = [store.task_vector(run, task, mode) for task in names[:3]]
    lines = {name: combination(taus, signs) for name, signs in VECTORS.items()}
    searched = {name: (names.d, Line(tau.vector, coefs)) for name, tau in lines.items()}
    val = score_all(run, mode, searched, "val", f"analogy {mode}, val")
    best = select({name: curve.accuracy for name, curve in val.items()}, {}, per_task=True)
    ends = {name: Line(tau.vector, (coefs[best[name]],)) for name, tau in lines.items()} | {PRETRAINED: ORIGIN}
    datasets = [names.d, *([control] if control else [])]
    work = {(name, dataset): (dataset, line) for name, line in ends.items() for dataset in datasets}
    test = score_all(run, mode, work, "test", f"analogy {mode}, test")

    def tried(name: str) -> Tried:
        return {
            "alpha": coefs[best[name]] if name in best else 0.0,
            "val": list(val[name].accuracy) if name in val else [],
            "test": test[name, names.d].accuracy[0],
            "control": test[name, control].accuracy[0] if control else None,
            "correct": test[name, names.d].correct[0],
        }

    n = {"val": val[ANALOGY].n, "test": test[ANALOGY, names.d].n}
    return {"tasks": list(names[:3]), "n": n, "tried": {name: tried(name) for name in (PRETRAINED, *VECTORS)}}


def combination(taus: Sequence[TaskVector], signs: Sequence[float]) -> TaskVector:
    """Σ sign · τ."""
    first, *others = (sign * tau for sign, tau in zip(signs, taus, strict=True))
    return sum(others, start=first)
