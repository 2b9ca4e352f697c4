"""What results of merging are called, and the list of the methods."""

import inspect
import sys
import zlib
from collections.abc import Mapping, Sequence

from src.datasets import registry
from src.merging.registry import registered


def tasks_name(suite: str, tasks: Sequence[str], encoders: Mapping[str, str] | None = None) -> str:
    """`8task` for the first 8 of the suite, as published; other sets, or encoders, add a checksum of their names."""
    count, encoders = len(tasks), encoders or {}
    if tuple(tasks) == registry.suite(suite).tasks[:count] and not encoders:
        return f"{count}task"
    names = " ".join(sorted(f"{task}={encoders.get(task, '')}" for task in tasks))
    return f"{count}task_{zlib.crc32(names.encode()):08x}"


def folder(suite: str, tasks: Sequence[str], mode: str, scope: str, encoders: Mapping[str, str] | None = None) -> str:
    """Of the results of these tasks, in the folder of a seed."""
    return f"merging/{tasks_name(suite, tasks, encoders)}/{mode}-{scope}"


def unseen_label(label: str, unseen: Sequence[str]) -> str:
    """The label of a result that scores further tasks."""
    return f"{label}_unseen={'+'.join(unseen)}" if unseen else label


def listing() -> str:
    """Every method: name, title, paper, what it needs, its first line, and its options with their defaults."""
    lines = []
    for cls in registered():
        first = next(iter((own_doc(cls) or file_doc(cls)).splitlines()), "")
        paper = f", arXiv:{cls.paper}" if cls.paper else ""
        lines += [f"{cls.name}: {cls.title}{paper} (needs {cls.needs})", f"    {first}"]
        lines += [f"    method.{option}={value}" for option, value in cls.defaults().items()]
    return "\n".join(lines)


def own_doc(cls: type) -> str:
    """The docstring of a method's class; empty where it has none, or its signature alone, which dataclasses write."""
    doc = cls.__doc__ or ""
    return "" if doc.startswith(f"{cls.__name__}(") else inspect.cleandoc(doc)


def file_doc(cls: type) -> str:
    """The head of a method's file: the formulas of all methods in it."""
    return inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")
