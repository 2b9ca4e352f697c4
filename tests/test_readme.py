"""The code in README.md and in docs/extending.md runs as it is written; pages that are generated are up to date."""

import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import synthetic_results
import torch
import yaml
from matplotlib import pyplot as plt
from torch import nn

from src.datasets.mini.draw import FAMILIES
from src.linearize import LinearizedModel
from src.merging import registry
from src.merging.base import Problem
from src.merging.registry import registered
from src.reporting import catalogue
from src.reporting.claim import examine
from src.reporting.runs import Runs
from src.reporting.verdict import VERDICTS
from src.task_vectors import NonLinearTaskVector
from tests.conftest import ROOT

PAGES = ROOT / "README.md", ROOT / "docs" / "extending.md"
ISSUES = [str(file.relative_to(ROOT)) for file in (ROOT / ".github").rglob("*.yml")]
BLOCKS = [code for page in PAGES for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3))


def test_the_library_does_what_the_readme_shows():
    (code,) = [block for block in BLOCKS if "apply_to_linear" in block]
    start, end = network(0), network(1)
    tau = NonLinearTaskVector(start, end)
    names = dict(zeroshot_checkpoint=start, finetuned_checkpoint=end, pretrained_checkpoint=start, model=network(2))
    names |= dict(task_vector_1=tau, task_vector_2=tau, nonlinear_task_vector=tau)
    exec(code, names := names | dict(linear_pretrained_encoder=LinearizedModel(start)))
    x = torch.randn(2, 4)
    moved = {name: weight + 0.8 * tau.vector[name] for name, weight in start.named_parameters()}
    edited = torch.func.functional_call(start, moved, (x,))
    assert torch.allclose(names["edited_encoder"](x), edited, atol=1e-6)
    _, slope = torch.func.jvp(
        lambda theta: torch.func.functional_call(start, theta, (x,)), (dict(start.named_parameters()),), (tau.vector,)
    )
    assert torch.allclose(names["linear_edited_encoder"](x), start(x) + 0.8 * slope, atol=1e-5)
    total = names["multi_task_vector"] + names["negated_task_vector"]
    assert all(torch.allclose(total.vector[name], 0.2 * tau.vector[name], atol=1e-6) for name in moved)


def test_the_method_of_the_readme_is_one(monkeypatch):
    (code,) = [block for block in BLOCKS if "@register" in block]
    monkeypatch.setattr(registry, "METHODS", dict(registry.METHODS))
    module = ModuleType("readme_method")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, vars(module))
    start = {"model.visual.w": torch.zeros(3)}
    ends = {
        task: {"model.visual.w": torch.tensor(w)} for task, w in zip("abc", [[1.0, 5, 0], [2.0, 4, 9], [3.0, 3, 1]])
    }
    merge = registry.METHODS["median"](factor=2).merge(Problem(start, ends))
    assert merge.vector("a", 0.5).vector["model.visual.w"] == pytest.approx(torch.tensor([2.0, 4.0, 1.0]))
    assert 1.0 in merge.settings and len(merge.settings) == 10


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    folder = synthetic_results.write(tmp_path_factory.mktemp("readme"), seeds=(1, 2), merges=False)
    return Runs("mini", "ViT-Mini", folder)


def executed(word: str) -> dict:
    """The names that the block with a word makes."""
    (code,) = [block for block in BLOCKS if word in block]
    exec(code, made := {"__name__": "worked_example"})
    return made


def test_the_data_set_of_the_page_is_drawn():
    family = executed("FAMILY")["FAMILY"]
    assert family.number == max(other.number for other in FAMILIES.values()) + 1
    pictures = [family.draw(label, np.random.default_rng(label)) for label in range(len(family.names))]
    assert all(picture.size == (64, 64) for picture in pictures) and pictures[0] != pictures[1]


def test_the_figure_of_the_page_is_drawn(runs):
    drawn = executed("DRAWING")["DRAWING"](runs)
    assert [len(line.get_ydata()) for line in drawn.axes[0].lines] == [2, 2, 2]
    plt.close(drawn)


def test_the_claim_of_the_page_is_tested(runs):
    finding = examine(executed("CLAIM")["CLAIM"], runs)
    assert finding.verdict in VERDICTS and len(finding.values[0]) == 2 and not finding.missing


def test_the_experiment_of_the_page_computes_its_record(monkeypatch, make_run):
    made, written = executed("measure_norms"), []
    made["store"] = SimpleNamespace(task_vector=lambda run, task, mode: NonLinearTaskVector(network(0), network(1)))
    made["carry_out"] = lambda experiment, mode, run, options, compute, overwrite: written.append(compute())
    made["measure_norms"](make_run("--tasks=signs"), "standard")
    assert written[0]["norm"]["signs"] > 0
    assert [number.value for number in made["numbers"](written[0], "mini")] == [*written[0]["norm"].values()]


def test_generated_pages_are_up_to_date():
    """python -m src.reporting.catalogue writes them; only numbers of docs/methods.md move with results/mini."""
    methods = (ROOT / "docs" / "methods.md").read_text()
    for cls in registered():
        assert "\n".join(catalogue.described(cls)) in methods, "run: python -m src.reporting.catalogue"
    assert (ROOT / "docs" / "sources.md").read_text() == catalogue.sources_page()


def test_links_between_pages_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("file", ["CITATION.cff", "mkdocs.yml", ".pre-commit-config.yaml", *ISSUES])
def test_files_for_other_programs_parse(file):
    assert yaml.safe_load((ROOT / file).read_text())


def test_the_workflow_runs_what_the_makefile_has():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    called = [
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "make " in step.get("run", "")
    ]
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {line.split()[-1] for line in called} == {"test", "docs"} <= {*targets}


def test_every_row_of_the_table_of_faults_names_a_test_that_is_there():
    rows = [line for line in (ROOT / "docs" / "faults.md").read_text().splitlines() if line.startswith("| ")][1:]
    rows = [row for row in rows if not row.startswith("| ---") and not re.fullmatch(r"\| \*\*[^|]+\*\* \| \| \|", row)]
    assert len(rows) > 60
    for row in rows:
        named = re.search(r"\| `(test_\w+\.py)::(test_\w+)` \|$", row)
        assert named, row
        assert f"def {named[2]}(" in (ROOT / "tests" / named[1]).read_text(), named[0]
