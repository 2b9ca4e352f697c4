"""Flags of the command-line scripts. No other file of src parses them: out come a `Run` and plain options."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

from src import counterparts
from src.datasets.corruptions import SEVERITIES
from src.datasets.registry import BENCHMARKS, SUITES
from src.modes import EVALUATED, MODES, PENALTY_TASKS, SCOPES, TRAINED
from src.ranges import RANGES, check, require
from src.run import BATCH, GPU_BATCH, PRECISIONS, Corruption, Run, pair_names
from src.runtime.distributed import check_devices, leave_to_the_first, under_torchrun
from src.runtime.messages import UsageError, nearest
from src.runtime.paths import Places, expanded

BOTH = "both"
REPRODUCED = Path("reproduced")  # apart from results/, which ships: there most is finished
MOST_SEEDS = 1000  # of one range: a slip of the keyboard would fill the memory
EXIT_STATUS = "Exit status: 0 when all is done, 1 when something failed, 2 for a wrong flag, 130 after Ctrl-C."
_stop_when_parsed = ContextVar("_stop_when_parsed", default=False)


class Parsed(Exception):
    """Ends a script whose flags were taken, within `only_parsing`."""


@contextmanager
def only_parsing() -> Iterator[None]:
    """Within it a script that is called raises Parsed once it has taken its flags, or ends as it does on wrong ones."""
    token = _stop_when_parsed.set(True)
    try:
        yield
    finally:
        _stop_when_parsed.reset(token)


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written, and the default of every flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default in (None, False, argparse.SUPPRESS) or "default" in text:
            return text
        default = " ".join(map(str, action.default)) if isinstance(action.default, tuple) else action.default
        return f"{text}; default: {default}"


class Parser(argparse.ArgumentParser):
    """argparse, whose messages on a wrong choice name the nearest right one, and fill a line.

    Its help ends with the exit status, unless the description tells it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.epilog is None and "Exit status" not in (self.description or ""):
            self.epilog = EXIT_STATUS

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            hint = nearest(str(value), [str(c) for c in action.choices]) or "."
            raise argparse.ArgumentError(
                action, f"{value!r} does not exist{hint} Known: {', '.join(map(str, action.choices))}"
            )

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Numbers of the range of their flag, and paths whose `~` is the home folder."""
        if action.type is Path:
            try:
                return expanded(arg_string)
            except UsageError as error:
                raise argparse.ArgumentError(action, str(error)) from None
        allowed = RANGES.get(action.dest) if action.type in (int, float, rank) else None
        try:
            value = super()._get_value(action, arg_string)
        except argparse.ArgumentError:
            if allowed is None:
                raise
            value = arg_string
        if allowed is not None and value not in allowed:
            raise argparse.ArgumentError(action, f"expected {allowed}; got {arg_string!r}")
        return value

    def parse_args(self, args=None, namespace=None):
        """As argparse's; flags of other projects are refused with what stands for them here."""
        flags, unknown = self.parse_known_args(args, namespace)
        if unknown:
            instead = counterparts.of_flags(unknown)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{f' ({instead})' if instead else ''}")
        if _stop_when_parsed.get():
            raise Parsed
        return flags

    def error(self, message: str) -> NoReturn:
        leave_to_the_first()
        self.exit(2, f"error: {message} (--help lists the flags)\n")


def command_parser(prog: str, doc: str | None) -> Parser:
    """Of a module that is run as `python -m`, without the flags of the scripts."""
    return Parser(prog=f"python -m {prog}", description=doc, formatter_class=Formatter)


