"""Files in, one file out: merging without data, of any networks that share names and shapes."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file

from src import checkpoints
from src.checkpoints import VISUAL
from src.merging.base import Merge, Method, Problem
from src.merging.registry import METHODS, WEIGHTS, label, load_methods
from src.merging.search import with_options
from src.published.convert import HUGGING_FACE_FILE, check_near, read_weights, weights_file
from src.runtime.files import file_hash, replacing, require_writable
from src.runtime.messages import CheckpointError, UsageError, few, nearest
from src.tensors import Weights, moved_over

CARD = """---
tags: [merge, task-arithmetic]
---

# {title}

Merged by `{command}`.

θ0: `{pretrained}` (SHA-256 {pretrained_hash}).

Fine-tuned models:

{models}

Method: {method}, coefficient {setting}. Nothing was evaluated.
"""


def merge_files(
    pretrained: Path,
    files: Sequence[Path],
    output: Path,
    method: str = "sum",
    options: Mapping[str, str] | None = None,
    alpha: float | None = None,
    overwrite: bool = False,
    far: bool = False,
) -> None:
    """Write θ0 + α·τ to `output` under the names of the pre-trained file, with a model card beside it.

    output: a .safetensors, or a folder where the pre-trained model is one. alpha: None for the method's own.
    far: merge models too that lie farther from the pre-trained one than a fine-tuned CLIP does.
    Raises UsageError and CheckpointError, before anything is written.
    """
    folder = pretrained.is_dir()
    if not folder and output.suffix != ".safetensors":
        raise UsageError(f"--output: expected a file that ends in .safetensors, as {pretrained} is one; got {output}")
    chosen = method_of(method, options or {})
    if missing := [path for path in (pretrained, *files) if not path.exists()]:
        raise UsageError(f"expected files to merge, found none at {', '.join(map(str, missing))}")
    for path in (pretrained, *files):
        weights_file(path)
    check_free(output, folder, (pretrained, *files), overwrite)
    if len({*files}) < len(files) or not files:
        raise UsageError("expected at least one fine-tuned model, and each once")
    start = _read(pretrained)
    weights = {str(path): _read(path) for path in files}
    scope = "visual" if any(name.startswith(VISUAL) for name in start) else "published"
    problem = Problem(start, weights, scope=scope)
    advice = f"Merge it with the file that it began at in the place of {pretrained}, or add --far"
    for source, tensors in () if far else weights.items():
        names = [name for name in problem.keys if tensors[name].is_floating_point()]
        try:
            check_near(tensors, start, names, advice)
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from None
    made = chosen.merge(problem)
    setting = setting_of(chosen, made, alpha)
    merged = moved_over(start, dict(made.vector(str(files[0]), setting).vector))
    _write(output / HUGGING_FACE_FILE if folder else output, merged)
    if folder:
        for file in pretrained.glob("*.json"):
            shutil.copy(file, output / file.name)
    _write_card(card_of(output, folder), output, pretrained, files, chosen, setting)
    print(
        f"{label(chosen)} of {len(files)} models, coefficient {setting}, {problem.num_parameters} weights -> {output}"
    )


def check_free(output: Path, folder: bool, inputs: Sequence[Path], overwrite: bool) -> None:
    """Raise UsageError where writing to `output` would replace a file that this does not make, or one of `inputs`.

    Raises StorageError where nothing may be written there.
    """
    weights = output / HUGGING_FACE_FILE if folder else output
    taken = [path for path in (weights, card_of(output, folder)) if path.exists()]
    if folder and output.is_dir():
        taken = sorted(output.iterdir())
    if any(path.exists() and weights_file(path).samefile(weights) for path in inputs if weights.exists()):
        raise UsageError(f"--output: expected another file than those that are merged; got {output}")
    if taken and not overwrite:
        raise UsageError(f"--output: expected a free name, found {few(list(map(str, taken)))}; --overwrite replaces it")
    require_writable(weights)


def card_of(output: Path, folder: bool) -> Path:
    """The model card's file."""
    return output / "README.md" if folder else output.with_suffix(".md")


def method_of(name: str, options: Mapping[str, str]) -> Method:
    """The method with its options, which are YAML values. Raises UsageError for what does not exist."""
    load_methods()
    if name not in METHODS:
        raise UsageError(
            f"--method: {name!r} does not exist{nearest(name, METHODS)} python main.py --methods lists them"
        )
    cls = METHODS[name]
    if unknown := [option for option in options if option not in cls.defaults()]:
        known = ", ".join(cls.defaults()) or "none"
        raise UsageError(f"{name} has no option {unknown[0]}{nearest(unknown[0], cls.defaults())} It has: {known}")
    if cls.needs != WEIGHTS:
        raise UsageError(f"{name} needs {cls.needs}: merge with main.py, which has data")
    try:
        values = {option: yaml.safe_load(value) for option, value in options.items()}
    except (RecursionError, yaml.YAMLError):
        raise UsageError(f"--options: expected NAME=VALUE, as in k=20 or alphas=[0.3]; got {dict(options)}") from None
    return with_options(cls(), values, "--options")


def setting_of(method: Method, made: Merge, alpha: float | None) -> Any:
    """The coefficient. Raises UsageError where none is given and validation would have to choose."""
    if made.per_task:
        raise UsageError(f"{method.name} makes a model for each task, and chooses on validation: merge with main.py")
    if alpha is not None:
        return alpha
    if len(made.settings) == 1:
        return made.settings[0]
    if method.untuned is None:
        raise UsageError(f"--alpha: {method.name} has no coefficient of its own, and there is no data to choose one on")
    return method.untuned


def _read(path: Path) -> Weights:
    try:
        return read_weights(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _write(path: Path, weights: Weights) -> None:
    with replacing(path) as temporary:
        save_file(checkpoints.own_storage(weights), temporary, {"format": "pt"})


def _write_card(
    card: Path, output: Path, pretrained: Path, files: Sequence[Path], method: Method, setting: Any
) -> None:
    text = CARD.format(
        title=output.stem,
        command=f"merge_checkpoints.py --method={method.name}",
        pretrained=pretrained,
        pretrained_hash=file_hash(weights_file(pretrained)),
        models="\n".join(f"- `{path}` (SHA-256 {file_hash(weights_file(path))})" for path in files),
        method=f"{method.title}, options {vars(method)}" if vars(method) else method.title,
        setting=setting,
    )
    with replacing(card) as temporary:
        temporary.write_text(text, encoding="utf-8")
