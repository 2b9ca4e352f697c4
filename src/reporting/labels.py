"""Names beside points of a figure, where they cover no point and no other name."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from src.reporting import style

Point = tuple[float, float]
DISTANCES = (4, 10, 18, 28)  # points from a mark to its name, nearest first
NEAR = 10  # from here on a line leads to it
RADIUS, WIDE = 3.5, 6.5  # points around a mark that are kept free; of others, lest a name be taken for theirs
SIDES = {-1: ("right", "top"), 0: ("center", "center"), 1: ("left", "bottom")}  # of a text, by where it stands


def name_points(
    axes: Axes,
    names: Mapping[str, Point],
    marks: Sequence[tuple[float, float, float]],
    crowded: bool = False,
    **look: Any,
) -> None:
    """Write each name at the nearest place by its point that is free and inside the axes.

    marks: what names must not cover, (x, lower y, upper y) of every point with its error bar. crowded: leave a name out
    that has no free place beside its point alone; else it stands where it covers least. The figure was drawn (without
    rendering) with its other parts and limits: their places on the page are taken from it.
    """
    figure: Any = axes.figure
    pixel = figure.dpi / 72
    ends = [axes.transData.transform([(x, low), (x, high)]) for x, low, high in marks]
    taken: list[Bbox] = []
    inside = axes.get_window_extent()
    for name, point in names.items():
        text = axes.annotate(name, point, (0, 0), textcoords="offset points", **look)
        text.set_in_layout(False)  # else a long name makes its panel narrow
        text.set_path_effects([withStroke(linewidth=1.5, foreground="white")])
        best = None
        own = [x == point[0] and low <= point[1] <= high for x, low, high in marks]
        free = [RADIUS if is_own or not crowded else WIDE for is_own in own]
        avoided = [*taken, *(Bbox(pair).padded(radius * pixel) for pair, radius in zip(ends, free))]
        for offset, (ha, va) in _places(DISTANCES[:1] if crowded else DISTANCES):
            text.set(position=offset, ha=ha, va=va)
            box = text.get_window_extent()
            outside = 0 if inside.contains(*box.min) and inside.contains(*box.max) else box.width * box.height
            covered = outside + sum(_shared(box, other) for other in avoided)
            if best is None or covered < best[0]:
                best = covered, offset, (ha, va), box
            if not covered:
                break
        assert best is not None
        covered, offset, (ha, va), box = best
        if covered and crowded:
            text.remove()
            continue
        text.set(position=offset, ha=ha, va=va)
        taken.append(box)
        if np.hypot(*offset) > NEAR:
            line: dict[str, Any] = dict(arrowstyle="-", color=style.GREY, lw=0.5, shrinkA=0, shrinkB=RADIUS)
            axes.annotate("", point, offset, textcoords="offset points", arrowprops=line).set_in_layout(False)


def _places(distances: Sequence[float]) -> Iterator[tuple[Point, tuple[str, str]]]:
    """Offsets from a point with the alignment of a text there, nearest first; right of it before left."""
    for distance in distances:
        for x, y in product((1, -1, 0), (1, -1, 0)):
            if x or y:
                yield (x * distance, y * distance), (SIDES[x][0], SIDES[y][1])


def _shared(one: Bbox, other: Bbox) -> float:
    both = Bbox.intersection(one, other)
    return both.width * both.height if both else 0.0
