"""Every figure is drawn from made-up results; what is missing is skipped with the command that makes it."""

import itertools
import shutil
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import synthetic_results
from matplotlib import pyplot as plt
from matplotlib.container import BarContainer
from matplotlib.transforms import Bbox
from PIL import Image

import make_figures
from src.experiments.registry import DISENTANGLEMENT
from src.merging import registry
from src.merging.base import Method
from src.modes import TRAINED
from src.reporting import figures, pictures, style, tables
from src.reporting.comparison.ranking import alone, ranked
from src.reporting.labels import name_points
from src.reporting.methods import Group, adapts, registered_rows, results_of, variant_row
from src.reporting.papers import PAPERS
from src.reporting.plots import bars, distinct, method_looks
from src.reporting.result import VECTORS
from src.reporting.runs import Runs
from src.reporting.tangent.figures import row_step
from src.run import Run
from src.runtime.results import MissingResult

SCALE = "fig09_disentanglement_scale"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic_results.write(tmp_path_factory.mktemp("figures"), seeds=(1, 2))


@pytest.fixture(scope="module")
def runs(folder):
    return Runs("mini", "ViT-Mini", folder)


@pytest.mark.parametrize("name", [name for name in figures.FIGURES if name != SCALE])
def test_every_figure_is_drawn(runs, name):
    drawn = figures.FIGURES[name](runs)
    drawn.draw_without_rendering()
    assert drawn.axes and any(axes.has_data() for axes in drawn.axes)
    plt.close(drawn)


@pytest.mark.parametrize("name", ["alignment", "plateaus", "representation_bias"])
def test_no_panel_is_of_a_mode_without_results_for_it(tmp_path, name):
    """A further mode that has some results, and none that the figure shows."""
    synthetic_results.write(tmp_path, seeds=(1,))
    before = figures.FIGURES[name](Runs("mini", "ViT-Mini", tmp_path))
    record = synthetic_results.single_task("sam", 1, 0.95)
    synthetic_results.dump(tmp_path / "mini/ViT-Mini/seed_1/sam_ft_accuracies.json", record)
    runs = Runs("mini", "ViT-Mini", tmp_path)
    assert "sam" in runs.modes(TRAINED)
    drawn = figures.FIGURES[name](runs)
    assert len(drawn.axes) == len(before.axes) and all(axes.has_data() for axes in drawn.axes)
    plt.close("all")


def test_a_figure_over_models_has_a_column_for_each(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1,), merges=False)
    shutil.copytree(tmp_path / "mini/ViT-Mini", tmp_path / "mini/ViT-B-32")
    drawn = figures.FIGURES[SCALE](Runs("mini", "ViT-Mini", tmp_path))
    heads = [axes.get_title().partition("\n")[0] for axes in drawn.axes]
    assert {"ViT-Mini", "ViT-B-32"} <= {*heads}
    plt.close(drawn)


def test_one_model_has_no_figure_over_models(runs):
    with pytest.raises(MissingResult, match="expected two models of suite mini, found ViT-Mini"):
        figures.FIGURES[SCALE](runs)


@pytest.mark.parametrize("name", [name for name in figures.FIGURES if name != "sigmoid_temperatures"])
def test_every_figure_says_what_it_misses(tmp_path, name):
    with pytest.raises(MissingResult, match="make (it|them) with: python "):
        figures.FIGURES[name](Runs("mini", "ViT-Mini", tmp_path))


def test_heat_maps_show_error_over_both_coefficients_and_the_box(folder):
    runs = Runs("mini", "ViT-Mini", folder)
    drawn = figures.FIGURES["fig10_disentanglement_linear"](runs)
    first = [record["pairs"][0] for record in runs.of(DISENTANGLEMENT, "linear").values()]
    error = 100 * np.mean([pair["error"] for pair in first], 0)
    shown = drawn.axes[0].collections[0].get_array().reshape(13, 13)
    assert np.allclose(shown, error.T)  # a row for each α2
    box = drawn.axes[0].patches[0]
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (-1, -1, 2, 2)
    plt.close(drawn)


