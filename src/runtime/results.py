"""Results are data with provenance: JSON files written whole, read by tables and figures without loading a model."""

import dataclasses
import json
import math
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from src.runtime.files import read_json, replacing
from src.runtime.messages import MissingFile, UserError
from src.runtime.paths import ROOT

# Packages that decide a number or a pixel: name in `provenance.versions` -> name of the distribution.
PACKAGES = {
    **{name: name for name in ("numpy", "scipy", "pillow", "matplotlib", "scikit-learn", "torch", "torchvision")},
    "open_clip": "open_clip_torch",
}
UNTOLD = {"precision": "fp32"}  # entries of `config` that older results do not tell
ONE_LINE = 80  # characters of the longest string that may stand beside others on a line of a result


class MissingResult(MissingFile):
    """A result that was never made; the message names the command that makes it."""


class ResultError(UserError, ValueError):
    """A result that cannot be written (it holds a NaN) or read (it is cut short, or is no result)."""


def write(
    path: Path,
    record: Mapping,
    config: Mapping[str, Any],
    started: float,
    check: Callable[[dict[str, Any]], Any] | None = None,
    made_of: Mapping[str, str] | None = None,
) -> None:
    """Write `record` with its provenance to `path`, atomically; under torchrun rank 0 does, while the others wait.

    record: nested dicts and lists of numbers and strings; NumPy and PyTorch scalars and arrays become plain numbers.
    config: the run and its options; see Run.config.
    started: `time.time()` when the work on this result began, for `provenance.seconds`.
    check: raises an error for a document that is not as its readers expect.
    made_of: short hashes of what the numbers are made of, by name; see store.made_of.
    Raises ResultError for a NaN or an infinity, TypeError for what JSON cannot hold; `path` is then left as it was.
    """
    from src.runtime.distributed import from_primary  # here, so that reading results does not pay for torch

    def write_file() -> None:
        about = provenance(config, started)
        if made_of:
            about["made_of"] = " ".join(f"{name}:{value}" for name, value in made_of.items())
        document = _plain(record, path.stem) | {"provenance": about}
        if check:
            check(document)
        text = encode(document)
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    from_primary(write_file)


def encode(document: Mapping) -> str:
    """`document` as the text of a result file: JSON whose differences can be read line by line.

    Each entry of a dictionary has a line of its own. A list of numbers or short strings, nested or not, is one line.
    """
    return _encode(document, "\n") + "\n"


def exists(path: Path) -> bool:
    """Whether the result was made, as rank 0 sees it. Results are written whole, so a name means a file."""
    from src.runtime.distributed import from_primary  # here, so that reading results does not pay for torch

    return from_primary(path.is_file)


def skip_existing(
    path: Path, config: Mapping[str, Any], decisive: Iterable[str], made_of: Mapping[str, str] | None = None
) -> bool:
    """Say that the result is there and skipped, and return True; False where it is not there.

    Raises ResultError as `require_same` does.
    """
    if not exists(path):
        return False
    require_same(path, config, decisive, made_of)
    print(f"{path}: there already, skipped (--overwrite computes it again)")
    return True


def require_same(
    path: Path, config: Mapping[str, Any], decisive: Iterable[str], made_of: Mapping[str, str] | None = None
) -> None:
    """Raise ResultError where the result was made with another `config` or of other files, and for a damaged result.

    decisive: the entries of `config` that the numbers depend on. made_of: as in `write`, of what is there now.
    What an older result does not tell does not count.
    """
    about = require(path, command_line())["provenance"]
    earlier = UNTOLD | about["config"]
    asked = {name: _plain(config[name], name, other=str) for name in decisive}
    differing = [
        difference for name in asked if name in earlier for difference in _differences(name, earlier[name], asked[name])
    ]
    if differing:
        raise ResultError(
            f"{path}: expected a result of {'; '.join(f'{what} = {now}' for what, now, _ in differing)}; found one "
            f"of {'; '.join(f'{what} = {then}' for what, _, then in differing)}. Make it anew with --overwrite "
            "(main.py: overwrite=True), or keep both with --results=ANOTHER_FOLDER"
        )
    if stale := outdated(about, made_of or {}):
        raise ResultError(
            f"{path}: expected a result of the files that are there, found one of others: {', '.join(stale)} changed "
            "since. Make it anew with --overwrite (main.py: overwrite=True), or keep both with --results=ANOTHER_FOLDER"
        )


def outdated(provenance: Mapping[str, Any], made_of: Mapping[str, str]) -> list[str]:
    """What a result was made of that is another now; what either side does not tell does not count."""
    return changed(dict(pair.rpartition(":")[::2] for pair in str(provenance.get("made_of", "")).split()), made_of)


