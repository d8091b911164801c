"""Which JSON schemas are enforced: refuses, by name, what the library would pass over. Knows no grammar."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from coordinator.engine.messages.errors import ConstraintError

MAX_DEPTH = 64

# Assertions that are not enforced. The library refuses them too, where the schema's own draft has them.
UNSUPPORTED = frozenset(
    (
        *(
            "not",
            "if",
            "then",
            "else",
            "contains",
            "minContains",
            "maxContains",
            "uniqueItems",
            "propertyNames",
        ),
        *(
            "dependencies",
            "dependentRequired",
            "dependentSchemas",
            "unevaluatedItems",
            "unevaluatedProperties",
        ),
        *("contentSchema", "$dynamicRef", "$recursiveRef", "x-guidance"),
    )
)
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLE = ("items", "additionalItems", "additionalProperties")

Schema = dict[str, Any]


def parse_schema(text: str) -> Schema:
    """The schema as an object. Raises ConstraintError for text that is none or asks for too much."""
    try:
        schema = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ConstraintError(f"is nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:
        raise ConstraintError(f"is not JSON: {error}"[:200]) from None
    if schema is True:
        return {}
    if schema is False:
        raise ConstraintError("no output can satisfy it")
    if not isinstance(schema, dict):
        raise ConstraintError("must be a JSON object or a boolean")
    for part in _parts(schema):
        _check(part)
    return schema


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _parts(schema: Schema) -> Iterator[Schema]:
    """The schema and all schemas in it."""
    waiting: list[tuple[Any, int]] = [(schema, 1)]
    while waiting:
        part, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ConstraintError(f"is nested more than {MAX_DEPTH} deep")
        if isinstance(part, dict):
            yield part
            waiting += ((child, depth + 1) for child in _children(part))


def _children(part: Schema) -> Iterator[Any]:
    for name in _MAPS:
        if isinstance(part.get(name), Mapping):
            yield from part[name].values()
    for name in _LISTS:
        if isinstance(part.get(name), list):
            yield from part[name]
    yield from (part[name] for name in _SINGLE if isinstance(part.get(name), Mapping))


def _check(part: Schema) -> None:
    for name in part.keys() & UNSUPPORTED:
        raise ConstraintError(f"{name} is not supported")
    for name in ("exclusiveMinimum", "exclusiveMaximum"):
        if isinstance(part.get(name), bool):
            raise ConstraintError(f"{name} must be a number")
    reference = part.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise ConstraintError("$ref outside the schema is not supported")
    _check_min_properties(part)


def _check_min_properties(part: Schema) -> None:
    """The grammar lets free keys repeat, so that only one of them is sure to be new."""
    least, required = part.get("minProperties"), part.get("required", [])
    if (
        isinstance(least, int | float)
        and isinstance(required, list)
        and least > len(set(map(str, required))) + 1
    ):
        raise ConstraintError("minProperties above the number of required properties + 1 is not supported")
