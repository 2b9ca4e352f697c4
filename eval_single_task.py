"""Accuracy of the pre-trained and of each fine-tuned encoder on its own task and on the control set.

    python eval_single_task.py --finetuning-mode=none        # pre-trained
    python eval_single_task.py --finetuning-mode=standard
    python eval_single_task.py --finetuning-mode=linear
    python eval_single_task.py --finetuning-mode=posthoc     # the standard ones, put into the linearized model
    python eval_single_task.py --finetuning-mode=linear --at=100      # as they were after step 100
    python eval_single_task.py --finetuning-mode=none --encoder=merged.safetensors --name=merged

Writes zeroshot_accuracies.json, ft_accuracies.json, linear_ft_accuracies.json, posthoc_ft_accuracies.json, or those of
another mode under its name: for each task its test accuracy under its name and its validation accuracy under <name>Val,
as published. The control set is scored too where it is prepared; for fine-tuned encoders its accuracy is the mean over
tasks of what each keeps.
"""

from pathlib import Path

from src.args import base_parser, parse
from src.experiments.registry import CONTROL, SINGLE_TASK
from src.runtime.distributed import spmd
from src.runtime.program import exit_on_user_error


@exit_on_user_error
@spmd
def main(argv=None) -> None:
    parser = base_parser(__doc__, SINGLE_TASK.choices)
    parser.add_argument("--encoder", type=Path, help="evaluate this checkpoint (of main.py's output=) on every task")
    parser.add_argument("--name", help="name of the result of --encoder")
    parser.add_argument("--at", type=int, help="score the encoders that finetune.py --keep-every kept after this step")
    parser.add_argument("--control", choices=CONTROL, default=CONTROL[0], help="when to score the control set too")
    run, options = parse(parser, argv)
    from src.experiments.single_task import evaluate_single_tasks  # here, so that --help does not wait for torch

    evaluate_single_tasks(run, **options)


if __name__ == "__main__":
    main()
