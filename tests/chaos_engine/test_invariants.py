"""Each invariant has a history that breaks it, and says so; one that is well breaks none."""

from collections.abc import Callable

import pytest

from chaos.history import Stream
from chaos.invariants import left_over, num_changed, unaccounted, violations
from tests.chaos_engine.histories import GOLDEN, stream


def broken(change: Callable[[Stream], object], code: str = "OK") -> list[str]:
    made = stream(code=code)
    change(made)
    return list(violations(made))


def test_histories_that_are_well() -> None:
    assert list(violations(stream())) == []
    assert list(violations(stream(tokens=GOLDEN[:2], code="UNAVAILABLE"))) == []
    refused = Stream(0, 0.0)
    refused.end(0.1, "RESOURCE_EXHAUSTED")
    assert list(violations(refused)) == []
    cancelled = Stream(0, 0.0, was_cancelled=True)
    assert list(violations(cancelled)) == []


def test_a_token_that_is_missing() -> None:
    def lose_one(made: Stream) -> None:
        for numbers in (made.indices, made.token_ids, made.times):
            numbers.pop(2)

    assert "token 3 came where token 2 was due" in broken(lose_one)


def test_a_token_that_came_twice() -> None:
    assert "token 1 came where token 2 was due" in broken(lambda made: made.indices.insert(1, 1))


def test_tokens_in_another_order() -> None:
    assert "token 3 came where token 0 was due" in broken(lambda made: made.indices.reverse())


def test_times_that_run_backwards() -> None:
    assert "a token came before the one ahead of it" in broken(lambda made: made.times.reverse())


def test_tokens_without_admission() -> None:
    def never(made: Stream) -> None:
        made.admitted = None

    assert "tokens came before the request was admitted" in broken(never)


@pytest.mark.parametrize("code", ["OK", "UNAVAILABLE"])
def test_a_token_after_the_end(code: str) -> None:
    found = broken(lambda made: made.token(len(GOLDEN), 15, 0.6), code)
    assert "1 tokens came after the terminal status" in found


def test_a_token_after_the_sequence_has_finished() -> None:
    made = Stream(0, 0.0, admitted=0.0)
    made.token(0, 11, 0.1)
    made.finish()
    made.token(1, 12, 0.2)
    made.end(0.3, num_tokens=2)
    assert list(violations(made)) == ["1 tokens came after the sequence had finished"]


def test_no_end() -> None:
    assert "0 terminal statuses" in broken(lambda made: made.ends.clear())


@pytest.mark.parametrize("code", ["OK", "UNAVAILABLE"])
def test_two_ends(code: str) -> None:
    assert "2 terminal statuses" in broken(lambda made: made.end(0.7, code))


def test_ok_for_a_sequence_that_has_not_finished() -> None:
    assert "OK, and the sequence finished 0 times" in broken(lambda made: made.finishes.clear())


def test_a_sequence_that_finished_twice() -> None:
    assert "OK, and the sequence finished 2 times" in broken(lambda made: made.finish())


def test_a_summary_that_counts_others() -> None:
    found = list(violations(stream(num_tokens=5)))
    assert found == ["4 tokens came, 5 were counted by the server"]


@pytest.mark.parametrize(
    ("tokens", "code", "count"),
    [
        (GOLDEN, "OK", 0),
        ((11, 99, 13, 14), "OK", 1),
        (GOLDEN[:2], "OK", 2),
        ((*GOLDEN, 15), "OK", 1),
        ((), "OK", 4),
        (GOLDEN[:2], "UNAVAILABLE", 0),
        ((11, 99), "UNAVAILABLE", 1),
        ((*GOLDEN, 15), "UNAVAILABLE", 1),
        ((), "UNAVAILABLE", 0),
    ],
)
def test_changed_tokens(tokens: tuple[int, ...], code: str, count: int) -> None:
    """What failed may be a beginning, what is complete must be all of it."""
    assert num_changed(stream(tokens=tokens, code=code), [GOLDEN]) == count


def test_either_of_two_outputs_is_right_but_no_mixture() -> None:
    goldens = [GOLDEN, (21, 22, 23, 24)]
    assert num_changed(stream(tokens=(21, 22, 23, 24)), goldens) == 0
    assert num_changed(stream(tokens=(11, 22, 23, 24)), goldens) == 1


def test_every_request_is_accounted_for() -> None:
    streams = [stream(), stream(code="UNAVAILABLE"), Stream(0, 0.0, was_cancelled=True)]
    assert list(unaccounted(streams, 3)) == []
    assert list(unaccounted(streams, 4)), "one was sent and never heard of"
    assert list(unaccounted([*streams, Stream(0, 0.0)], 4)), "one has no end"


def test_what_a_server_still_holds() -> None:
    assert list(left_over(0, 0, 0.0)) == []
    assert list(left_over(2, 0, 0.0)) == ["2 sequences run"]
    assert list(left_over(0, 1, 0.0)) == ["1 sequences wait"]
    assert list(left_over(0, 0, 0.125)) == ["12.50 % of the KV cache are in use"]


def test_outcomes() -> None:
    assert stream().outcome == "completed"
    assert stream(code="UNAVAILABLE").outcome == "failed"
    refused = Stream(0, 0.0)
    refused.end(0.1, "RESOURCE_EXHAUSTED")
    assert refused.outcome == "refused"
    later = Stream(0, 0.0, admitted=0.05)
    later.end(0.1, "RESOURCE_EXHAUSTED")
    assert later.outcome == "failed", "it had been admitted"
    assert Stream(0, 0.0).outcome == "open"
    assert Stream(0, 0.0, was_cancelled=True).outcome == "cancelled"


def test_a_failure_ends_the_last_gap() -> None:
    made = stream(tokens=(11, 12), code="UNAVAILABLE", step=0.5)
    assert made.gaps == [(0.5, 1.0), (1.0, 1.5)]
    assert stream(tokens=(11, 12), step=0.5).gaps == [(0.5, 1.0)]
    assert Stream(0, 0.0).gaps == []
