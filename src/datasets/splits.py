"""Which images of the official parts each split is, and whether one image stands in two of them."""

import numpy as np

from src.datasets.base import SPLITS, FileExamples, validation_indices
from src.datasets.examples import digest
from src.datasets.record import Piece


def cut(parts: dict[str, FileExamples], classes: int) -> dict[str, Piece]:
    """Which part, and which of its indices, each split is.

    Validation is cut from train as published (`validation_indices`), unless the set brings its own. A set that comes
    unsplit gives a tenth of each class to validation and to test, drawn with seed 0: EuroSAT's 21,600 / 2,700 / 2,700.
    """
    if "val" in parts:
        return {split: {"part": split, "indices": None} for split in SPLITS}
    if "all" in parts:
        import torch  # here, so that a script's --help does not wait for it

        generator = torch.Generator().manual_seed(0)
        chosen: dict[str, list[int]] = {split: [] for split in SPLITS}
        for label in range(classes):
            members = np.flatnonzero(parts["all"].labels == label)
            members = members[torch.randperm(len(members), generator=generator).numpy()].tolist()
            tenth = len(members) // 10
            chosen["val"] += members[:tenth]
            chosen["test"] += members[tenth : 2 * tenth]
            chosen["train"] += members[2 * tenth :]
        return {split: {"part": "all", "indices": sorted(indices)} for split, indices in chosen.items()}
    train, validation = validation_indices(len(parts["train"]))
    return {
        "train": {"part": "train", "indices": train.tolist()},
        "val": {"part": "train", "indices": validation.tolist()},
        "test": {"part": "test", "indices": None},
    }


def find_leaks(parts: dict[str, FileExamples], splits: dict[str, Piece]) -> list[tuple[str, str]]:
    """Pairs of names of images that have the same bytes and stand in two splits."""
    seen: dict[str, tuple[str, str]] = {}
    leaks = []
    for split, where in splits.items():
        examples = parts[where["part"]]
        for index in range(len(examples)) if where["indices"] is None else where["indices"]:
            name = examples.name(index)
            first_split, first_name = seen.setdefault(digest([examples.raw(index)]), (split, name))
            if first_split != split:
                leaks.append((first_name, name))
    return leaks
