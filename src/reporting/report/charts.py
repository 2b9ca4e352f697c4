"""Charts of the page as Vega-Lite specifications, made with Altair; page.js draws them in the theme of the reader.

Colours are those of style.py; page.css and page.js know a lighter one of each for the dark theme.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt

from src.reporting import style

DIGITS = 4  # of numbers in the page
STEP = 22  # pixels of a row of a chart of rows
KINDS = ("merged without images", "uses images")
PANEL = 230  # pixels: the height of one of several small charts
NARROW = 520  # pixels of a chart's element; page.js is told
LETTERS = 24  # of a name beside a narrow chart, the first and the last ones: methods often differ in the last


@dataclass(frozen=True)
class Chart:
    """name: of the element. description: what a reader who does not see it is told.

    around: pixels of height that axes and legends take, in a wide element and in a narrow one; page.js keeps the room.
    canvas: for charts of very many marks. data: rows under the names by which the specification knows them; names
    without rows here are filled by page.js.
    """

    name: str
    title: str
    description: str
    chart: Any
    around: tuple[int, int]
    canvas: bool = False
    data: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    @property
    def spec(self) -> dict[str, Any]:
        """The Vega-Lite specification, as wide as its element."""
        with alt.data_transformers.enable("default", max_rows=None):
            spec = self.chart.to_dict(validate=True)
        spec.pop("config", None)
        return rounded(spec | {"description": self.description, "datasets": dict(self.data)})


def rounded(value: Any) -> Any:
    """The same with floats of DIGITS decimals; nan, which JSON does not have, becomes None."""
    if isinstance(value, float):
        return None if value != value else round(value, DIGITS)
    if isinstance(value, Mapping):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(entry) for entry in value]
    return value


def named(name: str) -> alt.NamedData:
    return alt.NamedData(name=name)


def wide(chart: Any, height: int | dict[str, int] = PANEL) -> Any:
    return chart.properties(width="container", height=height)


def _rows() -> alt.Y:
    """Methods, in the order of the data."""
    short = f"containerSize()[0] < {NARROW} ? truncate(datum.label, {LETTERS}, 'center') : datum.label"
    return alt.Y("label:N", sort=None, title=None, axis=alt.Axis(ticks=False, domain=False, labelExpr=short))


def _by_kind() -> alt.Color:
    return alt.Color(
        "kind:N",
        scale=alt.Scale(domain=list(KINDS), range=[style.BLUE, style.PURPLE]),
        legend=alt.Legend(title=None, orient="top", symbolOpacity=1, symbolType="circle", symbolSize=70,
                          columns=alt.expr("width > 560 ? 2 : 1")),
    )  # fmt: skip


def intervals() -> Any:
    """Methods with their mean, one dot a seed, both intervals and the published number, in the order of the rows."""
    base = alt.Chart(named("methods")).encode(y=_rows())
    colour = _by_kind()
    x = alt.X("value:Q", title="test accuracy, %", scale=alt.Scale(zero=False, nice=False, padding=12))
    tooltip = [
        alt.Tooltip("label:N", title="method"),
        alt.Tooltip("value:Q", title="mean", format=".1f"),
        alt.Tooltip("sd:Q", title="sd over seeds", format=".1f"),
        alt.Tooltip("n:Q", title="seeds"),
        alt.Tooltip("spread:N", title="95 % over seeds"),
        alt.Tooltip("sampled:N", title="over images and seeds"),
        alt.Tooltip("published:Q", title="published", format=".1f"),
        alt.Tooltip("needs:N", title="needs"),
    ]
    over_images = base.mark_rule(strokeWidth=7, opacity=0.22).encode(x="ilow:Q", x2="ihigh:Q", color=colour)
    over_seeds = base.mark_rule(strokeWidth=1.6).encode(x="low:Q", x2="high:Q", color=colour)
    seeds = alt.Chart(named("seeds")).mark_circle(size=16, opacity=0.75).encode(
        y=alt.Y("label:N", sort=None), x="value:Q", color=colour,
        tooltip=[alt.Tooltip("label:N", title="method"), "seed:O", alt.Tooltip("value:Q", format=".1f")],
    )  # fmt: skip
    theirs = base.mark_point(shape="diamond", size=52, filled=False, color=style.BLACK, strokeWidth=1.1).encode(
        x="theirs:Q",  # the mean where nothing is published: an axis of no numbers has no ends
        opacity=alt.condition("isValid(datum.published)", alt.value(1), alt.value(0)),
        tooltip=tooltip,
    )
    mean = base.mark_point(filled=True, size=64, stroke="white", strokeWidth=0.8, opacity=1).encode(
        x=x, color=colour, tooltip=tooltip
    )
    return wide(alt.layer(over_images, over_seeds, seeds, theirs, mean), {"step": STEP})


def heat_map() -> Any:
    """Methods x tasks."""
    slanted = alt.expr("width > 430 ? -40 : -90")
    base = alt.Chart(named("heat")).encode(
        y=_rows(),
        x=alt.X(
            "task:N",
            sort=None,
            title=None,
            axis=alt.Axis(orient="top", labelAngle=slanted, ticks=False, domain=False),
        ),
    )
    cells = base.mark_rect().encode(
        color=alt.Color(
            "value:Q",
            scale=alt.Scale(scheme="yellowgreenblue"),
            legend=alt.Legend(title="%", orient="bottom", gradientLength=alt.expr("min(180, width - 12)")),
        ),
        tooltip=[
            alt.Tooltip("label:N", title="method"),
            "task:N",
            alt.Tooltip("value:Q", title="%", format=".1f"),
            alt.Tooltip("sd:Q", title="sd over seeds", format=".1f"),
        ],
    )
    numbers = base.mark_text(fontSize=10.5, opacity=alt.expr("width > 430 ? 1 : 0")).encode(
        text=alt.Text("value:Q", format=".0f"),
        color=alt.condition("datum.high", alt.value("#fefefe"), alt.value("#1a1a1b")),
    )
    return wide(alt.layer(cells, numbers), {"step": STEP})


def storage() -> Any:
    """Accuracy against storage; names stand beside the points, or numbers in a narrow chart, whose names are a list."""
    base = alt.Chart(named("storage")).encode(
        x=alt.X(
            "storage:Q", title="storage, merged models (log scale)",
            scale=alt.Scale(type="log", nice=False, padding=24),
            axis=alt.Axis(values=[0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 20], format="~g"),
        ),
        y=alt.Y("value:Q", title="test accuracy, %", scale=alt.Scale(zero=False, nice=False, padding=14)),
    )  # fmt: skip
    points = base.mark_point(filled=True, size=75, opacity=0.8).encode(
        color=_by_kind(),
        shape=alt.Shape(
            "model:N",
            scale=alt.Scale(domain=["one model", "a model per task"], range=["circle", "square"]),
            legend=alt.Legend(title=None, orient="top", symbolOpacity=1, columns=alt.expr("width > 560 ? 2 : 1")),
        ),
        tooltip=[
            alt.Tooltip("label:N", title="method"),
            alt.Tooltip("value:Q", title="accuracy, %", format=".1f"),
            alt.Tooltip("storage:Q", title="storage, merged models", format=".2f"),
            alt.Tooltip("needs:N", title="needs"),
        ],
    )
    narrow, black = f"containerSize()[0] < {NARROW}", alt.value(style.BLACK)
    words: dict[str, Any] = dict(fontSize=10.5, text=alt.expr(f"{narrow} ? '' : datum.names"))
    number: dict[str, Any] = dict(fontSize=10.5, text=alt.expr(f"{narrow} ? datum.number : ''"))
    there = base.transform_filter("datum.names").encode(color=black)
    right = there.transform_filter("datum.storage < 1.5").mark_text(align="left", dx=9, **words)
    left = there.transform_filter("datum.storage >= 1.5").mark_text(align="right", dx=-9, **words)
    numbers = there.mark_text(align="left", dx=7, **number)
    return wide(alt.layer(points, right, left, numbers), 340)


def curves(colour: str) -> Any:
    """Validation accuracy of every task and the mean along α, the slider's α and the chosen one."""
    alpha = alt.param(name="alpha", value=0.3)
    x = alt.X("alpha:Q", title="α", scale=alt.Scale(nice=False))
    y = alt.Y("value:Q", title="validation accuracy, %", scale=alt.Scale(domain=[0, 100]))
    tooltip = [
        "task:N",
        alt.Tooltip("alpha:Q", title="α", format=".3~f"),
        alt.Tooltip("value:Q", title="%", format=".1f"),
    ]
    lines = alt.Chart(named("curves"))
    of_tasks = lines.transform_filter("datum.task != 'mean'")
    tasks = of_tasks.mark_line(strokeWidth=1, opacity=0.5, color=style.GREY).encode(x=x, y=y, detail="task:N")
    means = lines.transform_filter("datum.task == 'mean'").mark_line(strokeWidth=3, color=colour).encode(x=x, y=y)
    at = lines.transform_filter("datum.at").mark_circle(size=46, opacity=1).encode(
        x=x, y=y, tooltip=tooltip,
        color=alt.condition("datum.task == 'mean'", alt.value(colour), alt.value(style.GREY)),
        size=alt.condition("datum.task == 'mean'", alt.value(110), alt.value(34)),
    )  # fmt: skip
    hover = lines.mark_circle(size=60, opacity=0).encode(x=x, y=y, tooltip=tooltip)
    chosen = alt.Chart(named("chosen")).mark_rule(strokeDash=[4, 3], color=colour, strokeWidth=1.4).encode(
        x="alpha:Q", tooltip=[alt.Tooltip("alpha:Q", title="chosen α, mean over seeds", format=".3~f")]
    )  # fmt: skip
    moved = alt.Chart(named("chosen")).transform_calculate(now="alpha")
    slider = moved.mark_rule(color=style.BLACK, strokeWidth=1.2).encode(x="now:Q")
    return wide(alt.layer(tasks, means, chosen, slider, at, hover).add_params(alpha), 260)


