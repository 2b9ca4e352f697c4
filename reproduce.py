"""Every stage of a suite in order: fine-tune, evaluate, merge, analyse, tables, figures.

    python reproduce.py                          # mini suite, seed 1
    python reproduce.py --seeds 1,2,3
    python reproduce.py --only single-task addition
    python reproduce.py --extended               # also random-init, merging-tangent, merging-sweeps
    python reproduce.py --dry-run                # what would run, and what is there already
    python reproduce.py --suite vision --model ViT-B-32

Finished work is skipped, so a run that was stopped goes on where it was. A command that fails is reported, those that
do not need it still run, and the exit status is 1.
"""

import argparse
import importlib
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.args import EVALUATION_MODES, TRAINING_MODES, base_parser, parse
from src.datasets import registry
from src.paths import Paths


@dataclass(frozen=True)
class Command:
    """One script with its flags, and the files that say that it has run."""

    script: str
    flags: tuple[str, ...]
    outputs: tuple[Path, ...]

    @property
    def finished(self) -> bool:
        return all(path.exists() for path in self.outputs)

    def __str__(self) -> str:
        return shlex.join(["python", f"{self.script}.py", *self.flags])


@dataclass(frozen=True)
class Stage:
    """Commands of one seed. An `extended` stage runs when it is named, or with --extended."""

    name: str
    commands: Callable[[argparse.Namespace], list[Command]]
    extended: bool = False


def _fine_tune(args) -> list[Command]:
    paths = Paths.of(args)
    return [
        Command(
            "finetune",
            (f"--finetuning-mode={mode}", *_common(args)),
            tuple(paths.checkpoint(task, mode) for task in args.tasks),
        )
        for mode in TRAINING_MODES
    ]


def _single_task(args) -> list[Command]:
    return _per_mode(args, "eval_single_task", ("none", *EVALUATION_MODES), Paths.of(args).single_task)


def _addition(args) -> list[Command]:
    return _per_mode(args, "eval_task_addition", EVALUATION_MODES, lambda m: Paths.of(args).result(f"addition_{m}"))


def _negation(args) -> list[Command]:
    return _per_mode(args, "eval_task_negation", EVALUATION_MODES, lambda m: Paths.of(args).result(f"negation_{m}"))


def _disentanglement(args) -> list[Command]:
    def output(mode):
        return Paths.of(args).result(f"disentanglement_{mode}")

    return _per_mode(args, "eval_disentanglement", EVALUATION_MODES, output)


def _ntk(args) -> list[Command]:
    found = []
    for model in (args.model, f"{args.model}__init__"):
        named = argparse.Namespace(**vars(args) | {"model": model})
        for reduction in ("trace", "sum"):
            flags = (f"--reduction={reduction}", *_common(named))
            found.append(Command("eval_ntk_localization", flags, (Paths.of(named).result(f"ntk_{reduction}"),)))
    return found


def _random_init(args) -> list[Command]:
    named = argparse.Namespace(**vars(args) | {"model": f"{args.model}__init__"})
    paths = Paths.of(named)
    single = _per_mode(named, "eval_single_task", ("none", *TRAINING_MODES), paths.single_task)
    added = _per_mode(named, "eval_task_addition", TRAINING_MODES, lambda mode: paths.result(f"addition_{mode}"))
    return [*_fine_tune(named), *single, *added]


# Label of the result (see main.label) -> overrides of main.py. Consensus needs the masks that tall_mask keeps.
MERGING = {
    "zeroshot": ("method=zeroshot",),
    "average": ("method=average",),
    "sum": ("method=sum",),
    "ties": ("method=ties",),
    "mag_masking": ("method=mag_masking",),
    "tall_mask": ("method=tall_mask",),
    "tall_mask_use_ties=True": ("method=tall_mask", "method.use_ties=True"),
    "consensus": ("method=consensus",),
    "consensus_use_ties=True": ("method=consensus", "method.use_ties=True"),
}


def _merging(args, modes: tuple[str, ...] = ("standard",)) -> list[Command]:
    import main as merging

    found, tasks = [], merging.tasks_name(args, {})
    for mode in modes:
        for label, overrides in MERGING.items():
            output = Paths.of(args).result(f"merging/{tasks}/{mode}-visual/{label}")
            found.append(Command("main", (*overrides, f"finetuning_mode={mode}", *_hydra_flags(args)), (output,)))
    return found


def _tangent_merging(args) -> list[Command]:
    return _merging(args, ("linear", "posthoc"))


def _sweeps(args) -> list[Command]:
    """Consensus at every threshold, and sum, TIES and TALL masks on random subsets of the tasks."""
    import main as merging

    found = []
    tasks = len(args.tasks)
    for k in (0, 1, *range(3, tasks + 1)):
        folder = f"merging/{merging.tasks_name(args, {})}/standard-visual"
        output = Paths.of(args).result(f"{folder}/consensus_prun_thre_k={k}")
        found.append(Command("main", ("method=consensus", f"method.prun_thre_k={k}", *_hydra_flags(args)), (output,)))
    for count in range(2, tasks, 2):
        chosen = np.random.default_rng((args.seed, count)).choice(tasks, count, replace=False)
        subset = tuple(args.tasks[i] for i in sorted(chosen))
        name = merging.tasks_name(argparse.Namespace(**vars(args) | {"tasks": subset}), {})
        for label in ("sum", "ties", "tall_mask"):
            output = Paths.of(args).result(f"merging/{name}/standard-visual/{label}")
            overrides = (f"method={label}", f"DATASETS=[{','.join(subset)}]", *_hydra_flags(args))
            found.append(Command("main", overrides, (output,)))
    return found


