"""Made-up results in the shapes that the scripts write, for tests of tables, figures and claims: no model is run.

Numbers follow formulas, not a random generator, so that they are the same with every version of every library.
"""

import json
import math
from pathlib import Path

from src.datasets import registry

SUITE = registry.suite("mini")
TASKS, CONTROL = SUITE.default, SUITE.control
MODES = ("standard", "linear", "posthoc")
SINGLE = {"none": 0.52, "standard": 0.94, "linear": 0.92, "posthoc": 0.85}
ADDED = {"standard": 0.74, "linear": 0.78, "posthoc": 0.70}
MERGED = {
    "zeroshot": 0.52,
    "average": 0.66,
    "sum": 0.74,
    "ties": 0.75,
    "consensus": 0.76,
    "consensus_use_ties=True": 0.755,
    "mag_masking": 0.86,
    "tall_mask": 0.935,
    "tall_mask_use_ties=True": 0.937,
}


def write(folder: Path, seeds=(1, 2, 3), model: str = SUITE.model, merges: bool = True) -> Path:
    """Results of the mini suite under `folder`, with and without pre-training; gives `folder`."""
    for seed in seeds:
        for name, record in pretrained(seed, merges).items():
            dump(folder / "mini" / model / f"seed_{seed}" / f"{name}.json", record)
        for name, record in random_init(seed).items():
            dump(folder / "mini" / f"{model}__init__" / f"seed_{seed}" / f"{name}.json", record)
    return folder


def dump(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record | {"provenance": {"command": "made up"}}), encoding="utf-8")


def pretrained(seed: int, merges: bool = True) -> dict[str, dict]:
    """name -> record, of one seed."""
    found = {"zeroshot_accuracies": single_task("none", seed)}
    names = {"standard": "ft_accuracies", "linear": "linear_ft_accuracies", "posthoc": "posthoc_ft_accuracies"}
    for mode in MODES:
        found[names[mode]] = single_task(mode, seed)
        found[f"addition_{mode}"] = addition(mode, seed)
        found[f"negation_{mode}"] = negation(mode, seed)
        found[f"disentanglement_{mode}"] = disentanglement(mode, seed)
    for reduction in ("trace", "sum"):
        found[f"ntk_{reduction}"] = ntk(seed, 6.0 if reduction == "trace" else 4.0)
    if merges:
        found |= merging(seed) | adapting(seed)
    return found


def random_init(seed: int) -> dict[str, dict]:
    found = {"zeroshot_accuracies": single_task("none", seed, level=0.08)}
    for mode, name, level in (("standard", "ft_accuracies", 0.55), ("linear", "linear_ft_accuracies", 0.43)):
        found[name] = single_task(mode, seed, level=level)
        found[f"addition_{mode}"] = merge(TASKS, mode, seed, 0.10, 0.08, level) | {"settings": [0.0, 1.0]}
    return found | {f"ntk_{reduction}": ntk(seed, 1.2) for reduction in ("trace", "sum")}


def wobble(*key: float) -> float:
    """Between −1 and 1, without a pattern that the eye can see."""
    return math.sin(sum((12.9898 + 65.233 * i) * (value + 1) for i, value in enumerate(key)))


def single_task(mode: str, seed: int, level: float | None = None) -> dict:
    level = SINGLE[mode] if level is None else level
    spread = 0.5 * level * (1 - level)
    record = {task: level + spread * wobble(i) + 0.006 * wobble(i, seed) for i, task in enumerate(TASKS)}
    record |= {f"{task}Val": value + 0.002 for task, value in record.items()}
    control = 0.97 if mode == "none" else 0.9 + 0.01 * wobble(seed)
    return record | {CONTROL: control, f"{CONTROL}Val": control, "losses": {}, "n": {}, "control_per_task": {}}


def merge(tasks, mode: str, seed: int, level: float, start: float, single: float, setting=(0.0, 0.5, 1.0)) -> dict:
    """A record of evaluation.evaluate_merge. level, start, single: accuracies of the merge, of θ0, of fine-tuning."""
    middle = len(setting) // 2
    accuracy = {t: level + 0.05 * wobble(i) + 0.005 * wobble(i, seed, level) for i, t in enumerate(tasks)}
    zeroshot = {t: start + 0.5 * start * (1 - start) * wobble(i) for i, t in enumerate(tasks)}
    alone = {t: single + 0.02 * wobble(i, 7) for i, t in enumerate(tasks)}
    curves = {t: [accuracy[t] - 0.3 * (s - setting[middle]) ** 2 for s in setting] for t in tasks}
    return {
        "tasks": list(tasks),
        "finetuning_mode": mode,
        "settings": list(setting),
        "chosen_per_task": False,
        "chosen": dict.fromkeys(tasks, setting[middle]),
        "at_edge": False,
        "val": {
            "accuracy": curves,
            "mean_accuracy": [mean(c[i] for c in curves.values()) for i in range(len(setting))],
            "mean_normalised": [mean(c[i] / alone[t] for t, c in curves.items()) for i in range(len(setting))],
        },
        "test": summary(accuracy, alone),
        "zeroshot": summary(zeroshot, alone),
        "denominators": {"val": alone, "test": alone},
        "n": {},
        "info": {},
    }


