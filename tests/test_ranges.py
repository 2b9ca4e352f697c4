"""Numbers that make no sense are refused before any work, with the same words wherever they come from."""

import math

import pytest

import eval_disentanglement
import eval_ntk_localization
import eval_single_task
import eval_task_addition
import eval_task_negation
import finetune
import main
from src.datasets import registry
from src.finetuning.settings import Training
from src.ranges import RANGES, check
from src.run import task_names
from src.runtime.messages import UsageError


@pytest.mark.parametrize("name", RANGES)
def test_every_range_has_an_inside_and_an_outside(name):
    for value in (-1, math.nan, math.inf, -math.inf, "two", True):
        with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}: expected a .*number"):
            check(**{name: value})
    check(**{name: None})
    check(**{name: 2 if RANGES[name].high > 2 else 0.1})


WRONG = [
    (finetune, "--lr=-1"),
    (finetune, "--wd=nan"),
    (finetune, "--ls=1.5"),
    (finetune, "--clip=0"),
    (finetune, "--batch-size=0"),
    (finetune, "--steps=0"),
    (finetune, "--epochs=0"),
    (finetune, "--num-grad-accumulation=0"),
    (finetune, "--world-size=0"),
    (finetune, "--keep-every=-1"),
    (finetune, "--rank=0"),
    (finetune, "--lora-alpha=0"),
    (finetune, "--penalty=-1"),
    (finetune, "--penalty-batch-size=0"),
    (finetune, "--rho=0"),
    (finetune, "--seed=-1"),
    (finetune, "--device=cdua"),
    (eval_single_task, "--at=0"),
    (eval_single_task, "--jobs=0"),
    (eval_single_task, "--eval-batch-size=0"),
    (eval_single_task, "--model=ViT-B-33"),
    (eval_task_addition, "--n-eval-points=0"),
    (eval_task_addition, "--n-eval-points=-1"),
    (eval_task_negation, "--n-eval-points=0"),
    (eval_task_negation, "--control-threshold=nan"),
    (eval_disentanglement, "--n-points=1"),
    (eval_disentanglement, "--num-samples=0"),
    (eval_ntk_localization, "--num-samples=0"),
    (eval_ntk_localization, "--chunk-size=0"),
    (eval_ntk_localization, "--ranks=0"),
    (main, "jobs=0"),
    (main, "jobs=two"),
    (main, "eval_batch_size=0"),
    (main, "seed=-1"),
    (main, "model=ViT-Min"),
    (main, "device=cdua"),
]


@pytest.mark.parametrize("script, flag", WRONG, ids=lambda value: getattr(value, "__name__", value))
def test_a_wrong_number_ends_with_its_name_and_writes_nothing(script, flag, tmp_path, capsys):
    places = [f"save={tmp_path}/c", f"results={tmp_path}/r", f"cache_dir={tmp_path}/i"]
    if script is not main:
        places = ["--" + place.replace("_", "-") for place in places]
    with pytest.raises(SystemExit) as stop:
        script.main([*places, *(["method=sum"] if script is main else []), flag])
    told = capsys.readouterr().err
    assert stop.value.code == 2 and flag.lstrip("-").partition("=")[0].replace("_", "-") in told
    assert "expected" in told or "does not exist" in told
    assert not list(tmp_path.rglob("*"))


def test_a_grid_without_the_box_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        eval_disentanglement.main([f"--results={tmp_path}", "--range", "2", "3"])
    assert stop.value.code == 2 and "--range: expected an interval that contains the box" in capsys.readouterr().err


def test_sets_beside_the_benchmarks_can_be_run_and_the_control_cannot():
    suite = registry.suite("vision")
    further = ("EMNIST_letters", "FER2013_corrected")
    assert task_names("EMNIST_letters,FER2013_corrected", suite) == further and not {*further} & {*suite.tasks}
    for wrong in ("ImageNet", "21"):
        with pytest.raises(UsageError, match="--tasks"):
            task_names(wrong, suite)


def test_a_mode_without_a_learning_rate_asks_for_one(make_run, monkeypatch):
    run = make_run()
    monkeypatch.delitem(run.protocol.lr, "linear")
    with pytest.raises(UsageError, match="--lr: expected a learning rate, for mini has none for linear"):
        Training.of(run, mode="linear")
    assert Training.of(run, mode="linear", lr=1e-3).lr == 1e-3
