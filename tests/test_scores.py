"""No forward pass is made twice: what a reproduction has scored once it takes from there, to the last bit."""

import json

import pytest
import torch

import eval_single_task
import eval_task_addition
import eval_task_negation
import main
from src import evaluation, scores, store
from src.evaluation import ORIGIN, Line, score, score_all

IMAGES = 12  # of a split, of which `place` makes three tasks


@pytest.fixture
def passes(place, make_run):
    """How many images the encoder has seen since it was last asked: passes()."""
    run = make_run("--tasks", "digits", "signs", "letters")
    seen = []
    hook = store.encoder(run).register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))

    def since() -> int:
        count = sum(seen)
        seen.clear()
        return count

    yield since
    hook.remove()


@pytest.fixture
def flags(make_run):
    run = make_run("--tasks", "digits", "signs", "letters")
    places = {"save": run.places.save, "cache-dir": run.places.cache, "results": run.places.results}
    return ["--seed=0", "--jobs=1", "--device=cpu", "--tasks=digits,signs,letters"] + [
        f"--{name}={folder}" for name, folder in places.items()
    ]


def results_of(run) -> dict[str, dict]:
    files = sorted(run.places.results.rglob("*.json"))
    records = {path.name: json.loads(path.read_text()) for path in files}
    for record in records.values():
        del record["provenance"]
        record.pop("cost", None)
    return records


def test_merges_on_additions_line_take_no_pass_that_it_took(place, passes, flags, make_run):
    run = make_run("--tasks", "digits", "signs", "letters")
    tasks = "tasks=[digits,signs,letters]"
    for mode in ("none", "standard"):  # those of `place` are made up
        eval_single_task.main([*flags, f"--finetuning-mode={mode}", "--overwrite"])
    commands = [
        lambda: eval_task_addition.main([*flags, "--n-eval-points=11", "--overwrite"]),
        *(
            lambda method=method: main.main([*place, tasks, f"method={method}", "overwrite=True"])
            for method in ("zeroshot", "average", "sum")
        ),
    ]
    apart = []
    for command in commands:
        passes()
        command()
        apart.append(passes() // (3 * IMAGES))
    expected = results_of(run)
    with scores.shared():
        eval_single_task.main([*flags, "--finetuning-mode=none", "--overwrite"])
        together = []
        for command in commands:
            passes()
            command()
            together.append(passes() // (3 * IMAGES))
    found = results_of(run)
    # Passes over a split of all tasks: 11 coefficients, the chosen one and 1; 1 and 1; 1 and 1; 10, and at most 3.
    chosen = [found[name]["chosen"]["digits"] for name in ("addition_standard.json", "sum.json")]
    tested = [{chosen[0], 1.0}, {0.0}, {1 / 3}, {chosen[1], 0.3, 1.0}]
    assert apart == [11 + len(tested[0]), 2, 2, 10 + len(tested[3])]
    known = {0.0}  # of single tasks
    assert together == [10 + len(tested[0] - known), 0, 2, len(tested[3] - tested[0] - known)]
    assert found == expected


@pytest.mark.parametrize("mode", ["posthoc", "standard"])
def test_negation_has_the_tangents_of_the_single_tasks(place, passes, flags, make_run, mode):
    run = make_run("--tasks", "digits", "signs", "letters")
    single = [*flags, f"--finetuning-mode={mode}", "--overwrite"]
    negate = [*flags, f"--finetuning-mode={mode}", "--n-eval-points=5", "--overwrite"]
    eval_single_task.main([*flags, "--finetuning-mode=none", "--overwrite"])
    eval_single_task.main(single)
    passes()
    eval_task_negation.main(negate)
    alone = passes()
    expected = results_of(run)
    with scores.shared():
        eval_single_task.main([*flags, "--finetuning-mode=none", "--overwrite"])
        eval_single_task.main(single)
        passes()
        eval_task_negation.main(negate)
        after = passes()
    assert results_of(run) == expected
    if mode == "posthoc":
        assert after == 0 and alone == 2 * 7 * IMAGES  # 3 tasks, each on itself and on the control; the control alone
    else:  # at α = 0 all are the pre-trained model
        assert after <= (2 * 3) * (4 + 1) * IMAGES < alone


def test_a_coefficient_that_is_asked_twice_is_computed_once(make_run, passes, place):
    run = make_run("--tasks", "digits", "signs", "letters")
    tau = {name: 0.01 * torch.ones_like(p) for name, p in store.encoder(run).named_parameters() if "visual" in name}
    passes()
    lines = {
        "one": ("digits", Line(tau, (0.5, 0.5, 0.0))),
        "two": ("digits", Line(tau, (0.0, 1.0))),
        3: ("digits", ORIGIN),
    }
    curves = score_all(run, "standard", lines, "val", "")
    assert passes() == 3 * IMAGES
    assert curves["one"].accuracy[0] == curves["one"].accuracy[1]
    assert curves["one"].loss[2] == curves["two"].loss[0] == curves[3].loss[0]
    for key, (dataset, line) in lines.items():
        assert curves[key] == score(run, dataset, "val", line, False)


def test_other_weights_images_and_models_are_other_scores(make_run, passes, place):
    run = make_run("--tasks", "digits", "signs", "letters")
    tau = {name: 0.01 * torch.ones_like(p) for name, p in store.encoder(run).named_parameters() if "visual" in name}
    other = {name: tensor.clone() for name, tensor in tau.items()}
    with scores.shared():
        passes()
        score_all(run, "standard", {0: ("digits", Line(tau))}, "val", "")
        score_all(run, "standard", {0: ("digits", Line(other))}, "val", "")  # equal, and another object
        assert passes() == IMAGES
        other["model.visual.proj"][0, 0] += 1e-6
        for mode, split, line in (
            ("standard", "val", Line(other)),
            ("standard", "test", Line(tau)),
            ("linear", "val", Line(tau)),
            ("standard", "val", Line(tau, offset=other)),
            ("standard", "val", Line(tau, adapter=torch.nn.Identity())),
        ):
            score_all(run, mode, {0: ("digits", line)}, split, "")
            assert passes() == IMAGES, (mode, split)


def test_features_are_kept_within_their_room(make_run, passes, place, monkeypatch):
    run = make_run("--tasks", "digits", "signs", "letters")
    tau = {name: 0.01 * torch.ones_like(p) for name, p in store.encoder(run).named_parameters() if "visual" in name}
    with scores.shared() as known:
        known.room = 2 * IMAGES * 64 * 4  # of one split, or less
        for alpha, expected in ((0.5, IMAGES), (0.6, 0)):
            score_all(run, "linear", {0: ("digits", Line(tau, (alpha,)))}, "val", "")
            assert passes() in (expected, IMAGES)
        assert sum(map(scores._bytes, known.features.values())) <= known.room
        known.room = 1
        score_all(run, "linear", {0: ("digits", Line(tau, (0.7,)))}, "test", "")
        assert not known.features
    assert evaluation.scores_of(run, True, "val")[0] is not known
