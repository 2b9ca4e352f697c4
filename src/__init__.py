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


_ROOT = Path(__file__).resolve().parent.parent
if Path(getattr(sys.modules["__main__"], "__file__", None) or "/").resolve().parent in (_ROOT, _ROOT / "src"):
    sys.excepthook = _hook  # nobody else's: the package may be a library's
