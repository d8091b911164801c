"""When requests are sent, and what the clients that read nothing note of the answers."""

import asyncio
import itertools
import statistics
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from benchmarks.light_clients import STREAM, LightClients, Trace
from benchmarks.load import Clients, LightRuns, closed_loop, open_loop, poisson_arrivals, request, result_of
from tests.coordinator.api.fakes import running


def test_arrivals_are_those_of_the_seed() -> None:
    arrivals = poisson_arrivals(20.0, 5.0, seed=3)
    assert arrivals == poisson_arrivals(20.0, 5.0, seed=3)
    assert arrivals != poisson_arrivals(20.0, 5.0, seed=4)


def test_arrivals_are_a_poisson_process() -> None:
    arrivals = poisson_arrivals(50.0, 200.0, seed=0)
    assert arrivals == sorted(arrivals)
    assert 0 < arrivals[0] < arrivals[-1] < 200.0
    gaps = [after - before for before, after in itertools.pairwise(arrivals)]
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.05)
    # Of an exponential distribution; even gaps would have none.
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.1)


class Echo:
    """Answers a request with its bytes, one by one or three times whole; refuses one that says so. Counts who
    is there."""

    def __init__(self, *, whole: bool = False) -> None:
        self.whole = whole
        # What it waits for after each answer, if anything.
        self.pause: asyncio.Event | None = None
        self.running = self.most = 0
        self.peers: set[str] = set()

    async def stream(self, message: bytes, context: Any) -> AsyncIterator[bytes]:
        self.running += 1
        self.most = max(self.most, self.running)
        self.peers.add(context.peer())
        try:
            if message == b"refuse":
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
            for answer in [message] * 3 if self.whole else [bytes([byte]) for byte in message]:
                yield answer
                if self.pause is not None:
                    await self.pause.wait()
        finally:
            self.running -= 1


@asynccontextmanager
async def echoing(num_clients: int, *, whole: bool = False) -> AsyncIterator[tuple[Echo, LightClients]]:
    echo, server = Echo(whole=whole), grpc.aio.server()
    _, service, method = STREAM.split("/")
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(echo.stream)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    clients = LightClients(f"127.0.0.1:{port}", num_clients)
    await clients.connect()
    try:
        yield echo, clients
    finally:
        await clients.close()
        await server.stop(None)


def numbered() -> Iterator[bytes]:
    return (f"{number:03}".encode() for number in itertools.count())


async def test_messages_are_noted_as_they_come() -> None:
    async with echoing(1) as (_, clients):
        trace = await clients.send(0, b"abc")
    assert [data for _, data in trace.messages] == [b"a", b"b", b"c"]
    times = [trace.due, *(time for time, _ in trace.messages), trace.ended]
    assert times == sorted(times)
    assert trace.code == "OK"


async def test_a_refusal_is_a_code() -> None:
    async with echoing(1) as (_, clients):
        trace = await clients.send(0, b"refuse")
    assert (trace.code, trace.messages) == ("RESOURCE_EXHAUSTED", [])
    assert trace.ended > trace.due


async def test_a_closed_loop_has_one_request_per_client() -> None:
    async with echoing(3) as (echo, clients):
        traces = await closed_loop(clients, 3, 4, numbered())
    assert len({b"".join(data for _, data in trace.messages) for trace in traces}) == 12
    assert echo.most <= 3
    assert len(echo.peers) == 3


async def test_an_open_loop_waits_for_no_answer() -> None:
    async with echoing(2) as (_, clients):
        before = asyncio.get_running_loop().time()
        traces = await open_loop(clients, [0.0, 0.02, 0.02, 0.05], numbered())
        assert asyncio.get_running_loop().time() - before >= 0.05
    due = [trace.due - traces[0].due for trace in traces]
    assert due == pytest.approx([0.0, 0.02, 0.02, 0.05])
    assert all(trace.messages[0][0] >= trace.due for trace in traces)


async def test_being_late_counts_as_waiting() -> None:
    async with echoing(1) as (_, clients):
        due = asyncio.get_running_loop().time() - 100.0
        trace = await clients.send(0, b"a", due)
    assert trace.due == due


async def test_a_server_that_leaves_ends_its_streams() -> None:
    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """An HTTP/2 server that says nothing but its settings, and leaves once it has read a request."""
        writer.write(bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        await reader.readuntil(b"\0\0\0\0\1a")
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    clients = LightClients(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", 1)
    async with server:
        await clients.connect()
        assert (await clients.send(0, b"a")).code == "UNAVAILABLE"
        await clients.close()


async def test_a_message_in_pieces_came_with_its_last_one() -> None:
    long = bytes(range(256)) * 40
    async with echoing(1, whole=True) as (_, clients):
        trace = await clients.send(0, long)
    assert [data for _, data in trace.messages] == [long] * 3


async def test_a_long_request_is_refused_by_name() -> None:
    async with echoing(1) as (_, clients):
        with pytest.raises(ValueError, match="too long for a light client"):
            await clients.send(0, bytes(1 << 14))


class Noted(list[tuple[float, bytes]]):
    """Says when its first one is there."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()

    def append(self, message: tuple[float, bytes]) -> None:
        super().append(message)
        self.begun.set()


async def test_a_trace_can_be_looked_at_while_it_grows() -> None:
    async with echoing(1) as (echo, clients):
        echo.pause = asyncio.Event()
        messages = Noted()
        trace = Trace(0.0, messages=messages)
        following = asyncio.ensure_future(clients.follow(0, b"ab", trace))
        await asyncio.wait_for(messages.begun.wait(), 10)
        assert (len(trace.messages), trace.ended) == (1, 0.0)
        echo.pause.set()
        await following
    assert (len(trace.messages), trace.code) == (2, "OK")


async def test_a_light_run_says_what_a_client_would() -> None:
    async with running() as service:
        message = request([5, 6], 3)
        light, full = LightRuns(service.server.address, 1), Clients(service.server.address, 1)
        for clients in (light, full):
            await clients.connect()
        found = result_of(await light.run(message.SerializeToString()))
        expected = await full.run(message)
        for clients in (light, full):
            await clients.close()
    assert (found.code, found.token_ids) == (expected.code, expected.token_ids) == ("OK", [40, 41, 42])
    assert 0 < found.decided <= found.first_token <= found.total
