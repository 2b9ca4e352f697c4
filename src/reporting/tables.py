"""All tables, the ledger of claims and the table of numbers, made from results and written. Loads no model."""

from dataclasses import replace
from pathlib import Path

from src.reporting import claim, frame
from src.reporting.papers import offered
from src.reporting.runs import Runs, every_number
from src.reporting.table import Table, embed, markdown, write, write_text
from src.runtime.paths import from_root


def make(runs: Runs) -> list[Table]:
    """Every table, under the file name that tells the model."""
    return [replace(table, name=runs.stem(table.name)) for tables in offered("tables") for table in tables(runs)]


def make_tables(runs: Runs, readme: str | Path | None = None) -> None:
    """Write the tables of a model, its ledger of claims, and accuracies.csv of the whole suite.

    readme: a file between whose markers the main tables and the ledger go too.
    Raises UsageError, and writes nothing, where there are no results; ResultError for a result unlike its schema.
    """
    runs.check()
    tables, numbers = make(runs), every_number(runs.suite, runs.results)
    ledger = claim.ledger(runs)
    write(tables, runs.paths.tables())
    path = runs.paths.claims().with_stem(runs.stem("claims"))
    write_text(path, f"# Claims of the papers, tested\n\n{ledger}")
    frame.write(numbers, runs.paths.accuracies())
    if readme:
        shown = [markdown(table) for table in tables if table.in_readme]
        embed(from_root(readme), "\n".join([*shown, "### Claims", "", claim.ledger(runs, "####")]))
    seeds = ", ".join(map(str, runs.seeds))
    print(f"{len(tables)} tables over seeds {seeds} -> {runs.paths.tables()}, {path}, {runs.paths.accuracies()}")
