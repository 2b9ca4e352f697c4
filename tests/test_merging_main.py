"""The command line of main.py: every method and mode, the published commands, exports read back, and what is refused.

The first images of the mini suite, seed 0; checkpoints are drawn instead of trained, and single-task results made up.
"""

import json
import re
import shlex
import shutil
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import forked
import hydra
import numpy as np
import pytest
import torch
from few_images import few_images
from omegaconf import OmegaConf

import eval_single_task
import main
import reproduce
import src.merging
from src import args as arguments
from src import checkpoints, store
from src.checkpoints import VISUAL
from src.datasets import loading, registry
from src.experiments import commands, merging
from src.merging import keys, names
from src.merging import registry as method_registry
from src.merging.ties import Ties
from src.run import Run
from src.runtime import results
from src.runtime.paths import ROOT

method_registry.load_methods()  # before a test puts another registry in its place
IMAGES = 6  # of each split
SUITE = registry.suite("mini")
TASKS, LARGER = SUITE.default, SUITE.tasks[:14]
PAIRED = ("digits", "signs")
PAIR = "DATASETS=[digits,signs]"
METHODS = {
    "zeroshot": "method=zeroshot",
    "average": "method=average",
    "sum": "method=sum",
    "ties": "method=ties",
    "mag_masking": "method=mag_masking",
    "tall_mask": "method=tall_mask",
    "tall_mask_use_ties=True": "method=tall_mask_ties",
    "consensus": "method=consensus",
    "consensus_use_ties=True": "method=consensus_ties",
    **{name: f"method={name}" for name in ("tsv_m", "tsv_c", "iso_c", "iso_cts", "cart", "lines", "svc")},
}

# No method of these looks at the mode; masks lie apart by it, and each of these is another kind of merge.
OF_EACH_KIND = ("zeroshot", "sum", "mag_masking", "tall_mask", "consensus", "tsv_m")


class Workplace:
    """Checkpoints, and main.py called on them in this process."""

    def __init__(self, folder, cache):
        self.folder = folder
        places = {"save": folder / "checkpoints", "results": folder / "results", "cache_dir": cache}
        self.overrides = [f"{name}={place}" for name, place in places.items()]
        self.overrides += ["model=ViT-Mini", "seed=0", "device=cpu", "jobs=1"]
        self.flags = [f"--{text.replace('_', '-', 1)}" for text in self.overrides]
        self.run = arguments.parse(arguments.base_parser(""), self.flags)[0]
        self.paths = self.run.paths

    def draw(self, mode: str, tasks) -> None:
        """θ0, and θ0 plus noise for each task."""
        store.write_pretrained(self.run)
        start, generator = checkpoints.load(self.paths.pretrained()), torch.Generator().manual_seed(0)
        for task in tasks:
            weights = dict(start)
            for name in [name for name in start if name.startswith(VISUAL)]:
                noise = torch.randn(start[name].shape, generator=generator)
                weights[name] = start[name] + 0.3 * start[name].abs().mean() * noise
            header = dict(model="ViT-Mini", task=task, mode=mode, seed=0)
            checkpoints.save(self.paths.checkpoint(task, mode), weights, header)

    def call(self, *overrides: str) -> None:
        main.main([*self.overrides, *overrides])

    def record(self, label: str, group: str = "8task/standard-visual") -> dict:
        return json.loads(self.paths.result(f"merging/{group}/{label}").read_text())

    def pair(self, label: str, mode: str = "standard") -> dict:
        return self.record(label, f"{self.pair_name}/{mode}-visual")

    @property
    def pair_name(self) -> str:
        return names.tasks_name("mini", PAIRED)

    def files(self) -> dict:
        return {path: path.stat().st_mtime_ns for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory, mini_cache):
    with few_images(IMAGES):
        made = Workplace(tmp_path_factory.mktemp("merging"), mini_cache)
        made.draw("standard", LARGER)
        made.draw("linear", PAIRED)
        for mode, accuracy in {"none": 0.5, "standard": 0.9, "linear": 0.8, "posthoc": 0.7}.items():
            fields = {task + suffix: accuracy for task in LARGER for suffix in ("", "Val")}
            results.write(made.paths.single_task(mode), fields, made.run.config(), started=time.time())
        yield made
    store.encoder.cache_clear()


