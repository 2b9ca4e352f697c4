"""Spectral geometry of the task vectors: ranks, interference of their subspaces, alignment with merged vectors.

    python eval_geometry.py --finetuning-mode=standard
    python eval_geometry.py --finetuning-mode=linear

Writes geometry_<mode>.json: by matrix the singular task interference (Gargiulo et al., 2025), by matrix and task the
stable and the effective rank and the energy of the leading 1/T, and of every merging method that needs weights alone
its subspace alignment with each task (Marczak et al., 2025). Needs the fine-tuned checkpoints; reads no image.
"""

from src.args import base_parser, parse
from src.modes import TRAINED
from src.runtime.distributed import spmd
from src.runtime.program import exit_on_user_error


@exit_on_user_error
@spmd
def main(argv=None) -> None:
    parser = base_parser(__doc__, TRAINED)
    run, options = parse(parser, argv)
    from src.experiments.geometry import measure_geometry  # here, so that --help does not wait for torch

    measure_geometry(run, **options)


if __name__ == "__main__":
    main()
