"""A script with several values of its flags: a job for each combination, here or on Slurm.

    python -m src.sweep finetune.py --model=ViT-L-14 --finetuning-mode=standard,linear --tasks=Cars,DTD,EuroSAT
    python -m src.sweep eval_task_negation.py --finetuning-mode=standard,posthoc,linear --seed=1,2,3 \\
        hydra/launcher=submitit_slurm hydra.launcher.partition=gpu hydra.launcher.gpus_per_node=1

Flags are those of the script, as --name=value or --name. Commas part the values of a flag, and each is a job's: two
tasks are two jobs. What begins with `hydra` is a setting of Hydra's, as for `main.py --multirun`: without a launcher
the jobs run one after the other in this process, with submitit_slurm as one array of jobs. Every combination is parsed
by the script before the first starts.

Exit status: 0 when every job is done, 1 when one failed, 2 for a wrong flag.
"""

import importlib
import itertools
import sys
from collections.abc import Sequence
from contextlib import suppress

import hydra
from omegaconf import DictConfig

from src.args import Parsed, only_parsing
from src.run import override
from src.runtime.loggers import begin_group
from src.runtime.messages import UsageError
from src.runtime.paths import ROOT
from src.runtime.program import exit_on_user_error

SCRIPTS = ("finetune", *sorted(path.stem for path in ROOT.glob("eval_*.py")))
HYDRA = "hydra"


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else list(argv)
    if not words or {"-h", "--help"} & {*words}:
        return print(__doc__)
    script, flags = words[0].removesuffix(".py"), [word for word in words[1:] if not word.startswith(HYDRA)]
    if script not in SCRIPTS:
        raise UsageError(f"expected one of {', '.join(f'{name}.py' for name in SCRIPTS)}; got {words[0]!r}")
    values = values_of(flags)
    for combination in itertools.product(*values.values()):
        check(script, [flag(name, value) for name, value in zip(values, combination)])
    overrides = [f"script={script}", *(swept(name, of_name) for name, of_name in values.items())]
    settings = [word for word in words[1:] if word.startswith(HYDRA)]
    begin_group()
    typed, sys.argv = sys.argv, ["src/sweep.py", "--multirun", *overrides, *settings]
    try:
        hydra.main(config_path="../config", config_name="sweep", version_base="1.3")(job)()
    finally:
        sys.argv = typed


def values_of(flags: Sequence[str]) -> dict[str, list[str]]:
    """The values of each flag; one without any has an empty one. Raises UsageError for what is no flag."""
    values: dict[str, list[str]] = {}
    for word in flags:
        name, _, given = word.partition("=")
        if not name.startswith("--") or name in values:
            raise UsageError(f"expected flags as --name=value or --name, and each once; got {word!r}")
        values[name] = given.split(",")
    return values


def flag(name: str, value: str) -> str:
    return f"{name}={value}" if value else name


def swept(name: str, values: Sequence[str]) -> str:
    """The flag as Hydra reads it."""
    key = f"+flags.{name.removeprefix('--')}"
    return f"{key}={','.join(override('', value).removeprefix('=') if value else chr(39) * 2 for value in values)}"


def check(script: str, flags: Sequence[str]) -> None:
    """End with the script's own message where it does not take the flags."""
    with only_parsing(), suppress(Parsed):
        importlib.import_module(script).main(list(flags))


def job(cfg: DictConfig) -> None:
    """One combination, in a process of Hydra's launcher."""
    flags = [flag(f"--{name}", "" if value is None else str(value)) for name, value in cfg.flags.items()]
    sys.argv = [f"{cfg.script}.py", *flags]  # what results name as the command that made them
    try:
        importlib.import_module(cfg.script).main(flags)
    except SystemExit as error:
        if error.code:
            raise RuntimeError(f"{' '.join(sys.argv)} ended with {error.code}") from None  # which Hydra tells


if __name__ == "__main__":
    main()
