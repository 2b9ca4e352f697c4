"""Fine-tunes the image encoder on every task of a suite, non-linearly, in the tangent space, or in a further mode.

    python finetune.py                                               # mini suite, standard
    python finetune.py --finetuning-mode=linear --tasks signs,letters
    python finetune.py --finetuning-mode=lora --rank=8               # docs/modes.md has all
    python finetune.py --model=ViT-B-32 --world-size=2               # the papers' protocol, 2 processes
    torchrun --nproc-per-node=8 finetune.py --model=ViT-L-14         # on one machine or several

Finished tasks are skipped; a run that was killed goes on from its last saved state.
"""

from src.args import finetuning_parser, parse
from src.runtime.program import exit_on_user_error


@exit_on_user_error
def main(argv=None) -> None:
    run, options = parse(finetuning_parser(__doc__), argv)
    from src.experiments.finetuning import finetune_tasks  # here, so that --help does not wait for torch

    finetune_tasks(run, **options)


if __name__ == "__main__":
    main()
