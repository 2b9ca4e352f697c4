"""The papers' figures from results. Loads no model.

    python make_figures.py                                  # every figure whose results are there
    python make_figures.py fig03_disentanglement addition
    python make_figures.py contact                          # pictures of every task; made only when it is named
    python make_figures.py --suite vision --model ViT-B-32

Writes results/<suite>/figures/*.png and .pdf. A figure whose results are missing is skipped, with the command that
makes them; one that is named and cannot be drawn makes the exit status 1, or with --skip-missing is skipped too.
"""

from collections.abc import Sequence

from src.args import parse_reporting, reporting_parser
from src.reporting.captions import CAPTIONS
from src.runtime.program import exit_on_user_error


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = reporting_parser(__doc__, images=True)
    parser.add_argument("names", nargs="*", metavar="FIGURE", help=", ".join(CAPTIONS))
    parser.add_argument("--skip-missing", action="store_true", help="skip figures without results, named ones too")
    run, options = parse_reporting(parser, argv)
    from src.reporting.figures import make_figures  # here, so that --help does not wait for torch
    from src.reporting.runs import Runs

    runs = Runs(run.suite, run.model, run.paths.results, options["seeds"])
    make_figures(runs, run, options["names"], options["skip_missing"])


if __name__ == "__main__":
    main()
