"""The course of an adaptation: its readings and correlations by hand, and the run against main.py's."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import synthetic_results
import torch
from adapting_problems import PAIR, Killed, result_name, result_of
from matplotlib import pyplot as plt

import eval_course
import main
from src import checkpoints, store
from src.datasets import loading
from src.experiments import course as adaptive
from src.experiments.registry import COURSE
from src.heads import get_classification_head
from src.merging import adamerging
from src.merging.base import Variant
from src.modeling import ImageEncoder
from src.reporting.claim import examine
from src.reporting.comparison.claims import CLAIMS
from src.reporting.comparison.course import BEST, LAST, Following, Reading, course, course_figure
from src.reporting.runs import Runs
from src.reporting.statistics import Difference
from src.reporting.verdict import EQUAL, FAILS, HOLDS, UNDECIDED, Comparison
from src.runtime import results
from src.runtime.messages import UsageError


def made_up(val: list[list[float]], test: list[list[float]], loss: list[list[float]], proxy: list[list[float]]):
    def by_task(curves: list[list[float]]) -> dict[str, list[float]]:
        return dict(zip("ab", curves, strict=True))

    return {
        "minimised": "entropy",
        "step": list(range(len(val[0]))),
        "phase": ["lambda"] * len(val[0]),
        "val": {"accuracy": by_task(val), "loss": by_task(loss)},
        "test": {"accuracy": by_task(test), "loss": by_task(loss)},
        "proxies": {"entropy": by_task(proxy), "expert": by_task(loss)},
    }


def test_readings_of_one_run():
    one = [[0.0] * 4] * 2
    test = [[0.5, 0.9, 0.7, 0.6], [0.5, 0.3, 0.7, 0.6]]  # means .5, .6, .7, .6
    val = [[0.1, 0.8, 0.4, 0.6], [0.3, 0.4, 0.4, 0.6]]  # means .2, .6, .4, .6: the earlier of the two best
    found = adaptive.readings(made_up(val, test, one, one))
    assert found == pytest.approx((0.6, 0.7, 0.6)) and found.best - found.last == pytest.approx(0.1)
    later = adaptive.readings(made_up([[0.1, 0.8, 0.9, 0.6]] * 2, test, one, one))
    assert later.stopped == pytest.approx(0.7)


def test_following_is_spearmans_over_the_points_and_a_mean_over_tasks():
    loss, proxy = [4.0, 3.0, 2.0, 1.0], [9.0, 1.0, 3.0, 2.0]
    ranks = np.array([4, 3, 2, 1]) - np.array([4, 1, 3, 2])
    by_hand = 1 - 6 * (ranks**2).sum() / (4 * 15)
    found = made_up([loss] * 2, [loss] * 2, [loss] * 2, [proxy, [math.exp(value) for value in loss]])
    assert adaptive.following(found, "entropy") == pytest.approx((by_hand + 1) / 2)
    assert adaptive.following(found, "expert") == pytest.approx(1), "which is the loss here"
    still = made_up([loss] * 2, [loss] * 2, [loss] * 2, [proxy, [2.0] * 4])
    assert adaptive.following(still, "entropy") == pytest.approx(by_hand), "a task without an order says nothing"
    none = made_up([loss] * 2, [loss] * 2, [[2.0] * 4] * 2, [proxy] * 2)
    assert math.isnan(adaptive.following(none, "entropy"))
    record = {"finetuning_mode": "standard", "tasks": ["a", "b"], "every": 1, "methods": {"m": none}}
    assert {n.metric: n.value for n in adaptive.numbers(record, "mini")}["following_entropy_m"] is None


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        (["sum"], "sum does not. Known: .*adarank"),
        (["atlas"], "atlas does not"),
        (["adarnk"], "did you mean .*adarank"),
    ],
)
def test_methods_that_minimise_neither_are_refused(make_run, methods, told):
    with pytest.raises(UsageError, match=f"(?is)--methods: expected .*{told}"):
        adaptive.measure_course(make_run("--tasks", *PAIR), "standard", methods)


def test_a_course_is_that_of_main_and_its_proxies_are_those_of_the_models(place, make_run, tmp_path):
    run = make_run("--tasks", *PAIR)
    options = {"steps": 3, "batch_size": 4, "loss": "expert"}
    merged = tmp_path / "merged.safetensors"
    flags = [f"tasks=[{','.join(PAIR)}]", *Variant("", options, method="adamerging").overrides]
    main.main([*place, *flags, "eval_every=2", f"output={merged}"])
    theirs = result_of(place, result_name("adamerging_batch_size=4_steps=3_loss=expert"))

    watch = adaptive.CourseWatch(run, "standard", Variant("", options, method="adamerging"), every=2)
    ours = adaptive.course_of(watch)
    assert ours["step"] == [0, 2, 3] and ours["phase"] == ["lambda"] * 3 and ours["minimised"] == "expert"
    for task in PAIR:
        watched = theirs["adaptation"]["watched"]["accuracy"][task]
        assert ours["val"]["accuracy"][task] == pytest.approx([*watched, theirs["val"]["accuracy"][task][0]])
        assert ours["test"]["accuracy"][task][-1] == pytest.approx(theirs["test"]["accuracy"][task])
        assert ours["test"]["loss"][task][-1] == pytest.approx(theirs["test"]["loss"][task], rel=1e-5)
        encoder, head = ImageEncoder(run), get_classification_head(run, task)
        images = torch.cat([batch for batch, _ in loading.evaluation_batches(run, encoder, task, "test")])
        encoder.load_state_dict(dict(checkpoints.Checkpoint(merged)))
        with torch.no_grad():
            p = head(encoder(images)).double().softmax(1)
        encoder.load_state_dict(dict(store.finetuned(run, task, "standard")))
        with torch.no_grad():
            q = head(encoder(images)).double().softmax(1)
        entropy, expert = (float(-(weights * p.log()).sum(1).mean()) for weights in (p, q))
        assert ours["proxies"]["entropy"][task][-1] == pytest.approx(entropy, rel=1e-4)
        assert ours["proxies"]["expert"][task][-1] == pytest.approx(expert, rel=1e-4)
    whole = adaptive.course_of(replace_every(watch, 3))
    assert whole["step"] == [0, 3] and whole["test"]["loss"][PAIR[0]] == pytest.approx(
        [ours["test"]["loss"][PAIR[0]][index] for index in (0, 2)]
    ), "that somebody looks changes nothing"


def replace_every(watch: adaptive.CourseWatch, every: int) -> adaptive.CourseWatch:
    return adaptive.CourseWatch(watch.run, watch.mode, watch.variant, every)


def test_a_killed_script_goes_on_and_a_finished_one_is_left_alone(place, make_run, monkeypatch):
    run = make_run("--tasks", *PAIR)
    monkeypatch.setitem(adamerging.VARIANTS, "original", adamerging.Published(40, 1, clamp=True))  # 2 steps on mini
    folders = [f"--{flag}={getattr(run.places, name)}" for flag, name in
               {"save": "save", "results": "results", "cache-dir": "cache"}.items()]  # fmt: skip
    methods = ["--methods", "adamerging", "adamerging_loss=expert"]
    command = ["--seed=0", "--jobs=1", "--device=cpu", "--every=1", *folders, *methods, "--tasks", *PAIR]
    make, count = loading.batch_of, []

    def killing(*which):
        count.append(1)
        if len(count) == 20:  # when the first method is done
            raise Killed
        return make(*which)

    monkeypatch.setattr(loading, "batch_of", killing)
    with pytest.raises(Killed):
        eval_course.main(command)
    kept = sorted(file.name for file in run.paths.adaptation_state("x").parent.rglob("course_*"))
    assert any("adamerging_every=1.watched" in name for name in kept), kept
    monkeypatch.setattr(loading, "batch_of", make)
    eval_course.main(command)
    path = run.paths.result(COURSE.result("standard"))
    resumed = results.read(path)
    assert not [*run.paths.adaptation_state("x").parent.rglob("course_*")], "what is unfinished goes with the end"
    before = path.read_bytes()
    eval_course.main(command)
    assert path.read_bytes() == before, "the same result is there"
    eval_course.main([*command, "--overwrite"])
    assert results.read(path)["methods"] == resumed["methods"]
    with pytest.raises(SystemExit):
        eval_course.main([*command, "--every=2"])


def test_table_figure_and_claims_of_courses(tmp_path):
    for seed in (1, 2):
        file = tmp_path / f"mini/ViT-Mini/seed_{seed}/{COURSE.result('standard')}.json"
        synthetic_results.dump(file, synthetic_results.course_of_adaptations("standard", seed))
    runs = Runs("mini", "ViT-Mini", tmp_path)
    (table,) = course(runs)
    assert table.name == "course" and [row[0] for row in table.rows] == [
        "AdaMerging, layer-wise", "AdaMerging, layer-wise, expert labels", "AdaRank",
    ]  # fmt: skip
    last, best, stopped, gain = (table.rows[2][column].ours for column in (1, 2, 3, 4))
    pd.testing.assert_series_equal(best - last, gain)
    assert gain.between(3.5, 4.5).all() and (stopped <= best).all()
    assert [row[5] for row in table.rows] == ["entropy", "experts' labels", "entropy"]
    assert table.rows[1][6].ours.tolist() == pytest.approx([1, 1])
    figure = course_figure(runs)
    assert len(figure.axes) == 3 and [len(axes.lines) for axes in figure.axes] == [3, 3, 3]
    plt.close(figure)
    adarank, symerge = (claim for claim in CLAIMS if isinstance(claim.quantities[0], (Reading, Following)))
    assert adarank.margin == -0.5 and examine(adarank, runs).verdict == HOLDS
    assert examine(symerge, runs).verdict == HOLDS
    values = [quantity.values(runs) for quantity in adarank.quantities]
    assert values[0].equals(Reading("adarank", BEST).values(runs)) and values[1].equals(
        Reading("adarank", LAST).values(runs)
    )
    absent = examine(adarank, Runs("mini", "ViT-Mini", tmp_path / "nothing", (1,)))
    assert absent.missing == (f"python eval_course.py --finetuning-mode=standard --model=ViT-Mini --seed=1 "
                              f"--results={tmp_path / 'nothing'}",)  # fmt: skip


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([0.2, 0.2, 0.3], FAILS), ([0.7, 0.8, 0.75], HOLDS), ([0.4, 0.6, 0.5], UNDECIDED), ([0.0, 0.0, 0.1], FAILS)],
)
def test_a_negative_margin_asks_for_more_than_zero_and_nothing_counts_as_equal(values, verdict):
    comparison = Comparison(Difference(pd.Series(values)), margin=-0.5, equal_within=-0.5)
    assert comparison.verdict == verdict
    assert replace(comparison, margin=0.0, equal_within=1.0).verdict == EQUAL
