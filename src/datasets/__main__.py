"""Bring the data sets here and see what is here.

python -m src.datasets prepare Cars --source hub     fetch, check, split; then loading needs no network
python -m src.datasets prepare 8                     the first 8 tasks; also 14, 20, all (with the control)
python -m src.datasets forecast 20 --source hub      what is to be fetched, and whether the disk has room for it
python -m src.datasets status                        what is there, from where, how many images
python -m src.datasets check                         what was found out of it: counts, splits, orientation, accuracies
python -m src.datasets decode 20                     decode what evaluation reads into the cache, with every core
python -m src.datasets clean                         remove what was set aside, cut short, or is unpacked already

A set that is prepared is not hashed again; `prepare --verify` does so.
"""

import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from src.args import command_parser
from src.datasets.examples import DataError
from src.datasets.facts import DEFAULT_ROOT, SOURCES
from src.datasets.fetching import bytes_to_fetch, fetch_all
from src.datasets.prepare import prepare
from src.datasets.record import Record, ready
from src.datasets.registry import FACTS, check_own
from src.datasets.status import leftovers, state
from src.datasets.vision import CONTROL, TASKS
from src.run import Run
from src.runtime import results
from src.runtime.distributed import cores
from src.runtime.messages import nearest
from src.runtime.paths import Places, from_root
from src.runtime.program import exit_on_user_error

GROUPS = {"8": TASKS[:8], "14": TASKS[:14], "20": TASKS, "all": (*TASKS, CONTROL)}
COLUMNS = ("name", "classes", "train", "val", "test", "source", "state")


COMMANDS = {
    "prepare": "fetch, check and split data sets",
    "forecast": "what prepare would fetch",
    "status": "what is there",
    "check": "what the checks found",
    "decode": "fill the cache of decoded images",
    "clean": "remove what nothing reads any more",
}
CHECKED = (
    "name",
    "state",
    "class names",
    "label order",
    "zero-shot",
    "checkpoint",
    "fine-tuned",
    "validation",
    "remarks",
)
SHOWN = 12  # digits of a hash of labels, by which two machines can be compared


