"""AdaRank against the released function, dense loops and, at its starts, task arithmetic and CART; its refusals.

tests/golden/adapting.npz holds inputs (θ0 and three θ_t of `Tower`, a gradient of θ, in float32, flat, in the sorted
order of their names; λ, b; draws of NumPy) and what `AdaMergingModule` of arXiv:2503.22178 (commit dfa5358) gives for
them in float64, recorded once on torch 2.14 for its two configurations, TA with rank 1 and CART with rank .5: merged
weights at the start and at λ and b, and the gradients of λ and b. For test_surgery.py: features before and after the
adapter of arXiv:2402.02705 (5df3f4e), `AlphaWrapper`.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from adapting_problems import TASKS, Adam, Killed, flat, head, images, result_name, result_of, with_batches
from torch import nn
from torch.func import functional_call

import main
from src import checkpoints
from src.datasets import registry
from src.linearize import LinearizedModel
from src.merging.adaptation import NonFiniteLoss, entropy
from src.merging.adarank import AdaRank, ComponentMask, ComponentModel, about
from src.merging.base import Labelled, Problem, Progress, Unlabelled
from src.merging.matrices import SVD
from src.merging.registry import METHODS, load_methods, variants
from src.merging.spectral import Cart
from src.merging.task_arithmetic import multi_task_vector
from src.runtime.messages import UsageError

GOLDEN = Path(__file__).parent / "golden" / "adapting.npz"
BLOCK = "model.visual.transformer.resblocks.0"
QKV, OUT, FC = f"{BLOCK}.attn.in_proj_weight", f"{BLOCK}.attn.out_proj.weight", f"{BLOCK}.mlp.c_fc.weight"


class Attention(nn.Module):
    """Not attention, but with its names and shapes."""

    def __init__(self):
        super().__init__()
        self.in_proj_weight = nn.Parameter(0.4 * torch.randn(12, 4))
        self.in_proj_bias = nn.Parameter(torch.randn(12))
        self.out_proj = nn.Linear(4, 4)

    def forward(self, x):
        q, k, v = nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        return self.out_proj(q.sigmoid() * k + v)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.mlp, self.ln_1 = Attention(), nn.Module(), nn.LayerNorm(4)
        self.mlp.c_fc = nn.Linear(4, 6)

    def forward(self, x):
        return self.mlp.c_fc(self.ln_1(x + self.attn(x))).tanh()


class Tower(nn.Module):
    """A tower with three matrices in a block, and a projection and a LayerNorm beside them."""

    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.visual = nn.Module()
        self.model.visual.transformer = nn.Module()
        self.model.visual.transformer.resblocks = nn.ModuleList([Block()])
        self.model.visual.proj = nn.Parameter(torch.randn(6, 5))

    def forward(self, x):
        return self.model.visual.transformer.resblocks[0](x) @ self.model.visual.proj


def tower() -> Tower:
    torch.manual_seed(0)
    return Tower().double().eval().requires_grad_(False)


def cut(values: torch.Tensor) -> dict[str, torch.Tensor]:
    """A state dict of all weights in the sorted order of their names."""
    shapes = {name: weight.shape for name, weight in sorted(tower().state_dict().items())}
    pieces = values.split([shape.numel() for shape in shapes.values()])
    return {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}


def problem(batch=images, progress=Progress(), encoder=tower, tasks=TASKS, **fields) -> Problem:
    start, ends = tower().state_dict(), {}
    for number, task in enumerate(tasks):
        torch.manual_seed(number + 1)
        ends[task] = {name: w + 0.3 * torch.randn_like(w) for name, w in start.items()}
    given = dict(model="tiny", seed=3, images=Unlabelled(encoder, batch, head), progress=progress)
    return Problem(start, ends, **given | fields)


def small(**options) -> AdaRank:
    return AdaRank(**dict(batch_size=5, vectors="float64") | options)


def is_matrix(name: str) -> bool:
    return name in (QKV, OUT, FC)


class Round(torch.autograd.Function):
    """1{x > 1/2} whose derivative is taken to be 1: straight-through by its definition."""

    @staticmethod
    def forward(ctx, x):
        return (x > 0.5).to(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def dense(given: Problem, lam: torch.Tensor, b: dict[str, torch.Tensor], start: str, temperature: float = 10.0):
    """Δ of every tensor, with every singular component written out; b: (tasks, r) of a matrix."""
    update = {}
    for place, name in enumerate(given.keys):
        taus = [given.tensor(task, name) for task in given.tasks]
        mean = sum(taus) / len(taus) if start == "cart" else torch.zeros_like(taus[0])
        update[name] = mean
        for t, tau in enumerate(taus):
            delta = tau - mean
            if name in b:
                u, s, vh = torch.linalg.svd(delta, full_matrices=False)
                on = Round.apply(1 / (1 + torch.exp(-b[name][t] / temperature)))
                delta = sum(on[i] * s[i] * torch.outer(u[:, i], vh[i]) for i in range(len(s)))
            update[name] = update[name] + lam[t, place] * delta
    return update


def loss_of(given: Problem, update, number: int, tangent: bool = False) -> torch.Tensor:
    theta = {name: given.pretrained[name] + update[name] for name in given.keys}
    model, total = given.images.encoder(), 0.0
    for task in given.tasks:
        total = total + entropy(head(task)(functional_call(model, theta, (images(task, "test", 5, number),))))
    return total


def logits_at(given: Problem, rank: float, size: float = 0.1) -> dict[str, torch.Tensor]:
    return {
        name: torch.where(torch.arange(4) < int(4 * rank), size, -size).double().repeat(len(given.tasks), 1)
        for name in given.keys
        if is_matrix(name)
    }


# ---- the formula


@pytest.mark.parametrize("start", ["task_arithmetic", "cart"])
@pytest.mark.parametrize("tangent", [False, True])
def test_the_gradient_is_that_of_the_dense_formula_with_a_straight_through_step(start, tangent):
    given = problem(encoder=(lambda: LinearizedModel(tower())) if tangent else tower)
    method = small(start=start, rank=0.5, temperature=2.0, coef=0.7)
    model = ComponentModel(given, method)
    mask, lam = method.mask(model), model.coefficients("layer").requires_grad_()
    with torch.no_grad():
        for logits in mask.logits.values():
            logits += 0.3 * torch.randn_like(logits)  # some on, some off, none where the derivative is the same
    b = {name: logits.detach()[0].clone().requires_grad_() for name, logits in mask.logits.items()}
    assert {name: tuple(value.shape) for name, value in b.items()} == dict.fromkeys((QKV, OUT, FC), (3, 4))
    explicit = lam.detach().clone().requires_grad_()
    expected = loss_of(given, dense(given, explicit, b, start, 2.0), 0)
    assert sum(model.backward(lam, [0], mask).values()) == pytest.approx(expected.item())
    gradients = torch.autograd.grad(expected, [explicit, *b.values()])
    torch.testing.assert_close(lam.grad, gradients[0])
    for name, gradient in zip(b, gradients[1:]):
        assert gradient.abs().min() > 0
        torch.testing.assert_close(mask.logits[name].grad[0], gradient)


def test_the_derivative_of_the_step_is_the_sigmoids_by_hand():
    """∂L/∂b = (uᵀ G v) λ σ_i · σ(b/T)(1 − σ(b/T))/T, where G = ∂L/∂Δ, also for what is off."""
    given = problem()
    method = small(rank=0.5, temperature=3.0)
    model = ComponentModel(given, method)
    mask, lam = method.mask(model), model.coefficients("layer")
    g = torch.randn(6, 4).double()
    (model.update(FC, lam, mask) * g).sum().backward()
    for t, task in enumerate(TASKS):
        u, s, vh = torch.linalg.svd(given.tensor(task, FC), full_matrices=False)
        soft = torch.sigmoid(mask.logits[FC].detach()[0, t] / 3.0)
        expected = torch.einsum("mr,mn,rn->r", u, g, vh) * 0.3 * s * soft * (1 - soft) / 3.0
        torch.testing.assert_close(mask.logits[FC].grad[0, t], expected)


def test_the_mask_is_binary_to_the_last_bit():
    mask = small(rank=0.5).mask(ComponentModel(problem(), small()))
    with torch.no_grad():
        for logits in mask.logits.values():
            logits += 30 * torch.randn_like(logits)
    for name, logits in mask.logits.items():
        assert torch.equal(mask(name), (logits > 0).double())
    assert mask("elsewhere") is None
    assert mask.density() == pytest.approx(np.mean([float((x > 0).double().mean()) for x in mask.logits.values()]))


def test_a_component_is_on_above_a_half_alone_and_shares_count_each_once():
    """σ(0 / T) is 1/2, which is off. Matrices of other ranks: no mean of the matrices' own shares."""
    b = {"w": torch.tensor([[[0.0], [-2.0]]]).double(), "v": torch.tensor(2 * [[[1.0, 0.5], [3.0, -1.0]]]).double()}
    mask, p = ComponentMask(b, 4.0), [1 / (1 + np.exp(-x / 4)) for x in (0, -2, *2 * (1, 0.5, 3, -1))]
    assert mask("w").tolist() == [[[0], [0]]]
    found = about(mask, ("a", "b"))
    assert mask.density() == found["density"] == pytest.approx(np.mean([x > 0.5 for x in p])) == 6 / 10
    assert found["probability"] == pytest.approx(np.mean(p))
    assert found["by_tensor"] == {"w": 0, "v": 6 / 8} and found["by_task"] == {"a": 4 / 5, "b": 2 / 5}


