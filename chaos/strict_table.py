"""Dataclasses from TOML tables: an unknown key, a missing one and a value that does not fit are errors of one
line that name the key. The fields of the dataclass are all that is known."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from moe_model.errors import ConfigError

T = TypeVar("T")
Table = Mapping[str, object]


def bounded(default: object, low: float, high: float = math.inf) -> Any:
    """A field whose numbers, or the elements of it, must be in [low, high]."""
    return field(default=default, metadata={"low": low, "high": high})


def required(low: float = -math.inf, high: float = math.inf) -> Any:
    """A field that has no default."""
    return field(metadata={"low": low, "high": high})


def from_table(kind: type[T], table: Table, where: str) -> T:
    """`where` names the file and the table. Raises ConfigError."""
    # Typing has no public name for a class that dataclass has made.
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: {key[:80]!r} is not a key of this table ({', '.join(known)})")
    hints = get_type_hints(kind)
    values = {}
    for name, each in known.items():
        if name in table:
            values[name] = _value(table[name], hints[name], each, f"{where}: {name}")
        elif each.default is MISSING and each.default_factory is MISSING:
            raise ConfigError(f"{where}: {name} is missing")
    return kind(**values)


def sub_table(table: Table, key: str, where: str) -> Table:
    """An empty one if the key is not there. Raises ConfigError."""
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {key} is not a table")
    return value


def sub_tables(table: Table, key: str, where: str) -> list[Table]:
    """Raises ConfigError."""
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ConfigError(f"{where}: {key} is not a list of tables; write [[{key}]]")
    return value


def _value(value: object, hint: Any, each: Field[Any], where: str) -> object:
    if not _fits(value, hint):
        raise ConfigError(f"{where}: {str(value)[:80]!r} is not {_named(hint)}")
    found = tuple(value) if isinstance(value, list) else value
    low, high = each.metadata.get("low", -math.inf), each.metadata.get("high", math.inf)
    for number in found if isinstance(found, tuple) else (found,):
        if isinstance(number, int | float) and not low <= number <= high:
            raise ConfigError(f"{where}: {number} is not in [{low:g}, {high:g}]")
    return found


def _fits(value: object, hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, list) and _fit_all(value, get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return hint is not type(None) and isinstance(value, hint) and (hint is bool) == isinstance(value, bool)


def _fit_all(values: list[object], hints: tuple[Any, ...]) -> bool:
    if hints[-1] is Ellipsis:
        return bool(values) and all(_fits(value, hints[0]) for value in values)
    return len(values) == len(hints) and all(_fits(v, hint) for v, hint in zip(values, hints, strict=True))


def _named(hint: Any) -> str:
    """A type as the user of a file calls it."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_named(one) for one in get_args(hint) if one is not type(None))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list of {_named(get_args(hint)[0])}"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names[hint]