@pytest.mark.parametrize("mode", ["standard", "linear", "posthoc"])
def test_every_method_runs_and_every_kind_in_every_mode(place, mode):
    for label in METHODS if mode == "standard" else OF_EACH_KIND:
        place.call(PAIR, METHODS[label], f"finetuning_mode={mode}")
        found = place.pair(label, mode)
        assert found["label"] == label and found["tasks"] == ["digits", "signs"] and found["finetuning_mode"] == mode
        assert found["n"] == {split: {"digits": IMAGES, "signs": IMAGES} for split in ("val", "test")}
        curves = found["val"]["accuracy"]
        assert all(len(curve) == len(found["settings"]) for curve in curves.values())
        assert all(setting in found["settings"] for setting in found["chosen"].values())
        for task, value in found["test"]["accuracy"].items():
            assert found["test"]["normalised"][task] == value / found["denominators"]["test"][task]
    vectors = place.pair("vectors", mode)
    assert np.allclose(np.diagonal(vectors["cosine"]), 1) and vectors["tasks"] == ["digits", "signs"]


def test_storage_is_in_bits_and_of_the_files(place):
    place.call(PAIR, "method=tall_mask", "overwrite=True")
    found = place.pair("tall_mask")
    weights, encoder = found["parameters"]["scope"], found["parameters"]["encoder"]
    assert 0.8e6 < weights < encoder < 1.2e6
    assert found["storage"]["this"] == found["storage"]["masked"] == 32 * (encoder + weights) + 2 * weights
    assert found["storage"]["finetuned"] == 32 * (2 * weights + encoder - weights)
    files = {"pretrained": place.paths.pretrained(), "signs": place.paths.checkpoint("signs", "standard")}
    assert all(found["storage"]["files"][name] == 8 * path.stat().st_size for name, path in files.items())
    assert 0 < found["info"]["mask_file_bits"] - 2 * weights < 8 * 40_000  # a header, and whole bytes


def test_published_scope_counts_the_frozen_tensors_and_scores_the_same(place):
    for scope in ("visual", "published"):
        place.call(PAIR, "method=sum", f"scope={scope}", "overwrite=True")
    visual, published = place.pair("sum"), place.record("sum", f"{place.pair_name}/standard-published")
    assert published["scope"] == "published" and published["test"] == visual["test"]
    assert published["parameters"]["scope"] == published["parameters"]["encoder"] > visual["parameters"]["scope"]
    assert published["storage"]["merged"] == visual["storage"]["merged"]
    assert published["storage"]["finetuned"] > visual["storage"]["finetuned"]


@pytest.mark.parametrize(
    ("command", "label"),
    [
        ("method=sum", "sum"),
        ("method=ties method.k=20", "ties"),
        ("method=tall_mask", "tall_mask"),
        ("method=tall_mask method.load_mask=True", "tall_mask_load_mask=True"),
        ("method=tall_mask method.use_ties=True", "tall_mask_use_ties=True"),
        ("method=tall_mask method.use_ties=True method.load_mask=True", "tall_mask_use_ties=True_load_mask=True"),
        ("method=consensus method.prun_thre_k=2", "consensus"),
        ("method=consensus method.prun_thre_k=2 method.use_ties=True", "consensus_use_ties=True"),
    ],
)
def test_the_published_commands(place, command, label):
    place.call(*command.split())
    found = place.record(label)
    assert found["tasks"] == list(TASKS)
    if "load_mask" in command:
        made = place.record(label.replace("_load_mask=True", ""))
        assert found["test"] == made["test"] and found["info"]["masks"] == made["info"]["masks"]


