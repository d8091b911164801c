"""The HTTP API over a scripted engine, without a port."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx

from coordinator.api.admission import Admission, AdmissionConfig
from coordinator.api.auth import Authenticator, NoAuthenticator
from coordinator.api.gate import Backend, Gate
from coordinator.api.generations import Front
from coordinator.api.http_app import HttpApi, HttpServices
from coordinator.api.served_model import ServedModel
from tests.coordinator.api.fakes import FakeEngine, served_model


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
    ) -> None:
        self.engine = engine or FakeEngine()
        self.gate = Gate(Admission(AdmissionConfig(max_requests=max_requests)))
        if ready:
            self.gate.open(Backend(model or served_model(), self.engine))
        self.reasons: Sequence[str] = ()
        self.observed: list[tuple[str, str, int]] = []
        services = HttpServices(
            front=Front(self.gate),
            authenticator=authenticator or NoAuthenticator(),
            readiness=lambda: self.reasons,
            metrics=lambda: (b"# none\n", "text/plain"),
            observed=lambda path, method, status, _: self.observed.append((path, method, status)),
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
