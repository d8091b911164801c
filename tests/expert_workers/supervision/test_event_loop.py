import logging
import threading
import time
from collections.abc import Iterator
from queue import Queue
from typing import Any

import pytest

from expert_workers.supervision.event_loop import EventLoop
from expert_workers.transports.base import Failure, FailureReason, WorkerFailureError
from moe_model.errors import ClusterError
from tests.threads import no_thread_left

LATE = Failure(FailureReason.LATE, "worker 0: no answer in time")


class Noting:
    """A loop whose events are noted, together with what follows each."""

    def __init__(self) -> None:
        self.seen: Queue[Any] = Queue()
        self.timeout = 60.0
        self.loop = EventLoop("noting", self.after, lambda: self.timeout)
        self.loop.start()

    def after(self) -> None:
        self.seen.put("after")

    def note(self, what: Any) -> None:
        self.loop.post(lambda: self.seen.put((what, threading.current_thread().name)))

    def next(self) -> Any:
        return self.seen.get(timeout=30)


@pytest.fixture
def noting() -> Iterator[Noting]:
    with no_thread_left():
        noting = Noting()
        yield noting
        noting.loop.close(30)


def test_events_come_one_after_the_other_on_one_thread_and_each_is_followed_up(noting: Noting) -> None:
    for number in range(3):
        noting.note(number)
    expected = [found for number in range(3) for found in ((number, "noting"), "after")]
    assert [noting.next() for _ in expected] == expected


def test_time_that_passes_is_followed_up_as_well(noting: Noting) -> None:
    noting.timeout = 0.01
    noting.note("first")
    assert [noting.next() for _ in range(4)] == [("first", "noting"), "after", "after", "after"]


def test_work_is_done_elsewhere_and_ends_as_an_event(noting: Noting) -> None:
    go = threading.Event()

    def work() -> str:
        assert go.wait(30)
        return threading.current_thread().name

    noting.loop.submit(work, lambda result: noting.seen.put((result, threading.current_thread().name)))
    noting.note("meanwhile")
    assert noting.next() == ("meanwhile", "noting")
    assert noting.next() == "after"
    go.set()
    assert noting.next() == ("noting-job", "noting")
    assert noting.next() == "after"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (WorkerFailureError(LATE), LATE),
        (ClusterError("no cluster"), Failure(FailureReason.RAISED, "no cluster")),
        (KeyError("x"), Failure(FailureReason.RAISED, "unforeseen: KeyError")),
    ],
)
def test_what_fails_ends_as_a_failure(noting: Noting, error: Exception, expected: Failure) -> None:
    def work() -> None:
        raise error

    noting.loop.submit(work, noting.seen.put)
    assert noting.next() == expected


def test_an_event_that_raises_is_logged_and_others_follow(
    noting: Noting, caplog: pytest.LogCaptureFixture
) -> None:
    def bad() -> None:
        raise ValueError("odd")

    with caplog.at_level(logging.ERROR):
        noting.loop.post(bad)
        noting.note("next")
        assert noting.next() == ("next", "noting")
    assert "something unforeseen" in caplog.text
    assert "ValueError: odd" in caplog.text


def test_close_waits_for_what_is_going_on_and_starts_nothing_more() -> None:
    noting, go, done = Noting(), threading.Event(), threading.Event()

    def work() -> None:
        assert go.wait(30)
        done.set()

    noting.loop.submit(work, lambda result: None)
    threading.Timer(0.05, go.set).start()
    noting.loop.close(30)
    assert done.is_set()
    noting.loop.submit(done.clear, lambda result: None)
    noting.loop.post(done.clear)
    noting.loop.close(30)
    assert done.is_set()


def test_close_waits_no_longer_than_it_may() -> None:
    noting, go = Noting(), threading.Event()
    noting.loop.submit(lambda: go.wait(30), lambda result: None)
    started = time.monotonic()
    noting.loop.close(0.1)
    assert 0.1 <= time.monotonic() - started < 10
    go.set()
    noting.loop.close(30)


def test_what_was_never_started_can_be_closed() -> None:
    EventLoop("never", lambda: None, lambda: 1.0).close(1.0)


def test_where_no_thread_is_to_be_had_the_end_comes_all_the_same(
    noting: Noting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        noting.loop.submit(lambda: "never", noting.seen.put)
    assert noting.next() == Failure(FailureReason.RAISED, "can't start new thread")
    assert noting.next() == "after"
