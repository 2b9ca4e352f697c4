"""Made-up results in the schema that the scripts write, for tests of tables, figures and claims: no model is run.

Every record is checked against src/records.py before it is written. Numbers follow formulas, not a random generator, so
that they are the same with every version of every library.
"""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from src import records
from src.correctness import pack
from src.datasets import registry
from src.experiments import analogies as analogous
from src.experiments import connectivity as connected
from src.experiments import course as adaptive
from src.experiments import disentanglement as disentangled
from src.experiments import geometry as geometric
from src.experiments import layerwise as layered
from src.experiments import mergeability as paired
from src.experiments import merged_models as seen
from src.experiments import negation as negated
from src.experiments import ntk as kernel
from src.experiments import single_task as solo
from src.experiments.registry import (
    ADDITION,
    ANALOGIES,
    CONNECTIVITY,
    COURSE,
    DISENTANGLEMENT,
    EXPERIMENTS,
    GEOMETRY,
    LAYERWISE,
    MERGEABILITY,
    MERGED_MODELS,
    NEGATION,
    NTK,
    SINGLE_TASK,
    module,
)
from src.merging.names import folder, unseen_label
from src.merging.registry import METHODS, label, load_methods
from src.modes import EVALUATED, TRAINED, usual

SUITE = registry.suite("mini")
TASKS, CONTROL = SUITE.default, SUITE.control
N = 400  # test images of each data set
SINGLE = {"none": 0.52, "standard": 0.94, "linear": 0.92, "posthoc": 0.85}
ADDED = {"standard": 0.74, "linear": 0.78, "posthoc": 0.70}
Chosen = tuple[str, tuple[tuple[str, Any], ...]]  # a method, and options that are not its defaults
TIES = (("use_ties", True),)
MERGED: dict[Chosen, float] = {
    ("zeroshot", ()): 0.52,
    ("average", ()): 0.66,
    ("sum", ()): 0.74,
    ("ties", ()): 0.75,
    ("consensus", ()): 0.76,
    ("consensus", TIES): 0.755,
    ("mag_masking", ()): 0.86,
    ("tall_mask", ()): 0.935,
    ("tall_mask", TIES): 0.937,
}


def write(folder: Path, seeds=(1, 2, 3), model: str = SUITE.model, merges: bool = True) -> Path:
    """Results of the mini suite under `folder`, with and without pre-training; gives `folder`."""
    for seed in seeds:
        for name, record in pretrained(seed, merges).items():
            dump(folder / "mini" / model / f"seed_{seed}" / f"{name}.json", record)
        for name, record in random_init(seed).items():
            dump(folder / "mini" / f"{model}__init__" / f"seed_{seed}" / f"{name}.json", record)
    return folder


