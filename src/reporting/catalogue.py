"""docs/methods.md: every registered merging method with its paper, formula, options, published and measured numbers.

    python -m src.reporting.catalogue

writes it from the registry and from results/mini.
"""

import inspect
from collections.abc import Iterator

from src.merging.base import Method, registered
from src.merging.names import listing_doc
from src.modes import EVALUATED, MODES
from src.reporting.comparison.methods import methods_published
from src.reporting.methods import Group, Row
from src.reporting.runs import Runs
from src.reporting.table import Cell, Table, write_text
from src.runtime.paths import ROOT, Places, from_root

PAGE = ROOT / "docs" / "methods.md"
HEAD = """# Merging methods

*Written by `python -m src.reporting.catalogue` from the registry (`src/merging/`) and `results/mini`; do not edit.*

{count} methods. A method is one file in `src/merging/`; [extending.md](extending.md) shows how to add one. Accuracies are means
over {tasks} tasks of ViT-Mini in %, over seeds {seeds}; published ones are of {theirs}, by the family of checkpoints that was merged.

| method | `method=` | paper | needs |
| --- | --- | --- | --- |
"""


def page(runs: Runs) -> str:
    methods = registered()
    theirs = next(methods_published(runs), None)
    head = HEAD.format(
        count=len(methods),
        tasks=len(runs.main_tasks),
        seeds=", ".join(map(str, runs.seeds)),
        theirs="ViT-B-32",
    )
    lines = [f"| [{cls.title}](#{_anchor(cls)}) | `{cls.name}` | {_paper(cls)} | {cls.needs} |" for cls in methods]
    sections = ["\n".join(_section(cls, runs, theirs)) for cls in methods]
    return head + "\n".join(lines) + "\n\n" + "\n\n".join(sections) + "\n"


def _anchor(cls: type[Method]) -> str:
    """GitHub's and MkDocs' own for the heading, which is the plain name."""
    return cls.name


def _paper(cls: type[Method]) -> str:
    return f"[arXiv:{cls.paper}](https://arxiv.org/abs/{cls.paper})" if cls.paper else "this suite"


def _section(cls: type[Method], runs: Runs, theirs: Table | None) -> Iterator[str]:
    file = inspect.getsourcefile(cls) or ""
    yield f"## {cls.name}\n"
    yield f"**{cls.title}**, {_paper(cls)}. Needs {cls.needs}. `src/merging/{file.rsplit('/', 1)[-1]}`\n"
    yield f"```text\n{listing_doc(cls)}\n```\n"
    yield "```sh\npython main.py " + f"method={cls.name}\n```"
    if options := cls.defaults():
        yield "\n| option | default |\n| --- | --- |"
        for name, default in options.items():
            yield f"| `method.{name}` | `{default}` |"
    rows = [Row.registered(variant) for variant in cls.variants]
    yield "\n| in tables as | " + " | ".join(MODES[mode].short for mode in EVALUATED) + " | published |"
    yield "| --- | " + "---: | " * (len(EVALUATED) + 1)
    for row in rows:
        yield f"| {row.title()} | {' | '.join(_measured(runs, row, mode) for mode in EVALUATED)} | {_published(row, theirs)} |"


def _measured(runs: Runs, row: Row, mode: str) -> str:
    values = 100 * runs.values(metric="accuracy", **Group(runs.main_tasks, mode).columns, **row.columns)
    return Cell(values).text(len(runs.seeds))


def _published(row: Row, theirs: Table | None) -> str:
    found = [entries for entries in theirs.rows if entries[0] == row.title()] if theirs else []
    return ", ".join(
        f"{cell.published:.1f} ({head.removeprefix('published, ')})"
        for entries in found
        for head, cell in zip(theirs.header if theirs else (), entries)
        if isinstance(cell, Cell) and cell.published is not None
    )


def main() -> None:
    runs = Runs("mini", "ViT-Mini", from_root(Places.results))
    runs.check()
    write_text(PAGE, page(runs))
    print(f"{len(registered())} methods -> {PAGE}")


if __name__ == "__main__":
    main()
