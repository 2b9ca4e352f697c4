"""Surgery against loops written here and closed forms, its scores with adapters, its steps and its refusals."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from adapting_problems import TASKS, Adam, Killed, flat, images, problem, tower
from torch.func import functional_call, jvp

import main
from src import checkpoints
from src.datasets import registry
from src.evaluation import Line, score, score_all
from src.linearize import LinearizedModel
from src.merging import surgery
from src.merging.adaptation import NonFiniteLoss
from src.merging.base import Merge, Method, Problem, Progress
from src.merging.registry import load_methods
from src.merging.search import Searched
from src.merging.surgery import Adapter, Surgery
from src.merging.task_arithmetic import multi_task_vector
from src.runtime.messages import UsageError

D = 5  # features of the tower


def small(**options) -> Surgery:
    load_methods()
    return Surgery(**dict(batch_size=5, rank=3) | options)


def features(given: Problem, theta, batch: torch.Tensor) -> torch.Tensor:
    return functional_call(given.images.encoder(), theta, (batch,))


def merged_theta(given: Problem, alpha: float = 0.3):
    return given.pretrained | {n: given.pretrained[n] + alpha * t for n, t in multi_task_vector(given).vector.items()}


def written_out(given: Problem, theta, task: str, down, up, number: int, split: str = "test") -> torch.Tensor:
    """mean over images and features of |f_t − (f − U max(D f, 0))|."""
    batch = images(task, split, 5, number)
    f, f_t = features(given, theta, batch), features(given, given.finetuned[task], batch)
    total = 0.0
    for row, target in zip(f, f_t):
        total = total + (target - (row - up @ (down @ row).clamp(min=0))).abs().sum()
    return total / (len(f) * D)


# ---- the formula


def test_an_adapter_is_its_formula():
    torch.manual_seed(0)
    down, up, f = torch.randn(3, D).double(), torch.randn(D, 3).double(), torch.randn(7, D).double()
    expected = torch.stack([row - up @ torch.relu(down @ row) for row in f])
    torch.testing.assert_close(Adapter(down, up)(f), expected)


def test_an_adapter_is_the_released_one():
    """See test_adarank.py."""
    with np.load(Path(__file__).parent / "golden" / "adapting.npz", allow_pickle=False) as arrays:
        parts = ("down", "up", "before", "after")
        down, up, before, after = (torch.from_numpy(arrays[f"surgery/{part}"]).double() for part in parts)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(Adapter(down, up)(before), after)


def test_it_starts_as_the_base_with_a_uniform_down_projection():
    given = problem()
    found = small(steps=0, rank=2000).merge(given)
    batch = images("a", "test", 5, 0)
    for task in TASKS:
        adapter = found.adapter(task, 0.3)
        f = features(given, merged_theta(given), batch)
        assert torch.equal(adapter(f), f)
        bound = D**-0.5
        assert adapter.down.abs().max() <= bound and adapter.down.abs().max() > 0.99 * bound
        assert float(adapter.down.mean()) == pytest.approx(0, abs=0.02)
    assert not torch.equal(found.adapters["a"].down, found.adapters["b"].down)


def test_down_projections_are_drawn_by_the_seed():
    first, again, other = (small(steps=0).merge(problem(seed=seed)).adapters["a"].down for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_only_coefficient_of_a_base_is_taken():
    given = problem()
    found = small(steps=0, base="average").merge(given)
    assert found.settings == (1 / 3,)
    torch.testing.assert_close(flat(found.vector("a", 1 / 3).vector), flat((1 / 3 * multi_task_vector(given)).vector))


def test_it_is_the_loop_written_by_hand():
    given = problem()
    start = small(steps=0).merge(given)
    found = small(steps=4, lr=0.05).merge(given)
    theta = merged_theta(given)
    curve = found.adaptation["curves"]
    for task in TASKS:
        down, up = (tensor.clone() for tensor in vars(start.adapters[task]).values())
        adams = Adam(0.05), Adam(0.05)
        for step in range(4):
            down.requires_grad_(), up.requires_grad_()
            loss = written_out(given, theta, task, down, up, step)
            assert curve["loss"][task][step] == pytest.approx(loss.item())
            gradients = torch.autograd.grad(loss, (down, up))
            down, up = (adam.step(x, g) for adam, x, g in zip(adams, (down, up), gradients))
        torch.testing.assert_close(found.adapters[task].down, down)
        torch.testing.assert_close(found.adapters[task].up, up)
    torch.testing.assert_close(flat(found.vector("a", 0.3).vector), flat((0.3 * multi_task_vector(given)).vector))
    assert found.per_task and found.settings == (0.3,)


def test_a_tasks_adapter_does_not_hang_on_the_other_tasks():
    """Of other heads and images there is one Adam, whose moments are each weight's own."""
    given = problem()
    alone = replace(given, finetuned={"b": given.finetuned["b"]})
    one = small(steps=3, lr=0.05, base="zeroshot").merge(given)
    other = small(steps=3, lr=0.05, base="zeroshot").merge(alone)
    torch.testing.assert_close(one.adapters["b"].up, other.adapters["b"].up)


