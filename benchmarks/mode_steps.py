"""An optimizer step of every way of fine-tuning beside the standard one: time and memory.

    python -m benchmarks mode_steps
    python -m benchmarks mode_steps --batch-size 64 --rounds 30 --threads 2

By turns in one run: what finetune.py does in a step, images included. Tells the median CPU time of a step, how many
times the standard step's of the same round it is (median and quartiles), and the median of how far a step's memory
reaches above what weights and moments hold; 0 where the system does not tell.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks import measure
from src import store
from src.args import base_parser, parse
from src.finetuning.settings import Training
from src.modes import TRAINED
from src.run import Run
from src.runtime.cost import measured
from src.runtime.distributed import World
from src.training import FineTuning


def steps_of(run: Run, mode: str, batch_size: int, steps: int) -> Callable[[], object]:
    """A function that takes the next step of a fine-tuning on the first task."""
    training = Training.of(run, mode, batch_size=batch_size, steps=steps, workers=0)
    tuning = FineTuning(run, run.tasks[0], training, World(device=run.device))
    passes = (0, steps * training.num_grad_accumulation)
    stream, penalties = tuning.batches(*passes), tuning.penalty.stream(*passes) if tuning.penalty else None
    numbers = iter(range(steps))
    return lambda: tuning.step(next(numbers), stream, penalties)


def main(argv: Sequence[str] | None = None) -> None:
    started = time.time()
    parser = base_parser(__doc__, modes=None)
    measure.add_output(parser)
    measure.add_steps(parser, batch_size=32, rounds=30)
    run, options = parse(parser, argv)
    torch.set_num_threads(options["threads"])
    store.write_pretrained(run)
    warm = 3
    steps = {mode: steps_of(run, mode, options["batch_size"], options["rounds"] + warm) for mode in TRAINED}
    memory: dict[str, list[int]] = {mode: [] for mode in TRAINED}

    def watched(mode: str) -> None:
        with measured(run.device) as cost:
            steps[mode]()
        memory[mode].append(cost.peak_memory or 0)

    ways = {mode: lambda mode=mode: watched(mode) for mode in TRAINED}
    rows = measure.compared(measure.by_turns(ways, options["rounds"], warm), "standard")
    for mode, row in rows.items():
        row["bytes"] = statistics.median(memory[mode][warm:])
        print(
            f"{mode:17s} {1000 * row['seconds']:7.1f} ms of CPU time per step, {measure.times(row)} x the standard "
            f"step, {row['bytes'] / 1e6:.0f} MB"
        )
    measure.write(options["output"], {"steps": rows}, options, started)


if __name__ == "__main__":
    main()
