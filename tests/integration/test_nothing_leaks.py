"""However a request ends, what it held is free again: over real gRPC, with clients that go and die."""

import asyncio
import random
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.client import AsyncClient, ClientError, Delta
from coordinator.config import Addresses, EngineConfig, ModelOptions, ServeConfig, WorkersConfig
from coordinator.server import RunningServer, open_server
from tests.integration.processes import COMMAND

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


async def until_idle(server: RunningServer, timeout: float = 20.0) -> None:
    """Waits until the engine has nothing left to do."""
    async with asyncio.timeout(timeout):
        while server.engine.stats().num_running or server.engine.stats().num_waiting:
            await asyncio.sleep(0.001)


async def assert_all_free(server: RunningServer) -> None:
    await until_idle(server)
    await server.engine.check_integrity()
    stats = server.engine.stats()
    assert stats.num_free_blocks == stats.num_blocks
    assert server.engine.num_requests == 0
    assert server.fronts.grpc.num_calls == 0


async def test_a_killed_client_frees_its_blocks(server: RunningServer) -> None:
    endless = [
        "--token-ids",
        "5,6,7",
        "--max-tokens",
        "1000000",
        "--context-overflow",
        "slide",
        "--ignore-eos",
    ]
    client = await asyncio.create_subprocess_exec(
        *COMMAND,
        "client",
        server.fronts.grpc.address,
        *endless,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert client.stdout is not None
    assert await client.stdout.read(10), "the stream runs"
    assert server.engine.stats().num_running == 1
    client.kill()
    await client.wait()
    await assert_all_free(server)


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