def test_the_experts_own_model_needs_no_surgery():
    """With the merged model at θ_t the loss is 0 from the start, and U stays 0."""
    given = problem()
    alone = replace(given, finetuned={"b": given.finetuned["b"]})
    found = small(steps=3, lr=0.05, coefficient=1.0).merge(alone)
    assert found.adaptation["curves"]["loss"]["b"] == pytest.approx([0, 0, 0], abs=1e-12)


def test_the_best_correction_of_a_constant_bias_is_found():
    """f_t − f is one vector for all images where only the last bias differs, and U ReLU(D f) can be nearly that."""
    start = tower().state_dict()
    key = "model.visual.3.bias"
    end = {n: w + 1.0 if n == key else w for n, w in start.items()}
    given = replace(problem(), finetuned={"a": end})
    found = small(steps=400, lr=0.02, base="zeroshot", rank=8, batch_size=32).merge(given)
    losses = found.adaptation["curves"]["loss"]["a"]
    assert losses[0] == pytest.approx(1.0) and losses[-1] < 0.25


def test_a_tangent_model_has_its_features_corrected():
    given = problem(mode="linear", encoder=lambda: LinearizedModel(tower()))
    found = small(steps=1, lr=0.0).merge(given)
    start = {name: given.pretrained[name] for name in given.keys}
    encoder = tower()
    batch = images("a", "test", 5, 0)

    def linear(update):
        f0, slope = jvp(lambda p: functional_call(encoder, p, (batch,)), (start,), (update,))
        return f0 + slope

    f = linear({name: 0.3 * tau for name, tau in multi_task_vector(given).vector.items()})
    f_t = linear(given.vector("a").vector)
    assert found.adaptation["curves"]["loss"]["a"][0] == pytest.approx(float((f - f_t).abs().mean()))


@dataclass
class PerTask(Merge):
    problem: Problem = None

    def vector(self, task, setting):
        return setting * self.problem.vector(task)


def test_a_base_with_a_model_for_each_task_is_corrected_in_each(monkeypatch):
    given = problem()

    @dataclass
    class Own(Method):
        def merge(self, problem: Problem) -> Merge:
            return PerTask(settings=(1.0,), storage_bits=7, per_task=True, problem=problem)

    monkeypatch.setattr(Surgery, "base_method", lambda self: Own())
    found = small(steps=2, lr=0.1).merge(given)
    assert found.storage_bits == 7 + 32 * 3 * 2 * 3 * D
    for task in TASKS:
        assert found.adaptation["curves"]["loss"][task] == pytest.approx([0, 0], abs=1e-12)
        torch.testing.assert_close(flat(found.vector(task, 1.0).vector), flat(given.vector(task).vector))


def test_what_the_base_tells_and_keeps_is_told_and_kept(monkeypatch):
    """Such as tensors without rank, and the logits of a mask."""
    given = problem()

    class Keeping(PerTask):
        def finish(self, chosen):
            return {"kept": chosen}

    @dataclass
    class Own(Method):
        def merge(self, problem: Problem) -> Merge:
            return Keeping(settings=(1.0,), storage_bits=7, per_task=True, info={"told": 1}, problem=problem)

    monkeypatch.setattr(Surgery, "base_method", lambda self: Own())
    found, chosen = small(steps=0).merge(given), dict.fromkeys(TASKS, 1.0)
    assert found.info == {"told": 1} and found.finish(chosen) == {"kept": chosen}


