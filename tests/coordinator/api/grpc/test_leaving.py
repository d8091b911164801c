"""Clients that leave, and bytes that are no request."""

import asyncio
from typing import Any

import grpc
import pytest

from tests.coordinator.api.engine_kinds import BOTH_ENGINES, IN_PROCESS_ONLY
from tests.coordinator.api.fakes import (
    PATIENCE,
    FakeEngine,
    Running,
    failure_of,
    generate_request,
    running,
    tokens,
)

pytestmark = BOTH_ENGINES


async def eventually_idle(running: Running) -> None:
    """The engine is told by the end of the call's own body, which the client does not wait for."""
    await asyncio.wait_for(running.engine.abort_seen.wait(), PATIENCE)
    assert running.engine.num_running == 0


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("how", ["cancel", "deadline", "channel"])
async def test_whoever_leaves_aborts_the_request(streaming: bool, how: str) -> None:
    engine = FakeEngine(tokens(40), asyncio.Event())
    async with running(engine) as service:
        method = service.stub.GenerateStream if streaming else service.stub.Generate
        call = method(generate_request('request_id: "a"'), timeout=1.0 if how == "deadline" else None)
        await asyncio.wait_for(engine.started.wait(), PATIENCE)
        if how == "cancel":
            call.cancel()
        elif how == "channel":
            await service.channel.close()
        await eventually_idle(service)
        assert engine.aborted == ["a"]
        if how == "deadline":
            assert (await call.code()) is grpc.StatusCode.DEADLINE_EXCEEDED
        # The place and the id are free again.
        assert await service.server._gate.wait_idle(PATIENCE)
        assert not service.server._gate._request_ids


@IN_PROCESS_ONLY
async def test_a_client_that_leaves_during_a_write_aborts_the_request() -> None:
    """The server writes as fast as it can to a reader that reads nothing and then goes."""

    def endless(_: object) -> Any:
        while True:
            yield tokens(*range(40, 300))

    engine = FakeEngine(play=endless)
    async with running(engine) as service:
        call = service.stub.GenerateStream(
            generate_request('request_id: "a" response { return_token_ids: true }')
        )
        await asyncio.wait_for(engine.started.wait(), PATIENCE)
        await asyncio.wait_for(call.read(), PATIENCE)
        call.cancel()
        await eventually_idle(service)
    assert engine.aborted == ["a"]


async def test_nothing_is_aborted_after_a_normal_end() -> None:
    async with running() as service:
        await service.stub.Generate(generate_request())
        _ = [event async for event in service.stub.GenerateStream(generate_request())]
    assert service.engine.aborted == []
    assert service.engine.num_running == 0


@pytest.mark.parametrize("method", ["Generate", "GenerateStream", "Tokenize", "Detokenize", "GetModelInfo"])
@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x0a\x02\xc3\x28", b"\x0a\x7f"])
async def test_bytes_that_are_no_message(method: str, data: bytes) -> None:
    async with running() as service:
        path = f"/expertmesh.v1.GenerationService/{method}"
        streaming = method == "GenerateStream"
        raw: Any = (service.channel.unary_stream if streaming else service.channel.unary_unary)(path)
        failed = await failure_of(raw(data))
        assert (failed.code, failed.reason, failed.fields) == (
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
            ["message"],
        )
        assert "Error" not in failed.message
        await service.stub.Generate(generate_request())


async def test_unknown_fields_are_left_out() -> None:
    async with running() as service:
        raw: Any = service.channel.unary_unary("/expertmesh.v1.GenerationService/Generate")
        assert await raw(generate_request().SerializeToString() + b"\xfa\x3f\x03abc")


async def test_a_message_that_is_too_large() -> None:
    async with running() as service:
        failed = await failure_of(service.stub.Generate(generate_request(prompt="x" * (17 << 20))))
        assert failed.code == "RESOURCE_EXHAUSTED"
        await service.stub.Generate(generate_request())
