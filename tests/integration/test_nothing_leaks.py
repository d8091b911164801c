"""However a request ends, what it held is free again: over real gRPC, with clients that go."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.config.engine import EngineConfig
from coordinator.config.model import ModelOptions
from coordinator.config.serve import ServeConfig
from coordinator.config.service import Addresses
from coordinator.config.workers import WorkersConfig
from coordinator.server.main import RunningServer, open_server
from expertmesh import AsyncClient, ClientError, Delta
from tests.coordinator.engine.speculating import always_draft, watch_drawn
from tests.scenarios.starting import assert_all_free

# Few blocks, so that requests preempt each other.
ENGINE = EngineConfig(block_size=4, kv_cache_bytes=30 * 4 * 1536, max_num_seqs=6, max_step_tokens=24)


@asynccontextmanager
async def serving(checkpoint: Path, speculate: int | None = None) -> AsyncIterator[RunningServer]:
    config = ServeConfig(
        checkpoint=str(checkpoint),
        engine=replace(ENGINE, speculate=speculate),
        workers=WorkersConfig(num_workers=2, transport="in-process"),
        addresses=Addresses("127.0.0.1:0", control=None, http=None),
        model=ModelOptions(max_output_tokens=1 << 20),
    )
    async with open_server(config) as server:
        yield server


# Positions of the model.
CONTEXT = 32
WAYS = ("finished", "cancelled", "deadline", "left")


async def test_two_hundred_requests_that_end_in_every_way(tiny_checkpoint: Path) -> None:
    """Finished, cancelled before and after the first token, past their deadline, broken off by the client."""
    async with serving(tiny_checkpoint) as server:
        assert await _all_ends(server, _one_request) == set(WAYS), "every way was taken"
        assert server.engine.stats().num_preemptions > 0, "the cache was too small on purpose"


async def test_requests_that_draft_leave_nothing(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They repeat themselves, and their contexts do not slide: one that does keeps all from drafting."""
    always_draft(monkeypatch)
    drawn = watch_drawn(monkeypatch)
    async with serving(tiny_checkpoint, 4) as server:
        assert await _all_ends(server, _one_that_drafts) == set(WAYS), "every way was taken"
    assert sum(each.num_taken - 1 for each in drawn) > 100, "tokens were drafted and drawn"


async def _all_ends(server: RunningServer, ask: Callable[[AsyncClient, int], Awaitable[str]]) -> set[str]:
    rng = random.Random(3)
    async with AsyncClient(server.fronts.grpc.address) as client:
        ends = await asyncio.gather(*(ask(client, rng.randrange(1 << 30)) for _ in range(200)))
        await assert_all_free(server)
    return set(ends)


async def _one_that_drafts(client: AsyncClient, seed: int) -> str:
    """It ends with its context, unless its client ends it before."""
    rng = random.Random(seed)
    way, prompt = rng.choice(WAYS), [1, 2] * rng.randint(1, 6)
    stream = client.stream(
        prompt,
        timeout=rng.uniform(0.01, 0.5) if way == "deadline" else 120.0,
        max_tokens=CONTEXT - len(prompt),
        seed=seed,
        logit_bias={1: 30.0, 2: 29.0},
        context_overflow="stop",
        ignore_eos=True,
    )
    if way == "cancelled":
        await _cancel(stream, rng)
    elif way == "left":
        await _leave(stream)
    elif way == "deadline":
        (error,) = await asyncio.gather(_read(stream), return_exceptions=True)
        assert error is None or "DEADLINE_EXCEEDED" in str(error)
        way = "finished" if error is None else way
    else:
        await _read(stream)
    return way


async def _one_request(client: AsyncClient, seed: int) -> str:
    rng = random.Random(seed)
    prompt = [rng.randrange(320) for _ in range(rng.randint(1, 40))]
    way = rng.choice(WAYS)
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
        await _cancel(stream, rng)
    elif way == "left":
        await _leave(stream)
    elif way == "deadline":
        with pytest.raises(ClientError, match="DEADLINE_EXCEEDED"):
            await _read(stream)
    else:
        await _read(stream)
    return way


async def _cancel(stream: AsyncIterator[object], rng: random.Random) -> None:
    reader = asyncio.ensure_future(_read(stream))
    await asyncio.wait([reader], timeout=rng.uniform(0, 1.0))
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)


async def _leave(stream: AsyncGenerator[object, None]) -> None:
    async for event in stream:
        if isinstance(event, Delta):
            break
    await stream.aclose()


async def _read(stream: AsyncIterator[object]) -> None:
    async for _ in stream:
        pass