def test_storage_is_the_bases_and_two_matrices_a_task():
    given = problem()
    found = small(steps=0).merge(given)
    assert found.storage_bits == given.storage_merged() + 32 * len(TASKS) * 2 * 3 * D


# ---- scores


def test_the_lines_are_scored_with_the_adapters(make_run):
    run = make_run("--tasks", "digits,signs")
    torch.manual_seed(0)
    d = 128
    swap = Adapter(torch.eye(d), 2 * torch.eye(d))  # f − 2 max(f, 0) = −|f|
    plain, changed = (score(run, "digits", "val", Line({}, adapter=a), False) for a in (None, swap))
    assert plain.accuracy != changed.accuracy and plain.n == changed.n
    none = Adapter(torch.eye(d), torch.zeros(d, d))
    assert score(run, "digits", "val", Line({}, adapter=none), False) == plain
    lines = {0: ("digits", Line({}, adapter=swap)), 1: ("digits", Line({}))}
    with forked.workers():
        at_once = score_all(replace(run, jobs=2), "standard", lines, "val", "")
    assert (at_once[0], at_once[1]) == (changed, plain), "adapters go to other processes"


def test_a_search_over_settings_keeps_each_ones_adapters(tmp_path):
    given = problem(progress=Progress(state=tmp_path / "kept.state", save_every=1))
    found = Searched.over(small(steps=2, lr=0.1), {"coefficient": [0.1, 0.5]}, given)
    for chosen in found.settings:
        alone = small(steps=2, lr=0.1, coefficient=chosen["coefficient"]).merge(problem())
        assert torch.equal(found.adapter("b", chosen).up, alone.adapters["b"].up)
    assert [chosen["coefficient"] for chosen in found.settings] == [0.1, 0.5]


# ---- protocol and steps


def test_the_suite_shortens_the_published_schedule():
    stopped = problem(batch=lambda *a: torch.full((1, 4), float("nan")).double())
    with pytest.raises(NonFiniteLoss, match="step 0 of 1000 .*method.lr"):
        small().merge(stopped)
    with pytest.raises(NonFiniteLoss, match="step 0 of 50 "):
        small().merge(replace(stopped, suite=registry.suite("mini")))


@pytest.mark.parametrize("adapt_on", ["test", "val"])
def test_only_the_named_split_is_asked_for_and_never_a_label(adapt_on):
    asked = set()

    def remembered(task, split, batch_size, number):
        asked.add(split)
        return images(task, split, batch_size, number)

    given = replace(problem(batch=remembered), validation=None)
    found = small(steps=1, adapt_on=adapt_on).merge(given)
    assert asked == {adapt_on} and found.adaptation["adapt_on"] == adapt_on


@pytest.mark.parametrize("killed_at", [1, 3, 5])
@pytest.mark.parametrize("base", ["sum", "adamerging"])
def test_a_killed_run_goes_on_and_ends_bit_for_bit_the_same(tmp_path, base, killed_at):
    options = {"base_options": {"steps": 3, "batch_size": 5, "lr": 0.1}} if base == "adamerging" else {}
    method, watched, count = small(base=base, steps=6, lr=0.1, **options), [], []
    whole = method.merge(problem())

    def watching(step, phase, model):
        watched.append((step, {task: line.adapter for task, line in model().items()}))

    def log(values, step):
        if "loss/a" in values:  # not of the base
            count.append(step)
        if step == killed_at and count.count(step) == 1:
            raise Killed

    kept = problem(progress=Progress(watching, log, tmp_path / "kept.state", save_every=2))
    with pytest.raises(Killed):
        method.merge(kept)
    again = method.merge(kept)
    for task in TASKS:
        for name, tensor in vars(whole.adapters[task]).items():
            assert torch.equal(vars(again.adapters[task])[name], tensor)
            assert torch.equal(vars(dict(watched)[6][task])[name], tensor)
    assert again.adaptation == whole.adaptation
    vectors = [flat(made.vector("a", made.settings[0]).vector) for made in (again, whole)]
    assert torch.equal(*vectors)
    json.dumps(whole.adaptation)
    with pytest.raises(checkpoints.CheckpointError, match=r"rank 3 \(now 2\)"):
        replace(method, rank=2).merge(kept)


