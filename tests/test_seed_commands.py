"""The commands of the papers' own pages, as written, and other projects' options, which have counterparts here."""

import importlib
import os
import shlex
import subprocess
import sys

import pytest
from test_published import Parsed, compose, stopping_after

import main as merging
from src import args as arguments
from src import counterparts
from src.datasets.vision import TASKS
from src.merging.registry import METHODS, load_methods
from src.runtime.paths import ROOT

EIGHT, TWENTY = TASKS[:8], TASKS
PARSED: dict = {
    "finetune.py --finetuning-mode=linear --model=ViT-B-32": TWENTY,
    "eval_single_task.py --model=ViT-B-32 --finetuning-mode=posthoc": TWENTY,
    # Tables 1 and 2: the published scripts have 8 tasks.
    "eval_task_addition.py --model=ViT-B-32 --finetuning-mode=standard": EIGHT,
    "eval_task_negation.py --model=ViT-B-32 --finetuning-mode=linear": EIGHT,
    "eval_task_addition.py --model=ViT-B-32 --tasks=20": TWENTY,
    "eval_task_addition.py --model=ViT-B-32 --tasks=14": TASKS[:14],
    "eval_task_negation.py --model=ViT-B-32 --tasks=Cars,MNIST": ("Cars", "MNIST"),
    "eval_single_task.py --model=ViT-B-32 --tasks 8": EIGHT,
    "eval_disentanglement.py --model=ViT-B-32 --tasks=14": TASKS[:14],
    "eval_ntk_localization.py --model=ViT-B-32 --tasks=14": TASKS[:14],
    "download_checkpoints.py --model=ViT-B-16 --kind=checkpoints --tasks=14": TASKS[:14],
    "reproduce.py --model=ViT-B-32 --tasks=14": TASKS[:14],
    "eval_single_task.py --model=ViT-B-32 --tasks EMNIST_letters FER2013_corrected": (
        "EMNIST_letters",
        "FER2013_corrected",
    ),
}


@pytest.mark.parametrize("command", PARSED)
def test_tasks_of_a_command(command, monkeypatch):
    script, *flags = shlex.split(command)
    module = importlib.import_module(script.removesuffix(".py"))
    runs = []

    def parse(*given):
        runs.append(arguments.parse(*given)[0])

    monkeypatch.setattr(module, "parse", stopping_after(parse))
    with pytest.raises(Parsed):
        module.main(flags)
    assert runs[0].tasks == PARSED[command]


@pytest.mark.parametrize("overrides", ["num_tasks=14", "tasks=14", "DATASETS=14"])
def test_numbers_of_tasks_in_main(overrides, monkeypatch):
    taken = []
    monkeypatch.setattr("src.experiments.merging.merge", lambda run, *_: taken.append(run.tasks))
    merging.main(["model=ViT-B-32", "method=sum", overrides])
    assert taken == [TASKS[:14]]


@pytest.mark.parametrize("size", ["task", "layer"])
def test_flat_names_of_fusion_bench(size):
    compose(["model=ViT-B-32", f"method=clip_concrete_{size}_wise_adamerging"])
    compose(["model=ViT-B-32", f"method=concrete_subspace/clip_concrete_{size}_wise_adamerging"])
    compose(["model=ViT-B-32", "method=clip_concrete_task_arithmetic"])


@pytest.mark.parametrize("flag", counterparts.FLAGS)
def test_flags_of_the_published_scripts_are_refused_with_their_counterpart(flag, capsys):
    with pytest.raises(SystemExit):
        arguments.parse(arguments.base_parser(""), [f"--{flag}=x"])
    assert f"for --{flag} take {counterparts.FLAGS[flag]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        # The commands of the seeds' pages.
        (
            "fabric_logger.name=x method=clip_concrete_task_arithmetic modelpool=m taskpool=t",
            "for modelpool take model=",
        ),
        ("path.log_dir=outputs method=concrete_subspace/clip_concrete_task_arithmetic", "path.log_dir take results="),
        ("model_location=checkpoints method=sum", "for model_location take save=FOLDER"),
        ("method=concrete_task_arithmetic method.max_steps=2000", "take method.mask_steps=2000"),
        ("method=sum +specify_lambda=0.3", "for specify_lambda take method.alphas=[0.3]"),
        ("method=tall_mask method.k=10", "for method.k take method=sum method.k=20"),
        ("method=consensus method.k=10", "for method.k take method=sum method.k=20"),
        ("method=sum encoders.signs=x.safetensors", "+encoders.signs=x.safetensors"),
    ],
)
def test_options_of_fusion_bench_are_refused_with_their_counterpart(overrides, told, capsys):
    with pytest.raises(SystemExit) as ended:
        merging.main(overrides.split())
    assert ended.value.code == 2 and told in capsys.readouterr().err


def test_no_counterpart_shadows_an_option():
    load_methods()
    options = {f"method.{option}" for method in METHODS.values() for option in method.defaults()}
    flags = {f"{flag.replace('-', '_')}" for flag in counterparts.FLAGS} | set(counterparts.OVERRIDES)
    assert not flags & set(arguments.shared_flags())
    for name in counterparts.OVERRIDES:
        assert counterparts.of_overrides([f"{name}=1"], options) == "" or name not in options


def test_the_snippets_of_localizing_task_information_run_with_src_on_the_path(tmp_path):
    """Its page imports task_vectors without src in front, and its scripts lie in src/ too."""
    lines = (
        "import torch; from task_vectors import TaskVector",
        "pretrained_checkpoint, *finetuned = ({'w': torch.randn(5, 5)} for _ in range(4))",
        "task_vector_A, task_vector_B, task_vector_C = (TaskVector(pretrained_checkpoint, one) for one in finetuned)",
        "multi_task_vector = task_vector_A + task_vector_B + task_vector_C",
        "tall_mask_A = task_vector_A.abs() > (multi_task_vector - task_vector_A).abs() * 0.4",
        "reconstructed_finetuned_checkpoint_A = pretrained_checkpoint + multi_task_vector * tall_mask_A",
        "print(*reconstructed_finetuned_checkpoint_A)",
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "w\n"), done.stderr