def test_tasks_by_number_and_by_name(place):
    place.call("num_tasks=3", "method=zeroshot")
    assert place.record("zeroshot", "3task/standard-visual")["tasks"] == list(TASKS[:3])
    place.call("num_tasks=14", "method=zeroshot")
    assert place.record("zeroshot", "14task/standard-visual")["tasks"] == list(LARGER)
    place.call("method=zeroshot")
    assert place.record("zeroshot")["tasks"] == list(TASKS)
    place.call(f"tasks=[{TASKS[0]}]", "method=average", "num_tasks=8")
    assert place.record("average", "1task/standard-visual")["chosen"] == {TASKS[0]: 1}


def test_a_result_is_computed_once(place, capsys):
    place.call(PAIR, "method=average")
    before = place.files()
    place.call(PAIR, "method=average")
    assert "there already" in capsys.readouterr().out and place.files() == before


@contextmanager
def edited(path, change):
    """A result with changes, as if another version of the program had written it; afterwards it is as it was."""
    before = path.read_text()
    record = json.loads(before)
    change(record)
    path.write_text(json.dumps(record))
    yield
    path.write_text(before)


@pytest.mark.parametrize(
    ("entry", "earlier", "said"),
    [
        (("method", "k"), 10.0, ("method.k = 20.0", "method.k = 10.0")),
        (("method", "reduce"), "sum", ("method.reduce = mean", "method.reduce = sum")),
        (("tasks",), ["digits", "letters"], ("['digits', 'signs']", "['digits', 'letters']")),
    ],
)
def test_a_result_of_other_options_under_the_same_name_is_refused_before_work(
    place, capsys, monkeypatch, entry, earlier, said
):
    """As after a default was changed: the name tells the options that are not their defaults."""
    place.call(PAIR, "method=ties")
    path = place.paths.result(f"merging/{place.pair_name}/standard-visual/ties")
    monkeypatch.setattr(Ties, "merge", lambda *which: pytest.fail("it merges before it looks"))

    def change(record):
        *outer, last = ("provenance", "config", *entry)
        for key in outer:
            record = record[key]
        record[last] = earlier

    with edited(path, change):
        before = place.files()
        with pytest.raises(SystemExit) as ended:
            place.call(PAIR, "method=ties")
        told = capsys.readouterr().err
        assert ended.value.code == 1 and told.startswith("error: ") and told.count("\n") == 1
        asked, found = told.split("; found one of ")
        assert said[0] in asked and said[1] in found and str(path) in asked and "overwrite=True" in found
        assert place.files() == before


def test_an_option_that_an_older_result_does_not_tell_is_no_difference(place, capsys):
    place.call(PAIR, "method=ties")
    path = place.paths.result(f"merging/{place.pair_name}/standard-visual/ties")
    with edited(path, lambda record: record["provenance"]["config"]["method"].pop("reduce")):
        place.call(PAIR, "method=ties")
        assert "there already" in capsys.readouterr().out


HALF = """
from dataclasses import dataclass

from src.merging.base import Merge, Method, Problem, Variant, scaled
from src.merging.registry import register
from src.merging.task_arithmetic import multi_task_vector
from src.runtime.messages import UsageError


@register(
    "half",
    title="half of the sum",
    paper="2601.00001",
    stage="merging",
    variants=[Variant("a third of the sum", {"alpha": 1 / 3}, spelling="third")],
)
@dataclass
class Half(Method):
    alpha: float = 0.5

    def merge(self, problem: Problem) -> Merge:
        own = {13: ValueError, 14: FileNotFoundError, 15: FloatingPointError}
        if self.alpha in own:
            raise own[self.alpha]("the author's own fault")
        if self.alpha > 1:
            raise UsageError(f"alpha: expected at most 1; got {self.alpha}")
        return scaled(problem, multi_task_vector(problem), [self.alpha])
"""


@pytest.fixture
def half(tmp_path, monkeypatch):
    """A folder with somebody's method, which main.py finds."""
    (tmp_path / "half.py").write_text(HALF)
    monkeypatch.setattr(src.merging, "__path__", [*src.merging.__path__, str(tmp_path)])
    monkeypatch.setattr(method_registry, "METHODS", dict(method_registry.METHODS))
    yield tmp_path
    sys.modules.pop("src.merging.half", None)