def test_a_killed_command_goes_on_writes_the_same_result_and_keeps_its_adapters(place, monkeypatch, tmp_path):
    options = ["tasks=[digits,signs]", "method=surgery", "method.base=adamerging", "method.steps=4", "save_every=1"]
    options += ["+method.base_options.steps=2", "+method.base_options.batch_size=4", "method.batch_size=4"]
    command = [*place, *options, "eval_every=2"]
    main.main([*command, f"output={tmp_path}/merged.safetensors"])
    folder = tmp_path / "results"
    (path,) = (p for p in folder.rglob("merging/**/surgery*.json"))
    whole = json.loads(path.read_text())
    loss, count = surgery.Operation.loss, []

    def killing(*which):
        count.append(1)
        if len(count) == 7:
            raise Killed
        return loss(*which)

    monkeypatch.setattr(surgery.Operation, "loss", killing)
    with pytest.raises(Killed):
        main.main([*command, "overwrite=True"])
    states = tmp_path / "checkpoints/mini/ViT-Mini/seed_0/adaptation"
    assert len([p for p in states.rglob("*") if ".state" in p.name and p.is_file()]) == 3, "two states, and the watch"
    main.main(command)
    assert len(count) == 9, "one step of two tasks was left"
    again = json.loads(path.read_text())
    for record in (whole, again):
        del record["provenance"], record["cost"]
        record.pop("output", None)
    assert again == whole
    assert not [p for p in states.rglob("*") if p.is_file()], "states go when the result is there, the base's too"
    watched = whole["adaptation"]["watched"]
    assert watched["step"] == [0, 2, 4] and watched["phase"] == ["surgery"] * 3
    assert watched["accuracy"]["digits"][-1] == whole["val"]["accuracy"]["digits"][0]
    assert whole["adaptation"]["lambda"] is whole["adaptation"]["mask"] is None
    assert whole["storage"]["this"] == whole["storage"]["merged"] + 32 * 2 * 2 * 16 * 128
    with checkpoints.safe_open(tmp_path / "merged.digits.safetensors", framework="pt") as file:
        assert {"adapter.down", "adapter.up"} < set(file.keys())
    encoder = checkpoints.Checkpoint(next((tmp_path / "checkpoints").rglob("digits/*.safetensors")))
    with pytest.raises(checkpoints.CheckpointError, match="adapter.down"):
        checkpoints.Checkpoint(tmp_path / "merged.digits.safetensors", like=encoder)


# ---- what is refused


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(base="summ"), "base: no merging method is called 'summ'"),
        (dict(base="surgery"), "base: expected a method without adapters; got surgery"),
        (dict(rank=0), "rank: expected a whole number of at least 1; got 0"),
        (dict(batch_size=0), "batch_size: expected a whole number of at least 1; got 0"),
        (dict(steps=-1), "steps: expected a whole number of at least 0; got -1"),
        (dict(lr=-1.0), "lr: expected a number of at least 0; got -1.0"),
        (dict(adapt_on="train"), "adapt_on: expected one of test, val; got 'train'"),
        (dict(base="dare"), "dare is a mean over random ones: take another base, such as sum or ties"),
    ],
)
def test_wrong_options_say_what_exists(options, message):
    with pytest.raises(UsageError, match=message):
        small(**options).merge(problem())


def test_a_problem_without_images_is_refused_before_the_base_is_merged():
    with pytest.raises(UsageError, match="surgery needs unlabelled images"):
        small(base="nothing").merge(problem(images=None))


def test_unseen_tasks_have_no_adapter(place, capsys):
    with pytest.raises(SystemExit):
        main.main([*place, "tasks=[digits,signs]", "unseen=[letters]", "method=surgery", "method.steps=0"])
    assert "a model for each merged task, and none for letters" in capsys.readouterr().err
