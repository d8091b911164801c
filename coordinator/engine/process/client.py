"""ProcessEngine: an engine in another process, as its fronts see it. Knows no engine, only its socket."""

import asyncio
import itertools
import logging
import os
import socket
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar, cast

from coordinator.engine.client.base import NO_LIMIT
from coordinator.engine.client.request_streams import RequestStreams
from coordinator.engine.messages.codec import decode, encode
from coordinator.engine.messages.commands import Command
from coordinator.engine.messages.errors import EngineBusyError, EngineLostError, MessageError
from coordinator.engine.messages.failure import Failure
from coordinator.engine.messages.metrics import MetricsSnapshot, ReadMetrics
from coordinator.engine.messages.output import Output
from coordinator.engine.messages.process import Answer, Beat, Call, Hello, MissingExperts, StepOutputs
from coordinator.engine.messages.records import TracedStep
from coordinator.engine.messages.request import Abort, Request
from coordinator.engine.messages.stats import EngineStats, ModelStatus, WorkersStatus
from coordinator.engine.process.channel import Channel
from coordinator.engine.process.frames import frame_of
from coordinator.engine.process.version import VERSION
from moe_model.errors import ExpertMeshError, HaltedError
from moe_model.versions.expert_versions import ExpertModule

logger = logging.getLogger(__name__)

R = TypeVar("R")

# Seconds between two tries to connect.
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5
# Seconds without a word that are nothing special: an engine says something each half second.
QUIET = 2.0
# Seconds after which a call waits no longer for an engine of which nothing is heard.
CALL_SILENCE = 60.0
# Bytes of requests that an engine has not taken: with more of them it is given no new ones.
MAX_QUEUED_BYTES = 64 << 20
# That a scrape waits for an engine that does not answer.
COUNTS_SECONDS = 1.0


