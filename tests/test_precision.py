"""The precision of matrix products: set where it counts, put back, recorded, and refused where it is too little."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import eval_single_task
import eval_task_addition
import main
from src import evaluation, store, training
from src.args import base_parser, parse
from src.evaluation import ORIGIN, Line, score
from src.merging.problem import Source, read_problem
from src.modes import MODES
from src.runtime import results
from src.runtime.messages import UsageError
from src.runtime.precision import autocast, matmul_precision

TANGENT = [name for name, mode in MODES.items() if mode.tangent]


def flags() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.fixture
def others():
    """Flags that are neither of fp32 nor of TF32, to be put back."""
    before = flags()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = False
    yield flags()
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize(
    "precision, within", [("fp32", ("highest", False)), ("tf32", ("high", True)), ("bf16", ("highest", False))]
)
def test_flags_are_put_back_also_after_an_error(others, precision, within):
    with pytest.raises(ZeroDivisionError):
        with matmul_precision(precision):
            assert flags() == within
            1 / 0  # noqa: B018
    assert flags() == others


def test_autocast_is_for_bf16_alone():
    for precision in ("fp32", "tf32", "bf16"):
        with autocast(precision, "cpu"):
            assert torch.is_autocast_enabled("cpu") == (precision == "bf16")


def test_a_training_leaves_no_flag_behind(make_training, others, monkeypatch):
    """Also one that fails; an evaluation in the same process says its own."""
    seen = []
    gradient = training.FineTuning._gradient

    def noted(self, *which):
        seen.append(flags())
        if len(seen) == 3:
            raise KeyboardInterrupt
        return gradient(self, *which)

    monkeypatch.setattr(training.FineTuning, "_gradient", noted)
    run, settings = make_training("--steps=2", "--batch-size=4", "--precision=tf32", "--tasks=signs")
    store.write_pretrained(run)
    training.finetune(run, "signs", settings)
    assert flags() == others
    with pytest.raises(KeyboardInterrupt):
        training.finetune(run, "signs", settings, overwrite=True)
    assert flags() == others and seen == [("high", True)] * 3


def test_an_evaluation_says_its_own(make_run, others, monkeypatch):
    run, seen = make_run("--tasks=signs"), []
    features = evaluation.features

    def noted(*which):
        seen.append(flags())
        return features(*which)

    monkeypatch.setattr(evaluation, "features", noted)
    few(monkeypatch, 5)
    for precision, expected in (("fp32", ("highest", False)), ("tf32", ("high", True))):
        score(dataclasses.replace(run, precision=precision), "signs", "val", ORIGIN, False)
        assert seen.pop() == expected and not seen
    assert flags() == others


def few(monkeypatch, n: int) -> None:
    whole = evaluation.loading.evaluation_pixels

    def some(*which):
        found = whole(*which)
        return type(found)(found.pixels[:n], found.labels[:n])

    monkeypatch.setattr(evaluation.loading, "evaluation_pixels", some)


def test_bf16_is_near_fp32_and_not_it(make_run, monkeypatch):
    run = make_run("--tasks=signs")
    few(monkeypatch, 200)
    line = Line({name: 0.01 * w for name, w in store.encoder(run).named_parameters()}, (0.0, 1.0))
    whole, half = (score(dataclasses.replace(run, precision=p), "signs", "val", line, False) for p in ("fp32", "bf16"))
    assert half.loss == pytest.approx(whole.loss, rel=0.02) and half.loss != whole.loss
    assert half.accuracy == pytest.approx(whole.accuracy, abs=0.03)


@pytest.mark.parametrize("mode", TANGENT)
def test_bf16_is_refused_of_tangent_models(make_run, mode):
    run = make_run("--precision=bf16", "--tasks=signs")
    for work in (
        lambda: parse(base_parser(""), ["--precision=bf16", f"--finetuning-mode={mode}"]),
        lambda: evaluation.score_all(run, mode, {}, "test", ""),
        lambda: read_problem(run, Source(mode)),
    ):
        with pytest.raises(UsageError, match=f"too few for {mode}: .* loses its second term"):
            work()


@pytest.mark.parametrize(
    "script", ["eval_ntk_localization", "eval_disentanglement", "eval_layerwise", "eval_mergeability"]
)
def test_bf16_is_refused_where_small_differences_count(script):
    module = __import__(script)
    with pytest.raises(SystemExit):
        module.main(["--precision=bf16", "--device=cpu"])


def test_results_of_another_precision_are_kept_apart(place, capsys):
    """The flag is recorded; neither is an earlier result taken for it, nor are its denominators."""
    given = [f"--{word.replace('cache_dir', 'cache-dir')}" for word in place]
    flags = [*given, "--tasks=digits,signs", "--control=never", "--finetuning-mode=none"]
    eval_single_task.main([*flags, "--overwrite", "--precision=bf16"])
    (file,) = results_of(place, "zeroshot_accuracies")
    assert json.loads(file.read_text())["provenance"]["config"]["precision"] == "bf16"
    told = "expected a result of precision = fp32; found one of precision = bf16"
    with pytest.raises(SystemExit, match=told):
        eval_single_task.main(flags)
    with pytest.raises(SystemExit, match=told):
        eval_task_addition.main([*given, "--tasks=digits,signs"])
    with pytest.raises(SystemExit):
        main.main(["DATASETS=[digits,signs]", "method=sum", *place])
    assert told in capsys.readouterr().err


def results_of(place: list[str], name: str):
    (folder,) = (word.partition("=")[2] for word in place if word.startswith("results="))
    return list(Path(folder).rglob(f"{name}.json"))


def test_older_results_are_fp32(tmp_path):
    path = tmp_path / "older.json"
    results.write(path, {"a": 1}, {"seed": 0}, started=0.0)
    results.require_same(path, {"precision": "fp32"}, ("precision",))
    with pytest.raises(
        results.ResultError, match="expected a result of precision = tf32; found one of precision = fp32"
    ):
        results.require_same(path, {"precision": "tf32"}, ("precision",))


@pytest.mark.parametrize("method", ["adamerging", "concrete_task_arithmetic", "surgery"])
def test_adaptation_in_bf16_is_near_that_in_fp32(place, tmp_path, method):
    """It learns about the same, is scored in bf16 too, and says so."""
    steps = {"concrete_task_arithmetic": "method.mask_steps=4"}.get(method, "method.steps=4")
    found = {}
    for precision in ("fp32", "bf16"):
        folder = tmp_path / precision
        own = [f"results={folder}" if word.startswith("results=") else word for word in place]
        given = [f"--{word.replace('cache_dir', 'cache-dir')}" for word in own]
        for mode in ("none", "standard"):
            flags = [*given, "--tasks=digits,signs", "--control=never", f"--finetuning-mode={mode}"]
            eval_single_task.main([*flags, f"--precision={precision}"])
        words = ["DATASETS=[digits,signs]", f"method={method}", steps, "eval_every=0", f"precision={precision}"]
        main.main([*words, *own])
        (file,) = folder.rglob(f"{method}*.json")
        found[precision] = json.loads(file.read_text())
        assert found[precision]["provenance"]["config"]["precision"] == precision
    for task in ("digits", "signs"):
        one, other = (list(found[p]["adaptation"]["curves"].values())[1][task] for p in ("fp32", "bf16"))
        assert other == pytest.approx(one, rel=0.05) and other != one


def test_finetuning_takes_the_flag_of_every_script(make_training):
    run, settings = make_training("--precision=tf32")
    assert run.precision == settings.precision == "tf32" and "--precision=tf32" in run.flags()


def test_a_precision_that_does_not_exist_is_refused(make_run):
    with pytest.raises(UsageError, match="--precision: expected one of fp32, tf32, bf16; got 'fp16'"):
        dataclasses.replace(make_run(), precision="fp16")
