"""What changes at the fronts when another engine takes the place of one."""

import asyncio
from dataclasses import replace

from coordinator.config.serve import ServeConfig
from coordinator.config.service import Addresses
from coordinator.engine.client.in_process import InProcessEngine
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.server.front_side import open_front_side
from expertmesh import ControlClient
from tests.coordinator.api.fakes import served_model
from tests.coordinator.engine.fakes import CountingRunner, engine_over

ADDRESSES = Addresses("127.0.0.1:0", http=None, control="127.0.0.1:0")


async def test_a_cache_of_another_size_is_told_of() -> None:
    """To operators, and to what refuses requests that are too long."""
    engine = InProcessEngine(EngineThread(engine_over(CountingRunner(), max_seq_len=32)))
    async with open_front_side(ServeConfig("nowhere", addresses=ADDRESSES)) as side:
        served = await side.open(served_model(), engine)
        side.serve(replace(served, kv_capacity_tokens=77), engine)
        with side.fronts.gate.call() as backend:
            assert backend.model.kv_capacity_tokens == 77
        assert side.fronts.control is not None
        with ControlClient(side.fronts.control.address) as control:
            load = await asyncio.to_thread(control.load)
        assert load.kv_cache_capacity_tokens == 77
    assert await engine.close()
