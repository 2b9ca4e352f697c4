"""All figures, made from results and written. Loads no model; contact sheets read images."""

from collections.abc import Sequence

from src.reporting import style
from src.reporting.papers import offered
from src.reporting.pictures import PICTURES
from src.reporting.plots import Drawing
from src.reporting.runs import Runs
from src.run import Run
from src.runtime import results
from src.runtime.messages import UsageError, nearest

FIGURES: dict[str, Drawing] = {drawing.name: drawing for drawing in offered("figures")}


def make_figures(runs: Runs, run: Run, names: Sequence[str] = (), skip_missing: bool = False) -> None:
    """Write the named figures, by default every figure whose results are there, and name the command for the others.

    run: whose images a contact sheet shows. skip_missing: named figures, too, may lack their results. Raises UsageError
    for an unknown name, and where there are no results; MissingResult, when the others are drawn, for named figures
    whose results are not there.
    """
    known = [*FIGURES, *PICTURES]
    for name in names:
        if name not in known:
            raise UsageError(f"figure {name!r} does not exist{nearest(name, known)} Known: {', '.join(known)}")
    if not names or any(name in FIGURES for name in names):
        runs.check()
    absent = []
    for name in names or FIGURES:
        try:
            drawn = PICTURES[name](run) if name in PICTURES else FIGURES[name](runs)
        except results.MissingResult as missing:
            print(f"{name}: skipped: {missing}")
            absent.append(name)
            continue
        print(f"{name} -> {', '.join(map(str, style.save(drawn, runs.paths.figures(), runs.stem(name))))}")
    if names and absent and not skip_missing:
        raise results.MissingResult(
            f"expected the results of every figure that is named, found none for {', '.join(absent)}: see above"
        )
