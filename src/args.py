"""Flags shared by the command-line scripts. A namespace comes out complete: suite and protocol are filled in here."""

import argparse
from pathlib import Path

import torch

from src.datasets import corruptions, registry
from src.modeling import check_model
from src.runtime.distributed import check_devices, cores, leave_to_the_first, under_torchrun
from src.runtime.messages import nearest

TRAINING_MODES = ("standard", "linear")
EVALUATION_MODES = ("standard", "linear", "posthoc")
PRECISIONS = ("fp32", "tf32", "bf16")
PROTOCOL_FLAGS = ("wd", "ls", "warmup_length", "batch_size", "num_grad_accumulation", "clip")


class Parser(argparse.ArgumentParser):
    """argparse, whose messages on a wrong choice name the nearest right one."""

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            hint = nearest(str(value), [str(c) for c in action.choices])
            raise argparse.ArgumentError(
                action, f"{value!r} does not exist{hint} Known: {', '.join(map(str, action.choices))}"
            )

    def error(self, message):
        leave_to_the_first()
        super().error(message)


def base_parser(doc: str, modes: tuple[str, ...] | None = EVALUATION_MODES) -> Parser:
    """The flags of every script; `modes` are the choices of `--finetuning-mode`, None leaves it out."""
    parser = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if modes:
        parser.add_argument("--finetuning-mode", choices=modes, default="standard")
    parser.add_argument("--model", help="ViT-Mini (default), ViT-B-32, ViT-B-16, ViT-L-14, any open_clip name")
    parser.add_argument("--suite", help="mini or vision; by default the suite that the model is meant for")
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="names (commas or spaces); default: all of the suite"
    )
    parser.add_argument("--seed", type=int, default=1, help="of everything; mini draws its images from it too")
    parser.add_argument("--save", type=Path, default=Path("checkpoints"), help="folder of checkpoints")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of results")
    parser.add_argument("--data-location", type=Path, default=Path("data"), help="folder of the real data sets")
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"), help="drawn images, decoded images, weights")
    parser.add_argument("--pretrained-path", help="weights of the pre-trained model from a local file")
    parser.add_argument("--device", help="default: cuda where there is a GPU, else cpu")
    parser.add_argument("--jobs", type=int, help="tasks worked on at once; default: the cores on CPU, 1 on a GPU")
    parser.add_argument("--eval-batch-size", type=int, default=100)
    parser.add_argument("--corruption", metavar="NAME", help="corrupt test images: motion_blur, jpeg_compression, ...")
    parser.add_argument("--severity", type=int, default=5, help="of the corruption, 1 to 5")
    parser.add_argument("--skip-corrupt", action="store_true", help="leave out images that cannot be decoded")
    parser.add_argument("--overwrite", action="store_true", help="compute again what is already there")
    return parser


def add_search(parser: argparse.ArgumentParser, points: int | None = None) -> None:
    """`--n-eval-points`, by default `points` or what the suite says."""
    default = points or "21, on mini 41"
    parser.add_argument("--n-eval-points", type=int, default=points, help=f"coefficients tried in [0, 1]; {default}")


def add_pairs(parser: argparse.ArgumentParser, default: str = "pairs") -> None:
    """`--pairs A-B C-D`; by default the suite's `pairs` or `ntk_pairs`."""
    parser.add_argument("--pairs", nargs="+", metavar="TASK-TASK", help="default: the papers', or mini's counterparts")
    parser.set_defaults(default_pairs=default)


