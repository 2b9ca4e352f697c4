"""The fine-tuning worker: the papers' schedule, gradient accumulation, several processes, exact resume.

Everything that chance decides in a step (which images, how they are shifted) is a function of (seed, task, step), so a
run that was killed goes on as if it had not been, and any number of processes sees the same batches.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from src import checkpoints, store
from src.datasets import loading, registry
from src.datasets.base import Examples, PixelArray, Pixels
from src.datasets.examples import CorruptImage, DataError
from src.heads import get_classification_head
from src.linearize import LinearizedImageEncoder
from src.modeling import ImageClassifier, ImageEncoder
from src.modes import MODES
from src.ranges import RANGES, check
from src.run import Run
from src.runtime.distributed import World, cores
from src.runtime.files import require_writable, shared_memory
from src.runtime.locks import only_one
from src.runtime.loggers import Logger, Loggers
from src.runtime.messages import NotFinite, UsageError
from src.runtime.parallel import in_worker
from src.runtime.seeds import batch_indices, event_seed
from src.runtime.signals import heed_parent, starting, until_stopped

IGNORED = -100  # a label that is none: F.cross_entropy's ignore_index
PREFETCHED = 4  # batches that each of them has ready
MOST_WORKERS = 16  # that decode images, by default
STATES = 6  # times θ0 on disk: a state is weights and two moments, and the new one stands beside the old for a moment
MAX_SHIFT = 2  # pixels: the augmentation of images that are held in memory
NOT_SETTINGS = ("mode", "steps", "checkpoint_every", "world_size", "workers", "loggers")  # do not change the weights


@dataclass(frozen=True)
class Training:
    """How to fine-tune. `Training.of` fills in what the suite's protocol decides.

    mode: one that finetune.py trains. lr: the peak of the schedule. wd: AdamW's decay. ls: label smoothing.
    warmup_length: steps. epochs, steps: None for the registry's, of each task; steps win. batch_size: images of one
    forward pass, over all processes. num_grad_accumulation: forward passes of an optimizer step. clip: largest norm of
    the gradient. load: a checkpoint to start from, in the place of θ0. precision: of matrix products. compile: a
    backend of torch.compile. checkpoint_every: steps between kept states, 0: none. world_size: processes that share
    each batch. workers: processes that decode images. sum_gradients: over the forward passes of a step, as the
    published scripts do before they clip; their mean otherwise.
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
    checkpoint_every: int = 100
    world_size: int = 1
    sum_gradients: bool = False
    workers: int = field(default_factory=lambda: min(MOST_WORKERS, cores()))
    loggers: Loggers = field(default_factory=Loggers)

    def __post_init__(self):
        check(**{name: value for name, value in vars(self).items() if name in RANGES})
        if self.precision == "bf16" and MODES[self.mode].tangent:
            raise UsageError(
                "--precision: in bf16's 8 significant bits f(x; θ0) + J(θ − θ0) loses its second term, a few percent "
                "of the first; fine-tune linearly with fp32 or tf32"
            )

    @classmethod
    def of(cls, run: Run, mode: str = "standard", **flags: Any) -> "Training":
        """flags: the other fields; those that are None have the suite's values. Raises UsageError."""
        protocol = run.protocol
        given = {name: value for name, value in flags.items() if value is not None}
        if "lr" not in given and mode not in protocol.lr:
            raise UsageError(
                f"--lr: expected a learning rate, for {run.suite} has none for {mode}; give one, or add it to the "
                "suite's protocol in src/datasets/registry.py"
            )
        usual = {name: getattr(protocol, name) for name in FROM_PROTOCOL} | {"lr": protocol.lr.get(mode)}
        return cls(mode, **usual | given)

    @property
    def settings(self) -> dict[str, Any]:
        """What a training state must share with the run that goes on from it."""
        fields = {name: value for name, value in asdict(self).items() if name not in NOT_SETTINGS}
        return fields | {"load": self.load and str(self.load)}


FROM_PROTOCOL = ("wd", "ls", "warmup_length", "batch_size", "num_grad_accumulation", "clip")


