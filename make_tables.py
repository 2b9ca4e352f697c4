"""The papers' tables and the ledger of claims from results, beside the published numbers. Loads no model.

    python make_tables.py                                   # mini
    python make_tables.py --suite vision --model ViT-B-32
    python make_tables.py --readme README.md                # also put them between the markers of README.md

Writes results/<suite>/tables/*.md, .tex and .csv, and results/<suite>/claims.md. Seed 0, on which settings were chosen,
is left out where there are others. A missing result leaves an empty cell; the command that fills it stands below.
"""

from pathlib import Path

from src.reporting import claims, tables
from src.reporting.runs import parse_runs, reporting_parser
from src.runtime.paths import ROOT
from src.runtime.program import exit_on_user_error


@exit_on_user_error
def main(argv=None) -> None:
    parser = reporting_parser(__doc__)
    parser.add_argument("--readme", type=Path, help="file whose block between the markers is replaced")
    args = parser.parse_args(argv)
    runs = parse_runs(parser, args)
    made = tables.make(runs)
    tables.write(made, runs.paths.tables())
    ledger = runs.paths.claims().with_stem(runs.stem("claims"))
    tables.write_text(ledger, f"# Claims of the papers, tested\n\n{claims.ledger(runs)}")
    if args.readme:
        shown = [tables.markdown(table) for table in made if table.in_readme]
        tables.embed(ROOT / args.readme, "\n".join([*shown, "### Claims", "", claims.ledger(runs, "####")]))
    print(
        f"{len(made)} tables over seeds {', '.join(map(str, runs.seeds)) or 'none'} -> {runs.paths.tables()}, {ledger}"
    )


if __name__ == "__main__":
    main()
