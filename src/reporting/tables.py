"""All tables, the ledger of claims and the table of numbers, made from results and written. Loads no model."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from src.reporting import frame
from src.reporting.captions import CAPTIONS, caption
from src.reporting.claim import examine_all
from src.reporting.compare import compare
from src.reporting.ledger import ledger
from src.reporting.papers import offered
from src.reporting.runs import Runs, every_number
from src.reporting.table import Table, block_of, embedded, printed, write, write_text
from src.runtime.files import require_writable
from src.runtime.locks import only_one
from src.runtime.messages import UsageError
from src.runtime.paths import from_root


def make(runs: Runs) -> list[Table]:
    """Every table, under the file name that tells the model."""
    return [*one_by_one(runs)]


def one_by_one(runs: Runs) -> Iterator[Table]:
    """The same, each made when it is asked for."""
    notes = leaks(runs)
    for table in (table for tables in offered("tables") for table in tables(runs)):
        yield replace(table, name=runs.stem(table.name), notes=(*table.notes, *notes))


def leaks(runs: Runs) -> tuple[str, ...]:
    """A note under every table where published checkpoints may have seen the images that they are scored on."""
    leaks = {task: reason for result in runs.read for task, reason in result.record.get("leaks", {}).items()}
    if not leaks:
        return ()
    sets = "; ".join(f"{printed(task)}: {reason}" for task, reason in leaks.items())
    return (f"Not clean, because published checkpoints may have been fine-tuned on images that score them. {sets}.",)


def _figures(runs: Runs, page: Path) -> str:
    """The figures that there are, each with its caption, as the page reaches them."""
    names = dict.fromkeys([*CAPTIONS, *(drawing.name for drawing in offered("figures"))])
    files = {name: runs.paths.figures() / f"{runs.stem(name)}.png" for name in names}
    there = {name: os.path.relpath(file, page.parent) for name, file in files.items() if file.is_file()}
    return "\n\n".join(f"![{name}]({path})\n\n{caption(name)}" for name, path in there.items())


def make_or_compare(
    runs: Runs, pages: Sequence[str], errors: str, compared: Sequence[str] | None, out: Path | None
) -> None:
    """Make the tables; or, of two methods that are `compared`, print their comparison, and write it to `out`.

    Raises UsageError for options of the one beside the other.
    """
    if not compared:
        if out:
            raise UsageError(
                "--out: expected --compare ONE OTHER beside it; without it the files have names of their own"
            )
        return make_tables(runs, pages, errors)
    if errors != "sd":
        raise UsageError("--errors: expected the tables of a run; --compare prints intervals, and no ±")
    one, other = compared
    compare(runs, one, other, out)


def make_tables(runs: Runs, pages: Sequence[str] = (), errors: str = "sd") -> None:
    """Write the tables of a model, its ledger of claims, and accuracies.csv of the whole suite.

    pages: files between whose markers tables go too; see table.embedded. errors: of ranges.ERRORS.
    Raises UsageError, and writes nothing, where there are no results; ResultError for a result unlike its schema.
    """
    for page in pages:
        if not from_root(page).is_file():
            raise UsageError(f"--readme: expected a page with markers for tables, found no file {page}")
        block_of(from_root(page))
    runs.check()
    tables = [replace(table, errors=errors) for table in make(runs)]
    numbers = every_number(runs.suite, runs.results)
    findings = examine_all(runs)
    claims, short = (ledger(findings, runs, heading, errors) for heading in ("##", "####"))
    files = [from_root(page) for page in pages]
    texts = {file: embedded(file, tables, short, _figures(runs, file)) for file in files}
    path = runs.paths.claims().with_stem(runs.stem("claims"))
    texts[path] = f"# Claims of the papers, tested\n\n{claims}"
    for file in (*texts, runs.paths.tables() / "tables", runs.paths.accuracies()):
        require_writable(file)
    with only_one(path):
        write(tables, runs.paths.tables())
        frame.write(numbers, runs.paths.accuracies())
        for file, text in texts.items():
            write_text(file, text)
    seeds = ", ".join(map(str, runs.seeds))
    print(f"{len(tables)} tables over seeds {seeds} -> {runs.paths.tables()}, {path}, {runs.paths.accuracies()}")
