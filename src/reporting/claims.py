"""The papers' claims as sentences, each with the numbers that test it and a verdict, all from results.

A claim is an order of quantities, the largest first: a row of CLAIMS. Every neighbouring pair is tested. With one seed
the sign of the difference decides. With several, Student's 95 % interval of the difference over seeds, paired, does:
`holds` where it lies above zero, `does not hold` where it lies below, else `undecided`.
"""

import math
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial

from src.datasets import registry
from src.reporting.runs import FIRST_SEED, MODES, SINGLE_TASK, PerSeed, Runs, published, usual_rank
from src.reporting.tables import (
    ADAPTED,
    CONCRETE,
    METHODS,
    NOT_ADAPTED,
    PUBLISHED_METHODS,
    UNSEEN,
    beside,
    percent,
    published_unseen,
    seeds_text,
    threshold_sweep,
)

PAPERS = {
    "tangent": "Task arithmetic in the tangent space (arXiv:2305.12827)",
    "tall": "Localizing task information for improved model merging and compression (arXiv:2405.07813)",
    "concrete": "Concrete subspace learning based interference elimination (arXiv:2312.06173)",
}
HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "does not hold", "undecided", "not run"


@dataclass(frozen=True)
class Quantity:
    """A measured number, or a threshold, whose name is its value.

    read: its value for each seed; commands: what makes those that are missing; published: its published value.
    """

    name: str
    read: Callable[[Runs], PerSeed]
    commands: Callable[[Runs], list[str]] = lambda runs: []
    published: Callable[[Runs], float | None] = lambda runs: None
    digits: int = 1
    threshold: bool = False


@dataclass(frozen=True)
class Claim:
    """quantities: by the claim, in descending order. margin: how far each may stay below the next all the same."""

    paper: str
    where: str
    sentence: str
    quantities: tuple[Quantity, ...]
    margin: float = 0.0


@dataclass(frozen=True)
class Finding:
    claim: Claim
    values: tuple[PerSeed, ...]
    differences: tuple[PerSeed, ...]  # of neighbours, in the claimed direction
    verdict: str
    missing: tuple[str, ...]


def examine(claim: Claim, runs: Runs) -> Finding:
    """The verdict on a claim, on the seeds that have all of its numbers."""
    values = [quantity.read(runs) for quantity in claim.quantities]
    differences = tuple(one - two for one, two in zip(values, values[1:]))
    complete = all(differences)
    missing = [command for quantity in claim.quantities for command in quantity.commands(runs)]
    verdict = judge([difference.map(lambda d: d + claim.margin) for difference in differences]) if complete else NOT_RUN
    return Finding(claim, tuple(values), differences, verdict, tuple(dict.fromkeys(missing)))


def judge(differences: list[PerSeed]) -> str:
    """The verdict on numbers that should all be positive."""
    verdicts = [_judge_one(difference) for difference in differences]
    for verdict in (FAILS, UNDECIDED):
        if verdict in verdicts:
            return verdict
    return HOLDS


def _judge_one(difference: PerSeed) -> str:
    if len(difference) == 1:
        return HOLDS if difference.mean > 0 else FAILS
    low, high = difference.interval()
    if low > 0:
        return HOLDS
    return FAILS if high < 0 else UNDECIDED


# --- Quantities ----------------------------------------------------------------------------------------------------


def constant(value: float, name: str) -> Quantity:
    return Quantity(name, lambda runs: PerSeed(dict.fromkeys(runs.seeds, value)), threshold=True)


def of_result(
    title: str, name: str, read: Callable[[dict], float], published=lambda runs: None, digits=1, init=False
) -> Quantity:
    """A number of the results called `name`; `init`: of the network without pre-training."""

    def which(runs: Runs) -> Runs:
        return runs.random_init if init else runs

    return Quantity(
        title,
        lambda runs: which(runs).number(name, read),
        lambda runs: which(runs).missing([name]),
        published,
        digits,
    )


def single(mode: str) -> Quantity:
    """Mean single-task accuracy over the tasks that the addition benchmark has."""

    def read(runs: Runs) -> PerSeed:
        return percent(runs.number(SINGLE_TASK[mode], lambda r: _mean(r[task] for task in runs.main_tasks)))

    def theirs(runs: Runs) -> float | None:
        return published(runs.model, "atlas", "single-task", PUBLISHED_METHODS[mode], "mean of 8 tasks", "accuracy")

    return Quantity(_short(mode), read, lambda runs: runs.missing([SINGLE_TASK[mode]]), theirs)