def dump(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record with its provenance, checked against the schema that its name stands for."""
    names = {row.result(choice): row.name for row in EXPERIMENTS.values() for choice in row.choices}
    document = json.loads(json.dumps({**record, "provenance": {"command": "made up", "config": {}}}))
    schema = records.Vectors if path.stem == "vectors" else module(names.get(path.stem, "merging")).Record
    records.checked(document, schema, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


def pretrained(seed: int, merges: bool = True) -> dict[str, Mapping[str, Any]]:
    """name -> record, of one seed."""
    made: dict[str, Mapping[str, Any]] = {SINGLE_TASK.result("none"): single_task("none", seed)}
    for mode in usual(EVALUATED):
        made[SINGLE_TASK.result(mode)] = single_task(mode, seed)
        made[ADDITION.result(mode)] = addition(mode, seed)
        made[NEGATION.result(mode)] = negation(mode, seed)
        made[DISENTANGLEMENT.result(mode)] = disentanglement(mode, seed)
    for mode in usual(TRAINED):
        made[GEOMETRY.result(mode)] = geometry(mode, seed)
    for mode in usual(EVALUATED):
        made[LAYERWISE.result(mode)] = layerwise(mode, seed)
        made[CONNECTIVITY.result(mode)] = connectivity(mode, seed)
        made[ANALOGIES.result(mode)] = analogies(mode, seed)
        made[MERGED_MODELS.result(mode)] = merged_models(mode, seed)
    made[COURSE.result("standard")] = course_of_adaptations("standard", seed)
    made[MERGEABILITY.result("standard")] = mergeability("standard", seed)
    for reduction in NTK.choices:
        made[NTK.result(reduction)] = ntk(seed, reduction, 6.0 if reduction == "trace" else 4.0)
    if merges:
        made |= merging(seed) | adapting(seed)
    return made


def random_init(seed: int) -> dict[str, Mapping[str, Any]]:
    made: dict[str, Mapping[str, Any]] = {SINGLE_TASK.result("none"): single_task("none", seed, level=0.08)}
    for mode, level in zip(usual(TRAINED), (0.55, 0.43)):
        made[SINGLE_TASK.result(mode)] = single_task(mode, seed, level=level)
        made[ADDITION.result(mode)] = merge(TASKS, mode, seed, 0.10, 0.08, level)
    return made | {NTK.result(reduction): ntk(seed, reduction, 1.2) for reduction in NTK.choices}


def wobble(*key: float) -> float:
    """Between −1 and 1, without a pattern that the eye can see."""
    return math.sin(sum((12.9898 + 65.233 * i) * (value + 1) for i, value in enumerate(key)))


def bits(accuracy: float, seed: int, model: float, n: int = N) -> str:
    """Which of n images are right, with this accuracy to the next image: the easy ones, the same for similar models."""
    difficulty = (np.arange(n) * 0.618034 + 0.37 * seed) % 1 + 0.2 * np.sin(np.arange(n) * (12.9898 + model + seed))
    correct = np.zeros(n, bool)
    correct[np.argsort(difficulty)[: round(accuracy * n)]] = True
    return pack(correct)


def single_task(mode: str, seed: int, level: float | None = None) -> Mapping[str, Any]:
    level = SINGLE[mode] if level is None else level
    spread = 0.5 * level * (1 - level)
    accuracies = {task: level + spread * wobble(i) + 0.006 * wobble(i, seed) for i, task in enumerate(TASKS)}
    accuracies |= {f"{task}{records.SUFFIXES['val']}": value + 0.002 for task, value in accuracies.items()}
    control = 0.97 if mode == "none" else 0.9 + 0.01 * wobble(seed)
    accuracies |= {CONTROL: control, f"{CONTROL}{records.SUFFIXES['val']}": control}
    about: solo.Record = {
        "losses": {field: 1.5 * (1 - value) for field, value in accuracies.items()},
        "n": dict.fromkeys(accuracies, N),
        "control_per_task": {},
        "correct": {task: bits(accuracies[task], seed, level) for task in TASKS},
    }
    return {**accuracies, **about}


def merge(
    tasks: Sequence[str],
    mode: str,
    seed: int,
    level: float,
    start: float,
    single: float,
    settings: Sequence[float] = (0.0, 0.5, 1.0),
) -> records.Addition:
    """A record of merging/evaluate.py. level, start, single: accuracies of the merge, of θ0, of fine-tuning."""
    middle = len(settings) // 2
    accuracy = {t: level + 0.05 * wobble(i) + 0.005 * wobble(i, seed, level) for i, t in enumerate(tasks)}
    zeroshot = {t: start + 0.5 * start * (1 - start) * wobble(i) for i, t in enumerate(tasks)}
    alone = {t: single + 0.02 * wobble(i, 7) for i, t in enumerate(tasks)}
    curves = {t: [accuracy[t] - 0.3 * (s - settings[middle]) ** 2 for s in settings] for t in tasks}
    return {
        "tasks": list(tasks),
        "finetuning_mode": mode,
        "settings": list(settings),
        "chosen_per_task": False,
        "chosen": dict.fromkeys(tasks, settings[middle]),
        "at_edge": False,
        "val": {
            "accuracy": curves,
            "mean_accuracy": [mean(c[i] for c in curves.values()) for i in range(len(settings))],
            "mean_normalised": [mean(c[i] / alone[t] for t, c in curves.items()) for i in range(len(settings))],
        },
        "test": {
            **summary(accuracy, alone),
            "loss": {task: 1.5 * (1 - value) for task, value in accuracy.items()},
            "correct": {task: bits(value, seed, level) for task, value in accuracy.items()},
        },
        "zeroshot": summary(zeroshot, alone),
        "denominators": {"val": alone, "test": alone},
        "n": {"val": dict.fromkeys(tasks, 400), "test": dict.fromkeys(tasks, N)},
        "info": {},
    }


def summary(accuracy: Mapping[str, float], alone: Mapping[str, float]) -> records.Summary:
    normalised = {task: value / alone[task] for task, value in accuracy.items()}
    return {
        "accuracy": accuracy,
        "normalised": normalised,
        "mean_accuracy": mean(accuracy.values()),
        "mean_normalised": mean(normalised.values()),
    }


def mean(values) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def addition(mode: str, seed: int) -> records.Addition:
    return merge(TASKS, mode, seed, ADDED[mode], SINGLE["none"], SINGLE[mode], [i / 20 for i in range(21)])


def negation(mode: str, seed: int) -> negated.Record:
    """Target falls and control slowly after it; the third task's control is never kept in posthoc."""
    coefs = [i / 20 for i in range(21)]
    speed = {"standard": 2.0, "linear": 4.0, "posthoc": 3.0}[mode]
    tasks = {}
    for i, task in enumerate(TASKS):
        target = [0.52 * math.exp(-speed * a) + 0.03 * wobble(i) + 0.005 * wobble(i, seed) + 0.04 for a in coefs]
        control = [0.97 - 0.25 * a**2 for a in coefs]
        kept = not (mode == "posthoc" and i == 2)
        alpha = 0.4 if kept else 0.0
        tasks[task] = {
            "alpha": alpha,
            "control_kept": kept,
            "val": {"target": target, "control": control},
            "test": {
                **(at_alpha := {"target": target[coefs.index(alpha)], "control": control[coefs.index(alpha)]}),
                "correct": {name: bits(value, seed, speed) for name, value in at_alpha.items()},
            },
        }
    return {
        "finetuning_mode": mode,
        "control": CONTROL,
        "control_threshold": 0.95,
        "coefs": coefs,
        "pretrained_control": {"val": 0.97, "test": 0.97},
        "control_correct": bits(0.97, seed, SINGLE["none"]),
        "tasks": tasks,
        "mean_target": mean(r["test"]["target"] for r in tasks.values()),
        "mean_control": mean(r["test"]["control"] for r in tasks.values()),
        "n": {"val": {CONTROL: 504}, "test": dict.fromkeys((*TASKS, CONTROL), N)},
    }


def disentanglement(mode: str, seed: int, points: int = 13) -> disentangled.Record:
    """ξ grows away from the axes, where one coefficient is zero and nothing can interfere."""
    alphas = [-3 + 6 * i / (points - 1) for i in range(points)]
    width = {"standard": 1.2, "posthoc": 2.0, "linear": 2.4}[mode]
    pairs = []
    for number, tasks in enumerate(SUITE.pairs):

        def level(a1, a2, number=number):
            return min(
                1.6, (abs(a1 * a2) / width) ** 1.3 * (0.4 + 0.02 * a1) * (1 + 0.2 * number + 0.03 * wobble(seed))
            )

        error = [[level(a1, a2) for a2 in alphas] for a1 in alphas]
        inside = [i for i, alpha in enumerate(alphas) if abs(alpha) <= 1 + 1e-9]
        pairs.append({
            "tasks": list(tasks),
            "samples": [256, 256],
            "alphas": alphas,
            "error": error,
            "terms": [[[value / 2 for value in row] for row in error]] * 2,
            "box": 1.0,
            "box_mean": mean(error[i][j] for i in inside for j in inside),
        })  # fmt: skip
    return {"finetuning_mode": mode, "pairs": pairs}


def geometry(mode: str, seed: int) -> geometric.Record:
    """Two blocks; tangent vectors interfere less."""
    names = [f"model.visual.transformer.resblocks.{i}.mlp.c_fc.weight" for i in range(2)]
    level = 1.0 if mode == "standard" else 0.8

    def by_matrix(value: float) -> dict[str, list[float]]:
        return {t: [value + wobble(i, j) for j in range(2)] for i, t in enumerate(TASKS)}

    return {
        "finetuning_mode": mode,
        "tasks": list(TASKS),
        "matrices": [*names, "model.visual.proj"],
        "interference": [level * value + 0.1 * wobble(seed) for value in (3.0, 2.0, 1.0)],
        "stable_rank": by_matrix(4.0),
        "effective_rank": by_matrix(40.0 * level),
        "energy": by_matrix(0.7),
        "alignment": {
            label: {t: value + 0.1 * wobble(i, seed) for i, t in enumerate(TASKS)}
            for label, value in (("average", 0.5), ("sum", 0.6), ("ties", 0.7))
        },
    }


def layerwise(mode: str, seed: int) -> layered.Record:
    """Two blocks; less interference with depth and in tangent vectors."""
    parts = ["stem", "0 attention", "0 MLP", "1 attention", "1 MLP", "projection"]
    level = 1.0 if mode == "standard" else 0.8

    def pairs(value: float, own: float) -> list[list[float]]:
        return [
            [own if i == j else value * (1 + 0.2 * wobble(i, j, seed)) for j in range(len(TASKS))]
            for i in range(len(TASKS))
        ]

    depths = range(len(parts))
    return {
        "finetuning_mode": mode,
        "tasks": list(TASKS),
        "num_samples": 64,
        "parts": parts,
        "interference": [pairs(level * (0.9 - 0.1 * depth), 1.0) for depth in depths],
        "signed": [pairs(0.1, 0.15) for _ in depths],
        "together": [
            [level * (2 - 0.2 * depth) + 0.1 * wobble(i, seed) for i in range(len(TASKS))] for depth in depths
        ],
        "cosine": [pairs(0.1, 1.0) for _ in depths],
        "singular": [None, *(3 - 0.4 * depth + 0.1 * wobble(depth, seed) for depth in depths[1:])],
    }


def connectivity(mode: str, seed: int) -> connected.Record:
    """A hill between models, lower for tangent vectors; the control falls on the way from θ0."""
    points = [i / 10 for i in range(11)]
    height = 0.3 if mode == "standard" else 0.1

    def course(datasets: tuple[str, str], *key: int) -> connected.Course:
        loss = {d: [1 + i * s + 4 * height * s * (1 - s) for s in points] for i, d in enumerate(datasets)}
        accuracy = {d: [0.8 - 0.2 * i * s + 0.01 * wobble(*key, seed) for s in points] for i, d in enumerate(datasets)}
        return {"accuracy": accuracy, "loss": loss}

    return {
        "finetuning_mode": mode,
        "tasks": list(TASKS),
        "points": points,
        "pairs": {
            f"{one}-{other}": course((one, other), i, j) for (i, one), (j, other) in combinations(enumerate(TASKS), 2)
        },
        "from_pretrained": {task: course((task, SUITE.control), i) for i, task in enumerate(TASKS)},
        "control": SUITE.control,
    }


def analogies(mode: str, seed: int) -> analogous.Record:
    """The analogy is best, more so for tangent vectors."""
    (a, b, c, target) = SUITE.analogies[0]
    levels = dict(zip((analogous.PRETRAINED, *analogous.VECTORS), (0.4, 0.55, 0.5, 0.6, 0.66)))

    def tried(place: int, level: float) -> analogous.Tried:
        accuracy = round((level + (0.02 * place if mode == "linear" else 0)) * N) / N
        return {
            "alpha": 0.5 if place else 0.0,
            "val": [0.4, level, 0.5] if place else [],
            "test": accuracy,
            "control": 0.87 - 0.05 * place,
            "correct": bits(accuracy, seed, place),
        }

    return {
        "finetuning_mode": mode,
        "coefs": [0.0, 0.5, 1.0],
        "control": CONTROL,
        "analogies": {
            target: {
                "tasks": [a, b, c],
                "n": {"val": N, "test": N},
                "tried": {name: tried(place, level) for place, (name, level) in enumerate(levels.items())},
            }
        },
    }


def merged_models(mode: str, seed: int) -> seen.Record:
    """The further from the fine-tuned models, the less sure; AdaMerging is too sure."""

    def confidence(level: float, temperature: float) -> seen.Confidence:
        accuracy = {t: level + 0.02 * wobble(i, seed) for i, t in enumerate(TASKS)}
        error = {t: 0.15 * (1 - value) for t, value in accuracy.items()}
        loss = {t: 2 * (1 - value) for t, value in accuracy.items()}
        return {
            "accuracy": accuracy,
            "loss": loss,
            "calibration_error": error,
            "temperature": {t: temperature * (1 + 0.1 * wobble(i, seed)) for i, t in enumerate(TASKS)},
            "scaled_loss": {t: 0.9 * value for t, value in loss.items()},
            "scaled_calibration_error": {t: 0.4 * value for t, value in error.items()},
        }

    levels = {"average": (0.66, 0.6), "sum": (0.74, 0.8), "tsv_m": (0.85, 0.7), "surgery": (0.88, 0.9)}
    levels["adamerging"] = 0.84, 1.6
    blocks = ["block 0", "block 1", "features"]
    return {
        "finetuning_mode": mode,
        "tasks": list(TASKS),
        "num_samples": 64,
        "layers": blocks,
        "finetuned": confidence(0.94, 1.2),
        "methods": {
            label: {
                **confidence(level, temperature),
                "disagreement": {t: 0.97 - level + 0.01 * wobble(i, seed) for i, t in enumerate(TASKS)},
                "bias": {t: [(1 - level) * (1 + depth) for depth in range(3)] for t in TASKS},
            }
            for label, (level, temperature) in levels.items()
        },
        "scaled": {
            label: {"coefficient": alpha, "accuracy": confidence(0.9, 1.0)["accuracy"]}
            for label, alpha in (("average", 0.125), ("sum", 0.3))
        },
    }


def course_of_adaptations(mode: str, seed: int) -> adaptive.Record:
    """AdaRank is best in the middle; entropy turns away from the loss there, the experts' labels follow it."""
    points = range(6)

    def curve(value: float, *key: int) -> dict[str, list[float]]:
        """Of each task, highest at the third of the points."""
        return {
            t: [value - 0.01 * (p - 3) ** 2 + 0.002 * wobble(i, p, *key) for p in points] for i, t in enumerate(TASKS)
        }

    def course(level: float, minimised: str) -> adaptive.Course:
        loss = {t: [2 * (1 - value) for value in of_task] for t, of_task in curve(level).items()}
        return {
            "minimised": minimised,
            "step": [5 * p for p in points],
            "phase": ["lambda"] * len(points),
            "val": {"accuracy": curve(level, 1, seed), "loss": loss},
            "test": {"accuracy": curve(level, 2, seed), "loss": loss},
            "proxies": {
                "entropy": {t: [1 / (1 + p) for p in points] for t in TASKS},
                "expert": {t: [0.9 * value for value in of_task] for t, of_task in loss.items()},
            },
        }

    return {
        "finetuning_mode": mode,
        "tasks": list(TASKS),
        "every": 5,
        "methods": {
            "adamerging": course(0.85, "entropy"),
            "adamerging_loss=expert": course(0.88, "expert"),
            "adarank": course(0.87, "entropy"),
        },
    }


def mergeability(mode: str, seed: int) -> paired.Record:
    """The dot product of features foretells accuracy, but for noise; nothing of the weights does."""

    def pair(i: int, j: int) -> paired.Pair:
        good = wobble(i, j, seed)
        of_weights = {
            name: 0.3 + 0.1 * wobble(i * (3 * k + 5), j * (2 * k + 7), seed) for k, name in enumerate(paired.MEASURES)
        }
        accuracy = {method: 0.9 + 0.05 * good + 0.01 * wobble(i, j, k) for k, method in enumerate(paired.MERGERS)}
        return {
            "measures": of_weights | {"feature_dot": 5 + good},
            "merged": {m: {"coefficient": 0.5, "accuracy": a, "normalised": a / 0.94} for m, a in accuracy.items()},
        }

    return {
        "finetuning_mode": mode,
        "tasks": list(TASKS),
        "num_samples": 200,
        "pairs": {f"{one}-{other}": pair(i, j) for (i, one), (j, other) in combinations(enumerate(TASKS), 2)},
    }


def ntk(seed: int, reduction: str, ratio: float, points: int = 24) -> kernel.Record:
    """Energies of a task, of held-out images of it, and of a control that has a `ratio`-th of them."""
    pairs = []
    for number, (task, control) in enumerate(SUITE.ntk_pairs):
        counts = [5, 10, 20, 17]

        def cloud(level, group, counts=counts, number=number):
            return [[k * level * math.exp(wobble(j, group, seed, number, k)) for j in range(points)] for k in counts]

        energy = {"task": cloud(0.8, 0), "heldout": cloud(0.7, 1), "control": cloud(0.7 / ratio, 2)}
        ratios = [mean(h) / mean(c) for h, c in zip(energy["heldout"], energy["control"])]
        shared = {"eigenvalues": [1.0], "counts": counts, "kept": counts, "share_of_trace": [0.5, 0.7, 0.95, 0.9]}
        joint = {"task": energy["heldout"], "control": energy["control"]}
        pairs.append({
            "task": task,
            "control": control,
            "ranks": [5, 10, 20, 0.9],
            "nystrom": shared | {"energy": energy, "ratio": ratios, "ratio_heldout": ratios},
            "joint": shared
            | {"energy": joint, "ratio": ratios, "ratio_of_shuffled_labels": [1.3] * 4, "task_share": [0.5] * 4},
        })  # fmt: skip
    return {"reduction": reduction, "num_samples": points, "pairs": pairs}


def place(method: str, tasks: Sequence[str], mode: str = "standard", unseen: Sequence[str] = (), **options: Any) -> str:
    """The name of a result of main.py."""
    load_methods()
    named = unseen_label(label(METHODS[method](**options)), unseen)
    return f"{folder(SUITE.name, tasks, mode, 'visual')}/{named}"


def merging(seed: int) -> dict[str, Mapping[str, Any]]:
    """main.py's results: methods on 8 tasks, some on fewer, the sweep over k, tangent modes, cosines."""
    made: dict[str, Mapping[str, Any]] = {}
    for count in (2, 4, 6, 8):
        tasks = TASKS[:count]
        for (method, options), level in MERGED.items():
            falls = 0.012 if method == "tall_mask" else 0.25 if method not in ("zeroshot", "mag_masking") else 0.0
            level = level + falls * (8 - count) / 6 * (0.94 - level if level < 0.9 else 0.01)
            record = merged(method, tasks, "standard", seed, level, **dict(options))
            made[place(method, tasks, **dict(options))] = record
    for mode in ("linear", "posthoc"):
        for method in ("sum", "tall_mask"):
            level = MERGED[method, ()] - 0.01
            made[place(method, TASKS, mode)] = merged(method, TASKS, mode, seed, level)
    for k in (1, 3, 4, 5, 6, 7, 8, 9):
        for options in ({}, dict(TIES)):
            level = max(0.52, 0.755 - 0.035 * abs(k - 2) ** 1.2 * (1.4 if options else 1))
            options = {"prun_thre_k": k, **options}
            record = merged("consensus", TASKS, "standard", seed, level, **options)
            made[place("consensus", TASKS, **options)] = record
    cosine = [[1.0 if i == j else 0.1 + 0.08 * wobble(min(i, j), max(i, j)) for i in range(8)] for j in range(8)]
    vectors: records.Vectors = {
        "finetuning_mode": "standard",
        "scope": "visual",
        "tasks": list(TASKS),
        "cosine": cosine,
        "norm": [1.0] * 8,
    }
    for mode, level in (("standard", 0.85), ("linear", 0.86)):
        made[place("tsv_m", TASKS, mode)] = merged("tsv_m", TASKS, mode, seed, level)
    return made | {f"{folder(SUITE.name, TASKS, 'standard', 'visual')}/vectors": vectors}


def merged(
    method: str, tasks: Sequence[str], mode: str, seed: int, level: float, encoders: Any = None, **options: Any
) -> records.Merging:
    """options: those that are not the defaults."""
    load_methods()
    count, size = len(tasks), 0.9e6
    masked = method in ("tall_mask", "mag_masking")
    bits = {"merged": 32 * size, "finetuned": 32 * size * count, "masked": (64 + count) * size}
    record: records.Merging = {
        **merge(tasks, mode, seed, level, SINGLE["none"], SINGLE["standard"], (0.2, 0.3, 0.4)),
        "method": method,
        "label": label(METHODS[method](**options)),
        "options": METHODS[method].defaults() | options,
        "scope": "visual",
        "encoders": encoders or {},
        "parameters": {"scope": 900_000, "encoder": 900_000},
        "storage": {
            "this": bits["masked" if masked else "merged"],
            "merged": bits["merged"],
            "finetuned": bits["finetuned"],
            "masked": bits["masked"],
        },
        "cost": {"seconds": 0.5 + count / 10, "peak_memory": 3_000_000 * count},
    }
    if method in ("sum", "tsv_m"):
        fixed = {"untuned": 0.3, "one": 1.0}
        record["fixed"] = {
            name: {"setting": setting, **merge(tasks, mode, seed, level - setting / 10, SINGLE["none"], 0.95)["test"]}
            for name, setting in fixed.items()
        }
    if masked:
        record["chosen_per_task"] = True
        record["info"] = {"masks": masks(tasks, seed, "use_ties" in options)}
    return record


TASK_WISE = (("granularity", "task"),)
ADAPTED: dict[Chosen, float] = {
    ("concrete_task_arithmetic", ()): 0.79,
    ("adamerging", TASK_WISE): 0.76,
    ("adamerging_pp", TASK_WISE): 0.77,
    ("concrete_task_wise_adamerging", ()): 0.80,
    ("adamerging", ()): 0.85,
    ("adamerging_pp", ()): 0.855,
    ("concrete_layer_wise_adamerging", ()): 0.89,
}
UNSEEN = "digits", "land"
SEEN = tuple(task for task in TASKS if task not in UNSEEN)
LAYERS = ["conv1.weight", "positional_embedding"] + [
    f"transformer.resblocks.{block}.{name}"
    for block in range(4)
    for name in ("ln_1.weight", "attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
]
LAYERS = sorted(f"model.visual.{name}" for name in [*LAYERS, "ln_post.weight", "proj"])


def adapting(seed: int) -> dict[str, Mapping[str, Any]]:
    """main.py's results of methods that adapt: on test, one on validation, on six tasks, on corrupted images."""
    made: dict[str, Mapping[str, Any]] = {}
    for (method, options), level in ADAPTED.items():
        made[place(method, TASKS, **dict(options))] = adapted(method, TASKS, seed, level, **dict(options))
    made[place("adamerging", TASKS, adapt_on="val")] = adapted("adamerging", TASKS, seed, 0.84, adapt_on="val")
    on_six = {
        "sum": (0.60, merged("sum", SEEN, "standard", seed, 0.78)),
        "concrete_task_arithmetic": (0.66, adapted("concrete_task_arithmetic", SEEN, seed, 0.82)),
    }
    for method, (level, record) in on_six.items():
        made[place(method, SEEN, unseen=UNSEEN)] = {**record, "unseen": unseen(seed, level)}
    for name, loss in (("motion_blur", 0.1), ("contrast", 0.2)):
        corruption: records.Corruption = {"name": name, "severity": 5, "splits": ["test"]}
        arithmetic = merged("sum", TASKS, "standard", seed, MERGED["sum", ()] - loss)
        layer_wise = adapted("adamerging", TASKS, seed, ADAPTED["adamerging", ()] - loss / 2)
        for record in (arithmetic, layer_wise):
            where = f"corrupted/{name}_5/{place(record['method'], TASKS)}"
            made[where] = {**record, "corruption": corruption}
    return made


def unseen(seed: int, level: float) -> records.Unseen:
    accuracy = {task: level + 0.03 * wobble(i) + 0.004 * wobble(i, seed) for i, task in enumerate(UNSEEN)}
    alone = dict.fromkeys(UNSEEN, 0.94)
    return {
        **summary(accuracy, alone),
        "tasks": list(UNSEEN),
        "loss": dict.fromkeys(UNSEEN, 0.5),
        "correct": {task: bits(value, seed, level) for task, value in accuracy.items()},
        "zeroshot": summary(dict.fromkeys(UNSEEN, 0.55), alone),
        "denominators": alone,
    }


def adapted(method: str, tasks: Sequence[str], seed: int, level: float, **options: Any) -> records.Merging:
    """A record of a method that adapts, λ fixed at 1: nothing is left to choose."""
    record = merged(method, tasks, "standard", seed, level, **options)
    settled = merge(tasks, "standard", seed, level, SINGLE["none"], SINGLE["standard"], (1.0,))
    return {**record, **settled, "adaptation": course(method, tasks, seed, level, record["options"])}


def course(
    method: str, tasks: Sequence[str], seed: int, level: float, options: Mapping[str, Any]
) -> records.Adaptation:
    """Accuracies climb and entropies fall exponentially, step by step."""
    concrete = method.startswith("concrete")
    layer_wise = options.get("granularity") == "layer" or method == "concrete_layer_wise_adamerging"
    phases = {"lambda": 25}
    if concrete:
        phases = {"mask": 50} if method == "concrete_task_arithmetic" else {"meta": 50, "lambda": 25}
    steps = list(range(1, sum(phases.values()) + 1))
    watched: list[tuple[int, str]] = []
    for phase, count in phases.items():
        first = watched[-1][0] if watched else 0
        watched += [(first + step, phase) for step in range(0, count + 1, 5)]
    columns = len(LAYERS) if layer_wise else 1
    by_tensor = {name: 0.5 + 0.1 * wobble(j, 3) + 0.01 * wobble(j, seed) for j, name in enumerate(LAYERS)}
    return {
        "adapt_on": options["adapt_on"],
        "variant": "original",
        "settings": {"coef": 0.3},
        "phases": [{"name": name, "steps": count} for name, count in phases.items()],
        "curves": {
            "step": steps,
            "entropy": {
                t: [0.4 + 0.8 * math.exp(-s / 20) + 0.05 * wobble(i, s) for s in steps] for i, t in enumerate(tasks)
            },
            "lambda": {t: [0.3 + 0.002 * s * wobble(i) for s in steps] for i, t in enumerate(tasks)},
        },
        "watched": {
            "split": "val",
            "step": [step for step, _ in watched],
            "phase": [phase for _, phase in watched],
            "accuracy": {
                t: [level - 0.2 * math.exp(-s / 15) + 0.08 * wobble(i) + 0.01 * wobble(i, s, seed) for s, _ in watched]
                for i, t in enumerate(tasks)
            },
        },
        "lambda": {
            "tasks": list(tasks),
            "layers": LAYERS if layer_wise else None,
            "values": [[0.3 + 0.2 * wobble(i, j) for j in range(columns)] for i in range(len(tasks))],
        },
        "lambda_layers_curve": None,
        "mask": {"final": "seeded", "density": 0.5, "probability": 0.51, "by_tensor": by_tensor} if concrete else None,
    }


def masks(tasks: Sequence[str], seed: int, use_ties: bool) -> records.Masks:
    count, peak = len(tasks), 2 if use_ties else 3
    weights = [
        math.exp(-((k - peak) ** 2) / (3 if use_ties else 9)) + 0.02 + 0.002 * wobble(seed, k) for k in range(count + 1)
    ]
    usage = [weight / math.fsum(weights) for weight in weights]
    iou = [
        [1.0 if i == j else 0.35 + 0.1 * wobble(min(i, j), max(i, j), use_ties) for i in range(count)]
        for j in range(count)
    ]
    density = {task: 0.32 + 0.06 * wobble(i, use_ties) + 0.004 * wobble(i, seed) for i, task in enumerate(tasks)}
    return {
        "density": density,
        "usage": usage,
        "iou": iou,
        "catastrophic": usage[0],
        "selfish": usage[1],
        "universal": usage[-1],
    }
