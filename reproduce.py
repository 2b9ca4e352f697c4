"""Every stage of a suite in order: fine-tune, evaluate, merge, analyse, tables, figures, the page.

    python reproduce.py                          # mini suite, seed 1
    python reproduce.py --seeds 1,2,3
    python reproduce.py --only single-task addition
    python reproduce.py --only merging merging-tangent methods methods-adapting  # all methods x kinds of task vectors
    python reproduce.py --extended               # also sweeps, unseen tasks, tangent merging, robustness
    python reproduce.py --dry-run                # what would run, in how many minutes, and what is there already
    python reproduce.py --suite vision --model ViT-B-32

Results go to --results, by default reproduced/: the project's own, which ship, lie in results/ and stay as they are. In
the end every number of test images is compared with the shipped ones. Finished work is skipped, so a run that was
stopped goes on where it was. A command that fails is reported, and those that do not need it still run.

Exit status: 0 when everything is there, 1 when a command failed, 2 for a wrong flag, 130 after Ctrl-C.
"""

from collections.abc import Sequence

from src.args import parse, reproduction_parser
from src.experiments.stages import NAMES, listing
from src.runtime.program import exit_on_user_error


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    run, options = parse(reproduction_parser(f"{__doc__}\nStages:\n{listing()}", NAMES), argv)
    from src.experiments.reproduction import reproduce  # here, so that --help does not wait for torch

    reproduce(run, **options)


if __name__ == "__main__":
    main()
