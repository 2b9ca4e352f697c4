"""Every experiment for real, on three tasks with tiny settings: its numbers in the tables and in accuracies.csv."""

import json
from functools import cache

import pandas as pd
import pytest
from few_images import few_images

import eval_disentanglement
import eval_ntk_localization
import eval_single_task
import eval_task_addition
import eval_task_negation
import finetune
import main
import make_tables
from src.datasets import registry
from src.reporting import answers, tables
from src.reporting.runs import Runs

TASKS = ("vehicles", "textures", "land")


@pytest.fixture(scope="module")
def results(tmp_path_factory, mini_cache):
    """The folder of the results of one seed, and of what make_tables.py writes."""
    folder = tmp_path_factory.mktemp("end_to_end")
    places = [f"--save={folder}/checkpoints", f"--results={folder}/results", f"--cache-dir={mini_cache}"]
    shared = ["--seed=0", "--device=cpu", "--jobs=1", *places]
    on_tasks = [*shared, "--tasks", *TASKS]
    finetune.main([*on_tasks, "--steps=8", "--batch-size=16"])
    with few_images(20):
        for mode in ("none", "standard"):
            eval_single_task.main([*on_tasks, f"--finetuning-mode={mode}"])
        eval_task_addition.main([*on_tasks, "--n-eval-points=3"])
        eval_task_negation.main([*on_tasks, "--n-eval-points=2"])
        eval_disentanglement.main([*on_tasks, "--pairs", "vehicles-land", "--n-points=3", "--num-samples=16"])
        eval_ntk_localization.main([*shared, "--pairs", "land-vehicles", "--num-samples=4", "--ranks", "2"])
        for overrides in (
            ["method=sum"],
            ["method=ties", "method.k=50"],
            ["method=tall_mask"],
            ["method=adamerging", "method.steps=2"],
            ["method=sum", "DATASETS=[vehicles,textures]", "unseen=[land]"],
        ):
            merge(shared, [f"DATASETS=[{','.join(TASKS)}]", *overrides])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "BENCHMARKS", (len(TASKS),))
        make_tables.main(["--results", f"{folder}/results"])
        yield folder / "results"


def merge(shared: list[str], overrides: list[str]) -> None:
    """main.py with the flags of the other scripts; of two overrides of the same key the last counts."""
    by_key = dict(override.removeprefix("--").split("=", 1) for override in [*shared, *overrides])
    main.main([f"{key.replace('-', '_')}={value}" for key, value in by_key.items()])


def record(results, name: str) -> dict:
    return json.loads((results / f"mini/ViT-Mini/seed_0/{name}.json").read_text())


def merged(results, tasks: tuple[str, ...], label: str) -> dict:
    """The record of main.py on these tasks, wherever it lies."""
    files = [json.loads(file.read_text()) for file in results.rglob(f"{label}.json")]
    (found,) = [record for record in files if record["tasks"] == list(tasks)]
    return found


@cache
def made(results) -> dict[str, list[list[str]]]:
    """Name of a table -> its rows."""
    return {table.name: table.texts() for table in tables.make(Runs("mini", "ViT-Mini", results))}


def row(results, table: str, name: str) -> list[str]:
    return next(cells for cells in made(results)[table] if cells[0] == name)


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def test_single_task(results):
    found = record(results, "ft_accuracies")
    cells = row(results, "single_task", "land")
    assert cells[1:3] == [percent(record(results, "zeroshot_accuracies")["land"]), percent(found["land"])]
    mean = sum(found[task] for task in TASKS) / 3
    assert row(results, "single_task", "mean of 3")[2].startswith(percent(mean))
    assert row(results, "single_task", "control (kept)")[2] == percent(found["control"])


def test_addition(results):
    test = record(results, "addition_standard")
    cells = row(results, "table1_addition", "non-linear fine-tuning")
    means = [test["test"]["mean_accuracy"], test["test"]["mean_normalised"], test["zeroshot"]["mean_normalised"]]
    assert cells[1:4] == [percent(mean) for mean in means]
    assert cells[5] == f"{test['chosen']['land']:.3f}"
    per_task = row(results, "addition_per_task", "land")
    assert per_task[1:3] == [percent(test["test"][kind]["land"]) for kind in ("accuracy", "normalised")]


def test_negation(results):
    negated = record(results, "negation_standard")
    cells = row(results, "table2_negation", "non-linear fine-tuning")
    assert cells[1:3] == [percent(negated["mean_target"]), percent(negated["mean_control"])]
    assert cells[3] == f"{sum(t['alpha'] for t in negated['tasks'].values()) / 3:.3f}"


