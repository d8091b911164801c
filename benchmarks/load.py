"""Clients for the service benchmarks: one request and what became of it, many at once.

`Clients` read what they are sent; `LightClients` only note when it came (light_clients.py).
"""

import asyncio
import gc
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc

from benchmarks.light_clients import LightClients, Trace
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc

if TYPE_CHECKING:
    Call = grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateStreamResponse]

# More streams on one connection would measure HTTP/2's fairness, not the server's.
STREAMS_PER_CHANNEL = 100

# The servers are on this machine, where no proxy leads.
OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
TIMEOUT = 600.0
CONNECT_TIMEOUT = 60.0


@dataclass(slots=True)
class Result:
    """One request as its client saw it. Times are seconds since it was sent. `has_retry_info`, of a
    refusal, is None where its client does not look at that."""

    code: str = "OK"
    decided: float = 0.0
    first_token: float = 0.0
    total: float = 0.0
    token_ids: list[int] = field(default_factory=list)
    cached: int = 0
    has_retry_info: bool | None = False
    sent_at: float = 0.0

    @property
    def is_complete(self) -> bool:
        return self.code == "OK"


class Clients:
    """Channels to one server, used in turns."""

    def __init__(self, address: str, num_streams: int) -> None:
        count = max(1, -(-num_streams // STREAMS_PER_CHANNEL))
        self._channels = [grpc.aio.insecure_channel(address, options=OPTIONS) for _ in range(count)]
        self._stubs = [generation_pb2_grpc.GenerationServiceStub(c) for c in self._channels]  # type: ignore[no-untyped-call]
        self._turn = 0
        self._unread: list[Call] = []

    async def connect(self) -> None:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await asyncio.gather(*(channel.channel_ready() for channel in self._channels))

    def leave_unread(self, request: pb.GenerateRequest) -> None:
        """Sends a request and never reads a message of its answer; `close` ends it."""
        self._unread.append(self.open(request, TIMEOUT))

    async def all_begun(self) -> None:
        """Waits until the server has answered every unread request with metadata."""
        await asyncio.gather(*(call.initial_metadata() for call in self._unread))

    async def close(self) -> None:
        for call in self._unread:
            call.cancel()
        await asyncio.gather(*(channel.close() for channel in self._channels))

    def open(self, request: pb.GenerateRequest, timeout: float) -> "Call":
        self._turn += 1
        stub = self._stubs[self._turn % len(self._stubs)]
        call: Call = stub.GenerateStream(request, timeout=timeout)
        return call

    async def run(self, request: pb.GenerateRequest, timeout: float = TIMEOUT) -> Result:
        """Sends, reads everything, never raises for a status."""
        started = time.perf_counter()
        result = Result(sent_at=started)
        call = self.open(request, timeout)
        try:
            async for event in call:
                now = time.perf_counter() - started
                result.decided = result.decided or now
                if event.WhichOneof("event") == "delta":
                    result.first_token = result.first_token or now
                    result.token_ids += event.delta.token_ids
                elif event.WhichOneof("event") == "summary":
                    result.cached = event.summary.usage.cached_prompt_tokens
        except grpc.aio.AioRpcError as error:
            result.code = error.code().name
            details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
            result.has_retry_info = b"RetryInfo" in details
        result.total = time.perf_counter() - started
        result.decided = result.decided or result.total
        return result


class LightRuns:
    """As `Clients`, where their own work would be missing at the server: messages are bytes before it begins,
    and what came of them is looked at, with `result_of`, when it is over."""

    def __init__(self, address: str, num_streams: int) -> None:
        self._clients = LightClients(address, max(1, -(-num_streams // STREAMS_PER_CHANNEL)))
        self._turn = 0

    async def connect(self) -> None:
        await self._clients.connect()

    async def close(self) -> None:
        await self._clients.close()

    async def run(self, message: bytes) -> Trace:
        self._turn += 1
        return await self._clients.send(self._turn, message)


def result_of(trace: Trace) -> Result:
    """Without the details of a refusal."""
    result = Result(trace.code, total=trace.ended - trace.due, has_retry_info=None, sent_at=trace.due)
    for at, data in trace.messages:
        event = pb.GenerateStreamResponse.FromString(data)
        result.decided = result.decided or at - trace.due
        if event.HasField("delta"):
            result.first_token = result.first_token or at - trace.due
            result.token_ids += event.delta.token_ids
    result.decided = result.decided or result.total
    return result


@contextmanager
def without_collections() -> Iterator[None]:
    """Python does not look for garbage meanwhile: a client that stands still makes its server look slow."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


async def closed_loop(
    clients: LightClients, num_clients: int, num_turns: int, messages: Iterator[bytes]
) -> list[Trace]:
    """Each client sends its next request when the one before has ended."""

    async def client(number: int) -> list[Trace]:
        return [await clients.send(number, next(messages)) for _ in range(num_turns)]

    of_clients = await asyncio.gather(*(client(number) for number in range(num_clients)))
    return [trace for traces in of_clients for trace in traces]


async def open_loop(
    clients: LightClients, arrivals: Sequence[float], messages: Iterator[bytes]
) -> list[Trace]:
    """Sends at the times of `arrivals`, whatever comes back. A request that is sent late was due in time."""
    started = time.perf_counter()

    async def arrival(number: int, seconds: float) -> Trace:
        due = started + seconds
        await asyncio.sleep(due - time.perf_counter())
        return await clients.send(number, next(messages), due)

    return await asyncio.gather(*(arrival(number, seconds) for number, seconds in enumerate(arrivals)))


def poisson_arrivals(per_second: float, seconds: float, seed: int) -> list[float]:
    """Seconds from the start; the same for the same seed."""
    rng, arrivals = random.Random(seed), list[float]()
    arrival = rng.expovariate(per_second)
    while arrival < seconds:
        arrivals.append(arrival)
        arrival += rng.expovariate(per_second)
    return arrivals


def request(prompt: Sequence[int], new_tokens: int) -> pb.GenerateRequest:
    """Exactly `new_tokens` greedy tokens."""
    return pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=prompt),
        sampling=pb.SamplingParams(temperature=0.0),
        stopping=pb.StoppingParams(max_tokens=new_tokens, ignore_eos=True),
        response=pb.ResponseOptions(return_token_ids=True, return_text=False),
    )


def message_of(index: int, new_tokens: int, length: int = 16) -> bytes:
    """The bytes of a request with a prompt of its own."""
    return request(prompt_of(index, length), new_tokens).SerializeToString()


def prompt_of(index: int, length: int, vocab_size: int = 4096) -> list[int]:
    """Different for every index from its first token on, so that nothing is cached by accident."""
    return [(7919 * index + 31 * i * (index + 1)) % (vocab_size - 4) + 4 for i in range(length)]
