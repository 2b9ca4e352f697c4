"""The ledger of claims: each with its verdict and the numbers that it rests on, in a Markdown table for each paper."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from statistics import fmean as mean

import pandas as pd

from src.reporting.claim import Claim, Finding, Quantity
from src.reporting.papers import Paper
from src.reporting.published import beside
from src.reporting.runs import Runs
from src.reporting.statistics import Difference
from src.reporting.table import of_fewer, seeds_text, span
from src.reporting.verdict import EQUAL_WITHIN, NOT_RUN, UNDECIDED, VERDICTS, corrected, overall

LEGEND = (
    "A row's numbers are means over the same seeds. Differences are of neighbours, in the claimed direction, paired by "
    "seed. The first interval is Student's 95 % over seeds, the second is over test images and seeds together. "
    f"`equal`: the first lies within ±{EQUAL_WITHIN:g} points, or within the margin that the sentence grants. `holds`: "
    "it lies above zero, or above minus that margin. `does not hold`: it lies below. Else `undecided`. With one seed "
    "the interval over test images decides. Errors ξ and ratios of kernels are no accuracies and have the first alone."
)
NO_BITS = (
    "An interval over test images needs results that hold which images were right, as bits. Some of these were made "
    "before results held them; the same commands with `--overwrite` (main.py: `overwrite=True`) make them anew."
)


def ledger(findings: Mapping[Paper, Sequence[Finding]], runs: Runs, heading: str = "##", errors: str = "sd") -> str:
    """Every claim that `claim.examine_all` has examined. errors: of ranges.ERRORS."""
    every = [finding for of_paper in findings.values() for finding in of_paper]
    comparisons = [comparison for finding in every for comparison in finding.comparisons]
    after = corrected_verdicts(findings)
    lines = [
        f"{runs.model}: {len(every)} claims: {verdict_counts(finding.verdict for finding in every)}. "
        f"{len(comparisons)} differences are tested at once; corrected for that by Holm's method: "
        f"{verdict_counts(after.values())}. {seeds_text(runs.seeds, errors)} Numbers in %, ratios as they are"
        f"{beside(runs.model)}. {LEGEND}",
    ]
    if any(map(_lacks_bits, every)):
        lines += ["", NO_BITS]
    for paper, of_paper in findings.items():
        lines += ["", f"{heading} {paper.title}", "", *_section(of_paper, after, runs)]
    return "\n".join(lines) + "\n"


def corrected_verdicts(findings: Mapping[Paper, Sequence[Finding]]) -> dict[Claim, str]:
    """The verdict on each claim with Holm's correction for all differences of all claims."""
    every = [finding for of_paper in findings.values() for finding in of_paper]
    remaining = iter(corrected([comparison for finding in every for comparison in finding.comparisons]))
    return {finding.claim: overall(islice(remaining, len(finding.comparisons))) for finding in every}


def verdict_counts(verdicts: Iterable[str]) -> str:
    """`18 holds, 1 does not hold, ...`; of those that there are."""
    of_claims = list(verdicts)
    return ", ".join(f"{of_claims.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in of_claims)


def _section(findings: Sequence[Finding], after: Mapping[Claim, str], runs: Runs) -> list[str]:
    header = ("claim", "verdict", "corrected", "numbers, in the claimed order", "difference", "over images and seeds")
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    lines += [_row(finding, after[finding.claim], runs) for finding in findings]
    missing = dict.fromkeys(line for finding in findings if finding.verdict == NOT_RUN for line in finding.missing)
    return lines + (["", "What was not run is made by:", "", "```sh", *missing, "```"] if missing else [])


def _row(finding: Finding, after: str, runs: Runs) -> str:
    claim = finding.claim
    values = ", ".join(value_text(quantity, ours, runs) for quantity, ours in zip(claim.quantities, finding.values))
    digits = max(quantity.digits for quantity in claim.quantities)
    over_seeds = "; ".join(_over_seeds(comparison.difference, digits, runs) for comparison in finding.comparisons)
    over_images = "; ".join(span(comparison.difference.over_images, digits) for comparison in finding.comparisons)
    cells = (f"{claim.sentence} ({claim.where})", f"**{finding.verdict}**{reason(finding)}", after, values)
    return f"| {' | '.join((*cells, over_seeds, over_images.strip('; ')))} |"


def reason(finding: Finding) -> str:
    """Why a claim is undecided where no interval says so."""
    if finding.verdict != UNDECIDED or all(comparison.difference.deciding for comparison in finding.comparisons):
        return ""
    return f": one seed, {'results without bits' if _lacks_bits(finding) else 'and no accuracy of images'}"


def _lacks_bits(finding: Finding) -> bool:
    """Whether results have no bits for a difference of accuracies."""
    return any(
        comparison.difference.over_images is None and one.of_images and other.of_images
        for comparison, (one, other) in zip(finding.comparisons, finding.claim.pairs)
    )


def value_text(quantity: Quantity, ours: pd.Series, runs: Runs) -> str:
    theirs = quantity.published(runs)
    value = "" if ours.empty or quantity.threshold else f" {mean(ours):.{quantity.digits}f}{_fewer(ours, runs)}"
    return f"{quantity.title}{value}{'' if theirs is None else f' [{theirs:.1f}]'}"


def _over_seeds(difference: Difference, digits: int, runs: Runs) -> str:
    between = f" ({span(difference.over_seeds, digits)})" if difference.over_seeds else ""
    return f"{difference.estimate:+.{digits}f}{between}{_fewer(difference.values, runs)}"


def _fewer(values: pd.Series, runs: Runs) -> str:
    text = of_fewer(len(values), len(runs.seeds))
    return f" {text}" if text else ""