def test_a_ratio_over_no_energy_has_no_point_and_no_cell(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1,), merges=False)
    record = synthetic_results.ntk(1, "trace", 6.0)
    record["pairs"][0]["nystrom"]["ratio_heldout"][1] = None
    record["pairs"][0]["joint"]["ratio_of_shuffled_labels"][1] = None
    synthetic_results.dump(tmp_path / "mini/ViT-Mini/seed_1/ntk_trace.json", record)
    runs = Runs("mini", "ViT-Mini", tmp_path)
    drawn = figures.FIGURES["ntk_ranks"](runs)
    assert [len(line.get_ydata()) - np.isnan(line.get_ydata()).sum() for line in drawn.axes[0].lines[:2]] == [3, 4]
    plt.close(drawn)
    plt.close(figures.FIGURES["fig06_eigenfunctions"](runs))
    table = next(table for table in tables.one_by_one(runs) if table.name == "ntk_localization")
    assert [text == "" for text in table.texts()[0][1:]] == [False, True, False, False]


def test_cosines_of_task_vectors_are_those_of_the_results(folder):
    runs = Runs("mini", "ViT-Mini", folder)
    drawn = figures.FIGURES["task_vector_cosines"](runs)
    record = next(iter(runs.find(VECTORS, mode="standard").values()))
    shown = drawn.axes[0].images[0].get_array()
    assert np.allclose(shown[0, 1:], record["cosine"][0][1:]) and shown.mask.diagonal().all()
    plt.close(drawn)


def test_accuracy_of_zero_shot_against_the_number_of_tasks_needs_no_run_of_its_own(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1,))
    for file in tmp_path.rglob("zeroshot.json"):
        file.unlink()
    drawn = figures.FIGURES["number_of_tasks"](Runs("mini", "ViT-Mini", tmp_path))
    labels = [line.get_label() for line in drawn.axes[0].lines]
    assert labels[0] == "zero-shot" and "task arithmetic" in labels
    plt.close(drawn)


def records(runs: Runs, method: str) -> list[dict]:
    """Of a method with its default options on the eight tasks."""
    options = variant_row(method).options
    return [r.record for r in results_of(runs, Group(runs.main_tasks)) if (r.method, r.options) == (method, options)]


def test_no_two_methods_of_a_figure_look_alike(folder):
    runs = Runs("mini", "ViT-Mini", folder)
    rows = registered_rows()
    for adapting in (False, True):
        looks = [
            tuple(look.values()) for row, look in method_looks(runs, rows).items() if adapts(runs, row) == adapting
        ]
        assert len(looks) > 9 and len(set(looks)) == len(looks)
    for name in ("radar", "number_of_tasks"):
        drawn = figures.FIGURES[name](runs)
        lines = [line for line in drawn.axes[0].lines if not line.get_label().startswith("_")]
        assert len(lines) > 6 and len({line.get_color() for line in lines}) == len(lines)
        plt.close(drawn)


def test_every_seed_of_a_method_is_a_dot_and_no_interval_passes_100(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1, 2))
    for seed, accuracy in ((1, 0.99), (2, 0.6)):  # far apart: an interval beyond 100 %
        record = synthetic_results.merged("sum", synthetic_results.TASKS[:8], "standard", seed, accuracy)
        file = next((tmp_path / f"mini/ViT-Mini/seed_{seed}").rglob("8task/standard-visual/sum.json"))
        synthetic_results.dump(file, record)
    runs = Runs("mini", "ViT-Mini", tmp_path)
    drawn = figures.FIGURES["methods"](runs)
    axes = drawn.axes[0]
    dots = [line for line in axes.lines if line.get_marker() == "."]
    contestants = ranked(runs)
    assert len(contestants) > 1 and any(ends[1] > 100 for c in contestants if (ends := alone(c).over_seeds))
    assert [sorted(line.get_xdata()) for line in dots] == [sorted(c.values()) for c in contestants]
    bars_drawn = [line.get_xdata() for line in axes.lines if line.get_marker() == "None" and line.get_clip_on()]
    assert axes.get_xlim()[1] == 100 and max(map(max, bars_drawn)) == 100
    plt.close(drawn)


