"""Charts of methods that adapt: accuracy along the steps, mask and λ in panels of their own."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from src.reporting.concrete.figures import PANELS, courses
from src.reporting.methods import Row
from src.reporting.plots import method_looks
from src.reporting.report import charts
from src.reporting.report.charts import Chart
from src.reporting.runs import Runs
from src.runtime.results import MissingResult

METHOD = "concrete_layer_wise_adamerging"  # whose command is named where nothing is there


def adaptation_curves(runs: Runs) -> list[Chart]:
    """Empty where no method was watched."""
    try:
        by_row = courses(runs, "watched", METHOD)
    except MissingResult:
        return []
    looks = method_looks(runs, by_row)
    drawn = []
    for title, phases in PANELS.items():
        steps = [point for row, of_row in by_row.items() for point in _points(row, of_row, phases)]
        methods = list(dict.fromkeys(point["method"] for point in steps))
        if methods:
            colours = {row.title(): looks[row]["color"] for row in by_row if row.title() in methods}
            ends = [next(p["value"] for p in reversed(steps) if p["method"] == name) for name in methods]
            last = ", ".join(f"{name} {value:.1f} %" for name, value in zip(methods, ends))
            drawn.append(
                Chart(
                    f"course-{phases[0]}",
                    title,
                    f"{title}: mean validation accuracy over the tasks, by step. At the end: {last}.",
                    charts.courses(colours),
                    around=(71 + 16 * len(colours),) * 2,
                    data={"steps": steps},
                )
            )
    return drawn


def _points(row: Row, of_row: Sequence[Any], phases: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Mean over seeds and its sd, from the start of a phase."""
    watched = [course["watched"] for course in of_row]
    points = [index for index, phase in enumerate(watched[0]["phase"]) if phase in phases]
    for index in points:
        values = [100 * float(np.mean([of_task[index] for of_task in w["accuracy"].values()])) for w in watched]
        mean, sd = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        yield {
            "method": row.title(),
            "step": watched[0]["step"][index] - watched[0]["step"][points[0]],
            "value": mean,
            "low": mean - sd,
            "high": mean + sd,
        }