def changed(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names whose hashes differ in a part that both have; parts are joined by "-", and empty where unknown."""
    parts = {name: zip(then.get(name, value).split("-"), value.split("-")) for name, value in now.items()}
    return [name for name, pairs in parts.items() if any(one and other and one != other for one, other in pairs)]


def _differences(name: str, earlier: Any, asked: Any) -> list[tuple[str, Any, Any]]:
    """(entry, as asked, as before) of each that differs; of mappings, those that both have."""
    if isinstance(earlier, dict) and isinstance(asked, dict):
        shared = [key for key in asked if key in earlier]
        return [difference for key in shared for difference in _differences(f"{name}.{key}", earlier[key], asked[key])]
    return [] if earlier == asked else [(name, asked, earlier)]


def read(path: Path) -> dict:
    """The result at `path`, for readers that need not know which script makes it."""
    return require(path, None)


def require(path: Path, command: str | None) -> dict:
    """The result at `path`, or an error that names the `command` that makes it: MissingResult or ResultError.

    command: None stands for reproduce.py, in the folder of results that `path` lies in.
    """
    try:
        record = read_json(path)
    except FileNotFoundError:
        command = command or _reproduce(path)
        raise MissingResult(f"expected the result {path}, found no file; make it with: {command}") from None
    except ValueError as error:
        raise ResultError(
            f"expected a whole JSON result in {path}, found a damaged one of {path.stat().st_size} bytes ({error}); "
            f"remove it and make it again with: {command or _reproduce(path)}"
        ) from None
    about = record.get("provenance") if isinstance(record, dict) else None
    if not isinstance(about, dict) or not isinstance(about.get("config"), dict):
        raise ResultError(
            f"expected a result with its provenance in {path}, found other JSON; remove it and make it again with: "
            f"{command or _reproduce(path)}"
        )
    return record


def _reproduce(path: Path) -> str:
    """The command that makes the result at `path` there, whichever it is."""
    from src.run import run_at  # here, since it reads records, which are results

    run = run_at(path, "results")
    return run.reproduce() if run else "python reproduce.py"


def provenance(config: Mapping[str, Any], started: float) -> dict[str, Any]:
    """Where a result comes from: command, configuration, commit, versions, device, seconds, date."""
    return {
        "command": command_line(),
        "config": _plain(config, "config", other=str),
        "commit": commit(),
        "versions": versions(),
        "device": device_name(config.get("device")),
        "seconds": round(time.time() - started, 3),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


_version = cache(metadata.version)  # every checkpoint and result has all of them


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers or pixels, read without importing them."""
    return {"python": platform.python_version()} | {name: _version(dist) for name, dist in PACKAGES.items()}


def command_line() -> str:
    """The command of this process, as it would be typed in the project's folder."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # set when Python was started with -m
    if spec and sys.argv[0] == spec.origin:  # else a program that was started with -m calls the main of a script
        start = ["-m", spec.name.removesuffix(".__main__")]
    else:
        start = sys.argv[:1]
    return shlex.join(["python", *map(_portable, start + sys.argv[1:])])


def commit() -> str | None:
    """The project's commit, with `-dirty` when tracked files differ from it; None outside a repository of its own."""
    try:
        if _git_root(ROOT) != str(ROOT):
            return None  # an unpacked copy inside somebody else's repository
        return _git(ROOT, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def _git_root(folder: Path) -> str:
    """The root of the repository that a folder lies in."""
    return _git(folder, "rev-parse", "--show-toplevel")


def device_name(device: Any = None) -> str:
    """The name of the accelerator or processor that `device` means; by default the one PyTorch would use."""
    import torch  # here, so that reading results does not pay for it

    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if kind.type == "cuda":
        return torch.cuda.get_device_name(kind)
    return f"{_processor()}, {torch.get_num_threads()} threads"


@cache
def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str:
    # Else `describe --dirty` locks and writes the index, beside whatever the user does in the same checkout.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _portable(text: str) -> str:
    """A path inside the project relative to it: results are shared, folders of one machine are not."""
    return text.removeprefix(f"{ROOT}/")


def _encode(value: Any, newline: str) -> str:
    """`value` as JSON; `newline` is a line break and the indentation of the line that the value begins on."""
    inner = newline + " "
    if isinstance(value, Mapping) and value:
        entries = [f"{json.dumps(key)}: {_encode(item, inner)}" for key, item in value.items()]
        return "{" + inner + f",{inner}".join(entries) + newline + "}"
    if isinstance(value, list) and not _is_short(value):
        return "[" + inner + f",{inner}".join(_encode(item, inner) for item in value) + newline + "]"
    return json.dumps(value, allow_nan=False)


def _is_short(value: Any) -> bool:
    """Whether `value` may stand beside others on one line: a number, a short string, or a list of such values."""
    if isinstance(value, list):
        return all(map(_is_short, value))
    return len(value) <= ONE_LINE if isinstance(value, str) else not isinstance(value, Mapping)


def _plain(value: Any, where: str, other: Callable[[Any], Any] | None = None) -> Any:
    """`value` in JSON's own types; `where` names it in errors; `other` converts what has no JSON form."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}", other) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]", other) for index, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, (str, Path)):
        return _portable(str(value))
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ResultError(f"expected finite numbers in a result, found {where} = {value}; nothing was written")
        return float(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(vars(value), where, other)
    if hasattr(value, "tolist"):  # NumPy's and PyTorch's scalars and arrays
        return _plain(value.tolist(), where, other)
    if other is None:
        raise TypeError(f"{where} is a {type(value).__name__}, which a JSON result cannot hold")
    return other(value)
