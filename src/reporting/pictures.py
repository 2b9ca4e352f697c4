"""Contact sheets: pictures of the data sets, as they are and corrupted. They read images, and no results."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from src.datasets import loading
from src.datasets.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from src.reporting import style
from src.reporting.table import printed
from src.run import Run
from src.runtime.results import MissingResult
from src.vit_mini import mixture

COLUMNS, SIDE, GAP, SCALE = 20, 32, 2, 2  # pictures of a row, their side and distance in pixels, their enlargement
MARGIN, HEAD, DOTS = 210, 26, 200  # pixels left of and above the pictures, for names; pixels per inch


def contact(run: Run) -> Figure:
    """Pictures of every task, of the control set, and on the embedded suite of the pre-training mixture."""
    rows = _rows(run, (*run.tasks, run.control))
    if run.suite_row.drawn:
        rng = np.random.default_rng(run.seed)
        rows["pre-training"] = np.stack([mixture.sample(rng)[0] for _ in range(COLUMNS)])
    return contact_sheet(rows)


def contact_more(run: Run) -> Figure:
    """Pictures of the tasks that only larger benchmarks have. Raises MissingResult where the suite has none."""
    suite = run.suite_row
    if not (more := suite.tasks[len(suite.default) :]):
        raise MissingResult(f"suite {suite.name} has no tasks but those that `contact` shows")
    return contact_sheet(_rows(run, more))


def _rows(run: Run, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Validation pictures of data sets, COLUMNS of each."""
    rows = {}
    for name in names:
        images = loading.evaluation_pixels(run, name, "val", SIDE)
        rows[printed(name)] = images.pixels[of_many_classes(images.labels, COLUMNS)]
    return rows


def corruptions(run: Run) -> Figure:
    """Pictures of four tasks at each severity of every corruption, left to right; above, as they are."""
    of_each = COLUMNS // len(SEVERITIES)
    severities = SEVERITIES * of_each
    tasks = np.repeat(run.tasks[:of_each], len(SEVERITIES))
    clean = np.stack([loading.evaluation_pixels(run, task, "test", SIDE).pixels[0] for task in tasks])
    rows = {"clean": clean}
    for name in CORRUPTIONS:
        shown = [corrupt(picture[None], name, severity, [run.seed])[0] for picture, severity in zip(clean, severities)]
        rows[printed(name)] = np.stack(shown)
    return contact_sheet(rows, [str(severity) for severity in severities])


def of_many_classes(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of `count` examples, spread over the classes, each class first come first shown."""
    order = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    picked: list[int] = []
    turn = 0
    while len(picked) < min(count, len(labels)):
        ready = [indices[turn] for indices in order if turn < len(indices)]
        wanted = count - len(picked)
        if len(ready) > wanted:
            ready = [ready[i] for i in np.linspace(0, len(ready) - 1, wanted).round().astype(int)]
        picked += ready
        turn += 1
    return np.array(picked)


def contact_sheet(rows: Mapping[str, np.ndarray], heads: Sequence[str] = ()) -> Figure:
    """Rows of pictures with their names. rows: name -> uint8 (n, SIDE, SIDE, 3). heads: a text above each column."""
    step = (SIDE + GAP) * SCALE
    above = HEAD if heads else 0
    width, height = MARGIN + COLUMNS * step, above + len(rows) * step
    sheet = np.full((height, width, 3), 255, np.uint8)
    for line, pictures in enumerate(rows.values()):
        for column, picture in enumerate(pictures):
            top, left = above + line * step, MARGIN + column * step
            sheet[top : top + SIDE * SCALE, left : left + SIDE * SCALE] = picture.repeat(SCALE, 0).repeat(SCALE, 1)
    with style.styled():
        fig = plt.figure(figsize=(width / DOTS, height / DOTS))
        fig.set_layout_engine("none")
        axes = fig.add_axes((0, 0, 1, 1))
        axes.imshow(sheet, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        for line, name in enumerate(rows):
            axes.text(8, above + line * step + SIDE * SCALE / 2, name, va="center", fontsize=8)
        for column, text in enumerate(heads):
            middle = MARGIN + column * step + SIDE * SCALE / 2
            axes.text(middle, above - 5, text, ha="center", va="baseline", fontsize=7)
    return fig


PICTURES: dict[str, Callable[[Run], Figure]] = {
    "contact": contact,
    "contact_more": contact_more,
    "corruptions": corruptions,
}