def add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lr", type=float, help="peak learning rate")
    parser.add_argument("--wd", type=float, help="weight decay")
    parser.add_argument("--ls", type=float, help="label smoothing")
    parser.add_argument("--warmup_length", type=int, help="steps of linear warm-up")
    parser.add_argument("--epochs", type=int, help="default: the registry's, per task")
    parser.add_argument("--steps", type=int, help="optimizer steps, in the place of epochs; default on mini: 250")
    parser.add_argument("--batch-size", type=int, help="images per forward pass over all processes")
    parser.add_argument("--num-grad-accumulation", type=int, help="forward passes per optimizer step")
    parser.add_argument("--clip", type=float, help="largest norm of the gradient")
    parser.add_argument(
        "--checkpoint-every", type=int, default=100, help="steps between saved training states; 0: none"
    )
    parser.add_argument("--load", type=Path, help="start from this checkpoint in the place of the pre-trained model")
    parser.add_argument("--world-size", type=int, default=1, help="processes that share each batch")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode images (not on mini)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of matrix products; weights stay fp32")
    parser.add_argument(
        "--compile", nargs="?", const="inductor", metavar="BACKEND", help="torch.compile; default backend: inductor"
    )
    parser.add_argument("--wandb", action="store_true", help="log to Weights & Biases")
    parser.add_argument("--tensorboard", action="store_true", help="log to TensorBoard")


def parse(parser: Parser, argv=None) -> argparse.Namespace:
    """Parse and complete: the suite of the model, tasks as a tuple, protocol defaults, absolute nonsense refused."""
    args = parser.parse_args(argv)
    try:
        return complete(args)
    except ValueError as error:
        parser.error(str(error))


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """A copy of `args` in which what was left to the suite is filled in. Raises ValueError."""
    filled = argparse.Namespace(**vars(args))
    filled.model = args.model or registry.suite(args.suite or "mini").model
    check_model(filled.model)
    filled.suite = args.suite or registry.default_suite(filled.model)
    suite = registry.suite(filled.suite)
    filled.tasks = _tasks(args.tasks, suite)
    if args.corruption:
        corruptions.check(args.corruption, args.severity)
    settings = suite.settings(filled.model)
    for flag in PROTOCOL_FLAGS:
        if getattr(args, flag, 0) is None:
            setattr(filled, flag, settings[flag])
    if getattr(args, "lr", 0) is None:
        filled.lr = settings["lr"][args.finetuning_mode]
    if getattr(args, "n_eval_points", 0) is None:
        filled.n_eval_points = settings["n_eval_points"]
    if "pairs" in args:
        filled.pairs = _pairs(args.pairs, suite) if args.pairs else getattr(suite, args.default_pairs)
    if "n_points" in args:
        filled.n_points = args.n_points or settings["n_grid_points"]
        filled.num_samples = args.num_samples or settings["grid_samples"]
    if getattr(args, "precision", None) == "bf16" and args.finetuning_mode == "linear":
        raise ValueError(
            "--precision: in bf16's 8 significant bits f(x; θ0) + J(θ − θ0) loses its second term, a few percent of "
            "the first; fine-tune linearly with fp32 or tf32"
        )
    if args.device is None:  # not the flag's default: a job may run on another machine than where it was typed
        filled.device = "cuda" if torch.cuda.is_available() else "cpu"
    if "world_size" in args or under_torchrun():
        check_devices(filled)
    if args.jobs is None:
        on_cpu = torch.device(filled.device).type == "cpu"
        filled.jobs = cores() if on_cpu else 1
    return filled


def _tasks(names, suite) -> tuple[str, ...]:
    if not names:
        return suite.tasks
    names = [name for chunk in names for name in chunk.split(",") if name]
    for name in names:
        if name not in suite.tasks:
            known = ", ".join(suite.tasks)
            raise ValueError(
                f"--tasks: {name!r} is no task of suite {suite.name}{nearest(name, suite.tasks)} Known: {known}"
            )
    return tuple(names)


def _pairs(texts, suite) -> tuple[tuple[str, str], ...]:
    pairs = []
    for text in texts:
        pair = tuple(text.split("-"))
        if len(pair) != 2:
            raise ValueError(
                f"--pairs: expected two tasks joined by '-', as in {'-'.join(suite.pairs[0])}; found {text!r}"
            )
        pairs.append(_tasks(pair, suite))
    return tuple(pairs)