@pytest.mark.parametrize(
    ("name", "subtracted"), [("fig02_posthoc_advantage", "post-hoc"), ("fig05_linear_advantage", "linear")]
)
def test_the_advantage_is_over_the_mode_that_its_label_names(runs, name, subtracted):
    drawn = figures.FIGURES[name](runs)
    assert drawn.axes[1].get_xlabel() == f"(non-linear − {subtracted}) / (1 − 1/C), points"
    plt.close(drawn)


def test_markers_of_a_task_do_not_hide_each_other(runs):
    drawn = figures.FIGURES["negation"](runs)
    drawn.draw_without_rendering()
    axes = drawn.axes[1]
    heights = sorted(y for line in axes.lines if len(line.get_xdata()) > 2 for y in line.get_ydata())
    pixels = axes.transData.transform([(0, y) for y in heights])[:, 1]
    size = next(line.get_markersize() for line in axes.lines if len(line.get_xdata()) > 2) * drawn.dpi / 72
    assert len(pixels) > 20 and np.diff(pixels).min() > 0.9 * size
    plt.close(drawn)


def test_colours_of_overlaps_go_from_the_lowest_of_a_panel_to_its_highest(runs):
    drawn = figures.FIGURES["mask_overlap"](runs)
    images = [axes.images[0] for axes in drawn.axes if axes.images]
    assert len(images) > 1
    for image in images:
        shown = image.get_array().compressed()
        assert image.get_clim() == (shown.min(), shown.max())
    assert len(drawn.axes) == 2 * len(images)  # a bar of colours each
    plt.close(drawn)


def test_masks_of_two_methods_have_two_colours(runs):
    drawn = figures.FIGURES["concrete_mask_density"](runs)
    colors = [line.get_color() for line in drawn.axes[0].lines if not line.get_label().startswith("_")]
    assert len(set(colors)) == len(colors) > 1
    plt.close(drawn)
    looks = {
        row: {"color": color, "marker": "o"} for row, color in zip(registered_rows(), ("#009E73", "C1", "#009E73"))
    }
    assert [look["color"] for look in distinct(looks).values()] == ["#009E73", "C1", style.BLUE]


def test_every_method_of_a_line_of_sizes_is_named(runs):
    drawn = figures.FIGURES["number_of_tasks"](runs)
    left, right = drawn.axes
    named = ", ".join(text.get_text().replace("\n", " ") for text in right.get_legend().texts).split(", ")
    assert {line.get_label() for line in left.lines if not line.get_label().startswith("_")} <= {*named}
    plt.close(drawn)


def covered(axes, marks) -> int:
    """How many names of a figure lie over a mark, or over another name."""
    names = [text.get_window_extent() for text in axes.texts if text.get_text()]
    pixels = [axes.transData.transform(ends) for ends in marks]
    return sum(name.count_overlaps([Bbox(ends).padded(3) for ends in pixels]) for name in names) + sum(
        one.overlaps(other) for one, other in itertools.combinations(names, 2)
    )


@pytest.mark.parametrize("crowded", [False, True])
def test_names_cover_neither_points_nor_names(crowded):
    points = [(0.5, 0.5), (0.53, 0.53), (0.53, 0.47), (0.47, 0.53), (0.98, 0.9), (0.2, 0.2)]
    names = {f"method {index}": point for index, point in enumerate(points)}
    fig, axes = plt.subplots()
    axes.plot(*zip(*points), "o")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    name_points(axes, names, [(x, y, y) for x, y in points], crowded)
    fig.draw_without_rendering()
    named = {text.get_text() for text in axes.texts} - {""}
    assert {"method 4", "method 5"} <= named and (crowded or len(named) == len(names))
    assert covered(axes, [[point, point] for point in points]) == 0
    frame = axes.get_window_extent()
    assert all(frame.contains(*text.get_window_extent().max) for text in axes.texts if text.get_text())
    plt.close(fig)


