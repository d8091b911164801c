"""GrpcServer: the public port. Health, reflection, readiness and the way down; not what the methods do."""

import logging

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from coordinator.api.gate import Backend, EngineFront, Gate
from coordinator.api.grpc_address import check_free, format_address, is_loopback, parse_address
from coordinator.api.grpc_service import SERVICE, GenerationService, method_handlers
from coordinator.api.served_model import ServedModel
from moe_model.errors import ConfigError

logger = logging.getLogger(__name__)

OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # The one that lets clients ping a quiet stream; min_recv_ping_interval_without_data_ms has no effect.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)
READINESS = ("", SERVICE.full_name)
LIVENESS = "liveness"
# For the last answers to reach their clients, and for health watchers to see the end.
FLUSH_SECONDS = 0.5


class GrpcServer:
    """bind, start, set_ready, drain, close; in this order, on one event loop. close may come at any time."""

    def __init__(self, address: str, *, with_reflection: bool = True) -> None:
        self._host, self._port = parse_address(address)
        self._gate = Gate()
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(options=OPTIONS)
        self._server.add_generic_rpc_handlers((method_handlers(GenerationService(self._gate)),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if with_reflection:
            names = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)

    @property
    def address(self) -> str:
        """HOST:PORT; the port is the real one once bound."""
        return format_address(self._host, self._port)

    @property
    def num_calls(self) -> int:
        """Calls being answered."""
        return self._gate.num_calls

    def bind(self) -> str:
        """Takes the port, so that a taken one shows before anything costly begins. Raises ConfigError."""
        check_free(self._host, self._port)
        try:
            self._port = self._server.add_insecure_port(self.address)
        except RuntimeError:
            raise ConfigError(f"grpc address {self.address}: cannot listen there") from None
        if not is_loopback(self._host):
            logger.warning("%s is reachable from other machines, without encryption or keys", self.address)
        return self.address

    async def start(self) -> None:
        """Answers health checks; every other call is refused as NOT_READY until set_ready."""
        await self._set_readiness(serving=False)
        await self._health.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def set_ready(self, model: ServedModel, engine: EngineFront) -> None:
        self._gate.open(Backend(model, engine))
        await self._set_readiness(serving=True)

    async def drain(self, timeout: float) -> bool:
        """Refuses new calls and waits for the admitted ones; False when it had to end some of them.

        Ended calls get UNAVAILABLE; their requests are aborted in the engine.
        """
        self._gate.drain()
        await self._set_readiness(serving=False)
        if await self._gate.wait_idle(timeout):
            return True
        logger.warning("ending %d calls that outlasted the drain timeout", self._gate.num_calls)
        self._gate.evict()
        await self._gate.wait_idle(FLUSH_SECONDS)
        return False

    async def close(self) -> None:
        """Ends everything that still runs and gives the port back. Idempotent."""
        self._gate.drain()
        self._gate.evict()
        await self._gate.wait_idle(FLUSH_SECONDS)
        await self._server.stop(FLUSH_SECONDS)

    async def _set_readiness(self, *, serving: bool) -> None:
        kind = health_pb2.HealthCheckResponse
        for name in READINESS:
            await self._health.set(name, kind.SERVING if serving else kind.NOT_SERVING)
