"""A stream that says nothing for a minute lives on, whatever its client does to keep it alive."""

import asyncio
from typing import Any

import grpc
import pytest

from expertmesh.v1 import generation_pb2_grpc
from tests.coordinator.api.engine_kinds import BOTH_ENGINES
from tests.coordinator.api.fakes import PATIENCE, FakeEngine, generate_request, last, running, tokens
from tests.coordinator.api.grammar import check_grammar

pytestmark = BOTH_ENGINES

QUIET_SECONDS = 60.0
PINGS = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]


@pytest.mark.slow
async def test_a_quiet_stream_under_pings() -> None:
    """With gRPC's own limits the third ping within five minutes ends the connection."""
    hold = asyncio.Event()
    async with (
        running(FakeEngine(tokens(40), hold, last(41))) as service,
        grpc.aio.insecure_channel(service.server.address, PINGS) as channel,
    ):
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        reader = aiter(stub.GenerateStream(generate_request()))
        events = [await anext(reader), await anext(reader)]
        waiting = asyncio.ensure_future(anext(reader))
        # The quiet itself is what is tested: nothing may happen in it.
        done, _ = await asyncio.wait({waiting}, timeout=QUIET_SECONDS)
        assert not done
        hold.set()
        events.append(await asyncio.wait_for(waiting, PATIENCE))
        check_grammar([*events, *[event async for event in reader]])
    assert service.engine.aborted == []