def base_parser(doc: str | None, modes: Sequence[str] | None = EVALUATED) -> Parser:
    """The flags of every script; `modes` are the choices of `--finetuning-mode`, None leaves it out."""
    parser = Parser(description=doc, formatter_class=Formatter)
    what = parser.add_argument_group("what to compute on")
    places = parser.add_argument_group("folders")
    machine = parser.add_argument_group("machine")
    if modes:
        what.add_argument("--finetuning-mode", choices=modes, default="standard", help="way of fine-tuning")
    what.add_argument(
        "--model", help="ViT-Mini (default), ViT-B-32, ViT-B-16, ViT-L-14, most other models of open_clip"
    )
    what.add_argument("--suite", help="mini or vision; by default the suite that the model is meant for")
    what.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="names, or how many of the suite's first: 8, 14, 20; default: 8 on mini, to add and to negate, else 20",
    )
    what.add_argument("--seed", type=int, default=1, help="of everything; mini draws its images from it too")
    places.add_argument("--save", type=Path, default=Places.save, help="folder of checkpoints")
    places.add_argument("--results", type=Path, default=Places.results, help="folder of results")
    places.add_argument("--data-location", type=Path, default=Places.data, help="folder of the real data sets")
    places.add_argument("--cache-dir", type=Path, default=Places.cache, help="drawn images, decoded images, weights")
    what.add_argument("--pretrained-path", help="weights of the pre-trained model from a local file")
    machine.add_argument("--device", help="default: cuda where there is a GPU, else cpu")
    machine.add_argument("--jobs", type=int, help="tasks worked on at once; default: the cores, or the GPUs")
    default = f"{BATCH}, on a GPU {GPU_BATCH}"
    machine.add_argument("--eval-batch-size", type=int, help=f"images of one forward pass; default: {default}")
    machine.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=Run.precision,
        help="of matrix products; tf32 needs a GPU, bf16 is not for tangent models; weights and results stay fp32",
    )
    what.add_argument("--corruption", metavar="NAME", help="of test images alone: motion_blur, contrast, ...")
    what.add_argument("--severity", type=int, default=max(SEVERITIES), help="of the corruption, 1 to 5")
    what.add_argument("--skip-corrupt", action="store_true", help="leave out images that cannot be decoded")
    parser.add_argument("--overwrite", action="store_true", help="compute again what is already there")
    return parser


def add_search(parser: Parser, points: int | None = None) -> None:
    """`--n-eval-points`, by default `points` or what the suite says."""
    default = points or "21, on mini 41"
    parser.add_argument("--n-eval-points", type=int, default=points, help=f"coefficients tried in [0, 1]; {default}")


def first_benchmark(parser: Parser) -> None:
    """Without `--tasks`, the papers' first benchmark: the first 8 of the suite, as the published scripts have them."""
    parser.set_defaults(tasks=[str(BENCHMARKS[0])])


def add_pairs(parser: Parser) -> None:
    """`--pairs A-B C-D`."""
    parser.add_argument("--pairs", nargs="+", metavar="TASK-TASK", help="default: the papers', or mini's counterparts")


def _usual(field: str, key: str | None = None) -> str:
    """What the suites' protocols say: `default: 32, on vision 128`."""
    values = [getattr(suite.protocol, field) for suite in SUITES.values()]
    first, *others = values if key is None else [value[key] for value in values]
    return f"default: {first}" + "".join(
        f", on {name} {value}" for name, value in zip([*SUITES][1:], others) if value != first
    )


