"""Runs the script of the project's root in the place of the forwarder in `src/` that was called."""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(script: str) -> None:
    # With src/ in front, `import datasets` would find src/datasets in the place of Hugging Face's.
    sys.path[0] = str(ROOT)
    runpy.run_path(str(ROOT / script), run_name="__main__")