@pytest.mark.parametrize("name", ["alignment", "prediction"])
def test_names_in_a_figure_of_points_cover_nothing(runs, name):
    drawn = figures.FIGURES[name](runs)
    drawn.draw_without_rendering()
    if name == "prediction":
        papers = {axes.get_title(loc="left").partition("\n")[0] for axes in drawn.axes} - {""}
        assert "TALL masks" in papers and not papers & {paper.folder for paper in PAPERS}
    for axes in drawn.axes:
        marks = [[point, point] for line in axes.lines for point in line.get_xydata()]
        assert covered(axes, marks) == 0
    assert any(text.get_text() for axes in drawn.axes for text in axes.texts)
    plt.close(drawn)


def test_series_of_bars_never_look_alike():
    axes = plt.figure().subplots()
    for index, color in enumerate(("C0", "C1", "C0", "C0")):
        bars(axes, [pd.Series([1.0, 2.0])], index, 4, color, str(index))
    series = [series for series in axes.containers if isinstance(series, BarContainer)]
    assert len({(bar[0].get_facecolor(), bar[0].get_hatch()) for bar in series}) == len(series) == 4
    plt.close()


def test_a_new_method_is_in_the_figures_that_compare_methods(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1,))

    @registry.register("mine", title="My method", paper="2401.00001")
    @dataclass
    class Mine(Method):
        def merge(self, problem):
            raise NotImplementedError

    try:
        for count in (4, 8):
            tasks = synthetic_results.TASKS[:count]
            name = synthetic_results.place("mine", tasks)
            record = synthetic_results.merged("mine", tasks, "standard", 1, 0.8)
            synthetic_results.dump(tmp_path / f"mini/ViT-Mini/seed_1/{name}.json", record)
        for name in ("radar", "number_of_tasks"):
            drawn = figures.FIGURES[name](Runs("mini", "ViT-Mini", tmp_path))
            assert "My method" in [line.get_label() for line in drawn.axes[0].lines]
            plt.close(drawn)
        adapted = {
            **record,
            "adaptation": synthetic_results.course("mine", record["tasks"], 1, 0.8, {"adapt_on": "test"}),
        }
        synthetic_results.dump(next(tmp_path.rglob("8task/*/mine.json")), adapted)
        drawn = figures.FIGURES["adaptation"](Runs("mini", "ViT-Mini", tmp_path))
        assert "My method" in [line.get_label() for line in drawn.axes[1].lines]
        plt.close(drawn)
    finally:
        del registry.METHODS["mine"]


def test_learning_is_shown_phase_by_phase_on_a_shared_axis(folder):
    runs = Runs("mini", "ViT-Mini", folder)
    drawn = figures.FIGURES["adaptation"](runs)
    left, right = drawn.axes
    assert left.get_shared_y_axes().joined(left, right)
    assert [line.get_label() for line in right.lines][-1] == "Concrete AdaMerging, layer-wise"
    watched = [record["adaptation"]["watched"] for record in records(runs, "concrete_layer_wise_adamerging")]
    means = np.mean([np.mean(list(w["accuracy"].values()), 0) for w in watched], 0)
    steps, accuracies = right.lines[-1].get_data()
    assert list(steps) == [0, 5, 10, 15, 20, 25]  # counted from the start of the phase
    assert np.allclose(accuracies, 100 * means[-6:])
    plt.close(drawn)


def test_coefficients_stand_in_the_order_of_the_network(folder):
    runs = Runs("mini", "ViT-Mini", folder)
    drawn = figures.FIGURES["lambda_heat_map"](runs)
    coefficients = [record["adaptation"]["lambda"] for record in records(runs, "adamerging")]
    layers = coefficients[0]["layers"]
    start = records(runs, "adamerging")[0]["adaptation"]["settings"]["coef"]
    values = np.mean([of_seed["values"] for of_seed in coefficients], 0) - start
    shown = drawn.axes[0].images[0].get_array()
    assert np.allclose(shown[:, 0], values[:, layers.index("model.visual.conv1.weight")])
    assert np.allclose(shown[:, -1], values[:, layers.index("model.visual.proj")])
    assert [label.get_text() for label in drawn.axes[2].get_xticklabels()] == [
        "input", "block 0", "block 1", "block 2", "block 3", "output",
    ]  # fmt: skip
    plt.close(drawn)