class ProcessEngine:
    """An EngineClient. Connects again by itself when the engine is started again; until then streams and
    calls raise EngineLostError. Made, used and closed on one event loop."""

    def __init__(self, path: Path) -> None:
        """See `connect`."""
        self._path = path
        self._streams = RequestStreams(self._send)
        # What the engine has last told.
        self._stats = EngineStats(stopped=True)
        self._model = ModelStatus(())
        self._workers = WorkersStatus()
        self._missing: tuple[ExpertModule, ...] = ()
        self._counts = MetricsSnapshot()
        self._told: Callable[[TracedStep], None] = lambda _: None
        # The connection, and the same once the engine has told of itself.
        self._socket: Channel | None = None
        self._channel: Channel | None = None
        self._is_greeted = False
        self._numbers = itertools.count()
        self._calls: dict[int, Future[bytes]] = {}
        self._lost = asyncio.Event()
        self._found = asyncio.Event()
        self._closed = asyncio.Event()
        self._why = "it has not been started"
        self._heard = time.monotonic()
        self._keeper = asyncio.create_task(self._keep_connected())

    @classmethod
    async def connect(cls, path: Path, timeout: float = 60.0) -> Self:
        """Waits until an engine listens at the path and has told of itself. Raises EngineLostError."""
        engine = cls(path)
        try:
            await asyncio.wait_for(engine._found.wait(), timeout)
        except BaseException as error:
            await engine.close()
            if isinstance(error, TimeoutError):
                raise EngineLostError(f"no engine at {path} within {timeout:g} s: {engine._why}") from None
            raise
        return engine

    def stream(self, request: Request, max_seconds: float = NO_LIMIT) -> AsyncGenerator[Output, None]:
        return self._streams.stream(request, max_seconds)

    def abort(self, request_id: str) -> bool:
        return self._streams.abort(request_id)

    @property
    def request_ids(self) -> list[str]:
        return self._streams.request_ids

    def stats(self) -> EngineStats:
        if self._channel is None:
            return replace(self._stats, stopped=True, lost=True, num_running=0, num_waiting=0, kv_usage=0.0)
        silent = time.monotonic() - self._heard
        return self._stats if silent < QUIET else replace(self._stats, silent_seconds=silent)

    def model(self) -> ModelStatus:
        return self._model

    def workers(self) -> WorkersStatus:
        return self._workers

    def missing_experts(self) -> tuple[ExpertModule, ...]:
        return self._missing

    async def counts(self) -> MetricsSnapshot:
        with suppress(ExpertMeshError):
            self._counts = await self.ask(ReadMetrics(), COUNTS_SECONDS)
        return self._counts

    def follow(self, told: Callable[[TracedStep], None]) -> None:
        self._told = told

    def call(self, command: Command[R]) -> R:
        answer = self._begin(command)
        while True:
            try:
                return cast(R, _result(answer.result(QUIET)))
            except TimeoutError:
                if time.monotonic() - self._heard > CALL_SILENCE:
                    raise EngineLostError(f"nothing heard of the engine for {CALL_SILENCE:g} s") from None

    async def ask(self, command: Command[R], timeout: float) -> R:
        """As `call`, for a loop, with a deadline: EngineLostError after `timeout` seconds."""
        try:
            answer = asyncio.wrap_future(self._begin(command))
            return cast(R, _result(await asyncio.wait_for(answer, timeout)))
        except TimeoutError:
            raise EngineLostError(f"the engine has not answered within {timeout:g} s") from None

    async def close(self, timeout: float = 10.0) -> bool:
        """Ends this front's streams, and leaves; the engine goes on."""
        self._closed.set()
        self._streams.close()
        self._keeper.cancel()
        with suppress(asyncio.CancelledError):
            await self._keeper
        self._disconnect(self._no_engine())
        return True

    # What is said to the engine.

    def _send(self, message: Request | Abort) -> None:
        channel = self._channel
        if channel is None:
            if isinstance(message, Request):
                raise self._no_engine()
            return
        if isinstance(message, Request) and channel.num_unsent > MAX_QUEUED_BYTES:
            raise EngineBusyError("the engine has not taken yet what was sent to it before")
        channel.send(frame_of(message))

    def _begin(self, command: Command[Any]) -> "Future[bytes]":
        """On any thread."""
        channel = self._channel
        number, answer = next(self._numbers), Future[bytes]()
        self._calls[number] = answer
        # One that is not waited for any longer, or has its answer, expects none.
        answer.add_done_callback(lambda _: self._calls.pop(number, None))
        if channel is not None:
            channel.send(frame_of(Call(number, encode(command))))
        # One that was lost meanwhile has ended all calls that it saw.
        if channel is None or self._channel is not channel:
            self._calls.pop(number, None)
            raise self._no_engine()
        return answer

    def _no_engine(self) -> ExpertMeshError:
        if self._closed.is_set():
            return HaltedError("this engine's client has been closed")
        return EngineLostError(f"there is no engine: {self._why}")

    # What it says.

    def _receive(self, message: object) -> None:
        """Raises MessageError for what no engine of ours says."""
        self._heard = time.monotonic()
        if not self._is_greeted:
            self._greet(message)
            return
        match message:
            case StepOutputs():
                self._deliver(message)
            case Answer():
                answer = self._calls.pop(message.number, None)
                if answer is not None:
                    answer.set_result(message.result)
            case ModelStatus():
                self._model = message
            case WorkersStatus():
                self._workers = message
            case MissingExperts():
                self._missing = message.modules
            case TracedStep():
                self._told(message)
            case Beat():
                pass
            case _:
                raise MessageError(f"it says {type(message).__name__}, which no engine says")

    def _greet(self, message: object) -> None:
        if not isinstance(message, Hello):
            raise MessageError(f"it says {type(message).__name__} before its version")
        if message.version != VERSION:
            raise MessageError(f"the engine is of version {message.version}, this front of {VERSION}")
        self._is_greeted = True

    def _deliver(self, said: StepOutputs) -> None:
        if said.stats is not None:
            self._stats = said.stats
            if self._channel is None:
                # The last of what an engine says of itself first.
                self._channel = self._socket
                self._found.set()
        self._streams.deliver_tokens(said.tokens)
        for number, output in said.others:
            self._streams.deliver_one(number, output)

    # Connected, or not.

    async def _keep_connected(self) -> None:
        """Until it is closed."""
        pause = FIRST_PAUSE
        while not self._closed.is_set():
            self._lost.clear()
            if await self._open():
                await self._lost.wait()
            if self._found.is_set():
                pause = FIRST_PAUSE
                self._found.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _open(self) -> bool:
        """False when nobody listens."""
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            sock.connect(os.fspath(self._path))
        except OSError as error:
            sock.close()
            self._why = f"{self._path}: {error.strerror or error}"
            return False
        self._is_greeted = False
        self._socket = Channel(sock, self._receive, self._gone)
        self._socket.send(frame_of(Hello(VERSION)))
        return True

    def _gone(self, why: str) -> None:
        self._why = why
        if self._channel is not None:
            logger.error("the engine is lost: %s", why)
        self._disconnect(EngineLostError("the engine has died; it is started again"))
        self._lost.set()

    def _disconnect(self, error: ExpertMeshError) -> None:
        """Ends what waits for the engine."""
        if self._socket is not None:
            self._socket.close()
        self._socket = self._channel = None
        for number in tuple(self._calls):
            answer = self._calls.pop(number, None)
            if answer is not None:
                answer.set_exception(error)
        self._streams.end_all(error)


def _result(data: bytes) -> object:
    result = decode(data)
    if isinstance(result, Failure):
        raise result.error()
    return result
