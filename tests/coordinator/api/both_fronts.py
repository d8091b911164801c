"""One engine behind both fronts, each on a port of its own; and a model that says what it is told."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx

from coordinator.api.grpc.auth import AuthInterceptor
from coordinator.api.grpc.server import GrpcServer
from coordinator.api.http.app import HttpApi, HttpServices
from coordinator.api.http.server import HttpServer
from coordinator.api.requests.admission import Admission
from coordinator.api.requests.gate import Backend, Gate
from coordinator.api.requests.responses import Front, NullObserver, RequestObserver
from coordinator.api.security.auth import Authenticator, NoAuthenticator
from coordinator.api.security.quotas import NoQuotas, Quotas
from coordinator.api.shared.served_model import ServedModel
from coordinator.config.service import AdmissionConfig
from coordinator.engine.client.base import RequestEngine
from coordinator.engine.core.step import Chunk, Step
from coordinator.engine.core.step_result import StepResult
from coordinator.engine.messages.output import TokenLogprobs
from expertmesh.v1 import generation_pb2_grpc
from tests.coordinator.api.fakes import PATIENCE, served_model


@dataclass(frozen=True)
class Setup:
    """How the fronts are put together."""

    ready: bool = True
    max_requests: int = 64
    max_seconds: float = 3600.0
    authenticator: Authenticator = field(default_factory=NoAuthenticator)
    needs_admin: bool = False
    quotas: Quotas = field(default_factory=NoQuotas)
    observer: RequestObserver = field(default_factory=NullObserver)


@dataclass
class Fronts:
    """Clients of both, and what is behind them. `observed`: path and status, as HTTP tells its metrics."""

    gate: Gate
    channel: grpc.aio.Channel
    stub: Any
    http: httpx.AsyncClient
    observed: list[tuple[str, int]]


@asynccontextmanager
async def both_fronts(
    engine: RequestEngine, model: ServedModel | None = None, setup: Setup | None = None
) -> AsyncIterator[Fronts]:
    setup = setup or Setup()
    gate = Gate(Admission(AdmissionConfig(max_requests=setup.max_requests)))
    if setup.ready:
        gate.open(Backend(model or served_model(), engine))
    front = Front(gate, setup.observer, setup.quotas, setup.max_seconds)
    observed: list[tuple[str, int]] = []
    async with AsyncExitStack() as stack:
        interceptor = AuthInterceptor(setup.authenticator, needs_admin=setup.needs_admin)
        port = GrpcServer("127.0.0.1:0", front, interceptors=[interceptor])
        web = HttpServer("127.0.0.1:0", HttpApi(_services(setup, front, observed)).app())
        for server in (port, web):
            server.bind()
            stack.push_async_callback(server.close)
            await server.start()
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(port.address))
        client = httpx.AsyncClient(base_url=f"http://{web.address}", timeout=PATIENCE, verify=False)
        http = await stack.enter_async_context(client)
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        yield Fronts(gate, channel, stub, http, observed)


async def _no_metrics(accept: str) -> tuple[bytes, str]:
    return b"# none\n", "text/plain"


def _services(setup: Setup, front: Front, observed: list[tuple[str, int]]) -> HttpServices:
    return HttpServices(
        front=front,
        authenticator=setup.authenticator,
        readiness=tuple,
        metrics=_no_metrics,
        observed=lambda path, method, status, seconds: observed.append((path, status)),
    )


class SaysRunner:
    """For a real engine: its model says these tokens, whatever the prompt, each as likely as 1 / e."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._token_ids = token_ids

    def run(self, step: Step) -> StepResult:
        drawn = [self._next(chunk) for chunk in step.sampling]
        return StepResult(drawn, [_scored(*pair) for pair in zip(step.sampling, drawn, strict=True)])

    def forget(self, key: int) -> None:
        return None

    def _next(self, chunk: Chunk) -> int:
        return self._token_ids[chunk.sequence.num_output_tokens % len(self._token_ids)]


def _scored(chunk: Chunk, token_id: int) -> TokenLogprobs | None:
    if chunk.sequence.request.returns.logprobs is None:
        return None
    return TokenLogprobs(token_id, -1.0, 1, ((token_id, -1.0),))