class NonFiniteLoss(NotFinite):
    """The loss is no number: training stopped, and the last good state was kept."""


def cosine_lr(step: int, steps: int, peak: float, warmup: int) -> float:
    """Learning rate of a step: linear warm-up to `peak`, then half a cosine to 0 at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def shifted(images: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """Each uint8 image (n, H, W, 3) moved by up to `most` pixels each way, its edge repeated."""
    n, side = len(images), images.shape[1]
    moves = torch.randint(-most, most + 1, (n, 2), generator=generator)
    grid = torch.arange(side)
    rows = (grid + moves[:, :1]).clamp(0, side - 1)  # (n, H)
    columns = (grid + moves[:, 1:]).clamp(0, side - 1)  # (n, W)
    return images[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


class Batches:
    """Training batches by number, for one rank: (images, labels) on the device, and the size of the global batch."""

    def __init__(self, run: Run, training: Training, encoder, examples: Examples, world: World, task: str):
        self.run, self.training, self.encoder, self.examples = run, training, encoder, examples
        self.world, self.task = world, task
        self.seed = event_seed(run.seed, task)
        self.pixels: PixelArray | None = None  # of images that are held in memory
        if isinstance(examples, Pixels) and examples.pixels.shape[1] == encoder.image_size:
            self.pixels = examples.pixels
        self.per_epoch = math.ceil(len(examples) / training.batch_size)

    def __call__(self, first: int, stop: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
        if self.pixels is not None:
            yield from (self._from_memory(number, self.pixels) for number in range(first, stop))
        else:
            yield from self._decoded(first, stop)

    def _indices(self, number: int) -> np.ndarray:
        return batch_indices(len(self.examples), self.training.batch_size, number, self.seed)

    def _mine(self, images: int) -> tuple[slice, bool]:
        """This rank's part of a batch, and whether it counts.

        Where there are fewer images than processes, one that would have none takes the first again, and its label is
        IGNORED: few encoders take a batch of none, and DDP waits for every process.
        """
        if self.world.rank >= images:
            return slice(0, 1), False
        return slice(self.world.rank, None, self.world.size), True

    def _from_memory(self, number: int, pixels: PixelArray) -> tuple[torch.Tensor, torch.Tensor, int]:
        indices = self._indices(number)
        generator = torch.Generator().manual_seed(event_seed(self.seed, "shift", number))
        # The whole batch is shifted and then shared out, so that the shares of two processes make one process's batch.
        images = shifted(torch.from_numpy(pixels[indices]), MAX_SHIFT, generator)
        mine, counts = self._mine(len(indices))
        images = loading.normalise(images[mine].to(self.world.device), self.encoder.mean, self.encoder.std)
        labels = torch.from_numpy(self.examples.labels[indices])[mine].to(self.world.device)
        return images, labels if counts else torch.full_like(labels, IGNORED), len(indices)

    def _decoded(self, first: int, stop: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
        shares = []
        for number in range(first, stop):
            indices = self._indices(number)
            mine, counts = self._mine(len(indices))
            shares.append([(number // self.per_epoch, int(index), counts) for index in indices[mine]])
        augmented = _Augmented(self.examples, self.encoder.train_preprocess, self.seed)
        loader = torch.utils.data.DataLoader(
            augmented,
            batch_sampler=shares,
            num_workers=self.training.workers,
            worker_init_fn=heed_parent,
            pin_memory=self.world.device.startswith("cuda"),
            prefetch_factor=PREFETCHED if self.training.workers else None,
            collate_fn=self._collate(len(shares[0])) if shares else None,
        )
        with starting():
            batches = iter(loader)
        try:
            for number, (images, labels) in zip(range(first, stop), batches):
                images, labels = torch.as_tensor(images), torch.as_tensor(labels)
                yield images.to(self.world.device), labels.to(self.world.device), len(self._indices(number))
        except CorruptImage:
            loading.require_decodable(self.run, self.task, "train")  # which names and counts them all
            raise

    def _collate(self, images: int) -> Callable | None:
        """As arrays, which are sent by value, where /dev/shm has no room for the tensors of all decoding processes."""
        batch = images * 3 * self.encoder.image_size**2 * torch.float32.itemsize
        processes = self.training.workers * self.world.size
        return as_arrays if processes and batch * (PREFETCHED + 1) * processes > shared_memory() else None


def as_arrays(examples: Sequence[tuple[torch.Tensor, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a batch, in the process's own memory."""
    return np.stack([image.numpy() for image, _ in examples]), np.array([label for _, label in examples])