def test_a_method_is_one_file(place, half):
    place.call(PAIR, "method=half", "method.alpha=0.4")
    place.call(PAIR, "method=sum", "method.alphas=[0.4]")
    assert place.pair("half_alpha=0.4")["test"] == place.pair("sum_alphas=-0.4-")["test"]


def test_what_a_methods_file_says_makes_its_rows_and_the_names_of_its_results(place, half):
    titles = [variant.title for variant in method_registry.variants()]
    assert titles.index("a third of the sum") == titles.index("half of the sum") + 1
    (row,) = [variant for variant in method_registry.variants("merging") if variant.method == "half"]
    assert row.title == "half of the sum" and row.published_name("tall") is None
    run = replace(place.run, tasks=PAIRED)
    other = next(variant for variant in method_registry.variants() if variant.title == "a third of the sum")
    written = [(variant, run.paths.result(merging.variant_result(run, variant))) for variant in (row, other)]
    assert written[0][1] != written[1][1] and not any(path.exists() for _, path in written)
    for variant, path in written:
        place.call(PAIR, *variant.overrides)
        assert json.loads(path.read_text())["chosen"] == dict.fromkeys(PAIRED, variant.options.get("alpha", 0.5))
    before = place.files()
    place.call(PAIR, "method=third")
    assert place.files() == before, "the spelling stands for the same options"


def test_an_error_of_somebodys_own_method_keeps_its_traceback(place, half):
    with pytest.raises(ValueError, match="the author's own fault") as raised:
        place.call(PAIR, "method=half", "method.alpha=13")
    assert raised.traceback[-1].path.name == "half.py"


def test_a_misused_option_of_somebodys_own_method_is_told_in_a_line(place, half, capsys):
    with pytest.raises(SystemExit) as ended:
        place.call(PAIR, "method=half", "method.alpha=2")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: alpha: expected at most 1; got 2.0\n"


@pytest.mark.parametrize("alpha, kind", [(13, ValueError), (14, FileNotFoundError), (15, FloatingPointError)])
def test_an_error_of_the_methods_own_keeps_its_file_and_line(place, half, alpha, kind):
    with pytest.raises(kind, match="the author's own fault") as raised:
        place.call(PAIR, "method=half", f"method.alpha={alpha}")
    assert "half.py" in str(raised.traceback[-1].path)


def test_a_traceback_passes_hydra_too(place, half):
    """As a user sees it, in a process of its own: the first job is misused, the second is at fault itself."""
    flags = [*place.overrides, PAIR, "method=half", "method.alpha=2,13", "--multirun"]
    start = f"import src.merging; src.merging.__path__.append({str(half)!r}); import runpy, sys; "
    start += f"sys.argv[0] = {str(ROOT / 'main.py')!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = forked.run("-c", start, *flags)
    assert done.returncode == 1
    first, _, rest = done.stderr.partition("\n")
    assert first == "error: alpha: expected at most 1; got 2.0"
    assert "Traceback" in rest and 'half.py", line' in rest and "ValueError: the author's own fault" in rest


def test_the_list_of_methods_has_them_all_with_title_paper_and_options(half, capsys):
    main.main(["--methods"])
    told = capsys.readouterr().out
    blocks = [block.splitlines() for block in re.split(r"\n(?=\S)", told)]
    methods = method_registry.registered()
    assert len(methods) == len(blocks) >= 40 and "half" in {cls.name for cls in methods}
    for cls, (first, about, *options) in zip(methods, blocks, strict=True):
        paper = f", arXiv:{cls.paper}" if cls.paper else ""
        assert first == f"{cls.name}: {cls.title}{paper} (needs {cls.needs})"
        assert cls.title and re.fullmatch(r"(\d{4}\.\d{5})?", cls.paper)
        assert about.startswith("    ") and not about.strip().startswith(f"{cls.__name__}(")
        assert len(about.strip()) > 10 or cls.name == "half", "whose file says nothing"
        assert options == [f"    method.{name}={value}" for name, value in vars(cls()).items()]


