"""Fine-tunes the image encoder on every task of a suite, non-linearly or in the tangent space.

    python finetune.py                                               # mini suite, standard
    python finetune.py --finetuning-mode=linear --tasks signs,letters
    python finetune.py --model=ViT-B-32 --world-size=2               # the papers' protocol, 2 processes
    torchrun --nproc-per-node=8 finetune.py --model=ViT-L-14         # on one machine or several

Finished tasks are skipped; a run that was killed goes on from its last saved state.
"""

from functools import partial

from src import store, training
from src.args import TRAINING_MODES, add_training, base_parser, parse
from src.datasets import loading as data
from src.runtime.distributed import World, launch, under_torchrun
from src.runtime.parallel import map_tasks
from src.runtime.program import USER_ERRORS, exit_on_user_error


@exit_on_user_error
def main(argv=None) -> None:
    parser = base_parser(__doc__, TRAINING_MODES)
    add_training(parser)
    args = parse(parser, argv)
    if under_torchrun() or args.world_size > 1 or args.jobs == 1:
        launch(training.worker, args, USER_ERRORS)
        return
    store.save_pretrained(args)
    data.examples(args, args.tasks[0], "train")  # mini's are drawn once, before the workers look for them
    world = World(device=args.device)
    map_tasks(partial(training.finetune, args, world=world), args.tasks, args.jobs, "fine-tuning")


if __name__ == "__main__":
    main()