def _tangent(table: str, method: str, metric: str) -> Callable[[Runs], float | None]:
    return lambda runs: published(runs.model, "tangent", table, method, "8 tasks", metric)


def added(mode: str, metric: str, init: bool = False) -> Quantity:
    """Task addition: `metric` is absolute or normalised; mode "none" is what doing nothing scores."""
    part, result = ("zeroshot", "standard") if mode == "none" else ("test", mode)
    field = {"absolute": "mean_accuracy", "normalised": "mean_normalised"}[metric]
    theirs = _tangent("Table 1", PUBLISHED_METHODS[mode], metric)
    return of_result(_short(mode), f"addition_{result}", lambda r: 100 * r[part][field], theirs, init=init)


def do_nothing(mode: str) -> Quantity:
    """Zero-shot accuracy over the denominators of `mode`."""
    return of_result("zero-shot", f"addition_{mode}", lambda r: 100 * r["zeroshot"]["mean_normalised"])


def gain(mode: str, init: bool = False) -> Quantity:
    """What addition adds to θ0, in points."""

    def theirs(runs: Runs) -> float | None:
        table, metric = ("Table 3", "multi") if init else ("Table 1", "absolute")
        start, start_metric = ("Random init", "single") if init else ("Pre-trained", "absolute")
        after = _tangent(table, PUBLISHED_METHODS[mode], metric)(runs)
        before = _tangent(table, start, start_metric)(runs)
        return None if after is None or before is None else after - before

    title = f"gain of {_short(mode)}{', random init' if init else ''}"
    return of_result(
        title,
        f"addition_{mode}",
        lambda r: 100 * (r["test"]["mean_accuracy"] - r["zeroshot"]["mean_accuracy"]),
        theirs,
        init=init,
    )


def negated(mode: str) -> Quantity:
    theirs = _tangent("Table 2", PUBLISHED_METHODS[mode], "target")
    if mode == "none":
        name = SINGLE_TASK["none"]
        return Quantity(
            _short(mode),
            lambda runs: percent(runs.number(name, lambda r: _mean(r[task] for task in runs.main_tasks))),
            lambda runs: runs.missing([name]),
            theirs,
        )
    return of_result(_short(mode), f"negation_{mode}", lambda r: 100 * r["mean_target"], theirs)


def control_kept(mode: str) -> Quantity:
    """Control accuracy after negation over the pre-trained one, on test, in percent."""

    def theirs(runs: Runs) -> float | None:
        after = _tangent("Table 2", PUBLISHED_METHODS[mode], "control")(runs)
        before = _tangent("Table 2", "Pre-trained", "control")(runs)
        return None if after is None or before is None else 100 * after / before

    return of_result(
        _short(mode), f"negation_{mode}", lambda r: 100 * r["mean_control"] / r["pretrained_control"]["test"], theirs
    )


def error(mode: str) -> Quantity:
    """ξ in the search space, mean over the pairs, in percent."""
    return of_result(
        f"ξ {_short(mode)}", f"disentanglement_{mode}", lambda r: 100 * _mean(p["box_mean"] for p in r["pairs"])
    )


def error_outside(mode: str) -> Quantity:
    """ξ on the rest of the grid, mean over the pairs, in percent."""
    return of_result(
        f"ξ {_short(mode)} outside", f"disentanglement_{mode}", lambda r: 100 * _mean(map(_outside, r["pairs"]))
    )


def _outside(pair: dict) -> float:
    first, second = pair["alphas"]
    box = pair["box"] + 1e-9
    return _mean(
        pair["error"][i][j]
        for i, alpha1 in enumerate(first)
        for j, alpha2 in enumerate(second)
        if max(abs(alpha1), abs(alpha2)) > box
    )


def energy_ratio(reduction: str, init: bool = False) -> Quantity:
    """Mean local energy on held-out images of the task over the control's: geometric mean over the pairs."""

    def read(record: dict) -> float | None:
        ratios = [pair["nystrom"]["ratio_heldout"][usual_rank(pair["ranks"])] for pair in record["pairs"]]
        if None in ratios:  # over no energy at all
            return None
        return math.exp(_mean(map(math.log, ratios)))

    title = f"task over control{', random init' if init else ''}"
    return of_result(title, f"ntk_{reduction}", read, digits=2, init=init)


def merged(label: str, metric: str = "absolute") -> Quantity:
    """Accuracy of a merging method on the papers' first benchmark, in percent."""
    method = {method.label: method for method in METHODS}[label]
    field = {"absolute": "mean_accuracy", "normalised": "mean_normalised"}[metric]
    return Quantity(
        method.name,
        lambda runs: percent(runs.merged(runs.main_tasks).number(label, lambda r: r["test"][field])),
        partial(_missing_merges, label=label, command=method.command),
        lambda runs: published(runs.model, "tall", "main table", method.published, "8 tasks", metric),
    )


