"""The page, assembled from its sections and written whole."""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from src.experiments.registry import ADDITION, DISENTANGLEMENT, NTK
from src.modes import EVALUATED, MODES
from src.reporting.published import published_model
from src.reporting.report import charts
from src.reporting.report.adapting import METHOD, adaptation_curves
from src.reporting.report.charts import NARROW, Chart
from src.reporting.report.commands import commands
from src.reporting.report.entries import COEFFICIENTS, MEASURES, entries
from src.reporting.report.explorer import explorer
from src.reporting.report.forest import Forest, forest
from src.reporting.report.gallery import gallery
from src.reporting.report.index import write_index
from src.reporting.report.maps import REDUCTION, error_maps, kernel_clouds
from src.reporting.report.setup import setup
from src.reporting.runs import Runs
from src.reporting.table import write_text
from src.reporting.verdict import EQUAL, FAILS, HOLDS, NOT_RUN, UNDECIDED
from src.runtime.paths import ROOT, from_root

FOLDER = Path(__file__).parent
SECTIONS = (
    ("ran", "What was run"),
    ("claims", "Claims, tested"),
    ("methods-compared", "Methods compared"),
    ("by-task", "Method by task"),
    ("alpha", "Move α"),
    ("disentanglement", "Disentanglement"),
    ("kernel", "Tangent kernel"),
    ("adaptation", "Adaptation"),
    ("storage", "Storage"),
    ("figures", "Figures"),
    ("commands", "Commands"),
)
SLUGS = {HOLDS: "holds", FAILS: "fails", EQUAL: "equal", UNDECIDED: "undecided", NOT_RUN: "notrun"}
COLUMNS = (  # of the table of methods: heading, and how it is sorted; entries.py has the values, page.js the row
    ("method", "text"),
    ("task vectors", "text"),
    ("accuracy, %", "number"),
    ("95 % over seeds", "number"),
    ("worst task", "number"),
    ("published", "number"),
    ("chosen", "text"),
    ("needs", "text"),
    ("result", "text"),
    ("storage, models", "number"),
    ("seconds", "number"),
    ("", "text"),
)


def make_report(runs: Runs) -> None:
    """Write the page of a model, and the index of its folder.

    Raises UsageError, and writes nothing, where there are no results; ResultError for a result unlike its schema.
    """
    runs.check()
    ledger = forest(runs)
    page, index = page_of(runs, ledger), runs.paths.report().with_stem(runs.stem("report"))
    write_text(index, page)
    print(f"report: {len(page.encode()) / 1e6:.1f} MB -> {index}, {write_index(runs, ledger)}")


def page_of(runs: Runs, ledger: Forest) -> str:
    """The page as one text that needs no other file."""
    methods, curves = entries(runs), explorer(runs)
    maps, clouds, courses = error_maps(runs), kernel_clouds(runs), adaptation_curves(runs)
    modes = [MODES[mode] for mode in EVALUATED if any(mode in of_method for of_method in curves.values())]
    drawn = [*(_of_methods() if methods else []), *maps, *clouds, *courses]
    if curves:
        drawn += [_curves(mode.name, mode.title, mode.colour) for mode in modes]
    named = {chart.name: chart for chart in drawn}
    sizes = sorted({entry["tasks"] for entry in methods})
    return _environment().get_template("page.html.j2").render(
        runs=runs,
        sections=SECTIONS,
        slug=SLUGS.__getitem__,
        forest=ledger,
        counts=ledger.counts(),
        differences=sum(len(claim.bars) for claim in ledger.claims),
        corrected_text=", ".join(f"{n} {verdict}" for verdict, n in ledger.counts(corrected=True).items() if n),
        setup=setup(runs),
        methods=methods,
        explorer=curves,
        modes=modes,
        charts=named,
        error_maps=maps,
        clouds=clouds,
        courses=courses,
        pictures=gallery(runs),
        made=commands(runs),
        published_model=published_model(runs.model),
        folder=_portable(runs.results) / runs.suite,
        choices={
            "modes": [(mode.name, mode.title) for mode in modes if any(e["mode"] == mode.name for e in methods)],
            "tasks": [(size, size) for size in sizes],
            "usual": len(runs.main_tasks) if len(runs.main_tasks) in sizes else sizes[-1] if sizes else 0,
            "measures": list(MEASURES.items()),
            "coefficients": list(COEFFICIENTS.items()),
            "columns": COLUMNS,
        },
        commands_for=_commands(runs),
        css=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup((FOLDER / "page.js").read_text(encoding="utf-8")),
        library=Markup(_library()),
        data=Markup(_json(_data(methods, curves, drawn, modes))),
    )  # fmt: skip


def _of_methods() -> list[Chart]:
    """The charts that page.js fills with the rows of the table."""
    return [
        Chart(
            "intervals",
            "Mean test accuracy, with one dot a seed",
            "The methods of the table below, best first, with intervals over seeds and over test images.",
            charts.intervals(),
            around=(86, 101),
        ),
        Chart(
            "heat",
            "Test accuracy of every task",
            "Methods in rows, best first, tasks in columns. The same numbers stand in the tables beside this page.",
            charts.heat_map(),
            around=(150, 174),
        ),
        Chart(
            "storage",
            "Mean test accuracy by storage",
            "The methods of the table above, accuracy upwards, storage to the right.",
            charts.storage(),
            around=(87, 138),
        ),
    ]


def _curves(mode: str, title: str, colour: str) -> Chart:
    return Chart(f"curves-{mode}", title, f"Validation accuracy of every task along α, {title}; the table below has "
                 "the numbers at the slider's α.", charts.curves(colour), around=(62, 62))  # fmt: skip


def _commands(runs: Runs) -> dict[str, str]:
    """What makes the results of a section that has none."""
    seeds, tasks, modes = runs.command_seeds, runs.main_tasks, runs.modes(EVALUATED)
    first = seeds[0]
    return {
        "methods": runs.merge_command(("method=sum",), tasks),
        "alpha": "\n".join(runs.command(ADDITION, mode, first) for mode in modes),
        "disentanglement": "\n".join(runs.command(DISENTANGLEMENT, mode, first) for mode in modes),
        "kernel": runs.command(NTK, REDUCTION, first),
        "adaptation": runs.merge_command((f"method={METHOD}", "eval_every=10"), tasks),
        "figures": f"python make_figures.py --model={runs.model}",
    }


def _data(
    methods: list[dict[str, Any]], curves: Mapping[str, Any], drawn: Iterable[Chart], modes: Iterable[Any]
) -> dict[str, Any]:
    """What page.js reads."""
    return {
        "methods": methods,
        "explorer": curves,
        "modes": [{"name": mode.name, "title": mode.title, "short": mode.short} for mode in modes],
        "narrow": NARROW,
        "charts": {chart.name: {"spec": chart.spec, "around": chart.around, "canvas": chart.canvas} for chart in drawn},
    }


def _json(value: Any) -> str:
    """Compact, and safe inside a script element."""
    text = json.dumps(charts.rounded(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script, which vl-convert carries."""
    bundle: Callable[[], str] = vl_convert.javascript_bundle  # type: ignore[assignment]  # its stub lacks the default
    return bundle().replace("</script", "<\\/script")


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _portable(folder: Path) -> Path:
    """Of a folder in the project, its place in it: the page ships."""
    whole = from_root(folder)
    return whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else folder