class _Augmented(torch.utils.data.Dataset):
    """Decoded and augmented examples; the augmentation is a function of (seed, epoch, index), whoever decodes."""

    def __init__(self, examples: Examples, transform, seed: int):
        self.examples, self.transform, self.seed = examples, transform, seed

    def __getitem__(self, key: tuple[int, int, bool]):
        epoch, index, counts = key
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed also seeds every accelerator: 0.6 ms, for each image, where none is initialised.
            torch.default_generator.manual_seed(event_seed(self.seed, "augment", epoch, index))
            return self.transform(self.examples[index]), int(self.examples.labels[index]) if counts else IGNORED


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
    return epochs * batches_per_epoch // training.num_grad_accumulation


def finetune(run: Run, task: str, training: Training, world: World = World(), overwrite: bool = False) -> None:
    """Fine-tune on one task and write its checkpoint; does nothing where that is already there.

    Raises CheckpointError for a checkpoint or a state of other settings, and NonFiniteLoss.
    """
    target, state = run.paths.checkpoint(task, training.mode), run.paths.training_state(task, training.mode)
    if _finished(run, task, training, world, overwrite):
        return
    require_writable(target, STATES * _size(run.paths.pretrained()))
    with only_one(target):
        world.barrier()  # before the others look at what is there
        if _finished(run, task, training, world, overwrite):  # another run made it meanwhile
            return
        if overwrite and world.is_primary:
            target.unlink(missing_ok=True)
            state.unlink(missing_ok=True)
        world.barrier()
        torch.manual_seed(run.seed)
        FineTuning(run, task, training, world).run_to_end()
        world.barrier()


def _finished(run: Run, task: str, training: Training, world: World, overwrite: bool) -> bool:
    """Whether the checkpoint is there and as is asked for, which is then told."""
    target = run.paths.checkpoint(task, training.mode)
    if overwrite or not target.is_file():
        return False
    _check_finished(run, task, training)
    world.print0(f"{task} {training.mode}: finished before, skipped ({target})")
    return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _check_finished(run: Run, task: str, training: Training) -> None:
    """Raise CheckpointError unless the finished checkpoint is whole, began at θ0 and was trained as is asked now."""
    target = run.paths.checkpoint(task, training.mode)
    header = checkpoints.header(target, model=run.model, task=task, mode=training.mode)
    store.check_start(run, target, header)
    asked = training.settings | {"seed": run.seed}
    if (steps := _known_steps(run, task, training)) is not None:
        asked["steps"] = steps
    if other := _differences(header.get("settings", {}), asked):
        raise checkpoints.CheckpointError(
            f"{target}: expected a checkpoint of these settings, found one that was trained with {other}; "
            "repeat those, train anew with --overwrite, or keep both with --save=ANOTHER_FOLDER"
        )


def _known_steps(run: Run, task: str, training: Training) -> int | None:
    """The steps that are asked for; None where a number of epochs says so and the images are not at hand."""
    if training.steps is not None or (training.epochs is None and registry.get(task).steps is not None):
        return number_of_steps(training, task, 0)
    try:
        images = len(loading.training_examples(run, task))
    except DataError:
        return None
    return number_of_steps(training, task, math.ceil(images / training.batch_size))


