"""Numbers that make no sense are refused before any work, with the same words wherever they come from."""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import get_args

import pytest
import yaml
from script_parsers import every_flag

import demo
import eval_disentanglement
import eval_ntk_localization
import eval_single_task
import eval_task_addition
import eval_task_negation
import finetune
import main
import reproduce
from src import modeling
from src.args import shared_flags
from src.datasets import registry
from src.datasets.mini import draw
from src.experiments.merging import take_options
from src.finetuning.settings import Training
from src.merging.registry import registered
from src.merging.search import with_options
from src.merging.ties import Ties
from src.ranges import RANGES, Either, Range, check, option
from src.run import pair_names, task_names
from src.runtime.messages import UsageError
from src.runtime.paths import ROOT

CONFIG = ROOT / "config/config.yaml"


def outside(allowed: Range | Either) -> list:
    """Values that the range refuses: no number, not finite, and, where it has ends, just beyond them."""
    if isinstance(allowed, Either):
        return [value for value in outside(allowed.one) if isinstance(value, int)] + outside(allowed.other)
    step = 1 if allowed.whole else 1e-3
    low, high = allowed.low - step * (not allowed.above), allowed.high + step * (not allowed.below)
    ends = [end for end in (low, high) if math.isfinite(end)]
    return [math.nan, math.inf, -math.inf, *ends, *([0.5] if allowed.whole else [])]


def inside(allowed: Range | Either) -> float:
    if isinstance(allowed, Either):
        return inside(allowed.one)
    low = allowed.low if math.isfinite(allowed.low) else 0
    return low if not allowed.above else low + min(1, (allowed.high - low) / 2)


@pytest.mark.parametrize("name", RANGES)
def test_every_range_has_an_inside_and_an_outside(name):
    for value in (*outside(RANGES[name]), "two", True):
        with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}: expected .*number"):
            check(**{name: value})
        with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}: expected .*number"):
            check(**{name: [inside(RANGES[name]), value]})
    check(**{name: None})
    check(**{name: inside(RANGES[name])})


FLAGS = [
    pytest.param(parser, action, id=name)
    for name, parser, action in every_flag()
    if action.option_strings and action.type is not None and action.type is not Path
]


@pytest.mark.parametrize("parser, action", FLAGS)
def test_every_flag_that_is_a_number_has_a_range_and_keeps_to_it(parser, action, capsys):
    assert action.dest in RANGES, "declare it in src/ranges.py"
    allowed, flag = RANGES[action.dest], action.option_strings[0]
    for value in (*outside(allowed), "two", "", "1e400"):
        repeated = [f"{value}"] * (action.nargs if isinstance(action.nargs, int) else 1)
        words = [flag, *repeated] if action.nargs == 2 and f"{value}"[:1] != "-" else [f"{flag}={value}"]
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(words)
        told = capsys.readouterr().err
        assert stop.value.code == 2 and f"argument {flag}: expected" in told, value


OPTION_NAMES = [
    (cls, one.name)
    for cls in registered()
    for one in fields(cls)
    if isinstance(value := cls.defaults()[one.name], (int, float, list))
    and not isinstance(value, bool)
    or {int, float} & {*get_args(one.type)}
]


@pytest.mark.parametrize("cls, name", OPTION_NAMES, ids=lambda value: getattr(value, "name", value))
def test_every_option_of_a_method_that_is_a_number_has_a_range_and_keeps_to_it(cls, name):
    allowed = next(one for one in fields(cls) if one.name == name).metadata["range"]
    many = isinstance(cls.defaults()[name], list)
    for value in (*outside(allowed), "two", True):
        for given in [[value], [inside(allowed), value]] if many else [value]:
            with pytest.raises(UsageError, match=f"^{name}: expected .*number"):
                cls(**{name: given})
            if value is not True:  # which is 1 to what reads +search.k=[...]
                with pytest.raises(UsageError, match=f"{name}: "):
                    with_options(cls(), {name: given}, "search")
    if many:
        for given in ([], [inside(allowed)] * 2, inside(allowed)):
            with pytest.raises(UsageError, match=f"^{name}: expected (each|at least one) value"):
                cls(**{name: given})