def test_disentanglement_and_kernel(results):
    pair = record(results, "disentanglement_standard")["pairs"][0]
    assert row(results, "disentanglement", "vehicles – land")[1] == percent(pair["box_mean"])
    pair = record(results, "ntk_trace")["pairs"][0]
    cells = row(results, "ntk_localization", "land – vehicles, pre-trained, trace")
    assert cells[1] == f"{pair['nystrom']['ratio_heldout'][0]:.2f}"


@pytest.mark.parametrize(
    ("label", "title"), [("sum", "task arithmetic"), ("ties_k=50", "TIES, k=50"), ("tall_mask", "TALL mask + TA")]
)
def test_merging(results, label, title):
    found = merged(results, TASKS, label)
    cells = row(results, "merging", title)
    assert cells[1:3] == [percent(found["test"]["mean_accuracy"]), percent(found["test"]["mean_normalised"])]
    assert cells[3] == ("" if found["chosen_per_task"] else f"{found['chosen']['land']:.2f}")
    ratio = found["storage"]["this"] / found["storage"]["merged"]
    assert float(cells[5].split()[0]) == pytest.approx(ratio, abs=0.005)


def test_adaptation_and_unseen_tasks(results):
    found = merged(results, TASKS, "adamerging_steps=2")
    cells = row(results, "adaptation", "AdaMerging, layer-wise, steps=2")
    assert cells[1:3] == ["test", percent(found["test"]["mean_accuracy"])]
    unseen = merged(results, TASKS[:2], "sum_unseen=land")["unseen"]
    assert row(results, "unseen_land", "task arithmetic")[2] == percent(unseen["accuracy"]["land"])
    assert row(results, "unseen_land", "zero-shot")[2] == percent(unseen["zeroshot"]["accuracy"]["land"])


def test_the_table_of_numbers_has_them_all_as_they_are(results):
    numbers = pd.read_csv(results / "mini/accuracies.csv", keep_default_na=False)
    of_sum = numbers.query("method == 'sum' and unseen == '' and split == 'test' and metric == 'accuracy'")
    accuracy = merged(results, TASKS, "sum")["test"]["accuracy"]
    assert dict(zip(of_sum["task"], of_sum["value"].astype(float)))["land"] == accuracy["land"]
    assert set(numbers["experiment"]) == {
        "single_task", "addition", "negation", "disentanglement", "ntk", "merging",
    }  # fmt: skip


def test_the_ledger_is_of_these_numbers(results):
    text = (results / "mini/claims.md").read_text()
    negated = record(results, "negation_standard")
    assert f"non-linear {percent(negated['mean_target'])} [24.0], post-hoc [14.8], linear [10.9]" in text


def test_bits_of_images_give_exactly_the_numbers_of_the_results(results):
    runs = Runs("mini", "ViT-Mini", results)
    merged_from = {"experiment": "merging", "mode": "standard", "scope": "visual", "task_list": TASKS}
    rows = [
        ({"experiment": "addition", "mode": "standard"}, ("accuracy", "normalised", "zeroshot_accuracy")),
        ({**merged_from, "method": "sum", "options": ""}, ("accuracy", "normalised", "finetuned_accuracy")),
        ({**merged_from, "method": "sum", "options": ""}, ("untuned_accuracy", "one_accuracy", "zeroshot_normalised")),
        ({**merged_from, "method": "tall_mask", "options": ""}, ("accuracy", "normalised")),
        (
            {**merged_from, "task_list": TASKS[:2], "unseen": TASKS[2:], "method": "sum", "options": ""},
            ("unseen_accuracy",),
        ),
        (
            {"experiment": "negation", "mode": "standard"},
            ("target_accuracy", "control_accuracy", "pretrained_control_accuracy"),
        ),
    ]
    for columns, metrics in rows:
        for metric in metrics:
            (number,), (formula,) = (
                runs.values(**columns, metric=metric),
                answers.formulas(runs, **columns, metric=metric).values(),
            )
            assert formula.exact == pytest.approx(number, abs=1e-12), (columns, metric)
    single = {"experiment": "single_task", "mode": "standard", "metric": "accuracy"}
    (formula,) = answers.mean_over(runs, TASKS, **single).values()
    assert formula.exact == pytest.approx(runs.mean_over(TASKS, **single)[0], abs=1e-12)
