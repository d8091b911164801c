"""Server-sent events as OpenAI's clients read them; and that whoever leaves is not worked for."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from moe_model.errors import ExpertsLostError
from tests.coordinator.api.engine_kinds import BOTH_ENGINES, IN_PROCESS_ONLY
from tests.coordinator.api.fakes import PATIENCE, FakeEngine, last, served_model, tokens
from tests.coordinator.api.http_fakes import Http

pytestmark = BOTH_ENGINES


def chunks_of(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) for line in lines[:-1]]


@IN_PROCESS_ONLY
async def test_the_shape_of_a_stream() -> None:
    response = await Http().complete(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-request-id"]
    chunks = chunks_of(response)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "length"]
    assert all("usage" not in chunk for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1


@IN_PROCESS_ONLY
async def test_usage_at_the_end_or_all_along() -> None:
    chunks = chunks_of(await Http().complete(stream=True, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 3
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = chunks_of(await Http().complete(stream=True, stream_options=options))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 3, 3]


async def test_an_error_after_the_first_byte_is_an_event_and_before_it_a_status() -> None:
    late = await Http(FakeEngine(tokens(40), ExpertsLostError("x"))).complete(stream=True)
    assert late.status_code == 200
    assert chunks_of(late)[-1]["error"]["code"] == "expert_worker_lost"
    early = await Http(FakeEngine(ExpertsLostError("x"))).complete(stream=True)
    assert (early.status_code, early.json()["error"]["code"]) == (503, "expert_worker_lost")


async def test_whole_and_streamed_answers_are_the_same() -> None:
    whole = (await Http().complete(seed=1, logprobs=None)).json()["choices"][0]
    chunks = chunks_of(await Http().complete(seed=1, stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]


async def test_several_prompts_have_choices_of_their_own() -> None:
    response = await Http().complete(prompt=["a", "b", [5]], temperature=1)
    assert [choice["index"] for choice in response.json()["choices"]] == [0, 1, 2]
    assert response.json()["usage"]["completion_tokens"] == 9


@pytest.mark.parametrize("stream", [False, True])
async def test_whoever_leaves_is_not_worked_for(stream: bool) -> None:
    """The whole app by hand: httpx waits for an answer's end before it lets go."""
    engine = FakeEngine(tokens(40), asyncio.Event(), last(41))
    http = Http(engine, served_model())
    left = asyncio.Event()
    body = json.dumps({"prompt": [5], "stream": stream}).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        return None

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "scheme": "http",
    }
    call = asyncio.ensure_future(http.app(scope, receive, send))
    await asyncio.wait_for(engine.started.wait(), PATIENCE)
    left.set()
    await asyncio.wait_for(engine.abort_seen.wait(), PATIENCE)
    await asyncio.wait_for(call, PATIENCE)
    assert engine.num_running == 0
    assert http.gate.num_calls == 0
    assert http.gate.admission.num_sequences == 0


async def test_a_server_that_stops_says_so() -> None:
    engine = FakeEngine(tokens(40), asyncio.Event(), last(41))
    http = Http(engine)
    call = asyncio.ensure_future(http.complete())
    await asyncio.wait_for(engine.started.wait(), PATIENCE)
    http.gate.drain()
    http.gate.evict()
    response = await asyncio.wait_for(call, PATIENCE)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")


async def test_health_tells_the_reasons() -> None:
    http = Http()
    async with http.client() as client:
        assert (await client.get("/health")).json() == {}
        http.reasons = ("3 experts have no live worker",)
        response = await client.get("/readyz")
        assert (response.status_code, response.json()["reasons"]) == (503, list(http.reasons))
        assert (await client.get("/livez")).status_code == 200
