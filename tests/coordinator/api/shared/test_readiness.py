"""Readiness: every transition, with the clock and the sources in the test's hand."""

import asyncio

import pytest

from coordinator.api.shared.readiness import (
    DRAINING,
    MAX_NAMED,
    STARTING,
    Readiness,
    Sources,
)
from coordinator.config.service import ReadinessConfig
from coordinator.engine.messages.stats import EngineStats
from moe_model.config import ModelConfig
from moe_model.versions.expert_versions import Catalog

MODULES = tuple(Catalog.of_checkpoint(ModelConfig(n_layers=2, n_experts=2)).modules)


class World:
    def __init__(self) -> None:
        self.stats = EngineStats()
        self.missing = 0
        self.heard: list[bool] = []

    async def hear(self, ready: bool) -> None:
        self.heard.append(ready)

    @property
    def sources(self) -> Sources:
        return Sources(lambda: self.stats, lambda: MODULES[: self.missing])


def reasons(readiness: Readiness) -> list[str]:
    """Read anew each time, also as far as types are concerned."""
    return list(readiness.reasons)


async def opened(world: World) -> Readiness:
    readiness = Readiness(ReadinessConfig(interval=0.001, stall_timeout=60.0))
    readiness.listen(world.hear)
    assert reasons(readiness) == [STARTING]
    await readiness.look(0.0)
    assert (reasons(readiness), world.heard) == ([STARTING], []), "nothing to look at yet"
    await readiness.open(world.sources)
    assert (reasons(readiness), world.heard) == ([], [True])
    return readiness


async def test_lost_experts_are_told_twice_before_they_count_and_return_at_once() -> None:
    world = World()
    readiness = await opened(world)
    world.missing = 3
    await readiness.look(1.0)
    assert reasons(readiness) == []
    await readiness.look(2.0)
    assert reasons(readiness) == ["3 experts have no live worker: layer 0: 0, 1; layer 1: 0"]
    world.missing = 1
    await readiness.look(3.0)
    assert reasons(readiness) == ["1 experts have no live worker: layer 0: 0"]
    world.missing = 0
    await readiness.look(4.0)
    assert (reasons(readiness), world.heard) == ([], [True, False, True])


async def test_of_very_many_missing_experts_some_are_named() -> None:
    world = World()
    readiness = await opened(world)
    many = tuple(Catalog.of_checkpoint(ModelConfig(n_layers=1, n_experts=MAX_NAMED + 1)).modules)
    await readiness.open(Sources(lambda: world.stats, lambda: many))
    for now in (1.0, 2.0):
        await readiness.look(now)
    (reason,) = reasons(readiness)
    assert reason.startswith(f"{MAX_NAMED + 1} experts have no live worker: layer 0: 0, 1, ")
    assert reason.endswith(f", {MAX_NAMED - 1}, ...")


async def test_a_single_bad_look_between_good_ones_is_nothing() -> None:
    world = World()
    readiness = await opened(world)
    for now, missing in enumerate([1, 0, 1, 0, 1, 0]):
        world.missing = missing
        await readiness.look(float(now))
    assert world.heard == [True]


@pytest.mark.parametrize(("running", "waiting"), [(1, 0), (0, 2)])
async def test_a_stalled_step_counts_only_while_there_is_work(running: int, waiting: int) -> None:
    world = World()
    readiness = await opened(world)
    for now in (0.0, 100.0, 200.0):
        await readiness.look(now)
    assert reasons(readiness) == []
    world.stats = EngineStats(num_running=running, num_waiting=waiting)
    for now in (259.0, 259.5):
        await readiness.look(now)
    assert reasons(readiness) == []
    for now in (260.0, 260.5):
        await readiness.look(now)
    assert reasons(readiness) == ["no step in 60 s"]
    world.stats = EngineStats(num_running=running, num_waiting=waiting, num_steps=1)
    await readiness.look(261.0)
    assert reasons(readiness) == []


async def test_an_engine_that_stopped_is_not_ready() -> None:
    world = World()
    readiness = await opened(world)
    world.stats = EngineStats(stopped=True)
    await readiness.look(1.0)
    await readiness.look(2.0)
    assert reasons(readiness) == ["the engine has stopped"]


async def test_an_engine_that_is_gone_is_not_ready_until_it_is_back() -> None:
    world = World()
    readiness = await opened(world)
    world.stats = EngineStats(stopped=True, lost=True)
    for now in (1.0, 2.0):
        await readiness.look(now)
    assert reasons(readiness) == ["the engine has died; it is started again"]
    world.stats = EngineStats()
    await readiness.look(3.0)
    assert reasons(readiness) == []


async def test_an_engine_that_says_nothing_is_not_ready() -> None:
    """One that hangs, also while nothing runs: its process beats in any case."""
    world = World()
    readiness = await opened(world)
    for now, silent in enumerate((59.0, 59.9)):
        world.stats = EngineStats(silent_seconds=silent)
        await readiness.look(now)
    assert reasons(readiness) == []
    for now, silent in enumerate((60.0, 60.5), 2):
        world.stats = EngineStats(silent_seconds=silent)
        await readiness.look(now)
    assert reasons(readiness) == ["nothing heard of the engine for 60 s"]


async def test_draining_is_final() -> None:
    world = World()
    readiness = await opened(world)
    await readiness.drain()
    await readiness.look(1.0)
    assert (readiness.reasons, world.heard) == ((DRAINING,), [True, False])


async def test_watching_looks_again_and_again() -> None:
    world = World()
    readiness = await opened(world)
    changed = asyncio.Event()

    async def hear(ready: bool) -> None:
        changed.set()

    readiness.listen(hear)
    watcher = asyncio.ensure_future(readiness.watch())
    try:
        for missing in (2, 0):
            changed.clear()
            world.missing = missing
            await asyncio.wait_for(changed.wait(), 20)
            assert bool(readiness.reasons) == bool(missing)
    finally:
        watcher.cancel()
