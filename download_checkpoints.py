"""Fetches published checkpoints or masks, verifies them and converts them to this project's format.

    python download_checkpoints.py --model='ViT-B-16' --kind=checkpoints                    # Google Drive
    python download_checkpoints.py --model=ViT-B-16 --kind=checkpoints --source=hub         # the same from the hub
    python download_checkpoints.py --model=ViT-B-32 --kind=tall_masks --source=hub
    python download_checkpoints.py --model=ViT-B-32 --kind=checkpoints --from-folder=DIR    # fetched by hand
    python download_checkpoints.py --model=ViT-B-32 --kind=checkpoints --source=hub --publisher=fusion_bench \\
        --save=checkpoints_fusion_bench                                                     # other fine-tunes: apart

Killed and started again it goes on. Files are whole and verified, or not used: against the hub's own SHA-256, or for
Google Drive, which states none, against the one recorded at the first download (verified.json). No pickle is executed.
"""

from pathlib import Path

from src.args import base_parser, parse
from src.published.sources import DRIVE_FOLDERS, PATTERNS
from src.runtime.program import exit_on_user_error


@exit_on_user_error
def main(argv=None) -> None:
    parser = base_parser(__doc__, modes=None)
    parser.add_argument("--kind", required=True, choices=tuple(DRIVE_FOLDERS))
    parser.add_argument("--source", choices=("drive", "hub"), default="drive")
    parser.add_argument("--publisher", choices=tuple(PATTERNS), default="tall", help="fusion_bench is on the hub only")
    parser.add_argument("--from-folder", type=Path, metavar="DIR", help="take files that were fetched by hand")
    parser.add_argument("--downloads", type=Path, help="folder of the files as published; default: in --cache-dir")
    parser.add_argument("--keep", action="store_true", help="keep the files as published after converting them")
    run, options = parse(parser, argv)
    from src.published.download import fetch_published  # here, so that --help does not wait for torch

    fetch_published(run, **options)


if __name__ == "__main__":
    main()
