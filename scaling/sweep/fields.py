"""Fields of a cell as files name them: nested, or with dots, `load.concurrency`."""

from collections.abc import Mapping
from typing import Any

from moe_model.errors import ConfigError

# Deeper than any field of a cell is.
_MAX_DEPTH = 6


def nested(fields: Mapping[str, Any], name: str, depth: int = 0) -> dict[str, Any]:
    """Dots in keys become dictionaries. Raises ConfigError where a field is there in both forms."""
    if depth > _MAX_DEPTH:
        raise ConfigError(f"{name}: too deep")
    found: dict[str, Any] = {}
    for key, value in fields.items():
        inner = nested(value, f"{name}.{key}", depth + 1) if isinstance(value, Mapping) else value
        for part in reversed(key.split(".")):
            inner = {part: inner}
        _add(found, inner, name)
    return found


def _add(found: dict[str, Any], more: dict[str, Any], name: str) -> None:
    for key, value in more.items():
        if key not in found:
            found[key] = value
        elif isinstance(found[key], dict) and isinstance(value, dict):
            _add(found[key], value, f"{name}.{key}")
        else:
            raise ConfigError(f"{name}: {key!r} is there twice")


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` where it says something, `base` elsewhere; dictionaries are merged, all else is replaced."""
    found = dict(base)
    for key, value in over.items():
        before = found.get(key)
        both = isinstance(value, Mapping) and isinstance(before, Mapping)
        found[key] = merged(before, value) if both else value  # type: ignore[arg-type]
    return found


def says(whole: Any, part: Any) -> bool:
    """Whether `part`, a partial match, is true of `whole`: all that it names is there and equal."""
    if isinstance(part, Mapping):
        return isinstance(whole, Mapping) and all(
            key in whole and says(whole[key], value) for key, value in part.items()
        )
    if isinstance(part, list | tuple):
        return (
            isinstance(whole, list | tuple)
            and len(whole) == len(part)
            and all(says(one, other) for one, other in zip(whole, part, strict=True))
        )
    # 1 is True in Python, and is not in a file.
    return bool(isinstance(whole, bool) == isinstance(part, bool) and whole == part)
