"""What is predicted of a cell, and how far that may be from what is measured."""

from msgspec import Struct


class Interval(Struct, frozen=True, forbid_unknown_fields=True):
    """A value, and between which two it is expected."""

    value: float
    low: float
    high: float


class Prediction(Struct, frozen=True, forbid_unknown_fields=True):
    """Of one cell, by the simulation. `binds`: what the step waits for most, a few words. `split_ms`: of a
    mean step, by the same parts as an Observation has."""

    cell: str
    tokens_per_s: Interval
    gap_ms: Interval
    first_token_ms: Interval
    binds: str
    split_ms: dict[str, float] = {}
