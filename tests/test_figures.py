"""Every figure is drawn from made-up results; what is missing is skipped with the command that makes it."""

import numpy as np
import pytest
import synthetic_results
from matplotlib import pyplot as plt
from PIL import Image

import make_figures
from src.reporting import figures, style
from src.reporting.gather import Runs
from src.results import MissingResult


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic_results.write(tmp_path_factory.mktemp("figures"), seeds=(1, 2))


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_is_drawn(folder, name):
    drawn = figures.FIGURES[name](Runs("mini", "ViT-Mini", folder))
    drawn.draw_without_rendering()
    assert drawn.axes and any(axes.has_data() for axes in drawn.axes)
    plt.close(drawn)


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_says_what_it_misses(tmp_path, name):
    with pytest.raises(MissingResult, match="make (it|them) with: python "):
        figures.FIGURES[name](Runs("mini", "ViT-Mini", tmp_path))


def test_heat_maps_show_error_over_both_coefficients_and_the_box(folder):
    runs = Runs("mini", "ViT-Mini", folder)
    drawn = figures.FIGURES["fig10_disentanglement_linear"](runs)
    first = [record["pairs"][0] for record in runs.get("disentanglement_linear").values()]
    error = 100 * np.mean([pair["error"] for pair in first], 0)
    shown = drawn.axes[0].collections[0].get_array().reshape(13, 13)
    assert np.allclose(shown, error.T)  # a row for each α2
    box = drawn.axes[0].patches[0]
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (-1, -1, 2, 2)
    plt.close(drawn)


def test_the_program_writes_what_it_can_and_names_the_rest(folder, tmp_path, capsys):
    results = tmp_path / "results"
    (results / "mini").mkdir(parents=True)
    (results / "mini" / "ViT-Mini").symlink_to(folder / "mini" / "ViT-Mini")
    make_figures.main(["--results", str(results), "radar", "fig15_eigenfunctions_random_init"])
    out = capsys.readouterr().out
    assert "fig15_eigenfunctions_random_init: skipped" in out
    assert "python eval_ntk_localization.py --reduction=trace --model=ViT-Mini__init__ --seed=1" in out
    first = {path.name: path.read_bytes() for path in (results / "mini" / "figures").iterdir()}
    assert sorted(first) == ["radar.pdf", "radar.png"] and first["radar.pdf"].startswith(b"%PDF")
    make_figures.main(["--results", str(results), "radar"])
    assert {path.name: path.read_bytes() for path in (results / "mini" / "figures").iterdir()} == first


def test_an_unknown_figure_is_refused_with_the_nearest(folder, capsys):
    with pytest.raises(SystemExit):
        make_figures.main(["--results", str(folder), "raddar"])
    assert "did you mean radar?" in capsys.readouterr().err


def test_contact_sheet_shows_the_pictures_as_they_are(tmp_path):
    random = np.random.default_rng(0)
    rows = {name: random.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8) for name in ("one", "two words")}
    png, _ = style.save(figures.contact_sheet(rows), tmp_path, "contact")
    sheet = np.asarray(Image.open(png).convert("RGB"))
    shown = sheet[68 : 68 + 64 : 2, -68 : -68 + 64 : 2]  # the last picture of the second row, every other pixel
    assert np.array_equal(shown, rows["two words"][-1])


def test_examples_of_a_contact_sheet_are_of_many_classes():
    labels = np.random.default_rng(0).permutation(np.arange(600) % 84)
    picked = figures.of_many_classes(labels, 20)
    assert len(set(labels[picked])) == 20 and labels[picked].max() - labels[picked].min() > 70
    labels = np.arange(100) % 8
    picked = figures.of_many_classes(labels, 20)
    assert len(set(picked)) == 20 and set(labels[picked]) == set(range(8))
    assert len(figures.of_many_classes(np.array([0, 1, 1]), 20)) == 3
