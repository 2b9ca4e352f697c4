"""The papers, in the order in which their tables, figures and claims stand.

A paper is a folder beside this file. Its modules offer, each in a tuple of that name,

    tables.py    TABLES: functions of Runs that yield Tables
    figures.py   FIGURES: `Drawing`s, functions of Runs that give a figure, with its name
    claims.py    CLAIMS: `Claim`s

To add a paper: a row here, and a folder with those of the modules that it needs.
"""

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Paper:
    """folder: of its modules. title: above its claims."""

    folder: str
    title: str

    def offers(self, module: str) -> tuple[Any, ...]:
        """The tuple of one of its modules; empty where it has no such module."""
        name = f"src.reporting.{self.folder}.{module}"
        if importlib.util.find_spec(name) is None:
            return ()
        return getattr(importlib.import_module(name), module.upper())


PAPERS = (
    Paper("tangent", "Task arithmetic in the tangent space (arXiv:2305.12827)"),
    Paper("tall", "Localizing task information for improved model merging and compression (arXiv:2405.07813)"),
    Paper("concrete", "Concrete subspace learning based interference elimination (arXiv:2312.06173)"),
    Paper("comparison", "Methods beside each other"),
)


def offered(module: str) -> list[Any]:
    """What all papers offer in `tables`, `figures` or `claims`."""
    return [item for paper in PAPERS for item in paper.offers(module)]
