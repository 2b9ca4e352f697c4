"""The tidy table of numbers: what identifies them, what is selected by default, and its file."""

import math

import pandas as pd
import pytest
import synthetic_results

from src.datasets import registry
from src.experiments.registry import ADDITION
from src.reporting import frame
from src.reporting.frame import COLUMNS, IDENTITY
from src.reporting.runs import Runs, every_number
from src.reporting.statistics import interval


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic_results.write(tmp_path_factory.mktemp("frame"), seeds=(0, 1, 2))


@pytest.fixture(scope="module")
def runs(folder) -> Runs:
    return Runs("mini", "ViT-Mini", folder)


def test_every_number_stands_once(runs):
    numbers = [name for name in COLUMNS if name != "value"]
    assert list(runs.frame.columns) == list(COLUMNS) and not runs.frame.duplicated(numbers).any()
    assert runs.seeds == (1, 2) and set(runs.frame["seed"]) == {1, 2}


def test_a_number_is_the_records(runs):
    records = runs.of(ADDITION, "linear")
    values = runs.values(experiment="addition", mode="linear", metric="normalised", task="signs")
    assert values.to_dict() == {seed: record["test"]["normalised"]["signs"] for seed, record in records.items()}
    curve = runs.select(experiment="addition", mode="linear", metric="accuracy", split="val", setting=0.5)
    at_half = {seed: record["val"]["mean_accuracy"][record["settings"].index(0.5)] for seed, record in records.items()}
    assert dict(zip(curve["seed"], curve["value"])) == at_half


def test_by_default_only_clean_images_own_checkpoints_and_what_was_chosen(runs):
    what = {"experiment": "merging", "mode": "standard", "method": "sum", "metric": "accuracy"}
    assert len(runs.select(**what, task_list=synthetic_results.TASKS)) == 2
    corrupted = runs.select(**what, task_list=synthetic_results.TASKS, corruption="contrast", severity=5)
    assert len(corrupted) == 2 and (corrupted["value"] < 0.6).all()
    assert runs.select(**what, task_list=synthetic_results.SEEN).empty
    assert len(runs.select(**what, task_list=synthetic_results.SEEN, unseen=synthetic_results.UNSEEN)) == 2


def test_sets_of_tasks_have_the_names_of_their_folders(runs):
    merged = runs.frame[runs.frame["experiment"] == "merging"]
    names = dict(zip(merged["task_list"], merged["tasks"]))
    assert names[" ".join(synthetic_results.TASKS)] == "8task"
    assert names[" ".join(synthetic_results.SEEN)].startswith("6task_")


def test_the_file_lists_the_tasks_that_are_no_benchmark(runs, tmp_path):
    frame.write(runs.frame, tmp_path / "numbers.csv")
    read = pd.read_csv(tmp_path / "numbers.csv", keep_default_na=False)
    lists = {name: set(rows["task_list"]) for name, rows in read.groupby("tasks")}
    other = {name: found for name, found in lists.items() if "_" in name}
    assert all(found == {""} for name, found in lists.items() if name not in other) and {"", "8task"} <= {*lists}
    assert list(other.values()) == [{" ".join(synthetic_results.SEEN)}]
    assert read["value"].astype(float).tolist() == runs.frame["value"].tolist()


def test_a_mean_over_tasks_leaves_out_seeds_that_lack_one(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1, 2), merges=False)
    record = dict(synthetic_results.single_task("none", 2))
    del record["signs"]
    synthetic_results.dump(tmp_path / "mini/ViT-Mini/seed_2/zeroshot_accuracies.json", record)
    runs = Runs("mini", "ViT-Mini", tmp_path)
    what = {"experiment": "single_task", "mode": "none", "metric": "accuracy"}
    assert list(runs.mean_over(["land", "signs"], **what).index) == [1]
    assert list(runs.mean_over(["land", "digits"], **what).index) == [1, 2]


