"""What parsed JSON must be, key by key and value by value."""

import math

from moe_model.errors import ConfigError


def check_keys(data: object, known: set[str]) -> None:
    """Raises ConfigError for what is no object with exactly these keys."""
    if not isinstance(data, dict):
        raise ConfigError("expected an object")
    for key in data:
        if key not in known:
            raise ConfigError(f"unknown key {key[:80]!r}")
    missing = known - set(data)
    if missing:
        raise ConfigError(f"missing key {min(missing)!r}")


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    return is_int(value) or (isinstance(value, float) and math.isfinite(value))
