"""The schema of results: a record that lacks any of its keys, wherever it lies, is refused by file and key."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import synthetic_results
from typing_extensions import is_typeddict

from src import records
from src.experiments.registry import EXPERIMENTS, MERGING, module
from src.runtime.results import ResultError

SAMPLES = {
    "single_task": synthetic_results.single_task("standard", 1),
    "addition": synthetic_results.addition("linear", 1),
    "negation": synthetic_results.negation("linear", 1),
    "disentanglement": synthetic_results.disentanglement("linear", 1, points=3),
    "geometry": synthetic_results.geometry("linear", 1),
    "layerwise": synthetic_results.layerwise("linear", 1),
    "analogies": synthetic_results.analogies("linear", 1),
    "connectivity": synthetic_results.connectivity("linear", 1),
    "course": synthetic_results.course_of_adaptations("standard", 1),
    "mergeability": synthetic_results.mergeability("standard", 1),
    "merged_models": synthetic_results.merged_models("linear", 1),
    "ntk": synthetic_results.ntk(1, "trace", 4.0, points=2),
    "merging": {
        **synthetic_results.adapted("concrete_layer_wise_adamerging", synthetic_results.SEEN, 1, 0.8),
        "info": {"masks": synthetic_results.masks(synthetic_results.SEEN, 1, False)},
        "unseen": synthetic_results.unseen(1, 0.6),
        "corruption": {"name": "contrast", "severity": 5, "splits": ["test"]},
    },
    "vectors": synthetic_results.merging(1)["merging/8task/standard-visual/vectors"],
}


def keys(schema: Any, value: Any, *parents: Any) -> Iterator[tuple[Any, ...]]:
    """The path to every key that the schema requires of a value; of mappings and lists, those of the first entry."""
    if is_typeddict(schema):
        for key, hint in get_type_hints(schema).items():
            if key in schema.__required_keys__:
                yield *parents, key
            if key in value:
                yield from keys(hint, value[key], *parents, key)
    elif get_origin(schema) is UnionType:
        for choice in get_args(schema) if value is not None else ():
            yield from keys(choice, value, *parents)
    elif get_origin(schema) in (Mapping, Sequence) and value:
        first = next(iter(value)) if get_origin(schema) is Mapping else 0
        yield from keys(get_args(schema)[-1], value[first], *parents, first)


@pytest.mark.parametrize("experiment", SAMPLES)
def test_a_record_without_a_key_is_refused(experiment):
    sample = SAMPLES[experiment]
    schema = records.Vectors if experiment == "vectors" else module(experiment).Record
    assert records.checked(sample, schema, "here") is sample
    for path in keys(schema, sample):
        record: Any = copy.deepcopy(sample)
        inner = record
        for parent in path[:-1]:
            inner = inner[parent]
        del inner[path[-1]]
        with pytest.raises(ResultError, match=f"file.json: .*{'.'.join(map(str, path))}: field required"):
            records.checked(record, schema, "file.json")


def test_every_schema_has_a_sample():
    assert SAMPLES.keys() == {*EXPERIMENTS, MERGING, "vectors"}


def test_numbers_that_are_none_are_refused():
    record = copy.deepcopy(SAMPLES["addition"])
    record["test"]["mean_accuracy"] = "0.5 or so"
    with pytest.raises(ResultError, match="test.mean_accuracy.*make it again with: python eval"):
        records.checked({**record, "provenance": {"command": "python eval"}}, records.Addition, "file.json")
