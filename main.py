"""Merge fine-tuned encoders by any method of src/merging and evaluate the result.

    python main.py model=ViT-B-32 method=ties method.k=20
    python main.py --multirun method=sum,ties,tall_mask,consensus finetuning_mode=standard,linear
    python main.py DATASETS=[land,signs] method=ties output=merged.safetensors
    python main.py model=ViT-B-32 method=concrete_subspace/clip_concrete_task_arithmetic method.adapt_on=val
    python main.py --methods                                    # every method; method=ties --cfg job: every key

Everything under `method` is the method's own; other keys are flags of the other scripts, or config/config.yaml's.
Validation chooses the setting (+search.k=[10,20]: options too), test is read once. Writes merging/<tasks>/<mode>-
<scope>/<method and its options>.json, and vectors.json beside it. Needs the single-task results of the mode and of
`none`. A run that was killed goes on where it last kept its state: give the same command again.

Exit status: 0 when every job is done, 1 when one failed, 2 for a wrong key or value, 130 after Ctrl-C.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from src.args import shared_flags
from src.merging.first_lines import short_listing
from src.runtime.distributed import leave_to_the_first, spmd, world_size
from src.runtime.loggers import begin_group
from src.runtime.program import UNREAD, exit_on_user_error, exit_status, unread, user_error


@exit_on_user_error
@spmd
def main(argv: Sequence[str] | None = None) -> None:
    """The command line, or `argv`: overrides of one job. After an error that a user can mend, other jobs go on."""
    words = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & {*words}:  # Hydra's own says nothing of keys
        return print(f"{__doc__}\nMethods (--methods has their options):\n\n{short_listing()}")
    from src.experiments import merging  # here, so that --help does not wait for torch
    from src.merging import keys, names, registry

    if "--methods" in words:
        return print(names.listing())
    for group, name, schema in ((None, "flags", shared_flags()), *registry.new_config_schemas()):
        ConfigStore.instance().store(group=group, name=name, node=schema)
    keys.check(words)
    if {"-m", "--multirun"} & {*words}:
        begin_group()
    failed: list[Exception] = []

    def job(cfg: DictConfig) -> None:
        flags: Any = OmegaConf.to_container(cfg, resolve=True)
        try:
            method: Any = OmegaConf.to_object(cfg.method)
            run, options = merging.take_options({name: flags[name] for name in flags if name != "method"})
            merging.merge(run, method, options)
        except Exception as error:
            if unread(error):
                raise SystemExit(UNREAD) from None  # which Hydra lets through
            if (said := user_error(error)) is None or "HYDRA_FULL_ERROR" in os.environ:
                raise
            if world_size() > 1:  # the ranks could come to the next job one by one
                leave_to_the_first()
                print(f"error: {said}", file=sys.stderr, flush=True)
                raise SystemExit(exit_status([said])) from None  # which Hydra lets through
            print(f"error: {said}", file=sys.stderr)
            failed.append(said)

    if argv is None:
        hydra.main(config_path="config", config_name="config", version_base="1.3")(job)()
    else:
        with hydra.initialize_config_dir(os.path.abspath(f"{__file__}/../config"), version_base="1.3"):  # no search
            job(hydra.compose("config", overrides=list(argv)))
    if failed:
        raise SystemExit(exit_status(failed))


if __name__ == "__main__":
    main()
