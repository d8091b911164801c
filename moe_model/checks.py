"""Numbers from outside, checked one by one, and dataclasses of them."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from moe_model.errors import ConfigError
from moe_model.files.strict_json import brief

# Of a feed-forward network: far above any that exists.
MAX_WIDTH = 1 << 20


def check_count(name: str, value: object, limit: int) -> None:
    """Raises ConfigError unless the value is a whole number in [1, limit]."""
    # A value is shown only once it is known to be small: it may come from a hostile file.
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name}: expected a whole number, got {type(value).__name__}")
    if not 1 <= value <= limit:
        shown = value if abs(value) < 1 << 64 else "a number of more than 64 bits"
        raise ConfigError(f"{name}: {shown} is not in [1, {limit}]")


def check_number(name: str, value: object, low: float, high: float) -> None:
    """Raises ConfigError unless the value is a number in [low, high]."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{name}: {brief(value)} is not a number in [{low:g}, {high:g}]")


def check_flag(name: str, value: object) -> None:
    """Raises ConfigError unless the value is true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}: expected true or false, got {type(value).__name__}")


def check_object(name: str, value: object, kind: type) -> None:
    """Raises ConfigError unless the value, from JSON, was an object that became a `kind`."""
    if not isinstance(value, kind):
        raise ConfigError(f"{name}: expected an object")


def check_width(name: str, value: object) -> None:
    """Of a feed-forward network, 0 for none. Raises ConfigError for another value than a whole number."""
    if value != 0 or isinstance(value, bool):
        check_count(name, value, MAX_WIDTH)


_Made = TypeVar("_Made")


def from_json(kind: type[_Made], data: object, where: str) -> _Made:
    """A dataclass from parsed JSON. Fields that are dataclasses, or None, are made in the same way; lists are
    tuples. What the class itself checks it has to check. Raises ConfigError naming the key."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected an object, got {type(data).__name__}")
    assert is_dataclass(kind)
    check_known(data, {field.name for field in fields(kind)}, where)
    hints = get_type_hints(kind)
    values = {name: _field(hints[name], value, f"{where}: {name}") for name, value in data.items()}
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except TypeError:
        raise ConfigError(f"{where}: a key is missing") from None


def check_known(data: Mapping[Any, Any], known: set[str], where: str) -> None:
    """Raises ConfigError for the first key that is not known."""
    for key in data:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {str(key)[:80]!r}")


def _field(hint: Any, value: object, where: str) -> object:
    inner = next((each for each in (hint, *get_args(hint)) if is_dataclass(each)), None)
    if isinstance(value, list | tuple):
        return tuple(value)
    if get_origin(hint) is tuple:
        raise ConfigError(f"{where}: expected a list, got {type(value).__name__}")
    return value if inner is None or value is None else from_json(inner, value, where)  # type: ignore[arg-type]
