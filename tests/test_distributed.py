"""Processes: shares of cores, work dealt to torchrun's ranks, and errors that arrive whole."""

import json
import os
import subprocess
from contextlib import contextmanager
from dataclasses import replace

import forked
import numpy as np
import pytest
import torch
from drawn_checkpoints import draw_checkpoints

import eval_single_task
import main
from src import training
from src.datasets import loading as data
from src.datasets.base import Pixels
from src.evaluation import ORIGIN, Line, score
from src.modeling import ImageEncoder
from src.runtime import distributed
from src.runtime.distributed import World, check_devices, cores
from src.runtime.messages import UsageError
from src.runtime.paths import ROOT

two_cores = pytest.mark.skipif(cores() < 2, reason="needs 2 cores")


def test_cores_are_those_of_this_process(monkeypatch):
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    assert cores() == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cores() == 1 and cores(shared=False) == 6
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert cores() == 2


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"RANK": 0, "WORLD_SIZE": 8}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(
        SystemExit, match="not LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT: start with torchrun"
    ):
        check_devices("cuda")
    for name, value in {"LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 4, "MASTER_ADDR": "here", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UsageError, match="--nproc-per-node: expected at most the 2 GPUs of this machine, found 4"):
        check_devices("cuda")


def test_srun_may_show_each_rank_its_own_gpu(monkeypatch):
    """Ranks that torchrun did not start: what it starts on too few GPUs is refused as before."""
    names = {
        "RANK": 2,
        "WORLD_SIZE": 4,
        "LOCAL_RANK": 2,
        "LOCAL_WORLD_SIZE": 4,
        "MASTER_ADDR": "here",
        "MASTER_PORT": 1,
    }
    for name, value in names.items():
        monkeypatch.setenv(name, str(value))
    chosen = []

    @contextmanager
    def joined(device, *which):
        yield device

    monkeypatch.setattr(distributed, "_joined", joined)
    monkeypatch.setattr(distributed, "_meeting", None)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    for gpus, expected in ((1, "cuda:0"), (2, "cuda:0"), (4, "cuda:2")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        with distributed.torchrun("cuda") as world:
            assert world == World(2, 4, expected) and chosen.pop() == expected
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_devices("cuda")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(UsageError, match="--nproc-per-node: expected at most the 1 GPUs"):
        check_devices("cuda")


def test_processes_that_step_together_wait_half_an_hour(monkeypatch):
    groups, ended = [], []
    monkeypatch.setattr(torch.distributed, "new_group", lambda timeout: groups.append(timeout) or "group")
    monkeypatch.setattr(torch.distributed, "destroy_process_group", ended.append)
    with World(0, 2).in_step() as world:
        assert world == World(0, 2, group="group") and not ended
    assert groups == [distributed.IN_STEP] and ended == ["group"] and distributed.IN_STEP < distributed.PATIENCE
    with World().in_step() as world:
        assert world == World() and len(groups) == 1


def test_a_group_is_told_its_device_and_how_long_the_first_may_work_alone(monkeypatch):
    asked, group = [], torch.distributed
    monkeypatch.setattr(group, "rendezvous", lambda *where, timeout: iter([(group.HashStore(), 0, 2)]))
    monkeypatch.setattr(
        group, "init_process_group", lambda backend, **told: asked.append((backend, told["device_id"], told["timeout"]))
    )
    monkeypatch.setattr(group, "destroy_process_group", lambda: None)
    for device in ("cpu", "cuda:1"):
        with distributed._joined(device, "env://", 0, 2):
            pass
    patience = distributed.PATIENCE
    assert asked == [("gloo", None, patience), ("nccl", torch.device("cuda:1"), patience)]


SHARING = """
import json, pickle, sys
sys.path[:0] = [{root!r}, {tests!r}]
import torch.distributed
from src import args as arguments, evaluation
from src.runtime.distributed import spmd
from src.runtime.messages import UsageError
from src.runtime.parallel import map_tasks
from test_distributed import fail_on_one, few_images, lines

sent = []

def count(name):
    send = getattr(torch.distributed, name)
    def counting(*given, **named):
        sent.append(len(pickle.dumps([each for each in given if each is not given[0] or name != "all_gather_object"])))
        return send(*given, **named)
    setattr(torch.distributed, name, counting)

@spmd
def main(argv=None):
    for name in ("all_gather_object", "broadcast_object_list", "broadcast"):
        count(name)
    run, _ = arguments.parse(arguments.base_parser(""), argv)
    jobs = dict(enumerate(("signs", line) for line in lines(run)))
    curves = [evaluation.score_all(run, "linear", jobs, split, "shares") for split in ("val", "test")]
    print(json.dumps([[(c.accuracy, c.loss, c.n) for c in of_split.values()] for of_split in curves]), flush=True)
    print(sum(sent), flush=True)
    try:
        map_tasks(fail_on_one, [0, 1, 2], 1, "failing")
    except FloatingPointError as error:
        print(error, map_tasks(abs, [-1, -2, -3], 1, "going on"), flush=True)

few_images()
main(sys.argv[1:])
"""


def few_images() -> None:
    """Splits of 7 images and of 1: odd, and fewer than there are processes."""
    whole = data.evaluation_pixels

    def some(run, dataset: str, split: str, side: int) -> Pixels:
        found, n = whole(run, dataset, "val", side), {"val": 7, "test": 1}[split]
        return Pixels(found.pixels[:n], found.labels[:n])

    data.evaluation_pixels = some


def lines(run) -> list[Line]:
    generator = torch.Generator().manual_seed(0)
    moved = {
        name: 0.1 * torch.randn(p.shape, generator=generator) * (p.std() if p.numel() > 1 else 0)
        for name, p in ImageEncoder(run).named_parameters()
        if name.startswith("model.visual.")
    }
    return [Line(moved, (0.5, 1.0)), ORIGIN]


def fail_on_one(number: int) -> int:
    if number == 1:
        raise FloatingPointError("one is unwell")
    return number


@two_cores
def test_ranks_count_every_image_once_and_hand_their_errors_on(make_run, tmp_path, mini_cache, monkeypatch):
    """They send each other which images are right, and no weights: every rank has those itself."""
    run = make_run()
    monkeypatch.setattr(data, "evaluation_pixels", data.evaluation_pixels)  # put back what few_images replaces
    few_images()
    expected = [
        [(c.accuracy, c.loss, c.n) for c in (score(run, "signs", split, line, True) for line in lines(run))]
        for split in ("val", "test")
    ]
    program = tmp_path / "program.py"
    program.write_text(SHARING.format(root=str(ROOT), tests=str(ROOT / "tests")))
    flags = ("--seed=0", "--device=cpu", f"--cache-dir={mini_cache}", f"--save={run.places.save}")
    done = forked.torchrun(program, *flags)
    assert done.returncode == 0, done.stderr
    found, sent, after = done.stdout.strip().splitlines()  # rank 0 alone speaks
    assert 0 < int(sent) < 20_000 < sum(tensor.nbytes for tensor in lines(run)[0].direction.values())
    for ours, theirs in zip(expected, json.loads(found), strict=True):
        assert [n for _, _, n in theirs] == [n for _, _, n in ours]
        for (accuracy, loss, _), (other_accuracy, other_loss, _) in zip(ours, theirs):
            assert list(accuracy) == other_accuracy and list(loss) == pytest.approx(other_loss)
    assert [n for _, _, n in expected[0]] == [7, 7] and [n for _, _, n in expected[1]] == [1, 1]
    assert after == "one is unwell [1, 2, 3]"


@two_cores
def test_a_users_error_arrives_as_its_one_line(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from src.runtime.program import exit_on_user_error\n"
        "from src.datasets.examples import BadFile\n"
        "from src.runtime.distributed import launch\n"
        "def worker(world):\n"
        "    if world.rank == 1: raise BadFile(Path('a.mat'), 'labels', 'none')\n"
        "    world.barrier()\n"
        "@exit_on_user_error\n"
        "def main(argv=None): launch(worker, 'cpu', 2)\n"
        "if __name__ == '__main__': main()\n"
    )
    with forked.ranks():
        done = forked.run(program)
    assert done.returncode == 1 and done.stderr.count("error: ") == 1
    assert "error: a.mat: expected labels, found none" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("side", [32, 40])  # in memory at the encoder's size, or through the loader
def test_a_process_without_images_takes_one_that_does_not_count(make_training, side):
    """The last batch of an epoch may hold fewer images than there are processes."""
    run, settings = make_training("--batch-size=4", "--workers=0")
    examples = Pixels(np.zeros((5, side, side, 3), np.uint8), np.arange(5))
    batches = [training.Batches(run, settings, ImageEncoder(run), examples, World(rank, 2), "signs") for rank in (0, 1)]
    (_, one, four), (last, label, single) = batches[0](0, 2)
    (_, other, _), (again, none, _) = batches[1](0, 2)
    assert four == 4 and single == 1 and sorted([*one.tolist(), *other.tolist(), *label.tolist()]) == list(range(5))
    assert len(last) == len(again) == 1 and none.tolist() == [training.IGNORED]
    assert torch.nn.functional.cross_entropy(torch.randn(1, 43), none, label_smoothing=0.1, reduction="sum") == 0


@two_cores
def test_evaluation_scripts_under_torchrun(tmp_path, small_cache):
    places = (f"--save={tmp_path}/checkpoints", f"--cache-dir={small_cache}")
    flags = ("--model=ViT-Mini", "--seed=0", "--device=cpu", "--tasks=digits", *places)

    def run(script: str, *own: str) -> subprocess.CompletedProcess:
        return forked.torchrun(script, *flags, *own)

    done = run("eval_single_task.py", "--finetuning-mode=none", f"--results={tmp_path}/two")
    assert done.returncode == 0, done.stderr
    eval_single_task.main([*flags, "--finetuning-mode=none", "--jobs=1", f"--results={tmp_path}/one"])
    found = {}
    for name in ("two", "one"):
        (file,) = (tmp_path / name).rglob("zeroshot_accuracies.json")
        found[name] = json.loads(file.read_text())
    for field in ("digits", "digitsVal", "control", "controlVal", "n"):
        assert found["two"][field] == found["one"][field]
    # What a user has to mend ends rank 0 with its line, and the other rank with it.
    done = run("eval_task_addition.py", f"--results={tmp_path}/two")
    assert done.returncode != 0
    assert done.stderr.count("error: expected") + done.stderr.count("error: /") == 1, done.stderr
    assert "python finetune.py" in done.stderr


@two_cores
def test_ranks_adapt_as_one_process_does(make_run, tmp_path, capsys, small_cache):
    """Rank 0 adapts, watches and saves; the others get what it learned."""
    run = make_run("--tasks=digits,signs")
    found, heard = {}, {}
    for name in ("two", "one"):
        own = replace(run, places=replace(run.places, results=tmp_path / name))
        draw_checkpoints(own)
        flags = ("method=concrete_task_arithmetic", "method.mask_steps=3", "eval_every=2", "save_every=1", "jobs=1")
        places = (f"save={own.places.save}", f"results={own.places.results}", f"cache_dir={small_cache}")
        overrides = [*flags, *places, "tasks=[digits,signs]", "seed=0", "device=cpu"]
        if name == "one":
            capsys.readouterr()
            main.main(overrides)
            printed = capsys.readouterr().out
        else:
            done = forked.torchrun("main.py", *overrides)
            assert done.returncode == 0, done.stderr
            printed = done.stdout
        (file,) = own.places.results.rglob("concrete_task_arithmetic*.json")
        found[name], heard[name] = json.loads(file.read_text()), len(printed.splitlines())
    assert heard["two"] == heard["one"] and not list(run.places.save.rglob("*.state"))
    for part in ("test", "val"):
        assert found["two"][part]["accuracy"] == found["one"][part]["accuracy"]
    assert found["two"]["n"] == found["one"]["n"]
    two, one = (found[name]["adaptation"] for name in ("two", "one"))
    assert two["watched"] == one["watched"]
    assert two["curves"]["density"] == pytest.approx(one["curves"]["density"])
    for task, entropies in two["curves"]["entropy"].items():
        assert len(entropies) == 3 and entropies == pytest.approx(one["curves"]["entropy"][task])


APART = """
import sys
sys.path.insert(0, {root!r})
from src.runtime.distributed import gathered, rank, spmd
from src.runtime.messages import MissingFile
from src.runtime.program import exit_on_user_error

@exit_on_user_error
@spmd
def main(argv=None):
    if rank() == {which}:
        raise MissingFile("no such file")
    gathered(None)

main()
"""


@two_cores
@pytest.mark.parametrize("which", ["rank()", "1"], ids=["all ranks", "one rank"])
def test_ranks_tell_an_error_once(tmp_path, which):
    program = tmp_path / "program.py"
    program.write_text(APART.format(root=str(ROOT), which=which))
    done = forked.torchrun(program)
    assert done.returncode != 0
    assert done.stderr.count("error: no such file") == 1, done.stderr
    assert "onnection" not in done.stderr and "stopped;" not in done.stderr, done.stderr


@two_cores
@pytest.mark.parametrize("script", ["finetune.py", "eval_task_addition.py", "main.py"])
def test_ranks_tell_a_wrong_flag_once(script):
    flags = ("--tasks=sings", "--device=cpu") if script != "main.py" else ("tasks=[sings]", "device=cpu")
    done = forked.torchrun(script, *flags)
    assert done.returncode != 0 and done.stderr.count("did you mean signs") == 1, done.stderr
    assert "HYDRA_FULL_ERROR" not in done.stderr  # what Hydra says of errors that it is left to tell


def test_what_every_rank_finds_is_told_by_the_first_alone(monkeypatch, capsys):
    for rank, told in ((0, "warning: MNIST: expected\n"), (1, "")):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        distributed.warn("warning: MNIST: expected")
        assert capsys.readouterr().err == told


def test_experiments_write_to_standard_error_through_the_first_rank_alone():
    """Standard output of the others is nowhere already; their standard error is that of all."""
    for path in (ROOT / "src/experiments").glob("*.py"):
        if path.name != "reproduction.py":  # which starts the commands, by itself
            assert "file=sys.stderr" not in path.read_text(), path