@pytest.mark.parametrize("start", ["task_arithmetic", "cart"])
def test_the_parts_of_a_task_have_the_norm_of_its_vector(start):
    """Singular values do, as the state of an adaptation tells by them whose vectors it is of."""
    given = problem()
    model = ComponentModel(given, small(start=start))
    mean = sum(flat(given.vector(task).vector) for task in TASKS) / 3 if start == "cart" else 0.0
    for index, task in enumerate(TASKS):
        square = sum(float(part.square().sum()) for part in model.parts(index))
        assert square == pytest.approx(float((flat(given.vector(task).vector) - mean).square().sum()))


@pytest.mark.parametrize("case, start, rank, coef", [("TA", "task_arithmetic", 1.0, 0.3), ("CART", "cart", 0.5, 2.3)])
def test_it_is_the_released_function(case, start, rank, coef):
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        golden = {name: torch.from_numpy(arrays[name]).double() for name in arrays.files}
    given = replace(
        problem(), pretrained=cut(golden["theta0"]), finetuned=dict(zip(TASKS, map(cut, golden["theta"]), strict=True))
    )
    method = small(start=start, rank=rank, coef=coef)
    model = ComponentModel(given, method)
    mask, lam = method.mask(model), model.coefficients("layer").requires_grad_()
    theta0 = flat(given.pretrained)
    torch.testing.assert_close(theta0 + flat(model.vector(lam, mask).vector), golden[f"{case}/start"])
    with torch.no_grad():
        lam.copy_(golden[f"{case}/lambda"])
        for name, b in zip(sorted(mask.logits), golden[f"{case}/b"], strict=True):
            mask.logits[name].copy_(b)
    torch.testing.assert_close(theta0 + flat(model.vector(lam, mask).vector), golden[f"{case}/merged"])
    for name, gradient in cut(golden["gradient"]).items():
        model.update(name, lam, mask).backward(gradient)
    torch.testing.assert_close(lam.grad, golden[f"{case}/lambda_grad"])
    for name, gradient in zip(sorted(mask.logits), golden[f"{case}/b_grad"], strict=True):
        torch.testing.assert_close(mask.logits[name].grad[0], gradient)


