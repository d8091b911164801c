"""Each expectation has a record that breaks it, and only it; a record that is well breaks none."""

import json
from collections.abc import Callable

import pytest

from chaos.events import Kill
from chaos.history import Stream
from chaos.judge import judge
from chaos.record import FaultRecord, Record
from chaos.report import as_json, table
from chaos.scenario import Expect, Scenario
from tests.chaos_engine.histories import GOLDEN, stream


def record(**expect: object) -> Record:
    """Two requests before a fault at 10 s, one during it, which has a gap of 2 s, and one after."""
    made = Record(Scenario("small", events=(Kill(),), expect=Expect(**expect)), "host:1", golden=[GOLDEN])  # type: ignore[arg-type]
    slow = stream(due=9.5, step=0.2)
    for index in (2, 3):
        slow.times[index] += 2.0
    slow.ends[0] = slow.ends[0].__class__(12.5, 4, num_tokens=4)
    made.streams = [stream(), stream(due=1.0), slow, stream(due=15.0)]
    made.num_sent, made.began, made.ended = 4, 0.0, 20.0
    made.faults = [FaultRecord("kill", 10.0, rank=1, pid=5, proof="gone", ended=10.1, restored=13.0)]
    made.worker_losses, made.idle_after = 1, 0.01
    return made


def failures(made: Record) -> tuple[str, ...]:
    return judge(made).failures


def test_all_is_well() -> None:
    verdict = judge(record(max_gap=3.0, max_gap_added=2.5, max_p99_ratio=50, restored_within=3.0))
    assert verdict.failures == ()
    assert (verdict.num_lost, verdict.changed_tokens, verdict.outcomes["completed"]) == (0, 0, 4)
    assert verdict.added_gap == pytest.approx(2.2 - 0.2)
    assert verdict.during.gaps.longest == pytest.approx(2.2)


@pytest.mark.parametrize(
    ("expect", "said"),
    [
        ({"max_gap": 2.0}, "the longest gap is 2.200 s, 2 s are allowed"),
        ({"max_gap_added": 1.5}, "faults added 2.000 s to a gap, 1.5 s are allowed"),
        ({"max_p99_ratio": 2.5}, "the p99 gap during faults is 11.00 times that outside, 2.5 are allowed"),
        ({"restored_within": 2.5}, "kill worker 1: as before after 3.00 s, 2.5 s are allowed"),
        ({"max_worker_losses": 0}, "the server gave up workers 1 times, 0 are allowed"),
        ({"min_worker_losses": 2}, "the server gave up workers 1 times, at least 2 were due"),
    ],
)
def test_what_is_too_much(expect: dict[str, float], said: str) -> None:
    assert failures(record(**expect)) == (said,)


def lose(made: Record) -> None:
    made.streams = [*made.streams[:3], stream(due=15.0, tokens=GOLDEN[:1], code="INTERNAL")]


def refuse(made: Record) -> None:
    refused = Stream(0, 15.0)
    refused.end(15.1, "RESOURCE_EXHAUSTED")
    made.streams = [*made.streams[:3], refused]


def change(made: Record) -> None:
    made.streams = [*made.streams[:3], stream(due=15.0, tokens=(11, 12, 13, 99))]


def forget(made: Record) -> None:
    made.num_sent = 5


def hold(made: Record) -> None:
    made.left_over = ["1 sequences run"]


def spoil(made: Record) -> None:
    made.streams[0].indices[2] = 7


def do_nothing(made: Record) -> None:
    made.faults = []


def fail_to_break(made: Record) -> None:
    made.faults[0].problem = "no such process"


@pytest.mark.parametrize(
    ("break_it", "expect", "said"),
    [
        (lose, {}, "1 requests lost, 0 are allowed"),
        (
            lose,
            {"max_lost": 1, "statuses": ("UNAVAILABLE",)},
            "1 requests ended INTERNAL; UNAVAILABLE is allowed",
        ),
        (refuse, {}, "1 requests refused, 0 are allowed"),
        (change, {}, "1 tokens changed, 0 are allowed"),
        (forget, {}, "5 requests were sent and 4 have ended: {'completed': 4}"),
        (hold, {}, "afterwards 1 sequences run"),
        (spoil, {}, "stream 0 (request 0): token 7 came where token 2 was due"),
        (do_nothing, {}, "nothing was broken"),
        (fail_to_break, {}, "kill worker 1: no such process"),
    ],
)
def test_what_must_not_be(break_it: Callable[[Record], None], expect: dict[str, object], said: str) -> None:
    made = record(**expect)
    break_it(made)
    assert said in failures(made)


def test_what_is_allowed() -> None:
    for allowed in (1, "any"):
        made = record(max_lost=allowed, statuses=("INTERNAL",))
        lose(made)
        assert failures(made) == ()


def test_no_request_at_all_is_a_failure() -> None:
    made = record()
    made.streams, made.num_sent = [], 0
    assert "no request was completed" in failures(made)


def test_a_thousand_broken_streams_are_a_few_lines() -> None:
    made = record()
    made.streams = [stream(num_tokens=9) for _ in range(1000)]
    made.num_sent = 1000
    found = failures(made)
    assert len(found) < 30
    assert found[-1] == "and 980 more"


def test_what_is_right_before_during_and_after_an_exchange() -> None:
    new = (21, 22, 23, 24)
    made = record()
    made.golden_after, made.exchange = [new], (10.0, 11.0)
    old_before, new_before = stream(due=1.0), stream(due=1.0, tokens=new)
    old_over, new_over = stream(due=9.9), stream(due=9.9, tokens=new)
    old_after, new_after = stream(due=15.0), stream(due=15.0, tokens=new)
    for right in (old_before, old_over, new_over, new_after):
        made.streams, made.num_sent = [right], 1
        assert judge(made).changed_tokens == 0
    for wrong in (new_before, old_after):
        made.streams = [wrong]
        assert judge(made).changed_tokens == 4
    assert made.num_exchanged == 1


def test_the_report_says_it_twice() -> None:
    made = record()
    shown = table(made, judge(made))
    assert "kill worker 1                     3.00  gone" in shown
    assert "requests  4 sent, 4 completed, 0 lost" in shown
    assert "tokens    16 received, 0 changed" in shown
    assert shown.endswith("passed")
    line = as_json(made, judge(made))
    assert "\n" not in line
    found = json.loads(line)
    assert found["passed"] is True
    assert found["requests"] == {"sent": 4, "completed": 4, "lost": 0, "refused": 0, "cancelled": 0}
    assert found["faults"][0]["restored_after_seconds"] == 3.0
    assert len(found["gap_histogram_seconds"]) + 1 == len(found["during"]["gap_histogram"])


def test_the_report_of_a_failure_names_what_was_lost() -> None:
    made = record()
    lose(made)
    shown = table(made, judge(made))
    assert "1 lost" in shown
    assert "FAILED: 1 requests lost, 0 are allowed" in shown
    assert json.loads(as_json(made, judge(made)))["statuses"] == {"INTERNAL": 1}
