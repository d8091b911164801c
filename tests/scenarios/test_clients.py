"""Scenarios D1, D2, D4, D7 and D8: clients that die, leave, stop, are late, or ask for too much."""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from coordinator.config.engine import EngineConfig
from coordinator.config.security import SecurityConfig
from coordinator.config.serve import ServeConfig
from coordinator.config.service import CallsConfig
from coordinator.server.main import RunningServer, open_server
from expertmesh import AsyncClient, ClientError, Delta, Event, Started, Summary
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc
from tests.coordinator.api.fakes import failure_of
from tests.coordinator.api.test_limit_edges import HOSTILE
from tests.coordinator.engine.client.clients import CLIENTS
from tests.integration.processes import COMMAND, stop
from tests.scenarios.starting import PATIENCE, assert_all_free, config_of, num_fds, until

# Few blocks, so that requests preempt each other.
SMALL_CACHE = EngineConfig(block_size=4, kv_cache_bytes=30 * 4 * 1536, max_num_seqs=6, max_step_tokens=24)
STALL = 1.0
Opened = Callable[[ServeConfig], AbstractAsyncContextManager[RunningServer]]


@pytest.fixture
def config(tiny_checkpoint: Path) -> ServeConfig:
    return replace(config_of(tiny_checkpoint), calls=CallsConfig(write_stall_timeout=STALL))


@pytest.fixture(params=list(CLIENTS))
def opened(request: pytest.FixtureRequest) -> Opened:
    """Opens a server whose fronts have the engine in their process, or behind a socket."""
    return partial(open_server, make_client=CLIENTS[request.param])


@pytest.fixture
async def server(config: ServeConfig, opened: Opened) -> AsyncIterator[RunningServer]:
    async with opened(config) as server:
        yield server


