"""Task arithmetic and model merging. README.md shows the layout.

A script that is stopped while Python still imports it says so in a line, as one does that is at work.
"""

import sys
from pathlib import Path
from types import TracebackType

STOPPED = "stopped; the same command goes on"


def _hook(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print(STOPPED, file=sys.stderr, flush=True)
    else:
        sys.__excepthook__(kind, error, where)


def _is_of_the_project() -> bool:
    """Whether the program is a script of the project, or `python -m` of one of its packages."""
    root = Path(__file__).resolve().parent.parent
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script:
        return Path(script).resolve().parent in (root, root / "src")
    words = sys.orig_argv
    return "-m" in words[:-1] and words[words.index("-m") + 1].partition(".")[0] in ("src", "benchmarks")


if _is_of_the_project():
    sys.excepthook = _hook  # nobody else's: the package may be a library's
