"""All ports of a server, before an engine that does as the test says."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from coordinator.api.requests.gate import Backend
from coordinator.api.shared.operations import Operations, ServerFacts
from coordinator.api.shared.readiness import Sources
from coordinator.api.shared.request_log import RequestLog
from coordinator.api.telemetry.metrics import Metrics
from coordinator.config.security import SecurityConfig
from coordinator.config.serve import ServeConfig
from coordinator.config.service import Addresses, CallsConfig, ReadinessConfig
from coordinator.engine.client.base import EngineClient
from coordinator.engine.client.handlers import Operated, worker_handlers, workers_status
from coordinator.engine.core.engine import Runner
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.messages.stats import EngineStats
from coordinator.server.fronts import Fronts
from expert_workers.status import Scaled, WorkerStatus
from moe_model.config import ModelConfig
from moe_model.errors import NoWorkersError
from moe_model.versions.expert_versions import Catalog, ExpertModule
from tests.coordinator.api import engine_kinds
from tests.coordinator.api.fakes import served_model
from tests.coordinator.engine.client.clients import CLIENTS
from tests.coordinator.engine.fakes import CountingRunner, engine_over

ANY = "127.0.0.1:0"
EVERYWHERE = Addresses(ANY, ANY, ANY, ANY, ANY)
MODULES = tuple(Catalog.of_checkpoint(ModelConfig(n_layers=2, n_experts=2)).modules)


class World:
    """What a server looks at to know whether it is ready."""

    def __init__(self) -> None:
        self.stats = EngineStats()
        self.missing = 0

    @property
    def sources(self) -> Sources:
        return Sources(lambda: self.stats, lambda: MODULES[: self.missing])


class FakeWorkers:
    """Workers that are as the test says."""

    num_replicas = 0
    certificate_end: float | None = None

    def __init__(self, workers: Sequence[WorkerStatus] = ()) -> None:
        self._workers = workers

    def topology(self) -> Sequence[WorkerStatus]:
        return self._workers

    def missing_experts(self) -> Sequence[ExpertModule]:
        return ()

    def scale(self, num_workers: int, timeout: float) -> Scaled:
        raise NoWorkersError("there are none")


def make_fronts(
    addresses: Addresses = EVERYWHERE,
    security: SecurityConfig | None = None,
    readiness: ReadinessConfig | None = None,
    *,
    strict_fields: bool = False,
) -> Fronts:
    config = ServeConfig(
        "nowhere",
        addresses=addresses,
        security=security or SecurityConfig(),
        readiness=readiness or ReadinessConfig(),
        calls=CallsConfig(strict_fields=strict_fields),
    )
    return Fronts(config, Metrics(), RequestLog())


@asynccontextmanager
async def opening(
    fronts: Fronts, runner: Runner | None = None, workers: FakeWorkers | None = None
) -> AsyncIterator[EngineClient]:
    """Listens, and has an engine to open with."""
    experts = workers or FakeWorkers()
    operated = Operated(worker_handlers(experts), workers=lambda: workers_status(experts))
    core = engine_over(runner or CountingRunner(), max_seq_len=32)
    engine = await CLIENTS[engine_kinds.SIDES.kind](EngineThread(core), operated)
    fronts.bind()
    async with fronts.serving():
        yield engine
    assert await engine.close()


async def open_fronts(fronts: Fronts, engine: EngineClient, world: World) -> None:
    facts = ServerFacts("1", "an instance", ("tiny",), 1024)
    operations = Operations(facts, engine)
    fronts.serve(Backend(served_model(), engine), operations)
    await fronts.open(world.sources)
