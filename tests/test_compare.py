"""Any two merging methods beside each other, and all in order with brackets: paired, with intervals, from results."""

import csv

import matplotlib.pyplot as plt
import pytest
import synthetic_results

import make_tables
from src.reporting.compare import compared, contestant
from src.reporting.comparison.forest import claims
from src.reporting.comparison.ranking import brackets, columns_of, methods
from src.reporting.runs import Runs
from src.runtime.messages import UsageError


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs("mini", "ViT-Mini", synthetic_results.write(tmp_path_factory.mktemp("compare")))


def test_differences_are_those_of_the_results(runs):
    one, other = (contestant(runs, name) for name in ("ties", "average"))
    records = [runs.find("merging", **c.row.columns, task_list=runs.main_tasks, mode="standard") for c in (one, other)]
    differences = [
        100 * (records[0][seed]["test"]["accuracy"]["signs"] - records[1][seed]["test"]["accuracy"]["signs"])
        for seed in (1, 2, 3)
    ]
    assert one.minus(other, task="signs").values.tolist() == pytest.approx(differences)
    cells = next(cells for cells in compared(one, other).texts() if cells[0] == "signs")
    assert (
        cells[3] == f"{sum(differences) / 3:+.1f}" and cells[-1] == "TIES" and " to " in cells[4] and " to " in cells[5]
    )
    assert [cells[0] for cells in compared(one, other).texts()][-2:] == ["mean", "mean, normalised"]


def test_a_title_is_a_name_too_and_the_mode_stands_behind_at(runs):
    assert contestant(runs, "task arithmetic") == contestant(runs, "sum")
    assert contestant(runs, "consensus_use_ties=True").title == "consensus TIES"
    linear = contestant(runs, "sum@linear")
    assert linear.title == "task arithmetic, linear" and linear.mode == "linear"
    backwards = compared(linear, contestant(runs, "sum")).texts()
    forwards = compared(contestant(runs, "sum"), linear).texts()
    assert [cells[3][1:] for cells in backwards] == [cells[3][1:] for cells in forwards]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiess", "nearest: ties"),
        ("tall_mask_use_ties", "nearest: tall_mask_use_ties=True"),
        ("ties@linear", "finetuning_mode=linear, found none called 'ties'"),
        ("ties@liner", "did you mean linear?"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(runs, name, message):
    with pytest.raises(UsageError, match=message):
        contestant(runs, name)


def test_methods_of_no_common_seed_are_not_compared(tmp_path):
    for seed, method in enumerate(("ties", "sum"), 1):
        record = synthetic_results.merged(method, synthetic_results.TASKS, "standard", seed, 0.7)
        name = synthetic_results.place(method, synthetic_results.TASKS)
        synthetic_results.dump(tmp_path / f"mini/ViT-Mini/seed_{seed}/{name}.json", record)
    runs = Runs("mini", "ViT-Mini", tmp_path)
    with pytest.raises(UsageError, match="found TIES of 1 and task arithmetic of 2"):
        compared(contestant(runs, "ties"), contestant(runs, "sum"))


def test_the_program_prints_the_table_and_writes_it_where_it_is_told(runs, tmp_path, capsys):
    before = sorted(runs.results.rglob("*"))
    flags = ["--results", str(runs.results), "--compare", "ties", "sum"]
    make_tables.main([*flags, "--out", str(tmp_path / "pair.csv")])
    assert "**TIES against task arithmetic, 8 tasks" in capsys.readouterr().out
    header, *rows = csv.reader((tmp_path / "pair.csv").open())
    assert header[:2] == ["task", "TIES"] and len(rows) == 10
    assert sorted(runs.results.rglob("*")) == before
    for wrong, message in ((["--out", "pair.pdf"], ".md, .tex, .csv"), (["--out"], "expected one argument")):
        with pytest.raises(SystemExit):
            make_tables.main([*flags, *wrong])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        make_tables.main(["--results", str(runs.results), "--out", "pair.csv"])
    assert "expected --compare" in capsys.readouterr().err


def test_brackets_span_the_longest_runs_that_are_not_told_apart():
    positions = [0.0, 1.0, 2.0, 2.5, 6.0, 9.0]

    def found(limit: float) -> list[list[int]]:
        return [list(b) for b in brackets(6, lambda i, j: positions[j] - positions[i] > limit)]

    assert found(2.0) == [[0, 1, 2], [1, 2, 3]]  # what lies within another is left out
    assert found(0.1) == [] and found(10.0) == [[0, 1, 2, 3, 4, 5]]
    assert columns_of([range(3), range(1, 4), range(4, 6)]) == [(0, range(3)), (1, range(1, 4)), (0, range(4, 6))]


def test_methods_stand_in_order_and_brackets_beside_them(runs):
    drawn = methods(runs)
    names = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    assert names[0] == "TALL mask + TIES" and names[-1] == "zero-shot"
    assert names.index("magnitude masking") < names.index("TIES") < names.index("weight averaging")
    plt.close(drawn)


def test_the_picture_of_the_ledger_has_every_difference_in_its_place(runs):
    drawn = claims(runs)
    axes = drawn.axes[0]
    texts = {text.get_text().replace("\n", " "): text.get_position()[1] for text in axes.texts}
    y = next(position for text, position in texts.items() if text.startswith("Consensus task arithmetic is better"))
    one, other = (contestant(runs, name) for name in ("consensus", "sum"))
    points = [line.get_xdata() for line in axes.lines if list(line.get_ydata()) == [y]]
    assert [pytest.approx(one.minus(other).estimate)] in [list(x) for x in points]
    assert [pytest.approx(75.0 - 70.8)] in [list(x) for x in points]  # published
    whiskers = [list(line.get_xdata()) for line in axes.lines if list(line.get_ydata()) == [y, y]]
    assert list(one.minus(other).over_seeds) in whiskers
    assert sum(text.startswith("  ") or " − " in text for text in texts) >= 8
    plt.close(drawn)
