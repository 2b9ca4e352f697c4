"""The fine-tuning worker: the papers' schedule, gradient accumulation, several processes, exact resume.

Everything that chance decides in a step (which images, how they are shifted) is a function of (seed, task, step), so a
run that was killed goes on as if it had not been, and any number of processes sees the same batches.
"""

import math
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from src import checkpoints, store
from src.datasets import loading as data
from src.datasets import registry
from src.datasets.base import Examples, Pixels
from src.datasets.examples import CorruptImage
from src.heads import get_classification_head
from src.linearize import LinearizedImageEncoder
from src.modeling import ImageClassifier, ImageEncoder
from src.runtime import parallel
from src.runtime.distributed import World
from src.runtime.loggers import Logger
from src.runtime.paths import Paths
from src.runtime.seeds import batch_indices, event_seed

IGNORED = -100  # a label that is none: F.cross_entropy's ignore_index
MAX_SHIFT = 2  # pixels: the augmentation of images that are held in memory

# What a training state must share with the run that goes on from it.
SETTINGS = (
    *("lr", "wd", "ls", "warmup_length", "batch_size", "num_grad_accumulation", "clip", "epochs", "seed"),
    *("load", "precision", "compile"),
)


class NonFiniteLoss(FloatingPointError):
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

    def __init__(self, args, encoder, examples: Examples, world: World, task: str):
        self.args, self.encoder, self.examples, self.world, self.task = args, encoder, examples, world, task
        self.seed = event_seed(args.seed, task)
        self.in_memory = isinstance(examples, Pixels) and examples.pixels.shape[1] == encoder.image_size
        self.per_epoch = math.ceil(len(examples) / args.batch_size)

    def __call__(self, first: int, stop: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
        if self.in_memory:
            yield from (self._from_memory(number) for number in range(first, stop))
        else:
            yield from self._decoded(first, stop)

    def _indices(self, number: int) -> np.ndarray:
        return batch_indices(len(self.examples), self.args.batch_size, number, self.seed)

    def _mine(self, images: int) -> tuple[slice, bool]:
        """This rank's part of a batch, and whether it counts.

        Where there are fewer images than processes, one that would have none takes the first again, and its label is
        IGNORED: few encoders take a batch of none, and DDP waits for every process.
        """
        if self.world.rank >= images:
            return slice(0, 1), False
        return slice(self.world.rank, None, self.world.size), True

    def _from_memory(self, number: int):
        indices = self._indices(number)
        generator = torch.Generator().manual_seed(event_seed(self.seed, "shift", number))
        # The whole batch is shifted and then shared out, so that the shares of two processes make one process's batch.
        images = shifted(torch.from_numpy(self.examples.pixels[indices]), MAX_SHIFT, generator)
        mine, counts = self._mine(len(indices))
        images = data.normalise(images[mine].to(self.world.device), self.encoder.mean, self.encoder.std)
        labels = torch.from_numpy(self.examples.labels[indices])[mine].to(self.world.device)
        return images, labels if counts else torch.full_like(labels, IGNORED), len(indices)

    def _decoded(self, first: int, stop: int):
        shares = []
        for number in range(first, stop):
            indices = self._indices(number)
            mine, counts = self._mine(len(indices))
            shares.append([(number // self.per_epoch, int(index), counts) for index in indices[mine]])
        augmented = _Augmented(self.examples, self.encoder.train_preprocess, self.seed)
        loader = torch.utils.data.DataLoader(
            augmented,
            batch_sampler=shares,
            num_workers=self.args.workers,
            pin_memory=self.world.device.startswith("cuda"),
        )
        try:
            for number, (images, labels) in zip(range(first, stop), loader):
                yield images.to(self.world.device), labels.to(self.world.device), len(self._indices(number))
        except CorruptImage:
            data.require_decodable(self.args, self.task, "train")  # which names and counts them all
            raise


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


def number_of_steps(args, task: str, batches_per_epoch: int) -> int:
    """Optimizer steps: `--steps`, or those of `--epochs`, or of the task's registry row."""
    if args.steps is not None:
        return args.steps
    row = registry.get(task)
    if args.epochs is None and row.steps is not None:
        return row.steps
    epochs = row.epochs if args.epochs is None else args.epochs
    return epochs * batches_per_epoch // args.num_grad_accumulation


def _build(args, mode: str):
    """(encoder to train, from θ0 or `--load`)."""
    encoder = ImageEncoder(args)
    store.check_pretrained(Paths.of(args).pretrained(), encoder.state_dict())
    pretrained = checkpoints.load(Paths.of(args).pretrained(), model=args.model, like=encoder.state_dict())
    encoder.load_state_dict(pretrained)
    if mode == "linear":
        encoder = LinearizedImageEncoder(args, image_encoder=encoder)
    if args.load:
        encoder.load_state_dict(checkpoints.load(args.load, model=args.model, like=pretrained))
    return encoder


def finetune(args, task: str, world: World = World()) -> None:
    """Fine-tune on one task and write its checkpoint; does nothing where that is already there."""
    mode, paths = args.finetuning_mode, Paths.of(args)
    target, state_file = paths.checkpoint(task, mode), paths.training_state(task, mode)
    settings = {key: getattr(args, key) for key in SETTINGS} | {"load": args.load and str(args.load)}
    if target.is_file() and not args.overwrite:
        found = checkpoints.header(target, model=args.model, task=task, mode=mode)  # refuses one cut short or foreign
        store.check_start(args, target, found)
        asked = settings if args.steps is None else settings | {"steps": args.steps}
        other = _differences(found.get("settings", {}), asked)
        told = f"; it was trained with {other}: --overwrite trains anew" if other else ""
        world.say(f"{task} {mode}: finished before, skipped ({target}){told}")
        return
    if args.overwrite and world.leads:
        target.unlink(missing_ok=True)
        state_file.unlink(missing_ok=True)
    world.wait()
    torch.manual_seed(args.seed)
    encoder = _build(args, mode).to(world.device)
    classifier = ImageClassifier(encoder, get_classification_head(args, task)).to(world.device)
    classifier.freeze_head()
    batches = Batches(args, encoder, data.training_examples(args, task), world, task)
    steps = number_of_steps(args, task, batches.per_epoch)
    trained = {n: p for n, p in classifier.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=args.lr, weight_decay=args.wd)
    header = dict(model=args.model, task=task, mode=mode, seed=args.seed, settings=settings | {"steps": steps})
    header["began_at"] = store.written_fingerprints(args).get("image")

    first = 0
    if state_file.is_file():
        first = _resume(state_file, encoder, optimizer, header)
        world.say(f"{task} {mode}: goes on from step {first} of {steps}")
    cast = _set_precision(args.precision, world.device)
    if args.compile:
        # Inside of DDP: compiled around it, DDP's own graph optimizer would meet the jvp, which it does not support.
        classifier.compile(backend=args.compile)
    model = DistributedDataParallel(classifier) if world.size > 1 else classifier
    logger = Logger(args, f"{args.model}-{task}-{mode}", target.parent) if world.leads else None
    bar = tqdm(
        position=parallel.line(),
        total=steps,
        initial=first,
        desc=f"{task} {mode}",
        unit="step",
        leave=False,
        disable=None if world.leads else True,
    )
    accumulation, began = args.num_grad_accumulation, time.time()
    seen = correct = 0
    total_loss = 0.0
    stream = batches(first * accumulation, steps * accumulation)
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr(step, steps, args.lr, args.warmup_length)
        optimizer.zero_grad()
        step_loss = 0.0
        for micro in range(accumulation):
            images, labels, size = next(stream)
            if world.size > 1:
                model.require_backward_grad_sync = micro + 1 == accumulation
            with cast:
                logits = model(images).float()
            # The mean over the global batch: DDP divides the sum of the ranks' gradients by their number.
            loss = F.cross_entropy(logits, labels, label_smoothing=args.ls, reduction="sum") / size
            (loss * world.size / accumulation).backward()
            step_loss += loss.item() / accumulation
            correct += (logits.argmax(1) == labels).sum().item()
            seen += (labels != IGNORED).sum().item()
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), args.clip)
        # The gradient is shared by all processes, the loss is not: it stops every one of them at the same step.
        if not (math.isfinite(step_loss) and math.isfinite(norm)):
            raise NonFiniteLoss(_diagnosis(task, mode, step, steps, step_loss, state_file))
        optimizer.step()
        total_loss += step_loss
        bar.update()
        if (step + 1) % 10 == 0:
            bar.set_postfix(loss=f"{step_loss * world.size:.3f}", accuracy=f"{correct / max(1, seen):.3f}")
        if logger:
            logger.log({"loss": step_loss * world.size, "lr": optimizer.param_groups[0]["lr"]}, step)
        if args.checkpoint_every and (step + 1) % args.checkpoint_every == 0 and step + 1 < steps and world.leads:
            checkpoints.save_state(
                state_file,
                {"model": encoder.state_dict()},
                {"optimizer": optimizer},
                header | {"step": step + 1},
                kind="training state",
            )
    bar.close()
    if world.leads:
        logger.close()
        checkpoints.save(target, encoder.state_dict(), header | {"step": steps, "processes": world.size})
        state_file.unlink(missing_ok=True)
    rate = (steps - first) / max(1e-9, time.time() - began)
    mean_loss = total_loss * world.size / max(1, steps - first)
    accuracy = correct / max(1, seen)
    world.say(
        f"{task} {mode}: {steps} steps, training loss {mean_loss:.3f}, accuracy {accuracy:.3f}, {rate:.1f} steps/s"
    )
    world.wait()


def _diagnosis(task: str, mode: str, step: int, steps: int, loss: float, state_file) -> str:
    kept = f"the last good state is kept in {state_file}" if state_file.is_file() else "no state had been saved yet"
    return (
        f"{task} {mode}: the loss is {loss}, or its gradient is no number, at step {step} of {steps}; {kept}. "
        f"Start again with a smaller --lr and --overwrite: {' '.join(['python', *sys.argv])}"
    )


def _differences(earlier: dict, now: dict) -> str:
    """The settings that an earlier run had otherwise, in words; older files do not tell all of theirs."""
    differing = [key for key, value in now.items() if earlier.get(key, value) not in (value, str(value))]
    return ", ".join(f"{key} {earlier[key]} (now {now[key]})" for key in differing)


def _set_precision(precision: str, device: str):
    """Make matrix products of this process fp32, or fp32 with TF32's mantissa; the context of the forward pass."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")


def _resume(path, encoder, optimizer, header: dict) -> int:
    """Load a training state; the number of steps it has seen. Raises CheckpointError where its settings differ."""
    state = checkpoints.Checkpoint(path, kind="training state", model=header["model"], task=header["task"])
    if other := _differences(state.header["settings"], header["settings"]):
        raise checkpoints.CheckpointError(
            f"{path}: expected the state of a run with these settings, found {other}; "
            "repeat the earlier settings, or start anew with --overwrite"
        )
    encoder.load_state_dict(checkpoints.load_state(state, {"optimizer": optimizer})["model"])
    return state.header["step"]


def worker(args, world: World) -> None:
    """Fine-tune every task of `args.tasks`, one after the other, with all processes on each."""
    if world.leads:
        store.save_pretrained(args)
        for task in args.tasks:  # made once, before the other processes look for them
            data.examples(args, task, "train")
            get_classification_head(args, task)
    world.wait()
    for task in args.tasks:
        finetune(args, task, world)
