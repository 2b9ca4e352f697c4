"""Files of data sets from the official servers or the hub, several sets at a time."""

from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from src.datasets import hub
from src.datasets.download import remote_size
from src.datasets.examples import DataError
from src.datasets.facts import Facts
from src.datasets.record import ready
from src.runtime.paths import expanded

AT_ONCE = 4  # sets that are fetched at a time: a mirror's files come eight at a time


def fetch_all(
    every: Sequence[Facts], root: Path, source: str | None, as_is: bool = False, verify: bool = False
) -> dict[str, DataError]:
    """Bring the files of several sets, AT_ONCE at a time; gives why a set could not be fetched, by name.

    Sets that share a server's files or a mirror are fetched one after the other.
    """
    root = expanded(root)

    def shared(facts: Facts) -> str:
        from_mirror = facts.mirror and source_of(facts, root, source) == "hub"
        return facts.mirror.repo if facts.mirror and from_mirror else facts.layouts[0].folder

    def fetch(group: Sequence[Facts]) -> dict[str, DataError]:
        failed = {}
        for facts in group:
            try:
                if verify or not ready(facts, root, source, as_is):
                    fetch_files(facts, root, source_of(facts, root, source))
            except DataError as error:
                failed[facts.name] = error
        return failed

    groups: dict[str, list[Facts]] = {}
    for facts in every:
        groups.setdefault(shared(facts), []).append(facts)
    failed: dict[str, DataError] = {}
    broken: list[Exception] = []
    waiting: SimpleQueue[list[Facts]] = SimpleQueue()
    for group in groups.values():
        waiting.put(group)

    def work() -> None:
        while not broken:
            try:
                failed.update(fetch(waiting.get_nowait()))
            except Empty:
                return
            except Exception as error:  # raised again where the user sees it
                broken.append(error)

    # Daemons, unlike those of an executor, do not keep a program that is stopped from its end.
    threads = [Thread(target=work, daemon=True) for _ in range(min(AT_ONCE, len(groups)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if broken:
        raise broken[0]
    return failed


def source_of(facts: Facts, root: Path, source: str | None) -> str:
    return source or ("official" if facts.layout(root) else "hub")


def fetch_files(facts: Facts, root: Path, source: str) -> None:
    """Bring the files, where they are not there."""
    if source == "hub":
        hub.fetch(facts.require_mirror(root), root)
    elif facts.layout(root) is None:
        try:
            if any(download.interrupted(root) for download in facts.otherwise):
                raise DataError(f"{facts.name}: an unpacking was cut short, and goes on")
            for download in facts.downloads:
                download.fetch(root, facts.how_to_get(root))
        except DataError as error:
            if not facts.otherwise:
                raise
            print(f"{str(error).splitlines()[0]}\n{facts.name}: taking {facts.otherwise[0].url}")
            for download in facts.otherwise:
                download.fetch(root, facts.how_to_get(root))


def bytes_to_fetch(facts: Facts, root: Path, source: str | None) -> int | None:
    """What `prepare` would fetch of a set, by the servers' word; None where one does not tell, or does not answer."""
    if source_of(facts, root, source) == "hub":
        try:
            snapshot = hub.describe(mirror := facts.require_mirror(root), root)
            files, lacking = snapshot.files, snapshot.missing(mirror.folder(root))
        except DataError:
            return None
        return sum(files[name]["size"] for name in lacking)
    if facts.layout(root):
        return 0
    sizes = [remote_size(download.url) for download in facts.downloads if not download.path(root).exists()]
    return None if facts.by_hand or None in sizes else sum(size or 0 for size in sizes)
