"""Scenarios A1, A4 to A6, A11 and A12: workers die, hang, stall and crawl, come and go, under load.

Three workers, each expert on two of them: nothing may be lost, and no token may change.
"""

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import pytest

from chaos.cgroups import Cgroup, group_name, limit_cpu, num_throttled
from chaos.processes import FaultError
from tests.conftest import Measured
from tests.integration.processes import Server, stop, wait_gone
from tests.scenarios.under_load import History, Load, Operator, until

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]
# Of --call-timeout.
T_CALL = 1.0

# One in every test run, all of them where it is about faults alone.
_MORE = [pytest.param(seed, marks=pytest.mark.chaos) for seed in (2, 3)]
SEEDS = pytest.mark.parametrize("seed", [1, *_MORE])


def drawn(seed: int) -> tuple[int, int]:
    """Who is hit, another one each time, as who is hit often is left for a while; after how many tokens."""
    return seed % 3, random.Random(seed).randrange(4, 24)


@pytest.fixture
async def load(trio: Server, operator: Operator) -> Load:
    await operator.until_replicated(3, 2)
    load = Load(trio.address)
    await load.learn()
    return load


@SEEDS
async def test_a1_a_killed_worker_costs_no_request_and_no_token(
    load: Load, operator: Operator, measured: Measured, seed: int
) -> None:
    rank, moment = drawn(seed)
    victim, losses = operator.pid(rank), operator.num_losses()
    async with load.running(moment) as tasks:
        os.kill(victim, signal.SIGKILL)
        histories = [await task for task in tasks]
    assert not wait_gone({victim})
    restored = await operator.until_replicated(3, 2, num_losses=losses + 1)
    assert operator.pid(rank) != victim
    assert operator.num_losses() == losses + 1
    load.check(histories)
    added = load.added_gap(histories)
    assert added <= load.bar(1.5)
    measured("A1", added_gap_s=added, restored_s=restored)


@SEEDS
async def test_a4_a_hung_worker_is_routed_round_and_killed(
    load: Load, operator: Operator, measured: Measured, seed: int
) -> None:
    rank, moment = drawn(seed)
    victim, losses = operator.pid(rank), operator.num_losses()
    async with load.running(moment) as tasks:
        stop(victim)
        histories = [await task for task in tasks]
    # It did not go by itself: a stopped process cannot.
    assert not wait_gone({victim}, T_CALL + 10)
    await operator.until_replicated(3, 2, num_losses=losses + 1)
    assert operator.num_losses() == losses + 1
    load.check(histories)
    added = load.added_gap(histories)
    assert added <= load.bar(T_CALL + 0.5)
    measured("A4", added_gap_s=added)


@pytest.mark.chaos
async def test_a5_short_stalls_do_not_cost_a_worker(
    load: Load, operator: Operator, measured: Measured
) -> None:
    victim, losses, num_stalls = operator.pid(0), operator.num_losses(), 0
    async with load.running(num_tokens=4) as tasks:
        while not all(task.done() for task in tasks):
            stop(victim)
            await asyncio.sleep(0.5 * T_CALL)
            os.kill(victim, signal.SIGCONT)
            num_stalls += 1
            await asyncio.sleep(0.1)
        histories = [await task for task in tasks]
    assert num_stalls >= 1
    load.check(histories)
    ejected = operator.num_losses() - losses
    assert ejected <= 1
    measured("A5", added_gap_s=load.added_gap(histories), stalls=num_stalls, ejected=ejected)


@contextmanager
def throttled(pid: int, rank: int, share: float) -> Iterator[Cgroup]:
    """A process that has no more than a share of a core. Skips where there is no such control group."""
    try:
        group = Cgroup("cpu", group_name(rank))
    except FaultError as error:
        pytest.skip(f"NO CPU CGROUP: {error}")
    try:
        limit_cpu(group, share)
        group.take(pid)
        yield group
    finally:
        group.close()


def p99(histories: Sequence[History]) -> float:
    """Of the seconds between two tokens of a stream."""
    gaps = sorted(b - a for each in histories for a, b in pairwise(each.times) if b > a)
    return gaps[int(0.99 * len(gaps))]


@pytest.mark.chaos
async def test_a6_a_slow_worker_slows_nobody_for_long(
    load: Load, operator: Operator, measured: Measured
) -> None:
    before, rank = p99(await load.run()), 1
    with throttled(operator.pid(rank), rank, 0.05) as group:
        started = time.perf_counter()
        while time.perf_counter() - started < 3:
            load.check(await load.run())
        histories = await load.run()
        assert num_throttled(group) > 0, "the fault happened"
    load.check(histories)
    assert p99(histories) <= 2.5 * before
    measured("A6", p99_ratio=p99(histories) / before)


@pytest.mark.chaos
async def test_a11_every_worker_in_turn(load: Load, operator: Operator, measured: Measured) -> None:
    gaps = []
    for rank in range(3):
        victim, losses = operator.pid(rank), operator.num_losses()
        async with load.running(num_tokens=4) as tasks:
            os.kill(victim, signal.SIGKILL)
            histories = [await task for task in tasks]
        await operator.until_replicated(3, 2, num_losses=losses + 1)
        assert operator.pid(rank) != victim
        load.check(histories)
        gaps.append(load.added_gap(histories))
    measured("A11", added_gap_s=max(gaps))


@pytest.mark.chaos
async def test_a12_more_and_fewer_workers(load: Load, operator: Operator, measured: Measured) -> None:
    """3 -> 4 -> 2 -> 3, and requests all the time."""
    stopped, rounds = asyncio.Event(), 0

    async def keep_loading() -> float:
        nonlocal rounds
        added = 0.0
        while not stopped.is_set():
            histories = await load.run()
            load.check(histories)
            added = max(added, load.added_gap(histories))
            rounds += 1
        return added

    loading = asyncio.create_task(keep_loading())
    seconds = []
    for num_workers in (4, 2, 3):
        started = time.perf_counter()
        before = {worker.pid for worker in operator.workers().values()}
        done = await asyncio.to_thread(operator.control.scale, num_workers, timeout=60.0)
        seconds.append(time.perf_counter() - started)
        now = {worker.pid for worker in operator.workers().values()}
        assert (done.num_workers, len(now)) == (num_workers, num_workers)
        assert not wait_gone(before - now)
        await until(lambda: all(len(ranks) >= 2 for ranks in operator.holders().values()))
    stopped.set()
    added = await loading
    assert rounds >= 1
    measured("A12", added_gap_s=added, seconds=max(seconds))
