"""Tables of numbers over seeds beside published ones, as Markdown, LaTeX and CSV.

A cell is a number for each seed, printed as mean ± sd, or ± standard error, with the published one in brackets.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from pathlib import Path
from statistics import fmean as mean
from typing import Any

import pandas as pd

from src.ranges import ERRORS
from src.reporting.runs import Runs
from src.runtime.files import replacing
from src.runtime.messages import UsageError, nearest


@dataclass(frozen=True)
class Cell:
    """ours: a number for each seed, fewer than all where results are missing; in the unit it is printed in.

    spread: whether to print the sd; not for what seeds do not change.
    """

    ours: pd.Series = field(default_factory=lambda: pd.Series(dtype=float))
    published: float | None = None
    digits: int = 1
    spread: bool = True

    @property
    def filled(self) -> bool:
        return not self.ours.empty

    def text(self, seeds: int, errors: str = "sd") -> str:
        """`81.0 ± 0.3 [76.5]`; a mean over fewer than all `seeds` says over how many. errors: of ERRORS."""
        parts = []
        if self.filled:
            parts.append(f"{mean(self.ours):.{self.digits}f}")
            if len(self.ours) > 1 and self.spread:
                error = self.ours.std() if errors == "sd" else self.ours.sem()
                parts.append(f"± {error:.{self.digits}f}")
            parts += [fewer] if (fewer := of_fewer(len(self.ours), seeds)) else []
        if self.published is not None:
            parts.append(f"[{self.published:.1f}]" if self.digits <= 1 else f"[{round(self.published, 2):g}]")
        return " ".join(parts)

    def columns(self) -> list[float | str]:
        """Mean, sd, number of seeds and published value, for a file; empty where there is none."""
        theirs: float | str = "" if self.published is None else round(self.published, 6)
        if not self.filled:
            return ["", "", "", theirs]
        sd: float | str = round(self.ours.std(), 6) if len(self.ours) > 1 else ""
        return [round(mean(self.ours), 6), sd, len(self.ours), theirs]


@dataclass(frozen=True)
class Table:
    """rows: the first entry of each is its name, the others are Cells or texts. missing: commands that fill gaps.

    averaged: whether its numbers are over seeds. errors: what stands behind the ±, of ERRORS.
    same_seeds: whether rows of more seeds than most are brought to those that most have, two at least. A row of fewer
        says so.
    """

    name: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    seeds: tuple[int, ...]
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    in_readme: bool = False
    averaged: bool = True
    errors: str = "sd"
    same_seeds: bool = False

    @property
    def full_caption(self) -> str:
        return f"{self.caption} {seeds_text(self.shown_seeds, self.errors)}" if self.averaged else self.caption

    @property
    def shown_seeds(self) -> tuple[int, ...]:
        """The seeds that any number of the table is of; of a table without numbers, all."""
        there = {seed for row in self.paired_rows for seed in _seeds_of(row)}
        return tuple(seed for seed in self.seeds if seed in there) or self.seeds

    @cached_property
    def paired_rows(self) -> list[list[Any]]:
        """The rows with the numbers of each over the same seeds: those that all of its filled cells have, if any."""
        paired = [_paired(row) for row in self.rows]
        if not self.same_seeds:
            return paired
        counts = Counter(seeds for row in paired if len(seeds := _seeds_of(row)) > 1)
        if not counts:
            return paired
        most = max(counts, key=lambda seeds: (counts[seeds], len(seeds)))
        return [_on_seeds(row, most) if {*most} <= {*_seeds_of(row)} else row for row in paired]

    def texts(self) -> list[list[str]]:
        count = len(self.shown_seeds)
        shown = count if count > 1 else len(self.seeds), self.errors  # of one of several seeds each number says so too
        return [[entry.text(*shown) if isinstance(entry, Cell) else entry for entry in row] for row in self.paired_rows]


def _paired(row: Sequence[Any]) -> list[Any]:
    values = [entry.ours for entry in row if isinstance(entry, Cell)]
    common = on_common_seeds(values)
    if all(of_cell.empty for of_cell in common):
        return list(row)
    remaining = iter(common)
    return [replace(entry, ours=next(remaining)) if isinstance(entry, Cell) else entry for entry in row]


def _seeds_of(row: Sequence[Any]) -> tuple[int, ...]:
    """Those that any number of the row is of."""
    return tuple(sorted({seed for entry in row if isinstance(entry, Cell) for seed in entry.ours.index}))


def _on_seeds(row: Sequence[Any], seeds: Sequence[int]) -> list[Any]:
    return [
        replace(entry, ours=entry.ours[entry.ours.index.isin(seeds)]) if isinstance(entry, Cell) else entry
        for entry in row
    ]


def on_common_seeds(values: Sequence[pd.Series]) -> list[pd.Series]:
    """Numbers that stand beside each other, by seed, on the seeds which all of them have; empty ones stay empty."""
    indices = [of_number.index for of_number in values if not of_number.empty]
    if not indices:
        return list(values)
    common = reduce(lambda one, other: one[one.isin(other)], indices)
    return [of_number if of_number.empty else of_number.loc[common] for of_number in values]


def of_fewer(count: int, seeds: int) -> str:
    """`(n = 1)` for a mean over `count` of the seeds; nothing for one over all of them."""
    return f"(n = {count})" if count < seeds else ""


def span(ends: tuple[float, float] | None, digits: int) -> str:
    """`+0.3 to +1.4`; nothing where there is no interval."""
    return "" if ends is None else f"{ends[0]:+.{digits}f} to {ends[1]:+.{digits}f}"


def seeds_text(seeds: Sequence[int], errors: str = "sd") -> str:
    """How many seeds numbers are of, and with which of ERRORS."""
    if not seeds:
        return "No results yet."
    if len(seeds) == 1:
        return f"One seed ({seeds[0]})."
    return f"Mean ± {ERRORS[errors]} over {len(seeds)} seeds ({listed(seeds)})."


def listed(seeds: Sequence[int]) -> str:
    """`1, 2, 3`, and `1 to 10` for more that follow each other."""
    in_a_row = len(seeds) > 3 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]} to {seeds[-1]}" if in_a_row else ", ".join(map(str, seeds))


def percent(runs: Runs, published: float | None = None, **columns: Any) -> Cell:
    """The cell of a number of the frame that lies in [0, 1]."""
    return Cell(100 * runs.values(**columns), published)


def printed(name: str) -> str:
    """A data set's name as printed."""
    return name.replace("_", " ")


