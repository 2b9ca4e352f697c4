"""Whether single-task accuracies are the published ones: what tells of wrong labels, names, crops or weights.

Data from a mirror, its class names, CLIP's weights and a published checkpoint can each be wrong without a word. The
accuracy of the pre-trained model, and of a published checkpoint on its own task, was published; on the same images it
repeats to a few hundredths (mirrors: 0.7 points at most, EuroSAT's other split 1.5).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from src import checkpoints, store
from src.datasets.vision import FACTS
from src.model_names import ModelName
from src.reporting.published import published, published_model
from src.run import Run

TOLERANCE = {"none": 1.5, "standard": 1.0}  # points
OTHER_SPLIT = 4.0  # points, for EuroSAT, which has no official split
CLEAN_ONLY = ("DTD", "EuroSAT")  # published checkpoints have seen test images of theirs, or may have
PAPERS = {"fusion_bench": "fusionbench", "tall": "tall"}  # publisher -> column `paper` of published.csv
CAUSES = {
    "none": "Likely causes: class names or labels of another order, images of another size or orientation, weights or "
    "an activation that are not OpenAI's, another crop",
    "standard": "Likely causes: a head of other class names than it was fine-tuned against, another pre-trained model, "
    "another split of the data",
}


def doubts(run: Run, mode: str, record: Mapping[str, Any]) -> list[str]:
    """A sentence for each data set whose test accuracy is too far from the published one."""
    return [text for dataset in FACTS if dataset in record for text in _doubt(run, mode, record, dataset)]


def _doubt(run: Run, mode: str, record: Mapping[str, Any], dataset: str) -> Iterator[str]:
    theirs = expected(run, mode, dataset)
    if theirs is None or record["n"][dataset] != _test_images(dataset):
        return
    ours, tolerance = 100 * record[dataset], OTHER_SPLIT if dataset == "EuroSAT" else TOLERANCE[mode]
    if abs(ours - theirs) > tolerance:
        yield (
            f"{dataset}: expected the published accuracy of {theirs:.1f} % within {tolerance:g} points, found "
            f"{ours:.1f} %. {CAUSES[mode]}. Look at: python -m src.datasets check {dataset}"
        )


def checked(run: Run, records: Mapping[str, Mapping[str, Any]], dataset: str) -> dict[str, str]:
    """Cells of the table of `python -m src.datasets check`. records: single-task results of "none" and "standard"."""
    cells = {}
    for mode, column in (("none", "zero-shot"), ("standard", "fine-tuned")):
        theirs, ours = expected(run, mode, dataset), records[mode].get(dataset)
        parts = ("" if ours is None else f"{100 * ours:.1f} %", "" if theirs is None else f"[{theirs:.1f}]")
        cells[column] = " ".join(part for part in parts if part)
    path = run.paths.checkpoint(dataset, "standard")
    if path.is_file():
        header, theta0 = checkpoints.header(path), store.written_fingerprints(run).get("image")
        began = header.get("began_at")
        start = "of this θ0" if began == theta0 else "of another θ0"
        start = start if began and theta0 else "θ0 not compared"
        cells["checkpoint"] = f"{store.publisher_of(header) or 'made here'}, {start}"
    return cells


def expected(run: Run, mode: str, dataset: str) -> float | None:
    """The published test accuracy of what a run evaluates, in percent; None where none was published."""
    if run.corruption or ModelName.parse(run.model).random or published_model(run.model) != run.model:
        return None
    publisher = store.publisher(run, dataset)
    if mode == "none":
        of_control = published(run.model, "atlas", "single-task", "Pre-trained", dataset, "accuracy")
        paper = "fusionbench" if publisher == "fusion_bench" else "lines"
        return of_control if dataset == run.control else _published(run, paper, "Pre-trained", dataset)
    if mode != "standard" or publisher not in PAPERS or dataset in CLEAN_ONLY:
        return None
    return _published(run, PAPERS[publisher], "Fine-tuned", dataset)


def _published(run: Run, paper: str, method: str, dataset: str) -> float | None:
    return published(run.model, paper, "single-task", method, dataset, "accuracy")


def _test_images(dataset: str) -> int:
    count = FACTS[dataset].counts["test"]
    return count if isinstance(count, int) else sum(count)
