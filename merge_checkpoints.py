"""Merge files of weights into one, without data: any networks that share names and shapes, in any format read here.

    python merge_checkpoints.py zero.pt a.pt b.pt --method=ties --alpha=0.3 --output=merged.safetensors
    python merge_checkpoints.py clip-vit/ a/ b/ --options k=20 --alpha=0.3 --output=merged/   # Hugging Face folders

The first file is the pre-trained model, the others were fine-tuned from it; one that lies far from it was not, and is
refused. Files may be safetensors, torch.save files
(of open_clip's training too) or Hugging Face folders; the merged one has the names and types of the first, so that what
read that reads it. Methods that need images, or make a model for each task, are
main.py's. A model card, README.md or <output>.md, says how it was made.
"""

from pathlib import Path

from src.args import Formatter, Parser
from src.runtime.program import exit_on_user_error


@exit_on_user_error
def main(argv=None) -> None:
    parser = Parser(description=__doc__, formatter_class=Formatter)
    parser.add_argument("pretrained", type=Path, help="the pre-trained model, θ0")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="fine-tuned models")
    parser.add_argument("--method", default="sum", help="python main.py --methods lists them")
    parser.add_argument("--options", nargs="+", default=[], metavar="NAME=VALUE", help="of the method, as k=20")
    parser.add_argument("--alpha", type=float, help="the coefficient; by default the method's only or published one")
    parser.add_argument("--output", type=Path, required=True, help=".safetensors, or a folder for Hugging Face ones")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at --output already")
    parser.add_argument("--far", action="store_true", help="also models far from θ0, beyond 20 percent of its norm")
    flags = vars(parser.parse_args(argv))
    from src.merging.files import merge_files  # here, so that --help does not wait for torch

    options = dict(given.partition("=")[::2] for given in flags.pop("options"))
    merge_files(options=options, **flags)


if __name__ == "__main__":
    main()
