"""Bodies that are large, slow, or full of small things cost their sender and nobody else."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import Request

from coordinator.api.http.json import MAX_BYTES_AT_ONCE, MAX_ELEMENTS, BodyReader
from coordinator.api.shared.errors import ApiError, Reason
from tests.coordinator.api.fakes import served_model
from tests.coordinator.api.http_fakes import Http


def request(*parts: bytes | asyncio.Event, reached: asyncio.Semaphore | None = None) -> Request:
    """An Event in the body holds it up, and `reached` is released when it does."""
    todo = list(parts)

    async def receive() -> dict[str, Any]:
        part = todo.pop(0)
        if isinstance(part, asyncio.Event):
            if reached is not None:
                reached.release()
            await part.wait()
            part = b""
        return {"type": "http.request", "body": part, "more_body": bool(todo)}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


async def refusal(reader: BodyReader, *parts: bytes | asyncio.Event) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await reader.read_object(request(*parts))
    return caught.value


async def test_a_body_that_never_comes() -> None:
    error = await refusal(BodyReader(max_seconds=0.05), b"{", asyncio.Event())
    assert str(error) == "body: did not arrive within 0.05 s"


async def test_all_bodies_together_have_a_limit() -> None:
    reader, part = BodyReader(), b" " * (8 << 20)
    held, reached = asyncio.Event(), asyncio.Semaphore(0)
    waiting = [
        asyncio.ensure_future(reader.read_object(request(part, held, b"{}", reached=reached)))
        for _ in range(MAX_BYTES_AT_ONCE // len(part) - 1)
    ]
    for _ in waiting:
        await reached.acquire()
    assert (await refusal(reader, part, b" {}")).reason is Reason.QUEUE_FULL
    held.set()
    assert await asyncio.gather(*waiting) == [{}] * len(waiting)
    assert await reader.read_object(request(b"{}")) == {}, "given back"


async def test_a_body_of_too_many_elements_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b'{"prompt": "a", "x": [' + b"[]," * MAX_ELEMENTS + b"[]]}"
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("parsed"))
    assert "elements" in str(await refusal(BodyReader(), body))


async def test_a_long_text_with_commas_is_no_such_body() -> None:
    text = "one, two; " * (MAX_ELEMENTS // 4)
    assert await BodyReader().read_object(request(json.dumps({"text": text}).encode())) == {"text": text}


async def test_the_collector_runs_again_afterwards() -> None:
    assert gc.isenabled()
    await refusal(BodyReader(), b"{nonsense")
    assert gc.isenabled()


async def test_other_encodings_than_utf8_are_refused() -> None:
    assert "is UTF-16" in str(await refusal(BodyReader(), '{"prompt": "x"}'.encode("utf-16")))


async def test_a_full_server_does_not_read_the_body() -> None:
    http = Http(max_requests=1)
    http.gate.admission.add_sequences(1)

    async def body() -> AsyncIterator[bytes]:
        pytest.fail("read")
        yield b""

    async with http.client() as client:
        response = await client.post("/v1/completions", content=body())
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")


async def test_long_lists_are_refused_by_their_length() -> None:
    http = Http(model=served_model())
    for field, value in (
        ("logit_bias", {str(key): 1 for key in range(2000)}),
        ("stop_token_ids", ["not even looked at"] * 65),
        ("stop", [None] * 17),
        ("experts", {"allowed_experts": [None] * ((1 << 16) + 1)}),
    ):
        response = await http.complete(**{field: value})
        assert response.status_code == 400, field
        assert "are more than" in response.json()["error"]["message"], field


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/completions/"), ("GET", "/v1/models/"), ("GET", "/health/"), ("GET", "/metrics/")],
)
async def test_no_redirect_tells_which_paths_there_are(method: str, path: str) -> None:
    async with Http().client() as client:
        response = await client.request(method, path)
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "invalid_request_error"
