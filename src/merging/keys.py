"""The words that main.py is given, checked before Hydra reads them: its own messages fill a page and suggest a `+`."""

import functools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.args import shared_flags
from src.counterparts import of_overrides
from src.merging import registry
from src.runtime.messages import UsageError, nearest
from src.runtime.paths import METHOD_CONFIGS, ROOT

GROWING = ("encoders", "search")  # keys that entries are added to, as to options that are mappings
# As `python main.py --hydra-help` lists them; argparse takes their beginnings too.
HYDRAS = (
    *("help", "hydra-help", "version", "cfg", "resolve", "package", "run", "multirun", "shell-completion"),
    *("config-path", "config-name", "config-dir", "experimental-rerun", "info"),
)
OTHER_CONFIGS = ("--config-", "-cp", "-cn", "-cd", "hydra.searchpath")  # with them there may be other keys
SWEEPING = ("-m", "--multirun")


def check(words: Sequence[str]) -> None:
    """Raise UsageError for a method, a key or an option that does not exist, with the nearest that does.

    So for what other projects' main.py calls otherwise, for flags in the style of the other scripts, and for a value
    that is none of its option's type.
    """
    registry.load_methods()
    known = [*shared_flags(), *_own_keys(), "method"]
    _refuse_flags(words, known)
    if any(word.lstrip("+").startswith(OTHER_CONFIGS) for word in words):
        return
    overrides = [_parsed(word) for word in _overrides(words)]
    given = [value for o in overrides if o.key_or_group == "method" for value in _values(o)] or ["sum"]
    named = [name for name in given if isinstance(name, str)]
    if len(named) < len(given):
        raise UsageError("method: expected a name, as in method=ties (python main.py --methods lists them)")
    chosen = [name for name in named if name in registry.METHODS]
    offered = {f"method.{option}" for name in chosen for option in registry.METHODS[name].defaults()}
    if instead := of_overrides(words, offered):
        raise UsageError(f"{instead} (other projects' options: docs/vision.md has a table)")
    for name in named:
        if name not in chosen and not (METHOD_CONFIGS / f"{name}.yaml").is_file():
            hint = nearest(name, registry.METHODS)
            raise UsageError(f"method: {name!r} does not exist{hint} (python main.py --methods lists them)")
    for override in overrides:
        first, _, option = override.key_or_group.partition(".")
        if first == "hydra" or first.startswith("hydra/"):
            continue
        if first == "method" and option and override.type != OverrideType.DEL:
            for name in chosen:
                _check_option(override, name, option)
        _check_key(override, first, option, known)


@functools.cache
def _own_keys() -> tuple[str, ...]:
    """Those of config/config.yaml."""
    keys = OmegaConf.load(ROOT / "config" / "config.yaml")
    return tuple(str(key) for key in keys if key not in ("defaults", "hydra"))


def _refuse_flags(words: Sequence[str], known: Collection[str]) -> None:
    for place, word in enumerate(words):
        flag, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or any(own.startswith(flag) for own in HYDRAS):
            continue
        if (key := flag.replace("-", "_")) not in known:
            raise UsageError(f"{word}: expected key=value, without dashes{nearest(key, known)}")
        values = [value] if equals else _bare(words[place + 1 :])
        text = f"[{','.join(values)}]" if len(values) > 1 else "".join(values) or "True"
        raise UsageError(f"{word}: keys of main.py have no dashes; write {key}={text}")


def _bare(words: Sequence[str]) -> list[str]:
    """The first words, up to one that is a flag or an override."""
    end = next((place for place, word in enumerate(words) if word.startswith("-") or "=" in word), len(words))
    return list(words[:end])


def _overrides(words: Sequence[str]) -> Iterator[str]:
    """All words but flags of Hydra's and their values."""
    for before, word in zip(["", *words], words):
        if not word.startswith("-") and ("=" in word or not before.startswith("-") or before in SWEEPING):
            yield word


def _parsed(word: str) -> Override:
    if "=" not in word and not word.startswith("~"):
        raise UsageError(f"{word!r}: expected key=value, as in method=ties")
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise UsageError(f"{word!r}: expected key=value, as in method.k=20: {_line(error)}") from None


def _values(override: Override) -> list[Any]:
    """The value, or those of a sweep."""
    if not override.is_sweep_override():
        return [override.value()]
    key = override.get_key_element().lstrip("+~")
    return [_parsed(f"{key}={text}").value() for text in override.sweep_string_iterator()]


def _check_key(override: Override, key: str, entry: str, known: Sequence[str]) -> None:
    word = override.input_line
    if key in GROWING and entry and override.type == OverrideType.CHANGE:
        raise UsageError(f"{word}: expected a + in front, since it is a key that is added: +{word}")
    if key not in known:
        raise UsageError(f"{key}: this key does not exist{nearest(key, known)} (method=ties --cfg job lists them)")
    if override.type == OverrideType.ADD and not (key in GROWING and entry or key == "method" and "." in entry):
        raise UsageError(f"{word}: expected no + in front, since the key is there: {str(word).lstrip('+')}")


def _check_option(override: Override, method: str, option: str) -> None:
    name = option.partition(".")[0]
    options = list(registry.METHODS[method].defaults())
    if name not in options:
        has = f"it has {', '.join(options)}" if options else "it has none"
        raise UsageError(f"method.{option}: {method} has no option {name}{nearest(name, options)} ({has})")
    for value in _values(override):
        try:
            OmegaConf.update(OmegaConf.structured(registry.SCHEMAS[method]), option, value)
        except OmegaConfBaseException as error:
            raise UsageError(f"method.{option}: {_line(error)}") from None


def _line(error: Exception) -> str:
    """The first line of a message."""
    return next(iter(str(error).splitlines()), "")
