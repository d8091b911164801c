"""Whatever waits under a Halt ends when it is set, and not by the time that it would have waited."""

from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from moe_model.errors import HaltedError
from moe_model.halt import Halt


def test_a_wait_ends_with_what_comes_first() -> None:
    halt, future = Halt(), Future[int]()
    with pytest.raises(TimeoutError):
        halt.result(future, 0.01)
    with ThreadPoolExecutor(2) as executor:
        waiting = executor.submit(halt.result, future, 60.0)
        future.set_result(3)
        assert waiting.result(30) == 3
        stuck = executor.submit(halt.result, Future[int](), 60.0)
        halt.set()
        with pytest.raises(HaltedError):
            stuck.result(30)
    assert halt.result(future, 0.0) == 3, "what is there is there"


def test_it_stays_set_and_tells_all_once() -> None:
    halt, told = Halt(), list[str]()
    halt.check()
    halt.then(lambda: told.append("before"))
    assert not halt.is_set
    halt.set()
    halt.set()
    halt.then(lambda: told.append("after"))
    assert halt.is_set
    assert told == ["before", "after"]
    with pytest.raises(HaltedError):
        halt.check()


def test_a_wait_is_over_with_its_time_or_with_the_halt() -> None:
    halt = Halt()
    halt.wait(0.01)
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(halt.wait, 60.0)
        halt.set()
        with pytest.raises(HaltedError):
            waiting.result(10)
