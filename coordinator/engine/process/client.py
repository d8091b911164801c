"""ProcessEngine: an engine in another process, as its fronts see it. Knows no engine, only its socket."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar, cast

from coordinator.engine.client.base import NO_LIMIT
from coordinator.engine.client.request_streams import RequestStreams
from coordinator.engine.messages.commands import Command, EndRequests, ReadWorkers
from coordinator.engine.messages.errors import EngineBusyError, EngineLostError, MessageError
from coordinator.engine.messages.metrics import MetricsSnapshot, ReadMetrics
from coordinator.engine.messages.output import Output
from coordinator.engine.messages.process import Answer, Beat, MissingExperts, StepOutputs
from coordinator.engine.messages.records import TracedStep
from coordinator.engine.messages.request import Abort, Request
from coordinator.engine.messages.stats import EngineStats, ModelStatus, WorkersStatus
from coordinator.engine.process.calls import Calls
from coordinator.engine.process.connection import EngineConnection
from coordinator.engine.process.frames import frame_of
from moe_model.errors import ExpertMeshError, HaltedError
from moe_model.versions.expert_versions import ExpertModule

R = TypeVar("R")

# Seconds without a word that are nothing special: an engine says something each half second.
QUIET = 2.0
# Seconds after which a call waits no longer for an engine of which nothing is heard.
CALL_SILENCE = 60.0
# Bytes of requests that an engine has not taken: with more of them it is given no new ones.
MAX_QUEUED_BYTES = 64 << 20
# That a scrape waits for an engine that does not answer.
COUNTS_SECONDS = 1.0
# That an operator waits for requests to be ended.
ABORT_SECONDS = 5.0


class ProcessEngine:
    """An EngineClient. Connects again by itself when the engine is started again; until then streams and
    calls raise EngineLostError. Made, used and closed on one event loop."""

    def __init__(self, path: Path) -> None:
        """See `connect`."""
        self._streams = RequestStreams(self._send)
        self._calls = Calls()
        # What the engine has last told.
        self._stats = EngineStats()
        self._model = ModelStatus(())
        self._workers = WorkersStatus()
        self._missing: tuple[ExpertModule, ...] = ()
        self._counts = MetricsSnapshot()
        self._told: Callable[[TracedStep], None] = lambda _: None
        self._connection = EngineConnection(path, self._receive, self._lost)

    @classmethod
    async def connect(cls, path: Path, timeout: float = 60.0) -> Self:
        """Waits until an engine listens at the path and has told of itself. Raises EngineLostError."""
        engine = cls(path)
        try:
            await asyncio.wait_for(engine._connection.found.wait(), timeout)
        except BaseException as error:
            await engine.close()
            if isinstance(error, TimeoutError):
                raise EngineLostError(f"no engine in {timeout:g} s: {engine._connection.why}") from None
            raise
        return engine

    def stream(self, request: Request, max_seconds: float = NO_LIMIT) -> AsyncGenerator[Output, None]:
        return self._streams.stream(request, max_seconds)

    async def abort(self, request_ids: Sequence[str] | None = None) -> list[str]:
        wanted = None if request_ids is None else tuple(request_ids)
        return list((await self.ask(EndRequests(wanted), ABORT_SECONDS)).request_ids)

    @property
    def request_ids(self) -> list[str]:
        return self._streams.request_ids

    def stats(self) -> EngineStats:
        if self._connection.channel is None:
            return replace(self._stats, stopped=True, lost=True, num_running=0, num_waiting=0, kv_usage=0.0)
        silent = self._connection.silent_seconds
        return self._stats if silent < QUIET else replace(self._stats, silent_seconds=silent)

    def model(self) -> ModelStatus:
        return self._model

    def workers(self) -> WorkersStatus:
        return self._workers

    async def current_workers(self) -> WorkersStatus:
        with suppress(ExpertMeshError):
            self._workers = await self.ask(ReadWorkers(), COUNTS_SECONDS)
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
        result = self._begin(command)
        while True:
            try:
                return cast(R, result.result(QUIET))
            except TimeoutError:
                if self._connection.silent_seconds > CALL_SILENCE:
                    result.cancel()
                    raise EngineLostError(f"nothing heard of the engine for {CALL_SILENCE:g} s") from None

    async def ask(self, command: Command[R], timeout: float) -> R:
        """As `call`, for a loop, with a deadline: EngineLostError after `timeout` seconds."""
        try:
            return cast(R, await asyncio.wait_for(asyncio.wrap_future(self._begin(command)), timeout))
        except TimeoutError:
            raise EngineLostError(f"the engine has not answered within {timeout:g} s") from None

    async def close(self, timeout: float = 10.0) -> bool:
        """Ends this front's streams, and leaves; the engine goes on."""
        self._streams.close()
        await self._connection.close()
        self._calls.end(self._no_engine())
        return True

    def _send(self, message: Request | Abort) -> None:
        """Raises EngineLostError and EngineBusyError for a request; an Abort is never refused."""
        channel = self._connection.channel
        if isinstance(message, Request):
            if channel is None:
                raise self._no_engine()
            if channel.num_unsent > MAX_QUEUED_BYTES:
                raise EngineBusyError("the engine has not taken yet what was sent to it before")
        if channel is not None:
            channel.send(frame_of(message))

    def _begin(self, command: Command[Any]) -> "Future[object]":
        """On any thread."""
        channel = self._connection.channel
        call, result = self._calls.begin(command)
        if channel is not None:
            channel.send(frame_of(call))
        # An engine that was lost meanwhile may have been so before the call was there to be ended with it.
        if channel is None or self._connection.channel is not channel:
            result.cancel()
            raise self._no_engine()
        return result

    def _no_engine(self) -> ExpertMeshError:
        if self._connection.is_closed:
            return HaltedError("this engine's client has been closed")
        return EngineLostError(f"there is no engine: {self._connection.why}")

    def _receive(self, message: object) -> None:
        """Raises MessageError for what no engine of ours says."""
        match message:
            case StepOutputs():
                self._deliver(message)
            case Answer():
                self._calls.answer(message)
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

    def _deliver(self, said: StepOutputs) -> None:
        if said.stats is not None:
            self._stats = said.stats
        self._streams.deliver_tokens(said.tokens)
        for number, output in said.others:
            self._streams.deliver_one(number, output)

    def _lost(self, why: str) -> None:
        error = EngineLostError(f"the engine is lost: {why}")
        self._calls.end(error)
        self._streams.end_all(error)
