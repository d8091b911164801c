"""Cores that are shared."""

from collections.abc import Generator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simpy import Environment, Event

from scaling.simulation.machine import Cores


def ends(num_cores: float, tasks: list[tuple[float, float]]) -> list[float]:
    """When tasks of (seconds, threads) that begin together are done, each in a group of its own."""
    env, done = Environment(), [0.0] * len(tasks)
    cores = Cores(env, num_cores)

    def note(place: int) -> None:
        done[place] = env.now

    for place, (seconds, threads) in enumerate(tasks):
        event = cores.run(cores.group(), seconds, threads)
        event.callbacks.append(lambda _, place=place: note(place))
    env.run()
    return done


def test_alone_a_task_takes_its_time() -> None:
    assert ends(2, [(3.0, 2)]) == [pytest.approx(3)]
    # More threads than cores are no more than these.
    assert ends(2, [(3.0, 8)]) == [pytest.approx(3)]


def test_threads_share_what_there_is() -> None:
    assert ends(2, [(1.0, 1), (1.0, 1)]) == [pytest.approx(1), pytest.approx(1)]
    assert ends(2, [(1.0, 2), (1.0, 2)]) == [pytest.approx(2), pytest.approx(2)]
    # Both at half speed for two seconds, then the other one alone.
    assert ends(2, [(1.0, 2), (2.0, 2)]) == [pytest.approx(2), pytest.approx(3)]


def test_one_thread_may_want_the_whole_machine() -> None:
    env = Environment()
    cores, done = Cores(env, 2), []
    for _ in range(2):
        event = cores.run(cores.group(), 1.0, 1, weight=2)
        event.callbacks.append(lambda _: done.append(env.now))
    env.run()
    assert done == [pytest.approx(2), pytest.approx(2)]


def test_a_thread_that_waits_for_memory_uses_up_its_quota() -> None:
    """Two threads that each want the whole memory get half of it, and run all the while."""
    env = Environment()
    cores = Cores(env, 2)
    groups = [cores.group(), cores.group()]
    for group in groups:
        cores.run(group, 1.0, 1, weight=2)
    env.run()
    assert [group.used for group in groups] == [pytest.approx(2), pytest.approx(2)]


def test_a_quota_lasts_for_a_part_of_each_period() -> None:
    """0.5 cores of a period of 0.1 s: one thread computes for 0.05 s of each."""
    env = Environment()
    cores = Cores(env, 4)
    event = cores.run(cores.group(0.5, 0.1), 0.12, 1)
    env.run(until=event)
    assert env.now == pytest.approx(0.22)
    # What is shorter than its budget does not wait at all.
    started = env.now
    env.run(until=cores.run(cores.group(0.5, 0.1), 0.04, 1))
    assert env.now - started == pytest.approx(0.04)


def test_a_paused_group_stands_still() -> None:
    env = Environment()
    cores = Cores(env, 1)
    group = cores.group()
    event = cores.run(group, 1.0, 1)

    def pausing() -> Generator[Event, None, None]:
        yield env.timeout(0.5)
        cores.pause(group, is_paused=True)
        yield env.timeout(2)
        cores.pause(group, is_paused=False)

    env.process(pausing())
    env.run(until=event)
    assert env.now == pytest.approx(3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 5), st.integers(1, 4)), min_size=1, max_size=6))
def test_no_work_is_lost_and_none_is_made(tasks: list[tuple[float, int]]) -> None:
    """While any thread waits all cores are used."""
    env = Environment()
    cores, groups = Cores(env, 4), []
    events: list[Event] = []
    for seconds, threads in tasks:
        groups.append(cores.group())
        events.append(cores.run(groups[-1], seconds, threads))
    env.run(until=env.all_of(events))
    work = sum(seconds * threads for seconds, threads in tasks)
    assert sum(group.used for group in groups) == pytest.approx(work, rel=1e-6)
    assert env.now >= max(work / 4, max(seconds for seconds, _ in tasks)) - 1e-6
    assert env.now <= work / 4 + max(seconds for seconds, _ in tasks) + 1e-6