@contextmanager
def counted_passes(monkeypatch):
    """How often each split of each task is read to be scored."""
    asked = Counter()
    batches = loading.evaluation_batches

    def counting(run, encoder, dataset, split, share):
        asked[dataset, split] += 1
        return batches(run, encoder, dataset, split, share)

    with monkeypatch.context() as patch:
        patch.setattr(loading, "evaluation_batches", counting)
        yield asked


def test_validation_chooses_an_option_and_test_is_read_once(place, monkeypatch, capsys):
    """The best of what main.py gives for each value by itself, as validation sees it."""
    search = (PAIR, "method=ties", "+search.k=[10,40]")
    with counted_passes(monkeypatch) as asked:
        place.call(*search)
    assert asked == {(task, split): {"val": 2, "test": 1}[split] for task in PAIRED for split in ("val", "test")}
    found, alone = place.pair("ties_search_k=10+40"), {}
    for k in (10, 40):
        place.call(PAIR, "method=ties", f"method.k={k}")
        alone[k] = place.pair(f"ties_k={k}")
    for split in ("accuracy", "mean_normalised"):
        joined = [alone[k]["val"][split] for k in (10, 40)]
        if split == "accuracy":
            assert found["val"][split] == {task: joined[0][task] + joined[1][task] for task in PAIRED}
        else:
            assert found["val"][split] == joined[0] + joined[1]
    best = max((10, 40), key=lambda k: max(alone[k]["val"]["mean_normalised"]))
    chosen = {"k": best, "setting": alone[best]["chosen"]["digits"]}
    assert found["chosen"] == dict.fromkeys(PAIRED, chosen) and found["test"] == alone[best]["test"]
    assert found["at_edge"] == alone[best]["at_edge"]
    assert found["label"] == "ties_search_k=10+40" and found["info"]["search"] == {"k": [10, 40]}
    assert found["provenance"]["config"]["search"] == {"k": [10, 40]}

    before = place.files()
    capsys.readouterr()
    place.call(*search)
    assert "there already" in capsys.readouterr().out and place.files() == before
    for other in ("+search.k=[40,10]", "+search.k=[10]", "+search.reduce=[mean,sum]"):
        place.call(PAIR, "method=ties", other)
        added = place.files().keys() - before.keys()
        assert len(added) == 1 and before.items() <= place.files().items()
        (path,) = added
        option, values = next(iter(json.loads(path.read_text())["info"]["search"].items()))
        assert f"+search.{option}=[{','.join(map(str, values))}]" == other
        before = place.files()


def test_a_search_may_choose_another_option_for_each_task(place, tmp_path):
    place.call(PAIR, "method=mag_masking", "+search.k=[1,100]")
    found = place.pair("mag_masking_search_k=1+100")
    alone = {}
    for k in (1, 100):
        place.call(PAIR, "method=mag_masking", f"method.k={k}")
        alone[k] = place.pair(f"mag_masking_k={k}")
    for task in PAIRED:
        best = max((1, 100), key=lambda k: alone[k]["val"]["accuracy"][task])
        assert found["chosen"][task] == {"k": best, "setting": 1}
        assert found["test"]["accuracy"][task] == alone[best]["test"]["accuracy"][task]
    place.call(PAIR, "method=mag_masking", "+search.k=[1,100]", f"output={tmp_path}/masked.safetensors")
    for task in PAIRED:
        assert checkpoints.header(tmp_path / f"masked.{task}.safetensors")["chosen"] == found["chosen"][task]