def error_map(highest: float, names: Sequence[str]) -> Any:
    """ξ over two coefficients, the search space outlined."""
    scale, axis = alt.Scale(nice=False, zero=False), alt.Axis(grid=False, tickCount=7)
    cells = alt.Chart(named("cells")).mark_rect().encode(
        x=alt.X("left:Q", title=f"α of {names[0]}", scale=scale, axis=axis),
        x2="right:Q",
        y=alt.Y("low:Q", title=f"α of {names[1]}", scale=scale, axis=axis),
        y2="high:Q",
        color=alt.Color("error:Q", scale=alt.Scale(scheme="yellowgreenblue", domain=[0, highest]),
                        legend=alt.Legend(title="ξ, %", orient="right", gradientLength=150)),
        tooltip=[
            alt.Tooltip("first:Q", title=f"α of {names[0]}", format=".2~f"),
            alt.Tooltip("second:Q", title=f"α of {names[1]}", format=".2~f"),
            alt.Tooltip("error:Q", title="ξ, %", format=".1f"),
        ],
    )  # fmt: skip
    outline = alt.Chart(named("box")).mark_rect(
        fillOpacity=0, stroke="#E3120B", strokeWidth=1.6
    ).encode(x="a:Q", x2="b:Q", y="a:Q", y2="b:Q")  # fmt: skip
    return wide(alt.layer(cells, outline))