# ---- its starts are methods


@pytest.mark.parametrize("options", [{}, {"split_qkv": True}, {"matrices": "all"}])
def test_with_every_component_on_it_is_task_arithmetic(options):
    given = problem()
    found = small(steps=0, **options).merge(given)
    expected = 0.3 * multi_task_vector(given)
    torch.testing.assert_close(flat(found.vector("a", 1.0).vector), flat(expected.vector))
    assert found.adaptation["mask"]["density"] == 1


@pytest.mark.parametrize("start", ["task_arithmetic", "cart"])
def test_without_a_mask_every_component_counts(start):
    given = problem()
    model = ComponentModel(given, small(start=start))
    lam = torch.tensor([[0.2], [0.5], [1.1]]).double()
    taus = [flat(given.vector(task).vector) for task in TASKS]
    mean = sum(taus) / 3 if start == "cart" else 0.0
    expected = mean + sum(float(x) * (tau - mean) for x, tau in zip(lam, taus))
    torch.testing.assert_close(flat(model.vector(lam.expand(3, len(given.keys))).vector), expected)


def test_while_no_mask_falls_lambda_is_that_of_adamerging_without_a_clamp():
    load_methods()
    given = problem()
    adamerging = METHODS["adamerging"](batch_size=5, vectors="float64", steps=3, lr=0.1, batches=1, clamp=False)
    found = small(steps=3, lr=0.1, mask_lr=0.0).merge(given)
    expected = adamerging.merge(given)
    torch.testing.assert_close(flat(found.vector("a", 1).vector), flat(expected.vector("a", 1).vector))


