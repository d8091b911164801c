"""Compressed gRPC messages: they are understood, and the limit is for what is inflated."""

import gzip
from typing import Any

import grpc
import pytest

from expertmesh.v1 import generation_pb2 as pb
from tests.coordinator.api.both_fronts import both_fronts
from tests.coordinator.api.engine_kinds import BOTH_ENGINES
from tests.coordinator.api.fakes import ends_at_once, generate_request

pytestmark = BOTH_ENGINES

MAX_BYTES = 16 << 20


async def test_a_compressed_message_is_understood() -> None:
    async with both_fronts(ends_at_once()) as fronts:
        for kind in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            answer = await fronts.stub.Generate(generate_request(prompt=" " * 20), compression=kind)
            assert answer.usage.prompt_tokens


@pytest.mark.parametrize("megabytes", [17, 64])
async def test_the_limit_is_for_what_is_inflated(megabytes: int) -> None:
    """Sent a few hundred kilobytes, refused without the rest."""
    message = pb.GenerateRequest(text="x" * (megabytes << 20))
    assert len(gzip.compress(message.SerializeToString(), 1)) < MAX_BYTES
    async with both_fronts(ends_at_once()) as fronts:
        call: Any = fronts.stub.Generate(message, compression=grpc.Compression.Gzip)
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, await call.details()
        assert (await fronts.stub.Generate(generate_request())).usage.prompt_tokens
