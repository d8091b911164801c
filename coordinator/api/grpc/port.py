"""GrpcPort: one listening address with its services, health and reflection. Knows no service's methods."""

import asyncio
import logging
from collections.abc import Mapping, Sequence

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from coordinator.api.grpc.address import check_free, format_address, parse_address
from moe_model.errors import ConfigError

MAX_METADATA_BYTES = 8 << 10
# Calls that wait for the event loop to look at them. Above 1000, unless it is told otherwise, grpc ends some
# of them at random, as CANCELLED and unseen by us: a burst that is to be refused with a reason and a time.
MAX_UNSEEN_CALLS = 4096
OPTIONS = (
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    # Both, for between the two grpc refuses at random.
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.server.max_pending_requests", MAX_UNSEEN_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", MAX_UNSEEN_CALLS),
    # For a peer that connects and says nothing; grpc's own limit is two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # The one that lets clients ping a quiet stream; min_recv_ping_interval_without_data_ms has no effect.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)
LIVENESS = "liveness"
# For the last answers to reach their clients, and for health watchers to see the end.
FLUSH_SECONDS = 0.5
_CLIENT_HAS_LEFT = "Failed sending error status from server"

Services = Mapping[str, grpc.GenericRpcHandler]


class GrpcPort:
    """bind, start, set_serving, withdraw, close; in this order, on one event loop. close may come any time.

    `services` are handlers by their service's full name. The first interceptor sees a call first. Without
    credentials the port speaks plain text. `name` is what errors call the address. `is_held`: another process
    of ours holds the port, for several that listen there.
    """

    def __init__(
        self,
        address: str,
        services: Services,
        *,
        name: str = "grpc",
        credentials: grpc.ServerCredentials | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        with_reflection: bool = True,
        is_held: bool = False,
    ) -> None:
        self._name = name
        self._host, self._port = parse_address(address, name)
        self._credentials = credentials
        self._readiness = ("", *services)
        self._is_held = is_held
        self._withdrawn = False
        self._closing = asyncio.Event()
        logging.getLogger("grpc._cython.cygrpc").addFilter(is_of_the_server)
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            interceptors=tuple(interceptors), options=[("grpc.so_reuseport", int(is_held)), *OPTIONS]
        )
        self._server.add_generic_rpc_handlers(tuple(services.values()))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if with_reflection:
            names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)

    @property
    def address(self) -> str:
        """HOST:PORT; the port is the real one once bound."""
        return format_address(self._host, self._port)

    def bind(self) -> str:
        """Takes the port, so that a taken one shows before anything costly begins. Raises ConfigError."""
        if not self._is_held:
            check_free(self._host, self._port, self._name)
        try:
            if self._credentials is None:
                self._port = self._server.add_insecure_port(self.address)
            else:
                self._port = self._server.add_secure_port(self.address, self._credentials)
        except RuntimeError:
            raise ConfigError(f"{self._name} address {self.address}: cannot listen there") from None
        return self.address

    async def start(self) -> None:
        """Answers health checks: alive, and not ready until told."""
        await self.set_serving(serving=False)
        await self._health.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def set_serving(self, serving: bool) -> None:
        """What readiness checks answer from now on. After `withdraw` they stay as they are."""
        kind = health_pb2.HealthCheckResponse
        status = kind.SERVING if serving and not self._withdrawn else kind.NOT_SERVING
        for name in self._readiness:
            await self._health.set(name, status)

    async def withdraw(self, grace: float = 0.0) -> None:
        """Not ready, whatever is said later; then goes on serving clients that have not heard of it yet."""
        self._withdrawn = True
        await self.set_serving(serving=False)
        if grace > 0:
            try:
                await asyncio.wait_for(self._closing.wait(), grace)
            except TimeoutError:
                return

    async def close(self) -> None:
        """Ends everything that still runs and gives the port back. Idempotent."""
        self._closing.set()
        await self._server.stop(FLUSH_SECONDS)


def is_of_the_server(record: logging.LogRecord) -> bool:
    """A filter. grpc logs each message to health or reflection that is none, with a traceback, and any client
    can send those; the client is told. It also logs that it cannot tell a client that has left meanwhile."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, DecodeError) and record.getMessage() != _CLIENT_HAS_LEFT
