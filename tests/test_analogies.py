"""Task analogies: the vector in closed form, α from validation alone, refusals, and their table and claims."""

import numpy as np
import pytest
import synthetic_results
import torch

import eval_analogies
from src import store
from src.datasets import registry
from src.evaluation import Line, score
from src.experiments import analogies as analogous
from src.experiments import commands
from src.experiments.analogies import ANALOGY, PRETRAINED, VECTORS, combination
from src.experiments.registry import ANALOGIES
from src.reporting.comparison.analogies import ByAnalogy, analogies
from src.reporting.runs import Runs
from src.run import Run
from src.runtime import results
from src.task_vectors import TaskVector


def test_the_vector_of_an_analogy():
    taus = [TaskVector(vector={"w": torch.tensor(values)}) for values in ([1.0, 2.0], [10.0, 0.0], [0.0, 100.0])]
    assert combination(taus, VECTORS[ANALOGY]).vector["w"].tolist() == [9.0, 98.0]
    assert combination(taus, VECTORS["τ_C"]).vector["w"].tolist() == [0.0, 100.0]
    assert combination(taus, VECTORS["τ_C + τ_B"]).vector["w"].tolist() == [10.0, 100.0]


def test_an_analogy_of_a_run_against_its_models_scored_one_by_one(place, make_run, capsys):
    run = make_run("--tasks", "digits", "signs", "letters")
    folders = [f"--save={run.places.save}", f"--results={run.places.results}", f"--cache-dir={run.places.cache}"]
    flags = ["--finetuning-mode=standard", "--n-eval-points=3", "--seed=0", "--jobs=1", "--device=cpu", *folders]
    eval_analogies.main([*flags, "--analogy", "digits", "signs", "letters", "house_letters"])
    assert "house_letters: pre-trained" in capsys.readouterr().out
    path = run.paths.result(ANALOGIES.result("standard"))
    record = results.read(path)
    tried = record["analogies"]["house_letters"]["tried"]
    assert list(tried) == [PRETRAINED, *VECTORS] and tried[PRETRAINED]["val"] == []
    a, b, c = (store.task_vector(run, task, "standard") for task in ("digits", "signs", "letters"))
    tau, found = c + b - a, tried[ANALOGY]
    alone = [score(run, "house_letters", "val", Line(tau.vector, (s,)), False).accuracy[0] for s in (0.0, 0.5, 1.0)]
    assert found["val"] == pytest.approx(alone)
    assert found["alpha"] == (0.0, 0.5, 1.0)[int(np.argmax(alone))]
    chosen = Line(tau.vector, (found["alpha"],))
    for dataset, accuracy in (("house_letters", found["test"]), (run.control, found["control"])):
        assert score(run, dataset, "test", chosen, False).accuracy[0] == pytest.approx(accuracy)
    by_name = {(n.metric, n.task): n.value for n in analogous.numbers(record, "mini")}
    assert by_name[f"accuracy {ANALOGY}", "house_letters"] == found["test"]
    before = path.read_bytes()
    eval_analogies.main([*flags, "--analogy", "digits", "signs", "letters", "house_letters"])
    assert path.read_bytes() == before
    with pytest.raises(SystemExit) as stop:  # another analogy does not stand in the place of this one
        eval_analogies.main([*flags, "--analogy", "signs", "digits", "letters", "house_letters"])
    assert stop.value.code and path.read_bytes() == before


@pytest.mark.parametrize("names", ["digits signs letters digits", "digits signs letters nothing"])
def test_four_data_sets_that_exist_and_differ(names, capsys):
    with pytest.raises(SystemExit) as stop:
        eval_analogies.main(["--analogy", *names.split()])
    assert stop.value.code == 2 and "error: --" in capsys.readouterr().err


def test_a_suite_without_analogies_asks_for_one_and_its_stage_has_no_command(capsys):
    with pytest.raises(SystemExit):
        eval_analogies.main(["--model=ViT-B-32", "--device=cpu"])
    assert "--analogy: expected four data sets A B C D" in capsys.readouterr().err
    assert commands.COMMANDS["analogies"](Run.of("ViT-B-32", device="cpu")) == []
    assert len(commands.COMMANDS["analogies"](Run.of(device="cpu"))) == len(("standard", "linear", "posthoc"))


def test_table_and_claims_of_analogies(tmp_path):
    runs = Runs("mini", "ViT-Mini", synthetic_results.write(tmp_path, seeds=(1, 2), merges=False))
    (table,) = analogies(runs)
    assert table.header[1:6] == [PRETRAINED, *VECTORS] and len(table.rows) == 3
    values = ByAnalogy(ANALOGY, "linear").values(runs)
    assert values.tolist() == pytest.approx([74, 74], abs=0.2)
    formulas = ByAnalogy(ANALOGY, "linear").formulas(runs)
    for seed, formula in formulas.items():
        (accuracy,) = formula.accuracies
        assert accuracy.dataset == registry.suite("mini").analogies[0][-1]
        assert 100 * accuracy.correct.mean() == pytest.approx(values[seed])
