"""Every stage of a suite in order: fine-tune, evaluate, merge, analyse, tables, figures.

    python reproduce.py                          # mini suite, seed 1
    python reproduce.py --seeds 1,2,3
    python reproduce.py --only single-task addition
    python reproduce.py --extended               # also sweeps, unseen tasks, tangent merging, robustness
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
from src.reporting.runs import BENCHMARKS
from src.runtime.paths import Paths
from src.runtime.program import exit_on_user_error


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


def _first_benchmark(args) -> argparse.Namespace:
    """The papers of the tangent space add and negate the first 8 tasks of a suite."""
    return argparse.Namespace(**vars(args) | {"tasks": args.tasks[: BENCHMARKS[0]]})


def _addition(args) -> list[Command]:
    args = _first_benchmark(args)
    return _per_mode(args, "eval_task_addition", EVALUATION_MODES, lambda m: Paths.of(args).result(f"addition_{m}"))


def _negation(args) -> list[Command]:
    args = _first_benchmark(args)
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
    named = argparse.Namespace(**vars(_first_benchmark(args)) | {"model": f"{args.model}__init__"})
    paths = Paths.of(named)
    single = _per_mode(named, "eval_single_task", ("none", *TRAINING_MODES), paths.single_task)
    added = _per_mode(named, "eval_task_addition", TRAINING_MODES, lambda mode: paths.result(f"addition_{mode}"))
    return [*_fine_tune(named), *single, *added]


CONCRETE = "concrete_subspace/clip_concrete"
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
ADAPTATION = {
    "adamerging_granularity=task": ("method=adamerging", "method.granularity=task"),
    "adamerging": ("method=adamerging",),
    f"{CONCRETE}_task_arithmetic": (f"method={CONCRETE}_task_arithmetic",),
    f"{CONCRETE}_layer_wise_adamerging": (f"method={CONCRETE}_layer_wise_adamerging",),
}
MORE_ADAPTATION = {
    f"{CONCRETE}_task_wise_adamerging": (f"method={CONCRETE}_task_wise_adamerging",),
    "adamerging_pp_granularity=task": ("method=adamerging_pp", "method.granularity=task"),
    "adamerging_pp": ("method=adamerging_pp",),
}
# Beside each other on unseen tasks, on corrupted images, and adapted to validation images.
COMPARED = {label: (MERGING | ADAPTATION)[label] for label in ("sum", "adamerging", f"{CONCRETE}_task_arithmetic")}
SUBSETS = (2, 4, 8, 16)  # numbers of tasks
CORRUPTIONS = ("gaussian_noise", "contrast")


def _merging(args, modes: tuple[str, ...] = ("standard",)) -> list[Command]:
    """Every method on the papers' benchmarks, the first 8, 14 and 20 of the suite's tasks, or on those of --tasks."""
    every = args.tasks == registry.suite(args.suite).tasks
    sizes = [count for count in BENCHMARKS if count <= len(args.tasks)] if every else [len(args.tasks)]
    return [
        _merge(args, label, overrides, args.tasks[:count], mode)
        for count in sizes
        for mode in modes
        for label, overrides in MERGING.items()
    ]


def _tangent_merging(args) -> list[Command]:
    return _merging(args, ("linear", "posthoc"))


def _sweeps(args) -> list[Command]:
    """Consensus TA at every threshold, and sum, TIES and TALL masks on random subsets of the tasks, each in the next.

    Thresholds 0 and above the number of tasks are task arithmetic and zero-shot, 2 is the default: `merging` has them.
    """
    tasks = args.tasks[: BENCHMARKS[0]]
    found = [
        _merge(args, f"consensus_prun_thre_k={k}", ("method=consensus", f"method.prun_thre_k={k}"), tasks)
        for k in (1, *range(3, len(tasks) + 1))
    ]
    order = np.random.default_rng(args.seed).permutation(len(args.tasks))
    for count in (size for size in SUBSETS if size < len(args.tasks)):
        subset = tuple(args.tasks[i] for i in sorted(order[:count]))
        found += [_merge(args, label, MERGING[label], subset) for label in ("sum", "ties", "tall_mask")]
    return found


def _adaptation(args) -> list[Command]:
    """The methods that adapt at test time, on the papers' eight tasks, as published: on the images that are scored."""
    return [_merge(args, label, overrides, args.tasks[: BENCHMARKS[0]]) for label, overrides in ADAPTATION.items()]


def _unseen(args) -> list[Command]:
    """Methods that make one model, on two tasks that they were not merged from."""
    apart = registry.suite(args.suite).unseen
    seen = tuple(task for task in args.tasks[: BENCHMARKS[0]] if task not in apart)
    if not (seen and set(apart) <= set(args.tasks)):
        return []
    score = f"unseen=[{','.join(apart)}]"
    return [
        _merge(args, f"{label}_unseen={'+'.join(apart)}", (*overrides, score), seen)
        for label, overrides in COMPARED.items()
    ]


