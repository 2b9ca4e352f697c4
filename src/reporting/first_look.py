"""The picture of demo.py: two tasks along α, from the result of one task addition."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from src.experiments.registry import ADDITION
from src.records import Addition, checked
from src.reporting import style
from src.reporting.table import printed
from src.run import Run
from src.runtime import results


def draw(run: Run, folder: Path) -> str:
    """Draw demo.png and demo.pdf into `folder`, and give the outcome in words."""
    path = run.paths.result(ADDITION.result("standard"))
    record = checked(results.read(path), Addition, path)
    with style.styled():
        png, _ = style.save(picture(record), folder, "demo")
    alpha = record["chosen"][run.tasks[0]]
    lines = [f"\none model for both tasks, θ0 + {alpha:g} (τ1 + τ2); test accuracy:"]
    for task in record["tasks"]:
        before, merged, alone = _accuracies(record, task)
        lines.append(
            f"  {printed(task):14} zero-shot {before:5.1f} %   merged {merged:5.1f} %   its own model {alone:5.1f} %"
        )
    return "\n".join([*lines, f"picture: {png}"])


def picture(record: Addition) -> Figure:
    """Validation accuracies along α, and test accuracies before, merged, and of each task's own model."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(style.WIDTH, 2.9), width_ratios=(1.3, 1))
    for index, task in enumerate(record["tasks"]):
        curve = [100 * value for value in record["val"]["accuracy"][task]]
        left.plot(record["settings"], curve, color=style.PALETTE[index], label=printed(task))
        bars = right.bar(
            [x + 0.4 * index for x in (0, 1, 2)], _accuracies(record, task), 0.38, color=style.PALETTE[index]
        )
        right.bar_label(bars, fmt="%.0f", fontsize=7.5)
    left.axvline(record["chosen"][record["tasks"][0]], color=style.GREY, lw=0.9, ls=style.DASHED)
    left.set(xlabel="α (dashed: chosen on validation)", ylabel="validation accuracy (%)", title="θ0 + α (τ1 + τ2)")
    left.legend()
    right.set_xticks([0.2, 1.2, 2.2], ["pre-trained", "one merged\nmodel", "a model\nfor each"])
    right.grid(axis="x", visible=False)
    right.set(title="Test accuracy (%)", ylim=(0, 108))
    return fig


def _accuracies(record: Addition, task: str) -> tuple[float, float, float]:
    """In percent: of θ0, of the merged model, of the task's own."""
    zeroshot, merged = (record[name]["accuracy"][task] for name in ("zeroshot", "test"))
    return 100 * zeroshot, 100 * merged, 100 * record["denominators"]["test"][task]