@pytest.mark.parametrize("rank", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("lam", [0.7, 2.3])
def test_from_the_average_it_is_cart(rank, lam):
    given = problem()
    found = small(start="cart", rank=rank, coef=lam, steps=0).merge(given)
    expected = Cart(rank=rank, lambdas=[lam]).merge(given)
    torch.testing.assert_close(flat(found.vector("a", 1.0).vector), flat(expected.vector("a", lam).vector))


def test_the_registered_variants_start_as_published():
    load_methods()
    first, second = (METHODS[v.method](**v.options) for v in variants() if v.method == "adarank")
    assert (first.start, first.coef, first.rank, first.temperature) == ("task_arithmetic", 0.3, 1.0, 10.0)
    assert (second.start, second.coef, second.rank, second.initial_logit) == ("cart", 2.3, 0.16, 0.1)


def test_one_task_from_the_average_has_nothing_to_choose():
    given = problem(tasks=("a",))
    found = small(start="cart", steps=2, lr=0.1).merge(given)
    torch.testing.assert_close(flat(found.vector("a", 1.0).vector), flat(given.vector("a").vector))


# ---- its steps


@pytest.mark.parametrize("start, rank, coef", [("task_arithmetic", 1.0, 0.3), ("cart", 0.5, 2.3)])
def test_it_is_the_loop_written_by_hand(start, rank, coef):
    given = problem()
    lam, adam = torch.full((3, len(given.keys)), coef).double(), Adam(0.05)
    options = dict(start=start, rank=rank, coef=coef, initial_logit=0.15, temperature=3.0)  # the last two: no defaults
    b = logits_at(given, rank, 0.15)
    adams = {name: Adam(0.07) for name in b}
    for step in range(5):
        lam, b = lam.requires_grad_(), {name: x.requires_grad_() for name, x in b.items()}
        gradients = torch.autograd.grad(loss_of(given, dense(given, lam, b, start, 3.0), step), [lam, *b.values()])
        lam = adam.step(lam, gradients[0])
        b = {name: adams[name].step(b[name], g) for name, g in zip(b, gradients[1:])}
    found = small(steps=5, lr=0.05, mask_lr=0.07, **options).merge(given)
    torch.testing.assert_close(flat(found.vector("a", 1.0).vector), flat(dense(given, lam, b, start, 3.0)))
    kept = torch.cat([(x > 0).flatten() for x in b.values()])
    about = found.adaptation["mask"]
    assert 0 < kept.double().mean() < 1 and about["density"] == pytest.approx(float(kept.double().mean()))
    assert about["by_tensor"] == pytest.approx({name: float((x > 0).double().mean()) for name, x in b.items()})
    of_task = {t: np.mean([float((x[place] > 0).double().mean()) for x in b.values()]) for place, t in enumerate(TASKS)}
    assert about["by_task"] == pytest.approx(of_task)
    assert found.adaptation["curves"]["density"][-1] < 1 and found.settings == (1.0,) and not found.per_task


def test_the_suite_shortens_the_published_schedule():
    stopped = problem(batch=lambda *a: torch.full((1, 4), float("nan")).double())
    with pytest.raises(NonFiniteLoss, match="step 0 of 10000 "):
        small().merge(stopped)
    with pytest.raises(NonFiniteLoss, match="step 0 of 50 "):
        small().merge(replace(stopped, suite=registry.suite("mini")))
    settings = small(steps=1).merge(replace(problem(), suite=registry.suite("mini"))).adaptation["settings"]
    assert settings["lr"] == settings["mask_lr"] == 1e-3, "steps that were asked for have the published rate"
    tiny = problem(batch=lambda task, split, batch_size, number: images(task, split, 1, number))
    settings = small().merge(replace(tiny, suite=registry.suite("mini"))).adaptation["settings"]
    assert (settings["steps"], settings["lr"], settings["mask_lr"]) == (50, 0.02, 0.02)


@pytest.mark.parametrize("adapt_on", ["test", "val"])
def test_only_the_named_split_is_asked_for(adapt_on):
    asked = set()

    def remembered(task, split, batch_size, number):
        asked.add(split)
        return images(task, split, batch_size, number)

    found = small(steps=1, adapt_on=adapt_on).merge(problem(batch=remembered))
    assert asked == {adapt_on} and found.adaptation["adapt_on"] == adapt_on


def test_decompositions_are_made_once(monkeypatch):
    given, made = problem(), []
    of = SVD.of.__func__
    monkeypatch.setattr(SVD, "of", classmethod(lambda cls, matrix: made.append(1) or of(cls, matrix)))
    for lr in (0.0, 0.1):
        small(steps=2, lr=lr).merge(given)
    assert len(made) == 3 * len(TASKS)


@pytest.mark.parametrize("killed_at", [1, 3, 5])
@pytest.mark.parametrize("start", ["task_arithmetic", "cart"])
def test_a_killed_run_goes_on_and_ends_bit_for_bit_the_same(tmp_path, start, killed_at):
    method, watched, steps = small(start=start, rank=0.5, steps=6, lr=0.1), [], []
    whole = method.merge(problem())

    def watching(step, phase, model):
        watched.append((step, flat(model().vector)))

    def log(values, step):
        steps.append(step)
        if step == killed_at and steps.count(step) == 1:
            raise Killed

    kept = problem(progress=Progress(watching, log, tmp_path / "kept.state", save_every=2))
    with pytest.raises(Killed):
        method.merge(kept)
    again = method.merge(kept)
    assert torch.equal(flat(again.vector("a", 1.0).vector), flat(whole.vector("a", 1.0).vector))
    assert again.adaptation == whole.adaptation
    assert torch.equal(dict(watched)[6], flat(whole.vector("a", 1.0).vector)) and {s for s, _ in watched} == set(
        range(7)
    )
    json.dumps(whole.adaptation)
    with pytest.raises(checkpoints.CheckpointError, match="start "):
        replace(method, start="cart" if start != "cart" else "task_arithmetic").merge(kept)


def test_a_killed_command_goes_on_and_writes_the_same_result(place, monkeypatch):
    options = ["tasks=[digits,signs]", "method=adarank", "method.steps=4", "method.lr=0.2", "method.rank=0.5"]
    command = [*place, *options, "method.batch_size=4", "save_every=1", "eval_every=2"]
    name = result_name("adarank_batch_size=4_rank=0.5_steps=4_lr=0.2")
    main.main(command)
    whole, backward, count = result_of(place, name), ComponentModel.backward, []

    def killing(*which):
        count.append(1)
        if len(count) == 4:
            raise Killed
        return backward(*which)

    monkeypatch.setattr(ComponentModel, "backward", killing)
    with pytest.raises(Killed):
        main.main([*command, "overwrite=True"])
    main.main(command)
    assert len(count) == 5, "one step was left"
    again = result_of(place, name)
    for record in (whole, again):
        del record["provenance"], record["cost"]
    assert again == whole
    assert whole["adaptation"]["watched"]["step"] == [0, 2, 4]
    assert whole["storage"]["this"] == whole["storage"]["merged"]


# ---- what is refused


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(start="average"), "start: expected one of task_arithmetic, cart; got 'average'"),
        (dict(rank=0.0), r"rank: expected a share of the singular values, a number above 0 and at most 1; got 0"),
        (dict(temperature=0.0), "temperature: expected a number above 0; got 0"),
        (dict(initial_logit=0.0), "initial_logit: expected a number above 0; got 0"),
        (dict(steps=-1), "steps: expected a whole number of at least 0; got -1"),
        (dict(mask_lr=-0.1), "mask_lr: expected a number of at least 0; got -0.1"),
        (dict(matrices="some"), "matrices: expected one of all, linear, blocks"),
        (dict(adapt_on="train"), "adapt_on: expected one of test, val; got 'train'"),
        (dict(loss="accuracy"), "loss: expected one of entropy, expert, expert_class, labels; got 'accuracy'"),
    ],
)
def test_wrong_options_say_what_exists(options, message):
    with pytest.raises(UsageError, match=message):
        small(**options).merge(problem())