def _missing_merges(runs: Runs, label: str, command: str) -> list[str]:
    return _merge_commands(runs, command, runs.merged(runs.main_tasks).records.get(label, {}))


def _merge_commands(runs: Runs, command: str, found: Container[int]) -> list[str]:
    """The command for the seeds that were not found, if any."""
    absent = [seed for seed in runs.seeds or (FIRST_SEED,) if seed not in found]
    return [runs.merge_command(command, runs.main_tasks, seeds=absent)] if absent else []


def at_threshold(best_of_others: bool) -> Quantity:
    """Consensus TA at k = 2, or at the best other k."""

    def read(runs: Runs) -> PerSeed:
        sweep = threshold_sweep(runs.merged(runs.main_tasks), use_ties=False)
        if not best_of_others:
            return percent(sweep.get(2, PerSeed()))
        others = [values for k, values in sweep.items() if k != 2]
        return percent(others[0].map(max, *others[1:])) if len(others) > 1 else PerSeed()

    def missing(runs: Runs) -> list[str]:
        sweep = threshold_sweep(runs.merged(runs.main_tasks), use_ties=False)
        ks = [k for k in range(1, len(runs.main_tasks) + 1) if (k != 2) == best_of_others]
        wanted = {k: f"method=consensus method.prun_thre_k={k}" for k in ks}
        return [line for k, command in wanted.items() for line in _merge_commands(runs, command, sweep.get(k, {}))]

    return Quantity("the best other k" if best_of_others else "k = 2", read, missing)


def change_with_tasks(label: str) -> Quantity:
    """Normalised accuracy with the most tasks less that with the fewest, in points; means over the sets of a size."""
    method = {method.label: method for method in METHODS}[label]

    def read(runs: Runs) -> PerSeed:
        sizes: dict[int, dict[int, list[float]]] = {}  # tasks -> seed -> accuracies
        for group in runs.merges:
            if (group.mode, group.scope) == ("standard", "visual") and len(group.tasks) > 1:
                for seed, value in group.number(label, lambda r: r["test"]["mean_normalised"]).items():
                    sizes.setdefault(len(group.tasks), {}).setdefault(seed, []).append(100 * value)
        if len(sizes) < 2:
            return PerSeed()
        fewest, most = (PerSeed({s: _mean(v) for s, v in sizes[size].items()}) for size in (min(sizes), max(sizes)))
        return most - fewest

    def theirs(runs: Runs) -> float | None:
        ends = [
            published(runs.model, "tall", "main table", method.published, f"{n} tasks", "normalised") for n in (8, 20)
        ]
        return None if None in ends else ends[1] - ends[0]

    def missing(runs: Runs) -> list[str]:
        if read(runs):
            return []
        fewest = len(runs.main_tasks) if len(runs.tasks) > len(runs.main_tasks) else 2
        return [runs.merge_command(method.command, runs.tasks[:count]) for count in (fewest, len(runs.tasks))]

    return Quantity(f"change of {method.name}", read, missing, theirs)


def adapted(label: str, name: str = "") -> Quantity:
    """Accuracy of a method of the Concrete paper on the papers' first benchmark, adapting on test images if at all."""
    known, command, title = _concrete_names(label)
    return Quantity(
        name or title,
        lambda runs: percent(runs.merged(runs.main_tasks).number(label, lambda r: r["test"]["mean_accuracy"])),
        partial(_missing_merges, label=label, command=command),
        lambda runs: published(runs.model, "concrete", "multi-task", known, "average", "accuracy"),
    )


def on_unseen(label: str) -> Quantity:
    """Accuracy on tasks that were not merged, mean over the splits of the tasks that have results."""
    known, command, title = _concrete_names(label)

    def splits(runs: Runs) -> dict[str, PerSeed]:
        return {
            f"DATASETS=[{','.join(group.tasks)}] unseen=[{found.partition(UNSEEN)[2].replace('+', ',')}]": percent(
                group.number(found, lambda r: r["unseen"]["mean_accuracy"])
            )
            for group in runs.merges
            if (group.mode, group.scope) == ("standard", "visual")
            for found in group.records
            if found.startswith(label + UNSEEN)
        }

    def read(runs: Runs) -> PerSeed:
        first, *others = splits(runs).values() or [PerSeed()]
        return first.map(lambda *values: _mean(values), *others)

    def missing(runs: Runs) -> list[str]:
        held_out = registry.suite(runs.suite).unseen
        seen = [task for task in runs.main_tasks if task not in held_out]
        options = f"DATASETS=[{','.join(seen)}] unseen=[{','.join(held_out)}] {command}"
        return [] if read(runs) else _merge_commands(runs, options, ())

    return Quantity(title, read, missing, lambda runs: published_unseen(runs, (), known, "average of unseen"))