class FineTuning:
    """The fine-tuning of one task: what is trained, and the loop. It goes on from a kept state where there is one."""

    def __init__(self, run: Run, task: str, training: Training, world: World):
        self.run, self.task, self.training, self.world = run, task, training, world
        self.target = run.paths.checkpoint(task, training.mode)
        self.state = run.paths.training_state(task, training.mode)
        self.encoder = _build(run, training).to(world.device)
        self.classifier = ImageClassifier(self.encoder, get_classification_head(run, task)).to(world.device)
        self.classifier.freeze_head()
        # As published; what has no BatchNorm computes the same either way.
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.encoder.modules()):
            self.classifier.train()
        examples = loading.training_examples(run, task)
        self.batches = Batches(run, training, self.encoder, examples, world, task)
        self.steps = number_of_steps(training, task, self.batches.per_epoch)
        self.trained = [p for p in self.classifier.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=training.lr, weight_decay=training.wd)
        settings = training.settings | {"seed": run.seed, "steps": self.steps}
        self.header = dict(model=run.model, task=task, mode=training.mode, seed=run.seed, settings=settings)
        self.header["began_at"] = store.written_fingerprints(run).get("image")
        self.first = 0
        if self.state.is_file():
            self.first = _resume(self.state, self.encoder, self.optimizer, self.header)
            world.print0(f"{task} {training.mode}: goes on from step {self.first} of {self.steps}")
        self.cast = _set_precision(training.precision, world.device)
        self.model = self._compiled()
        self.seen = self.correct = 0
        self.total_loss = 0.0

    def _compiled(self) -> nn.Module:
        if self.training.compile:
            # Inside of DDP: compiled around it, DDP's graph optimizer would meet the jvp, which it does not support.
            self.classifier.compile(backend=self.training.compile)
        return DistributedDataParallel(self.classifier) if self.world.size > 1 else self.classifier

    def run_to_end(self) -> None:
        """The steps that are left, and the checkpoint."""
        training, world, began = self.training, self.world, time.time()
        name = f"{self.task} {training.mode}"
        logger = Logger(
            training.loggers,
            f"{self.run.model}-{self.task}-{training.mode}",
            self.target.parent,
            self.run.config(**asdict(training)),
        )
        bar = tqdm(
            total=self.steps,
            initial=self.first,
            desc=name,
            unit="step",
            leave=False,
            disable=None if world.is_primary and not in_worker() else True,
        )
        stream = self.batches(self.first * training.num_grad_accumulation, self.steps * training.num_grad_accumulation)
        for step in until_stopped(range(self.first, self.steps), self._stopped_at, world.any):
            loss = self.step(step, stream) * world.size
            bar.update()
            if (step + 1) % 10 == 0:
                bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{self.correct / max(1, self.seen):.3f}")
            logger.log({"loss": loss, "lr": self.optimizer.param_groups[0]["lr"]}, step)
            every = training.checkpoint_every
            if every and (step + 1) % every == 0 and step + 1 < self.steps:
                self._save(step)
        bar.close()
        logger.close()
        if world.is_primary:
            header = self.header | {"step": self.steps, "processes": world.size}
            checkpoints.save(self.target, self.encoder.state_dict(), header)
            self.state.unlink(missing_ok=True)
        done = self.steps - self.first
        world.print0(
            f"{name}: {self.steps} steps, training loss {self.total_loss * world.size / max(1, done):.3f}, "
            f"accuracy {self.correct / max(1, self.seen):.3f}, {done / max(1e-9, time.time() - began):.1f} steps/s"
        )

    def _save(self, step: int) -> None:
        """Keep the state after a step."""
        if self.world.is_primary:
            weights, header = {"model": self.encoder.state_dict()}, self.header | {"step": step + 1}
            checkpoints.save_state(self.state, weights, {"optimizer": self.optimizer}, header, kind="training state")

    def _stopped_at(self, step: int) -> None:
        """Keep the state of a run that was asked to stop, unless it keeps none."""
        if self.training.checkpoint_every:
            self._save(step)
        self.world.barrier()  # the others' end would end this process too

    def step(self, step: int, stream: Iterator[tuple[torch.Tensor, torch.Tensor, int]]) -> float:
        """One optimizer step; gives this process's share of its loss. Raises NonFiniteLoss."""
        training, world = self.training, self.world
        for group in self.optimizer.param_groups:
            group["lr"] = cosine_lr(step, self.steps, training.lr, training.warmup_length)
        self.optimizer.zero_grad()
        step_loss = 0.0
        for micro in range(training.num_grad_accumulation):
            images, labels, size = next(stream)
            if isinstance(self.model, DistributedDataParallel):
                self.model.require_backward_grad_sync = micro + 1 == training.num_grad_accumulation
            with self.cast:
                logits = self.model(images).float()
            # The mean over the global batch: DDP divides the sum of the ranks' gradients by their number.
            loss = F.cross_entropy(logits, labels, label_smoothing=training.ls, reduction="sum") / size
            (loss * world.size / (1 if training.sum_gradients else training.num_grad_accumulation)).backward()
            step_loss += loss.item() / training.num_grad_accumulation
            self.correct += int((logits.argmax(1) == labels).sum())
            self.seen += int((labels != IGNORED).sum())
        norm = torch.nn.utils.clip_grad_norm_(self.trained, training.clip)
        # The gradient is shared by all processes, the loss is not: it stops every one of them at the same step.
        if not (math.isfinite(step_loss) and math.isfinite(norm)):
            raise NonFiniteLoss(self._diagnosis(step, step_loss))
        self.optimizer.step()
        self.total_loss += step_loss
        return step_loss

    def _diagnosis(self, step: int, loss: float) -> str:
        kept = f"the last good state is kept in {self.state}" if self.state.is_file() else "no state had been saved yet"
        return (
            f"{self.task} {self.training.mode}: the loss is {loss}, or its gradient is no number, at step {step} of "
            f"{self.steps}; {kept}. Start again with a smaller --lr and --overwrite: {' '.join(['python', *sys.argv])}"
        )


