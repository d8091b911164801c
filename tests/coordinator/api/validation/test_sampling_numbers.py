"""A number of sampling is one row: for the message, for HTTP, and for the engine."""

from dataclasses import fields

import pytest

from coordinator.api.shared.errors import ApiError
from coordinator.api.validation.sampling_numbers import NUMBERS, Number, check_numbers, given_numbers
from coordinator.api.validation.violations import Violations
from expertmesh.v1 import generation_pb2 as pb
from moe_model.sampling.params import SamplingParams


def test_every_number_of_the_engine_has_a_row() -> None:
    others = {"seed", "logit_bias"}
    assert {each.name for each in NUMBERS} == {each.name for each in fields(SamplingParams)} - others


def test_only_what_is_set_is_given() -> None:
    assert given_numbers(pb.SamplingParams()) == {}
    assert given_numbers(pb.SamplingParams(min_p=0.0, top_k=3)) == {"min_p": 0.0, "top_k": 3}


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: str(number.name))
def test_what_does_not_fit_is_told_with_its_limits(number: Number) -> None:
    value = 999 if number.is_whole else float("nan")
    sampling, violations = pb.SamplingParams(), Violations()
    setattr(sampling, number.name, value)
    check_numbers(sampling, 320, violations)
    with pytest.raises(ApiError, match=rf"^sampling\.{number.name}: {value} is not in"):
        violations.raise_if_any()
