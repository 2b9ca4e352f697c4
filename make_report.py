"""One page that answers "does it hold?", from results: claims, methods, curves, maps and figures. Loads no model.

    python make_report.py                                   # mini
    python make_report.py --results reproduced
    python make_report.py --suite vision --model ViT-B-32

Writes results/<suite>/report.html, which opens from disk and loads nothing, and results/<suite>/README.md, an index of
every figure and table. A section whose results are missing says what makes them. The figures of the page are those that
make_figures.py wrote, so run that first.
"""

from collections.abc import Sequence

from src.args import parse_reporting, reporting_parser
from src.runtime.program import exit_on_user_error


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    run, options = parse_reporting(reporting_parser(__doc__), argv)
    from src.reporting.report.page import make_report  # here, so that --help does not wait for pandas
    from src.reporting.runs import Runs

    make_report(Runs(run.suite, run.model, run.paths.results, options["seeds"]))


if __name__ == "__main__":
    main()
