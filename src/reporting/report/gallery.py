"""The figures that make_figures.py wrote, as pictures inside the page."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from src.reporting.captions import caption
from src.reporting.figures import FIGURES, PICTURES
from src.reporting.runs import Runs

WIDTH, QUALITY = 1240, 72  # pixels, and of WebP: the page stays small, and the files beside it are exact
CHARTS = {  # figures that the page has as charts
    "addition", "claims", "methods", "adaptation",
    "fig03_disentanglement", "fig10_disentanglement_linear", "fig06_eigenfunctions",
    "fig14_eigenfunctions_other_pairs", "fig15_eigenfunctions_random_init",
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """file: beside the page. uri: the picture itself; width, height: of it, in pixels."""

    name: str
    caption: str
    file: Path
    uri: str
    width: int
    height: int


def written(runs: Runs) -> dict[str, Path]:
    """Name of a figure -> its PNG, of those that there are, contact sheets first."""
    files = {name: runs.paths.figures() / f"{runs.stem(name)}.png" for name in (*PICTURES, *FIGURES)}
    return {name: file for name, file in files.items() if file.exists()}


def gallery(runs: Runs) -> list[Picture]:
    return [_picture(name, file) for name, file in written(runs).items() if name not in CHARTS]


def _picture(name: str, file: Path) -> Picture:
    with Image.open(file) as image:
        picture = image.convert("RGB")
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    picture.save(packed, "WEBP", quality=QUALITY, method=4)
    uri = f"data:image/webp;base64,{base64.b64encode(packed.getvalue()).decode()}"
    return Picture(name, caption(name), file, uri, picture.width, picture.height)
