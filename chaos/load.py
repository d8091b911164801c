"""Load: streams over gRPC from a thread of its own, and the history of each.

Nothing is retried, neither here nor in grpc: what a client would see is what is recorded.
"""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from chaos.history import Stream
from chaos.scenario import LoadSpec
from chaos.streams import send
from expertmesh import AsyncClient, Connection
from moe_model.errors import WorldError

# After a failure, so that a server that refuses everything is not asked a thousand times a second.
PAUSE_AFTER_FAILURE = 0.2


class LoadError(WorldError):
    """There is no load where there should be some."""


async def golden_outputs(address: str, connection: Connection, spec: LoadSpec) -> list[list[int]]:
    """The tokens of each of the different requests, while nothing fails. Raises LoadError when one does."""
    streams = [Stream(number, time.monotonic()) for number in range(spec.requests)]
    turns = asyncio.Semaphore(spec.streams)

    async def one(client: AsyncClient, stream: Stream) -> None:
        async with turns:
            await send(client, spec, stream, lambda _: None)

    async with AsyncClient(address, timeout=spec.timeout, connection=connection) as client:
        await asyncio.gather(*(one(client, stream) for stream in streams))
    for stream in streams:
        (end,) = stream.ends
        if stream.outcome != "completed":
            raise LoadError(f"without any fault, request {stream.request} ended: {end.code}: {end.message}")
    return [list(stream.token_ids) for stream in streams]


class Load:
    """Runs from `start` to `stop`; `streams` and `num_sent` are to be read after that."""

    def __init__(self, address: str, connection: Connection, spec: LoadSpec) -> None:
        self.streams: list[Stream] = []
        self.num_sent = 0
        self.num_tokens = 0
        self._address, self._spec = address, spec
        self._connection = replace(connection, retries=False)
        self._thread = threading.Thread(target=self._run, name="chaos-load", daemon=True)
        self._begun, self._over = threading.Event(), threading.Event()
        self._mark, self._reached = 0, threading.Event()
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main_task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()

    def start(self) -> None:
        self._thread.start()
        self._begun.wait()

    def stop(self, patience: float) -> None:
        """Sends nothing more and waits for what runs; after `patience` seconds that is cancelled. Idempotent.

        Raises LoadError if the load had ended by itself.
        """
        self._post(self._ending.set)
        if not self._over.wait(patience):
            self._post(self._cancel)
        self._thread.join()
        if self._error is not None:
            raise LoadError(f"the load ended: {self._error!r}") from self._error

    def wait(self, seconds: float) -> None:
        """Raises LoadError if the load ends meanwhile."""
        if seconds > 0 and self._over.wait(seconds):
            raise LoadError(f"the load ended: {self._error!r}")

    def wait_tokens(self, count: int) -> None:
        """Until there have been so many. LoadError if none comes for the time that a request may take."""
        self._reached.clear()
        self._mark = count
        seen = -1
        while self.num_tokens < count and not self._reached.is_set():
            if self.num_tokens == seen or self._over.is_set():
                raise LoadError(f"{self.num_tokens} tokens came, {count} were waited for")
            seen = self.num_tokens
            self._reached.wait(self._spec.timeout)

    def _count(self, num_tokens: int) -> None:
        self.num_tokens += num_tokens
        if self.num_tokens >= self._mark:
            self._reached.set()

    def _post(self, callback: Callable[[], object]) -> None:
        # RuntimeError: the loop is closed, and nothing is left to do.
        with contextlib.suppress(RuntimeError):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(callback)

    def _cancel(self) -> None:
        if self._main_task is not None:
            self._main_task.cancel()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # noqa: BLE001 - the top of a thread; `stop` and `wait` raise it
            self._error = error
        finally:
            self._begun.set()
            self._over.set()
            self._reached.set()

    async def _main(self) -> None:
        self._loop, self._main_task = asyncio.get_running_loop(), asyncio.current_task()
        async with AsyncClient(
            self._address, timeout=self._spec.timeout, connection=self._connection
        ) as client:
            self._begun.set()
            if self._spec.loop == "open":
                await self._open_loop(client)
            else:
                await asyncio.gather(*(self._client(client, n) for n in range(self._spec.streams)))

    async def _client(self, client: AsyncClient, number: int) -> None:
        """Of a closed loop."""
        while not self._ending.is_set():
            stream = await self._send(client, number, time.monotonic())
            number += self._spec.streams
            if stream.outcome != "completed":
                await self._pause(PAUSE_AFTER_FAILURE)

    async def _open_loop(self, client: AsyncClient) -> None:
        rng, due, number = random.Random(self._spec.seed), time.monotonic(), 0
        async with asyncio.TaskGroup() as group:
            while not self._ending.is_set():
                group.create_task(self._send(client, number, due))
                number += 1
                due += rng.expovariate(self._spec.rate)
                await self._pause(due - time.monotonic())

    async def _send(self, client: AsyncClient, number: int, due: float) -> Stream:
        stream = Stream(number % self._spec.requests, due)
        self.num_sent += 1
        self.streams.append(stream)
        await send(client, self._spec, stream, self._count)
        return stream

    async def _pause(self, seconds: float) -> None:
        """Until the load is to end, at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._ending.wait()
