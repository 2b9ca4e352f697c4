"""Merge fine-tuned encoders by any method of src/merging and evaluate the result.

    python main.py model=ViT-B-32 method=sum
    python main.py model=ViT-B-32 method=ties method.k=20
    python main.py model=ViT-B-32 method=tall_mask method.use_ties=True
    python main.py model=ViT-B-32 method=tall_mask method.load_mask=True
    python main.py model=ViT-B-32 method=consensus method.prun_thre_k=2
    python main.py --multirun method=sum,ties,tall_mask,consensus finetuning_mode=standard,linear
    python main.py DATASETS=[land,signs] method=ties output=merged.safetensors
    python main.py model=ViT-B-32 method=adamerging method.granularity=layer
    python main.py model=ViT-B-32 method=concrete_subspace/clip_concrete_task_arithmetic method.adapt_on=val
    python main.py DATASETS=[land,signs] unseen=[digits,letters] method=concrete_task_arithmetic
    python main.py method=ties +search.k=[10,20,40]                  # validation chooses k too
    python main.py --methods                                         # every method, with its options

Everything under `method` is the method's own; the other keys are the flags of the other scripts, and those of
config/config.yaml. Validation chooses the setting, and test is read once. Writes
merging/<tasks>/<mode>-<scope>/<method and its options>.json, and beside it vectors.json: norms of the task vectors and
cosines between them. Needs the single-task results of the mode and of `none`.

Methods that adapt at test time see images of the merged tasks, by default those of test, as in the papers, and never a
label. A run that was killed goes on where it last kept its state: give the same command again, without overwrite=True.
"""

import os
import sys
from collections.abc import Sequence
from typing import cast

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from src.args import shared_flags
from src.experiments import merging
from src.merging.base import Method, load_methods
from src.merging.names import listing
from src.runtime.distributed import spmd, world_size
from src.runtime.messages import UsageError
from src.runtime.program import USER_ERRORS, exit_on_user_error


@exit_on_user_error
@spmd
def main(argv: Sequence[str] | None = None) -> None:
    """The command line; `argv`: overrides in the place of the process's own, run once.

    An error that a user can mend is told in a line; the other jobs of a --multirun run all the same. The exit status is
    then 2 where there were errors of usage alone, else 1 (under Hydra's own launcher: a job that another launcher sent
    away tells its error in its log).
    """
    if "--methods" in (sys.argv[1:] if argv is None else argv):
        print(listing())
        return
    load_methods()
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
                raise
            print(f"error: {error}", file=sys.stderr)
            failed.append(error)

    if argv is None:
        hydra.main(config_path="config", config_name="config", version_base="1.3")(job)()
    else:
        with hydra.initialize(config_path="config", version_base="1.3"):
            job(hydra.compose("config", overrides=list(argv)))
    if failed:
        raise SystemExit(2 if all(isinstance(error, UsageError) for error in failed) else 1)


if __name__ == "__main__":
    main()