def _build(run: Run, training: Training) -> nn.Module:
    """The encoder to train, at θ0 or at `training.load`."""
    encoder: nn.Module = ImageEncoder(run)
    store.check_pretrained(run.paths.pretrained(), encoder.state_dict())
    pretrained = checkpoints.load(run.paths.pretrained(), model=run.model, like=encoder.state_dict())
    encoder.load_state_dict(pretrained)
    if MODES[training.mode].tangent:
        encoder = LinearizedImageEncoder(run, image_encoder=encoder)
    if training.load:
        encoder.load_state_dict(checkpoints.load(training.load, model=run.model, like=pretrained))
    return encoder


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that an earlier run had otherwise, in words; older files do not tell all of theirs."""
    differing = [key for key, value in now.items() if earlier.get(key, value) not in (value, str(value))]
    return ", ".join(f"{key} {earlier[key]} (now {now[key]})" for key in differing)


def _set_precision(precision: str, device: str) -> AbstractContextManager:
    """Make matrix products of this process fp32, or fp32 with TF32's mantissa; the context of the forward pass."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")


def _resume(path: Path, encoder: nn.Module, optimizer: torch.optim.Optimizer, header: dict[str, Any]) -> int:
    """Load a training state; the number of steps it has seen. Raises CheckpointError where its settings differ."""
    state = checkpoints.Checkpoint(path, kind="training state", model=header["model"], task=header["task"])
    checkpoints.require(state, "settings", "step")
    if other := _differences(state.header["settings"], header["settings"]):
        raise checkpoints.CheckpointError(
            f"{path}: expected the state of a run with these settings, found {other}; "
            "repeat the earlier settings, or start anew with --overwrite"
        )
    model = encoder.state_dict()
    encoder.load_state_dict(checkpoints.load_state(state, {"optimizer": optimizer}, {"model": model})["model"])
    return state.header["step"]


def finetune_together(run: Run, training: Training, world: World, overwrite: bool = False) -> None:
    """Fine-tune every task of the run, one after the other, with all processes on each."""
    if world.is_primary:
        store.write_pretrained(run)
        for task in run.tasks:  # made once, before the other processes look for them
            loading.examples(run, task, "train")
            get_classification_head(run, task)
    world.barrier()
    for task in run.tasks:
        finetune(run, task, training, world, overwrite)