def test_options_of_a_method_of_your_own_have_its_ranges_or_are_finite_numbers():
    @dataclass
    class Mine(Ties):
        mine: list[float] = field(default_factory=list)
        rank: float | None = None
        gamma: float = option(-2.0, Range(high=0, low=-3, whole=False))

    assert Mine(mine=[-1.0, 2.0], rank=-3.0, gamma=-1.5).k == 20
    with pytest.raises(UsageError, match="rank: expected a number that is finite; got inf"):
        Mine(mine=[1.0], rank=math.inf)
    with pytest.raises(UsageError, match="mine: expected a number that is finite; got nan"):
        Mine(mine=[math.nan])
    with pytest.raises(UsageError, match="gamma: expected a number of at least -3 and at most 0; got 0.5"):
        Mine(mine=[1.0], gamma=0.5)
    with pytest.raises(UsageError, match="k: expected the percent"):
        Mine(mine=[1.0], k=0.2)


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
    (main, "severity=6"),
    (main, "num_tasks=0"),
    (main, "num_tasks=two"),
    (main, "save_every=-1"),
    (main, "eval_every=1.5"),
    (main, "method.k=0.2"),
    (main, "method.k=nan"),
    (main, "method.alphas=[]"),
    (main, "method.alphas=[0.5,0.5]"),
    (main, "method.alphas=[0.5,inf]"),
    (reproduce, "--seeds=-1"),
    (reproduce, "--seeds=3-1"),
    (reproduce, "--seeds=1,1"),
    (reproduce, "--seeds=1-99999999999999"),
    (finetune, "--seed=99999999999999999999"),
    (eval_ntk_localization, "--ranks=1.5"),
    (eval_ntk_localization, "--ranks=99"),
    (finetune, "--tasks="),
    (finetune, "--tasks=,"),
    (finetune, "--tasks=digits,digits"),
    (main, "DATASETS=[]"),
    (demo, "--steps=0"),
    (eval_task_negation, "--control-threshold=95"),
    (main, "model=ViT-Min"),
    (main, "device=cdua"),
    (finetune, "--lr=nan"),
    (finetune, "--ls=nan"),
    (finetune, "--steps=-5"),
    (finetune, "--epochs=-1"),
    (finetune, "--batch-size=-3"),
    (finetune, "--clip=-1"),
    (finetune, "--clip=inf"),
    (finetune, "--warmup_length=-1"),
    (finetune, "--checkpoint-every=-1"),
    (finetune, "--workers=-1"),
    (finetune, "--model=nope"),
    (eval_single_task, "--tasks=,"),
    (eval_task_addition, "--eval-batch-size=-5"),
    (eval_task_negation, "--control-threshold=-1"),
    (eval_disentanglement, "--num-samples=-3"),
    (eval_disentanglement, "--pairs=digits-digits"),
    (main, "DATASETS=[signs,signs]"),
    (main, "unseen=[signs,signs]"),
    (main, "eval_batch_size=two"),
    (main, "method.k=1e-9"),
    (main, "method.tall_mask_lambda=[]"),
    (main, "method.tall_mask_lambda=[-1]"),
]
MEANS = {"DATASETS": "tasks"}  # what a key is called where it comes to the same as a flag
OF_MODES = {"rank": "lora", "lora-alpha": "lora", "penalty": "tau_jp", "penalty-batch-size": "tau_jp", "rho": "sam"}
OF_OPTIONS = {"k": "ties", "tall_mask_lambda": "tall_mask"}  # whose option it is; those of sum else


@pytest.fixture
def no_work(monkeypatch):
    """A test fails where a program begins: with a model, or with images."""
    for module, name in ((modeling, "build_clip"), (draw, "cached")):
        monkeypatch.setattr(module, name, lambda *given, **named: pytest.fail("the work began"))


@pytest.mark.parametrize("script, flag", WRONG, ids=lambda value: getattr(value, "__name__", value))
def test_a_wrong_number_ends_with_its_name_and_writes_nothing(script, flag, no_work, tmp_path, capsys):
    places = [f"save={tmp_path}/c", f"results={tmp_path}/r", f"cache_dir={tmp_path}/i"]
    if script is demo:
        places = [f"folder={tmp_path}"]
    if script is not main:
        places = ["--" + place.replace("_", "-") for place in places]
    name = flag.lstrip("-").removeprefix("method.").partition("=")[0]
    places += [f"--finetuning-mode={OF_MODES[name]}"] if name in OF_MODES else []
    with pytest.raises(SystemExit) as stop:
        script.main([*places, *([f"method={OF_OPTIONS.get(name, 'sum')}"] if script is main else []), flag])
    told = capsys.readouterr().err.replace("_", "-")
    assert stop.value.code == 2 and MEANS.get(name, name).replace("_", "-") in told
    assert "expected" in told or "does not exist" in told
    assert not list(tmp_path.rglob("*"))


KEYS = shared_flags() | {key: value for key, value in yaml.safe_load(CONFIG.read_text()).items() if key != "defaults"}
ODD = [
    None,
    "",
    "no such",
    -1,
    math.nan,
    math.inf,
    [1],
    [],
    {"a": 1},
    True,
    0,
    0.5,
    10**20,
    ["digits", ["signs"]],
    "\udce9",
]
# What is a value of a key, or its default.
MEANT: dict[str, list] = {
    **{key: [None] for key in ("model", "suite", "pretrained_path", "device", "corruption", "output", "tasks")},
    **{key: [True] for key in ("overwrite", "skip_corrupt", "wandb", "tensorboard")},
    **{key: ["no such"] for key in ("save", "results", "data_location", "cache_dir")},
    **{key: [0, 10**20] for key in ("save_every", "eval_every")},
    **{"seed": [0], "jobs": [None, 10**20], "eval_batch_size": [None, 10**20], "save_seconds": [0, 0.5, 10**20]},
    **{"DATASETS": [None, ""], "unseen": [None, "", []], "eval_every": [None, 0, 10**20]},
    **{"search": [], "encoders": []},
}


@pytest.mark.parametrize("key", [key for key in KEYS if key != "hydra"])
def test_every_key_of_main_takes_what_is_meant_and_refuses_the_rest_in_a_sentence(key):
    """Hydra makes numbers, lists and nothing of what is typed."""
    flags = {name: value for name, value in KEYS.items() if name != "hydra"} | {"finetuning_mode": "standard"}
    take_options(dict(flags))
    for value in ODD:
        given = dict(flags) | {key: value}
        if any(value is meant or (value == meant and type(value) is type(meant)) for meant in MEANT.get(key, [])):
            take_options(given)
            continue
        with pytest.raises(UsageError) as refused:
            take_options(given)
            pytest.fail(f"{key}={value!r} was taken")
        assert "\n" not in str(refused.value)


def test_a_grid_without_the_box_is_refused(no_work, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        eval_disentanglement.main([f"--results={tmp_path}", "--range", "2", "3"])
    assert stop.value.code == 2 and "--range: expected an interval that contains the box" in capsys.readouterr().err


@pytest.mark.parametrize(
    "pair", ["digits", "digits-", "-digits", "-1", "8-", "-", "", "digits-signs-land", "digits-digits"]
)
def test_a_pair_is_of_two_tasks(pair):
    with pytest.raises(UsageError, match="^--pairs: expected"):
        pair_names([pair], registry.suite("mini"))


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
