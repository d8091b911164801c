"""Of a tool's schema, what calls are kept to where the caller does not ask for all of it."""

from collections.abc import Mapping
from typing import Any

from coordinator.structured.json_schema import UNSUPPORTED

# Of these, values are schemas by name, lists of schemas, or one schema.
_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
MAX_DEPTH = 64


def kept_schema(schema: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """The schema without the assertions that are not enforced. Deeper than MAX_DEPTH it is as it was."""
    if depth > MAX_DEPTH:
        return dict(schema)
    return {key: _kept(key, value, depth + 1) for key, value in schema.items() if key not in UNSUPPORTED}


def _kept(key: str, value: Any, depth: int) -> Any:
    if key in _MAPS and isinstance(value, Mapping):
        return {name: _one(each, depth) for name, each in value.items()}
    if (key in _LISTS or key == "items") and isinstance(value, list):
        return [_one(each, depth) for each in value]
    if key in ("items", "additionalItems", "additionalProperties"):
        return _one(value, depth)
    return value


def _one(value: Any, depth: int) -> Any:
    return kept_schema(value, depth) if isinstance(value, Mapping) else value