def test_every_method_that_needs_images_says_so_where_there_are_none():
    """In the problem, or in the split: by name or by task, before a loop without an end or a loss that is no number."""
    load_methods()
    names = {cls.name for cls in METHODS.values() if cls.needs != "weights"}
    assert len(names) > 10
    for name in sorted(names):
        options = {"base": "average"} if name in ("featcal", "surgery") else {}
        method = METHODS[name](**options)
        given = replace(problem(), validation=Labelled(lambda *which: torch.zeros(0, dtype=torch.long)))
        with pytest.raises(UsageError, match=f"{name} needs unlabelled images; the problem comes without them"):
            method.merge(replace(given, images=None))
        empty = replace(given.images, batch=lambda *which: torch.zeros(0, 4).double())
        with pytest.raises(UsageError, match="a: expected unlabelled images of split (train|test|val), found none"):
            method.merge(replace(given, images=empty))


@pytest.mark.parametrize("matrices, key", [("blocks", "model.visual.proj"), ("linear", f"{BLOCK}.ln_1.bias")])
def test_a_model_without_such_matrices_is_refused_with_the_option_that_has_some(matrices, key):
    whole = problem()
    start, end = ({key: theta[key]} for theta in (whole.pretrained, whole.finetuned["a"]))
    given = Problem(start, {"a": end}, images=whole.images)
    with pytest.raises(UsageError, match=f"found none with matrices={matrices}: try method.matrices=all"):
        small(matrices=matrices).merge(given)


def test_an_entropy_that_is_no_number_stops_and_keeps_the_last_good_state(tmp_path):
    def broken(task, split, batch_size, number):
        return images(task, split, batch_size, number) * (float("nan") if number == 3 else 1)

    given = problem(progress=Progress(state=tmp_path / "kept.state", save_every=20))
    with pytest.raises(NonFiniteLoss, match=r"step 3 of .*smaller rate \(method.lr=... or method.mask_lr=...\)"):
        small(steps=6).merge(with_batches(given, broken))
    assert checkpoints.header(Path(tmp_path / "kept.state"))["step"] == 3
