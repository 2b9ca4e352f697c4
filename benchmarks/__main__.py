"""Speed and memory of the suite beside the published ways: python -m benchmarks NAME [flags].

Without a name: the list. `table` runs those of the tables in docs/speed.md, which writes benchmarks/results/. Each
compares the answers of all ways before it tells a ratio, and NAME --help has its flags.
"""

import ast
import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SHARED = ("__init__", "__main__", "measure")
TABLE = (  # of docs/speed.md, as far as any machine runs them; the others need 16 GB of memory, a peer or a GPU
    "linear_step",
    "class_token",
    "mode_steps",
    "coefficient_sweep",
    "image_cache",
    "adaptation_step",
    "growth",
)


def names() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.py") if file.stem not in SHARED)


def first_line(name: str) -> str:
    """Of a program's docstring, without importing it."""
    doc = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))) or ""
    return doc.partition("\n")[0]


def main(argv: list[str]) -> None:
    known = names()
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        for name in known:
            print(f"{name:18s} {first_line(name)}")
        return
    name, *flags = argv
    if name == "table":
        for of_table in TABLE:
            print(f"\n{of_table}: {first_line(of_table)}", flush=True)
            output = FOLDER / "results" / f"{of_table}.json"
            importlib.import_module(f"benchmarks.{of_table}").main([f"--output={output}", *flags])
        return
    if name not in known:
        raise SystemExit(f"error: expected a benchmark, found {name!r}. Known: table, {', '.join(known)}")
    importlib.import_module(f"benchmarks.{name}").main(flags)


if __name__ == "__main__":
    main(sys.argv[1:])
