"""What changes at the fronts when another engine takes the place of one."""

import asyncio
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.config.security import SecurityConfig
from coordinator.config.serve import ServeConfig
from coordinator.config.service import Addresses
from coordinator.config.workers import WorkersConfig
from coordinator.engine.client.in_process import InProcessEngine
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.server.front_side import open_front_side
from expertmesh import ControlClient
from tests.coordinator.api.certificates import DAY, Authority
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


@pytest.mark.parametrize(
    "workers", [WorkersConfig(3, replicas=2), WorkersConfig(workers_per_node=1, replicas=2)]
)
async def test_metrics_say_how_the_server_was_set_up(tmp_path: Path, workers: WorkersConfig) -> None:
    """Its certificates, the replicas that were asked for, and whether it is ready."""
    engine = InProcessEngine(EngineThread(engine_over(CountingRunner(), max_seq_len=32)))
    security = SecurityConfig(tls=Authority().write(tmp_path))
    config = ServeConfig("nowhere", addresses=ADDRESSES, security=security, workers=workers)
    async with open_front_side(config) as side:
        await side.open(served_model(), engine)
        text = side.watchers.metrics.render()[0].decode()
        (end,) = re.findall(r'^expertmesh_certificate_expiry.*{certificate="server".*} (.*)$', text, re.M)
        assert abs(float(end) - time.time() - DAY.total_seconds()) < 60
        assert re.search(r"^expertmesh_expert_replicas_wanted\{.*} 2.0$", text, re.M)
        assert re.search(r"^expertmesh_ready\{.*} 1.0$", text, re.M)
        await side.fronts.readiness.drain()
        assert re.search(r"^expertmesh_ready\{.*} 0.0$", side.watchers.metrics.render()[0].decode(), re.M)
    assert await engine.close()