def test_students_interval():
    low, high = interval(pd.Series([1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx((2 - 2.4841377, 2 + 2.4841377))  # t = 4.3026527 with 2 degrees of freedom


def test_the_file_holds_every_model_and_seed_in_a_stable_order(folder, tmp_path):
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    for path in (first, second):
        frame.write(every_number("mini", folder), path)
    assert first.read_bytes() == second.read_bytes()
    numbers = pd.read_csv(first, keep_default_na=False)
    assert set(numbers["model"]) == {"ViT-Mini", "ViT-Mini__init__"} and set(numbers["seed"]) == {0, 1, 2}
    ties = numbers.query("model == 'ViT-Mini' and method == 'consensus' and options == '{\"use_ties\": true}'")
    found = ties.query("seed == 1 and tasks == '8task' and task == 'mean' and split == 'test' and metric == 'accuracy'")
    record = synthetic_results.merged("consensus", synthetic_results.TASKS, "standard", 1, 0.755, use_ties=True)
    assert found["value"].tolist() == [record["test"]["mean_accuracy"]]
    assert set(IDENTITY) < set(numbers.columns)


def test_a_single_task_result_of_a_checkpoint_is_told_apart(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1,), merges=False)
    file = tmp_path / "mini/ViT-Mini/seed_1/zeroshot_accuracies.json"
    file.with_stem("merged").write_text(file.read_text())
    runs = Runs("mini", "ViT-Mini", tmp_path)
    what = {"experiment": "single_task", "metric": "accuracy", "task": "signs"}
    assert len(runs.values(**what, mode="none")) == 1 == len(runs.values(**what, mode="", encoders="merged"))


def test_a_coefficient_of_each_task_and_options_that_were_searched(tmp_path):
    record = {**synthetic_results.merged("ties", ("land", "signs"), "standard", 1, 0.7), "chosen_per_task": True}
    settings = [{"k": k, "setting": alpha} for k in (10, 20) for alpha in (0.5, 1.0)]
    record |= {"settings": settings, "chosen": {"land": settings[1], "signs": settings[2]}}
    record["val"] = record["val"] | {"accuracy": dict.fromkeys(("land", "signs"), [0.1, 0.2, 0.3, 0.4])}
    record["info"] = {"search": {"k": [10, 20]}}
    name = synthetic_results.place("ties", ("land", "signs"))
    synthetic_results.dump(tmp_path / f"mini/ViT-Mini/seed_1/{name}.json", record)
    runs = Runs("mini", "ViT-Mini", tmp_path)
    what = {"experiment": "merging", "method": "ties", "options": {"k": [10, 20]}, "task": "signs"}
    assert runs.values(**what, metric="chosen").tolist() == [0.5]
    assert runs.values(**what, metric="chosen_k").tolist() == [20]
    assert runs.values(**what, metric="accuracy", split="val").tolist() == [0.3]
    assert math.isnan(runs.select(**what, metric="chosen")["setting"].item())


def test_the_control_is_of_the_first_tasks_models_however_many_a_run_has(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1,), merges=False)
    tasks = registry.suite("mini").tasks
    file = tmp_path / "mini/ViT-Mini/seed_1/ft_accuracies.json"
    record = dict(synthetic_results.single_task("standard", 1))
    what = {"experiment": "single_task", "mode": "standard", "metric": "accuracy", "task": "control"}
    for count, recorded in ((8, 0.0), (20, 0.5)):
        of_each = {task: 0.9 if i < 8 else 0.1 for i, task in enumerate(tasks[:count])}
        record |= {"control": recorded, "control_per_task": {"test": of_each, "val": of_each}}
        synthetic_results.dump(file, record)
        mean = Runs("mini", "ViT-Mini", tmp_path).values(**what).tolist()
        assert mean == ([recorded] if count == 8 else [pytest.approx(0.9)])
        losses = Runs("mini", "ViT-Mini", tmp_path).values(**what | {"metric": "loss"})
        assert len(losses) == (1 if count == 8 else 0)