def test_results_of_other_checkpoints_lie_apart_and_say_so(place, tmp_path):
    place.call(PAIR, "method=tall_mask", "overwrite=True")
    plain, before = place.pair("tall_mask"), place.files()
    assert plain["encoders"] == {} == plain["provenance"]["config"]["encoders"]
    masks = {plain["info"]["mask_file"]}
    for name in ("one", "two"):
        file = tmp_path / f"{name}.safetensors"
        shutil.copyfile(place.paths.checkpoint("letters", "standard"), file)
        encoders = {"signs": str(file)}
        place.call(PAIR, "method=tall_mask", f"+encoders.signs={file}")
        found = place.record("tall_mask", f"{names.tasks_name('mini', PAIRED, encoders)}/standard-visual")
        assert found["encoders"] == encoders == found["provenance"]["config"]["encoders"]
        assert found["storage"]["files"]["signs"] == 8 * file.stat().st_size
        assert found["val"]["accuracy"]["signs"] != plain["val"]["accuracy"]["signs"]
        masks.add(found["info"]["mask_file"])
    assert len(masks) == 3 and before.items() <= place.files().items()


def test_an_exported_encoder_is_read_back(place, tmp_path):
    """By eval_single_task.py, and by main.py as another checkpoint of a task."""
    output = tmp_path / "merged.safetensors"
    place.call(PAIR, "method=ties", f"output={output}")
    merged = place.pair("ties")["test"]["accuracy"]
    flags = [*place.flags, f"--encoder={output}", "--name=merged", "--tasks=digits,signs"]
    eval_single_task.main([*flags, "--finetuning-mode=standard"])
    single = json.loads(place.paths.result("merged").read_text())
    assert {task: single[task] for task in merged} == merged
    encoders = {task: str(output) for task in ("digits", "signs")}
    own = place.paths.single_task("standard")
    away = own.rename(own.with_suffix(".away"))  # nobody needs fine-tuned models of the run's own
    place.call(PAIR, "method=average", *(f"+encoders.{task}={path}" for task, path in encoders.items()))
    away.rename(own)
    name = names.tasks_name("mini", PAIRED, encoders)
    assert name != place.pair_name
    found = place.record("average", f"{name}/standard-visual")
    assert found["test"]["accuracy"] == merged == found["denominators"]["test"]
    assert set(found["test"]["normalised"].values()) == {1.0}  # over those of the checkpoints that were merged


def test_a_masking_method_exports_a_file_for_each_task(place, tmp_path):
    place.call(PAIR, "method=tall_mask", f"output={tmp_path}/tall.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tall.digits.safetensors", "tall.signs.safetensors"]
    chosen = place.pair("tall_mask")
    assert checkpoints.header(tmp_path / "tall.signs.safetensors")["chosen"] == chosen["chosen"]["signs"]
    encoders = [f"+encoders.{task}={tmp_path}/tall.{task}.safetensors" for task in ("digits", "signs")]
    place.call(PAIR, "method=mag_masking", "method.k=100", *encoders)  # of one τ_MTL, with everything kept


def test_two_jobs_of_which_one_fails(place, mini_cache):
    """In a process of its own, as a user calls it; consensus has no masks of these tasks."""
    flags = ["--multirun", *place.overrides, f"tasks=[{','.join(TASKS[5:7])}]", "method=consensus,average,zeroshot"]
    done = forked.run("main.py", *flags)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: expected masks in" in done.stderr and "method=tall_mask" in done.stderr
    folder = place.paths.result(f"merging/{names.tasks_name('mini', TASKS[5:7])}/standard-visual/any").parent
    assert sorted(path.stem for path in folder.iterdir()) == ["average", "vectors", "zeroshot"]