def summary(accuracy: dict, alone: dict) -> dict:
    normalised = {task: value / alone[task] for task, value in accuracy.items()}
    means = {"mean_accuracy": mean(accuracy.values()), "mean_normalised": mean(normalised.values())}
    return {"accuracy": accuracy, "normalised": normalised, **means}


def mean(values) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def addition(mode: str, seed: int) -> dict:
    return merge(TASKS, mode, seed, ADDED[mode], SINGLE["none"], SINGLE[mode], [i / 20 for i in range(21)])


def negation(mode: str, seed: int) -> dict:
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
            "test": {"target": target[coefs.index(alpha)], "control": control[coefs.index(alpha)]},
        }
    return {
        "finetuning_mode": mode,
        "control": CONTROL,
        "control_threshold": 0.95,
        "coefs": coefs,
        "pretrained_control": {"val": 0.97, "test": 0.97},
        "tasks": tasks,
        "mean_target": mean(r["test"]["target"] for r in tasks.values()),
        "mean_control": mean(r["test"]["control"] for r in tasks.values()),
        "n": {},
    }


def disentanglement(mode: str, seed: int, points: int = 13) -> dict:
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
            "alphas": [alphas, alphas],
            "error": error,
            "terms": [[[value / 2 for value in row] for row in error]] * 2,
            "box": 1.0,
            "box_mean": mean(error[i][j] for i in inside for j in inside),
        })  # fmt: skip
    return {"finetuning_mode": mode, "pairs": pairs}


def ntk(seed: int, ratio: float, points: int = 24) -> dict:
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
            "joint": shared | {"energy": joint, "ratio": ratios, "ratio_of_shuffled_labels": [1.3] * 4},
        })  # fmt: skip
    return {"reduction": "trace", "num_samples": points, "pairs": pairs}


def merging(seed: int) -> dict[str, dict]:
    """main.py's results: every method on 8 tasks, some on fewer, the sweep over k, tangent modes, cosines."""
    found = {}
    for count in (2, 4, 6, 8):
        tasks = TASKS[:count]
        for label, level in MERGED.items():
            fall = 0.012 if label.startswith("tall") else 0.25 if label not in ("zeroshot", "mag_masking") else 0.0
            level = level + fall * (8 - count) / 6 * (0.94 - level if level < 0.9 else 0.01)
            found[f"merging/{count}task/standard-visual/{label}"] = merged(label, tasks, "standard", seed, level)
    for mode in ("linear", "posthoc"):
        for label in ("sum", "tall_mask"):
            record = merged(label, TASKS, mode, seed, MERGED[label] - 0.01)
            found[f"merging/8task/{mode}-visual/{label}"] = record
    for k in (1, 3, 4, 5, 6, 7, 8, 9):
        for use_ties in (False, True):
            label = f"consensus_prun_thre_k={k}{'_use_ties=True' if use_ties else ''}"
            level = max(0.52, 0.755 - 0.035 * abs(k - 2) ** 1.2 * (1.4 if use_ties else 1))
            found[f"merging/8task/standard-visual/{label}"] = merged(label, TASKS, "standard", seed, level)
    cosine = [[1.0 if i == j else 0.1 + 0.08 * wobble(min(i, j), max(i, j)) for i in range(8)] for j in range(8)]
    found["merging/8task/standard-visual/vectors"] = {
        "finetuning_mode": "standard",
        "scope": "visual",
        "tasks": list(TASKS),
        "cosine": cosine,
        "norm": [1.0] * 8,
    }
    return found


def merged(label: str, tasks, mode: str, seed: int, level: float) -> dict:
    method = next(
        name
        for name in ("consensus", "tall_mask", "mag_masking", "zeroshot", "average", "sum", "ties")
        if label.startswith(name)
    )
    count, size = len(tasks), 0.9e6
    record = merge(tasks, mode, seed, level, SINGLE["none"], SINGLE["standard"], (0.2, 0.3, 0.4))
    options = {"use_ties": "use_ties=True" in label}
    if method == "consensus":
        options["prun_thre_k"] = int(label.partition("k=")[2][0]) if "k=" in label else 2
    masked = method in ("tall_mask", "mag_masking")
    if masked:
        record |= {"chosen_per_task": True, "info": {"masks": masks(tasks, seed, options["use_ties"])}}
    bits = {"merged": 32 * size, "finetuned": 32 * size * count, "masked": (64 + count) * size}
    storage = bits | {"this": bits["masked" if masked else "merged"]}
    about = {"method": method, "label": label, "options": options, "scope": "visual", "storage": storage}
    return record | about


