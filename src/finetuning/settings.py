"""How to fine-tune: every setting, where its default comes from, and what two runs must share."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from src.datasets import registry
from src.modes import MODES, OPTIONS, TRAINED
from src.ranges import RANGES, check
from src.run import Run
from src.runtime.distributed import cores
from src.runtime.loggers import Loggers
from src.runtime.messages import UsageError

MOST_WORKERS = 16  # that decode images, by default
# What does not change the weights.
NOT_SETTINGS = (
    "mode", "steps", "checkpoint_every", "checkpoint_seconds", "keep_every", "world_size", "workers", "loggers"
)  # fmt: skip
FROM_PROTOCOL = ("wd", "ls", "warmup_length", "batch_size", "num_grad_accumulation", "clip")
# In settings, of sums: older files say True, and their steps ran on over epochs. Of one pass both are the same.
EPOCH_BY_EPOCH = "epoch by epoch"
OF_SOME_MODES = tuple(name for options in OPTIONS.values() for name in options)


@dataclass(frozen=True)
class Training:
    """How to fine-tune. `Training.of` fills in what the suite's protocol and the mode decide.

    mode: one that finetune.py trains. lr: the peak of the schedule. wd: AdamW's decay. ls: label smoothing.
    warmup_length: steps. epochs, steps: None for the registry's, of each task; steps win. batch_size: images of one
    forward pass, over all processes. num_grad_accumulation: forward passes of an optimizer step. clip: largest norm of
    the gradient. load: a checkpoint to start from, in the place of θ0. precision: of matrix products. compile: a
    backend of torch.compile, for the encoder. checkpoint_every, checkpoint_seconds: steps, and seconds, between kept
    states, 0: none. keep_every: steps between encoders that are kept for good, 0: none. world_size: processes that
    share each batch. workers: processes that decode images.
    sum_gradients: over the forward passes of a step, as the published scripts do before they clip, an epoch's odd last
    pass in the next one's first step; their mean otherwise, and steps that run on over the ends of epochs.

    Of some modes, None for the others. rank, lora_alpha: of W0 + lora_alpha / rank · B A. penalty: its weight in the
    loss. penalty_batch_size: images of each other task. penalty_tasks: all other tasks at each step (strict), or one
    after the other (cyclic). penalty_images: of each other task, from which its factors are computed before the first
    step. rho: the distance at which SAM looks for the worst weights.
    """

    mode: str
    lr: float
    wd: float
    ls: float
    warmup_length: int
    batch_size: int
    num_grad_accumulation: int
    clip: float
    epochs: int | None = None
    steps: int | None = None
    load: Path | None = None
    precision: str = "fp32"
    compile: str | None = None
    checkpoint_every: int = 0
    checkpoint_seconds: float = 300
    keep_every: int = 0
    world_size: int = 1
    sum_gradients: bool = False
    workers: int = field(default_factory=lambda: usual_workers())
    loggers: Loggers = field(default_factory=Loggers)
    rank: int | None = None
    lora_alpha: float | None = None
    penalty: float | None = None
    penalty_batch_size: int | None = None
    penalty_tasks: str | None = None
    penalty_images: int | None = None
    rho: float | None = None

    def __post_init__(self):
        check(**{name: value for name, value in vars(self).items() if name in RANGES})
        for name in OF_SOME_MODES:
            if getattr(self, name) is not None and name not in MODES[self.mode].options:
                having = ", ".join(mode for mode in TRAINED if name in MODES[mode].options)
                raise UsageError(
                    f"--{name.replace('_', '-')}: expected a fine-tuning mode that has it ({having}), found {self.mode}"
                )
        if self.precision == "bf16" and MODES[self.mode].tangent:
            raise UsageError(
                "--precision: in bf16's 8 significant bits f(x; θ0) + J(θ − θ0) loses its second term, a few percent "
                "of the first; fine-tune linearly with fp32 or tf32"
            )

        if self.compile and MODES[self.mode].tangent:
            raise UsageError(
                f"--compile: PyTorch does not trace the forward-mode differentiation of which {self.mode} is made, so "
                "nothing would be compiled; leave --compile out"
            )

    @classmethod
    def of(cls, run: Run, mode: str = "standard", **flags: Any) -> "Training":
        """flags: the other fields; those that are None have the suite's values, or the mode's. Raises UsageError."""
        protocol = run.protocol
        given = {name: value for name, value in flags.items() if value is not None}
        if "lr" not in given and mode not in protocol.lr:
            raise UsageError(
                f"--lr: expected a learning rate, for {run.suite} has none for {mode}; give one, or add it to the "
                "suite's protocol in src/datasets/registry.py"
            )
        defaults = {name: getattr(protocol, name) for name in FROM_PROTOCOL}
        defaults |= {"lr": protocol.lr.get(mode), "precision": run.precision}
        at_once = max(min(run.jobs, len(run.tasks)), given.get("world_size", 1))
        defaults["workers"] = usual_workers(at_once)
        return cls(mode, **defaults | MODES[mode].options | given)

    @property
    def settings(self) -> dict[str, Any]:
        """What a training state must share with the run that goes on from it; no options of other modes."""
        foreign = [name for name in OF_SOME_MODES if name not in MODES[self.mode].options]
        fields = {name: value for name, value in asdict(self).items() if name not in (*NOT_SETTINGS, *foreign)}
        if self.sum_gradients and self.num_grad_accumulation > 1:
            fields["sum_gradients"] = EPOCH_BY_EPOCH
        return fields | {"load": self.load and str(self.load)}


def usual_workers(processes: int = 1) -> int:
    """Processes that decode images for each of so many that train on this machine."""
    return max(1, min(MOST_WORKERS, cores() // processes))


def settings_of(run: Run, task: str, training: Training) -> dict[str, Any]:
    """`training.settings`, the seed, and the other tasks whose images the weights depend on, where they do."""
    settings = training.settings | {"seed": run.seed}
    return settings | ({"others": ",".join(other_tasks(run, task))} if MODES[training.mode].needs_others else {})


def other_tasks(run: Run, task: str) -> tuple[str, ...]:
    return tuple(other for other in run.tasks if other != task)


def number_of_steps(training: Training, task: str, batches_per_epoch: int) -> int:
    """Optimizer steps: those of the training, or of its epochs, or of the task's registry row."""
    row = registry.get(task)
    if training.steps is not None:
        return training.steps
    if training.epochs is None and row.steps is not None:
        return row.steps
    epochs = training.epochs if training.epochs is not None else row.epochs
    if epochs is None:
        raise UsageError(f"--steps: expected a number of steps or of --epochs for {task}, which has none of its own")
    if _within_epochs(training, batches_per_epoch):
        return epochs * (batches_per_epoch // training.num_grad_accumulation)
    return epochs * batches_per_epoch // training.num_grad_accumulation


def passes_before(training: Training, step: int, batches_per_epoch: int) -> int:
    """Forward passes that the optimizer steps before `step` take.

    As published, with `sum_gradients`: a step is taken after each full number of passes of an epoch, and passes that
    are left at an epoch's end join the next one's first step. Otherwise steps run on over the ends of epochs.
    """
    accumulated = training.num_grad_accumulation
    if not step or not _within_epochs(training, batches_per_epoch):
        return step * accumulated
    epoch, within = divmod(step - 1, batches_per_epoch // accumulated)  # of the last of these steps
    return epoch * batches_per_epoch + (within + 1) * accumulated


def place_in_schedule(training: Training, step: int, batches_per_epoch: int) -> int:
    """The step that the learning rate is of: as published, with `sum_gradients`, epochs' left passes count there."""
    if not _within_epochs(training, batches_per_epoch):
        return step
    epoch, within = divmod(step, batches_per_epoch // training.num_grad_accumulation)
    return within + epoch * batches_per_epoch // training.num_grad_accumulation


def _within_epochs(training: Training, batches_per_epoch: int) -> bool:
    """Whether the steps of an epoch are of its own passes: of a few batches no step could be made otherwise."""
    return training.sum_gradients and batches_per_epoch >= training.num_grad_accumulation


def cosine_lr(step: int, steps: int, peak: float, warmup: int) -> float:
    """Learning rate of a step: linear warm-up to `peak`, then half a cosine to 0 at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that an earlier run had otherwise, in words; older files do not tell all of theirs."""
    differing = [key for key, value in now.items() if earlier.get(key, value) not in (value, str(value))]
    return ", ".join(f"{key} {earlier[key]} (now {now[key]})" for key in differing)
