"""All that a server goes through, as those who watch it over gRPC and those who ask over HTTP hear of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordinator.config.service import ReadinessConfig
from coordinator.engine.messages.stats import EngineStats
from coordinator.server.fronts import Fronts
from tests.coordinator.api.engine_kinds import BOTH_ENGINES
from tests.coordinator.api.fakes import PATIENCE
from tests.coordinator.fronts_fakes import World, make_fronts, open_fronts, opening

pytestmark = BOTH_ENGINES

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Watchers:
    """One watcher of each name of each port, and a client of HTTP."""

    def __init__(self, http: httpx.AsyncClient, watches: list[AsyncIterator[Any]], alive: list[Any]) -> None:
        self._http = http
        self._watches = watches
        self._alive = alive

    async def hear(self, status: int, reason: str = "") -> None:
        """All of them hear of the next change, and HTTP says why."""
        for watch in self._watches:
            assert (await asyncio.wait_for(anext(watch), PATIENCE)).status == status
        for path in ("/health", "/readyz"):
            response = await self._http.get(path)
            if status == SERVING:
                assert (response.status_code, response.json()) == (200, {})
            else:
                assert (response.status_code, response.json()["reasons"]) == (503, [reason])
        assert (await self._http.get("/livez")).status_code == 200
        for stub in self._alive:
            assert (await stub.Check(health_pb2.HealthCheckRequest(service="liveness"))).status == SERVING


@asynccontextmanager
async def watching(fronts: Fronts) -> AsyncIterator[Watchers]:
    assert fronts.control is not None
    assert fronts.http is not None
    assert fronts.health is not None
    async with (
        httpx.AsyncClient(base_url=f"http://{fronts.http.address}", verify=False) as http,
        grpc.aio.insecure_channel(fronts.grpc.address) as public,
        grpc.aio.insecure_channel(fronts.control.address) as control,
        grpc.aio.insecure_channel(fronts.health.address) as alone,
    ):
        stubs: list[Any] = [health_pb2_grpc.HealthStub(channel) for channel in (public, control, alone)]
        names = (["", "expertmesh.v1.GenerationService"], ["", "expertmesh.v1.ControlService"], [""])
        watches = [
            aiter(stub.Watch(health_pb2.HealthCheckRequest(service=name)))
            for stub, known in zip(stubs, names, strict=True)
            for name in known
        ]
        yield Watchers(http, watches, stubs)


async def test_every_change_is_told_on_both_fronts() -> None:
    world = World()
    fronts = make_fronts(readiness=ReadinessConfig(interval=0.005, stall_timeout=0.2))
    async with opening(fronts) as engine, watching(fronts) as watchers:
        await watchers.hear(NOT_SERVING, "starting")
        await open_fronts(fronts, engine, world)
        await watchers.hear(SERVING)
        world.missing = 3
        await watchers.hear(NOT_SERVING, "3 experts have no live worker: layer 0: 0, 1; layer 1: 0")
        world.missing = 0
        await watchers.hear(SERVING)
        world.stats = EngineStats(num_running=1, num_steps=7)
        await watchers.hear(NOT_SERVING, "no step in 0.2 s")
        world.stats = EngineStats(num_steps=8)
        await watchers.hear(SERVING)
        world.stats = EngineStats(stopped=True)
        await watchers.hear(NOT_SERVING, "the engine has stopped")
        world.stats = EngineStats()
        await watchers.hear(SERVING)
        assert await fronts.drain(grace=0.0, timeout=PATIENCE)
        await watchers.hear(NOT_SERVING, "draining")
