"""JSON from outside: duplicate keys, NaN and infinities are errors, which the standard parser lets pass."""

import json
import math
from collections import Counter
from typing import Any


def loads(data: bytes | bytearray) -> Any:
    """Parses UTF-8 JSON. Raises ValueError with a one-line reason for anything that is not plain JSON."""
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def brief(value: object) -> str:
    """A value for an error message: one short line, whatever it is."""
    return repr(value)[:80] if isinstance(value, str | int | float | None) else type(value).__name__


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"duplicate key {key[:80]!r}")
    return unique


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:80]} is beyond the range of numbers")
    return value
