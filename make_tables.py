"""The papers' tables and the ledger of claims from results, beside the published numbers. Loads no model.

    python make_tables.py                                   # mini
    python make_tables.py --suite vision --model ViT-B-32
    python make_tables.py --readme README.md                # also put them between the markers of README.md

Writes results/<suite>/tables/*.md, .tex and .csv, results/<suite>/claims.md, and results/<suite>/accuracies.csv: every
number of every result, one a row, for tables and plots of your own. Seed 0, on which settings were chosen, is left out
of tables and claims where there are others. A missing result leaves an empty cell, and below the table stands the
command that fills it.
"""

from src.args import parse_reporting, reporting_parser
from src.reporting.runs import Runs
from src.reporting.tables import make_tables
from src.runtime.program import exit_on_user_error


@exit_on_user_error
def main(argv=None) -> None:
    parser = reporting_parser(__doc__)
    parser.add_argument("--readme", help="file whose block between the markers is replaced")
    run, options = parse_reporting(parser, argv)
    make_tables(Runs(run.suite, run.model, run.paths.results, options["seeds"]), options["readme"])


if __name__ == "__main__":
    main()
