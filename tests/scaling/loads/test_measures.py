"""What a load's requests are together, by hand on small ones and by laws on any."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from scaling.loads.base import LoadRun, Timed
from scaling.loads.measures import goodput, measures, per_token, spread, timeline, token_gaps
from scaling.observation import Observation

# Due at 1, sent late at 2; three tokens; the second is due at 1.5 and fails after one.
GOOD = Timed(1.0, 2.0, 5.0, (3.0, 3.5, 4.5), 10, 3, (7, 8, 9))
BAD = Timed(1.5, 1.5, 2.0, (1.75,), 20, 1, (4,), "UNAVAILABLE")
RUN = LoadRun(5.0, (GOOD, BAD), 0.5)


def test_waits_count_from_when_a_request_was_due() -> None:
    found = measures(RUN)
    assert found["first_token_ms"].mean == 2000
    assert found["first_token_ms"].num == 1
    assert found["per_token_ms"].mean == 750
    assert (found["gap_ms"].mean, found["gap_ms"].num, found["max_gap_ms"]) == (750, 2, 1000)


def test_counts_and_rates() -> None:
    found = measures(RUN)
    assert (found["num_requests"], found["num_failed"], found["errors"]) == (2, 1, {"UNAVAILABLE": 1})
    assert (found["num_prompt_tokens"], found["num_tokens"]) == (10, 4)
    assert (found["tokens_per_s"], found["requests_per_s"]) == (0.8, 0.2)
    assert found["tokens_sha"] == hashlib.sha256(b"7,8,9;4;").hexdigest()


def test_they_are_fields_of_an_observation() -> None:
    found = Observation(cell="c", round=0, seed=0, started_at="", **measures(RUN))
    assert found.first_token_ms is not None
    assert found.first_token_ms.median == 2000


def test_a_timeline_has_tenths_of_a_second() -> None:
    found = timeline(RUN)
    assert len(found) == 51
    assert {index: num for index, num in enumerate(found) if num} == {17: 1, 30: 1, 35: 1, 45: 1}


def test_what_a_tool_does_not_tell_is_left_out() -> None:
    only_ends = structs.replace(GOOD, token_s=(3.0, 4.5), token_ids=())
    found = measures(LoadRun(5.0, (only_ends,), 0.0))
    assert (found["gap_ms"], found["timeline"], found["tokens_sha"]) == (None, [], "")
    assert found["per_token_ms"].mean == 750


def test_nothing_but_failures_has_no_waits() -> None:
    found = measures(LoadRun(2.0, (structs.replace(BAD, token_s=(), num_tokens=0),), 0.0))
    assert (found["first_token_ms"], found["gap_ms"], found["requests_per_s"]) == (None, None, 0)
    assert measures(LoadRun(0.0, (), 0.0))["tokens_per_s"] == 0


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 0.2),
        ({"first_token_ms": 2000}, 0.2),
        ({"first_token_ms": 1999}, 0),
        ({"per_token_ms": 749}, 0),
        ({"request_ms": 4000, "per_token_ms": 750}, 0.2),
        ({"request_ms": 3999}, 0),
    ],
)
def test_goodput_is_of_requests_within_all_limits(limits: dict[str, float], expected: float) -> None:
    assert goodput(RUN, **limits) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_quantiles_are_in_their_order_and_within(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    assert list(found.quantiles) == sorted(found.quantiles)
    assert min(values) - 1e-6 <= found.quantiles[0]
    assert found.quantiles[-1] <= max(values) + 1e-6
    assert found.num == len(values)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=20))
def test_the_gaps_of_a_request_are_its_time_per_token(times: list[float]) -> None:
    request = Timed(0.0, 0.0, 101.0, tuple(sorted(times)), 1, len(times))
    assert sum(token_gaps(request)) == pytest.approx(per_token(request) * (len(times) - 1), abs=1e-6)
