"""Browsers' pages of other origins: none by default; those that are named may do all that clients may."""

import asyncio
from typing import Any

import pytest

from coordinator.api.security.api_keys import ApiKeys
from coordinator.api.security.auth import KeyAuthenticator
from coordinator.api.shared.request_log import RequestLog
from coordinator.api.telemetry.metrics import Metrics
from coordinator.config.origins import origins_of
from coordinator.config.serve import ServeConfig
from coordinator.config.service import CallsConfig
from coordinator.server.fronts import Fronts
from moe_model.errors import ConfigError
from tests.coordinator.api.fakes import FakeEngine, last, tokens
from tests.coordinator.api.http_fakes import Http

ORIGIN, OTHER = "https://app.example:8443", "https://evil.example"
KEY = "k" * 32
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, x-stainless-lang",
}
ALLOW = "access-control-allow-origin"


async def test_off_by_default() -> None:
    async with Http().client() as client:
        assert ALLOW not in (await client.get("/v1/models", headers={"origin": ORIGIN})).headers
        preflight = await client.options("/v1/completions", headers=PREFLIGHT)
        assert preflight.status_code == 405
        assert ALLOW not in preflight.headers


async def test_a_preflight_needs_no_key() -> None:
    """A browser sends none with it; what follows needs one."""
    http = Http(authenticator=KeyAuthenticator(ApiKeys.from_secret(KEY)), allowed_origins=(ORIGIN,))
    async with http.client() as client:
        preflight = await client.options("/v1/completions", headers=PREFLIGHT)
        assert (preflight.status_code, preflight.headers[ALLOW]) == (200, ORIGIN)
        assert "POST" in preflight.headers["access-control-allow-methods"]
        allowed = preflight.headers["access-control-allow-headers"]
        assert {each.strip() for each in allowed.split(",")} >= {
            "authorization",
            "content-type",
            "x-stainless-lang",
        }
        without = await client.post("/v1/completions", json={}, headers={"origin": ORIGIN})
        assert (without.status_code, without.headers[ALLOW]) == (401, ORIGIN)
        key = {"authorization": f"Bearer {KEY}", "origin": ORIGIN}
        assert (await client.post("/v1/completions", json={"prompt": [5]}, headers=key)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/completions", {"prompt": [5]}),
        ("POST", "/v1/completions", {"prompt": [5], "stream": True}),
        ("POST", "/v1/completions", {"prompt": [5], "stream": True, "top_p": 2}),
        ("POST", "/v1/completions", {"prompt": [5], "model": "other"}),
        ("GET", "/no/such/path", {}),
        ("GET", "/v1/completions", {}),
        ("GET", "/health", {}),
    ],
)
async def test_every_answer_may_be_read(method: str, path: str, body: dict[str, Any]) -> None:
    async with Http(allowed_origins=(ORIGIN,)).client() as client:
        response = await client.request(method, path, json=body, headers={"origin": ORIGIN})
        assert response.headers[ALLOW] == ORIGIN
        assert response.headers["access-control-allow-credentials"] == "true"
        assert "origin" in response.headers["vary"].lower()
        exposed = response.headers["access-control-expose-headers"].lower()
        for name in ("x-request-id", "x-expertmesh-request-id", "retry-after"):
            assert name in exposed
        other = await client.request(method, path, json=body, headers={"origin": OTHER})
        assert ALLOW not in other.headers
        assert other.status_code == response.status_code


async def test_a_stream_comes_through_as_it_is_made() -> None:
    hold = asyncio.Event()
    http = Http(FakeEngine(tokens(40), hold, last(41)), allowed_origins=(ORIGIN,))
    sent: list[Any] = []
    begun = asyncio.Event()
    body = [{"type": "http.request", "body": b'{"prompt": [5], "stream": true}', "more_body": False}]

    async def receive() -> Any:
        if body:
            return body.pop()
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)
        if message.get("body"):
            begun.set()

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "query_string": b"",
        "headers": [(b"origin", ORIGIN.encode())],
    }
    running = asyncio.ensure_future(http.app(scope, receive, send))
    await asyncio.wait_for(begun.wait(), 20)
    assert (ALLOW.encode(), ORIGIN.encode()) in sent[0]["headers"]
    hold.set()
    await running


async def test_everybody() -> None:
    """Without credentials of the browser's own, client certificates, which any page could use then."""
    async with Http(allowed_origins=("*",)).client() as client:
        response = await client.get("/v1/models", headers={"origin": OTHER})
        assert response.headers[ALLOW] == "*"
        assert "access-control-allow-credentials" not in response.headers
        preflight = await client.options("/v1/completions", headers={**PREFLIGHT, "origin": OTHER})
        assert (preflight.status_code, preflight.headers[ALLOW]) == (200, "*")
        assert "authorization" in preflight.headers["access-control-allow-headers"]


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "https://a.example", "http://[::1]:80", "*", "HTTPS://A.example"]
)
def test_origins(origin: str) -> None:
    assert origins_of([f" {origin},"]) == (origin.lower(),)


def test_several_and_none() -> None:
    assert origins_of(["https://a.example, https://b.example", "https://c.example"]) == (
        *("https://a.example", "https://b.example", "https://c.example"),
    )
    assert origins_of([]) == origins_of([""]) == ()


@pytest.mark.parametrize(
    "origin",
    [
        "app.example",
        "https://a.example/",
        "https://a.example/x",
        "https://",
        "ftp://a",
        "https://*.a.example",
        '["*"]',
        "https://a:port",
        "https://u@a",
        "null",
        "https://a b",
        "https://a?b",
        "https://a#b",
        "https://é.example",
        "https://a:0",
        "https://a:99999",
    ],
)
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises(ConfigError, match="is not an origin, such as"):
        origins_of([origin])


async def test_a_server_is_told_of_both() -> None:
    origins = (ORIGIN,)
    config = ServeConfig("nowhere", calls=CallsConfig(allowed_origins=origins, keep_alive_timeout=7))
    fronts = Fronts(config, Metrics(), RequestLog())
    assert fronts.http is not None
    uvicorn = fronts.http._server.config
    assert uvicorn.timeout_keep_alive == 7
    assert "CORSMiddleware" in str(uvicorn.app._app.user_middleware)  # type: ignore[union-attr]