def finetuning_parser(doc: str | None) -> Parser:
    """The flags of every script and the fields of settings.Training; None stands for what the suite's protocol says."""
    parser = base_parser(doc, TRAINED)
    training = parser.add_argument_group("training")
    training.add_argument("--lr", type=float, help=f"peak learning rate; {_usual('lr', 'standard')}, each mode its own")
    training.add_argument("--wd", type=float, help=f"weight decay; {_usual('wd')}")
    training.add_argument("--ls", type=float, help=f"label smoothing; {_usual('ls')}")
    training.add_argument("--warmup_length", type=int, help=f"steps of linear warm-up; {_usual('warmup_length')}")
    training.add_argument("--epochs", type=int, help="default: the registry's, per task")
    training.add_argument("--steps", type=int, help="optimizer steps, in the place of epochs; default on mini: 250")
    training.add_argument(
        "--batch-size", type=int, help=f"images per forward pass over all processes; {_usual('batch_size')}"
    )
    training.add_argument(
        "--num-grad-accumulation",
        type=int,
        help=f"forward passes per optimizer step; {_usual('num_grad_accumulation')}",
    )
    training.add_argument(
        "--sum-gradients", action="store_true", help="of a step's passes, epoch by epoch, as published; default: mean"
    )
    training.add_argument("--clip", type=float, help=f"largest norm of the gradient; {_usual('clip')}")
    training.add_argument(
        "--checkpoint-every", type=int, default=0, help="steps between saved states; 0: by time alone"
    )
    training.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=300.0,
        help="seconds between saved states; 0: by steps alone",
    )
    training.add_argument("--keep-every", type=int, default=0, help="steps between encoders kept for good; 0: none")
    training.add_argument("--load", type=Path, help="start from this checkpoint in the place of the pre-trained model")
    training.add_argument("--world-size", type=int, default=1, help="processes that share each batch")
    _add_machine(training)
    some = parser.add_argument_group("training, of some modes")

    def add(flag: str, meaning: str, **kind: Any) -> None:
        name = flag.removeprefix("--").replace("-", "_")
        having = {mode: MODES[mode].options[name] for mode in TRAINED if name in MODES[mode].options}
        defaults = ", ".join(f"{mode} {default}" for mode, default in having.items())
        some.add_argument(flag, help=f"{meaning}; default: {defaults}", **kind)

    add("--rank", "of the factors", type=int)
    add("--lora-alpha", "of W0 + alpha / rank B A", type=float)
    add("--penalty", "weight of the penalty", type=float)
    add("--penalty-batch-size", "images of each other task at a step", type=int)
    add(
        "--penalty-tasks",
        "every other task of --tasks at each step (strict), or one in turn (cyclic)",
        choices=PENALTY_TASKS,
    )
    add("--penalty-images", "images of each other task before the first step, rounded up to batches", type=int)
    add("--rho", "distance of the worst weights", type=float)
    training.add_argument("--wandb", action="store_true", help="log to Weights & Biases")
    training.add_argument("--tensorboard", action="store_true", help="log to TensorBoard")
    return parser


def _add_machine(group: argparse._ArgumentGroup) -> None:
    """Flags of fine-tuning that change no setting of it."""
    group.add_argument(
        "--workers", type=int, help="processes that decode images (not on mini); default: the cores' share, 16 at most"
    )
    group.add_argument(
        "--compile",
        nargs="?",
        const="inductor",
        metavar="BACKEND",
        help="torch.compile; no tangent modes; default: inductor",
    )


