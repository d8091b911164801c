"""The HTTP API over a scripted engine, without a port."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx

from coordinator.api.http.app import HttpApi, HttpServices
from coordinator.api.requests.admission import Admission
from coordinator.api.requests.gate import Backend, Gate
from coordinator.api.requests.responses import Caller, Facts, Front, NullObserver
from coordinator.api.security.auth import Authenticator, NoAuthenticator
from coordinator.api.shared.errors import ApiError
from coordinator.api.shared.served_model import ServedModel
from coordinator.config.service import AdmissionConfig
from tests.coordinator.api.fakes import FakeEngine, served_model


class Ended(NullObserver):
    """What was told of requests that ended: id and the reason of the error, `ok` or `left`."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def finished(self, caller: Caller, facts: Facts, error: ApiError | None, *, cancelled: bool) -> None:
        how = error.reason.value if error is not None else "left" if cancelled else "ok"
        self.seen.append((caller.request_id, how))


async def shown_accept(accept: str) -> tuple[bytes, str]:
    """In place of metrics."""
    return f"# {accept}\n".encode(), "text/plain"


class Http:
    """A client of the API, and what is behind it."""

    def __init__(
        self,
        engine: FakeEngine | None = None,
        model: ServedModel | None = None,
        *,
        ready: bool = True,
        authenticator: Authenticator | None = None,
        max_requests: int = 64,
        max_seconds: float = 60.0,
        strict_fields: bool = False,
        allowed_origins: tuple[str, ...] = (),
    ) -> None:
        self.engine = engine or FakeEngine()
        self.gate = Gate(Admission(AdmissionConfig(max_requests=max_requests)))
        if ready:
            self.gate.open(Backend(model or served_model(), self.engine))
        self.reasons: Sequence[str] = ()
        self.observed: list[tuple[str, str, int]] = []
        self.ended = Ended()
        services = HttpServices(
            front=Front(self.gate, self.ended, max_seconds=max_seconds),
            authenticator=authenticator or NoAuthenticator(),
            readiness=lambda: self.reasons,
            metrics=shown_accept,
            observed=lambda path, method, status, _: self.observed.append((path, method, status)),
            strict_fields=strict_fields,
            allowed_origins=allowed_origins,
        )
        self.app = HttpApi(services).app()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client

    async def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        async with self.client() as client:
            return await client.post(path, json=body, **more)

    async def complete(self, **body: Any) -> httpx.Response:
        return await self.post("/v1/completions", {"prompt": [5], **body})
