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

from src.published import download


def main(argv: list[str] | None = None) -> None:
    download.main(__doc__, argv)


if __name__ == "__main__":
    main()
