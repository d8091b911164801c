"""The numbers that a request may give for sampling: one row each, for every front and every use.

A row's name is that of the message's field, of HTTP's parameter and of the engine's SamplingParams.
"""

from collections.abc import Callable
from dataclasses import dataclass

from coordinator.api.validation.violations import Violations
from expertmesh.v1 import generation_pb2 as pb
from moe_model.checkpoint.generation_defaults import MAX_REPETITION_PENALTY, MAX_TEMPERATURE


@dataclass(frozen=True, slots=True)
class Number:
    """`fits` says whether a value is allowed for a vocabulary of so many tokens; it is false for NaN.
    `limits` say so in words."""

    name: str
    fits: Callable[[float, int], bool]
    limits: str
    is_whole: bool = False


NUMBERS = (
    Number("temperature", lambda value, _: 0 <= value <= MAX_TEMPERATURE, "[0, 2]"),
    Number("top_p", lambda value, _: 0 < value <= 1, "(0, 1]"),
    Number("top_k", lambda value, vocab: 0 <= value <= vocab, "[0, {vocab_size}]", is_whole=True),
    Number("min_p", lambda value, _: 0 <= value <= 1, "[0, 1]"),
    Number("presence_penalty", lambda value, _: -2 <= value <= 2, "[-2, 2]"),
    Number("frequency_penalty", lambda value, _: -2 <= value <= 2, "[-2, 2]"),
    Number("repetition_penalty", lambda value, _: 0 < value <= MAX_REPETITION_PENALTY, "(0, 2]"),
)


def given_numbers(sampling: pb.SamplingParams) -> dict[str, float]:
    """Those that are set, by name."""
    return {each.name: getattr(sampling, each.name) for each in NUMBERS if sampling.HasField(each.name)}


def check_numbers(sampling: pb.SamplingParams, vocab_size: int, violations: Violations) -> None:
    """In the order of the rows."""
    given = given_numbers(sampling)
    for each in NUMBERS:
        if each.name in given:
            value, limits = given[each.name], each.limits.format(vocab_size=vocab_size)
            violations.check(each.fits(value, vocab_size), f"sampling.{each.name}", value, limits)
