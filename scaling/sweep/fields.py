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
        *path, last = key.split(".") if "." in key else [key]
        place = found
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{name}: {key!r} is a part of a field that has a value")
        if last in place:
            if not (isinstance(inner, dict) and isinstance(place[last], dict)):
                raise ConfigError(f"{name}: {key!r} is there twice")
            inner = merged(place[last], inner)
        place[last] = inner
    return found


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
