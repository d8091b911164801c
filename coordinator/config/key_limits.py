"""What one API key may ask for: in a line of the key file, and as an argument."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from moe_model.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Limits:
    """None: no limit."""

    rps: float | None = None
    concurrent: int | None = None
    tokens_per_minute: float | None = None

    def __str__(self) -> str:
        """As `parse_limits` reads it; empty where nothing is limited."""
        given = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ",".join(f"{name}={value:.15g}" for name, value in given if value is not None)


NO_LIMITS = Limits()
_LIMITS: Mapping[str, Callable[[str], float]] = {"rps": float, "concurrent": int, "tokens_per_minute": float}


def parse_limits(text: str) -> Limits:
    """`rps=N,concurrent=N,tokens_per_minute=N`, each once at most. Raises ConfigError."""
    values: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in _LIMITS or name in values:
            raise ConfigError(f"limits: expected each of {', '.join(_LIMITS)} once at most, as NAME=N")
        try:
            number = _LIMITS[name](value)
        except ValueError:
            number = 0
        if not 0 < number <= 1e12:
            raise ConfigError(f"limits: {name} is not a number above 0")
        values[name] = number
    return Limits(**values)  # type: ignore[arg-type]


def limits_argument(text: str) -> Limits:
    """As an argument of a command. Raises ArgumentTypeError."""
    try:
        return parse_limits(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
