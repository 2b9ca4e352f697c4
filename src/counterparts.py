"""What other projects' commands call otherwise: their options, and what stands for each here.

An option of the published scripts, or of FusionBench, that a program does not have is refused with its counterpart.
Each entry: the option as it is typed there -> what to type here, or why there is none.
"""

from collections.abc import Iterable

FLAGS = {
    "train-dataset": "--tasks=MNIST,SVHN",
    "eval-datasets": "--tasks=MNIST,SVHN",
    "control-dataset": "nothing: the suite decides, ImageNet on vision",
    "data-dir": "--data-location=FOLDER",
    "model-location": "--save=FOLDER",
    "openclip-cachedir": "--cache-dir=FOLDER",
    "results-db": "--results=FOLDER",
    "exp_name": "--results=FOLDER",
    "exp-name": "--results=FOLDER",
    "port": "nothing: processes find a free port by themselves",
    "keep-checkpoints": "nothing: a state is kept every --checkpoint-seconds until training ends",
}
OVERRIDES = {
    "model_location": "save=FOLDER",
    "specify_lambda": "method.alphas=[0.3], the coefficients that validation chooses among; of TALL masks "
    "method.tall_mask_lambda=[0.4]",
    "n_eval_points": "method.alphas=[0.1,0.2], the coefficients that validation chooses among",
    "path.log_dir": "results=FOLDER",
    "path": "results=FOLDER, save=FOLDER, data_location=FOLDER",
    "fabric_logger.name": "tensorboard=true or wandb=true; results=FOLDER",
    "fabric_logger": "tensorboard=true or wandb=true",
    "fabric": "torchrun --nproc-per-node=N main.py; device=cuda",
    "modelpool": "model=ViT-B-32 num_tasks=8, with checkpoints of python download_checkpoints.py",
    "taskpool": "num_tasks=8, the tasks that are merged and scored; unseen=[...] scores others",
    "merged_model_save_path": "output=merged.safetensors",
    "report_save_path": "results=FOLDER",
    "method.max_steps": "method.mask_steps=2000 of Concrete; method.steps=500 of AdaMerging",
    "method.max_adamerging_steps": "method.steps=1000",
    "method.adamerging_lr": "method.lr=1e-3",
    "method.base_lr": "method.inner_lr=1",
    "method.scaling_factor": "method.coef=0.3 of methods that adapt; method.alphas=[0.3] of others",
    "method.init_values": "method.coef=0.3",
    "method.eval_mask_type": "method.final=seeded (continuous), method.final=binary (discrete)",
    "method.mask_checkpoint": "method.mask_file=FILE, converted by python -m src.checkpoints convert --mask",
    "method.clamp_weights": "method.clamp=true",
    "method.save_interval": "save_seconds=300",
    "method.threshold": "method.k=20 of TIES",
    "method.k": "method=sum method.k=20, which keeps a share of each vector; masks here are of whole ones",
    "method.merge_func": "method.reduce=sum of TIES",
}


def of_flags(unknown: Iterable[str]) -> str:
    """What stands for unknown flags, a clause each that has one: `--port: nothing: ...`."""
    names = (word.lstrip("-").partition("=")[0] for word in unknown if word.startswith("--"))
    return "; ".join(f"for --{name} take {FLAGS[name]}" for name in names if name in FLAGS)


def of_overrides(overrides: Iterable[str], offered: Iterable[str]) -> str:
    """What stands for overrides of main.py that it does not offer. offered: names of options, as `method.k`."""
    names = [word.lstrip("+~").partition("=")[0] for word in overrides if "=" in word]
    return "; ".join(
        f"for {name} take {OVERRIDES[name]}" for name in names if name in OVERRIDES and name not in offered
    )
