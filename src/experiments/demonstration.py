"""The demonstration: fine-tuning and task addition on two tasks of the mini suite, and one picture of it."""

import importlib
import shlex
from pathlib import Path

from src.run import Run
from src.runtime.messages import UsageError
from src.runtime.paths import Places, from_root

SEED = 1


def demonstrate(tasks: str, steps: int, folder: Path) -> None:
    """Run the scripts on two tasks, tell each command, and draw α against both accuracies.

    tasks: two names, by a comma. steps: of fine-tuning. folder: of all that is made. Raises UsageError.
    """
    places = Places(save=folder / "checkpoints", results=folder / "results")
    run = Run.of(tasks=tasks, seed=SEED, device="cpu", places=places)
    if len(run.tasks) != 2:
        raise UsageError(f"--tasks: expected two tasks, as in --tasks=signs,digits; found {', '.join(run.tasks)}")
    commands = [("finetune", [f"--steps={steps}"])]
    commands += [("eval_single_task", [f"--finetuning-mode={mode}"]) for mode in ("none", "standard")]
    commands.append(("eval_task_addition", []))
    for script, flags in commands:
        flags = [*flags, *shlex.split(run.flags()), f"--tasks={','.join(run.tasks)}"]
        print(f"$ {shlex.join(['python', f'{script}.py', *flags])}", flush=True)
        importlib.import_module(script).main(flags)
    from src.reporting.first_look import draw  # here, so that a wrong task does not wait for Matplotlib

    print(draw(run, from_root(folder)))
