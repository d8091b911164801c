"""However a request ends, what it held is free again: over real gRPC, with clients that go."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.config.engine import EngineConfig
from coordinator.config.model import ModelOptions
from coordinator.config.serve import ServeConfig
from coordinator.config.service import Addresses
from coordinator.config.workers import WorkersConfig
from coordinator.server.main import RunningServer, open_server
from expertmesh import AsyncClient, ClientError, Delta
from tests.scenarios.starting import assert_all_free

# Few blocks, so that requests preempt each other.
ENGINE = EngineConfig(block_size=4, kv_cache_bytes=30 * 4 * 1536, max_num_seqs=6, max_step_tokens=24)


@pytest.fixture
async def server(tiny_checkpoint: Path) -> AsyncIterator[RunningServer]:
    config = ServeConfig(
        checkpoint=tiny_checkpoint,
        engine=ENGINE,
        workers=WorkersConfig(num_workers=2, transport="in-process"),
        addresses=Addresses("127.0.0.1:0", control=None, http=None),
        model=ModelOptions(max_output_tokens=1 << 20),
    )
    async with open_server(config) as server:
        yield server


async def test_two_hundred_requests_that_end_in_every_way(server: RunningServer) -> None:
    """Finished, cancelled before and after the first token, past their deadline, broken off by the client."""
    rng = random.Random(3)
    async with AsyncClient(server.fronts.grpc.address) as client:
        ends = await asyncio.gather(*(_one_request(client, rng.randrange(1 << 30)) for _ in range(200)))
        assert {"finished", "cancelled", "deadline", "left"} == set(ends), "every way was taken"
        await assert_all_free(server)
        assert server.engine.stats().num_preemptions > 0, "the cache was too small on purpose"


async def _one_request(client: AsyncClient, seed: int) -> str:
    rng = random.Random(seed)
    prompt = [rng.randrange(320) for _ in range(rng.randint(1, 40))]
    way = rng.choice(["finished", "cancelled", "deadline", "left"])
    # Far more than there is time for, unless the request is one that may finish.
    max_tokens = rng.randint(1, 12) if way == "finished" else 1 << 20
    timeout = rng.uniform(0.01, 1.0) if way == "deadline" else 120.0
    stream = client.stream(
        prompt,
        timeout=timeout,
        max_tokens=max_tokens,
        seed=seed,
        context_overflow="slide",
        ignore_eos=way != "finished",
    )
    if way == "cancelled":
        reader = asyncio.ensure_future(_read(stream))
        await asyncio.wait([reader], timeout=rng.uniform(0, 1.0))
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        return way
    if way == "left":
        async for event in stream:
            if isinstance(event, Delta):
                break
        await stream.aclose()
        return way
    if way == "deadline":
        with pytest.raises(ClientError, match="DEADLINE_EXCEEDED"):
            await _read(stream)
    else:
        await _read(stream)
    return way


async def _read(stream: AsyncIterator[object]) -> None:
    async for _ in stream:
        pass
