"""The code in README.md runs as it is written."""

import re
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from src.linearize import LinearizedModel
from src.merging import registry
from src.merging.base import Problem
from src.task_vectors import NonLinearTaskVector
from tests.conftest import ROOT

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


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