def clouds(colours: Mapping[str, str]) -> Any:
    """A strip of points for each group of images with its mean, on a logarithmic axis."""
    base = alt.Chart(named("images")).encode(
        x=alt.X("group:N", sort=list(colours), title=None, axis=alt.Axis(labelAngle=0, ticks=False)),
        y=alt.Y("energy:Q", title="local energy", scale=alt.Scale(type="log"), axis=alt.Axis(tickCount=5, format="~g")),
    )
    points = base.mark_circle(size=22, opacity=0.55).encode(
        xOffset=alt.XOffset("jitter:Q", scale=alt.Scale(domain=[-1, 1])),
        color=alt.Color("group:N", scale=alt.Scale(domain=list(colours), range=list(colours.values())), legend=None),
        tooltip=["group:N", alt.Tooltip("energy:Q", format=".3~g"), "seed:O"],
    )
    means = alt.Chart(named("means")).mark_point(shape="stroke", size=2600, color=style.BLACK, strokeWidth=2.4).encode(
        x=alt.X("group:N", sort=list(colours)), xOffset="jitter:Q", y="energy:Q",
        tooltip=["group:N", alt.Tooltip("energy:Q", title="mean", format=".3~g")],
    )  # fmt: skip
    return wide(alt.layer(points, means))


def courses(colours: Mapping[str, str]) -> Any:
    """Mean validation accuracy along the steps of an adaptation; a click on the legend picks a method."""
    columns = alt.expr("width > 560 ? 2 : 1")
    pick = alt.selection_point(name="pick", fields=["method"], bind="legend")
    base = alt.Chart(named("steps")).encode(
        x=alt.X("step:Q", title="step", scale=alt.Scale(nice=False)),
        color=alt.Color(
            "method:N", sort=list(colours),
            scale=alt.Scale(domain=list(colours), range=list(colours.values())),
            legend=alt.Legend(title=None, orient="bottom", symbolOpacity=1, columns=columns, labelLimit=340),
        ),
    )  # fmt: skip
    dim = alt.condition(pick, alt.value(1), alt.value(0.12))
    faint = alt.condition(pick, alt.value(0.14), alt.value(0.02))
    band = base.mark_area().encode(y=alt.Y("low:Q", scale=alt.Scale(zero=False)), y2="high:Q", opacity=faint)
    line = base.mark_line(strokeWidth=2).encode(
        y=alt.Y("value:Q", title="mean validation accuracy, %", scale=alt.Scale(zero=False)), opacity=dim
    )
    points = base.mark_circle(size=50).encode(
        y="value:Q", opacity=dim,
        tooltip=["method:N", "step:Q", alt.Tooltip("value:Q", title="accuracy, %", format=".1f")],
    )  # fmt: skip
    return wide(alt.layer(band, line, points).add_params(pick), 300)