def test_reproduce_expects_the_results_where_main_writes_them(place):
    """With the tasks of each: 8, 14 and 20 of the vision suite, random ones of mini."""
    place.call(PAIR, "method=average")  # registers the configuration
    asked = commands._sweeps(place.run)
    swept = [("method=consensus", f"method.prun_thre_k={k}") for k in (1, 3, 4, 5, 6, 7, 8)]
    ties = [(*flags, "method.use_ties=True") for flags in swept]
    assert [command.flags[:2] for command in asked[:7]] == swept
    assert [command.flags[:3] for command in asked[7:14]] == ties
    two, four = ({*asked[i].flags[1][len("DATASETS=[") : -1].split(",")} for i in (14, 17))
    assert len(two) == 2 and len(four) == 4 and two < four
    vision = Run.of("ViT-B-32")
    asked += [*commands._merging(vision)[::4], *commands._tangent_merging(vision)[::20]]
    with hydra.initialize(config_path="../config", version_base="1.3"):
        for command in asked:
            cfg = hydra.compose("config", overrides=list(command.flags))
            flags = OmegaConf.to_container(cfg, resolve=True)
            del flags["method"]
            run, options = merging.take_options(flags)
            name = merging.result_name(run, OmegaConf.to_object(cfg.method), options)
            assert command.outputs == (run.paths.result(name),)


def test_reproduce_takes_seeds_by_either_flag(place, capsys):
    for flag in ("--seed=7", "--seeds=7", "--seeds=7-7"):
        reproduce.main(["--dry-run", "--only", "merging", flag])
        assert capsys.readouterr().out.count("seed=7") == len(method_registry.variants("merging"))
    with pytest.raises(SystemExit):
        reproduce.main(["--seeds=a"])
    assert "expected numbers such as 1,2,5-7" in capsys.readouterr().err


def damaged(place, folder, kind: str):
    """A checkpoint of signs that no run may take."""
    source, path = place.paths.checkpoint("signs", "standard"), folder / "other.safetensors"
    weights, header = checkpoints.load(source), dict(model="ViT-Mini", task="signs", mode="standard", seed=0)
    name = "model.visual.proj"
    if kind == "truncated":
        path.write_bytes(source.read_bytes()[:-100])
    elif kind == "pickle":
        torch.save(weights, path)
    else:
        changed = {"renamed": {"model.visual.prj": weights.pop(name)}, "shape": {name: torch.zeros(3, 2)}, "model": {}}
        checkpoints.save(path, weights | changed[kind], header | ({"model": "ViT-B-32"} if kind == "model" else {}))
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("truncated", "cut short"),
        ("pickle", "convert"),
        ("renamed", "model.visual.prj"),
        ("shape", "model.visual.proj"),
        ("model", "expected model 'ViT-Mini', found 'ViT-B-32'"),
    ],
)
def test_foreign_checkpoints_are_refused(place, tmp_path, capsys, kind, said):
    path = damaged(place, tmp_path, kind)
    before = place.files()
    with pytest.raises(SystemExit):
        place.call(PAIR, "method=sum", f"+encoders.signs={path}")
    told = capsys.readouterr().err
    assert said in told and str(path) in told and place.files() == before


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["tasks=[digits,letters]"], ("digits", "letters", "signs")),
        ([PAIR, "finetuning_mode=linear"], ("'standard'", "'linear'")),
        ([PAIR, "scope=published"], ("'visual'", "'published'")),
    ],
)
@pytest.mark.parametrize("method", ["tall_mask", "consensus"])
def test_masks_of_another_problem_are_refused_with_both_names(place, capsys, overrides, said, method):
    place.call(PAIR, "method=tall_mask")
    mask = place.pair("tall_mask")["info"]["mask_file"]
    before = place.files()
    with pytest.raises(SystemExit):
        place.call(*overrides, f"method={method}", f"method.mask_file={mask}")
    told = capsys.readouterr().err
    assert all(name in told for name in said) and place.files() == before


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method=tie"], "method: 'tie' does not exist; did you mean ties?"),
        (["method=sum,tie", "-m"], "method: 'tie' does not exist; did you mean ties?"),
        (["method={ties:1}"], "method: expected a name, as in method=ties"),
        (["metod=ties"], "metod: this key does not exist; did you mean method?"),
        (["+metod=ties"], "metod: this key does not exist; did you mean method?"),
        (["finetuning_mod=linear"], "did you mean finetuning_mode?"),
        (["method=ties", "method.kk=3"], "ties has no option kk; did you mean k? (it has k, reduce, alphas)"),
        (["+method.kk=3"], "sum has no option kk"),
        (["method=sum,ties", "method.reduce=sum", "-m"], "sum has no option reduce"),
        (["method=ties", "method.k=many"], "method.k: Value 'many' of type 'str' could not be converted to Float"),
        (["method=ties", "method.k=10,many", "-m"], "method.k: Value 'many'"),
        (["method.k=[1"], "'method.k=[1': expected key=value"),
        (["+seed=3"], "expected no + in front, since the key is there: seed=3"),
        (["ties"], "'ties': expected key=value, as in method=ties"),
        (["--model=ViT-Mini"], "write model=ViT-Mini"),
        (["--finetuning-mode", "linear"], "write finetuning_mode=linear"),
        (["--tasks", "signs", "digits", "method=ties"], "write tasks=[signs,digits]"),
        (["--overwrite"], "write overwrite=True"),
        (["--modle=ViT-Mini"], "did you mean model?"),
    ],
)
def test_unknown_methods_keys_and_types_end_with_a_line(place, capsys, overrides, said):
    """Before Hydra, whose messages fill a page, suggest a + in front of what does not exist, and end with status 1."""
    before = place.files()
    with pytest.raises(SystemExit) as ended:
        place.call(*overrides)
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.startswith("error: ") and told.count("\n") == 1
    assert said in told and place.files() == before