def _hydra_flags(args) -> tuple[str, ...]:
    """`_common` as main.py spells it: model=ViT-Mini in the place of --model=ViT-Mini."""
    flags = (flag.removeprefix("--").split("=", 1) for flag in _common(args))
    spelled = ((name.replace("-", "_"), value) for name, value in flags)
    return tuple(f"DATASETS=[{value}]" if name == "tasks" else f"{name}={value}" for name, value in spelled)


def _tables(args) -> list[Command]:
    return [Command("make_tables", _reported(args), (Paths.of(args).tables(),))]


def _figures(args) -> list[Command]:
    folder = Paths.of(args).figures()
    places = tuple(flag for flag in _common(args) if flag.startswith(("--cache-dir=", "--data-location=")))
    contact = Command("make_figures", ("contact", *_reported(args), *places), (folder / "contact.png",))
    return [Command("make_figures", _reported(args), (folder,)), contact]


def _reported(args) -> tuple[str, ...]:
    """The flags of the programs that read results alone."""
    return tuple(flag for flag in _common(args) if flag.startswith(("--model=", "--results=")))


def _per_mode(args, script: str, modes, output: Callable[[str], Path]) -> list[Command]:
    return [Command(script, (f"--finetuning-mode={mode}", *_common(args)), (output(mode),)) for mode in modes]


FORWARDED = ("save", "results", "cache_dir", "data_location", "device", "pretrained_path", "eval_batch_size")


def _common(args) -> tuple[str, ...]:
    """What every command of a run shares; defaults are left out, so that the commands are those one would type."""
    defaults = base_parser("", modes=None).parse_args([])
    flags = [f"--model={args.model}", f"--seed={args.seed}"]
    for name in FORWARDED:
        if getattr(args, name) != getattr(defaults, name):
            flags.append(f"--{name.replace('_', '-')}={getattr(args, name)}")
    if args.tasks != registry.suite(args.suite).tasks:
        flags.append(f"--tasks={','.join(args.tasks)}")
    return tuple(flags)


STAGES = (
    Stage("fine-tuning", _fine_tune),
    Stage("single-task", _single_task),
    Stage("addition", _addition),
    Stage("negation", _negation),
    Stage("disentanglement", _disentanglement),
    Stage("ntk", _ntk),
    Stage("merging", _merging),
    Stage("random-init", _random_init, extended=True),
    Stage("merging-tangent", _tangent_merging, extended=True),
    Stage("merging-sweeps", _sweeps, extended=True),
)
# Once, after the stages of every seed, from whatever results there are.
REPORT = (Stage("tables", _tables), Stage("figures", _figures))


def main(argv=None) -> None:
    parser = base_parser(__doc__, modes=None)
    parser.add_argument("--seeds", default="1", help="comma-separated; each draws its own images and fine-tunes anew")
    parser.add_argument(
        "--only", nargs="+", choices=[stage.name for stage in (*STAGES, *REPORT)], metavar="STAGE", help="these stages"
    )
    parser.add_argument("--extended", action="store_true", help="also the longer stages: random-init, merging-*")
    parser.add_argument("--dry-run", action="store_true", help="print the commands; run nothing")
    args = parse(parser, argv)
    seeds = [int(text) for text in args.seeds.split(",")]
    began, failed = time.time(), []
    for seed in seeds:
        seeded = argparse.Namespace(**vars(args) | {"seed": seed})
        for stage in _chosen(STAGES, args):
            start = time.time()
            ran = sum(_run(command, args, failed) for command in stage.commands(seeded))
            if not args.dry_run:
                took = f"{time.time() - start:.0f} s" if ran else "finished before"
                print(f"seed {seed}, {stage.name}: {took}", flush=True)
    for stage in _chosen(REPORT, args):
        for command in stage.commands(args):
            _run(command, args, failed, always=True)
    if failed:
        print(f"{len(failed)} of the commands failed; run them by themselves to see why:")
        print("\n".join(f"  {command}" for command in failed))
        raise SystemExit(1)
    if not args.dry_run:
        print(
            f"all stages finished in {(time.time() - began) / 60:.1f} minutes; results in {args.results / args.suite}"
        )


def _chosen(stages: tuple[Stage, ...], args) -> list[Stage]:
    if args.only:
        return [stage for stage in stages if stage.name in args.only]
    return [stage for stage in stages if args.extended or not stage.extended]


def _run(command: Command, args, failed: list, always: bool = False) -> bool:
    """Run a command in this process, which keeps its workers; whether it had anything to do."""
    if command.finished and not always and not args.overwrite:
        if args.dry_run:
            print(f"  there already: {command}")
        return False
    if args.dry_run:
        print(f"  would run:     {command}")
        return False
    print(f"  {command}", flush=True)
    try:
        _call(command, args.overwrite and not always)
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and not error.code:
            return True
        traceback.print_exc()
        failed.append(command)
    return True


def _call(command: Command, overwrite: bool) -> None:
    again = "overwrite=True" if command.script == "main" else "--overwrite"
    flags = [*command.flags, *([again] if overwrite else [])]
    typed, sys.argv = sys.argv, [f"{command.script}.py", *flags]  # what results name as the command that made them
    try:
        importlib.import_module(command.script).main(flags)
    finally:
        sys.argv = typed


if __name__ == "__main__":
    main()
