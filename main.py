"""Merge fine-tuned encoders by any method of src/merging and evaluate the result.

    python main.py model=ViT-B-32 method=ties method.k=20
    python main.py --multirun method=sum,ties,tall_mask,consensus finetuning_mode=standard,linear
    python main.py DATASETS=[land,signs] method=ties output=merged.safetensors
    python main.py model=ViT-B-32 method=adamerging method.granularity=layer
    python main.py model=ViT-B-32 method=concrete_subspace/clip_concrete_task_arithmetic method.adapt_on=val
    python main.py DATASETS=[land,signs] unseen=[digits,letters] method=concrete_task_arithmetic
    python main.py --methods                                         # every method, with its options

Everything under `method` is the method's own; the other keys are the flags of the other scripts, and those of
config/config.yaml. Validation chooses the setting (+search.k=[10,20]: options too), and test is read once. Writes
merging/<tasks>/<mode>-<scope>/<method and its options>.json, and beside it vectors.json. Needs the single-task results
of the mode and of `none`. A run that was killed goes on where it last kept its state: give the same command again.
"""

import os
import sys
from collections.abc import Sequence
from typing import cast

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from src.args import shared_flags
from src.counterparts import of_overrides
from src.experiments import merging
from src.merging.base import METHODS, Method, load_methods
from src.merging.names import listing
from src.runtime.distributed import leave_to_the_first, spmd, world_size
from src.runtime.messages import UsageError
from src.runtime.program import USER_ERRORS, exit_on_user_error


@exit_on_user_error
@spmd
def main(argv: Sequence[str] | None = None) -> None:
    """The command line; `argv`: overrides in the place of the process's own, run once.

    An error that a user can mend is told in a line; the other jobs of a --multirun run all the same. The exit status is
    then 2 where there were errors of usage alone, else 1.
    """
    if "--methods" in (sys.argv[1:] if argv is None else argv):
        print(listing())
        return
    load_methods()
    refuse_foreign(sys.argv[1:] if argv is None else argv)
    ConfigStore.instance().store(name="flags", node=shared_flags())
    failed: list[Exception] = []

    def job(cfg: DictConfig) -> None:
        flags = {str(key): value for key, value in cast(dict, OmegaConf.to_container(cfg, resolve=True)).items()}
        del flags["method"]
        try:
            run, options = merging.take_options(flags)
            merging.merge(run, cast(Method, OmegaConf.to_object(cfg.method)), options)
        except USER_ERRORS as error:
            if "HYDRA_FULL_ERROR" in os.environ:
                raise
            if world_size() > 1:  # the ranks could come to the next job one by one
                leave_to_the_first()
                print(f"error: {error}", file=sys.stderr, flush=True)
                raise SystemExit(_status([error])) from None  # which Hydra lets through
            print(f"error: {error}", file=sys.stderr)
            failed.append(error)

    if argv is None:
        hydra.main(config_path="config", config_name="config", version_base="1.3")(job)()
    else:
        with hydra.initialize(config_path="config", version_base="1.3"):
            job(hydra.compose("config", overrides=list(argv)))
    if failed:
        raise SystemExit(_status(failed))


def refuse_foreign(overrides: Sequence[str]) -> None:
    """Raise UsageError for overrides of FusionBench's and the published main.py, with what stands for each here."""
    named = dict(word.split("=", 1) for word in overrides if "=" in word)
    chosen = [METHODS[name] for name in named.get("method", "sum").split(",") if name in METHODS]
    offered = {f"method.{option}" for method in chosen for option in method.defaults()}
    if instead := of_overrides(overrides, offered):
        raise UsageError(f"{instead} (other projects' options: PUBLISHED.md has a table)")


def _status(errors: Sequence[Exception]) -> int:
    return 2 if all(isinstance(error, UsageError) for error in errors) else 1


if __name__ == "__main__":
    main()
