"""From files, wherever they come from, to a set that can be loaded: fetched, counted, checked for leaks, recorded."""

from pathlib import Path

import numpy as np

from src.datasets.base import FileExamples
from src.datasets.classnames import CLASSNAMES
from src.datasets.download import set_aside
from src.datasets.examples import BadFile, DataError, digest
from src.datasets.facts import Facts
from src.datasets.fetching import fetch_files, source_of
from src.datasets.record import Record, by_class, difference, ready, split_size
from src.datasets.splits import cut, find_leaks
from src.runtime.paths import expanded

MOST_LEAKS = 0.01  # share of the test images that may stand in another split too: a few are in official sets


def prepare(
    facts: Facts,
    root: Path,
    source: str | None = None,
    as_is: bool = False,
    verify: bool = False,
    fetched: bool = False,
) -> Record:
    """Fetch what is not there, check everything, and write the record that `load` reads.

    source: "official", "hub", or None for the official files if they are there and the mirror if not.
    as_is: take other counts than the published ones, and leaks, as they are, and record that (a subset, a fake).
    verify: hash every file again, and check everything, also of a set that is ready.
    fetched: `fetch_all` brought what was not there.
    Raises DataError; where the files are at fault, an older record of the set is gone then, for nothing vouches for
    them. A record survives what is stopped on the way, and a network that fails.
    """
    root = expanded(root)
    if not verify and (record := ready(facts, root, source, as_is)):
        return record
    source = source_of(facts, root, source)
    if not fetched:
        fetch_files(facts, root, source)
    try:
        return _checked(facts, root, source, as_is)
    except DataError:
        Record.path(root, facts.name).unlink(missing_ok=True)
        raise


def _checked(facts: Facts, root: Path, source: str, as_is: bool) -> Record:
    """Read, count and split the files that are there, and write the record."""
    origin = facts.origin(source, root)
    try:
        parts = {part: facts.read(source, root, part) for part in facts.parts(source, root)}
    except BadFile as error:
        again = facts.command(root, source)
        if source == "official" and error.path.is_file():
            raise DataError(f"{error}\nSet aside as {set_aside(error.path).name}. Fetch it anew: {again}") from error
        raise DataError(f"{error}\nComplete it, or remove it and run: {again}") from error
    counts = {part: by_class(examples, facts) for part, examples in parts.items()}
    wrong = {part: problem for part in counts if (problem := _wrong(facts, part, counts[part]))}
    notes = [f"{part}: {problem}" for part, problem in wrong.items()]
    if wrong and not as_is:
        files = [file for part in wrong for file in getattr(parts[part], "files", ())] if facts.downloads else []
        aside = ", ".join(str(set_aside(file)) for file in files)
        listed = "\n  ".join(notes)
        raise DataError(
            f"{facts.name} from {origin} is not the published set:\n  {listed}\n"
            + (f"Set aside: {aside}. Run the same command again to fetch anew.\n" if aside else "")
            + f"To use it nevertheless, under its own numbers: {'rename it back and ' if aside else ''}add --as-is"
        )
    splits = cut(parts, len(facts.classnames))
    remarks = [remark for examples in parts.values() for remark in getattr(examples, "remarks", ())]
    leaks = find_leaks(parts, splits) if facts.guarded else []
    if facts.guarded and not leaks:
        remarks.append("no image stands in two splits")
    elif leaks:
        shown = "\n  ".join(" = ".join(pair) for pair in leaks[:5])
        leak = f"{len(leaks)} images stand in two splits"
        few_enough = len(leaks) <= MOST_LEAKS * split_size(counts, splits["test"])
        (remarks if few_enough else notes).append(leak)
        if not (as_is or few_enough):
            raise DataError(
                f"{facts.name} from {origin} leaks: {leak}, so its test accuracy would say nothing:\n  {shown}\n"
                f"Take another copy: {facts.command(root, 'hub' if source == 'official' else 'official')}"
            )
    order = digest([np.ascontiguousarray(parts[next(iter(parts))].labels, dtype=np.int64).tobytes()])
    other = other_validation(facts, source, parts, bool(wrong), order)
    record = Record(
        facts.name,
        source,
        origin,
        not notes,
        counts,
        splits,
        notes,
        other,
        order,
        list(dict.fromkeys(remarks)),
        getattr(next(iter(parts.values())), "class_names", ""),
    )
    record.write(root)
    return record


def other_validation(facts: Facts, source: str, parts: dict[str, FileExamples], wrong: bool, order: str) -> str:
    """Why the pinned validation positions are not the published images; empty where they are.

    The published split is one of positions, so that it holds in the official order of the training images alone.
    order: the hash of the training labels as they stand.
    """
    if facts.name not in CLASSNAMES:  # a set of one's own, of which nobody published checkpoints
        return ""
    if facts.other_order and (source == "official" or "all" in facts.counts):
        return facts.other_order
    if wrong:
        return "it does not hold the published images"
    rows = f"the rows of {facts.mirror.repo}" if facts.mirror and source == "hub" else "its training images"
    if facts.train_labels:
        return "" if order == facts.train_labels else f"{rows} stand in another order than the official ones"
    if source == "official" or getattr(parts["train"], "official", False):
        return ""
    return f"{rows} are not known to stand in the official order"


def _wrong(facts: Facts, part: str, counts: list[int]) -> str:
    """How a part differs from the published one; empty when it does not."""
    expected = facts.counts.get(part)
    if expected is None or isinstance(expected, int):
        if expected is not None and sum(counts) != expected:
            return f"expected {expected} images, found {sum(counts)}"
        empty = [facts.classnames[label] for label, count in enumerate(counts) if not count]
        return f"expected images of every class, found none of {', '.join(empty[:5])}" if empty else ""
    return "" if counts == list(expected) else difference(list(expected), counts, facts.classnames)
