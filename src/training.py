"""The fine-tuning worker: the papers' schedule, gradient accumulation, several processes, exact resume.

Everything that chance decides in a step (which images, how they are shifted) is a function of (seed, task, step), so a
run that was killed goes on as if it had not been, and any number of processes sees the same batches.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from src import state_files, store
from src.datasets import loading
from src.finetuning.batches import IGNORED, Batches
from src.finetuning.objectives import PENALTIES, worst_nearby
from src.finetuning.settings import (
    Training,
    cosine_lr,
    number_of_steps,
    passes_before,
    place_in_schedule,
    settings_of,
)
from src.finetuning.states import check_finished, kept_steps, remove, resume
from src.finetuning.tally import Tally
from src.finetuning.trained import build, write_encoder
from src.heads import get_classification_head
from src.modeling import ImageClassifier
from src.modes import MODES
from src.run import Run
from src.runtime import results
from src.runtime.distributed import World
from src.runtime.files import require_writable
from src.runtime.locks import only_one
from src.runtime.loggers import Logger
from src.runtime.messages import NotFinite
from src.runtime.parallel import in_worker
from src.runtime.precision import autocast, matmul_precision
from src.runtime.signals import until_stopped

# Of DistributedDataParallel, by the name that this PyTorch has for it: whether each pass sends the buffers.
BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in signature(DistributedDataParallel).parameters
)
LOOK = 10  # steps between two looks at what the device holds: for the bar, and whether all of it is finite
STATES = 6  # times θ0 on disk: a state is weights and two moments, and the new one stands beside the old for a moment
Batch = tuple[torch.Tensor, torch.Tensor, int]


class NonFiniteLoss(NotFinite):
    """The loss is no number: training stopped, and the last good state was kept."""


def finetune(run: Run, task: str, training: Training, world: World = World(), overwrite: bool = False) -> None:
    """Fine-tune on one task and write its checkpoint; does nothing where that is already there.

    Raises CheckpointError for a checkpoint or a state of other settings, and NonFiniteLoss.
    """
    target = run.paths.checkpoint(task, training.mode)
    if _finished(run, task, training, world, overwrite):
        return
    require_writable(target, STATES * _size(run.paths.pretrained()))
    with only_one(target):
        world.barrier()  # before the others look at what is there
        if _finished(run, task, training, world, overwrite):  # another run made it meanwhile
            return
        if overwrite and world.is_primary:
            remove(run, task, training.mode)
        world.barrier()
        torch.manual_seed(run.seed)
        with world.in_step() as together:
            FineTuning(run, task, training, together).run_to_end()
        world.barrier()


def _finished(run: Run, task: str, training: Training, world: World, overwrite: bool) -> bool:
    """Whether the checkpoint is there and as is asked for, which is then told."""
    target = run.paths.checkpoint(task, training.mode)
    if overwrite or not target.is_file():
        return False
    check_finished(run, task, training)
    world.print0(f"{task} {training.mode}: finished before, skipped ({target})")
    return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


class FineTuning:
    """The fine-tuning of one task: what is trained, and the loop. It goes on from a kept state where there is one."""

    def __init__(self, run: Run, task: str, training: Training, world: World):
        self.run, self.task, self.training, self.world = run, task, training, world
        self.target = run.paths.checkpoint(task, training.mode)
        self.state = run.paths.training_state(task, training.mode)
        self.encoder = build(run, task, training).to(world.device)
        self.classifier = ImageClassifier(self.encoder, get_classification_head(run, task)).to(world.device)
        self.classifier.freeze_head()
        # As published; what has no BatchNorm computes the same either way.
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.encoder.modules()):
            self.classifier.train()
        examples = loading.training_examples(run, task)
        self.batches = Batches(run, training, self.encoder, examples, world, task)
        self.steps = number_of_steps(training, task, self.batches.per_epoch)
        self.steps_kept = kept_steps(training, self.steps)
        self.trained = [p for p in self.classifier.parameters() if p.requires_grad]
        self.on_gpu = world.device.startswith("cuda")
        self.optimizer = torch.optim.AdamW(self.trained, lr=training.lr, weight_decay=training.wd, fused=True)
        settings = settings_of(run, task, training) | {"steps": self.steps}
        self.header = dict(model=run.model, task=task, mode=training.mode, seed=run.seed, settings=settings)
        self.header["began_at"] = store.written_fingerprints(run).get("image")
        self.first = 0
        if self.state.is_file():
            self.first = resume(self.state, self.encoder, self.optimizer, self.header)
            world.print0(f"{task} {training.mode}: goes on from step {self.first} of {self.steps}")
        self.cast = autocast(training.precision, world.device)
        self.model = self._compiled()
        self.tally = Tally()
        make = PENALTIES.get(MODES[training.mode].minimises)
        self.penalty = make(run, task, training, self.encoder, world) if make else None

    def _compiled(self) -> nn.Module:
        if self.training.compile:
            # Without the head: each number of classes would be a graph, and after the eighth nothing is compiled.
            self.encoder.compile(backend=self.training.compile)
        if self.world.size == 1:
            return self.classifier
        # No buffer changes but BatchNorm's statistics, which no forward pass here reads.
        apart: dict[str, Any] = {BUFFERS: False}
        return DistributedDataParallel(
            self.classifier, process_group=self.world.group, gradient_as_bucket_view=True, **apart
        )

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
        passes = [passes_before(training, step, self.batches.per_epoch) for step in (self.first, self.steps)]
        stream, penalties = self.batches(*passes), self.penalty.stream(*passes) if self.penalty else None
        saved = time.monotonic()
        for step in until_stopped(range(self.first, self.steps), self._stopped_at, self._agreed):
            loss = self.step(step, stream, penalties)
            bar.update()
            logger.log({"loss": loss * world.size, "lr": self.optimizer.param_groups[0]["lr"]}, step)
            looking, keeping = self._looks_after(step), step + 1 in self.steps_kept
            saving = training.checkpoint_every > 0 and (step + 1) % training.checkpoint_every == 0
            if looking or keeping or saving:
                self._look()
            if looking:
                bar.set_postfix(loss=f"{self.tally.last_loss * world.size:.3f}", accuracy=f"{self.tally.accuracy:.3f}")
                saving |= 0 < training.checkpoint_seconds < time.monotonic() - saved
            if keeping and world.is_primary:
                path = self.run.paths.encoder_at(self.task, training.mode, step + 1)
                write_encoder(path, self.encoder, self.header | {"step": step + 1, "processes": world.size})
            if saving and step + 1 < self.steps:
                self._save(step)
                saved = time.monotonic()
        bar.close()
        self._look()
        logger.close()
        if world.is_primary:
            header = self.header | {"step": self.steps, "processes": world.size}
            write_encoder(self.target, self.encoder, header)
            self.state.unlink(missing_ok=True)
        done = self.steps - self.first
        world.print0(
            f"{name}: {self.steps} steps, training loss {self.tally.loss * world.size / max(1, done):.3f}, "
            f"accuracy {self.tally.accuracy:.3f}, {done / max(1e-9, time.time() - began):.1f} steps/s"
        )

    def _looks_after(self, step: int) -> bool:
        return (step + 1) % LOOK == 0

    def _agreed(self, asked: bool) -> bool:
        """Whether to stop, for all processes; GPUs are waited for at a look alone."""
        if self.world.size > 1 and self.on_gpu and not self._looks_after(self.tally.last_step):
            return False
        return self.world.any(asked)

    def _look(self) -> None:
        """Take in what the steps since the last look left on the device. Raises NonFiniteLoss.

        The gradient is shared by all processes, the loss is not: it stops every one of them at the same look.
        """
        if broken := self.tally.look():
            raise NonFiniteLoss(self._diagnosis(*broken))

    def _save(self, step: int) -> None:
        """Keep the state after a step. Raises NonFiniteLoss for a broken one, and leaves the last as it is."""
        if self.world.is_primary:
            weights, header = {"model": self.encoder.state_dict()}, self.header | {"step": step + 1}
            tensors = state_files.tensors(weights, {"optimizer": self.optimizer}).values()
            if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
                raise NonFiniteLoss(self._diagnosis(step, self.tally.last_loss))
            state_files.save(self.state, weights, {"optimizer": self.optimizer}, header, kind="training state")

    def _stopped_at(self, step: int) -> None:
        """Keep the state of a run that was asked to stop, unless it keeps none."""
        if self.training.checkpoint_every or self.training.checkpoint_seconds:
            self._look()
            self._save(step)
        self.world.barrier()  # the others' end would end this process too

    def step(self, step: int, stream: Iterator[Batch], penalties: Iterator[torch.Tensor] | None = None) -> torch.Tensor:
        """One optimizer step; gives this process's share of its loss, which stays on the device."""
        training = self.training
        step_in_schedule, last = (place_in_schedule(training, k, self.batches.per_epoch) for k in (step, self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = cosine_lr(step_in_schedule, last, training.lr, training.warmup_length)
        before, after = (passes_before(training, k, self.batches.per_epoch) for k in (step, step + 1))
        passes: Sequence[Batch] | Iterator[Batch] = islice(stream, after - before)
        with matmul_precision(training.precision):
            if training.rho is None:
                loss, norm = self._gradient(passes, after - before, penalties)
            else:
                passes = list(passes)
                loss, norm = self._gradient(passes, after - before)
                with worst_nearby(self.trained, training.rho):
                    norm = norm + self._gradient(passes, after - before, count=False)[1]
            self.optimizer.step()
        self.tally.add(step, loss, norm)
        return loss

    def _gradient(
        self,
        passes: Iterable[Batch],
        number: int,
        penalties: Iterator[torch.Tensor] | None = None,
        count: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Leave the clipped gradient at the weights as they are; gives this process's share of the loss, and the norm.

        number: of the passes.
        count: whether images count for the training accuracy.
        """
        training, world = self.training, self.world
        self.optimizer.zero_grad()
        losses = []
        for micro, (images, labels, size) in enumerate(passes, 1):
            if isinstance(self.model, DistributedDataParallel):
                self.model.require_backward_grad_sync = micro == number
            with self.cast:
                logits = self.model(images).float()
            # The mean over the global batch: DDP divides the sum of the ranks' gradients by their number.
            loss = F.cross_entropy(logits, labels, label_smoothing=training.ls, reduction="sum") / size
            if penalties is not None:
                # Not by way of DDP: its hooks see a parameter's gradient once, when that of both terms has come.
                loss = loss + next(penalties)
            (loss * world.size / (1 if training.sum_gradients else number)).backward()
            losses.append(loss.detach())
            if count:
                self.tally.count((logits.argmax(1) == labels).sum(), (labels != IGNORED).sum())
        norm = torch.nn.utils.clip_grad_norm_(self.trained, training.clip)
        return torch.stack(losses).sum() / number, norm

    def _diagnosis(self, step: int, loss: float) -> str:
        state = (
            f"the last good state is kept in {self.state}" if self.state.is_file() else "no state had been saved yet"
        )
        return (
            f"{self.task} {self.training.mode}: the loss is {loss}, or its gradient is no number, at step {step} of "
            f"{self.steps}; {state}. Start again with a smaller --lr and --overwrite: {results.command_line()}"
        )


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
