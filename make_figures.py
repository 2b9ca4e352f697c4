"""The papers' figures from results. Loads no model.

    python make_figures.py                                  # every figure whose results are there
    python make_figures.py fig03_disentanglement addition
    python make_figures.py contact                          # pictures of every task; made only when it is named
    python make_figures.py --suite vision --model ViT-B-32

Writes results/<suite>/figures/*.png and .pdf. A figure whose results are missing is skipped, with the command that
makes them.
"""

from pathlib import Path

from src.reporting import figures, style
from src.reporting.runs import parse_runs, reporting_parser
from src.run import Run
from src.runtime import results
from src.runtime.messages import nearest
from src.runtime.paths import Places
from src.runtime.program import exit_on_user_error


@exit_on_user_error
def main(argv=None) -> None:
    parser = reporting_parser(__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="FIGURE", help=f"{', '.join([*figures.FIGURES, *figures.PICTURES])}"
    )
    parser.add_argument("--seed", type=int, default=1, help="whose pictures the contact sheet shows")
    parser.add_argument("--data-location", type=Path, default=Path("data"), help="folder of the real data sets")
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"), help="drawn images")
    args = parser.parse_args(argv)
    runs = parse_runs(parser, args)
    places = Places(cache=args.cache_dir, data=args.data_location)
    run = Run.of(runs.model, runs.suite, seed=args.seed, places=places)
    known = figures.FIGURES | figures.PICTURES
    for name in args.names:
        if name not in known:
            parser.error(f"figure {name!r} does not exist{nearest(name, list(known))} Known: {', '.join(known)}")
    for name in args.names or figures.FIGURES:
        try:
            drawn = figures.PICTURES[name](run) if name in figures.PICTURES else figures.FIGURES[name](runs)
        except results.MissingResult as missing:
            print(f"{name}: skipped: {missing}")
            continue
        print(f"{name} -> {', '.join(map(str, style.save(drawn, runs.paths.figures(), runs.stem(name))))}")


if __name__ == "__main__":
    main()
