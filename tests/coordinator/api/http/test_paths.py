"""Paths that are nearly right say which is; what other servers have is refused by name."""

import pytest

from coordinator.api.http.paths import NOT_HERE, nothing_there
from tests.coordinator.api.http_fakes import Http


async def told(path: str, method: str = "POST") -> tuple[int, str]:
    async with Http().client() as client:
        response = await client.request(method, path)
    return response.status_code, response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/completions", "/v1/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/models", "/v1/models"),
        ("/models/tiny", "/v1/models/NAME"),
        ("/v1/completions/", "/v1/completions"),
        ("/v1/chat/completions//", "/v1/chat/completions"),
        ("//v1//completions", "/v1/completions"),
        ("/v1/v1/completions", "/v1/completions"),
        ("/v1/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/api/v1/chat/completions", "/v1/chat/completions"),
        ("/V1/Completions", "/v1/completions"),
        ("/v1/completion", "/v1/completions"),
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/v1/chat", "/v1/chat/completions"),
        ("/v1/tokenize", "/tokenize"),
        ("/v1/health", "/health"),
        ("/metrics/", "/metrics"),
        ("/v1/engines/x/completions", "/v1/completions"),
    ],
)
async def test_a_path_that_is_nearly_right(path: str, meant: str) -> None:
    assert await told(path) == (404, f"there is no such path; did you mean {meant}?")


@pytest.mark.parametrize("path", NOT_HERE)
async def test_what_other_servers_have(path: str) -> None:
    for spelled in (path, f"{path}/", path.removeprefix("/v1"), f"/v1{path}"):
        status, message = await told(spelled)
        assert status == 404
        assert message.startswith(f"this server has no {path}"), spelled
        assert "/v1/chat/completions" in message


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/favicon.ico", "/" + "x" * 5000, "/%0d%0a", "/%ff"])
async def test_any_other_path(path: str) -> None:
    status, message = await told(path, "GET")
    assert (status, message) == (404, "there is no such path; the API is under /v1, as in /v1/models")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/completions", "POST"),
        ("GET", "/v1/chat/completions", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/tiny", "GET, HEAD"),
        ("OPTIONS", "/v1/completions", "POST"),
        ("post", "/v1/completions", "POST"),
    ],
)
async def test_another_method(method: str, path: str, allowed: str) -> None:
    async with Http().client() as client:
        client_request = client.build_request(method, path)
        client_request.method = method
        response = await client.send(client_request)
    assert response.status_code == 405
    assert sorted(response.headers["allow"].split(", ")) == allowed.split(", ")
    assert (
        response.json()["error"]["message"] == f"this method is not allowed here; use {allowed.split(',')[0]}"
    )


def test_a_port_without_the_api_says_what_it_has() -> None:
    assert nothing_there("/completions", ["/livez", "/metrics"]) == (
        "there is no such path; this port has /livez, /metrics"
    )


async def test_head_where_there_is_get() -> None:
    async with Http().client() as client:
        assert (await client.head("/health")).status_code == 200