def parse(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = command_parser("src.datasets", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        known = f"of {', '.join(FACTS)}; or {', '.join(GROUPS)}"
        some = "+" if name in ("prepare", "forecast", "decode") else "*"
        command.add_argument("names", nargs=some, metavar="NAME", help=known)
        command.add_argument(
            "--data-location", type=Path, default=DEFAULT_ROOT, help="folder of the data sets; default: data"
        )
    prepared, source = commands.choices["prepare"], "default: the official files if there, else the mirror"
    prepared.add_argument("--source", choices=SOURCES, help=source)
    commands.choices["forecast"].add_argument("--source", choices=SOURCES, help=source)
    prepared.add_argument("--as-is", action="store_true", help="accept other counts than the published ones")
    prepared.add_argument("--verify", action="store_true", help="hash and check again what is prepared already")
    decoded, checked = commands.choices["decode"], commands.choices["check"]
    decoded.add_argument("--side", type=int, default=224, help="pixels of the model's images; default: CLIP's 224")
    decoded.add_argument("--cache-dir", type=Path, default=Places.cache, help="default: cache")
    checked.add_argument("--model", default="ViT-B-32", help="whose zero-shot accuracies are compared")
    checked.add_argument("--save", type=Path, default=Places.save, help="folder of its checkpoints")
    checked.add_argument("--results", type=Path, default=Places.results, help="folder of results")
    flags = vars(parser.parse_args(arguments))
    for name in flags["names"]:
        check_own(name)
        if name not in FACTS and name not in GROUPS:
            parser.error(f"unknown data set {name!r}{nearest(name, list(FACTS))} Known: {', '.join((*FACTS, *GROUPS))}")
    return flags


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> int:
    flags = parse(arguments)
    names = list(dict.fromkeys(name for given in flags["names"] or FACTS for name in GROUPS.get(given, (given,))))
    root = from_root(flags["data_location"])
    if flags["command"] == "status":
        print(table([state(FACTS[name], root) for name in names], COLUMNS))
        return 0
    if flags["command"] == "check":
        return _check(names, root, flags)
    if flags["command"] == "forecast":
        return _forecast(names, root, flags["source"])
    if flags["command"] == "clean":
        return _clean(names, root)
    if flags["command"] == "decode":
        return _decode(names, root, from_root(flags["cache_dir"]), flags["side"])
    failed = []
    how = flags["source"], flags["as_is"], flags["verify"]
    unfetched = fetch_all([FACTS[name] for name in names], root, *how)
    for name in names:
        try:
            if name in unfetched:
                raise unfetched[name]
            record = prepare(FACTS[name], root, *how, fetched=True)
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


def _check(names: Sequence[str], root: Path, flags: dict[str, Any]) -> int:
    """One table of all that was found out; 1 where an accuracy is too far from the published one."""
    from src.experiments.published_accuracy import checked, doubts  # here, so that the others need not load torch

    places = Places(from_root(flags["save"]), from_root(flags["results"]), data=root)
    run = Run("vision", flags["model"], 1, TASKS, places)
    paths = {mode: run.paths.single_task(mode) for mode in ("none", "standard")}
    records = {mode: results.read(path) if path.is_file() else {"n": {}} for mode, path in paths.items()}
    rows = []
    for name in names:
        row = dict.fromkeys(CHECKED, "") | {"name": name} | checked(run, records, name)
        row["state"] = state(FACTS[name], root)["state"].partition(":")[0]
        try:
            prepared = Record.read(FACTS[name], root)
        except DataError:
            pass
        else:
            row["validation"] = prepared.other_validation or "the published images"
            official = FACTS[name].train_labels
            agrees = f"{'as' if prepared.train_labels == official else 'not as'} official" if official else "not known"
            if prepared.train_labels:  # older records have none
                row["label order"] = f"{prepared.train_labels[:SHOWN]}, {agrees}"
            row["remarks"], row["class names"] = "; ".join(prepared.remarks), prepared.class_names
        rows.append(row)
    print(table(rows, CHECKED))
    doubtful = [text for mode, record in records.items() for text in doubts(run, mode, record)]
    doubtful = [text for text in doubtful if text.partition(":")[0] in names]
    print("\n".join(doubtful), file=sys.stderr)
    return 1 if doubtful else 0


def _forecast(names: Sequence[str], root: Path, source: str | None) -> int:
    """What prepare would fetch, by the servers' word; 1 where the disk has no room for it."""
    total, unknown = 0, []
    for name in names:
        facts = FACTS[name]
        if ready(facts, root, source, as_is=True):
            print(f"{name}: prepared")
            continue
        size = bytes_to_fetch(facts, root, source)
        print(f"{name}: {'not told' if size is None else f'{size / 1e9:.2f} GB'}")
        unknown += [name] if size is None else []
        total += size or 0
    free = shutil.disk_usage(next(folder for folder in (root, *root.parents) if folder.exists())).free
    # A mirror is read from an Arrow copy, and an archive lies beside what is unpacked from it.
    without = f"; and what no server told of: {', '.join(unknown)}" if unknown else ""
    print(f"to fetch: {total / 1e9:.1f} GB, on the disk about {2 * total / 1e9:.1f}; free: {free / 1e9:.1f}{without}")
    return 1 if 2 * total > free else 0


def _clean(names: Sequence[str], root: Path) -> int:
    """Remove what `leftovers` finds."""
    removed = 0
    for name in names:
        for path in leftovers(FACTS[name], root):
            files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
            removed += sum(file.stat().st_size for file in files)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            print(f"removed {path}")
    print(f"{removed / 1e9:.2f} GB are free again")
    return 0


def _decode(names: Sequence[str], root: Path, cache: Path, side: int) -> int:
    """Decode validation and test images of several sets at once, 16 threads each."""
    from src.datasets.loading import decode_split  # here, so that the others need not load torch
    from src.runtime.parallel import map_tasks

    jobs = [(name, split) for name in names for split in ("val", "test")]
    for name in names:
        Record.read(FACTS[name], root)  # one that is not prepared is told before hours of work
    at_once = max(1, cores() // 16)
    map_tasks(partial(decode_split, root=root, folder=cache / "images", side=side), jobs, at_once, "decoding")
    return 0


def table(rows: list[dict[str, str]], columns: Sequence[str] = COLUMNS) -> str:
    """Rows as text in aligned columns."""
    rows = [dict(zip(columns, columns)), *rows]
    widths = {column: max(len(row[column]) for row in rows) for column in columns}
    return "\n".join("  ".join(row[column].ljust(widths[column]) for column in columns).rstrip() for row in rows)


if __name__ == "__main__":
    sys.exit(main())
