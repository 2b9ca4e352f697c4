"""Pages of docs/ that are written from the registries: the merging methods, and the sources of data and numbers.

    python -m src.reporting.catalogue

writes docs/methods.md (paper, formula, options, published and measured numbers) and docs/sources.md.
"""

import inspect
from collections.abc import Iterator, Sequence

from src.args import command_parser
from src.datasets.registry import SUITES, get, names
from src.merging.base import Method
from src.merging.names import file_doc, own_doc
from src.merging.registry import registered
from src.modes import EVALUATED, MODES
from src.reporting.comparison.methods import methods_published
from src.reporting.methods import Group, Row
from src.reporting.published import published_model, published_sources
from src.reporting.runs import Runs
from src.reporting.table import Cell, Table, write_text
from src.runtime.messages import few
from src.runtime.paths import ROOT, Places, from_root
from src.runtime.program import exit_on_user_error

DOCS = ROOT / "docs"
HEAD = """# Merging methods

*Written by `python -m src.reporting.catalogue` from the registry (`src/merging/`) and `results/mini`; do not edit.*

{count} methods. A method is one file in `src/merging/`; [extending.md](extending.md) shows how to add one. Accuracies
are means over {tasks} tasks of {model} in %, over seeds {seeds}; published ones are of {theirs}, by the family of
checkpoints that was merged.

| method | `method=` | paper | needs |
| --- | --- | --- | --- |
"""


def methods_page(runs: Runs) -> str:
    methods = registered()
    theirs = next(methods_published(runs), None)
    head = HEAD.format(
        count=len(methods),
        tasks=len(runs.main_tasks),
        seeds=", ".join(map(str, runs.extended_seeds)),  # of every column: modes beside each other
        model=runs.model,
        theirs=published_model(runs.model),
    )
    lines = [f"| [{cls.title}](#{cls.name}) | `{cls.name}` | {_paper(cls)} | {cls.needs} |" for cls in methods]
    sections = ["\n".join([*described(cls), *_measured_part(cls, runs, theirs)]) for cls in methods]
    return head + "\n".join(lines) + "\n\n" + "\n\n".join(sections) + "\n"


def _paper(cls: type[Method]) -> str:
    return f"[arXiv:{cls.paper}](https://arxiv.org/abs/{cls.paper})" if cls.paper else "this suite"


def described(cls: type[Method]) -> Iterator[str]:
    """A method's section, but for what was measured. The head of a file stands with its first method."""
    first = next(other for other in registered() if other.__module__ == cls.__module__)
    file = inspect.getsourcefile(cls) or ""
    yield f"## {cls.name}\n"
    yield f"**{cls.title}**, {_paper(cls)}. Needs {cls.needs}. `src/merging/{file.rsplit('/', 1)[-1]}`\n"
    docs = [own_doc(cls), file_doc(cls) if cls is first else ""]
    if text := "\n\n".join(filter(None, docs)):
        yield f"```text\n{text}\n```\n"
    if cls is not first:
        yield f"Its formula stands at the head of the file: see [{first.name}](#{first.name}).\n"
    yield "```sh\npython main.py " + f"method={cls.name}\n```"
    if options := cls.defaults():
        yield "\n| option | default |\n| --- | --- |"
        for name, default in options.items():
            yield f"| `method.{name}` | `{default}` |"


def _measured_part(cls: type[Method], runs: Runs, theirs: Table | None) -> Iterator[str]:
    modes = runs.modes(EVALUATED)
    yield "\n| in tables as | " + " | ".join(MODES[mode].short for mode in modes) + " | published |"
    yield "| --- |" + " ---: |" * (len(modes) + 1)
    for row in map(Row.registered, cls.variants):
        cells = [row.title(), *(_measured(runs, row, mode) for mode in modes), _published(row, theirs)]
        yield f"| {' | '.join(cells)} |"


def _measured(runs: Runs, row: Row, mode: str) -> str:
    values = 100 * runs.values(metric="accuracy", **Group(runs.main_tasks, mode).columns, **row.columns)
    return Cell(values[values.index.isin(runs.extended_seeds)]).text(len(runs.extended_seeds))


def _published(row: Row, theirs: Table | None) -> str:
    matching = [entries for entries in theirs.rows if entries[0] == row.title()] if theirs else []
    return ", ".join(
        f"{cell.published:.1f} ({head.removeprefix('published, ')})"
        for entries in matching
        for head, cell in zip(theirs.header if theirs else (), entries)
        if isinstance(cell, Cell) and cell.published is not None
    )


def sources_page() -> str:
    lines = [
        "# Sources and licences",
        "",
        "*Written by `python -m src.reporting.catalogue` from the registries; do not edit.*",
        "",
        "This project's code is under the MIT licence. It ships no data set: mini's pictures are drawn, "
        "and the digits are read from scikit-learn. Data of vision are fetched by whoever prepares them, under the "
        "terms below.",
    ]
    for suite in SUITES.values():
        lines += ["", f"## Data sets of {suite.name}", ""]
        lines += ["| data set | licence | source | note |", "| --- | --- | --- | --- |"]
        for name in (*names(suite), suite.control):
            about = get(name).about
            lines.append(f"| {name} | {about['licence']} | {about.get('source', '')} | {about.get('note', '')} |")
    lines += [
        "",
        "## Published numbers",
        "",
        "Facts of papers and of their code, in `src/reporting/published.csv`, each row with its source. Numbers of "
        "different checkpoints must not be compared.",
        "",
        "| paper or project | numbers | sources |",
        "| --- | ---: | --- |",
    ]
    for paper, of_paper in published_sources().items():
        sources = few(sorted(set(of_paper)), 3).replace("|", "\\|")
        lines.append(f"| {paper} | {len(of_paper)} | {sources} |")
    return "\n".join(lines) + "\n"


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    command_parser("src.reporting.catalogue", __doc__).parse_args(argv)
    runs = Runs("mini", "ViT-Mini", from_root(Places.results))
    runs.check()
    for name, text in {"methods": methods_page(runs), "sources": sources_page()}.items():
        write_text(DOCS / f"{name}.md", text)
        print(f"{name} -> {DOCS / f'{name}.md'}")


if __name__ == "__main__":
    main()
