"""An optimizer step of every way of fine-tuning beside the standard one: time and memory.

    python benchmarks/mode_steps.py
    python benchmarks/mode_steps.py --batch-size 64 --rounds 30 --threads 2

By turns in one run: what finetune.py does in a step, images included. Prints the median CPU time of a step (which
another program's load disturbs less than wall time does), its ratio to the standard step, and the median of how far a
step's memory reaches above what weights and moments hold; 0 where the system does not tell.
"""

import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src import store
from src.args import base_parser, parse
from src.finetuning.settings import Training
from src.modes import TRAINED
from src.run import Run
from src.runtime.cost import measured
from src.runtime.distributed import World
from src.training import FineTuning


def steps_of(run: Run, mode: str, batch_size: int, steps: int):
    """A function that takes the next step of a fine-tuning on the first task."""
    training = Training.of(run, mode, batch_size=batch_size, steps=steps, workers=0)
    tuning = FineTuning(run, run.tasks[0], training, World(device=run.device))
    passes = (0, steps * training.num_grad_accumulation)
    stream, penalties = tuning.batches(*passes), tuning.penalty.stream(*passes) if tuning.penalty else None
    numbers = iter(range(steps))
    return lambda: tuning.step(next(numbers), stream, penalties)


def main() -> None:
    parser = base_parser(__doc__, modes=None)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    run, options = parse(parser)
    torch.set_num_threads(options["threads"])
    store.write_pretrained(run)
    warm = 3
    step = {mode: steps_of(run, mode, options["batch_size"], options["rounds"] + warm) for mode in TRAINED}
    seconds: dict[str, list[float]] = {mode: [] for mode in TRAINED}
    memory: dict[str, list[int]] = {mode: [] for mode in TRAINED}
    for _ in range(options["rounds"] + warm):
        for mode in TRAINED:
            start = time.process_time()
            with measured(run.device) as cost:
                step[mode]()
            seconds[mode].append(time.process_time() - start)
            memory[mode].append(cost.peak_memory or 0)
    standard = statistics.median(seconds["standard"][warm:])
    for mode in TRAINED:
        median = statistics.median(seconds[mode][warm:])
        print(
            f"{mode:17s} {1000 * median:7.1f} ms of CPU time per step, {median / standard:.2f} x the standard step, "
            f"{statistics.median(memory[mode][warm:]) / 1e6:.0f} MB"
        )


if __name__ == "__main__":
    main()