def _more_adaptation(args) -> list[Command]:
    """Task-wise Concrete AdaMerging, AdaMerging++, and adaptation to validation images, so that test is read once."""
    on_val = {
        f"{label}_adapt_on=val": (*overrides, "method.adapt_on=val")
        for label, overrides in COMPARED.items()
        if label in ADAPTATION
    }
    found = MORE_ADAPTATION | on_val
    return [_merge(args, label, overrides, args.tasks[: BENCHMARKS[0]]) for label, overrides in found.items()]


def _robustness(args) -> list[Command]:
    """Scoring, and adapting, on corrupted test images."""
    found = []
    for name in CORRUPTIONS:
        shifted = argparse.Namespace(**vars(args) | {"corruption": name})
        found += _per_mode(shifted, "eval_single_task", ("none", "standard"), Paths.of(shifted).single_task)
        for label, overrides in COMPARED.items():
            watching = ("eval_every=0",) if label in ADAPTATION else ()
            found.append(_merge(shifted, label, (*overrides, *watching), args.tasks[: BENCHMARKS[0]]))
    return found


def _merge(args, label: str, overrides: tuple[str, ...], tasks: tuple[str, ...], mode: str = "standard") -> Command:
    """main.py on `tasks`; `label`: what it calls the result."""
    import main as merging

    flags = [*overrides]
    if tasks != registry.suite(args.suite).tasks[: len(tasks)]:
        flags.append(f"DATASETS=[{','.join(tasks)}]")
    elif len(tasks) != BENCHMARKS[0]:  # main.py's default
        flags.append(f"num_tasks={len(tasks)}")
    if mode != "standard":
        flags.append(f"finetuning_mode={mode}")
    shared = (flag.removeprefix("--").split("=", 1) for flag in _common(args) if not flag.startswith("--tasks="))
    flags += [f"{name.replace('-', '_')}={value}" for name, value in shared]
    name = merging.tasks_name(argparse.Namespace(**vars(args) | {"tasks": tasks}), {})
    return Command("main", tuple(flags), (Paths.of(args).result(f"merging/{name}/{mode}-visual/{label}"),))


def _tables(args) -> list[Command]:
    return [Command("make_tables", _reported(args), (Paths.of(args).tables(),))]


def _figures(args) -> list[Command]:
    folder = Paths.of(args).figures()
    places = tuple(flag for flag in _common(args) if flag.startswith(("--cache-dir=", "--data-location=")))
    shown = ("contact", "corruptions")  # pictures of images, which are drawn or read for them
    sheets = [Command("make_figures", (name, *_reported(args), *places), (folder / f"{name}.png",)) for name in shown]
    return [Command("make_figures", _reported(args), (folder,)), *sheets]


def _reported(args) -> tuple[str, ...]:
    """The flags of the programs that read results alone."""
    return tuple(flag for flag in _common(args) if flag.startswith(("--model=", "--results=")))


def _per_mode(args, script: str, modes, output: Callable[[str], Path]) -> list[Command]:
    return [Command(script, (f"--finetuning-mode={mode}", *_common(args)), (output(mode),)) for mode in modes]


FORWARDED = (
    *("save", "results", "cache_dir", "data_location", "device", "pretrained_path", "eval_batch_size"),
    *("corruption", "severity"),
)


def _common(args) -> tuple[str, ...]:
    """What every command of a run shares; defaults are left out, so that the commands are those one would type."""
    defaults = parse(base_parser("", modes=None), [])
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
    Stage("adaptation", _adaptation),
    Stage("random-init", _random_init),
    Stage("merging-sweeps", _sweeps, extended=True),
    Stage("unseen", _unseen, extended=True),
    Stage("merging-tangent", _tangent_merging, extended=True),
    Stage("adaptation-more", _more_adaptation, extended=True),
    Stage("robustness", _robustness, extended=True),
)
# Once, after the stages of every seed, from whatever results there are.
REPORT = (Stage("tables", _tables), Stage("figures", _figures))


@exit_on_user_error
def main(argv=None) -> None:
    parser = base_parser(__doc__, modes=None)
    parser.add_argument("--seeds", type=_numbers, help="such as 1,2,3; each draws its images and fine-tunes anew")
    parser.add_argument(
        "--only", nargs="+", choices=[stage.name for stage in (*STAGES, *REPORT)], metavar="STAGE", help="these stages"
    )
    parser.add_argument("--extended", action="store_true", help="also merging-*, unseen, adaptation-more, robustness")
    parser.add_argument("--dry-run", action="store_true", help="print the commands; run nothing")
    args = parse(parser, argv)
    began, failed = time.time(), []
    for seed in args.seeds or [args.seed]:
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


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 1,2,3; got {text!r}") from None


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
