"""The papers' tables and the ledger of claims from results, beside the published numbers. Loads no model.

    python make_tables.py                                   # mini
    python make_tables.py --suite vision --model ViT-B-32
    python make_tables.py --readme README.md docs/results.md    # also put them between the markers of these pages
    python make_tables.py --errors se                       # mean ± standard error, in the place of the sd
    python make_tables.py --compare tsv_m iso_c             # two merging methods, task by task, with intervals
    python make_tables.py --compare sum@linear "TIES"       # by the label of a result or by title, @mode

Writes results/<suite>/tables/*.md, .tex and .csv, results/<suite>/claims.md, and results/<suite>/accuracies.csv: every
number of every result, one a row, for tables and plots of your own. Seed 0, on which settings were chosen, is left out
of tables and claims where there are others. A missing result leaves an empty cell, and below the table stands the
command that fills it. --compare writes nothing of this: it prints a table, and writes it to --out.
"""

from collections.abc import Sequence
from pathlib import Path

from src.args import parse_reporting, reporting_parser
from src.ranges import ERRORS
from src.runtime.program import exit_on_user_error


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = reporting_parser(__doc__)
    parser.add_argument("--readme", nargs="+", default=[], metavar="PAGE", help="whose block of tables is replaced")
    parser.add_argument("--errors", choices=ERRORS, default="sd", help="after ±: of a seed, or of the mean")
    parser.add_argument("--compare", nargs=2, metavar=("ONE", "OTHER"), help="labels of merging results, or titles")
    parser.add_argument("--out", type=Path, metavar="FILE", help="of --compare: .md, .tex or .csv")
    run, options = parse_reporting(parser, argv)
    from src.reporting.runs import Runs  # here, so that --help does not wait for pandas
    from src.reporting.tables import make_or_compare

    runs = Runs(run.suite, run.model, run.paths.results, options["seeds"])
    make_or_compare(runs, *(options[name] for name in ("readme", "errors", "compare", "out")))


if __name__ == "__main__":
    main()