def _concrete_names(label: str) -> tuple[str, str, str]:
    """A method's name in the Concrete paper, its command, and its name as printed."""
    method = {method.label: method for method in (*METHODS, *ADAPTED)}[label]
    return NOT_ADAPTED.get(label, method.published), method.command, method.name


def _short(mode: str) -> str:
    return {"none": "pre-trained", "standard": "non-linear", "posthoc": "post-hoc", "linear": "linear"}[mode]


def _mean(values) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


POINTS = 5.0  # of accuracy: less than this above the untrained network counts as no task arithmetic
CLAIMS = (
    Claim(
        "tangent", "Figures 2, 5",
        "Single tasks: non-linear fine-tuning is better than linear fine-tuning, and that than post-hoc linearization.",
        tuple(single(mode) for mode in ("standard", "linear", "posthoc")),
    ),
    Claim(
        "tangent", "Table 1",
        "Addition, absolute: linear fine-tuning > non-linear > post-hoc > doing nothing.",
        tuple(added(mode, "absolute") for mode in ("linear", "standard", "posthoc", "none")),
    ),
    Claim(
        "tangent", "Table 1",
        "Addition, normalised: linear fine-tuning > post-hoc > non-linear.",
        tuple(added(mode, "normalised") for mode in ("linear", "posthoc", "standard")),
    ),
    *(
        Claim(
            "tangent", "Table 1",
            f"Addition, normalised, {_short(mode)}: better than doing nothing by the same denominators.",
            (added(mode, "normalised"), do_nothing(mode)),
        )
        for mode in MODES
    ),
    Claim(
        "tangent", "Table 2",
        "Negation forgets the target most with linear fine-tuning: pre-trained > non-linear > post-hoc > linear.",
        tuple(negated(mode) for mode in ("none", "standard", "posthoc", "linear")),
    ),
    *(
        Claim(
            "tangent", "Table 2",
            f"Negation, {_short(mode)}: the control keeps 95 % of its accuracy on test too (within one percent).",
            (control_kept(mode), constant(95.0, "95 %")),
            margin=1.0,
        )
        for mode in MODES
    ),
    Claim(
        "tangent", "Figure 3",
        "Post-hoc linear models are more disentangled than non-linear ones.",
        (error("standard"), error("posthoc")),
    ),
    Claim(
        "tangent", "Figure 10",
        "Linearly fine-tuned models are more disentangled than non-linear ones.",
        (error("standard"), error("linear")),
    ),
    Claim(
        "tangent", "Figure 3",
        "Near θ0 the disentanglement error is small: smaller in the search space than on the rest of the grid.",
        (error_outside("standard"), error("standard")),
    ),
    *(
        Claim(
            "tangent", "Figures 6, 14",
            f"Eigenfunctions of the tangent kernel ({reduction}) are localized: more energy on task than control.",
            (energy_ratio(reduction), constant(1.0, "1")),
        )
        for reduction in ("trace", "sum")
    ),
    Claim(
        "tangent", "Figures 6, 15",
        "Pre-training localizes them: more than at random initialization (trace).",
        (energy_ratio("trace"), energy_ratio("trace", init=True)),
    ),
    *(
        Claim(
            "tangent", "Table 3",
            f"No task arithmetic from random initialization, {_short(mode)}: it gains less than {POINTS:g} points.",
            (constant(POINTS, f"{POINTS:g} points"), gain(mode, init=True)),
        )
        for mode in ("standard", "linear")
    ),
    *(
        Claim(
            "tangent", "Tables 1, 3",
            f"Pre-training is what makes addition work, {_short(mode)}: it gains more than from random initialization.",
            (gain(mode), gain(mode, init=True)),
        )
        for mode in ("standard", "linear")
    ),
    Claim(
        "tall", "main table",
        "TALL masks with task arithmetic keep 99 % of single-task accuracy.",
        (merged("tall_mask", "normalised"), constant(99.0, "99 %")),
    ),
    Claim(
        "tall", "main table",
        "TALL masks with TIES are at least as good (within half a point).",
        (merged("tall_mask_use_ties=True"), merged("tall_mask")),
        margin=0.5,
    ),
    Claim(
        "tall", "main table",
        "Consensus task arithmetic is better than task arithmetic.",
        (merged("consensus"), merged("sum")),
    ),
    Claim(
        "tall", "main table",
        "TIES > task arithmetic > weight averaging > zero-shot.",
        tuple(merged(label) for label in ("ties", "sum", "average", "zeroshot")),
    ),
    Claim(
        "tall", "main table",
        "TALL masks are better than magnitude masks.",
        (merged("tall_mask"), merged("mag_masking")),
    ),
    Claim(
        "tall", "figure on k",
        "k = 2 is the best threshold of consensus task arithmetic.",
        (at_threshold(best_of_others=False), at_threshold(best_of_others=True)),
    ),
    Claim(
        "tall", "figure on tasks",
        "TALL masks stay flat as tasks grow: normalised accuracy falls by less than two points.",
        (change_with_tasks("tall_mask"), constant(-2.0, "−2 points")),
    ),
    Claim(
        "tall", "figure on tasks",
        "Task arithmetic falls as tasks grow.",
        (constant(0.0, "no change"), change_with_tasks("sum")),
    ),
    Claim(
        "concrete", "main table",
        "Concrete task arithmetic is better than task arithmetic.",
        (adapted(f"{CONCRETE}task_arithmetic"), adapted("sum")),
    ),
    Claim(
        "concrete", "main table",
        "Layer-wise AdaMerging is better than task-wise.",
        (adapted("adamerging", "layer-wise"), adapted("adamerging_granularity=task", "task-wise")),
    ),
    Claim(
        "concrete", "main table",
        "Layer-wise Concrete AdaMerging is better than layer-wise AdaMerging.",
        (adapted(f"{CONCRETE}layer_wise_adamerging", "Concrete"), adapted("adamerging", "layer-wise")),
    ),
    Claim(
        "concrete", "generalisation",
        "A shared mask helps on tasks that it was not learned on: there Concrete task arithmetic > task arithmetic.",
        (on_unseen(f"{CONCRETE}task_arithmetic"), on_unseen("sum")),
    ),
)  # fmt: skip