def test_the_program_writes_what_it_can_and_names_the_rest(folder, tmp_path, capsys):
    results = tmp_path / "results"
    (results / "mini").mkdir(parents=True)
    (results / "mini" / "ViT-Mini").symlink_to(folder / "mini" / "ViT-Mini")
    named = ["--results", str(results), "fig15_eigenfunctions_random_init", "radar"]
    with pytest.raises(SystemExit, match="error: .* found none for fig15_eigenfunctions_random_init: see above"):
        make_figures.main(named)  # a message in the place of a number is status 1
    out = capsys.readouterr().out
    assert "fig15_eigenfunctions_random_init: skipped" in out
    assert "python eval_ntk_localization.py --reduction=trace --model=ViT-Mini__init__ --seed=1" in out
    first = {path.name: path.read_bytes() for path in (results / "mini" / "figures").iterdir()}
    assert sorted(first) == ["radar.pdf", "radar.png"] and first["radar.pdf"].startswith(b"%PDF")
    make_figures.main([*named, "--skip-missing"])
    assert "fig15_eigenfunctions_random_init: skipped" in capsys.readouterr().out
    make_figures.main(["--results", str(results), "radar"])
    assert {path.name: path.read_bytes() for path in (results / "mini" / "figures").iterdir()} == first


def test_figures_that_are_not_named_are_skipped(folder, monkeypatch, capsys):
    """Without a name the exit status is 0, whatever is missing."""
    monkeypatch.setattr(figures, "FIGURES", {SCALE: figures.FIGURES[SCALE]})
    make_figures.main(["--results", str(folder)])
    assert f"{SCALE}: skipped" in capsys.readouterr().out


def test_an_unknown_figure_is_refused_with_the_nearest(folder, capsys):
    with pytest.raises(SystemExit):
        make_figures.main(["--results", str(folder), "raddar"])
    assert "did you mean radar?" in capsys.readouterr().err


def test_contact_sheet_shows_the_pictures_as_they_are(tmp_path):
    random = np.random.default_rng(0)
    rows = {name: random.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8) for name in ("one", "two words")}
    png, _ = style.save(pictures.contact_sheet(rows), tmp_path, "contact")
    sheet = np.asarray(Image.open(png).convert("RGB"))
    shown = sheet[68 : 68 + 64 : 2, -68 : -68 + 64 : 2]  # the last picture of the second row, every other pixel
    assert np.array_equal(shown, rows["two words"][-1])


def test_examples_of_a_contact_sheet_are_of_many_classes():
    labels = np.random.default_rng(0).permutation(np.arange(600) % 84)
    picked = pictures.of_many_classes(labels, 20)
    assert len(set(labels[picked])) == 20 and labels[picked].max() - labels[picked].min() > 70
    labels = np.arange(100) % 8
    picked = pictures.of_many_classes(labels, 20)
    assert len(set(picked)) == 20 and set(labels[picked]) == set(range(8))
    assert len(pictures.of_many_classes(np.array([0, 1, 1]), 20)) == 3


def test_each_task_is_on_one_of_the_two_sheets(monkeypatch):
    blank = np.zeros((20, 32, 32, 3), np.uint8)
    monkeypatch.setattr(pictures, "_rows", lambda run, names: dict.fromkeys(names, blank))
    run = Run.of(device="cpu")
    sheets = [sheet(run) for sheet in (pictures.contact, pictures.contact_more)]
    first, more = ([text.get_text() for text in sheet.axes[0].texts] for sheet in sheets)
    assert first == [*run.suite_row.default, "control", "pre-training"] and more == list(run.suite_row.tasks[8:])
    for sheet in sheets:
        plt.close(sheet)
    with pytest.raises(MissingResult, match="vision has no tasks but those"):
        pictures.contact_more(Run.of(suite="vision", device="cpu"))


@pytest.mark.parametrize("columns", [3, 5, 11, 30])
def test_markers_of_a_task_stay_in_its_row(columns):
    assert 0 < columns * row_step(columns) < 1