def pair_name(pair: Iterable[str]) -> str:
    return " – ".join(map(printed, pair))


def markdown(table: Table) -> str:
    """The table with its caption above, and below it notes and the commands that fill what is missing."""
    lines = [f"**{table.full_caption}**", "", _pipe(table.header), _pipe(["---", *["---:"] * (len(table.header) - 1)])]
    lines += [_pipe(row) for row in table.texts()]
    lines += [line for note in table.notes for line in ("", note)]
    if table.missing:
        lines += ["", "Empty cells are filled by:", "", "```sh", *table.missing, "```"]
    return "\n".join(lines) + "\n"


def _pipe(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "±": r"$\pm$", "−": "$-$",
    "–": "--", "α": r"$\alpha$", "θ0": r"$\theta_0$", "τ": r"$\tau$", "Σ": r"$\sum$", "ξ": r"$\xi$", "²": r"$^2$",
    "λ": r"$\lambda$", "≥": r"$\geq$", "ρ": r"$\rho$",
}  # fmt: skip


def _escaped(text: str) -> str:
    return re.sub("θ0|.", lambda match: LATEX.get(match[0], match[0]), text)


def latex(table: Table) -> str:
    """The table as a float with booktabs' rules, no wider than the text."""
    rows = [" & ".join(_escaped(cell) for cell in row) + r" \\" for row in table.texts()]
    below = [rf"\par\smallskip\footnotesize {_escaped(note)}" for note in table.notes]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs} and \usepackage{adjustbox}",
            *(f"% empty cells are filled by: {command}" for command in table.missing),
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escaped(table.full_caption)}}}",
            rf"\label{{tab:{table.name}}}",
            r"\begin{adjustbox}{max width=\linewidth}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"\toprule",
            " & ".join(map(_escaped, table.header)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{adjustbox}",
            *below,
            r"\end{table}",
            "",
        ]
    )


def comma_separated(table: Table) -> str:
    """Means with their sd, number of seeds and published counterparts as columns of their own."""
    parts = ("", " sd", " seeds", " published")
    numeric = [any(isinstance(row[i], Cell) for row in table.rows) for i in range(len(table.header))]
    header: list[str] = []
    for title, is_number in zip(table.header, numeric):
        header += [title + part for part in parts] if is_number else [title]
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(header)
    for row in table.paired_rows:
        entries: list[float | str] = []
        for entry, is_number in zip(row, numeric):
            if isinstance(entry, Cell):
                entries += entry.columns()
            else:
                entries += [entry, "", "", ""] if is_number else [entry]
        out.writerow(entries)
    return text.getvalue()


FORMATS = {".md": markdown, ".tex": latex, ".csv": comma_separated}


def write(tables: Iterable[Table], folder: Path) -> None:
    """Each table in every format, under its name."""
    for table in tables:
        for suffix, render in FORMATS.items():
            write_text(folder / f"{table.name}{suffix}", render(table))


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


BEGIN, END = "<!-- tables:begin -->", "<!-- tables:end -->"
BLOCK = re.compile(r"<!-- tables:begin ?(?P<names>.*?) ?-->.*?<!-- tables:end -->", re.DOTALL)


def block_of(page: Path) -> re.Match:
    """What stands between a page's markers. Raises UsageError where they are not there, once each."""
    if len(blocks := list(BLOCK.finditer(page.read_text(encoding="utf-8")))) != 1:
        raise UsageError(f"{page}: expected one block between {BEGIN} and {END}, found {len(blocks)}")
    return blocks[0]


def embedded(page: Path, tables: Iterable[Table], claims: str, figures: str = "") -> str:
    """The text of a page with what stands between its markers made anew.

    The first marker names the tables, as in `<!-- tables:begin table1_addition merging -->`; where it names none, they
    are those with `in_readme`, and the claims; for `*`, all of them, the claims and the figures. Raises UsageError for
    markers that are not there, once each, and for a name that is none.
    """
    text, block = page.read_text(encoding="utf-8"), block_of(page)
    by_name = {table.name: table for table in tables}
    names = block["names"].split()
    everything = names == ["*"]
    for name in [] if everything else names:
        if name not in by_name:
            raise UsageError(
                f"{page}: table {name!r} does not exist{nearest(name, by_name)} Known: {', '.join(by_name)}"
            )
    if everything:
        pieces = [*map(markdown, by_name.values()), "### Claims", "", claims, "### Figures", "", figures]
    elif names:
        pieces = [markdown(by_name[name]) for name in names]
    else:
        pieces = [*(markdown(table) for table in by_name.values() if table.in_readme), "### Claims", "", claims]
    begin = BEGIN.replace(" -->", f" {block['names']} -->") if names else BEGIN
    return text.replace(block[0], "\n".join([begin, "\n".join(pieces).strip(), END]))