# --- The ledger ----------------------------------------------------------------------------------------------------


def ledger(runs: Runs, heading: str = "##") -> str:
    """Every claim in a Markdown table for each paper."""
    findings = [examine(claim, runs) for claim in CLAIMS]
    counts = [
        f"{sum(f.verdict == verdict for f in findings)} {verdict}" for verdict in (HOLDS, FAILS, UNDECIDED, NOT_RUN)
    ]
    lines = [
        f"{runs.model}: {', '.join(counts)}. {seeds_text(runs.seeds)} Numbers in %, ratios as they are; in brackets "
        f"{beside(runs)}. Differences are of neighbours, in the claimed direction, with Student's 95 % interval over "
        "seeds, paired, where there are two or more: `holds` then means that it lies above zero (or above minus the "
        "margin that the sentence grants), `does not hold` that it lies below, `undecided` that it contains zero. With "
        "one seed the sign alone decides.",
    ]
    for paper, title in PAPERS.items():
        found = [finding for finding in findings if finding.claim.paper == paper]
        lines += [
            "",
            f"{heading} {title}",
            "",
            "| claim | verdict | numbers, in the claimed order | difference |",
            "| --- | --- | --- | --- |",
        ]
        lines += [_row(finding, runs) for finding in found]
        missing = dict.fromkeys(c for f in found if f.verdict == NOT_RUN for c in f.missing)
        if missing:
            lines += ["", "What was not run is made by:", "", "```sh", *missing, "```"]
    return "\n".join(lines) + "\n"


def _row(finding: Finding, runs: Runs) -> str:
    claim = finding.claim
    values = ", ".join(_value(quantity, found, runs) for quantity, found in zip(claim.quantities, finding.values))
    digits = max(quantity.digits for quantity in claim.quantities)
    differences = "; ".join(_difference(difference, digits) for difference in finding.differences if difference)
    return f"| {claim.sentence} ({claim.where}) | **{finding.verdict}** | {values} | {differences} |"


def _value(quantity: Quantity, found: PerSeed, runs: Runs) -> str:
    theirs = quantity.published(runs)
    value = "" if not found or quantity.threshold else f" {found.mean:.{quantity.digits}f}"
    return f"{quantity.name}{value}{'' if theirs is None else f' [{theirs:.1f}]'}"


def _difference(difference: PerSeed, digits: int) -> str:
    if len(difference) < 2:
        return f"{difference.mean:+.{digits}f}"
    low, high = difference.interval()
    return f"{difference.mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
