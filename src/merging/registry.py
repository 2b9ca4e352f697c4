"""All merging methods, and the facts about each that tables, figures and reproduce.py read."""

import importlib
import pkgutil
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from src.experiments.stages import OF_METHODS
from src.merging.base import Method, Variant
from src.runtime.messages import nearest
from src.runtime.paths import METHOD_CONFIGS

LONGEST_LABEL = 160  # bytes: names of files have at most 255, and masks and states add to theirs
WEIGHTS = "weights"  # what a method needs that takes nothing else

METHODS: dict[str, type[Method]] = {}  # by every spelling of `method=`; filled by `register`
SCHEMAS: dict[str, type[Method] | Method] = {}  # of main.py's configuration: a class, or an instance of other defaults
_given: dict[tuple[str, str], type[Method] | Method] = {}  # by group and name: what Hydra has already


def register(
    name: str,
    *spellings: str,
    title: str = "",
    paper: str = "",
    published: Mapping[str, str] | None = None,
    stage: str | None = None,
    needs: str = WEIGHTS,
    after: str | None = None,
    untuned: float | None = None,
    compared: bool = False,
    studied: bool = False,
    variants: Sequence[Variant] = (),
) -> Callable[[type[Method]], type[Method]]:
    """Make a dataclass known as `method=<name>`; a name with slashes is a folder of config/method/.

    spellings: further ones of `method=`; results are called by the name.
    title, published, stage, compared, studied: as in Variant, of the method with its default options; variants: others.
    paper: its arXiv number. needs: WEIGHTS, or what else it takes. after: the method whose files it reads.
    untuned: the published default of the coefficient that validation chooses, if there is one.
    Raises TypeError when the class is no (non-frozen) dataclass with a `merge`, ValueError when a name or a title is
    taken and for an unknown stage.
    """

    def decorate(cls: type[Method]) -> type[Method]:
        if not (is_dataclass(cls) and issubclass(cls, Method)) or cls.__dataclass_params__.frozen:
            raise TypeError(f"expected method {name!r} to be a non-frozen dataclass and a Method; got {cls}")
        named = title or name.replace("_", " ")
        usual = Variant(named, {}, published or {}, stage, compared=compared, studied=studied)
        cls.name, cls.title, cls.paper, cls.needs, cls.after = name, usual.title, paper, needs, after
        cls.untuned = untuned
        cls.variants = tuple(replace(v, method=name) for v in (usual, *variants))
        for variant in cls.variants:
            _check(variant, cls)
        for spelling in (name, *spellings):
            _store(spelling, cls, cls)
        for variant in cls.variants:
            if variant.spelling:
                _store(variant.spelling, cls, cls(**variant.options))
        return cls

    return decorate


def _check(variant: Variant, cls: type[Method]) -> None:
    """Raise ValueError for a title that another method has, and for an unknown stage."""
    if variant.stage not in (None, *OF_METHODS):
        raise ValueError(f"{cls}: stage {variant.stage!r} does not exist{nearest(variant.stage or '', OF_METHODS)}")
    others = {other for other in METHODS.values() if _identity(other) != _identity(cls)}
    for other in others:
        if variant.title in [row.title for row in other.variants]:
            raise ValueError(f"two merging methods have the title {variant.title!r}: {other} and {cls}")


def _identity(cls: type[Method]) -> tuple[str, str]:
    """A class that is made twice, as by a module that is run and imported, is one method."""
    return cls.__module__, cls.__qualname__


def _store(spelling: str, cls: type[Method], node: type[Method] | Method) -> None:
    taken = METHODS.setdefault(spelling, cls)
    if _identity(taken) != _identity(cls):
        raise ValueError(f"two merging methods are called {spelling!r}: {METHODS[spelling]} and {cls}")
    SCHEMAS[spelling] = node


def load_methods() -> None:
    """Import every module of this folder; each registers its methods."""
    _import_all(tuple(importlib.import_module("src.merging").__path__))


@cache  # tables ask for the methods thousands of times
def _import_all(folders: tuple[str, ...]) -> None:
    for module in pkgutil.iter_modules(folders, "src.merging."):
        importlib.import_module(module.name)


def registered() -> list[type[Method]]:
    """Every method once, in the order of its paper: the order of the tables. Those without a paper come last."""
    load_methods()
    return sorted(dict.fromkeys(METHODS.values()), key=lambda cls: (cls.paper or "~", cls.__module__))


def config_schemas() -> Iterator[tuple[str, str, type[Method] | Method]]:
    """(group, name, node) of every spelling, for Hydra; a YAML takes the method's name and builds on its schema."""
    load_methods()
    for spelling, schema in SCHEMAS.items():
        group, _, name = f"method/{spelling}".rpartition("/")
        yield group, f"base_{name}" if (METHOD_CONFIGS / f"{spelling}.yaml").exists() else name, schema


def new_config_schemas() -> Iterator[tuple[str, str, type[Method] | Method]]:
    """Those that were not given before, or are others by now: reproduce.py calls main.py some hundred times."""
    for group, name, schema in config_schemas():
        if _given.get((group, name)) is not schema:
            _given[group, name] = schema
            yield group, name, schema


def variants(stage: str | None = None) -> list[Variant]:
    """The rows of the tables, in order; with a stage, those that it runs."""
    rows = [variant for cls in registered() for variant in cls.variants]
    return rows if stage is None else [variant for variant in rows if variant.stage == stage]


def label(method: Method, search: Mapping[str, Sequence[Any]] | None = None) -> str:
    """The method's name with the options that are not its defaults: `ties_k=10`; files by their name and a checksum.

    search: the options that validation chooses among: `ties_search_k=10+20`. A longer label than a file's name may be
    ends in a checksum; results are told apart by what they hold.
    """
    changed = []
    for option, default in method.defaults().items():
        if (value := getattr(method, option)) != default:
            changed.append(f"{option}={_text(value)}")
    if search:
        changed += ["search", *(f"{option}={'+'.join(map(_text, values))}" for option, values in search.items())]
    whole = "_".join([method.name, *(re.sub(r"[^\w.=+-]+", "-", text) for text in changed)])
    if len(whole.encode()) <= LONGEST_LABEL:
        return whole
    return f"{whole.encode()[: LONGEST_LABEL - 9].decode(errors='ignore')}-{zlib.crc32(whole.encode()):08x}"


def variant_label(variant: Variant) -> str:
    """The name of its results."""
    load_methods()
    return label(METHODS[variant.method](**variant.options))


def _text(value: Any) -> str:
    if isinstance(value, str) and "/" in value:
        return f"{Path(value).stem}-{zlib.crc32(value.encode()):08x}"
    return f"{value:g}" if isinstance(value, float) else str(value)