@pytest.mark.parametrize(
    "words",
    [
        "method=ties method.k=20 +search.k=[10,20] +encoders.signs=x.safetensors ++method.reduce=sum",
        "method=surgery method.base=ties +method.base_options.k=10",
        "--multirun method=sum,ties,tall_mask finetuning_mode=standard,linear hydra/launcher=submitit_local",
        "-m num_tasks=8,14 method=consensus method.prun_thre_k=1,2 hydra.launcher.timeout_min=240",
        "method=concrete_subspace/clip_concrete_task_arithmetic method.adapt_on=val",
        "method=ties --cfg job -p method",
        "-c job --resolve method=ties ~unseen",
        "method=ties method.k=range(10,30,10) method.alphas=[0.1,0.3],[0.2] -m",
        "method=ties method.k=${seed} results='my results' output=null DATASETS=[signs,digits]",
        "--config-dir=own method=own own_key=3",
        "hydra.searchpath=[file://own] method=own method.own=3",
    ],
)
def test_what_exists_and_what_is_hydras_passes(words):
    keys.check(shlex.split(words))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["finetuning_mode=linaer"], "Known: "),
        (["DATASETS=[sings]"], "did you mean signs"),
        (["num_tasks=0"], "expected a whole number of at least 1"),
        (["num_tasks=21"], "from 1 to 20"),
        (["scope=text"], "visual, published"),
        (["method=ties", "method.k=0"], "percent"),
        (["method=ties", "method.reduce=max"], "mean or sum"),
        (["method=consensus", "method.prun_thre_k=-1"], "prun_thre_k"),
        (["output=merged.pt", "overwrite=True"], ".safetensors"),
        (["+encoders.letters=x.safetensors", "num_tasks=2"], "expected tasks among"),
        (["method=sum", "method.alphas=[]"], "at least one value"),
        (["method=ties", "+search.kk=[1]"], "ties has no option kk; it has k, reduce, alphas"),
        (["method=ties", "+search.k=[10,ten]"], "search.k: input should be a valid number"),
        (["method=ties", "+search.reduce=sum"], "search.reduce: expected a list of values, as in +search.k=[10,20]"),
        (["method=ties", "+search.k=[]"], "search.k: expected a list of values"),
        (["method=sum", "finetuning_mode=linear"], "python finetune.py"),
    ],
)
def test_wrong_options_end_with_a_line(place, capsys, overrides, said):
    place.call("method=tall_mask")
    before = place.files()
    with pytest.raises(SystemExit) as ended:
        place.call(*overrides)
    told = capsys.readouterr().err
    assert said in told and told.startswith("error: ") and told.count("\n") == 1
    assert ended.value.code == (1 if "finetune.py" in said else 2)  # what is missing is no error of usage
    assert place.files() == before