async def test_d1_a_killed_client_stops_its_work(server: RunningServer) -> None:
    client = await asyncio.create_subprocess_exec(
        *COMMAND,
        "client",
        server.fronts.grpc.address,
        *("--token-ids", "5,6,7", "--max-tokens", "1000000", "--context-overflow", "slide", "--ignore-eos"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert client.stdout is not None
    assert await client.stdout.read(10), "the stream runs"
    assert server.engine.stats().num_running == 1
    client.kill()
    killed_at = time.monotonic()
    await until(lambda: not server.engine.request_ids)
    seen_at, num_steps = time.monotonic(), server.engine.stats().num_steps
    await assert_all_free(server)
    await client.wait()
    num_more = server.engine.stats().num_steps - num_steps
    print(f"D1: seen after {1000 * (seen_at - killed_at):.1f} ms, {num_more} steps later its work was over")
    assert num_more <= 1


WAYS = ("before the first token", "after the first token", "at random")


async def test_d2_a_thousand_cancelled_requests_leave_nothing(config: ServeConfig, opened: Opened) -> None:
    async with (
        opened(replace(config, engine=SMALL_CACHE)) as server,
        AsyncClient(server.fronts.grpc.address) as client,
    ):
        await cancel_many(client, 60)
        await assert_all_free(server)
        before = num_fds(), len(asyncio.all_tasks())
        ends = await cancel_many(client, 1000)
        await assert_all_free(server)
        await until(lambda: (num_fds(), len(asyncio.all_tasks())) == before)
    print(f"D2: {before[0]} descriptors and {before[1]} tasks before and after {dict(ends)}")
    assert ends.total() == 1000
    assert min(ends[way] for way in WAYS) > 300, "every way was taken"


async def cancel_many(client: AsyncClient, count: int) -> Counter[str]:
    """At most 40 at a time; how many were cancelled in which way."""
    places = asyncio.Semaphore(40)

    async def one(number: int) -> str:
        async with places:
            return await cancel(client, WAYS[number % len(WAYS)], random.Random(number))

    return Counter(await asyncio.gather(*(one(number) for number in range(count))))


async def cancel(client: AsyncClient, way: str, rng: random.Random) -> str:
    prompt = [rng.randrange(320) for _ in range(rng.randint(1, 30))]
    stream = client.stream(prompt, max_tokens=1 << 20, context_overflow="slide", ignore_eos=True)
    wanted = {"before the first token": Started, "after the first token": Delta, "at random": Summary}[way]
    reader = asyncio.ensure_future(read_up_to(wanted, stream))
    done, _ = await asyncio.wait([reader], timeout=rng.uniform(0, 0.1) if way == "at random" else None)
    assert bool(done) == (way != "at random"), "it has come so far and would go on"
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    await stream.aclose()
    return way


async def read_up_to(kind: type[Event], stream: AsyncIterator[Event]) -> None:
    async for event in stream:
        if isinstance(event, kind):
            return


async def test_d4_a_stopped_client_is_ended_by_the_stall_deadline(server: RunningServer) -> None:
    """It is alive as far as TCP knows, and its host answers for it."""
    command = [sys.executable, "-m", "tests.scenarios.readers", server.fronts.grpc.address]
    client = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert client.stdout is not None
    try:
        assert await client.stdout.readline() == b"prompt\n"
        assert await client.stdout.readline() == b"delta\n"
        stop(client.pid)
        stopped_at, steps = time.monotonic(), server.engine.stats().num_steps
        async with AsyncClient(server.fronts.grpc.address) as other:
            await other.generate([5, 6], max_tokens=4)
        assert server.fronts.gate.num_calls == 1, "nobody has noticed"
        await until(lambda: server.fronts.gate.num_calls == 0, STALL + PATIENCE)
        seconds = time.monotonic() - stopped_at
        await assert_all_free(server)
    finally:
        client.kill()
        await client.wait()
    num_steps = server.engine.stats().num_steps - steps
    print(f"D4: ended {seconds:.2f} s after it stopped, {num_steps} steps later; the deadline is {STALL} s")
    assert seconds >= STALL


async def test_d7_deadlines_end_the_work_with_the_answer(server: RunningServer) -> None:
    async with AsyncClient(server.fronts.grpc.address) as client:
        for seconds in (0.001, 0.05):
            with pytest.raises(ClientError) as caught:
                await client.generate(
                    [5, 6], timeout=seconds, max_tokens=1 << 20, context_overflow="slide", ignore_eos=True
                )
            assert caught.value.code == "DEADLINE_EXCEEDED"
            await assert_all_free(server)
            steps = server.engine.stats().num_steps
            await client.generate([5, 6], max_tokens=1)
            assert server.engine.stats().num_steps == steps + 1, (
                "one step for one token, and none for the late"
            )


async def test_d7_a_server_has_a_deadline_for_those_who_have_none(
    config: ServeConfig, opened: Opened
) -> None:
    limited = replace(config, security=SecurityConfig(max_request_seconds=0.3))
    async with (
        opened(limited) as server,
        grpc.aio.insecure_channel(server.fronts.grpc.address) as channel,
    ):
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        message = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5, 6]))
        message.stopping.MergeFrom(pb.StoppingParams(max_tokens=1 << 20, ignore_eos=True))
        message.stopping.context_overflow = pb.CONTEXT_OVERFLOW_SLIDE
        started = time.monotonic()
        failed = await failure_of(stub.GenerateStream(message))
        seconds = time.monotonic() - started
        await assert_all_free(server)
    print(f"D7: a request without a deadline ended after {seconds:.2f} s of 0.3 s")
    assert (failed.code, failed.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    assert 0.3 <= seconds < PATIENCE, "it would have run for hours"


# Of this process, which is the client too. What refusing costs is bounded by what receiving costs.
REFUSED_SECONDS = 0.05
# On a slow processor: so many times what writing and reading the message takes there.
REFUSED_READINGS = 5
HOSTILE_BODIES: dict[str, dict[str, Any]] = {
    "a batch": {"prompt": ["x"] * 65},
    "a large batch": {"prompt": [[5]] * 10_000},
    "many of all": {"prompt": "x", "n": 1 << 31, "max_tokens": 1 << 31, "stop": ["a"] * 100_000},
}


async def test_d8_oversize_is_refused_at_once(config: ServeConfig) -> None:
    fronts = replace(config.addresses, http="127.0.0.1:0")
    async with open_server(replace(config, addresses=fronts)) as server:
        seconds = {name: await refused_by_grpc(server, message) for name, message in HOSTILE.items()}
        seconds |= {name: await refused_by_http(server, body) for name, body in HOSTILE_BODIES.items()}
        assert server.engine.stats().num_steps == 1, "only the warm-up's"
    print("D8:", {name: f"{1000 * value:.1f} ms" for name, value in seconds.items()})
    allowed = {name: REFUSED_READINGS * reading_seconds(message) for name, message in HOSTILE.items()}
    late = {
        name: each for name, each in seconds.items() if each > max(REFUSED_SECONDS, allowed.get(name, 0.0))
    }
    assert late == {}


def reading_seconds(message: pb.GenerateRequest) -> float:
    """CPU seconds, the best of five."""
    best = float("inf")
    for _ in range(5):
        started = time.process_time()
        pb.GenerateRequest.FromString(message.SerializeToString())
        best = min(best, time.process_time() - started)
    return best


async def refused_by_grpc(server: RunningServer, message: pb.GenerateRequest) -> float:
    """CPU seconds, the best of five: what else the machine does is not looked at."""
    best = float("inf")
    async with grpc.aio.insecure_channel(server.fronts.grpc.address) as channel:
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        for _ in range(5):
            started = time.process_time()
            failed = await failure_of(stub.Generate(message))
            best = min(best, time.process_time() - started)
            assert failed.code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")
    return best


async def refused_by_http(server: RunningServer, body: dict[str, Any]) -> float:
    assert server.fronts.http is not None
    best, data = float("inf"), json.dumps(body).encode()
    async with httpx.AsyncClient(base_url=f"http://{server.fronts.http.address}", verify=False) as client:
        for _ in range(5):
            started = time.process_time()
            response = await client.post("/v1/completions", content=data)
            best = min(best, time.process_time() - started)
            assert response.status_code in (400, 413, 429)
    return best
