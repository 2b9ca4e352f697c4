"""README.md of a folder of results: every figure with its caption, every table, for readers on the web."""

from pathlib import Path

from src.reporting.captions import caption
from src.reporting.ledger import verdict_counts
from src.reporting.report.forest import Forest
from src.reporting.report.gallery import written
from src.reporting.runs import Runs
from src.reporting.table import listed, write_text
from src.reporting.tables import make


def write_index(runs: Runs, ledger: Forest) -> Path:
    """Write it, and give its path: beside the index of the suite's own model, that of another has its name."""
    path = runs.paths.index().with_stem(runs.stem("README"))
    write_text(path, index_of(runs, ledger))
    return path


def index_of(runs: Runs, ledger: Forest) -> str:
    folder = runs.paths.index().parent
    tables = [table for table in make(runs) if (folder / "tables" / f"{table.name}.md").exists()]
    lines = [
        f"# Results of {runs.model}, suite {runs.suite}",
        "",
        f"Seeds {listed(runs.seeds)}. {len(ledger.claims)} claims of the papers: "
        f"{verdict_counts(claim.verdict for claim in ledger.claims)}.",
        "",
        f"- [{runs.stem('report')}.html]({runs.stem('report')}.html): the same as one interactive page; download it "
        "and open it in a browser.",
        f"- [{runs.stem('claims')}.md]({runs.stem('claims')}.md): every claim with its numbers and intervals.",
        "- [accuracies.csv](accuracies.csv): every number of every result, one a row.",
        f"- `{runs.model}/seed_*/`: the results, with their provenance.",
        "",
        "## Tables",
        "",
        "| table | as LaTeX | as CSV |",
        "| --- | --- | --- |",
    ]
    for table in tables:
        stem = f"tables/{table.name}"
        text = table.caption.replace("|", "\\|")
        lines.append(f"| [{text}]({stem}.md) | [tex]({stem}.tex) | [csv]({stem}.csv) |")
    lines += ["", "## Figures", "", "Each is a PNG here, and a PDF beside it.", ""]
    for name, file in written(runs).items():
        text = caption(name)
        lines += [f"### {name}", "", f"![{text}](figures/{file.name})", "", text, ""]
    return "\n".join(lines).rstrip() + "\n"
