"""Fronts: every port of a server, in front of one gate. Knows no engine and no experts.

STARTING --open--> OPEN --withdraw--> WITHDRAWN --drain--> DRAINED --close--> CLOSED
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from coordinator.api.grpc.auth import AuthInterceptor
from coordinator.api.grpc.control import SERVICE as CONTROL
from coordinator.api.grpc.control import ControlService
from coordinator.api.grpc.control import behaviours as control_behaviours
from coordinator.api.grpc.methods import method_handlers
from coordinator.api.grpc.metrics import MetricsInterceptor
from coordinator.api.grpc.port import GrpcPort
from coordinator.api.grpc.server import GrpcServer
from coordinator.api.grpc.tls import server_credentials
from coordinator.api.grpc.unknown_fields import UnknownFields
from coordinator.api.http.app import HttpApi, HttpServices
from coordinator.api.http.server import App, HttpServer
from coordinator.api.requests.admission import Admission
from coordinator.api.requests.gate import Backend, Gate
from coordinator.api.requests.responses import Front, RequestObserver
from coordinator.api.security.settings import Security
from coordinator.api.security.tls import server_context
from coordinator.api.shared.operations import Operations
from coordinator.api.shared.readiness import Readiness, Sources
from coordinator.api.telemetry.metrics import Metrics
from coordinator.config.serve import ServeConfig
from coordinator.metrics.ledger import Ledger

logger = logging.getLogger(__name__)


class Fronts:
    """gRPC and HTTP, the control port, and those of metrics and of health alone."""

    def __init__(
        self,
        config: ServeConfig,
        metrics: Metrics,
        observer: RequestObserver,
        ledger: Ledger | None = None,
        *,
        has_held_ports: bool = False,
    ) -> None:
        """`ledger` has what counts for limits; `has_held_ports`: the launcher holds them for all fronts of a
        server, which listen there. Raises ConfigError for what must not or cannot be listened to."""
        security = Security.open(config.security, config.api_key, ledger)
        security.check_addresses(config.addresses.guarded())
        self.gate = Gate(Admission(config.admission, ledger))
        self.readiness = Readiness(config.readiness)
        self.readiness.listen(metrics.readiness.changed)
        self._config = config
        self._tls = security.tls
        self._has_held_ports = has_held_ports
        self._metrics = metrics
        self._front = Front(
            self.gate,
            observer=observer,
            quotas=security.quotas,
            max_seconds=config.security.max_request_seconds,
        )
        self._unknown = UnknownFields(metrics.fronts.unknown_fields, strict=config.calls.strict_fields)
        self.grpc = GrpcServer(
            config.addresses.grpc,
            self._front,
            credentials=None if security.tls is None else server_credentials(security.tls),
            interceptors=[MetricsInterceptor(metrics.fronts), AuthInterceptor(security.authenticator)],
            with_reflection=security.with_reflection,
            is_held=has_held_ports,
            write_stall_timeout=config.calls.write_stall_timeout,
            unknown=self._unknown,
        )
        api = self._http_api(security)
        self.http = self._http_server("http", config.addresses.http, api.app(), security)
        self.metrics = self._http_server("metrics", config.addresses.metrics, api.metrics_app(), security)
        self._control_service = ControlService(self.gate)
        self.control = self._control_port(security)
        self.health = self._health_port()

    def _http_api(self, security: Security) -> HttpApi:
        services = HttpServices(
            front=self._front,
            authenticator=security.authenticator,
            readiness=lambda: self.readiness.reasons,
            metrics=self._metrics.answer,
            observed=self._metrics.fronts.http_observed,
            write_stall_timeout=self._config.calls.write_stall_timeout,
            strict_fields=self._config.calls.strict_fields,
            allowed_origins=self._config.calls.allowed_origins,
        )
        return HttpApi(services)

    def _http_server(self, name: str, address: str | None, app: App, security: Security) -> HttpServer | None:
        if address is None:
            return None
        tls = None if security.tls is None else server_context(security.tls)
        return HttpServer(
            *(address, app, tls),
            name=name,
            keep_alive=self._config.calls.keep_alive_timeout,
            is_held=self._has_held_ports,
        )

    def _control_port(self, security: Security) -> GrpcPort | None:
        address = self._config.addresses.control
        if address is None:
            return None
        behaviours = control_behaviours(self._control_service)
        return GrpcPort(
            address,
            {CONTROL.full_name: method_handlers(CONTROL, behaviours, self._unknown)},
            name="control",
            credentials=None if security.tls is None else server_credentials(security.tls),
            interceptors=[
                MetricsInterceptor(self._metrics.fronts),
                AuthInterceptor(security.authenticator, needs_admin=True),
            ],
            with_reflection=security.with_reflection,
            is_held=self._has_held_ports,
        )

    def _health_port(self) -> GrpcPort | None:
        """For who can neither speak TLS nor show a certificate or a key, as the probes of Kubernetes."""
        address = self._config.addresses.health
        if address is None:
            return None
        return GrpcPort(address, {}, name="health", with_reflection=False, is_held=self._has_held_ports)

    def bind(self) -> None:
        """Takes all ports, so that a taken one shows before anything costly begins. Raises ConfigError."""
        for port in self._ports:
            port.bind()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Answers health checks; every other call is refused as NOT_READY until `open`."""
        async with AsyncExitStack() as stack:
            for port in self._ports:
                stack.push_async_callback(port.close)
                await port.start()
                self.readiness.listen(port.set_serving)
            watcher = asyncio.ensure_future(self.readiness.watch())
            stack.push_async_callback(_ended, watcher)
            yield

    def serve(self, backend: Backend, operations: Operations) -> None:
        """Lets callers in, to what there is from now on."""
        self.gate.open(backend)
        self._control_service.open(operations)

    async def open(self, sources: Sources) -> None:
        """Is ready, as far as the sources say so."""
        await self.readiness.open(sources)

    async def drain(self, grace: float, timeout: float) -> bool:
        """Says that it is not ready, goes on for `grace` seconds for callers that have not heard it, refuses
        those that come then and waits for the others; False when it had to end some of them."""
        await self.readiness.drain()
        await self.grpc.withdraw(grace)
        self.gate.drain()
        if await self.gate.wait_idle(timeout):
            return True
        logger.warning("ending %d calls that outlasted the drain timeout", self.gate.num_calls)
        await self.gate.end_calls()
        return False

    def certificates(self) -> Mapping[str, float]:
        """When each kind of certificate that ports use ends, in seconds since 1970."""
        return {} if self._tls is None else self._tls.current().ends

    def describe(self) -> str:
        """Where it listens, as name=HOST:PORT."""
        return " ".join(f"{name}={port.address}" for name, port in self._by_name.items())

    @property
    def _ports(self) -> list[GrpcPort | HttpServer]:
        return list(self._by_name.values())

    @property
    def _by_name(self) -> dict[str, GrpcPort | HttpServer]:
        ports: tuple[GrpcPort | HttpServer | None, ...]
        ports = (self.grpc, self.http, self.control, self.metrics, self.health)
        names = ("grpc", "http", "control", "metrics", "health")
        return {name: port for name, port in zip(names, ports, strict=True) if port is not None}


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