def reproduction_parser(doc: str | None, stages: Sequence[str]) -> Parser:
    """The flags of every script and those of reproduce.py."""
    parser = base_parser(doc, modes=None)
    parser.add_argument("--seeds", type=_numbers, help="such as 1,2,3; each draws its images and fine-tunes anew")
    parser.add_argument("--only", nargs="+", choices=stages, metavar="STAGE", help="these stages alone, of those above")
    parser.add_argument("--extended", action="store_true", help="also the extended stages")
    parser.add_argument(
        "--scope",
        choices=(*SCOPES, BOTH),
        default=SCOPES[0],
        help="of merged vectors: the trained tensors (visual), those of the papers' tables (published), or both",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands; run nothing")
    forwarded = parser.add_argument_group("of the scripts that have them")
    _add_machine(forwarded)
    forwarded.add_argument(
        "--num-samples", type=int, help="images of each task, where a script takes some; default: its own"
    )
    forwarded.add_argument("--chunk-size", type=int, help="of eval_ntk_localization.py; default: as memory allows")
    parser.set_defaults(results=REPRODUCED)
    return parser


def reporting_parser(doc: str | None, images: bool = False) -> Parser:
    """The flags of make_tables.py and make_figures.py; images: those too that say whose images are shown."""
    parser = Parser(description=doc, formatter_class=Formatter)
    parser.add_argument("--suite", choices=SUITES, help="by default the suite that the model is meant for")
    parser.add_argument("--model", help="default: the suite's own, ViT-Mini without --suite")
    parser.add_argument("--results", type=Path, default=Places.results, help="folder of results")
    parser.add_argument(
        "--seeds", type=_numbers, help="such as 1,2,5-7; default: all but 0, on which settings were chosen"
    )
    if images:
        parser.add_argument("--seed", type=int, default=1, help="whose pictures the contact sheet shows")
        parser.add_argument("--data-location", type=Path, default=Places.data, help="folder of the real data sets")
        parser.add_argument("--cache-dir", type=Path, default=Places.cache, help="drawn images")
    return parser


def parse_reporting(parser: Parser, argv: Sequence[str] | None = None) -> tuple[Run, dict[str, Any]]:
    """The run whose results are reported, with the seed whose images are shown, and all other flags by name."""
    flags = vars(parser.parse_args(argv))
    folders = {"data_location": "data", "cache_dir": "cache", "results": "results"}
    places = Places(**{field: flags.pop(flag) for flag, field in folders.items() if flag in flags})
    run = Run.of(flags.pop("model"), flags.pop("suite"), seed=flags.pop("seed", 1), device="cpu", places=places)
    return run, flags | {"seeds": tuple(flags["seeds"]) if flags["seeds"] else None}


def rank(text: str) -> int | float:
    """A number of eigenfunctions, or with a point a share of the trace."""
    return float(text) if "." in text else int(text)


def _numbers(text: str) -> list[int]:
    """`1,2,5-7`: seeds and ranges of them, both ends included."""
    numbers: list[int] = []
    try:
        for piece in text.split(","):
            first, _, last = piece.partition("-")
            ends = range(int(first), int(last or first) + 1)
            if not ends or ends[-1] not in RANGES["seeds"] or len(ends) > MOST_SEEDS:
                raise ValueError
            numbers += ends
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected numbers such as 1,2,5-7, each {RANGES['seeds']}, {MOST_SEEDS} in a range at most; got {text!r}"
        ) from None
    if len({*numbers}) < len(numbers):
        raise argparse.ArgumentTypeError(f"expected each seed once; got {text!r}")
    return numbers


def parse(parser: Parser, argv: Sequence[str] | None = None) -> tuple[Run, dict[str, Any]]:
    """The run that the flags of `base_parser` mean, and all other flags by name; pairs as tuples of names.

    Raises UsageError for values that make no sense.
    """
    flags = vars(parser.parse_args(argv))
    run = take_run(flags)
    if "finetuning_mode" in flags:
        run.require_mantissa_of(flags["finetuning_mode"])
    if flags.get("pairs"):
        flags["pairs"] = pair_names(flags["pairs"], run.suite_row)
    return run, {("mode" if name == "finetuning_mode" else name): value for name, value in flags.items()}


def take_run(flags: dict[str, Any]) -> Run:
    """The run that the shared flags mean; they are removed from `flags`. Raises UsageError."""
    places = Places(*(expanded(flags.pop(key), key) for key in ("save", "results", "cache_dir", "data_location")))
    for text in ("model", "suite", "device", "corruption"):
        if not isinstance(flags[text], str | None):  # 7 and true are none to Hydra
            raise UsageError(f"--{text}: expected a name; got {flags[text]!r}")
    name, severity = flags.pop("corruption"), flags.pop("severity")
    require(severity=severity, seed=flags["seed"])
    check(eval_batch_size=flags["eval_batch_size"])
    corruption = Corruption(name, severity) if name is not None else None
    batch_size = flags.pop("eval_batch_size")
    own = ("model", "suite", "tasks", "seed", "device", "jobs", "pretrained_path", "skip_corrupt", "precision")
    named = {name: flags.pop(name) for name in own}
    run = Run.of(**named, places=places, corruption=corruption, batch_size=batch_size)
    if under_torchrun():
        check_devices(run.device)
    return run


def shared_flags() -> dict[str, Any]:
    """The flags of every script with their defaults, as main.py offers them."""
    flags = vars(base_parser(None).parse_args([]))
    return {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}
