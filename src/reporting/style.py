"""How every figure looks, and how it is saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: figures go to files, also where there is no display

import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.runtime.files import replacing

# Okabe and Ito's palette, which the colour-blind can tell apart; yellow is left out, being too pale on white.
BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
BLACK, GREY, PALE = "#222222", "#767676", "#D9D9D9"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, GREY)
# Two of Paul Tol's beside them, for methods that are merged without images: as many colours as the papers have methods.
METHOD_PALETTE = (GREY, "#882255", SKY, GREEN, PURPLE, VERMILION, "#332288", BLUE, ORANGE)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DASHED, DOTTED = (0, (4, 1.8)), (0, (1, 1.5))
ERRORS = "YlGnBu"  # light where the error is small, and red lines stand out on all of it
WIDTH = 7.2  # inches: a page's text

PARAMETERS: dict[Any, Any] = {
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=PALETTE),
    "grid.color": PALE,
    "grid.linewidth": 0.5,
    "xtick.color": BLACK,
    "ytick.color": BLACK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "pdf.fonttype": 42,  # text stays text
}


@contextmanager
def styled() -> Iterator[None]:
    with plt.rc_context(PARAMETERS):
        yield


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write PNG and PDF whole, and close the figure. The files of equal figures are equal."""
    written = []
    with styled():
        for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
            target = folder / f"{name}.{kind}"
            with replacing(target) as temporary:
                figure.savefig(temporary, format=kind, dpi=200, metadata=metadata)
            written.append(target)
    plt.close(figure)
    return written


def outlined(axes: Axes) -> None:
    """All four borders and no grid, for pictures and heat maps."""
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(True)