CONCRETE = "concrete_"
ADAPTED = {
    f"{CONCRETE}task_arithmetic": 0.79,
    "adamerging_granularity=task": 0.76,
    "adamerging_pp_granularity=task": 0.77,
    f"{CONCRETE}task_wise_adamerging": 0.80,
    "adamerging": 0.85,
    "adamerging_pp": 0.855,
    f"{CONCRETE}layer_wise_adamerging": 0.89,
}
UNSEEN = "digits", "land"
SEEN = tuple(task for task in TASKS if task not in UNSEEN)
LAYERS = ["conv1.weight", "positional_embedding"] + [
    f"transformer.resblocks.{block}.{name}"
    for block in range(4)
    for name in ("ln_1.weight", "attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
]
LAYERS = sorted(f"model.visual.{name}" for name in [*LAYERS, "ln_post.weight", "proj"])


def adapting(seed: int) -> dict[str, dict]:
    """main.py's results of methods that adapt: on test, one on validation, on six tasks, on corrupted images."""
    found, folder = {}, "merging/8task/standard-visual"
    for label, level in ADAPTED.items():
        found[f"{folder}/{label}"] = adapted(label, TASKS, seed, level)
    found[f"{folder}/adamerging_adapt_on=val"] = adapted("adamerging_adapt_on=val", TASKS, seed, 0.84)
    unseen = f"_unseen={'+'.join(UNSEEN)}"
    on_six = {
        f"sum{unseen}": (0.60, merged(f"sum{unseen}", SEEN, "standard", seed, 0.78)),
        f"{CONCRETE}task_arithmetic{unseen}": (0.66, adapted(f"{CONCRETE}task_arithmetic{unseen}", SEEN, seed, 0.82)),
    }
    for label, (level, record) in on_six.items():
        accuracy = {task: level + 0.03 * wobble(i) + 0.004 * wobble(i, seed) for i, task in enumerate(UNSEEN)}
        alone = dict.fromkeys(UNSEEN, 0.94)
        record["unseen"] = {"tasks": list(UNSEEN), "zeroshot": summary(dict.fromkeys(UNSEEN, 0.55), alone)}
        record["unseen"] |= summary(accuracy, alone)
        found[f"merging/6task_0/standard-visual/{label}"] = record
    for corruption, loss in (("motion_blur_5", 0.1), ("contrast_5", 0.2)):
        place = f"corrupted/{corruption}/{folder}"
        found[f"{place}/sum"] = merged("sum", TASKS, "standard", seed, MERGED["sum"] - loss)
        found[f"{place}/adamerging"] = adapted("adamerging", TASKS, seed, ADAPTED["adamerging"] - loss / 2)
    return found


def adapted(label: str, tasks, seed: int, level: float) -> dict:
    """A record of a method that adapts: accuracies climb and entropies fall exponentially, step by step."""
    method = label.partition("_unseen")[0].partition("_granularity")[0].partition("_adapt_on")[0]
    concrete, layers = method.startswith(CONCRETE), method != f"{CONCRETE}task_arithmetic" and "task" not in label
    phases = {"lambda": 25}
    if concrete:
        phases = {"mask": 50} if method.endswith("task_arithmetic") else {"meta": 50, "lambda": 25}
    split = "val" if "adapt_on=val" in label else "test"
    steps, watched = list(range(1, sum(phases.values()) + 1)), []
    for phase, count in phases.items():
        first = watched[-1][0] if watched else 0
        watched += [(first + step, phase) for step in range(0, count + 1, 5)]
    names = LAYERS if layers else ["all"]
    about = {
        "adapt_on": split,
        "variant": "original",
        "settings": {"coef": 0.3},
        "steps": phases,
        "phases": [{"name": name, "steps": count} for name, count in phases.items()],
        "entropy": {
            "step": steps,
            "tasks": {
                t: [0.4 + 0.8 * math.exp(-s / 20) + 0.05 * wobble(i, s) for s in steps] for i, t in enumerate(tasks)
            },
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
            "layers": LAYERS if layers else None,
            "values": [[0.3 + 0.2 * wobble(i, j) for j in range(len(names))] for i in range(len(tasks))],
        },
        "lambda_curve": {
            "step": steps,
            "tasks": {t: [0.3 + 0.002 * s * wobble(i) for s in steps] for i, t in enumerate(tasks)},
        },
        "mask": None,
    }
    if concrete:
        by_tensor = {name: 0.5 + 0.1 * wobble(j, 3) + 0.01 * wobble(j, seed) for j, name in enumerate(LAYERS)}
        about["mask"] = {"final": "seeded", "density": 0.5, "probability": 0.51, "by_tensor": by_tensor}
    options = {"adapt_on": split} | ({} if concrete else {"granularity": "layer" if layers else "task"})
    record = merge(tasks, "standard", seed, level, SINGLE["none"], SINGLE["standard"], (1.0,))
    storage = {"this": 32 * 0.9e6, "merged": 32 * 0.9e6, "finetuned": 32 * 0.9e6 * len(tasks), "masked": 72 * 0.9e6}
    about = {
        "method": method,
        "label": label,
        "options": options,
        "scope": "visual",
        "storage": storage,
        "adaptation": about,
    }
    return record | about


def masks(tasks, seed: int, use_ties: bool) -> dict:
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
    shares = {"catastrophic": usage[0], "selfish": usage[1], "universal": usage[-1]}
    return {"density": density, "usage": usage, "iou": iou, **shares}
