"""Data sets of one's own: a YAML file each in config/data, whose name is the data set's.

    # config/data/shapes.yaml
    train: /data/shapes/train        # a folder of images for each class
    test: /data/shapes/test
    classnames: [circle, square]     # optional, in the order of the folders' names; by default these names
    templates: ['a photo of a {}.']  # optional
    epochs: 10                       # optional; else finetune.py asks for --epochs

or of the hub, with the columns of its parquet files:

    hub: owner/name                  # config, image, label, train, test: optional, as the mirrors' in vision.py
    classnames: [circle, square]

`python -m src.datasets prepare shapes` counts and splits it as the papers' sets; then every script takes it as a task
of suite vision: --tasks=shapes,MNIST. A tenth of its training images, at most 5,000, are its validation images.
"""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from src.datasets.base import Dataset
from src.datasets.facts import Facts
from src.datasets.hub import Mirror
from src.datasets.official import Layout, folder_layout
from src.datasets.record import load
from src.runtime.messages import UsageError
from src.runtime.paths import from_root

FOLDER = Path("config/data")
TEMPLATES = ("a photo of a {}.",)
KEYS = ("classnames", "templates", "epochs", "hub", "config", "image", "label", "train", "test")


def read_all(folder: Path = FOLDER) -> tuple[dict[str, tuple[Facts, Dataset]], dict[str, str]]:
    """Name -> facts and row of each file; and name -> what is wrong with it, for those that make no sense.

    One wrong file does not keep the other sets, and the scripts that read none of them, from working.
    """
    good, wrong = {}, {}
    for path in sorted(from_root(folder).glob("*.yaml")):
        try:
            good[path.stem] = read(path)
        except UsageError as error:
            wrong[path.stem] = str(error)
    return good, wrong


def read(path: Path) -> tuple[Facts, Dataset]:
    """Facts and row of one file. Raises UsageError, which names the file, what was expected and what was found."""
    import yaml  # here: few have such files

    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: expected YAML, found {type(error).__name__}: {error}") from None
    _check(path, given)
    templates, name = tuple(given.get("templates", TEMPLATES)), path.stem
    layouts: tuple[Layout, ...] = ()
    mirror: Mirror | None = None
    if repo := given.get("hub"):
        columns = {key: given[key] for key in ("config", "image", "label", "train", "test") if key in given}
        mirror = Mirror(repo, **columns)
    else:
        parts = {part: from_root(str(given[part])) for part in ("train", "test")}
        base = os.path.commonpath(parts.values())
        relative = {part: os.path.relpath(folder, base) for part, folder in parts.items()}
        layouts = (folder_layout(base, partial(_spellings, path, parts["train"]), **relative),)
    classnames = tuple(map(str, given.get("classnames") or _words(_folders(path, parts["train"]))))
    facts = Facts(name, classnames, {}, layouts, mirror)
    about = {"licence": "not stated", "source": repo or given["train"]}
    return facts, Dataset(name, "vision", classnames, templates, partial(load, facts), given.get("epochs"), about=about)


def _check(path: Path, given: Any) -> None:
    if not isinstance(given, Mapping):
        raise UsageError(f"{path}: expected keys such as train and test, found {type(given).__name__}")
    if unknown := [key for key in given if key not in KEYS]:
        raise UsageError(f"{path}: expected keys among {', '.join(KEYS)}, found {', '.join(map(str, unknown))}")
    if "hub" in given and not given.get("classnames"):
        raise UsageError(f"{path}: expected classnames, in the order of the labels of {given['hub']}, found none")
    if "hub" not in given and not {"train", "test"} <= given.keys():
        raise UsageError(f"{path}: expected the folders train and test, or hub: owner/name; found {', '.join(given)}")
    templates = given.get("templates", TEMPLATES)
    if not (isinstance(templates, list | tuple) and templates and all(str(t).count("{}") == 1 for t in templates)):
        raise UsageError(f"{path}: expected templates as texts with one {{}} for the class name, found {templates!r}")


def _folders(path: Path, train: Path) -> list[str]:
    """Names of the class folders, in the order of the labels."""
    names = sorted(folder.name for folder in train.iterdir() if folder.is_dir()) if train.is_dir() else []
    if not names:
        raise UsageError(f"{path}: expected a folder of images for each class in {train}, found none")
    return names


def _words(folders: list[str]) -> list[str]:
    return [name.replace("_", " ") for name in folders]


def _spellings(path: Path, train: Path) -> list[tuple[str]]:
    """The folders of every part are those of train."""
    return [(name,) for name in _folders(path, train)]
