"""The process that our client sends from: `python -P -m scaling.loads.own_process ORDER REPORT`.

It looks at no message before the load has ended: it shares the cores with the server that it measures.
"""

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import grpc
import msgspec

from benchmarks.light_clients import STREAM, LightClients, Trace
from benchmarks.load import OPTIONS, without_collections
from scaling.loads.own_messages import BEGIN, MOST_LIGHT_BYTES, Answer, Order, Report

# Requests of an open loop go over so many connections in turns, and no closed loop takes more.
MOST_CONNECTIONS = 64
# Of requests that have not ended by the load's deadline.
TOO_LATE = "DEADLINE_EXCEEDED"


class Sending(Protocol):
    """Some connections, of which a request takes one by its number."""

    async def connect(self) -> None: ...

    async def close(self) -> None: ...

    async def follow(self, client: int, message: bytes, trace: Trace) -> None:
        """Reads to the end, never raises for a status."""


class LongClients:
    """As LightClients, by gRPC's own client, for requests that are longer than a frame of HTTP/2."""

    def __init__(self, address: str, num_clients: int) -> None:
        self._channels = [grpc.aio.insecure_channel(address, options=OPTIONS) for _ in range(num_clients)]

    async def connect(self) -> None:
        await asyncio.gather(*(channel.channel_ready() for channel in self._channels))

    async def close(self) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def follow(self, client: int, message: bytes, trace: Trace) -> None:
        channel = self._channels[client % len(self._channels)]
        # Without functions for them, messages are the bytes that they are.
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(STREAM)
        call = method(message)
        try:
            async for data in call:
                trace.messages.append((time.perf_counter(), data))
        except grpc.aio.AioRpcError as error:
            trace.code = error.code().name
        trace.ended = time.perf_counter()


class Sent:
    """All requests of an order, each with its trace once it was sent."""

    def __init__(self, order: Order, clients: Sending, began: float) -> None:
        self._order, self._clients, self._began = order, clients, began
        self.traces: dict[int, Trace] = {}
        self.sent: dict[int, float] = {}

    async def run(self) -> None:
        """Returns when all have ended. Clients of a closed loop take the next that no other has taken."""
        numbers = iter(range(len(self._order.messages)))
        if self._order.due_s:
            await asyncio.gather(*(self._when_due(number) for number in numbers))
        else:
            await asyncio.gather(
                *(self._one_by_one(client, numbers) for client in range(self._order.clients))
            )

    async def _one_by_one(self, client: int, numbers: Iterator[int]) -> None:
        for number in numbers:
            await self._send(client, number, time.perf_counter())

    async def _when_due(self, number: int) -> None:
        due = self._began + self._order.due_s[number]
        await asyncio.sleep(due - time.perf_counter())
        await self._send(number, number, due)

    async def _send(self, client: int, number: int, due: float) -> None:
        trace = self.traces[number] = Trace(due)
        self.sent[number] = time.perf_counter()
        await self._clients.follow(client, self._order.messages[number], trace)

    def answers(self, ended: float) -> tuple[Answer, ...]:
        """Of all requests; those that have not ended are over by the deadline, and so are those not sent."""
        return tuple(self._answer(number, ended) for number in range(len(self._order.messages)))

    def _answer(self, number: int, ended: float) -> Answer:
        trace = self.traces.get(number)
        if trace is None:
            due = self._began + self._order.due_s[number] if self._order.due_s else ended
            trace = Trace(due)
        is_over = trace.ended > 0
        return Answer(
            due_s=trace.due - self._began,
            sent_s=self.sent.get(number, ended) - self._began,
            end_s=(trace.ended if is_over else ended) - self._began,
            code=trace.code if is_over else TOO_LATE,
            messages=tuple((at - self._began, data) for at, data in trace.messages),
        )


async def carry_out(order: Order) -> Report:
    """Connects first: that is no part of the load. Raises OSError, TimeoutError where no server answers."""
    num_connections = min(MOST_CONNECTIONS, len(order.messages), order.clients or MOST_CONNECTIONS)
    is_light = max(map(len, order.messages)) <= MOST_LIGHT_BYTES
    clients: Sending = (LightClients if is_light else LongClients)(order.address, num_connections)
    async with asyncio.timeout(order.seconds):
        await clients.connect()
    began = time.perf_counter()
    print(f"{BEGIN} {time.monotonic()}", flush=True)
    cpu, sent = time.process_time(), Sent(order, clients, began)
    try:
        async with asyncio.timeout(order.seconds):
            await sent.run()
    except TimeoutError:
        # What has not ended is told so, request by request.
        pass
    ended = time.perf_counter()
    report = Report(time.monotonic() - (ended - began), time.process_time() - cpu, sent.answers(ended))
    await clients.close()
    return report


def main(argv: Sequence[str]) -> int:
    order_file, report_file = map(Path, argv)
    order = msgspec.msgpack.decode(order_file.read_bytes(), type=Order)
    try:
        with without_collections():
            report = asyncio.run(carry_out(order))
    except (OSError, TimeoutError, grpc.RpcError) as error:
        print(f"{order.address}: {error or type(error).__name__}", file=sys.stderr)
        return 1
    report_file.write_bytes(msgspec.msgpack.encode(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
